"""A connection for each request."""

from __future__ import annotations

from bench import clients
from bench.contenders import USUAL, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import Scenario, priced

FIGURES = (
    Figure("rate", "connections per second", "1/s"),
    Figure("p99", "latency, 99th percentile", "ms", ".2f", less=True),
    Figure("cpu", "CPU per connection", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, as many at a time as the case says."""
    with lab.start(contender) as way:
        before = way.cpu()
        found = clients.requests(way.ports[0], int(case.value), seconds, close=True)
        return {"rate": found.rate, "p99": found.p99, **priced(way, before, "cpu", found.count / 1e6)}


SCENARIO = Scenario(
    "connections",
    "A connection for each request",
    "wrk makes 64 connections at a time, asks for a file of 100 bytes on each, and nginx closes it.",
    "",
    FIGURES,
    (Case("64 at a time", 64),),
    USUAL,
    measure,
)
