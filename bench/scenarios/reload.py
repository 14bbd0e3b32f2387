"""What clients notice of a reload."""

from __future__ import annotations

import time
from dataclasses import replace

from bench import clients
from bench.contenders import Contender
from bench.lab import Lab
from bench.processes import wait
from bench.results import Case, Figure
from bench.scenario import Scenario

PAUSE = 0.0005
"""Seconds between two attempts to reach the new forward."""

FIGURES = (
    Figure("answer", "from the signal to an answer on the new forward", "ms", ",.1f", less=True),
    Figure("failed", "connections that failed meanwhile", "", ",.0f", less=True),
    Figure("longest", "longest wait of one that was answered", "ms", ",.1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """One reload that adds a forward to as many as the case says."""
    with lab.setup(contender, int(case.value) + 1) as plain, lab.scratch() as directory:
        after = replace(plain, reloadable=True)
        before = replace(after, forwards=after.forwards[:-1])
        old, new = after.forwards[0][0], after.forwards[-1][0]
        with contender.start(directory, before) as way:
            wait(lambda: clients.ask(old).answered, f"{contender.name} forwards")
            with clients.Trickle(old) as trickle:
                wait(lambda: trickle.asked() > 20, "connections are made", PAUSE)
                begun = time.perf_counter()
                contender.reload(way, after)
                wait(lambda: clients.ask(new).answered, f"{contender.name} serves the new forward", PAUSE)
                took = time.perf_counter() - begun
                # The old process or table goes only now, and may take somebody with it.
                time.sleep(seconds)
            asked = trickle.results()
            return {
                "answer": took * 1000,
                "failed": float(sum(not each.answered for each in asked)),
                "longest": max((each.took for each in asked if each.answered), default=0.0) * 1000,
            }


SCENARIO = Scenario(
    "reload",
    "Reload under load",
    "With 1,000 forwards, 200 connections per second are made through one of them, each with a request,"
    " while the configuration gets one forward more and the program is told by a signal to read it: HUP"
    " for fastfwd, C rinetd and nginx (with its master process), USR2 for HAProxy (in its master-worker"
    " mode). They go on for some seconds after the new forward answers.",
    "",
    FIGURES,
    (Case("1,000 forwards", 1_000),),
    ("rinetd", "haproxy-1", "haproxy-2", "nginx", "fastfwd-1", "fastfwd-2"),
    measure,
)
