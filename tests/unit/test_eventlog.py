"""The connection log: golden lines, and what becomes of them when the file does not take them."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.model import Address, Backend, Endpoint, Forward, LogFormat, Origin, Outcome, Protocol
from fastfwd.observe.eventlog import ATOMIC, QUEUE_BYTES, Allowance, Event, EventLog, line_format, open_log
from fastfwd.observe.scoreboard import Cell, Scoreboard

FORWARD = Forward(
    Endpoint("0.0.0.0", 8080, Protocol.TCP),
    (Backend(Endpoint("www.example", 80, Protocol.TCP)),),
    Origin("rinetd.conf", 1),
)

NOON = 1_795_303_598.123456
"""21 November 2026, 23:26:38 UTC."""

DONE = Event(
    FORWARD,
    Outcome.DONE_REMOTE_CLOSED,
    "192.0.2.7",
    40_000,
    bytes_in=5,
    bytes_out=9,
    duration=1.23456789,
    serial=0xABC,
    backend=Address(socket.AF_INET, "198.51.100.1"),
    dial=0.0001234567,
)

Zone = Callable[[str], None]


@pytest.fixture
def zone() -> Iterator[Zone]:
    """Call it with a value for TZ (tzset(3))."""
    before = os.environ.get("TZ")

    def change(value: str | None) -> None:
        if value is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = value
        time.tzset()

    yield change
    change(before)


def line(event: Event, logformat: LogFormat = LogFormat.RINETD, *, duration: bool = False) -> str:
    """`event` at NOON in `logformat`, in slot 3."""
    return line_format(logformat, duration=duration, slot=3, born="3-19a")(event, NOON).decode()


# The formats.


def test_the_tab_format(zone: Zone) -> None:
    """rinetd's line: a blank before the first tab, nine columns."""
    zone("UTC0")
    assert line(DONE) == (
        "21/Nov/2026:23:26:38 \t192.0.2.7\t0.0.0.0\t8080\twww.example\t80\t5\t9\tdone-remote-closed\n"
    )


def test_the_tab_format_with_duration(zone: Zone) -> None:
    """`logduration` adds a tenth column of seconds with three decimals."""
    zone("UTC0")
    assert line(DONE, duration=True) == line(DONE).removesuffix("\n") + "\t1.235\n"


def test_the_common_format(zone: Zone) -> None:
    """The web server's format as rinetd writes it: two blanks before the zone."""
    zone("UTC0")
    assert line(DONE, LogFormat.COMMON) == (
        '192.0.2.7 - - [21/Nov/2026:23:26:38  +0000] "GET /rinetd-services/0.0.0.0/8080/www.example/80/'
        'done-remote-closed HTTP/1.0" 200 9 - - - 5\n'
    )


@pytest.mark.parametrize(
    ("value", "local", "offset"),
    [
        ("UTC0", "21/Nov/2026:23:26:38", "+0000"),
        ("IST-5:30", "22/Nov/2026:04:56:38", "+0530"),
        ("NST3:30", "21/Nov/2026:19:56:38", "-0330"),
        ("LINT-14", "22/Nov/2026:13:26:38", "+1400"),
    ],
)
def test_times_are_local(zone: Zone, value: str, local: str, offset: str) -> None:
    """Both of rinetd's formats are in the process's zone; the common one names it."""
    zone(value)
    assert line(DONE).startswith(f"{local} \t")
    assert f"[{local}  {offset}]" in line(DONE, LogFormat.COMMON)


def test_a_second_has_its_own_stamp(zone: Zone) -> None:
    """The cached time does not outlive its second, forwards or backwards."""
    zone("UTC0")
    formatter = line_format(LogFormat.RINETD, duration=False, slot=0, born="")
    stamps = [formatter(DONE, NOON + shift)[18:20].decode() for shift in (0, 0.5, 1, 0, -1)]
    assert stamps == ["38", "38", "39", "38", "37"]


def test_the_json_format(zone: Zone) -> None:
    """One object per line, UTC with milliseconds, seconds as numbers with six decimals."""
    zone("IST-5:30")
    assert line(DONE, LogFormat.JSON) == (
        '{"time":"2026-11-21T23:26:38.123000Z","session":"3-19a-abc","outcome":"done-remote-closed",'
        '"forward":"0.0.0.0:8080/tcp","proto":"tcp","client":"192.0.2.7","client_port":40000,"via":null,'
        '"listen":"0.0.0.0","listen_port":8080,"connect":"www.example","connect_port":80,'
        '"backend":"198.51.100.1:80","bytes_in":5,"bytes_out":9,"duration":1.234568,"dial":0.000123,"slot":3}\n'
    )


def test_json_of_a_refused_client(zone: Zone) -> None:
    """What did not happen is null: no backend was dialled."""
    zone("UTC0")
    found = json.loads(line(Event(FORWARD, Outcome.DENIED, "192.0.2.7"), LogFormat.JSON))
    assert (found["outcome"], found["backend"], found["dial"]) == ("denied", None, None)


def test_json_names_the_forward() -> None:
    """A forward with `name=` goes by it."""
    named = DONE._replace(forward=Forward(FORWARD.listen, FORWARD.backends, FORWARD.origin, name="web"))
    assert json.loads(line(named, LogFormat.JSON))["forward"] == "web"


@pytest.mark.parametrize("outcome", Outcome)
def test_words(outcome: Outcome) -> None:
    """Every outcome's last column is rinetd's word, a trailing ` -` included, or one of those that
    rinetd has no use for."""
    words = {
        *("opened", "done-local-closed", "done-remote-closed", "accept-failed -", "local-socket-failed -"),
        *("local-bind-failed -", "local-connect-failed -", "not-allowed", "denied"),
        *(
            "over-limit",
            "over-client-limit",
            "idle-timeout",
            "half-close-timeout",
            "evicted",
            "over-rate",
            "over-client-rate",
        ),
        *("remote-tls-failed -", "local-tls-failed -", "remote-proxy-failed -"),
    }
    last = line(DONE._replace(outcome=outcome)).rstrip("\n").split("\t")[-1]
    assert last in words


# Writing.


class Book:
    """An EventLog over `descriptor` whose lines are the numbers of its events, with its figures."""

    def __init__(self, descriptor: int, width: int = 20, board: Scoreboard | None = None) -> None:
        board = board or Scoreboard(1, 0)
        self.row = board.row(0)
        self.width = width
        self.log = EventLog(descriptor, self.text, self.row, board.shared)
        self.count = 0

    def text(self, event: Event, now: float) -> bytes:
        return b"%0*d\n" % (self.width - 1, event.client_port)

    def events(self, count: int) -> None:
        """Log that many more events."""
        for _ in range(count):
            self.log.event(DONE._replace(client_port=self.count))
            self.count += 1

    @property
    def written(self) -> int:
        return int(self.row[Cell.LOG_LINES])

    @property
    def dropped(self) -> int:
        return int(self.row[Cell.LOG_DROPPED])

    def expected(self, start: int, end: int) -> bytes:
        """The lines of those events."""
        return b"".join(b"%0*d\n" % (self.width - 1, number) for number in range(start, end))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log file may be made."""
    return tmp_path / "connections.log"


@contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """No file can grow past `size` more bytes than `path` has now: writes fall short as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_flush_is_one_write() -> None:
    """All lines of a turn leave in a single write(2): here every write is a datagram."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        book = Book(os.dup(ours.fileno()))
        theirs.settimeout(5)
        for turn in range(3):
            book.events(100)
            book.log.flush()
            assert theirs.recv(1 << 16) == book.expected(100 * turn, 100 * (turn + 1))
        book.log.close()


def test_nothing_to_say_is_no_write() -> None:
    """A turn without an event does not touch the file."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.setblocking(False)
        book = Book(os.dup(ours.fileno()))
        book.log.flush()
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        book.log.close()


def test_written_lines_are_counted(path: Path) -> None:
    """LOG_LINES counts what is in the file."""
    book = Book(open_log(str(path)))
    book.events(7)
    book.log.flush()
    assert (book.written, book.dropped) == (7, 0)
    assert path.read_bytes() == book.expected(0, 7)
    book.log.close()


def test_closing_writes_the_rest(path: Path) -> None:
    """`close` flushes what the last turn left."""
    book = Book(open_log(str(path)))
    book.events(3)
    book.log.close()
    assert path.read_bytes() == book.expected(0, 3)


def test_closing_closes(path: Path) -> None:
    """The descriptor is the log's, and gone with it."""
    descriptor = open_log(str(path))
    Book(descriptor).log.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_two_writers_append(path: Path) -> None:
    """Two logs on one file (two workers) do not overwrite each other."""
    one, two = Book(open_log(str(path))), Book(open_log(str(path)))
    for _ in range(5):
        one.events(2)
        one.log.flush()
        two.events(2)
        two.log.flush()
    assert len(path.read_bytes().splitlines()) == 20
    one.log.close()
    two.log.close()


# Short writes.


@pytest.mark.parametrize("room", [1, 19, 39])
def test_half_a_line_is_ended_before_the_next(path: Path, room: int) -> None:
    """After a write that was cut within a line, the next line begins on a line of its own."""
    book = Book(open_log(str(path)))
    book.events(3)
    with room_for(path, room):
        book.log.flush()
    book.events(1)
    book.log.flush()
    whole, cut = divmod(room, 20)
    lines = path.read_bytes().splitlines(True)
    assert b"".join(lines[:whole]) == book.expected(0, whole)
    assert lines[whole] == book.expected(whole, whole + 1)[:cut].rstrip(b"\n") + b"\n"
    assert b"".join(lines[whole + 1 :]) == book.expected(whole + 1, 4)
    book.log.close()


def test_a_line_that_was_cut_is_counted_as_lost(path: Path) -> None:
    """Half a line is a dropped one, the others are kept and written later."""
    book = Book(open_log(str(path)))
    book.events(3)
    with room_for(path, 30):
        book.log.flush()
        assert (book.written, book.dropped) == (1, 1)
    book.log.flush()
    assert (book.written, book.dropped) == (2, 1)
    book.log.close()


def test_a_cut_between_lines_loses_nothing(path: Path) -> None:
    """A short write that ends in a line's end costs no line."""
    book = Book(open_log(str(path)))
    book.events(3)
    with room_for(path, 40):
        book.log.flush()
    book.log.flush()
    assert (book.written, book.dropped) == (3, 0)
    assert path.read_bytes() == book.expected(0, 3)
    book.log.close()


def test_a_full_disk_loses_nothing_at_first(path: Path) -> None:
    """What the file refuses altogether is kept, and written in order once there is room."""
    book = Book(open_log(str(path)))
    book.events(1)
    book.log.flush()
    with room_for(path, 0):
        for _ in range(5):
            book.events(2)
            book.log.flush()
    assert book.written == 1
    book.events(1)
    book.log.flush()
    assert path.read_bytes() == book.expected(0, 12)
    book.log.close()


def test_another_worker_ends_half_a_line(path: Path) -> None:
    """Whose line was cut does not matter: who writes next ends it, and nobody ends it twice."""
    board = Scoreboard(1, 0)
    one, two = (Book(open_log(str(path)), board=board) for _ in range(2))
    one.events(1)
    with room_for(path, 7):
        one.log.flush()
    for book in (two, one):
        book.events(2)
        book.log.flush()
    assert path.read_bytes() == b"0000000\n" + two.expected(0, 2) + one.expected(1, 3)
    one.log.close()
    two.log.close()


def test_half_a_line_that_was_truncated_away_is_not_ended(path: Path) -> None:
    """logrotate's copytruncate takes it: the new log does not begin with an empty line."""
    book = Book(open_log(str(path)))
    book.events(1)
    with room_for(path, 7):
        book.log.flush()
    os.truncate(path, 0)
    book.events(1)
    book.log.flush()
    assert path.read_bytes() == book.expected(1, 2)
    book.log.close()


def test_half_a_line_of_another_file_is_not_ended(path: Path) -> None:
    """After a rotation by name the new file begins with a line."""
    book = Book(open_log(str(path)))
    book.events(1)
    with room_for(path, 7):
        book.log.flush()
    book.log.reopen(open_log(f"{path}.new"))
    book.events(1)
    book.log.flush()
    assert Path(f"{path}.new").read_bytes() == book.expected(1, 2)
    book.log.close()


def test_half_a_line_that_somebody_else_is_ending_is_waited_for(path: Path) -> None:
    """While another process has the lock, lines stay where they are; then they come."""
    book = Book(open_log(str(path)))
    book.events(1)
    with room_for(path, 7):
        book.log.flush()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        book.events(1)
        book.log.flush()
        assert path.read_bytes() == b"0000000"
        other.communicate(b"\n")
    book.log.flush()
    assert path.read_bytes() == b"0000000\n" + book.expected(1, 2)
    book.log.close()


@pytest.mark.parametrize("waiting", [10, 10_000])
def test_a_log_that_takes_nothing_is_asked_for_one_piece(waiting: int) -> None:
    """However much waits, a flush offers no more than a pipe takes at once: here that is a packet
    which finds no room (pipe2(2), O_DIRECT)."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    book = Book(os.dup(writer))
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * ATOMIC)
    book.events(waiting)
    book.log.flush()
    os.read(reader, ATOMIC)
    book.log.flush()
    assert book.written == min(waiting, ATOMIC // book.width)
    book.log.close()
    os.close(reader)
    os.close(writer)


TURNS = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 130))), min_size=1, max_size=12
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(TURNS)
def test_whatever_fails_no_lines_are_glued(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, int | None]]
) -> None:
    """Over any sequence of full, short and refused writes every line in the file is whole, or
    the beginning of one that was counted as dropped; they are in order, each there once."""
    path = tmp_path_factory.getbasetemp() / "cut.log"
    path.write_bytes(b"")
    book = Book(open_log(str(path)))
    for count, room in turns:
        book.events(count)
        with room_for(path, 1 << 30 if room is None else room):
            book.log.flush()
    book.events(1)
    book.log.flush()
    lines = path.read_bytes().splitlines()
    every = book.expected(0, book.count).splitlines()
    numbers = [every.index(text) for text in lines if len(text) == 19]
    cut = [text for text in lines if len(text) < 19]
    assert numbers == sorted(set(numbers))
    assert all(any(text.startswith(part) for text in every) for part in cut)
    # A line cut just before its newline is whole once that was written; it counts as dropped all the same.
    assert len(lines) - book.dropped <= book.written <= len(numbers)
    assert book.written + book.dropped == book.count
    book.log.close()


# A FIFO.


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe."""
    made = tmp_path / "fifo"
    os.mkfifo(made)
    return made


def read_now(descriptor: int) -> bytes:
    """What waits in a pipe."""
    data = bytearray()
    try:
        while piece := os.read(descriptor, 1 << 16):
            data += piece
    except BlockingIOError:
        pass
    return bytes(data)


def test_a_fifo_needs_no_reader(fifo: Path) -> None:
    """A named pipe without a reader is opened, and keeps lines for one that comes later."""
    book = Book(open_log(str(fifo)))
    book.events(2)
    book.log.flush()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert read_now(reader) == book.expected(0, 2)
    os.close(reader)
    book.log.close()


def test_pieces_for_a_fifo_are_whole_lines() -> None:
    """To a pipe go pieces of whole lines no longer than PIPE_BUF, which nobody else's can cut:
    here every write is a packet (pipe2(2), O_DIRECT)."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    book = Book(writer, width=100)
    book.events(150)
    book.log.flush()
    packets = []
    try:
        while True:
            packets.append(os.read(reader, 1 << 16))
    except BlockingIOError:
        pass
    assert b"".join(packets) == book.expected(0, 150)
    assert all(len(packet) <= ATOMIC and packet.endswith(b"\n") for packet in packets)
    assert len(packets) == 4
    os.close(reader)
    book.log.close()


def test_a_stalled_reader_loses_nothing_at_first(fifo: Path) -> None:
    """Lines that the pipe does not take wait, and come in order when somebody reads."""
    book = Book(open_log(str(fifo)), width=1000)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    for _ in range(20):
        book.events(20)
        book.log.flush()
    assert book.written < 400
    data = read_now(reader)
    while book.written < 400:
        book.log.flush()
        data += read_now(reader)
    assert data == book.expected(0, 400)
    assert book.dropped == 0
    os.close(reader)
    book.log.close()


def test_the_queue_is_bounded(fifo: Path) -> None:
    """A log that takes nothing costs QUEUE_BYTES; what is beyond is dropped and counted."""
    book = Book(open_log(str(fifo)), width=1024)
    for _ in range(40):
        book.events(50)
        book.log.flush()
    assert book.dropped == 2000 - book.written - QUEUE_BYTES // 1024
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    data = read_now(reader)
    while book.written + book.dropped < 2000:
        book.log.flush()
        data += read_now(reader)
    assert data == book.expected(0, 2000 - book.dropped)
    os.close(reader)
    book.log.close()


def test_what_cannot_be_written_at_the_end_is_counted(fifo: Path) -> None:
    """`close` does not wait: lines it cannot write are dropped, and the figure says so."""
    book = Book(open_log(str(fifo)), width=1024)
    book.events(100)
    book.log.close()
    assert (book.written, book.dropped) == (64, 36)


# The file.


def test_a_new_log_has_rinetds_mode(path: Path) -> None:
    """0644, less the umask."""
    before = os.umask(0o022)
    try:
        os.close(open_log(str(path)))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_log_is_not_inherited_and_never_blocks(path: Path) -> None:
    """The descriptor closes at an exec and is non-blocking."""
    descriptor = open_log(str(path))
    assert not os.get_inheritable(descriptor)
    assert not os.get_blocking(descriptor)
    os.close(descriptor)


def test_an_old_log_is_appended_to(path: Path) -> None:
    """What is in the file stays."""
    path.write_bytes(b"before\n")
    book = Book(open_log(str(path)))
    book.events(1)
    book.log.close()
    assert path.read_bytes() == b"before\n" + book.expected(0, 1)


def test_truncating_leaves_no_hole(path: Path) -> None:
    """After a truncation (logrotate's copytruncate) writing goes on at the beginning."""
    book = Book(open_log(str(path)))
    book.events(5)
    book.log.flush()
    os.truncate(path, 0)
    book.events(1)
    book.log.flush()
    assert path.read_bytes() == book.expected(5, 6)
    book.log.close()


@pytest.mark.parametrize("name", ["", "missing/log"])
def test_a_log_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    """A directory, or a file in a directory that is not there, is an OSError for the caller."""
    with pytest.raises(OSError, match=r"Is a directory|No such file"):
        open_log(str(tmp_path / name))


def test_an_allowance_is_for_each_second() -> None:
    """So many lines, then none until the second is over."""
    allowance = Allowance(2)
    assert [allowance.one_more(now) for now in (5.0, 5.1, 5.2, 5.9, 6.0, 6.1, 6.2)] == [
        *(True, True, False, False),
        *(True, True, False),
    ]
