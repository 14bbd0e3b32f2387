"""A connection for each request."""

from __future__ import annotations

from bench.contenders import USUAL, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import CONNECTING, Scenario, small

FIGURES = (*CONNECTING, Figure("p99", "latency, 99th percentile", "ms", ".2f", less=True))


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, as many at a time as the case says."""
    with lab.start(contender) as way:
        return small(way, int(case.value), seconds, close=True)


SCENARIO = Scenario(
    "connections",
    "A connection for each request",
    "wrk makes 64 connections at a time, asks for a file of 100 bytes on each, and nginx closes it.",
    "",
    FIGURES,
    (Case("64 at a time", 64),),
    (*USUAL, "socat"),
    measure,
)
