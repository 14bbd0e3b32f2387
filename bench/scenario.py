"""What a scenario is, and the run that measures one: every contender in turn inside each round.

bench/scenarios has one module per scenario; each defines one Scenario. Its `measure` is
called once per round, case and contender, and starts the contender itself.
"""

from __future__ import annotations

import datetime
import os
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


Step = tuple[int, Case, Contender]
"""One measurement: (round, case, contender)."""

ACTIVE = 64
"""Connections that are busy at a time, where that is not what is varied."""

FORKING = {"socat": "it has a process for every connection"}
NO_DATAGRAMS = dict.fromkeys(("haproxy-1", "haproxy-2"), "it forwards no UDP")
NO_CLIENT_END = {"hitch": "the bench has it as a server"}
NO_PROCESS = dict.fromkeys(("direct", "dnat"), "no process looks after its connections")
"""Why some are omitted."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`about` says in a sentence or two how it is measured; `variable` what the cases vary.
    `contenders` are the names of those it makes sense for; `omitted` says of others why
    they are not among them, and `suits`, if given, may leave out a contender in single
    cases. `quick` are the cases of the quick form, `rounds` the most that a slow scenario
    may take. With `beside`, ratios are to those contenders instead of the usual ones. `measure`
    may answer with more figures than `figures`."""

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
    beside: tuple[str, ...] = ()

    def chosen_cases(self, quick: bool) -> list[Case]:
        """The cases of a run."""
        return [case for case in self.cases if not quick or not self.quick or case.label in self.quick]

    def chosen_contenders(self, chosen: Sequence[str]) -> list[Contender]:
        """Those of the contenders `chosen` that it is for, in the order of the tables."""
        return [each for name, each in CONTENDERS.items() if name in self.contenders and name in chosen]

    def references(self, contender: Contender, present: Sequence[str]) -> list[str]:
        """The names of those of `present` that the contender's ratios are to, if it has any."""
        usual = contender.references
        return [name for name in (self.beside if usual and self.beside else usual) if name in present]

    def steps(self, chosen: Sequence[str], rounds: int, quick: bool) -> list[Step]:
        """Every measurement in its order; without the contenders that are not available here."""
        contenders = [each for each in self.chosen_contenders(chosen) if each.available()]
        found = []
        for number in range(min(rounds, self.rounds or rounds)):
            # Another order each round: nobody always comes after the same one.
            shift = number % max(1, len(contenders))
            found += [
                (number, case, contender)
                for case in self.chosen_cases(quick)
                for contender in contenders[shift:] + contenders[:shift]
                if self.suits is None or self.suits(contender, case)
            ]
        return found


CONNECTING = (
    Figure("rate", "connections per second", "1/s"),
    Figure("cpu", "CPU per connection", "µs", ".1f", less=True),
)
"""What `small` measures with `close`."""


def small(
    way: Way, connections: int, seconds: float, *, close: bool = False, tls: bool = False
) -> dict[str, float]:
    """Requests for a small file to `ports[0]`, over `connections` connections that stay open, or
    with `close` over a new one for each, in TLS if `tls`: their number, rate and latency in ms, and the
    processor time of each in µs."""
    before = way.cpu()
    found = clients.requests(way.ports[0], connections, seconds, close=close, tls=tls)
    return {
        "count": found.count,
        "rate": found.rate,
        "p50": found.p50,
        "p99": found.p99,
        **priced(way, before, found.count / 1e6),
    }


def priced(way: Way, before: float | None, per: float) -> dict[str, float]:
    """The processor time that `way` has used since it was `before`, divided by `per`, as
    the figure `cpu`; nothing for ways without processes."""
    after = way.cpu()
    return {} if before is None or after is None else {"cpu": (after - before) / per}


SERVING = (
    Figure("requests_rate", "requests per second", "1/s"),
    Figure("requests_p99", "latency of a request, 99th percentile", "ms", ".2f", less=True),
    Figure("requests_cpu", "CPU per request", "µs", ".1f", less=True),
    Figure("connections_rate", "connections per second", "1/s"),
    Figure("connections_cpu", "CPU per connection", "µs", ".1f", less=True),
)
"""What `serving` measures."""


def serving(way: Way, seconds: float) -> dict[str, float]:
    """Small requests over connections that stay open, and then over a new one for each."""
    kept = small(way, ACTIVE, seconds)
    fresh = small(way, ACTIVE, seconds, close=True)
    return {f"requests_{name}": number for name, number in kept.items()} | {
        f"connections_{name}": number for name, number in fresh.items()
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
        "congestion control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        # Which build matters: one without profile-guided optimization costs more per request.
        "python": f"{sys.version.split()[0]} ({os.path.realpath(sys.executable)})",
    }


def measure(
    scenario: Scenario,
    lab: Lab,
    chosen: Sequence[str],
    rounds: int,
    seconds: float,
    quick: bool,
    progress: Callable[[str], None],
) -> Result:
    """Run `scenario` with those of the contenders called `chosen` that it is for and that
    are available. One that fails, for whatever reason, is left out from then on; what it
    gave before stays. `progress` is told what comes next."""
    steps = scenario.steps(chosen, rounds, quick)
    rounds = len({number for number, _, _ in steps})
    wanted = scenario.chosen_contenders(chosen)
    present = [contender for contender in wanted if contender.available()]
    names = [contender.name for contender in present]
    result = Result(
        scenario.name,
        scenario.title,
        scenario.about,
        scenario.variable,
        list(scenario.figures),
        scenario.chosen_cases(quick),
        {contender.name: contender.title for contender in present},
        references={each.name: scenario.references(each, names) for each in present},
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
    for name, why in result.omitted.items():
        print(f"bench: {name} is left out of {scenario.name}: {why}", file=sys.stderr)
    for number, case, contender in steps:
        if contender.name in result.failed:
            continue
        progress(f"{scenario.name}: round {number + 1} of {rounds}, {case.label}, {contender.name}")
        try:
            found = scenario.measure(lab, contender, case, seconds)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            why = f"in round {number + 1}, {case.label}: {words}"
            print(
                f"\nbench: {contender.name} has failed and is left out from here on: {why}", file=sys.stderr
            )
            result.failed[contender.name] = why
            continue
        figures = {each.name: found[each.name] for each in scenario.figures if each.name in found}
        result.measurements.append(Measurement(number, case.label, contender.name, figures))
    return result
