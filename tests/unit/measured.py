"""Results of the bench made by hand, for the tests of what follows from results."""

from __future__ import annotations

from collections.abc import Mapping

from bench.contenders import CONTENDERS
from bench.results import Case, Figure, Measurement, Result

RATE = Figure("rate", "requests per second", "1/s")
CPU = Figure("cpu", "CPU per request", "µs", ".1f", less=True)

NAMES = ("rinetd", "haproxy-1", "haproxy+splice-1", "haproxy-2", "nginx", "fastfwd-1", "fastfwd-2")
TITLES = {name: CONTENDERS[name].title for name in (*NAMES, "stunnel", "hitch")}

Rounds = dict[tuple[str, str], list[float]]
"""(case, contender) -> a value per round."""


def result(
    scenario: str,
    rates: Rounds,
    *,
    figure: Figure = RATE,
    variable: str = "",
    without: Mapping[str, str] | None = None,
) -> Result:
    """One figure of a scenario with the cases and contenders that `rates` has, in their order; a
    case's place on an axis is the number its label begins with; `without` has the case
    that it is compared with, by case."""
    labels = dict.fromkeys(case for case, _ in rates)
    present = dict.fromkeys(contender for _, contender in rates)
    return Result(
        scenario,
        f"The title of {scenario}",
        "How it is measured.",
        variable,
        [figure],
        [Case(label, number(label), (without or {}).get(label)) for label in labels],
        {name: title for name, title in TITLES.items() if name in present},
        references={
            name: [each for each in CONTENDERS[name].references if each in present] for name in present
        },
        versions=dict.fromkeys(present, "1.0"),
        machine={"processor": "a processor", "processors": "2"},
        date="2026-01-01",
        rounds=max(map(len, rates.values())),
        seconds=3.0,
        measurements=[
            Measurement(round_, case, contender, {figure.name: value})
            for (case, contender), values in rates.items()
            for round_, value in enumerate(values)
        ],
    )


def number(label: str) -> float:
    """The number a label begins with, or 0."""
    first = label.split(maxsplit=1)[0].replace(",", "")
    return float(first) if first.isdigit() else 0.0
