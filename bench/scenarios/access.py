"""What access rules cost that let everybody in."""

from __future__ import annotations

from bench import clients
from bench.contenders import DENIED_CLIENT, Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import ACTIVE, CONNECTING, Scenario, small


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, with as many deny rules as the case says."""
    rules = int(case.value)
    with lab.start(contender, denied=rules) as way:
        if clients.ask(way.ports[0], DENIED_CLIENT).answered == bool(rules):
            raise RuntimeError(f"{contender.name} does not do what the last rule says")
        return small(way, ACTIVE, seconds, close=True)


SCENARIO = Scenario(
    "access",
    "Access rules",
    "wrk makes 64 connections at a time, one request on each. Global deny rules are set, by turns for a"
    " single address and for a network of 256, from all over the address space, so that every one has to"
    " be ruled out. None matches wrk; that a client which the last one matches is refused is checked"
    " before.",
    "deny rules",
    CONNECTING,
    (Case("none", 0), Case("100 rules", 100, "none"), Case("1,000 rules", 1_000, "none")),
    ("rinetd", "haproxy-1", "nginx", "fastfwd-1", "fastfwd-2"),
    measure,
    quick=("none", "1,000 rules"),
)
