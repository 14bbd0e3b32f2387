"""What access rules cost that let everybody in."""

from __future__ import annotations

from bench import clients
from bench.contenders import DENIED_CLIENT, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import Scenario, priced

ACTIVE = 64

FIGURES = (
    Figure("rate", "connections per second", "1/s"),
    Figure("cpu", "CPU per connection", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, with as many deny rules as the case says."""
    rules = int(case.value)
    with lab.start(contender, denied=rules) as way:
        if clients.ask(way.ports[0], DENIED_CLIENT).answered == bool(rules):
            raise RuntimeError(f"{contender.name} does not do what the last rule says")
        before = way.cpu()
        found = clients.requests(way.ports[0], ACTIVE, seconds, close=True)
        return {"rate": found.rate, **priced(way, before, "cpu", found.count / 1e6)}


SCENARIO = Scenario(
    "access",
    "Access rules",
    "wrk makes 64 connections at a time, one request on each. Global deny rules are set, by turns for a"
    " single address and for a network of 256, from all over the address space, so that every one has to"
    " be ruled out. None matches wrk; that a client which the last one matches is refused is checked"
    " before.",
    "deny rules",
    FIGURES,
    (Case("none", 0), Case("100 rules", 100), Case("1,000 rules", 1_000)),
    ("rinetd", "haproxy-1", "nginx", "fastfwd-1", "fastfwd-2"),
    measure,
    quick=("none", "1,000 rules"),
)
