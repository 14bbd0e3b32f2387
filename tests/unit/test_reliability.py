"""docs/reliability.md shows the results that are there, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.report import DOCUMENT, filled, results

FAULTS = Path(__file__).parents[1] / "faults"


def test_the_table_is_that_of_the_results() -> None:
    """Nobody has typed a figure, and nobody has forgotten to write the table again."""
    text = DOCUMENT.read_text()
    assert filled(text) == text


@pytest.mark.parametrize("number", results())
def test_a_row_names_a_test_with_its_number(number: int) -> None:
    """Whoever doubts a row can run it."""
    ours = results()[number]["fastfwd"]
    file, _, name = ours["test"].partition("::")
    text = (FAULTS / Path(file).name).read_text()
    assert re.search(rf"row\(\s*{'NUMBER' if number == 40 else number},.*?def {name}\(", text, re.DOTALL)
