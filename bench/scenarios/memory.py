"""What a connection costs in memory."""

from __future__ import annotations

from bench import clients
from bench.contenders import USUAL, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import FORKING, NO_PROCESS, Scenario

FIGURES = (
    Figure("connection", "memory per idle connection", "B", less=True),
    Figure("base", "memory before the first of them", "MiB", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """What the processes grow by while as many connections are opened as the case says."""
    idle = int(case.value)
    with lab.start(contender) as way:
        # What a program sets up only when it first serves is not to be divided among the idle connections.
        clients.requests(way.ports[0], 8, 1, close=True)
        before = way.memory()
        with clients.idle(way.ports[0], lab.web[contender.name], idle):
            return {"connection": (way.memory() - before) / idle, "base": before / 2**20}


SCENARIO = Scenario(
    "memory",
    "Memory of idle connections",
    "The sum of the proportional set sizes (PSS) of a contender's processes, after a second of small"
    " requests and again with the idle connections open. The kernel's memory for sockets and pipes is not"
    " in it; what a program has reserved and touched beforehand is in the base.",
    "idle connections",
    FIGURES,
    (Case("1,000 idle", 1_000), Case("4,000 idle", 4_000)),
    tuple(name for name in USUAL if name not in NO_PROCESS),
    measure,
    quick=("1,000 idle",),
    omitted=NO_PROCESS | FORKING,
    rounds=3,
)
