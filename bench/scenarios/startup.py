"""How long a start takes."""

from __future__ import annotations

import statistics
import time

from bench import clients
from bench.contenders import Contender, Setup
from bench.lab import Lab
from bench.processes import PATIENCE, running
from bench.results import Case, Figure
from bench.scenario import Scenario

STARTS = 5
"""Starts of one measurement, which gives their median: one takes a few milliseconds."""

PAUSE = 0.0002
"""Seconds between two attempts to connect."""

FIGURES = (
    Figure("listening", "from exec to the first connection taken", "ms", ",.1f", less=True),
    Figure("answered", "from exec to the first answer", "ms", ",.1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Some starts, with as many forwards as the case says."""
    with lab.setup(contender, int(case.value)) as setup:
        times = [once(lab, contender, setup) for _ in range(STARTS)]
    listening, answered = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
    return {"listening": listening, "answered": answered}


def once(lab: Lab, contender: Contender, setup: Setup) -> tuple[float, float]:
    """Start, try the last forward, stop. Seconds until the kernel takes a connection for it, and
    until the answer to a request has come through it."""
    port = setup.forwards[-1][0]
    with lab.scratch() as directory:
        (command,) = contender.commands(directory, setup)
        begun = time.perf_counter()
        with running(command, directory, ()) as process:
            while not (asked := clients.ask(port)).answered:
                if process.poll() is not None or time.perf_counter() > begun + PATIENCE:
                    raise RuntimeError(f"{contender.name} does not start: {(directory / 'said').read_text()}")
                time.sleep(PAUSE)
            answered = time.perf_counter() - begun
            return answered - asked.took + asked.connected, answered


SCENARIO = Scenario(
    "startup",
    "Time to start",
    "From exec until a connection to the last forward of the configuration is taken, and until a small"
    " file has come through it; a connection is tried every 0.2 ms. The median of five starts is one"
    " measurement.",
    "forwards",
    FIGURES,
    (Case("10 forwards", 10), Case("1,000 forwards", 1_000)),
    ("rinetd", "haproxy-1", "nginx", "fastfwd-1", "fastfwd-2"),
    measure,
)
