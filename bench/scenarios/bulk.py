"""Long streams."""

from __future__ import annotations

from bench import clients
from bench.contenders import SPLICING, USUAL, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import Scenario, priced

FIGURES = (
    Figure("rate", "throughput", "Gbit/s", ".1f"),
    Figure("cpu", "CPU per gigabyte", "s/GB", ".3f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """As many flows at a time as the case says."""
    with lab.start(contender) as way:
        before = way.cpu()
        with clients.Flows(way.ports[1], int(case.value), seconds) as streams:
            found = streams.finish()
        return {"rate": found.rate / 1e9, **priced(way, before, found.received / 1e9)}


SCENARIO = Scenario(
    "bulk",
    "Long streams",
    "iperf3 sends from client to backend as fast as it can; its receiver counts.",
    "flows",
    FIGURES,
    (Case("1 flow", 1), Case("8 flows", 8)),
    (*USUAL, *SPLICING, "socat"),
    measure,
    quick=("1 flow",),
)
