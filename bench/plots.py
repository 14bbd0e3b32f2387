"""Results as pictures: one SVG per scenario, with a panel for each figure.

report calls it. Lines over the scenario's variable where that has three values or more,
bars otherwise; bars of ratios where the question is what a setting costs. A scenario
needs no code here. The background is white on purpose: the pictures look the same in a
light and a dark page. The same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.results import Figure, Reference, Result, Spread

COLOURS = {
    "direct": "#bbbbbb",
    "dnat": "#888888",
    "rinetd": "#222222",
    "haproxy": "#0072b2",
    "haproxy+splice": "#56b4e9",
    "nginx": "#009e73",
    "socat": "#cc79a7",
    "stunnel": "#cc79a7",
    "hitch": "#f0e442",
    "fastfwd": "#d55e00",
}
"""By kind, in every picture: Okabe and Ito's palette, which the colour-blind can tell apart."""

OTHER = "#e69f00"
"""The colour of a kind that is not in COLOURS."""

MARKERS = {
    "direct": "P",
    "dnat": "X",
    "rinetd": "D",
    "haproxy": "s",
    "haproxy+splice": "s",
    "nginx": "^",
    "socat": "v",
    "stunnel": "<",
    "hitch": ">",
}
STYLES = {1: "-", 2: "--"}
"""The style of a line says the number of threads."""

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fastfwd",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
"""Text stays text, and names of elements do not change from run to run."""

WIDTH = 10.0
"""Inches; a page of GitHub shows it without scaling."""

THICKNESS = 0.24
"""Inches from one bar to the next."""

GAP = 0.4
"""Between contenders, in bars."""

LOGARITHMIC = 20
"""From this ratio of the greatest to the least on, lines are drawn on a logarithmic axis."""

Value = Callable[[str, str], Spread | None]
"""(case, contender) -> what a panel shows of it."""


def draw(result: Result, directory: Path) -> Path:
    """Write the picture of `result` into `directory`."""
    # One bar alone says no more than its number in the table.
    figures = [figure for figure in result.figures if bars(result, figure) > 1] or result.figures
    over = is_line(result)
    columns = min(2, len(figures))
    rows = ceil(len(figures) / columns)
    height = 3.0 if over else 0.9 + max(room(result, figure) for figure in figures) * THICKNESS
    with mpl.rc_context(SETTINGS):
        picture = Picture(figsize=(WIDTH, 0.9 + rows * height), layout="constrained")
        picture.suptitle(f"{result.title}\n{caption(result)}", x=0.01, ha="left", fontsize=11)
        grid = picture.subplots(rows, columns, squeeze=False)
        for axes, figure in zip_longest(grid.flat, figures):
            if figure is None:
                axes.set_axis_off()
            elif over:
                draw_lines(axes, result, figure)
            else:
                draw_bars(axes, result, figure)
        handles = line_legend(result) if over else case_legend(result)
        if handles:
            picture.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        path = directory / f"{result.scenario}.svg"
        picture.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def caption(result: Result) -> str:
    """What a point and a whisker are."""
    rounds = (
        "one round"
        if result.rounds == 1
        else f"medians of {result.rounds} rounds, whiskers from least to greatest"
    )
    return f"{rounds}, {result.seconds:g} s each"


# What is in a panel


def is_line(result: Result) -> bool:
    """Whether the cases are points on an axis."""
    values = [case.value for case in result.cases]
    numbers = len(values) >= 3 and len(set(values)) == len(values) and min(values) > 0
    return bool(result.variable) and numbers and not result.baselines()


def cases_of(result: Result) -> list[str]:
    """The cases that are drawn: if there are ratios to others, only those that have them."""
    relative = bool(result.baselines())
    return [case.label for case in result.cases if not relative or case.without is not None]


def value_of(result: Result, figure: Figure) -> Value:
    """The figure itself, or its ratio to the same contender's in the case without the setting."""
    if not result.baselines():
        return lambda case, contender: result.value(case, contender, figure.name)
    return lambda case, contender: result.ratio(
        case, contender, figure.name, Reference(contender, result.without(case))
    )


def names_of(result: Result, value: Value) -> list[str]:
    """The contenders that have any value."""
    return [name for name in result.contenders if any(value(case, name) for case in cases_of(result))]


def bars(result: Result, figure: Figure) -> int:
    """How many bars a panel has, if it has bars; how many points otherwise."""
    value = value_of(result, figure)
    return sum(value(case, name) is not None for name in result.contenders for case in cases_of(result))


def room(result: Result, figure: Figure) -> float:
    """The height of a panel of bars, in bars."""
    return bars(result, figure) + GAP * len(names_of(result, value_of(result, figure)))


# Panels


def draw_bars(axes: Axes, result: Result, figure: Figure) -> None:
    """Horizontal bars, a group per contender, with the values beside them."""
    value, cases, baselines = value_of(result, figure), cases_of(result), result.baselines()
    place, widest, ticks = 0.0, 0.0, {}
    for name, title in result.contenders.items():
        first = place
        for number, case in enumerate(cases):
            spread = value(case, name)
            if spread is None:
                continue
            alpha = shade(number, len(cases))
            axes.barh(place, spread.median, 0.9, color=colour(name), alpha=alpha, linewidth=0)
            if spread.greatest > spread.least:
                axes.errorbar(
                    spread.median, place, xerr=whiskers([spread]), ecolor="#555555", capsize=1.5, lw=0.8
                )
            text = f"{spread.median:.2f}" if baselines else figure.formatted(spread.median)
            end = spread.greatest, place
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize=8)
            widest = max(widest, spread.greatest)
            place += 1
        if place > first:
            ticks[title] = (first + place - 1) / 2
            place += GAP
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.invert_yaxis()
    axes.set_xlim(0, widest * 1.16 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda each, _: f"{each:,g}")
    if baselines:
        axes.axvline(1, color="#555555", lw=0.8, ls=":")
    other = baselines[0] if len(baselines) == 1 else "the case without"
    axes.set_xlabel(axis(figure, f"ratio to {other}" if baselines else figure.unit))
    axes.set_title(figure.title)


def draw_lines(axes: Axes, result: Result, figure: Figure) -> None:
    """A line per contender over the scenario's variable."""
    value = value_of(result, figure)
    everything = []
    for name in names_of(result, value):
        points = [(case.value, spread) for case in result.cases if (spread := value(case.label, name))]
        spreads = [spread for _, spread in points]
        everything += [spread.median for spread in spreads]
        axes.errorbar(
            [place for place, _ in points],
            [spread.median for spread in spreads],
            yerr=whiskers(spreads),
            capsize=2,
            **look(name),
        )
    values = [case.value for case in result.cases]
    if max(values) / min(values) >= LOGARITHMIC:
        axes.set_xscale("log")
    if min(everything, default=0) > 0 and max(everything) / min(everything) >= LOGARITHMIC:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda each, _: f"{each:,g}")
    axes.set_xticks(values, [f"{each:,g}" for each in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(result.variable)
    axes.set_ylabel(axis(figure, figure.unit))
    axes.set_title(figure.title)


def whiskers(spreads: list[Spread]) -> list[list[float]]:
    """From the medians down to the least and up to the greatest, as errorbar() wants them."""
    return [[each.median - each.least for each in spreads], [each.greatest - each.median for each in spreads]]


def axis(figure: Figure, unit: str) -> str:
    """What is written beside an axis."""
    better = "less is better" if figure.less else "more is better"
    return f"{unit}, {better}" if unit else better


def kind(contender: str) -> str:
    """A contender, whose name is KIND[-THREADS], whatever its number of threads is."""
    return contender.partition("-")[0]


def threads(contender: str) -> int:
    """How many threads or workers a contender has."""
    return int(contender.partition("-")[2] or 1)


def colour(contender: str) -> str:
    """A contender's colour."""
    return COLOURS.get(kind(contender), OTHER)


def look(contender: str) -> dict[str, Any]:
    """A contender's line, as matplotlib wants it."""
    return {
        "color": colour(contender),
        "marker": MARKERS.get(kind(contender), "o"),
        "ls": STYLES.get(threads(contender), ":"),
        "ms": 4,
        "lw": 1.4,
    }


def shade(number: int, count: int) -> float:
    """How opaque the bar of the case `number` is."""
    return 1 - 0.65 * number / max(1, count - 1)


# Legends


def line_legend(result: Result) -> list[Line2D | Patch]:
    """Who is which line."""
    drawn = {name for figure in result.figures for name in names_of(result, value_of(result, figure))}
    return [
        Line2D([], [], label=title, **look(name))
        for name, title in result.contenders.items()
        if name in drawn
    ]


def case_legend(result: Result) -> list[Line2D | Patch]:
    """Which shade is which case; nothing if there is one."""
    cases = cases_of(result)
    if len(cases) < 2:
        return []
    return [
        Patch(color="#222222", alpha=shade(n, len(cases)), lw=0, label=case) for n, case in enumerate(cases)
    ]
