"""What a scenario is, and the run that measures one: every contender in turn inside each round.

bench/scenarios has one module per scenario; each defines one Scenario. `measure` is
called once per round, case and contender, and starts the contender itself.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench import clients
from bench.contenders import CONTENDERS, Contender, Way, kernel
from bench.lab import Lab
from bench.results import Case, Figure, Measurement, Result

Measure = Callable[[Lab, Contender, Case, float], dict[str, float]]
"""(lab, contender, case, seconds of load) -> figures by name."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`about` says in a sentence or two how it is measured; `variable` what the cases vary.
    `contenders` are the names of those it makes sense for; `omitted` says of others why
    they are not among them, and `suits`, if given, may leave out a contender in single
    cases. `quick` are the cases of the quick form, `rounds` the most that a slow scenario
    may take."""

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
    omitted: Mapping[str, str] = field(default_factory=dict)
    rounds: int | None = None


def priced(way: Way, before: float | None, name: str, per: float) -> dict[str, float]:
    """The processor time that `way` has used since it was `before`, divided by `per`, as
    the figure `name`; nothing for ways without processes."""
    after = way.cpu()
    return {} if before is None or after is None else {name: (after - before) / per}


SERVING = (
    Figure("requests", "requests per second", "1/s"),
    Figure("p99", "latency of a request, 99th percentile", "ms", ".2f", less=True),
    Figure("request_cpu", "CPU per request", "µs", ".1f", less=True),
    Figure("connections", "connections per second", "1/s"),
    Figure("connection_cpu", "CPU per connection", "µs", ".1f", less=True),
)
"""What `serving` measures."""


def serving(way: Way, connections: int, seconds: float) -> dict[str, float]:
    """Small requests to `ports[0]`, over connections that stay open and then over a new one for
    each, `connections` at a time."""
    start = way.cpu()
    kept = clients.requests(way.ports[0], connections, seconds)
    price = priced(way, start, "request_cpu", kept.count / 1e6)
    start = way.cpu()
    fresh = clients.requests(way.ports[0], connections, seconds, close=True)
    return {
        "requests": kept.rate,
        "p99": kept.p99,
        "connections": fresh.rate,
        **price,
        **priced(way, start, "connection_cpu", fresh.count / 1e6),
    }


def machine() -> dict[str, str]:
    """Where this runs."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
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
    are installed. One that fails is left out from then on; what it gave before stays.
    `progress` is told what comes next."""
    cases = [
        case for case in scenario.cases if not lab.quick or not scenario.quick or case.label in scenario.quick
    ]
    wanted = [
        each for each in CONTENDERS.values() if each.name in scenario.contenders and each.name in chosen
    ]
    present = [contender for contender in wanted if contender.available()]
    if scenario.rounds is not None:
        rounds = min(rounds, scenario.rounds)
    result = Result(
        scenario.name,
        scenario.title,
        scenario.about,
        scenario.variable,
        list(scenario.figures),
        cases,
        {contender.name: contender.title for contender in present},
        versions={contender.name: contender.version() for contender in present},
        omitted={
            **{name: why for name, why in scenario.omitted.items() if name in chosen},
            **{each.name: "not available on this machine" for each in wanted if each not in present},
        },
        machine=machine(),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        rounds=rounds,
        seconds=seconds,
    )
    for each in wanted:
        if each not in present:
            print(f"bench: {each.name} is left out: {result.omitted[each.name]}", file=sys.stderr)
    for number in range(rounds):
        for case in cases:
            # Another order each round: nobody always comes after the same one.
            shift = number % len(present) if present else 0
            for contender in present[shift:] + present[:shift]:
                if scenario.suits is not None and not scenario.suits(contender, case):
                    continue
                if contender.name in result.omitted:
                    continue
                progress(f"{scenario.name}: round {number + 1} of {rounds}, {case.label}, {contender.name}")
                try:
                    figures = scenario.measure(lab, contender, case, seconds)
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    words = " ".join(str(error).split())[:300]
                    why = f"failed with {case.label or scenario.name} in round {number + 1}: {words}"
                    print(f"\nbench: {contender.name} is left out from here on: {why}", file=sys.stderr)
                    result.omitted[contender.name] = why
                    continue
                result.measurements.append(Measurement(number, case.label, contender.name, figures))
    return result
