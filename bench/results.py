"""What was measured, and what follows from it by arithmetic alone: medians, ratios, spreads.

A Result is one scenario's outcome and one file, bench/results/SCENARIO.json. scenario
fills it; report, plots and targets only read it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

DIRECTORY = Path(__file__).parent / "results"
"""Where the published results are."""

RELATIVE = frozenset({"logging", "access"})
"""Scenarios that ask what a setting costs: their ratios are to the same contender in the first case."""


def family(contender: str) -> str:
    """The program of a contender, whose name is FAMILY[+VARIANT][-THREADS]."""
    return contender.partition("-")[0].partition("+")[0]


def threads(contender: str) -> int:
    """How many threads or workers a contender has."""
    return int(contender.partition("-")[2] or 1)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured quantity: `title` and `unit` for people, `form` as format() takes it, and
    whether less is better."""

    name: str
    title: str
    unit: str
    form: str = ",.0f"
    less: bool = False

    def formatted(self, number: float) -> str:
        """A value as people read it, without the unit."""
        return format(number, self.form)


@dataclass(frozen=True, slots=True)
class Case:
    """One setting of a scenario's variable: `label` for people, `value` for an axis."""

    label: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one contender gave in one round in one case. `figures` has no entry for what
    could not be measured of it."""

    round: int
    case: str
    contender: str
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the greatest of what it is the median of."""

    median: float
    least: float
    greatest: float


@dataclass(slots=True)
class Result:
    """A scenario's outcome. `contenders` maps names to titles, in the order of tables;
    `versions` has what each program says of itself; `omitted` says who was left out
    and why; `machine` is where it ran."""

    scenario: str
    title: str
    about: str
    variable: str
    figures: list[Figure]
    cases: list[Case]
    contenders: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    date: str = ""
    rounds: int = 0
    seconds: float = 0.0
    measurements: list[Measurement] = field(default_factory=list)

    def values(self, case: str, contender: str, figure: str) -> dict[int, float]:
        """A figure by round."""
        return {
            each.round: each.figures[figure]
            for each in self.measurements
            if (each.case, each.contender) == (case, contender) and figure in each.figures
        }

    def value(self, case: str, contender: str, figure: str) -> Spread | None:
        """A figure's median over the rounds; None if it was not measured."""
        return spread(self.values(case, contender, figure).values())

    def ratio(
        self, case: str, contender: str, reference: str, figure: str, reference_case: str | None = None
    ) -> Spread | None:
        """The median of a figure's ratios to the reference's in the same round: what the
        machine did to both of them is not in it. `reference_case` is another case of the
        reference, if it is not the same one."""
        own = self.values(case, contender, figure)
        others = self.values(reference_case or case, reference, figure)
        return spread(own[n] / others[n] for n in own.keys() & others.keys() if others[n])

    def pairs(self) -> list[tuple[str, str]]:
        """Who is compared with whom: each fastfwd with C rinetd, and with the HAProxy that has as
        many threads as it has workers."""
        return [
            (contender, reference)
            for contender in self.contenders
            if family(contender) == "fastfwd"
            for reference in self.contenders
            if reference == "rinetd"
            or (family(reference) == "haproxy" and threads(reference) == threads(contender))
        ]

    def baseline(self) -> str | None:
        """The label of the case that the others are compared with, if this scenario asks that."""
        return self.cases[0].label if self.scenario in RELATIVE and len(self.cases) > 1 else None

    def save(self, directory: Path = DIRECTORY) -> Path:
        """Write it as JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.scenario}.json"
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")
        return path


def spread(values: Iterable[float]) -> Spread | None:
    """Median and extremes; None of nothing."""
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found)) if found else None


def load_all(directory: Path, names: Iterable[str]) -> dict[str, Result]:
    """By scenario, what `directory` has of the scenarios `names`, in their order."""
    return {name: load(path) for name in names if (path := directory / f"{name}.json").exists()}


def load(path: Path) -> Result:
    """What `save` wrote. Raises OSError, or ValueError if the file is something else."""
    try:
        found = orjson.loads(path.read_bytes())
        found["figures"] = [Figure(**each) for each in found["figures"]]
        found["cases"] = [Case(**each) for each in found["cases"]]
        found["measurements"] = [Measurement(**each) for each in found["measurements"]]
        return Result(**found)
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a result of this bench: {error}") from error
