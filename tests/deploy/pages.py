"""The fenced blocks of a page, for the tests that try what it says.

A block has a name if the line before it is one code span and a colon: that is the file which it is, as in

    `fastfwd.conf`:

    ```text
    0.0.0.0 80 10.1.1.2 8080
    ```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")
NAME = re.compile(r"`([^`]+)`.*:")
HEADING = re.compile(r"(?m)^#+ (.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """One of them: the heading that it is below, its name if it has one, its language, its lines."""

    heading: str
    name: str
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """All of a page, in their order."""
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        outside = FENCE.sub("", before)  # a comment of a shell looks like a heading
        last = before.rstrip("\n").rpartition("\n")[2]
        name = NAME.fullmatch(last)
        headings = HEADING.findall(outside)
        yield Block(headings[-1] if headings else "", name[1] if name else "", match[1], match[2])


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed after a `$ `, with the lines that go on after a `> `, and what is answered."""

    typed: str
    shown: str


def commands(text: str) -> Iterator[Command]:
    """Those of all blocks in the language `console`."""
    for block in blocks(text):
        if block.language != "console":
            continue
        lines = block.text.splitlines()
        while lines:
            first = lines.pop(0)
            assert first.startswith("$ "), first
            typed, shown = [first[2:]], []
            while lines and lines[0][:2] in ("> ", ">"):
                typed.append(lines.pop(0)[2:])
            while lines and not lines[0].startswith("$ "):
                shown.append(lines.pop(0))
            yield Command("\n".join(typed), "".join(f"{line}\n" for line in shown))


def as_shown(shown: str) -> re.Pattern[str]:
    """What a page shows, in which `...` is anything in a line, or any lines if it is one itself."""
    parts = []
    for line in shown.splitlines(True):
        words = r"[^\n]*".join(re.escape(each) for each in line.split("..."))
        parts.append(r"(?:[^\n]*\n)*" if line == "...\n" else words)
    return re.compile("".join(parts))
