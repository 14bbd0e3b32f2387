"""Rows 28 to 31: the connection log on a full disk, before a reader that stands still and under rotation,
and clocks that jump. Whatever becomes of the log, connections are served."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWatched
from tests.faults.row import Row, scaled
from tests.faults.test_floods import observed
from tests.forwarder import Forwarder, Kind
from tests.load import Load
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Apart, serve_apart
from tests.sockets import Address, Ending, Listener, connect, noise, read_to_end
from tests.system.metrics import Scrape, metrics_url, scrape, total
from tests.system.namespaces import Sandbox

BOTH = pytest.mark.parametrize("kind", ["fastfwd", "rinetd"], indirect=True)

ANSWER = 100
"""Bytes that every connection is owed."""

PATIENCE = {"fastfwd": 20.0, "rinetd": 1.5}
"""Seconds for an answer."""

ENOUGH = 4
"""Connections that wait in vain after which no more are made."""


@pytest.fixture
def answering() -> Iterator[Apart]:
    """A backend in its own process that answers unasked, and ends."""
    with serve_apart("source", ANSWER) as apart:
        yield apart


class Knocks:
    """Connections, four at a time, in the background of the block, that each want an answer."""

    def __init__(self, kind: Kind, address: Address, count: int) -> None:
        self.address = address
        self.count = count
        self.patience = deadline.seconds(PATIENCE[kind])
        self.took: list[float] = []
        """Seconds, of those that were answered."""
        self.broken: list[str] = []
        self.seconds = 0.0
        self._in_vain = 0

    def __enter__(self) -> Knocks:
        self._thread = ThreadPoolExecutor(1)
        self._done = self._thread.submit(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._done.result()

    def run(self) -> Knocks:
        """All of them."""
        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._knock, range(self.count)))
        self.seconds = time.monotonic() - began
        return self

    def running(self) -> bool:
        """Whether there are more to come."""
        return not self._done.done()

    def tell(self, row: Row, what: str) -> None:
        """Every connection is a try."""
        row.tried(len(self.took) + len(self.broken), [f"{what}: {how}" for how in self.broken])

    @property
    def rate(self) -> float:
        """Answered connections per second."""
        return len(self.took) / self.seconds

    @property
    def slowest(self) -> float:
        """Milliseconds in which 99 of 100 were answered."""
        return 1000 * statistics.quantiles(self.took, n=100)[98]

    def _knock(self, number: int) -> None:
        if self._in_vain >= ENOUGH:
            return
        began = time.monotonic()
        try:
            with connect(self.address) as client:
                client.settimeout(self.patience)
                ending = read_to_end(client)
        except OSError as error:
            self._in_vain += isinstance(error, TimeoutError)
            self.broken.append(f"connection {number}: {type(error).__name__}")
            return
        if ending == Ending(noise(ANSWER), "EOF"):
            self.took.append(time.monotonic() - began)
        else:
            self.broken.append(f"connection {number}: {ending}")


def books(running: Forwarder) -> tuple[int, int]:
    """Lines written and lines dropped, by its own count."""
    found: Scrape = scrape(metrics_url(running))
    return int(total(found, "log_lines_total")), int(total(found, "log_lines_dropped_total"))


# 28. No space left.


@pytest.mark.row(
    28,
    "the log's disk is full (64 KiB, and /dev/full), then has room again",
    "every connection is served; no line is glued to another; each is written, or counted as dropped",
)
@BOTH
def test_the_disk_is_full(row: Row, kind: Kind, forwarder: StartForwarder, answering: Apart) -> None:
    address = ("127.0.0.1", free_port())
    forward = f"127.0.0.1 {address[1]} {answering.host} {answering.port}\n"
    start = partial(observed, forwarder) if kind == "fastfwd" else partial(unobserved, forwarder)
    with Sandbox() as inside:
        inside.run("mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "none", "/mnt")
        aftermath = inside.call(start, f"{forward}logfile /mnt/log\n", kind=kind)
        running = aftermath.running
        full = Knocks(kind, address, scaled(1000, 16_000)).run()
        full.tell(row, "no space")
        inside.run("mount", "-o", "remount,size=64m", "/mnt")
        after = Knocks(kind, address, scaled(300, 3000)).run()
        after.tell(row, "space again")
        lines = 2 * (len(full.took) + len(after.took))
        log = Path(f"/proc/{running.pid}/root/mnt/log")
        if kind == "fastfwd":
            until(lambda: sum(books(running)) >= lines, what=f"{lines} lines in the books")
            written, dropped = books(running)
            row.held(written + dropped == lines, f"{written} written, {dropped} dropped of {lines}")
            row.figure("lines dropped", dropped)
        text = log.read_text()
        tabs = [line.count("\t") for line in text.splitlines()]
        row.held(max(tabs) == TABS, f"{sum(each > TABS for each in tabs)} glued lines")
        row.figure("lines cut", sum(each < TABS for each in tabs))
        row.figure("lines that are not there", lines - tabs.count(TABS))
        row.figure("rate without space, of that with", full.rate / after.rate)
        if kind == "fastfwd":
            # A cut line that only lacked its newline is whole all the same.
            found = tabs.count(TABS)
            row.held(written <= found <= written + dropped, f"{written} counted, {found} whole lines")
        aftermath.judge()
        running.close()
    aftermath = start(f"{forward}logfile /dev/full\n", kind=kind)
    running = aftermath.running
    full = Knocks(kind, address, scaled(300, 3000)).run()
    full.tell(row, "/dev/full")
    if kind == "fastfwd":
        row.held(books(running)[0] == 0, "lines counted as written to /dev/full")
    aftermath.judge()


def unobserved(start: StartForwarder, config: str, **options: object) -> Aftermath:
    """Start C rinetd, which has no exporter."""
    return Aftermath(start(config, **options))


TABS = 8
"""In a line of rinetd's format."""


# 29. Nobody reads.


@pytest.mark.row(
    29,
    "who reads the log through a FIFO is stopped, then goes on",
    "every connection is served meanwhile; every line arrives, whole",
)
@BOTH
def test_the_reader_stands_still(
    row: Row, kind: Kind, watched: StartWatched, answering: Apart, tmp_path: Path
) -> None:
    fifo, read = tmp_path / "fifo", tmp_path / "read"
    os.mkfifo(fifo)
    address = ("127.0.0.1", free_port())
    config = f"127.0.0.1 {address[1]} {answering.host} {answering.port}\nlogfile {fifo}\n"
    with read.open("wb") as out, subprocess.Popen([require_peer("cat"), str(fifo)], stdout=out) as reader:
        try:
            running = watched(config, kind=kind).running
            running.log_path = read
            before = Knocks(kind, address, scaled(500, 4000)).run()
            before.tell(row, "while it reads")
            os.kill(reader.pid, signal.SIGSTOP)
            stopped = Knocks(kind, address, scaled(1000, 6000)).run()
            stopped.tell(row, "while it is stopped")
            os.kill(reader.pid, signal.SIGCONT)
            lines = 2 * (len(before.took) + len(stopped.took))
            with suppress(AssertionError):  # told below
                until(lambda: logged(running) >= lines, 10)
            row.held(logged(running) == lines, f"{logged(running)} of {lines} lines")
        finally:
            reader.kill()
    row.figure("served while it is stopped", len(stopped.took))
    row.figure("99th percentile while it reads", before.slowest, "ms")
    row.figure("while it is stopped", stopped.slowest, "ms")


def logged(running: Forwarder) -> int:
    """How many lines its log has."""
    return running.log_path.read_bytes().count(b"\n") if running.log_path.exists() else 0


# 30. Rotation.


@pytest.mark.row(
    30,
    "the log is rotated under load, by rename and SIGHUP, by copytruncate",
    "every connection is served; by rename no line is lost; nowhere a hole or half a line",
)
@BOTH
def test_the_log_is_rotated(
    row: Row, kind: Kind, watched: StartWatched, answering: Apart, tmp_path: Path
) -> None:
    address = ("127.0.0.1", free_port())
    config = f"127.0.0.1 {address[1]} {answering.host} {answering.port}\n"
    rotations = scaled(5, 40)
    running = watched(config, kind=kind).running
    log = running.log_path
    old: list[Path] = []
    with Knocks(kind, address, 200 * rotations) as knocks:
        while len(old) < rotations and due(running, knocks):
            old.append(log.with_suffix(f".{len(old)}"))
            log.rename(old[-1])
            running.hup()
            until(log.exists, what="a new log")
    knocks.tell(row, "rename")
    row.figure("lines", 2 * knocks.rate, "/s")
    lines = 2 * len(knocks.took)
    with suppress(AssertionError):  # told below
        until(lambda: sum(each.read_bytes().count(b"\n") for each in (*old, log)) >= lines)
    running.log_path = tmp_path / f"{kind}-all"
    running.log_path.write_bytes(b"".join(each.read_bytes() for each in (*old, log)))
    row.held(running.running(), f"rename: it ended with {running.process.returncode}")
    row.held(len(old) == rotations, f"rename: {len(old)} rotations in the time of {rotations}")
    row.held(logged(running) == lines, f"rename: {logged(running)} lines of {lines}")
    row.figure("lines lost by rename", lines - logged(running))
    whole(row, "rename", running.log_path)
    running.close()

    aftermath = watched(config, kind=kind)
    aftermath.sessions_lost = True  # lines are: those between copy and truncation
    running = aftermath.running
    log = running.log_path
    old = []
    with Knocks(kind, address, 200 * rotations) as knocks:
        while len(old) < rotations and due(running, knocks):
            old.append(log.with_suffix(f".{len(old)}"))
            shutil.copyfile(log, old[-1])
            os.truncate(log, 0)
    knocks.tell(row, "copytruncate")
    row.held(len(old) == rotations, f"copytruncate: {len(old)} rotations in the time of {rotations}")
    for each in (*old, log):
        whole(row, "copytruncate", each)


def due(running: Forwarder, knocks: Knocks) -> bool:
    """Wait until the log is worth a rotation; false if it does not come to that."""
    until(lambda: logged(running) >= 100 or not knocks.running(), 20)
    return knocks.running()


def whole(row: Row, what: str, log: Path) -> None:
    """Judge the lines of a log that has been rotated."""
    data = log.read_bytes()
    crooked = [line for line in data.splitlines() if line.count(b"\t") != TABS]
    row.held(b"\0" not in data, f"{what}: a hole")
    row.held(not crooked, f"{what}: {len(crooked)} lines like {crooked[:1]}")


# 31. Clocks.

LIMIT = 2.0
"""Seconds of silence, and for a dial."""

JUMPS = (1, -2, 365, -400, 40)
"""Days, one after the other."""

DAY = 86_400

KOLKATA = Path("/usr/share/zoneinfo/Asia/Kolkata")


class Clock:
    """The wall clock of programs that are started with `env`, which can be put ahead.

    The interpreter runs sitecustomize.py before any program (site in Python's library). What
    Python's own time() says is all that a program of it knows of the wall clock.
    """

    def __init__(self, directory: Path) -> None:
        self.ahead = directory / "ahead"
        self.ahead.write_bytes(bytes(8))
        (directory / "sitecustomize.py").write_text(
            textwrap.dedent(f"""
                import mmap, struct, time

                with open({str(self.ahead)!r}, "rb") as found:
                    shared = mmap.mmap(found.fileno(), 8, access=mmap.ACCESS_READ)
                real, real_ns = time.time, time.time_ns
                time.time = lambda: real() + struct.unpack("d", shared)[0]
                time.time_ns = lambda: real_ns() + int(struct.unpack("d", shared)[0] * 1e9)
            """)
        )
        self.env = {"PYTHONPATH": str(directory)}

    def jump(self, days: float) -> None:
        """Go ahead, or back, from where it stands."""
        with self.ahead.open("r+b") as file:
            (stands,) = struct.unpack("d", file.read(8))
            file.seek(0)
            file.write(struct.pack("d", stands + days * DAY))


@pytest.mark.row(
    31,
    "the wall clock jumps by up to 400 days, forth and back; the time zone changes",
    "no silence or dial ends early or late, no call fails, no worker is taken for dead",
)
def test_the_clock_jumps(row: Row, watched: StartWatched, tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    earliest, latest = 1e9, 0.0
    with Sandbox() as inside, serve_apart("echo") as behind, blackhole() as hole:
        port, lost = free_port(), free_port()
        running = inside.call(
            watched,
            f"127.0.0.1 {port} {behind.host} {behind.port}\n127.0.0.1 {lost} {hole.host} {hole.port}\n"
            f"idle-timeout {LIMIT:.0f}\nconnect-timeout {LIMIT:.0f}\n",
            env=clock.env,
        ).running
        workers = running.workers()
        with Load(("127.0.0.1", port), scaled(50, 200)) as load:
            load.open_streams(scaled(4, 16))
            for number in range(scaled(1, 12)):
                waits = []
                for days in JUMPS:
                    for address in (("127.0.0.1", port), ("127.0.0.1", lost)):
                        waits.append(Wait(address))
                        clock.jump(days / 2)
                    if KOLKATA.exists() and days == JUMPS[2]:
                        inside.replace(Path("/etc/localtime"), KOLKATA)
                    clock.jump(days / 2)
                    load.more(5)
                until(partial(over, waits), 5 * LIMIT, "the ends")
                for each in waits:
                    # Of a limit of silence up to a quarter more is documented.
                    good = LIMIT - 0.05 <= each.took <= 1.25 * LIMIT + deadline.seconds(1)
                    row.held(good, f"round {number}: {each.address} ended after {each.took:.2f} s")
                    earliest, latest = min(earliest, each.took), max(latest, each.took)
            load.stop()
            row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
            row.tried(len(load.streams), [f"{each}" for each in load.streams if each.how != "ok"])
        row.held(running.workers() == workers, f"{workers} became {running.workers()}")
        years = {line[7:11] for line in running.log_lines()}
        assert len(years) > 1, "the clock of the program has not jumped"
    row.figure("earliest end of 2 s", earliest, "s")
    row.figure("latest", latest, "s")


class Wait:
    """A client that says nothing more and waits for its end."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.took = 0.0
        self._began = time.monotonic()
        self._client = connect(address)
        self._client.setblocking(False)

    def over(self) -> bool:
        """Whether the end has come."""
        if not self.took:
            try:
                assert self._client.recv(1) == b""
            except BlockingIOError:
                return False
            self.took = time.monotonic() - self._began
            self._client.close()
        return True


def over(waits: list[Wait]) -> bool:
    """Whether all of them are over; each is looked at."""
    return sum(each.over() for each in waits) == len(waits)


@contextmanager
def blackhole() -> Iterator[Listener]:
    """A backend whose queue is full: the kernel drops who else comes."""
    with Listener(backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.address)
        yield full
        for each in waiting:
            each.close()
