"""Cells shared by all processes: one anonymous mapping, made before the first fork.

A row per slot, unsigned 64-bit cells, a single writer per row, no locks: an aligned
8-byte store is atomic on every Linux machine Python runs on. Rows belong to slots,
not to processes, so nothing falls when a worker dies. Workers write, the supervisor
reads; it must never be a place to keep anything else.
"""

from __future__ import annotations

import enum
import mmap
from typing import Final


class Cell(enum.IntEnum):
    """Position of a figure in a slot's row."""

    HEARTBEAT = 0
    """Monotonic time of the loop's last turn, in nanoseconds."""
    SESSIONS = 1
    """Sessions and dials open now."""
    LOG_LINES = 2
    LOG_DROPPED = 3
    """Connection-log lines written, and lost because the log would not take them."""
    ACCEPT_ERRORS = 4
    PIPES_LENT = 5
    PIPES_IDLE = 6
    PIPES_SHORT = 7


CELL: Final = 8
ROW: Final = 128
"""Bytes per row: two cache lines, so that two workers never write to the same one."""


class Scoreboard:
    """`slots` rows of cells, all 0 at first."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._map = mmap.mmap(-1, slots * ROW)
        self._cells = memoryview(self._map).cast("Q")

    def row(self, slot: int) -> memoryview:
        """The slot's row as a writable view of unsigned 64-bit cells, indexed by Cell."""
        start = slot * (ROW // CELL)
        return self._cells[start : start + ROW // CELL]

    def read(self, slot: int, cell: Cell) -> int:
        """The present value of one cell."""
        return int(self._cells[slot * (ROW // CELL) + cell])

    def total(self, cell: Cell) -> int:
        """The sum of a cell over all slots."""
        return sum(self.read(slot, cell) for slot in range(self.slots))
