"""UDP: datagrams of few flows and of many."""

from __future__ import annotations

import sys

from bench import clients
from bench.contenders import Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import FORKING, NO_DATAGRAMS, Scenario, priced

FIGURES = (
    Figure("rate", "round trips per second", "1/s"),
    Figure("p50", "latency, median", "ms", ".3f", less=True),
    Figure("p99", "latency, 99th percentile", "ms", ".2f", less=True),
    Figure("cpu", "CPU per round trip", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Round trips over as many flows as the case says, which are all there before."""
    with (
        lab.start_datagrams(contender) as way,
        clients.Datagrams(way.ports[0], int(case.value)) as flows,
    ):
        before = way.cpu()
        found = flows.run(seconds)
        if found.lost:
            print(f"\ndatagrams through {contender.name}: {found.lost} were lost", file=sys.stderr)
        return {
            "rate": found.rate,
            "p50": found.p50,
            "p99": found.p99,
            **priced(way, before, found.count / 1e6),
        }


SCENARIO = Scenario(
    "datagrams",
    "Datagrams",
    "Datagrams of 100 bytes go to a backend that sends them back. 64 are under way at a time; the flows, each"
    " of which is there before and lasts to the end, take turns. Client and backend are a process each that"
    " sends and receives many with one system call.",
    "flows",
    FIGURES,
    (Case("64 flows", 64), Case("2,000 flows", 2_000)),
    ("direct", "dnat", "rinetd", "nginx", "fastfwd-1", "fastfwd-2"),
    measure,
    quick=("64 flows",),
    omitted=NO_DATAGRAMS | FORKING,
    beside=("rinetd", "nginx"),
)
