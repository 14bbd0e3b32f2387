"""Many connections that say nothing, and a few that do."""

from __future__ import annotations

from bench import clients
from bench.contenders import USUAL, Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import FORKING, NO_PROCESS, SERVING, Scenario, serving


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Requests and then connections beside as many idle connections as the case says."""
    with (
        lab.start(contender) as way,
        clients.idle(way.ports[0], lab.web[contender.name], int(case.value)),
    ):
        return serving(way, seconds)


SCENARIO = Scenario(
    "idle",
    "Beside idle connections",
    "Idle connections through the same forward are open from before the load until after it. Beside them"
    " wrk asks for a file of 100 bytes, first over 64 connections that stay open, then over a new one"
    " each time, 64 at a time.",
    "idle connections",
    SERVING,
    (Case("1,000 idle", 1_000), Case("4,000 idle", 4_000), Case("8,000 idle", 8_000)),
    tuple(name for name in USUAL if name not in NO_PROCESS),
    measure,
    quick=("1,000 idle",),
    omitted=NO_PROCESS | FORKING,
    rounds=3,
)
