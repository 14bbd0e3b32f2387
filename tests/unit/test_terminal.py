"""The layout of `fastfwd --status`: units, columns, warnings."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastfwd.model import Backend, Endpoint, Forward, Origin, Protocol
from fastfwd.observe.observer import Observer
from fastfwd.observe.rows import Row
from fastfwd.observe.scoreboard import Cell, ForwardCell, Scoreboard, SupervisorCell, WatchCell
from fastfwd.observe.terminal import duration, size, table, text

FORWARD = Forward(
    Endpoint("127.0.0.1", 8080, Protocol.TCP),
    (Backend(Endpoint("10.0.0.1", 80, Protocol.TCP)),),
    Origin("file", 1),
)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (0.4, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1234, "1.23 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_500, "1.00 MB"),
        (45_600_000, "45.6 MB"),
        (2**64, "18.4 EB"),
    ],
)
def test_size(count: float, shown: str) -> None:
    """Three digits, and never a thousand of a unit."""
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    """The two units that matter."""
    assert duration(seconds) == shown


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    """Words to the left, figures to the right, nothing behind the last one."""
    assert table(("NAME", "N"), [("x", "10"), ("longer", "")], words=1) == [
        "NAME     N",
        "x       10",
        "longer",
    ]


def status(board: Scoreboard, *rows: Row) -> dict[str, Any]:
    """What /status says of `board`."""
    observer = Observer(board)
    observer.rows, observer.file = rows, "/etc/rinetd.conf"
    found: dict[str, Any] = orjson.loads(orjson.dumps(observer.status()))
    return found


@pytest.fixture
def board() -> Scoreboard:
    """One slot whose worker serves, after a start that was applied."""
    board = Scoreboard(1, 2)
    board.supervisor[SupervisorCell.RELOAD_OK] = 1
    board.watch(0)[WatchCell.SERVING] = 1
    return board


def test_nothing_is_wrong(board: Scoreboard) -> None:
    """Without trouble there is no warning."""
    assert "!" not in text(status(board))


def test_a_refused_reload_is_said(board: Scoreboard) -> None:
    """Else somebody would think that the file is what serves."""
    board.supervisor[SupervisorCell.RELOAD_OK] = 0
    assert "! the last reload was refused" in text(status(board))


def test_a_missing_worker_is_said(board: Scoreboard) -> None:
    """Of how many there should be."""
    board.watch(0)[WatchCell.SERVING] = 0
    assert "! 1 of 1 workers do not serve" in text(status(board))


def test_lost_lines_are_said(board: Scoreboard) -> None:
    """With their number."""
    board.row(0)[Cell.LOG_DROPPED] = 7
    assert "! 7 lines of the connection log were lost" in text(status(board))


def test_a_forward_has_its_figures(board: Scoreboard) -> None:
    """A line for each, and one for all."""
    board.forward(0, 0)[ForwardCell.ACCEPTED] = 5
    board.forward(0, 0)[ForwardCell.CLOSED_LOCAL] = 3
    board.forward(0, 0)[ForwardCell.SENT] = 1500
    lines = text(status(board, Row(0, "web", Protocol.TCP, FORWARD))).splitlines()
    (line,) = (line for line in lines if line.startswith("web"))
    assert " ".join(line.split()) == "web 10.0.0.1:80/tcp 2 5 - - - 0 B 1.50 kB 0 0"


def test_a_removed_forward_is_shown_while_it_has_sessions(board: Scoreboard) -> None:
    """And not afterwards, though its counters stay."""
    row = Row(1, "gone", Protocol.TCP, None)
    board.forward(1, 0)[ForwardCell.ACCEPTED] = 1
    before = text(status(board, row))
    board.forward(1, 0)[ForwardCell.CLOSED_LOCAL] = 1
    assert ("(removed)" in before, "(removed)" in text(status(board, row))) == (True, False)


def test_a_worker_that_is_not_there(board: Scoreboard) -> None:
    """Its slot is shown, with what is not to be had left out."""
    board.watch(0)[WatchCell.SERVING] = 0
    assert text(status(board)).splitlines()[-1].split()[:3] == ["0", "-", "-"]
