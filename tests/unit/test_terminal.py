"""The layout of `fastfwd --status`: units, columns, warnings."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import orjson
import pytest

from fastfwd.model import Backend, Certificate, Endpoint, Forward, Origin, Protocol, TlsAccept, TlsConnect
from fastfwd.observe.observer import Observer
from fastfwd.observe.rows import Row
from fastfwd.observe.scoreboard import (
    SIDE,
    Cell,
    ForwardCell,
    Scoreboard,
    SupervisorCell,
    TlsCell,
    TlsFailure,
    WatchCell,
)
from fastfwd.observe.terminal import Column, duration, size, table, text

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
    assert table((Column("NAME", words=True), Column("N")), [("x", "10"), ("longer", "")]) == [
        "NAME     N",
        "x       10",
        "longer",
    ]


def test_a_narrow_terminal_spares_columns() -> None:
    """Those of the highest number first, and no more than it takes."""
    columns = (Column("AAAA"), Column("BBBB", spare=2), Column("CCCC", spare=1), Column("DDDD", spare=2))
    found = [table(columns, [], width)[0] for width in (22, 21, 10, 9, 1)]
    assert found == ["AAAA  BBBB  CCCC  DDDD", "AAAA  CCCC", "AAAA  CCCC", "AAAA", "AAAA"]


def test_a_narrow_terminal_cuts_words() -> None:
    """The longest first, in their middle, while something is left of them; figures stay whole."""
    columns = (Column("A", words=True), Column("B", words=True), Column("N"))
    rows = [("a" * 15 + "z" * 15, "b" * 14, "1234567890")]
    assert table(columns, rows, 50)[1] == f"{'a' * 11}…{'z' * 10}  {'b' * 14}  1234567890"
    assert table(columns, rows, 10)[1] == f"{'a' * 6}…{'z' * 5}  {'b' * 6}…{'b' * 5}  1234567890"


def status(board: Scoreboard, *rows: Row) -> dict[str, Any]:
    """What /status says of `board`."""
    observer = Observer(board)
    observer.rows, observer.file = rows, "/etc/rinetd.conf"
    found: dict[str, Any] = orjson.loads(orjson.dumps(observer.status()))
    return found


@pytest.fixture
def board() -> Scoreboard:
    """One slot whose worker serves, after a start that was applied."""
    board = Scoreboard(1, 3)
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


# Several backends, and datagrams.

SPREAD = Forward(
    Endpoint("127.0.0.1", 8080, Protocol.TCP),
    tuple(
        Backend(Endpoint(f"10.0.0.{number}", 80, Protocol.TCP), name=name)
        for number, name in ((1, "one"), (2, "two"))
    ),
    Origin("file", 1),
)
DNS = Forward(
    Endpoint("127.0.0.1", 53, Protocol.UDP),
    (Backend(Endpoint("10.0.0.1", 53, Protocol.UDP)),),
    Origin("file", 1),
)


@pytest.fixture
def spread(board: Scoreboard) -> Row:
    """A forward with two backends; the first was given three connections of four."""
    board.forward(1, 0)[ForwardCell.ACCEPTED] = 3
    board.forward(2, 0)[ForwardCell.ACCEPTED] = 1
    return Row(0, "web", Protocol.TCP, SPREAD, backends=((1, "one"), (2, "two")))


def lines(page: str, begin: str) -> list[str]:
    """The lines that begin so, with single spaces."""
    return [" ".join(line.split()) for line in page.splitlines() if line.startswith(begin)]


def test_backends_have_a_table(board: Scoreboard, spread: Row) -> None:
    """And the forward says how many there are."""
    assert lines(text(status(board, spread)), "web") == [
        "web 2 backends 4 4 - - - 0 B 0 B 0 0",
        "web one up 3 3 75% 0 B 0 B 0 0",
        "web two up 1 1 25% 0 B 0 B 0 0",
    ]


def test_one_backend_needs_no_table(board: Scoreboard) -> None:
    """The forward's own line says it all."""
    shown = text(status(board, Row(0, "web", Protocol.TCP, FORWARD)))
    assert ("BACKEND" in shown, "DATAGRAMS" in shown) == (False, False)


def test_a_backend_that_is_left_out_is_said(board: Scoreboard, spread: Row) -> None:
    """By its name."""
    board.forward(2, 0)[ForwardCell.CHECKED_DOWN] = 1
    shown = text(status(board, spread))
    assert "\n! web: left out of 2 backends: two\n" in shown
    assert lines(shown, "web")[2].startswith("web two left out ")


def test_no_backend_left_is_said(board: Scoreboard, spread: Row) -> None:
    """In place of a list."""
    for number in (1, 2):
        board.forward(number, 0)[ForwardCell.CHECKED_DOWN] = 1
    assert lines(text(status(board, spread)), "! ") == [
        "! web: all backends are left out; every one is tried all the same"
    ]


def test_datagrams_have_a_table(board: Scoreboard) -> None:
    """How many, and those lost by where."""
    cells = board.forward(0, 0)
    for figure, name in enumerate(("RECEIVED", "SENT"), 4):
        cells[ForwardCell[f"DATAGRAMS_{name}"]] = figure
    for figure, name in enumerate(("QUEUE", "BACKEND", "CLIENT"), 6):
        cells[ForwardCell[f"DROPPED_{name}"]] = figure
    shown = text(status(board, Row(0, "dns", Protocol.UDP, DNS)))
    assert lines(shown, "dns")[1] == "dns - - 4 5 6 7 8 0"


def test_evicted_flows_are_said(board: Scoreboard) -> None:
    """With their number, and what to change."""
    board.forward(0, 0)[ForwardCell.ACCEPTED] = 3
    board.forward(0, 0)[ForwardCell.CLOSED_EVICTED] = 2
    shown = text(status(board, Row(0, "dns", Protocol.UDP, DNS)))
    assert lines(shown, "! ") == ["! dns: 2 flows were evicted (max-udp-connections)"]


DAY = 86400


def secure(*left: float) -> Row:
    """A forward with TLS on both sides, whose certificates for clients have so many seconds left."""
    now = time.time()
    shown = tuple(Certificate(f"{place}.pem", "", expires=int(now + each)) for place, each in enumerate(left))
    both = replace(FORWARD, tls_accept=TlsAccept(shown), tls_connect=TlsConnect(), proxy_from=("::1",))
    return Row(0, "web", Protocol.TCP, both)


def test_tls_has_a_table(board: Scoreboard) -> None:
    """A line for each side: handshakes, those resumed, those failed, streams cut; what is left of time."""
    cells = board.forward(0, 0)
    for first, figure in ((ForwardCell.HANDSHAKES, 1), (ForwardCell.HANDSHAKES + SIDE, 100)):
        cells[first + TlsCell.VERSION_12] = cells[first + TlsCell.VERSION_13] = figure
        cells[first + TlsCell.RESUMED] = 3 * figure
        cells[first + TlsFailure.OTHER] = 4 * figure
        cells[first + TlsCell.CUT] = 5 * figure
    shown = text(status(board, secure(60 * DAY + 3700, 90 * DAY)))
    assert lines(shown, "web")[1:3] == ["web clients 2 3 4 5 60 d 1 h", "web backends 200 300 400 500 -"]
    assert lines(shown, "! ") == []


def test_clients_without_a_proxy_header_have_a_table(board: Scoreboard) -> None:
    """By what was wrong."""
    for figure, reason in enumerate(("MALFORMED", "STRANGER", "TIMEOUT", "CLOSED"), 3):
        board.forward(0, 0)[ForwardCell[f"PROXY_{reason}"]] = figure
    assert "web 3 4 5 6" in lines(text(status(board, secure())), "web")


def test_a_plain_forward_has_no_table_of_tls(board: Scoreboard) -> None:
    """Nor one of PROXY headers."""
    shown = text(status(board, Row(0, "web", Protocol.TCP, FORWARD)))
    assert "TLS" not in shown
    assert "PROXY" not in shown


def test_a_certificate_that_ends_soon_is_said(board: Scoreboard) -> None:
    """From fourteen days on, by its file; and one that has ended."""
    shown = text(status(board, secure(-1, 13 * DAY + 3700, 15 * DAY)))
    assert lines(shown, "! ") == [
        "! web: the certificate 0.pem has expired",
        "! web: the certificate 1.pem expires in 13 d 1 h",
    ]
    assert lines(shown, "web")[1].endswith(" expired")


def test_80_columns_are_enough(board: Scoreboard, spread: Row) -> None:
    """For every table, whatever the names are, with figures of a busy program."""
    long = "n" * 1000
    cells = board.forward(0, 0)
    cells[ForwardCell.ACCEPTED] = 10**9
    cells[ForwardCell.RECEIVED] = cells[ForwardCell.SENT] = 10**15
    cells[ForwardCell.DATAGRAMS_RECEIVED] = cells[ForwardCell.DATAGRAMS_SENT] = 10**10
    cells[ForwardCell.HANDSHAKES] = cells[ForwardCell.PROXY_CLOSED] = 10**9
    rows = (Row(0, long, Protocol.UDP, SPREAD, backends=((1, f"1{long}"), (2, f"2{long}"))),)
    shown = [line for line in text(status(board, *rows), 80).splitlines() if not line.startswith("/etc")]
    assert max(map(len, shown)) <= 80
