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
    """One setting of a scenario's variable: `label` for people, `value` for an axis. Where the
    question is what a setting costs, `without` is the label of the case that lacks it, and
    the ratios are to the same contender there."""

    label: str
    value: float = 0.0
    without: str | None = None


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


@dataclass(frozen=True, slots=True)
class Reference:
    """What a ratio is to: a contender in the same case, or in the one whose label is `case`."""

    contender: str
    case: str | None = None


@dataclass(slots=True)
class Result:
    """A scenario's outcome. `contenders` maps names to titles, in the order of tables;
    `references` has the names of those that a contender's ratios are to; `versions` has
    what each program says of itself; `omitted` says who was left out and why, `failed`
    who did not get to the end; `machine` is where it ran."""

    scenario: str
    title: str
    about: str
    variable: str
    figures: list[Figure]
    cases: list[Case]
    contenders: dict[str, str]
    references: dict[str, list[str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
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

    def ratio(self, case: str, contender: str, figure: str, to: Reference) -> Spread | None:
        """The median of a figure's ratios to the reference in the same round: what the
        machine did to both of them is not in it. None if there is no such ratio."""
        if to.case not in {None, self.without(case)}:
            return None
        own = self.values(case, contender, figure)
        others = self.values(to.case or case, to.contender, figure)
        return spread(own[n] / others[n] for n in own.keys() & others.keys() if others[n])

    def without(self, case: str) -> str | None:
        """The label of the case that lacks what `case` has, if there is one."""
        return next((each.without for each in self.cases if each.label == case), None)

    def baselines(self) -> list[str]:
        """The labels of the cases that others are compared with, if the question is what a setting costs."""
        return list(dict.fromkeys(case.without for case in self.cases if case.without is not None))

    def comparisons(self) -> list[tuple[str, Reference]]:
        """Contenders, and what their ratios are to: other contenders, or themselves in other cases."""
        if baselines := self.baselines():
            return [(name, Reference(name, case)) for name in self.contenders for case in baselines]
        return [
            (name, Reference(reference))
            for name in self.contenders
            for reference in self.references.get(name, ())
        ]

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
