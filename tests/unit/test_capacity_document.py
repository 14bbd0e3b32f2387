"""docs/capacity.md against the program and the published measurements: no figure in it is stale."""

from __future__ import annotations

import re

from bench.capacity import BEGIN, DOCUMENT, END, published
from fastfwd.observe.scoreboard import CELL, FORWARD_ROW
from fastfwd.relay.pipes import SIZE
from fastfwd.worker.main import FILL

TEXT = DOCUMENT.read_text("utf-8")
FORMULAS = TEXT[TEXT.index("## Formulas") : TEXT.index("## Constants")]
TABLE = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in TEXT[TEXT.index(BEGIN) : TEXT.index(END)].splitlines()
    if line.startswith("|")
]


def test_every_constant_of_a_formula_has_a_value() -> None:
    """In the table, by its name."""
    named = set(re.findall(r"\b[MKP]_[a-z]+|\b[MKP]_GB", FORMULAS)) | {"L"}
    assert named - {cells[0] for cells in TABLE} == set()
    assert len(named) > 10


def test_formulas_are_numbered() -> None:
    """One after the other: others refer to them."""
    numbers = [int(each) for each in re.findall(r"^\*\*F(\d+)\.", FORMULAS, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_what_the_bench_has_published() -> None:
    """Stands there as it is published now; `python -m bench.capacity --write` brings it."""
    there = {tuple(cells) for cells in TABLE}
    missing = [each for each in published() if (each.name, each.what, each.value, each.how) not in there]
    assert missing == []


def test_what_the_program_says() -> None:
    """A row, and the pipes of a start."""
    assert [f"{FORWARD_ROW * CELL} B"] == [cells[2] for cells in TABLE if cells[0] == "M_row"]
    assert f"{FILL} pipes are opened at the start" in " ".join(FORMULAS.split())
    assert f"`{SIZE // 4096} × {FILL} × W`" in FORMULAS
