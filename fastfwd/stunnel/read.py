"""stunnel.conf, as stunnel4(8) describes it -> its sections, each with its options in order.

Called by command. It knows the form of the file and no option but `include`; what options mean
is translate's business.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from fastfwd.config.wording import expected
from fastfwd.model import Origin, Problem

DEEPEST: Final = 10
"""Levels of directories that include each other."""

COMMENT: Final = (";", "#")
"""At the beginning of a line only: anywhere else they belong to the value. stunnel4(8) has the first alone,
stunnel takes both."""


@dataclass(frozen=True, slots=True)
class Given:
    """An option as it was written."""

    name: str
    value: str
    origin: Origin

    @property
    def key(self) -> str:
        """What tables call it: upper and lower case do not matter to stunnel."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Section:
    """A service, or what stands before the first one, which has no `name`: options of the whole
    program, and defaults of all services."""

    name: str | None
    origin: Origin
    given: list[Given] = field(default_factory=list)


def read(file: str) -> tuple[list[Section], list[Problem]]:
    """The sections of `file` and of what it includes, the global one first, and the lines that are
    neither option nor section.

    Raises OSError if a file or directory cannot be read.
    """
    sections = [Section(None, Origin(file, 0))]
    problems: list[Problem] = []
    _read(file, sections, problems, 0)
    return sections, problems


def _read(file: str, sections: list[Section], problems: list[Problem], depth: int) -> None:
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        text = lines.read()
    for number, whole in enumerate(text.split("\n"), 1):
        line, origin = whole.strip(), Origin(file, number)
        if not line or line.startswith(COMMENT):
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(line[1:-1].strip(), origin))
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            problems.append(Problem(origin, expected("'option = value' or '[service]'", line)))
        elif name.lower() != "include":
            sections[-1].given.append(Given(name, value, origin))
        elif depth == DEEPEST:
            problems.append(Problem(origin, f"expected at most {DEEPEST} levels of 'include'"))
        else:
            for each in sorted(os.listdir(value)):
                if os.path.isfile(path := os.path.join(value, each)):
                    _read(path, sections, problems, depth + 1)
