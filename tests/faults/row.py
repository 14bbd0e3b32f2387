"""One row of the campaign: a fault, a promise, a program, and what came of it.

A test gets its `row` from the fixture, tells it of every try, and gives it the figures that the
table shows. Of fastfwd a promise that does not hold fails the test at its end; of the other
programs it is only written down.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from tests.forwarder import Kind, version

RESULTS: Final = Path(__file__).parent / "results"

FULL: Final = os.environ.get("FASTFWD_FAULTS", "") == "full"
"""Whether this is the campaign itself (`make faults`); otherwise every row is small."""


def scaled(small: int, full: int) -> int:
    """The size of something in a small run, and in the campaign."""
    return full if FULL else small


@dataclass(slots=True)
class Row:
    """`number` and `fault` as in the table, `promise` what must hold, `kind` of which program,
    `test` which test shows it."""

    number: int
    fault: str
    promise: str
    kind: Kind
    test: str
    tries: int = 0
    broken: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    def tried(self, count: int, broken: list[str]) -> None:
        """The promise was put to the test `count` times; `broken` says where it did not hold."""
        self.tries += count
        self.broken += broken

    def held(self, holds: bool, what: str) -> None:
        """One try: whether it held, and `what` that would mean if not."""
        self.tried(1, [] if holds else [what])

    def figure(self, name: str, value: float, unit: str = "") -> None:
        """Something to show, with three digits that count."""
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        self.figures[name] = f"{text} {unit}".strip()

    def write(self) -> None:
        """Into the results, if this is the campaign."""
        if not FULL:
            return
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.number:02d}-{self.kind}.json").write_bytes(
            orjson.dumps(
                {
                    "number": self.number,
                    "fault": self.fault,
                    "promise": self.promise,
                    "program": self.kind,
                    "version": version(self.kind),
                    "test": self.test,
                    "tries": self.tries,
                    "broken": len(self.broken),
                    "examples": self.broken[:3],
                    "figures": self.figures,
                    "kernel": platform.release(),
                },
                option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
            )
        )

    def judge(self) -> None:
        """At the end of the test."""
        self.write()
        assert self.tries, "nothing was tried"
        if self.kind == "fastfwd":
            some = "\n".join(self.broken[:10])
            assert not self.broken, f"{len(self.broken)} of {self.tries} did not hold:\n{some}"
