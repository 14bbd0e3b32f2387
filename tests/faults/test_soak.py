"""Row 40: the soak, for some seconds; in the campaign for as long as `make soak` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import deadline
from tests.faults.row import Row, scaled
from tests.faults.soak import FAULT, MINUTES, NUMBER, PROMISE, Soak, say

SEED = 1

SECONDS = scaled(13, int(MINUTES * 60))


@pytest.mark.row(NUMBER, FAULT, PROMISE)
@pytest.mark.campaign
@pytest.mark.timeout(deadline.seconds(SECONDS + 180))
def test_the_soak(row: Row, tmp_path: Path) -> None:
    """Every kind of client, and about every fault once."""
    Soak(SECONDS, SEED, tmp_path, row, say).run()
