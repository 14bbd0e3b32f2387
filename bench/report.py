"""Results as tables: plain ones for a terminal, Markdown for people and for the documents.

The command calls it. The same results give the same text, whenever and wherever; it
measures nothing and reads nothing but results. Documents have blocks between
`<!-- bench:NAME -->` and `<!-- bench:end -->`, which belong to this module; NAME is one of
BLOCKS or a scenario.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import plots
from bench.contenders import CONTENDERS
from bench.processes import ROOT
from bench.results import DIRECTORY, Figure, Reference, Result, Spread, load_all
from bench.scenarios import SCENARIOS
from bench.targets import WORKERS, Target, judge

DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "dnat.md")
"""The documents with blocks."""

REPORT = "README.md"
"""The whole report of a run, in the directory of its results."""

NOTHING = "–"
WIDTH = 100
"""Characters of a line of prose."""

REASON = 160
"""Characters of a reason: it may be all that a program said when it failed."""

REFERENCES: dict[str | None, str] = {
    "rinetd": "C rinetd",
    "haproxy": "HAProxy",
    "haproxy+splice": "HAProxy, always splicing",
    "nginx": "nginx stream",
    "stunnel": "stunnel",
    "hitch": "hitch",
}
"""What targets call those that they are beside."""

UNMEASURED = "*Not measured yet; `make bench` does it.*"
BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)

Results = Mapping[str, Result]
"""By scenario."""


@dataclass(frozen=True, slots=True)
class Table:
    """Text in cells; the first column names the rows."""

    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub reads it."""
        rule = ["---", *("---:" for _ in self.head[1:])]
        return "".join(f"| {' | '.join(row)} |\n" for row in (self.head, rule, *self.rows))

    def plain(self) -> str:
        """In columns, for a terminal."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "".join(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True)),
                ]
            )
            + "\n"
            for line in lines
        )


# Figures as text


def shown(spread: Spread | None, form: Callable[[float], str]) -> str:
    """A median with its extremes, if they are not the same thing."""
    if spread is None:
        return NOTHING
    if spread.least == spread.greatest:
        return form(spread.median)
    return f"{form(spread.median)} [{form(spread.least)}–{form(spread.greatest)}]"


def ratio(number: float) -> str:
    """A ratio with two or three digits that mean something."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def named(figure: Figure) -> str:
    """A figure's title with its unit, and which direction is the good one."""
    unit = f"{figure.unit}, " if figure.unit else ""
    return f"{figure.title} ({unit}{'less' if figure.less else 'more'} is better)"


# Tables


def tables(result: Result) -> list[Table]:
    """One per figure: what was measured, and below it what it is beside the others."""
    labels = [case.label for case in result.cases]
    found = []
    for figure in result.figures:
        rows = [
            [title, *(shown(result.value(label, name, figure.name), figure.formatted) for label in labels)]
            for name, title in result.contenders.items()
        ]
        for contender, to in result.comparisons():
            ratios = (result.ratio(label, contender, figure.name, to) for label in labels)
            rows.append([compared(result, contender, to), *(shown(each, ratio) for each in ratios)])
        rows = [row for row in rows if any(cell != NOTHING for cell in row[1:])]
        if rows:
            found.append(Table([named(figure), *labels], rows))
    return found


def ratios(result: Result) -> Table | None:
    """All ratios in one table, with ↓ where less is better; None if nobody is compared."""
    comparisons = result.comparisons()
    rows = []
    for figure in result.figures:
        for case in result.cases:
            found = [result.ratio(case.label, contender, figure.name, to) for contender, to in comparisons]
            if any(found):
                title = f"{figure.title} ↓" if figure.less else figure.title
                label = f", {case.label}" if len(result.cases) > 1 else ""
                rows.append([title + label, *(shown(each, ratio) for each in found)])
    head = ["", *(compared(result, contender, to) for contender, to in comparisons)]
    return Table(head, rows) if rows else None


def compared(result: Result, contender: str, to: Reference) -> str:
    """Whose ratios, and to what."""
    other = result.contenders[to.contender] if to.case is None else f"itself, {to.case}"
    return f"{result.contenders[contender]} ÷ {other}"


def targets(results: Results) -> Table:
    """Every target, and what was measured."""
    rows: dict[Target, list[str]] = {}
    for verdict in judge(results):
        ratios = [shown(each, ratio) for each in verdict.ratios if each is not None]
        word = {True: ", holds", False: ", **missed**", None: ""}[verdict.holds]
        row = rows.setdefault(verdict.target, [*described(verdict.target)])
        row.append((" and ".join(ratios) or NOTHING) + word)
    return Table(["", "target", *(CONTENDERS[f"fastfwd-{n}"].title for n in WORKERS)], list(rows.values()))


def described(target: Target) -> tuple[str, str]:
    """What a target is about, and the target itself."""
    titles = {figure.name: figure.title for figure in SCENARIOS[target.scenario].figures}
    about = " and ".join(titles[bound.figure] for bound in target.bounds)
    other = REFERENCES.get(target.reference, f"itself, {target.without}")
    limits = " and ".join(f"{'≤' if bound.most else '≥'} {bound.limit:g}" for bound in target.bounds)
    text = f"{limits} × {other}" if target.goal else f"beside {other}: not judged"
    return f"{target.scenario}, {target.case}: {about}", f"{text} (stretch)" if target.stretch else text


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table at the top of README.md."""

    scenario: str
    figure: str
    case: str
    title: str


SUMMARY = (
    Line("bulk", "rate", "1 flow", "bulk, one flow: throughput"),
    Line("bulk", "cpu", "1 flow", "bulk, one flow: CPU per byte ↓"),
    Line("requests", "rate", "64 connections", "64 busy connections: requests/s"),
    Line("requests", "cpu", "64 connections", "64 busy connections: CPU per request ↓"),
    Line("connections", "rate", "64 at a time", "connections/s"),
    Line("connections", "cpu", "64 at a time", "CPU per connection ↓"),
    Line("idle", "requests_rate", "8,000 idle", "requests/s beside 8,000 idle connections"),
    Line("idle", "connections_rate", "8,000 idle", "connections/s beside 8,000 idle connections"),
    Line("mixed", "p99", "2 flows", "99th percentile of requests beside bulk ↓"),
    Line("datagrams", "rate", "2,000 flows", "UDP round trips/s, 2,000 flows"),
    Line("datagrams", "cpu", "64 flows", "CPU per UDP round trip, 64 flows ↓"),
    Line("memory", "connection", "4,000 idle", "memory per idle connection ↓"),
    Line("startup", "listening", "10 forwards", "time from exec to listening ↓"),
)
"""Good and bad alike: what an operator asks first."""

SUMMARISED = ("haproxy-1", "haproxy-2", "haproxy+splice-1", "haproxy+splice-2", "fastfwd-1", "fastfwd-2")


def summary(results: Results) -> Table | None:
    """Ratios to C rinetd; None if nothing was measured."""
    rows = []
    for line in SUMMARY:
        result = results.get(line.scenario)
        if result is None:
            continue
        found = [result.ratio(line.case, name, line.figure, Reference("rinetd")) for name in SUMMARISED]
        if any(found):
            rows.append([line.title, *(ratio(each.median) if each else NOTHING for each in found)])
    head = ["ratio to C rinetd", *(CONTENDERS[name].title for name in SUMMARISED)]
    return Table(head, rows) if rows else None


# Blocks


def machine_block(results: Results) -> str:
    """Where, when and what."""
    if not results:
        return f"{UNMEASURED}\n"
    facts: dict[str, dict[str, None]] = {}
    for result in results.values():
        for name, fact in (*result.machine.items(), ("measured", result.date), ("rounds", length(result))):
            facts.setdefault(name, {})[fact] = None
        for contender, version in result.versions.items():
            if contender != "direct":  # nothing runs there
                facts.setdefault(result.contenders[contender].partition(",")[0], {})[version] = None
    return Table(["", "value"], [[name, "; ".join(each)] for name, each in facts.items()]).markdown()


def targets_block(results: Results) -> str:
    """The targets, measured or not."""
    return targets(results).markdown()


def summary_block(results: Results) -> str:
    """The table at the top of README.md, and what its figures are."""
    table = summary(results)
    if table is None:
        return f"{UNMEASURED}\n"
    rounds = sorted({result.rounds for result in results.values()})
    several = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
    some = next(iter(results.values()))
    versions = "".join(
        f"{title} {some.versions[name]}, "
        for name, title in (("rinetd", "C rinetd"), ("haproxy-1", "HAProxy"))
        if name in some.versions
    )
    return (
        f"{table.markdown()}\n"
        f"More is better, except where ↓ says that less is. Medians of {several} ratios, each within one\n"
        f"round; {versions}over loopback, logging off, with clients and backend on the same"
        f" {some.machine['processors']} processors.\n"
    )


KERNEL = (
    Line("bulk", "rate", "1 flow", "long streams, one flow: Gbit/s"),
    Line("bulk", "rate", "8 flows", "long streams, eight flows: Gbit/s"),
    Line("requests", "rate", "1 connection", "one busy connection: requests/s"),
    Line("requests", "rate", "64 connections", "64 busy connections: requests/s"),
    Line("requests", "p99", "64 connections", "64 busy connections: 99th percentile of a request ↓, ms"),
    Line("connections", "rate", "64 at a time", "connections/s"),
    Line("connections", "p99", "64 at a time", "99th percentile of a connection ↓, ms"),
    Line("datagrams", "rate", "64 flows", "UDP round trips/s, 64 flows"),
    Line("datagrams", "rate", "2,000 flows", "UDP round trips/s, 2,000 flows"),
)
"""What is told of the kernel's own forwarding."""


def dnat_block(results: Results) -> str:
    """The kernel's own forwarding beside fastfwd, in absolute figures and as ratios."""
    rows = []
    for line in KERNEL:
        result = results.get(line.scenario)
        if result is None:
            continue
        figure = next(each for each in result.figures if each.name == line.figure)
        found = [result.value(line.case, name, line.figure) for name in ("dnat", "fastfwd-1", "fastfwd-2")]
        beside = result.ratio(line.case, "fastfwd-1", line.figure, Reference("dnat"))
        if all(found):
            rows.append(
                [line.title, *(shown(each, figure.formatted) for each in found), shown(beside, ratio)]
            )
    head = ["", *(CONTENDERS[name].title for name in ("dnat", "fastfwd-1", "fastfwd-2")), "1 worker ÷ DNAT"]
    return Table(head, rows).markdown() if rows else f"{UNMEASURED}\n"


BLOCKS: dict[str, Callable[[Results], str]] = {
    "dnat": dnat_block,
    "machine": machine_block,
    "targets": targets_block,
    "summary": summary_block,
}


def scenario_block(result: Result, images: str) -> str:
    """A scenario in a document: how it is measured, the picture, and the ratios; all figures if it
    is about one contender."""
    table = ratios(result) if len(result.contenders) > 1 else None
    text = "\n".join(each.markdown() for each in ([table] if table else tables(result)))
    return f"{told(result)}\n![{result.title}]({images}{result.scenario}.svg)\n\n{text}"


def told(result: Result) -> str:
    """How it was measured, and who is missing."""
    words = f"{result.about} {length(result).capitalize()}."
    for what, absent in (("Left out", result.omitted), ("Failed", result.failed)):
        if absent:
            reasons = (f"{name}: {' '.join(why.split())[:REASON]}" for name, why in absent.items())
            words += f" {what}: {'; '.join(reasons)}."
    return f"{textwrap.fill(words, WIDTH, break_on_hyphens=False)}\n"


def length(result: Result) -> str:
    """How long a run was."""
    rounds = "one round" if result.rounds == 1 else f"{result.rounds} rounds"
    return f"{rounds} of {result.seconds:g} s"


def block(name: str, results: Results, images: str) -> str:
    """What belongs into the block `name`; `images` comes before the names of pictures."""
    if name in BLOCKS:
        return BLOCKS[name](results)
    if name in results:
        return scenario_block(results[name], images)
    if name in SCENARIOS:
        return f"{UNMEASURED}\n"
    raise ValueError(f"there is no block {name!r}")


def fill(text: str, results: Results, images: str) -> str:
    """`text` with what belongs into its blocks."""
    return BLOCK.sub(lambda found: found[1] + block(found[2], results, images) + found[3], text)


# Documents


def plain(result: Result) -> str:
    """A scenario for a terminal."""
    return f"\n{result.title}\n{told(result)}\n" + "\n".join(table.plain() for table in tables(result))


def whole(results: Results) -> str:
    """The report of a run: every figure of every scenario."""
    parts = [
        "# What `python -m bench` measured\n",
        "Generated from the JSON files here. Medians, with the least and the greatest of the rounds in"
        " brackets;\na ratio is the median of the ratios within each round.\n",
        machine_block(results),
        f"## Targets\n\n{targets_block(results)}",
    ]
    for name, result in results.items():
        parts.append(f"## {result.title} (`{name}`)\n\n{told(result)}\n![{result.title}]({name}.svg)\n")
        parts += [table.markdown() for table in tables(result)]
    return "\n".join(parts)


def write(directory: Path) -> list[Path]:
    """Report and pictures of the results in `directory`; for the published ones, the blocks of
    the documents too. Returns what was written."""
    results = load_all(directory, SCENARIOS)
    written = [plots.draw(result, directory) for result in results.values()]
    if results:
        report = directory / REPORT
        report.write_text(whole(results))
        written.append(report)
    if directory.resolve() == DIRECTORY.resolve():
        for path in DOCUMENTS:
            path.write_text(filled(path, results))
        written += DOCUMENTS
    return written


def filled(path: Path, results: Results) -> str:
    """What the document `path` should be."""
    return fill(path.read_text(), results, images_of(path))


def images_of(path: Path) -> str:
    """How a document refers to the pictures."""
    depth = len(path.parent.relative_to(ROOT).parts)
    return f"{'../' * depth}{DIRECTORY.relative_to(ROOT)}/"
