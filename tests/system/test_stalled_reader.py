"""A reader that stops reading: the sender is held back, nothing piles up, nothing spins, nothing is lost.

Whatever the reader does not take stays in the kernel's buffers of the two connections
and in one pipe or one buffer of the worker; then the sender has to wait too.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.apart import apart, said, say
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.sockets import (
    Listener,
    connect,
    finish,
    noise,
    queued,
    read_to_end,
    sha256,
    unsent,
)
from tests.system.conftest import Pair, Route, StartRoute

KIB, MIB = 1 << 10, 1 << 20
GIGABYTE = 1_000_000_000

WORKER_GROWTH = 1 * MIB
"""What one stalled session may cost a worker's memory. Measured: 0.2 MiB, none of it for the bytes."""

SESSION_GROWTH = 72 * KIB
"""What each of many stalled sessions may cost: the one buffer of 64 KiB that may have been
read and not sent, and 8 KiB of bookkeeping. Measured: 7 KiB."""

MANY = 200
"""Sessions that stall together."""

ETHERNET = 1448
"""Payload of a segment on a real network. Loopback's 64 KiB make the kernel allow every
connection megabytes of buffers from the start, which 200 of them need not have here."""

PATTERN = 1_000_003
"""Length of the repeating noise: a prime, so that no lost or doubled buffer fits into it."""

OFFSET = 4099
"""How much further into the noise each of many sessions begins than the one before it."""

DIRECTIONS = pytest.mark.parametrize("reader", ["backend", "client"])
"""Who stops reading."""


def ends(pair: Pair, reader: str) -> tuple[socket.socket, socket.socket]:
    """The sender and the reader."""
    return (pair.client, pair.backend) if reader == "backend" else (pair.backend, pair.client)


def private_memory(pid: int) -> int:
    """Bytes that `pid` shares with nobody (proc_pid_smaps(5)): not what it was forked with."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE)) * KIB


def kernel_room() -> int:
    """The most that the kernel's buffers take between a sender and its reader.

    A send and a receive buffer for each of the two connections (tcp(7)), and a pipe of
    64 slots that hold at most a page fragment, 64 KiB, each.
    """
    most = [int(Path(f"/proc/sys/net/ipv4/tcp_{way}mem").read_text().split()[2]) for way in "rw"]
    return 2 * sum(most) + 64 * 64 * KIB


def settled(figure: Callable[[], int], looks: int = 10) -> None:
    """Wait until `figure` has been the same `looks` times in a row."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(figure())
        return len(seen) >= looks and len(set(seen[-looks:])) == 1

    until(look, 20, "everything to stand still")


def fill(sender: socket.socket, most: int) -> int:
    """Send until nothing has gone for a while, or `most` bytes have; returns how many."""
    pattern = memoryview(noise(PATTERN) * 2)
    sent = 0
    patience = sender.gettimeout()
    sender.setblocking(False)

    def push() -> int:
        nonlocal sent
        try:
            while sent < most:
                start = sent % PATTERN
                sent += sender.send(pattern[start : start + min(PATTERN, most - sent)])
        except BlockingIOError:
            pass
        return sent

    settled(push, 20)
    sender.settimeout(patience)
    return sent


def pattern_digest(size: int) -> str:
    """The SHA-256 of `size` bytes that `fill` sends."""
    digest = hashlib.sha256()
    for _ in range(size // PATTERN):
        digest.update(noise(PATTERN))
    digest.update(noise(PATTERN)[: size % PATTERN])
    return digest.hexdigest()


def slim(end: socket.socket) -> socket.socket:
    """Give a client before it connects, or a listener for what it accepts, the segments of
    a network and small buffers; returns it."""
    end.settimeout(deadline.seconds(20))
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, ETHERNET)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    return end


@contextmanager
def slim_pair(here: Route) -> Iterator[Pair]:
    """A session whose two ends are slim; the route's listener must be."""
    with slim(socket.socket()) as client:
        client.connect(here.address)
        with here.listener.accept() as backend:
            yield Pair(client, backend)


# One stalled session.


@DIRECTIONS
def test_the_sender_has_to_wait(route: StartRoute, reader: str) -> None:
    """Of a gigabyte no more is taken from the sender than the kernel's buffers hold."""
    with route().pair() as pair:
        sender, _ = ends(pair, reader)
        assert fill(sender, GIGABYTE) <= kernel_room() < GIGABYTE


@DIRECTIONS
def test_what_was_held_arrives(route: StartRoute, reader: str) -> None:
    """Once the reader reads again it gets every byte that the sender was rid of, and the end."""
    with route().pair() as pair:
        sender, receiver = ends(pair, reader)
        sent = fill(sender, GIGABYTE)
        finish(sender)
        data = read_to_end(receiver).data
        assert (len(data), sha256(data)) == (sent, pattern_digest(sent))


@DIRECTIONS
def test_memory_while_stalled(route: StartRoute, reader: str) -> None:
    """The worker's own memory grows by no more than WORKER_GROWTH."""
    here = route()
    here.turn()
    before = private_memory(here.forwarder.worker())
    with here.pair() as pair:
        fill(ends(pair, reader)[0], GIGABYTE)
        assert private_memory(here.forwarder.worker()) - before <= WORKER_GROWTH


def busy(pid: int, seconds: float = 2) -> float:
    """The share of the next `seconds` that `pid` spends on a processor."""
    before, begin = processes.stat(pid), time.monotonic()
    until(lambda: time.monotonic() >= begin + seconds, seconds + 5, "the clock")
    after, end = processes.stat(pid), time.monotonic()
    assert before is not None
    assert after is not None
    return (after.cpu - before.cpu) / (end - begin)


@DIRECTIONS
def test_a_worker_does_not_spin_while_stalled(route: StartRoute, reader: str) -> None:
    """With a full path it uses less than 5 % of a processor over 2 s."""
    here = route()
    with here.pair() as pair:
        fill(ends(pair, reader)[0], GIGABYTE)
        assert busy(here.forwarder.worker()) < 0.05


def unread(here: Route, pair: Pair, reader: str) -> int:
    """Bytes that the worker has not read from its sender: the receive queue in proc(5), net/tcp."""
    near, far = (
        (here.address[1], pair.client.getsockname()[1])
        if reader == "backend"
        else (pair.backend.getpeername()[1], here.listener.port)
    )
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (near, far):
            return int(queues.partition(":")[2], 16)
    return 0


@DIRECTIONS
def test_a_worker_does_not_spin_on_an_end_it_cannot_reach(route: StartRoute, reader: str) -> None:
    """The FIN of a sender whose bytes cannot go on is announced by epoll: still less than 5 % over 2 s."""
    here = route()
    slim(here.listener.socket)
    with slim_pair(here) as pair:
        sender, receiver = ends(pair, reader)
        sent = 0
        # Full as seen from the worker, but not so full that the FIN could not get there.
        while not unread(here, pair, reader):
            data = noise(PATTERN)[:16_000]
            sender.sendall(data)
            sent += len(data)
            settled(lambda: unread(here, pair, reader), 3)
        finish(sender)
        until(lambda: unsent(sender) == 0, what="the FIN to arrive")
        assert busy(here.forwarder.worker()) < 0.05
        assert len(read_to_end(receiver).data) == sent


# A gigabyte for a reader that stops and goes.


@dataclass(frozen=True, slots=True)
class Passage:
    """What came of a gigabyte: its size and digest at both ends, how often the reader
    stalled, and the most that the worker's memory grew meanwhile."""

    sent: tuple[int, str]
    received: tuple[int, str]
    stalls: int
    growth: int


def stop_and_go(receiver: socket.socket, pid: int) -> tuple[tuple[int, str], int, int]:
    """Read to the end, with stalls of 1 to 64 MiB apart in which everything comes to a stop.

    Returns (size, digest), the number of stalls, and the most that the memory of `pid`
    grew over what it was at first.
    """
    rng = random.Random(1)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MIB))
    size = stalls = growth = 0
    before = private_memory(pid)
    while True:
        go = rng.randint(1 * MIB, 64 * MIB)
        while go > 0:
            count = receiver.recv_into(buffer[: min(go, MIB)])
            if not count:
                return (size, digest.hexdigest()), stalls, growth
            digest.update(buffer[:count])
            size += count
            go -= count
        settled(lambda: queued(receiver))
        stalls += 1
        growth = max(growth, private_memory(pid) - before)


@pytest.fixture(scope="module", params=["backend", "client"])
def passage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Passage:
    """A gigabyte through one worker to a backend, or a client, that stops and goes."""
    port = free_port()
    with ExitStack() as stack:
        if request.param == "backend":
            listener = stack.enter_context(Listener())
            target = listener.port
        else:
            process = stack.enter_context(apart(__name__, "listen", 0))
            target = int(said(process))
        config = f"127.0.0.1 {port} 127.0.0.1 {target}\n"
        forwarder = stack.enter_context(Forwarder(tmp_path_factory.mktemp("passage"), config, workers=1))
        if request.param == "backend":
            process = stack.enter_context(apart(__name__, "connect", port))
            receiver = stack.enter_context(listener.accept())
        else:
            receiver = stack.enter_context(connect(("127.0.0.1", port)))
        received, stalls, growth = stop_and_go(receiver, forwarder.worker())
        receiver.close()
        size, digest = said(process).split()
        assert process.wait(deadline.seconds(10)) == 0
        return Passage((int(size), digest), received, stalls, growth)
    raise AssertionError("unreachable")


def test_a_gigabyte_for_a_reader_that_stops_and_goes(passage: Passage) -> None:
    """Every byte arrives, in order, however often the reader stalls."""
    assert passage.stalls >= 10
    assert passage.received == passage.sent
    assert passage.sent[0] == GIGABYTE


def test_memory_over_a_gigabyte(passage: Passage) -> None:
    """In no stall has the worker's own memory grown by more than WORKER_GROWTH."""
    assert passage.growth <= WORKER_GROWTH


# Many stalled sessions.


@dataclass(frozen=True, slots=True)
class Crowd:
    """MANY stalled sessions: the route, the pairs, bytes sent on each, memory for all of them together."""

    route: Route
    pairs: list[Pair]
    sent: list[int]
    growth: int


@pytest.fixture
def crowd(route: StartRoute) -> Iterator[Crowd]:
    """MANY clients whose backend reads nothing, all held back."""
    here = route()
    here.turn()
    slim(here.listener.socket)
    worker = here.forwarder.worker()
    before = private_memory(worker)
    with ExitStack() as stack:
        pairs = [stack.enter_context(slim_pair(here)) for _ in range(MANY)]
        sent = [0] * MANY
        pattern = memoryview(noise(PATTERN) * 2)
        for pair in pairs:
            pair.client.setblocking(False)

        def push() -> int:
            for number, pair in enumerate(pairs):
                try:
                    while sent[number] < GIGABYTE:
                        start = (number * OFFSET + sent[number]) % PATTERN
                        sent[number] += pair.client.send(pattern[start : start + 64 * KIB])
                except BlockingIOError:
                    continue
            return sum(sent)

        settled(push, 20)
        yield Crowd(here, pairs, sent, private_memory(worker) - before)


def test_memory_of_many_stalled_sessions(crowd: Crowd) -> None:
    """Each costs the worker no more than SESSION_GROWTH."""
    assert crowd.growth <= MANY * SESSION_GROWTH


def test_others_are_served_beside_many_stalled_sessions(crowd: Crowd) -> None:
    """New sessions of the same worker work both ways."""
    for _ in range(10):
        crowd.route.turn()


def test_many_stalled_sessions_use_no_processor(crowd: Crowd) -> None:
    """All of them together cost less than 5 % of a processor over 2 s."""
    assert busy(crowd.route.forwarder.worker()) < 0.05


def test_many_stalled_sessions_lose_nothing(crowd: Crowd) -> None:
    """When the backend reads, each session's bytes arrive in full, and only its own."""
    for number, (pair, sent) in enumerate(zip(crowd.pairs, crowd.sent, strict=True)):
        pair.client.settimeout(deadline.seconds(20))
        finish(pair.client)
        start = number * OFFSET
        whole = noise(PATTERN) * (2 + (start + sent) // PATTERN)
        assert read_to_end(pair.backend).data == whole[start : start + sent]


def send_a_gigabyte(connection: socket.socket) -> None:
    """The sender's process: pieces of every size, the end, a line with size and digest."""
    pattern = memoryview(noise(PATTERN) * 2)
    rng = random.Random(2)
    digest = hashlib.sha256()
    sent = 0
    while sent < GIGABYTE:
        start = sent % PATTERN
        piece = pattern[start : start + min(rng.choice((1, 1000, 65_536, PATTERN)), GIGABYTE - sent)]
        connection.sendall(piece)
        digest.update(piece)
        sent += len(piece)
    finish(connection)
    say(f"{sent} {digest.hexdigest()}")
    connection.recv(1)


def main() -> None:
    """`connect PORT`, or `listen 0`, which says its port first: send a gigabyte."""
    how, port = sys.argv[1:]
    if how == "connect":
        with connect(("127.0.0.1", int(port))) as connection:
            send_a_gigabyte(connection)
        return
    with Listener() as listener:
        say(listener.port)
        with listener.accept() as connection:
            send_a_gigabyte(connection)


if __name__ == "__main__":
    main()
