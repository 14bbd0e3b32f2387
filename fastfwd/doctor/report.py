"""The text of `fastfwd --doctor`. Pure; doctor/command hands it the facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Final

from fastfwd.config.wording import counted
from fastfwd.doctor.bursts import bursts
from fastfwd.doctor.capacity import OWN, Facts, Limit, first, limits, of_forwards
from fastfwd.doctor.findings import Finding, findings
from fastfwd.doctor.remedy import Remedy, merged, remedy
from fastfwd.observe.terminal import Column, table

WIDTH: Final = 80

SHOWN: Final = 10
"""Forwards in the table of those that run out of something first."""

SYSCTL_FILE: Final = "/etc/sysctl.d/90-fastfwd.conf"
DROP_IN: Final = "/etc/systemd/system/fastfwd.service.d/limits.conf"


def text(facts: Facts, wanted: int | None = None) -> str:
    """What the machine holds, by which limits, and how these are moved: to `wanted` sessions, else to
    twice as many as now."""
    found = limits(facts)
    said = findings(facts)
    blocks = [
        [*_verdict(facts, found, wanted), *_whose(facts)],
        [line for each in said for line in wrap(f"! {each.text}", WIDTH, subsequent_indent="  ")],
        _limits(found),
        _forwards(facts),
        _bursts(facts),
        *_moving(facts, found, said, wanted),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def holds(facts: Facts, wanted: int) -> bool:
    """Whether no limit that is known keeps the machine from so many sessions."""
    head = first(limits(facts))
    return head is None or head.sessions is None or head.sessions >= wanted


def _verdict(facts: Facts, found: Sequence[Limit], wanted: int | None) -> list[str]:
    with_what = (
        "one forward to one backend" if facts.demand.stands_in else facts.demand.file
    ) + f" ({counted(facts.workers, 'worker')})"
    if (head := first(found)) is None or head.sessions is None:
        return wrap(f"No limit of this machine for sessions with {with_what} is known.", WIDTH)
    which = "the configuration's own " if head.key in OWN else ""
    sentence = (
        f"This machine holds about {head.sessions:,} sessions with {with_what}; "
        f"the first limit is {which}{head.name}."
    )
    if wanted is not None:
        enough = "enough" if head.sessions >= wanted else "too few"
        sentence += f" That is {enough} for {wanted:,}."
    return wrap(sentence, WIDTH, break_on_hyphens=False)


def _whose(facts: Facts) -> list[str]:
    pid = facts.machine.pid
    if facts.program is not None:
        sentence = (
            f"The limits are those of process {pid}, a worker of {facts.program.pid}, which runs with it"
        )
        sentence += f" and has about {facts.now:,} sessions." if facts.program.sockets is not None else "."
    else:
        sentence = (
            "Nothing runs with it: the limits are those of this shell. Under systemd those of the unit count "
            "(LimitNOFILE=)."
        )
    return wrap(sentence, WIDTH)


def _limits(found: Iterable[Limit]) -> list[str]:
    columns = (Column("LIMIT", words=True), Column("NOW"), Column("SESSIONS"))
    rows = [(each.name, each.value, "-" if each.sessions is None else f"{each.sessions:,}") for each in found]
    return _with_sources(table(columns, rows), [each.source for each in found])


def _with_sources(lines: list[str], sources: Sequence[str]) -> list[str]:
    """A last column, which has a line of its own where there is no room for it."""
    size = max(map(len, lines))
    found = []
    for line, source in zip(lines, ("READ FROM", *sources), strict=True):
        whole = f"{line.ljust(size)}  {source}"
        found += [whole] if len(whole) <= WIDTH else [line, f"    {source}"]
    return found


def _forwards(facts: Facts) -> list[str]:
    if len(facts.demand.ways) < 2:
        return []
    found = of_forwards(facts)
    columns = (
        Column("A FORWARD ALONE", words=True),
        Column("SESSIONS"),
        Column("BY ITS", words=True),
    )
    rows = [(way.label, f"{sessions:,}", by) for way, sessions, by in found[:SHOWN]]
    if len(found) > SHOWN:
        rows.append((f"and {len(found) - SHOWN} more", "", ""))
    return table(columns, rows, WIDTH) if rows else []


def _bursts(facts: Facts) -> list[str]:
    found = bursts(facts)
    rows = [(each.name, each.value) for each in found]
    columns = (Column("AT ONCE, AND A SECOND", words=True), Column("ROOM FOR"))
    return _with_sources(table(columns, rows), [each.source for each in found]) if found else []


def _moving(
    facts: Facts, found: Sequence[Limit], said: Sequence[Finding], wanted: int | None
) -> list[list[str]]:
    """The lines, in blocks: what for, the sysctls, the drop-in, and what no line can do."""
    head = first(found)
    target = wanted
    if target is None and head is not None and head.sessions is not None and head.key not in OWN:
        target = 2 * max(1, head.sessions)
    low = [each for each in found if target and each.sessions is not None and each.sessions < target]
    moved = [remedy(facts, each, target or 0) for each in low]
    everything = merged([*moved, *(each.remedy for each in said)])
    if everything == Remedy():
        return []
    names = ", ".join(each.name for each in low)
    what = f"For {target:,} sessions ({names})" if low else "What is marked with ! above"
    if low and any(each.remedy != Remedy() for each in said):
        what += ", and what is marked with ! above"
    blocks = [wrap(f"{what}:", WIDTH)]
    if everything.sysctls:
        lines = [f"{name} = {value}" for name, value in sorted(everything.sysctls.items())]
        blocks.append([f"# {SYSCTL_FILE}, then: sysctl --system", *lines])
    if everything.service:
        head_lines = [
            f"# {DROP_IN}",
            "# then: systemctl daemon-reload; systemctl restart fastfwd",
            "[Service]",
        ]
        lines = [f"{name}={value}" for name, value in sorted(everything.service.items())]
        blocks.append([*head_lines, *lines])
    blocks += [wrap(f"* {word}", WIDTH, subsequent_indent="  ") for word in everything.words]
    return blocks
