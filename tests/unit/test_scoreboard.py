"""The shared cells: rows of their own, seen by every process."""

from __future__ import annotations

import ctypes
import enum
import faulthandler
import itertools
import math
import mmap
import os
import re
import resource
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.observe.scoreboard import (
    CELL,
    CLOSED,
    CONNECT_TIME,
    DURATION,
    FORWARD_ROW,
    LAG,
    SLOT_ROW,
    SUPERVISOR_ROW,
    WATCH_ROW,
    Cell,
    ForwardCell,
    Histogram,
    Scoreboard,
    SupervisorCell,
    WatchCell,
    active,
)
from tests.deadline import until
from tests.unit.accepting import accepting


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


# Where the cells lie.


def writers(board: Scoreboard) -> dict[str, list[memoryview]]:
    """Every cell there is, by the process that writes it while all workers live."""
    found: dict[str, list[memoryview]] = {"supervisor": [board.supervisor]}
    for slot in range(board.slots):
        found["supervisor"].append(board.watch(slot))
        mine = found[f"worker {slot}"] = [board.row(slot)]
        for number in range(board.forwards):
            row = board.forward(number, slot)
            mine.append(row[: ForwardCell.QUEUE_LENGTH])
            found["supervisor"].append(row[ForwardCell.QUEUE_LENGTH :])
    return found


def addresses(cells: memoryview) -> range:
    """Where `cells` lie in memory."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(cells))
    return range(start, start + cells.nbytes, CELL)


def test_no_two_cells_share_memory() -> None:
    """All rows of all kinds lie beside each other."""
    board = Scoreboard(3, 5)
    places = [place for rows in writers(board).values() for row in rows for place in addresses(row)]
    assert len(places) == len(set(places))


def test_no_two_processes_write_the_same_cache_line() -> None:
    """A worker that counts takes nobody else's cache line away."""
    board = Scoreboard(3, 5)
    lines: dict[int, set[str]] = {}
    for writer, rows in writers(board).items():
        for row in rows:
            for place in addresses(row):
                lines.setdefault(place // 64, set()).add(writer)
    assert {line: found for line, found in lines.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("cells", "row"),
    [
        (SupervisorCell, SUPERVISOR_ROW),
        (Cell, SLOT_ROW),
        (WatchCell, WATCH_ROW),
        (ForwardCell, FORWARD_ROW),
    ],
    ids=["supervisor", "slot", "watch", "forward"],
)
def test_cells_fit_their_row(cells: type[enum.IntEnum], row: int) -> None:
    """Every cell of an enum lies in the row that it indexes, and no two are one."""
    assert all(0 <= cell < row for cell in cells)
    assert len({int(cell) for cell in cells.__members__.values()}) == len(cells.__members__)


@pytest.mark.parametrize(
    ("histogram", "cells", "end"),
    [
        (LAG, Cell, SLOT_ROW),
        (DURATION, ForwardCell, ForwardCell.QUEUE_LENGTH),
        (CONNECT_TIME, ForwardCell, ForwardCell.QUEUE_LENGTH),
    ],
    ids=["lag", "duration", "connect time"],
)
def test_a_histogram_has_its_cells_for_itself(
    histogram: Histogram, cells: type[enum.IntEnum], end: int
) -> None:
    """Its buckets and its sum are no other cell's, and lie in the part its worker writes."""
    own = range(histogram.first, histogram.sum + 1)
    assert [cell for cell in cells if cell in own] == [histogram.first]
    assert own.stop <= end


def test_the_histograms_of_a_forward_lie_beside_each_other() -> None:
    """Durations and dials are counted apart."""
    assert not set(range(DURATION.first, DURATION.sum + 1)) & set(
        range(CONNECT_TIME.first, CONNECT_TIME.sum + 1)
    )


def test_a_forwards_row_is_small() -> None:
    """Beyond its histograms a forward takes at most 1 KiB per slot."""
    histograms = sum(histogram.sum + 1 - histogram.first for histogram in (DURATION, CONNECT_TIME))
    assert (FORWARD_ROW - histograms) * CELL <= 1024


def resident(board: Scoreboard) -> int:
    """Bytes of the scoreboard that this process has in memory (proc(5), smaps)."""
    place = addresses(board.supervisor).start
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= place < int(bounds[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


def test_rows_to_spare_are_no_memory() -> None:
    """With room for 4096 forwards more, only the pages of what is used exist."""
    board = Scoreboard(4, 4096 + 1)
    used = [board.supervisor]
    for slot in range(4):
        used += [board.row(slot), board.watch(slot), board.forward(0, slot)]
    for row in used:
        row[0] += 1
    pages = {place // mmap.PAGESIZE for row in used for place in addresses(row)}
    assert resident(board) <= len(pages) * mmap.PAGESIZE


def test_the_rows_of_a_slot_are_indexed_from_its_first_cell() -> None:
    """`read` and `total` find what `row` wrote, whatever else lies in between."""
    board = Scoreboard(3, 2)
    for slot in range(3):
        board.row(slot)[Cell.SPLICED] = slot + 1
        board.forward(1, slot)[:] = memoryview(b"\xff" * FORWARD_ROW * CELL).cast("Q")
        board.watch(slot)[:] = memoryview(b"\xff" * WATCH_ROW * CELL).cast("Q")
    assert [board.read(slot, Cell.SPLICED) for slot in range(3)] == [1, 2, 3]
    assert board.total(Cell.SPLICED) == 6


# Histograms.

HISTOGRAMS = pytest.mark.parametrize(
    "histogram", [LAG, DURATION, CONNECT_TIME], ids=["lag", "duration", "connect time"]
)


def empty_row() -> memoryview:
    """As long as the longest row there is."""
    return memoryview(bytearray(FORWARD_ROW * CELL)).cast("Q")


@HISTOGRAMS
def test_the_bounds_of_a_histogram_rise(histogram: Histogram) -> None:
    """Otherwise bisection would find anything."""
    assert list(histogram.bounds) == sorted(set(histogram.bounds))


@HISTOGRAMS
def test_a_bucket_has_its_upper_bound_in_it(histogram: Histogram) -> None:
    """`le` means less or equal: the bound itself counts, and the next number above does not."""
    for place, bound in enumerate(histogram.bounds, histogram.first):
        row = empty_row()
        histogram.observe(row, bound)
        assert row[place] == 1
        histogram.observe(row, math.nextafter(bound, math.inf))
        assert (row[place], row[place + 1]) == (1, 1)


@HISTOGRAMS
def test_what_is_above_every_bound_counts_too(histogram: Histogram) -> None:
    """The last bucket has no bound, and is not the sum."""
    row = empty_row()
    histogram.observe(row, histogram.bounds[-1] * 1000)
    assert row[histogram.first + len(histogram.bounds)] == 1
    assert row[histogram.sum] == int(histogram.bounds[-1] * 1000 * 1e6)


@HISTOGRAMS
@settings(derandomize=True, deadline=None, max_examples=100)
@given(values=st.lists(st.floats(0, 1e6), max_size=30))
def test_a_histogram_counts_like_a_list(histogram: Histogram, values: list[float]) -> None:
    """Up to every bound it has counted as many as there were; its sum is theirs, to a microsecond each."""
    row = empty_row()
    for value in values:
        histogram.observe(row, value)
    counted = list(itertools.accumulate(row[histogram.first : histogram.sum]))
    wanted = [sum(value <= bound for value in values) for bound in histogram.bounds]
    assert counted == [*wanted, len(values)]
    assert abs(row[histogram.sum] / 1e6 - sum(values)) <= len(values) * 1.1e-6
    assert sum(row[: histogram.first]) == sum(row[histogram.sum + 1 :]) == 0


# Protection.


def in_a_child(action: Callable[[], int]) -> int:
    """Run `action` in a process of its own. Its answer, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os._exit(action())
        finally:
            os._exit(111)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_store_into_a_protected_scoreboard_ends_the_process() -> None:
    """What only reads cannot write, not even by mistake."""
    board = Scoreboard(2, 4)

    def store() -> int:
        board.protect()
        board.forward(3, 1)[ForwardCell.SENT] = 1
        return 0

    assert in_a_child(store) == -signal.SIGSEGV
    assert board.forward(3, 1)[ForwardCell.SENT] == 0


def test_every_page_is_protected() -> None:
    """The first cell is out of reach as the last one is."""
    board = Scoreboard(2, 100)

    def store() -> int:
        board.protect()
        board.supervisor[0] = 1
        return 0

    assert in_a_child(store) == -signal.SIGSEGV


def test_a_protected_scoreboard_goes_on_showing_what_others_write() -> None:
    """Reading stays possible, and stores of another process are seen after the protection too."""
    board = Scoreboard(1, 1)
    board.row(0)[Cell.SESSIONS] = 41
    protected, written = os.pipe(), os.pipe()

    def look() -> int:
        board.protect()
        os.write(protected[1], b"x")
        os.read(written[0], 1)
        return board.read(0, Cell.SESSIONS)

    pid = os.fork()
    if pid == 0:
        try:
            os._exit(look())
        finally:
            os._exit(111)
    os.read(protected[0], 1)
    board.row(0)[Cell.SESSIONS] += 1
    os.write(written[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    for end in (*protected, *written):
        os.close(end)


def test_protection_is_the_own_processs_only() -> None:
    """The supervisor goes on writing after the exporter has protected its copy."""
    board = Scoreboard(1, 1)

    def protect() -> int:
        board.protect()
        return 0

    assert in_a_child(protect) == 0
    board.supervisor[SupervisorCell.RELOADS] += 1
    assert board.supervisor[SupervisorCell.RELOADS] == 1


# Connections that live, and the end of their worker.


def test_active_is_over_all_slots() -> None:
    """A forward's connections are those of all workers."""
    board = Scoreboard(3, 2)
    for slot in range(3):
        row = board.forward(1, slot)
        row[ForwardCell.ACCEPTED] = 10
        row[ForwardCell.CLOSED_LOCAL] = 1
        row[ForwardCell.CLOSED_DIED] = slot
    assert (board.active(1), board.active(0)) == (24, 0)


def test_active_counts_every_outcome() -> None:
    """Each of the ways to end is an end."""
    board = Scoreboard(1, 1)
    row = board.forward(0, 0)
    row[ForwardCell.ACCEPTED] = 100
    for cell in ForwardCell:
        if cell.name.startswith("CLOSED_"):
            row[cell] = 1
    assert active(row) == 87


def test_active_is_never_negative() -> None:
    """Whatever another process writes meanwhile, no connection ends before it was let in."""
    board = Scoreboard(2, 3)
    with accepting(board, 1, 1):
        before = board.forward(1, 1)[ForwardCell.ACCEPTED]
        lowest = min(board.active(1) for _ in range(20_000))
        until(lambda: board.forward(1, 1)[ForwardCell.ACCEPTED] > before, what="the other process")
    assert lowest >= 0


class Moving:
    """A row in which a connection begins and ends after every look at it."""

    def __init__(self) -> None:
        self.cells = [0] * FORWARD_ROW

    def __getitem__(self, where: int | slice) -> int | list[int]:
        seen = self.cells[where]
        self.cells[ForwardCell.ACCEPTED] += 1
        self.cells[ForwardCell.CLOSED_LOCAL] += 1
        return seen


def test_active_looks_at_the_ends_first() -> None:
    """What begins and ends between its looks does no harm."""
    assert active(cast(memoryview, Moving())) >= 0


def test_a_row_read_in_order_shows_the_ends_first() -> None:
    """As for whoever copies the whole row."""
    assert CLOSED.stop <= ForwardCell.ACCEPTED
    assert [cell for cell in ForwardCell if cell.name.startswith("CLOSED_")] == list(CLOSED)


ROW = st.tuples(st.lists(st.integers(0, 1000), min_size=6, max_size=6), st.integers(0, 1000))
"""Ends by outcome, and how many connections live."""


@settings(derandomize=True, deadline=None, max_examples=50)
@given(rows=st.lists(ROW, min_size=6, max_size=6), gone=st.sets(st.integers(0, 2)))
def test_settling_ends_the_slots_connections(rows: list[tuple[list[int], int]], gone: set[int]) -> None:
    """Afterwards the dead worker's connections have ended, and no other slot's or forward's figures
    have changed."""
    board = Scoreboard(2, 3)
    for (number, slot), (ends, living) in zip(itertools.product(range(3), range(2)), rows, strict=True):
        row = board.forward(number, slot)
        row[: len(ends)] = memoryview(struct.pack("=6Q", *ends)).cast("B").cast("Q")
        row[ForwardCell.ACCEPTED] = sum(ends) + living
        row[ForwardCell.SENT] = 7
    before = {each: board.forward(*each).tolist() for each in itertools.product(range(3), range(2))}
    board.settle(1, gone)
    for (number, slot), cells in before.items():
        row = board.forward(number, slot)
        if slot == 1 and number in gone:
            assert sum(row[CLOSED.start : CLOSED.stop]) == row[ForwardCell.ACCEPTED]
            assert active(row) == 0
            cells[ForwardCell.CLOSED_DIED] = row[ForwardCell.CLOSED_DIED]
        assert row.tolist() == cells


def test_settling_twice_changes_nothing_more() -> None:
    """Connections end once."""
    board = Scoreboard(1, 1)
    row = board.forward(0, 0)
    row[ForwardCell.ACCEPTED] = 3
    board.settle(0, [0])
    board.settle(0, [0])
    assert row[ForwardCell.CLOSED_DIED] == 3


def test_settling_takes_away_what_a_worker_had() -> None:
    """Sessions and pipes are gone with the worker, and only with the one that died; counters stay."""
    board = Scoreboard(2, 0)
    for slot in range(2):
        board.row(slot)[:] = memoryview(struct.pack("=Q", 5) * SLOT_ROW).cast("B").cast("Q")
    board.settle(0, [])
    lost = {cell.name for cell in Cell if board.read(0, cell) == 0}
    assert lost == {"SESSIONS", "PIPES_LENT", "PIPES_IDLE"}
    assert board.row(1).tolist() == [5] * SLOT_ROW


def test_settling_survives_what_a_worker_has_made_of_its_row() -> None:
    """A worker can write anything; that more ends than connections are there must not end the supervisor."""
    board = Scoreboard(1, 1)
    board.forward(0, 0)[ForwardCell.CLOSED_LOCAL] = 1
    board.settle(0, [0])


def test_a_cleared_row_is_zero_in_all_slots() -> None:
    """A row that goes to another forward begins anew, and its neighbours do not."""
    board = Scoreboard(2, 3)
    for number in range(3):
        for slot in range(2):
            board.forward(number, slot)[:] = memoryview(b"\1" * FORWARD_ROW * CELL).cast("Q")
    board.clear(1)
    sums = {number: [sum(board.forward(number, slot)) > 0 for slot in range(2)] for number in range(3)}
    assert sums == {0: [True, True], 1: [False, False], 2: [True, True]}
