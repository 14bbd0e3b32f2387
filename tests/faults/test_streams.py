"""Rows 10 to 16: ends, resets, backends that are not there, readers that do not read.

HAProxy's log has words of its own: row 13 judges only how its clients are closed.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final, ParamSpec

import pytest

from tests import deadline, processes
from tests.deadline import until
from tests.faults.conftest import StartWatched, compared
from tests.faults.row import Row, scaled
from tests.forwarder import Forwarder, Kind
from tests.load import Call, Load
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import (
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    read_exactly,
    read_to_end,
    reset,
    unsent,
)
from tests.system.conftest import Pair, Route
from tests.system.namespaces import Sandbox
from tests.system.test_reset import ends
from tests.system.test_stalled_reader import (
    KIB,
    MIB,
    OFFSET,
    PATTERN,
    private_memory,
    settled,
    slim,
    slim_pair,
    unread,
)

SIDES: Final = ("client", "backend")

PATIENCE: Final = 5.0
"""Seconds that one move of a try may take: there are programs that never make it."""

P = ParamSpec("P")


def attempt(row: Row, name: str, work: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> None:
    """One try. `work` answers what was wrong, if anything; a socket's error and a deadline that
    is over are wrong, too."""
    try:
        wrong = work(*args, **kwargs)
    except (AssertionError, OSError) as error:
        wrong = repr(error)
    row.held(not wrong, f"{name}: {wrong}")


def begin(watched: StartWatched, kind: Kind, listener: Listener, extra: str = "") -> Route:
    """A program with a forward to `listener`, and patience for what it may never do."""
    port = free_port()
    config = f"127.0.0.1 {port} {listener.host} {listener.port}\n{extra}"
    return Route(watched(config, kind=kind).running, ("127.0.0.1", port), listener)


@contextmanager
def pairs(here: Route, count: int) -> Iterator[list[Pair]]:
    """So many sessions, with no more than PATIENCE."""
    with ExitStack() as stack:
        found = [stack.enter_context(here.pair()) for _ in range(count)]
        for pair in found:
            pair.client.settimeout(deadline.seconds(PATIENCE))
            pair.backend.settimeout(deadline.seconds(PATIENCE))
        yield found


def wait_for(moment: float) -> None:
    """Until then, on the monotonic clock."""
    until(lambda: time.monotonic() >= moment, moment - time.monotonic() + 5)


def let_pass(seconds: float) -> None:
    """Time that belongs to the fault."""
    wait_for(time.monotonic() + seconds)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` of them are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Stream:
    """What `end` sends: repeating noise, from a place of its own, so that no two streams are alike."""

    TWICE: Final = memoryview(noise(PATTERN) * 2)

    def __init__(self, end: socket.socket, number: int) -> None:
        self.end = end
        self.first = number * OFFSET % PATTERN
        self.sent = 0

    def send(self, size: int) -> bool:
        """Up to `size` bytes more, at most PATTERN; false when the kernel takes none now."""
        start = (self.first + self.sent) % PATTERN
        try:
            self.sent += self.end.send(self.TWICE[start : start + size])
        except BlockingIOError:
            return False
        return True

    def begins(self, data: bytes) -> bool:
        """Whether the stream begins with `data`."""
        whole = noise(PATTERN) * (1 + (self.first + len(data)) // PATTERN)
        return len(data) <= self.sent and whole.startswith(data, self.first)

    def differs(self, ending: Ending) -> str:
        """How what has arrived of it is not what was sent, and its end; "" if it is."""
        whole = len(ending.data) == self.sent and ending.how == "EOF" and self.begins(ending.data)
        return "" if whole else f"{self.sent} bytes sent, {ending}"


# Row 10.


@pytest.mark.row(
    10,
    "one side has finished; the other answers with 1 MiB, a second later",
    "the end is passed on, the whole answer arrives",
)
@compared("rinetd", "haproxy")
def test_half_close(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """From both sides in turn."""
    here = begin(watched, kind, listener)
    delays: list[float] = []

    def heard(one: socket.socket, other: socket.socket) -> str:
        began = time.monotonic()
        finish(one)
        if other.recv(1) != b"":
            return "bytes from nowhere"
        delays.append(time.monotonic() - began)
        return ""

    def answered(one: socket.socket, other: socket.socket, data: bytes) -> str:
        with Sending(other, data):
            ending = read_to_end(one)
        return "" if ending == Ending(data, "EOF") else f"the answer: {ending}"

    for batch in range(scaled(2, 20)):
        side = SIDES[batch % 2]
        with pairs(here, scaled(10, 50)) as found:
            for number, pair in enumerate(found):
                attempt(row, f"{batch}.{number}: the {side}'s end", heard, *ends(pair, side))
            let_pass(scaled(0, 1))
            for number, pair in enumerate(found):
                data = noise(MIB, number % 8)
                attempt(row, f"{batch}.{number}: the {side} finished", answered, *ends(pair, side), data)
    row.figure("a FIN is passed on in (p99)", percentile(delays, 0.99) * 1000, "ms")


# Row 11.


@pytest.mark.row(
    11,
    "a reset in mid-stream, from client or backend",
    "the other side is reset too, after a true part of the bytes: never a clean end",
)
@compared("rinetd", "haproxy")
def test_resets(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """Of a side that is quiet, that is sending, that is hearing the other one."""
    here = begin(watched, kind, listener)
    delays: list[float] = []
    rng = random.Random(11)
    much = noise(MIB) * 64

    def quiet(one: socket.socket, other: socket.socket, number: int) -> str:
        data = noise(rng.randint(1, 100_000), number % 8)
        with Sending(one, data, finish=False):
            if read_exactly(other, len(data)) != data:
                return "wrong bytes"
        began = time.monotonic()
        reset(one)
        ending = read_to_end(other)
        delays.append(time.monotonic() - began)
        return "" if ending == Ending(b"", "ECONNRESET") else f"{ending}"

    def sending(one: socket.socket, other: socket.socket, number: int) -> str:
        stream = Stream(one, number)
        one.setblocking(False)
        while stream.send(PATTERN):
            pass
        reset(one)
        ending = read_to_end(other)
        return "" if ending.how == "ECONNRESET" and stream.begins(ending.data) else f"{ending}"

    def hearing(one: socket.socket, other: socket.socket, number: int) -> str:
        with Sending(other, much, finish=False) as away:
            read_exactly(one, 1 + number)
            reset(one)
            ending = read_to_end(other)
        # Whichever call is the first to meet a reset is the only one to be told (tcp(7), SO_ERROR).
        told = away.error is not None or ending.how == "ECONNRESET"
        return "" if told else f"all of {len(much)} bytes were taken, then {ending}"

    for number in range(scaled(18, 1002)):
        move = (quiet, sending, hearing)[number // 2 % 3]
        side = SIDES[number % 2]
        with pairs(here, 1) as (pair,):
            attempt(row, f"{number}: the {side}, {move.__name__}", move, *ends(pair, side), number)
    if delays:
        row.figure("a reset is passed on in (median)", percentile(delays, 0.5) * 1000, "ms")
        row.figure("p99", percentile(delays, 0.99) * 1000, "ms")


# Row 12.


def wait_until_taken(senders: list[socket.socket]) -> None:
    """Until the forwarder's kernel has all that they have sent."""
    until(lambda: not any(map(unsent, senders)), what="the bytes to be taken")


@pytest.mark.row(
    12,
    "bytes with a FIN, or with a reset, in one burst",
    "all the bytes arrive, then the end that was sent",
)
@compared("rinetd", "haproxy")
def test_bursts(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """The program is stopped while they come, so that it meets both in one event."""
    here = begin(watched, kind, listener)
    rng = random.Random(12)

    def spoke(stream: Stream, other: socket.socket, how: str) -> str:
        ending = read_to_end(other)
        whole = len(ending.data) == stream.sent and stream.begins(ending.data) and ending.how == how
        return "" if whole else f"{stream.sent} bytes and {how} sent, {ending}"

    for batch in range(scaled(4, 200)):
        side, how = SIDES[batch % 2], ("EOF", "ECONNRESET")[batch // 2 % 2]
        with pairs(here, scaled(25, 50)) as found:
            for pair in found:
                here.greet(pair)
            spoken: list[tuple[Stream, socket.socket]] = []
            with processes.stopped(*here.forwarder.serving()):
                for number, pair in enumerate(found):
                    one, other = ends(pair, side)
                    stream = Stream(one, number)
                    stream.send(rng.choice((1, 5, 1000, 16_384, 60_000)))
                    spoken.append((stream, other))
                wait_until_taken([stream.end for stream, _ in spoken])
                for stream, _ in spoken:
                    if how == "EOF":
                        finish(stream.end)
                    else:
                        reset(stream.end)
            for number, (stream, other) in enumerate(spoken):
                attempt(row, f"{batch}.{number}, by the {side}", spoke, stream, other, how)


# Rows 13 and 14, in a network of their own. Forward number N listens on LISTEN + N and goes to TARGET + N.

LISTEN: Final = 5000
TARGET: Final = 6000

REFUSALS: Final = {
    "a reset": "tcp reset",
    "port unreachable": "icmp type port-unreachable",
    "host unreachable": "icmp type host-unreachable",
    "net unreachable": "icmp type net-unreachable",
    "prohibited": "icmp type admin-prohibited",
}
"""How a backend's host, or a router before it, says no (nft(8), reject)."""


def block(inside: Sandbox, verdicts: Iterable[str]) -> str:
    """In `inside`, what comes for TARGET + N meets verdict number N. Returns the forwards' lines."""
    inside.run("nft", "add table ip faults")
    inside.run("nft", "add chain ip faults in { type filter hook input priority 0 ; }")
    lines = ""
    for number, verdict in enumerate(verdicts):
        inside.run("nft", f"add rule ip faults in tcp dport {TARGET + number} {verdict}")
        lines += f"127.0.0.1 {LISTEN + number} 127.0.0.1 {TARGET + number}\n"
    return lines


def words(running: Forwarder, port: int, count: int) -> list[str]:
    """The last words of the sessions of the forward on `port`, once there are `count` of them;
    none if there are fewer after all PATIENCE."""

    def look() -> list[str]:
        found = [
            line["outcome"]
            for line in running.log_columns()
            if line["listen_port"] == str(port) and line["outcome"] != "opened"
        ]
        return found if len(found) >= count else []

    try:
        return until(look, PATIENCE, f"the last words of {count} sessions")
    except AssertionError:
        return []


@pytest.mark.row(
    13,
    "the backend refuses, or ICMP says that it cannot be reached",
    "the client is closed without a byte, the log has `local-connect-failed`",
)
@compared("rinetd", "haproxy")
def test_refusals(row: Row, kind: Kind, watched: StartWatched) -> None:
    """In each of the ways there are."""
    count = scaled(10, 100)

    def knock(port: int) -> tuple[str, float]:
        began = time.monotonic()
        with connect(("127.0.0.1", port)) as client:
            client.settimeout(deadline.seconds(PATIENCE))
            try:
                ending = read_to_end(client)
            except TimeoutError:
                ending = Ending(b"", "nothing")
        closed = ending.how != "nothing" and not ending.data
        return "" if closed else f"{ending}", time.monotonic() - began

    ports = [LISTEN + number for number in range(len(REFUSALS))]

    def knock_often() -> list[tuple[str, float]]:
        with ThreadPoolExecutor(10 * len(ports)) as pool:
            return list(pool.map(knock, ports * count))

    with Sandbox(network=True) as inside:
        lines = block(inside, [f"reject with {way}" for way in REFUSALS.values()])
        running = inside.call(watched, lines, kind=kind).running
        everywhere = inside.call(knock_often)
        for number, way in enumerate(REFUSALS):
            answers = everywhere[number :: len(ports)]
            broken = [f"{way}: {wrong}" for wrong, _ in answers if wrong]
            if kind != "haproxy":
                said = words(running, ports[number], count)
                right = [word.startswith("local-connect-failed") for word in said]
                broken += [f"{way}: the log does not say so"] * (count - right.count(True))
            row.tried(count, broken)
            row.figure(f"{way}, slowest", max(took for _, took in answers) * 1000, "ms")


def endings(clients: list[socket.socket], seconds: float) -> dict[socket.socket, float]:
    """Which of `clients` come to an end within `seconds`, and when."""
    found: dict[socket.socket, float] = {}
    over = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ, client)
        while selector.get_map() and (left := over - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not read_to_end(key.data).data:
                    found[key.data] = time.monotonic()
                selector.unregister(key.data)
    return found


LEFT: Final = {"fastfwd": "done-remote-closed", "rinetd": "done-remote-closed", "haproxy": " CD "}
"""What the log says of a client that left while its backend was dialled."""


@pytest.mark.row(
    14,
    "the backend answers nothing, `connect-timeout 2`",
    "closed after that time; a client that resets ends the dial before it",
)
@compared("rinetd", "haproxy")
def test_black_holes(row: Row, kind: Kind, watched: StartWatched) -> None:
    """Some clients leave at once, the others wait. HAProxy logs a session at its end only."""
    count = scaled(20, 500)
    limit = 2.0
    patience = scaled(3, 20) if kind == "rinetd" else 20
    with Sandbox(network=True) as inside, ExitStack() as stack:
        config = block(inside, ["drop"]) + ("" if kind == "rinetd" else "connect-timeout 2\n")
        running: Forwarder = inside.call(watched, config, kind=kind).running

        def come() -> list[socket.socket]:
            return [stack.enter_context(connect(("127.0.0.1", LISTEN))) for _ in range(count)]

        before = running.descriptors()
        leaving = inside.call(come)
        if kind == "haproxy":
            until(lambda: running.descriptors() >= before + 2 * count, what="the dials")
        else:
            running.wait_log(count, "opened")
        began = time.monotonic()
        for client in leaving:
            reset(client)

        def cancelled() -> int:  # the word tells it from a dial that timed out
            return running.log_text().count(LEFT[kind])

        try:
            until(lambda: cancelled() >= count and running.descriptors() <= before, patience)
            row.figure("descriptors of clients that left are back after", time.monotonic() - began, "s")
        except AssertionError:
            pass  # what is still held is said below
        row.tried(count, ["not cancelled"] * (count - cancelled()))
        held = running.descriptors() - before
        row.held(held <= 0, f"{held} descriptors are held for clients that left")

        began = time.monotonic()
        waiting = inside.call(come)
        ended = endings(waiting, deadline.seconds(patience))
        row.tried(count, ["not closed"] * (count - len(ended)))
        if ended:
            times = [when - began for when in ended.values()]
            row.tried(0, [f"closed after {each:.2f} s" for each in times if each < 0.9 * limit])
            row.figure("the first is closed after", min(times), "s")
            row.figure("the last", max(times), "s")


# Rows 15 and 16.

STALLED: Final = 80 * KIB
"""What a stalled session may cost: the one buffer of 64 KiB that was read and not sent, and bookkeeping."""


def duration(call: Call) -> float:
    """In seconds."""
    return call.ended - call.began


@pytest.mark.row(
    15,
    f"{scaled(50, 500)} readers that do not read, clients and backends",
    "their senders wait, each costs no more than 80 KiB of memory, others are served, no byte is lost",
)
@compared("rinetd", "haproxy")
def test_stalled_readers(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """Beside short connections through the same workers."""
    count, calls = scaled(50, 500), scaled(50, 2000)
    other = free_port()
    slim(listener.socket)
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        here = begin(watched, kind, listener, f"127.0.0.1 {other} {backend.host} {backend.port}\n")
        load = stack.enter_context(Load(("127.0.0.1", other), scaled(50, 200)))
        load.more(calls, 60)
        alone = list(load.calls)

        pids = here.forwarder.serving()
        before = sum(map(private_memory, pids))
        streams = []
        for number in range(count):
            pair = stack.enter_context(slim_pair(here))
            sender, reader = ends(pair, SIDES[number % 2])
            sender.setblocking(False)
            streams.append((Stream(sender, number), reader))

        def push() -> int:
            for stream, _ in streams:
                while stream.send(64 * KIB):
                    pass
            return sum(stream.sent for stream, _ in streams)

        settled(push, 20)
        grown = (sum(map(private_memory, pids)) - before) / count
        row.figure("memory of each", grown / KIB, "KiB")
        row.held(grown <= STALLED, f"each costs {grown / KIB:.0f} KiB")

        seen = len(load.calls)
        load.more(calls, 60)
        beside = load.calls[seen:]
        load.stop()
        if kind != "rinetd":  # it answers none of these calls: they end with a half close (row 10)
            row.figure("others' calls (p99) before", percentile(map(duration, alone), 0.99) * 1000, "ms")
            row.figure("and beside them", percentile(map(duration, beside), 0.99) * 1000, "ms")
            row.tried(len(load.calls), [f"a call: {call.how}" for call in load.failed()])

        def released(stream: Stream, reader: socket.socket) -> str:
            finish(stream.end)
            return stream.differs(read_to_end(reader))

        for number, (stream, reader) in enumerate(streams):
            attempt(row, f"stream {number}", released, stream, reader)


@pytest.mark.row(
    16,
    "a trickle of 1 to 100 bytes at a time for a backend that does not read",
    "next to no processor time while it stalls (2 %); once it reads, every byte arrives",
)
@compared("rinetd", "haproxy")
def test_trickle(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """First slowly, on one of many; then on all of them until they can send no more."""
    rng = random.Random(16)
    seconds, rate = scaled(2, 5), 200
    slim(listener.socket)
    here = begin(watched, kind, listener)
    pids = here.forwarder.serving()

    def busy() -> float:
        return sum(processes.busy(pid) for pid in pids)

    with pairs(here, scaled(4, 16)) as found:
        streams = [Stream(pair.client, number) for number, pair in enumerate(found)]
        for stream in streams:
            stream.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
        first = streams[0]
        while not unread(here, found[0], "backend"):
            for _ in range(500):  # a look costs more than all these
                first.send(rng.randint(1, 100))
        for stream in streams:
            stream.end.setblocking(False)

        used, began = busy(), time.monotonic()
        for number in range(rate * seconds):
            wait_for(began + number / rate)
            first.send(rng.randint(1, 100))
        share = (busy() - used) / (time.monotonic() - began)
        row.figure(f"processor at {rate} pieces a second", 100 * share, "%")
        row.held(share < 0.02, f"{100 * share:.1f} % of a processor at {rate} pieces a second")

        def push(least: int, most: int) -> int:
            for stream in streams:
                while stream.send(rng.randint(least, most)):
                    pass
            return sum(stream.sent for stream in streams)

        # Small pieces alone would fill the last kilobytes at the pace of delayed ACKs, 40 ms each.
        for least, most in ((PATTERN, PATTERN), (1, 100)):
            with suppress(AssertionError):  # a kernel may find a little more room for a long while
                settled(partial(push, least, most), 20)
        used, began = busy(), time.monotonic()
        let_pass(seconds)
        share = (busy() - used) / (time.monotonic() - began)
        row.figure("when full", 100 * share, "%")
        row.held(share < 0.02, f"{100 * share:.1f} % of a processor when full")

        def released(stream: Stream, reader: socket.socket) -> str:
            stream.end.settimeout(deadline.seconds(PATIENCE))
            finish(stream.end)
            return stream.differs(read_to_end(reader))

        for number, (stream, pair) in enumerate(zip(streams, found, strict=True)):
            attempt(row, f"stream {number}", released, stream, pair.backend)
        row.figure("held back", sum(stream.sent for stream in streams) / len(streams) / KIB, "KiB each")
