"""The shared cells: rows of their own, seen by every process."""

from __future__ import annotations

import os

from fastfwd.observe.scoreboard import SLOT_ROW, Cell, Scoreboard


def test_cells_begin_at_zero() -> None:
    """Nothing has been counted before the first worker."""
    board = Scoreboard(3, 4)
    assert all(board.read(slot, cell) == 0 for slot in range(3) for cell in Cell)


def test_every_cell_is_its_own() -> None:
    """No two cells of any two slots share memory."""
    board = Scoreboard(4, 4)
    expected = {}
    for slot in range(4):
        row = board.row(slot)
        for cell in Cell:
            row[cell] = expected[slot, cell] = 1000 * slot + cell + 1
    assert {key: board.read(*key) for key in expected} == expected


def test_rows_do_not_reach_into_each_other() -> None:
    """A row is exactly as long as its cache lines, and ends where the next begins."""
    board = Scoreboard(2, 4)
    for slot in range(2):
        assert len(board.row(slot)) == SLOT_ROW
        for index in range(SLOT_ROW):
            board.row(slot)[index] = slot + 1
    assert list(board.row(0)) == [1] * (SLOT_ROW)


def test_a_cell_holds_64_bits() -> None:
    """A counter of bytes or nanoseconds does not wrap."""
    board = Scoreboard(1, 4)
    board.row(0)[Cell.HEARTBEAT] = 2**64 - 1
    assert board.read(0, Cell.HEARTBEAT) == 2**64 - 1


def test_the_total_is_over_all_slots() -> None:
    """`total` sums one cell."""
    board = Scoreboard(3, 4)
    for slot in range(3):
        board.row(slot)[Cell.SESSIONS] = 10**slot
        board.row(slot)[Cell.LOG_LINES] = 7
    assert board.total(Cell.SESSIONS) == 111


def test_a_child_s_figures_are_seen_by_the_parent() -> None:
    """What a forked process writes the other reads, and it stays after the writer's death."""
    board = Scoreboard(2, 4)
    pid = os.fork()
    if pid == 0:
        board.row(1)[Cell.SESSIONS] = 42
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert board.read(1, Cell.SESSIONS) == 42


def test_the_parent_s_figures_are_seen_by_a_child() -> None:
    """A successor in a slot finds its predecessor's counters."""
    board = Scoreboard(1, 4)
    board.row(0)[Cell.LOG_LINES] = 41
    pid = os.fork()
    if pid == 0:
        board.row(0)[Cell.LOG_LINES] += 1
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert board.read(0, Cell.LOG_LINES) == 42
