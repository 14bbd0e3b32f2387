"""Small requests on connections that stay open."""

from __future__ import annotations

from bench.contenders import SPLICING, USUAL, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import FORKING, Scenario, small

FIGURES = (
    Figure("rate", "requests per second", "1/s"),
    Figure("p50", "latency, median", "ms", ".3f", less=True),
    Figure("p99", "latency, 99th percentile", "ms", ".2f", less=True),
    Figure("cpu", "CPU per request", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Requests over as many connections as the case says."""
    with lab.start(contender) as way:
        return small(way, int(case.value), seconds)


SCENARIO = Scenario(
    "requests",
    "Small requests on connections that stay open",
    "wrk asks nginx for a file of 100 bytes as fast as the answers come, one request at a time on each"
    " connection.",
    "connections",
    FIGURES,
    (Case("1 connection", 1), Case("64 connections", 64), Case("512 connections", 512)),
    (*USUAL, *SPLICING),
    measure,
    quick=("64 connections",),
    omitted=FORKING,
)
