"""What a scenario is, and the run that measures one: every contender in turn inside each round.

bench/scenarios has one module per scenario; each defines one Scenario. `measure` is
called once per round, case and contender, and starts the contender itself.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.contenders import CONTENDERS, Contender, Way, kernel
from bench.lab import Lab
from bench.results import Case, Figure, Measurement, Result

Measure = Callable[[Lab, Contender, Case, float], dict[str, float]]
"""(lab, contender, case, seconds of load) -> figures by name."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`about` says in a sentence or two how it is measured; `variable` what the cases vary.
    `contenders` are the names of those it makes sense for, and `suits`, if given, may
    leave out a contender in single cases. `quick` are the cases of the quick form."""

    name: str
    title: str
    about: str
    variable: str
    figures: tuple[Figure, ...]
    cases: tuple[Case, ...]
    contenders: tuple[str, ...]
    measure: Measure
    suits: Callable[[Contender, Case], bool] | None = None
    quick: tuple[str, ...] = ()


def priced(way: Way, before: float | None, name: str, per: float) -> dict[str, float]:
    """The processor time that `way` has used since it was `before`, divided by `per`, as
    the figure `name`; nothing for ways without processes."""
    after = way.cpu()
    return {} if before is None or after is None else {name: (after - before) / per}


def machine() -> dict[str, str]:
    """Where this runs."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    return {
        "processor": model,
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": kernel(),
        "python": sys.version.split()[0],
    }


def measure(
    scenario: Scenario,
    lab: Lab,
    chosen: Sequence[str],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Result:
    """Run `scenario` with those of the contenders called `chosen` that it is for and that
    are installed. `progress` is told what comes next."""
    cases = [case for case in scenario.cases if not lab.quick or not scenario.quick or case.label in scenario.quick]
    wanted = [CONTENDERS[name] for name in scenario.contenders if name in chosen]
    present = [contender for contender in wanted if contender.available()]
    result = Result(
        scenario.name,
        scenario.title,
        scenario.about,
        scenario.variable,
        list(scenario.figures),
        cases,
        {contender.name: contender.title for contender in present},
        versions={contender.name: contender.version() for contender in present},
        omitted={each.name: "not available on this machine" for each in wanted if each not in present},
        machine=machine(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        rounds=rounds,
        seconds=seconds,
    )
    for name, why in result.omitted.items():
        print(f"bench: {name} is left out: {why}", file=sys.stderr)
    for number in range(rounds):
        for case in cases:
            # Another order each round: nobody always comes after the same one.
            shift = number % len(present) if present else 0
            for contender in present[shift:] + present[:shift]:
                if scenario.suits is not None and not scenario.suits(contender, case):
                    continue
                progress(f"{scenario.name}: round {number + 1} of {rounds}, {case.label}, {contender.name}")
                figures = scenario.measure(lab, contender, case, seconds)
                result.measurements.append(Measurement(number, case.label, contender.name, figures))
    return result
