"""Rows 21 to 25: pipes and descriptors used again, edges, bad lines, peers that vanish."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Final

import pytest

from tests import deadline, processes
from tests.apart import apart, said, say
from tests.deadline import until
from tests.faults.conftest import StartWatched, compared
from tests.faults.row import FULL, Row, scaled
from tests.faults.shim import Bandwidth, Latency, Shim
from tests.faults.test_streams import (
    LISTEN,
    PATIENCE,
    SIDES,
    TARGET,
    Stream,
    attempt,
    begin,
    endings,
    let_pass,
    pairs,
)
from tests.forwarder import Forwarder, Kind
from tests.ports import free_port
from tests.sockets import (
    Address,
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    read_exactly,
    read_to_end,
    reset,
)
from tests.system.namespaces import Sandbox
from tests.system.test_reset import ends
from tests.system.test_stalled_reader import KIB, MIB, OFFSET, PATTERN, settled

# Row 21.


def pipes(pid: int) -> set[str]:
    """The pipes that the worker has open."""
    return {name for name in processes.descriptors(pid).values() if name.startswith("pipe:")}


@pytest.mark.timeout(deadline.seconds(400))
@pytest.mark.row(
    21,
    "sessions aborted with bytes in a pipe",
    "that pipe is closed, never lent again: no byte of one stream in another",
)
def test_dirty_pipes(row: Row, kind: Kind, watched: StartWatched, listener: Listener) -> None:
    """Some sessions stall and are aborted from either side; those after them are spliced by the same
    worker."""
    here = begin(watched, kind, listener, "workers 1\n")
    worker = here.forwarder.worker()
    rng = random.Random(21)
    killed: set[str] = set()

    def passed(one: socket.socket, other: socket.socket, number: int) -> str:
        data = bytes(Stream.TWICE[number * OFFSET % PATTERN :][:PATTERN])
        with Sending(one, data):
            ending = read_to_end(other)
        return "" if ending == Ending(data, "EOF") else f"{ending}"

    def broken_off(stream: Stream, reader: socket.socket) -> str:
        data = read_exactly(reader, rng.choice((0, 1, 100_000)))
        first, second = rng.sample((stream.end, reader), 2)
        reset(first)
        if rng.random() < 0.5:
            reset(second)
        return "" if stream.begins(data) else f"a stalled session: {data[:20]!r}"

    for number in range(scaled(10, 2000)):
        with pairs(here, 8) as found:
            stalled = []
            for place, pair in enumerate(found):
                sender, reader = ends(pair, rng.choice(SIDES))
                sender.setblocking(False)
                stalled.append((Stream(sender, 8 * number + place), reader))

            def push(streams: tuple[Stream, ...] = tuple(stream for stream, _ in stalled)) -> int:
                for stream in streams:
                    while stream.send(PATTERN):
                        pass
                return sum(stream.sent for stream in streams)

            settled(push, 4)
            lent = pipes(worker)
            for stream, reader in stalled:
                attempt(row, f"round {number}", broken_off, stream, reader)
        with pairs(here, 4) as found:
            for place, pair in enumerate(found):
                one, other = ends(pair, rng.choice(SIDES))
                attempt(row, f"{number}.{place}", passed, one, other, 8 * number + place)
            killed |= lent - pipes(worker)
    assert killed, "no session was aborted with bytes in a pipe"
    row.figure("pipes closed with bytes in them", len(killed))


# Row 22. A canary is its call's number again and again; its first letter tells the backend what to do.

ECHO, RESET, LEAVE = "ERL"

CALLERS: Final = 24
"""Connections under way at a time."""


def own(data: bytes) -> bool:
    """Whether `data` is the beginning of a canary, and of one only."""
    token = data[: data.find(b" ") + 1]
    return not token or (token * (1 + len(data) // len(token))).startswith(data)


def answer(listener: socket.socket, foreign: list[str]) -> None:
    """Thread of the backend: one connection after the other, `foreign` is what was not its own."""
    while True:
        connection, _ = listener.accept()
        heard = b""
        try:
            with connection:
                while data := connection.recv(1 << 12):
                    heard += data
                    if heard.startswith(RESET.encode()):
                        reset(connection)
                        break
                    connection.sendall(data)
                    if heard.startswith(LEAVE.encode()):
                        break
        except OSError:
            pass  # its caller has reset
        if not own(heard):
            foreign.append(repr(heard[:60]))


def read_up_to(connection: socket.socket, size: int) -> Ending:
    """`size` bytes, or those before the end."""
    data = b""
    while len(data) < size:
        try:
            piece = connection.recv(size - len(data))
        except TimeoutError:
            return Ending(data, "nothing more")
        except OSError as error:
            return Ending(data, repr(error))
        if not piece:
            return Ending(data, "EOF")
        data += piece
    return Ending(data, "whole")


def call(address: Address, rng: random.Random, number: str) -> str:
    """One connection, which may be broken off by either side at any point; what was wrong."""
    manner = rng.choice((ECHO, ECHO, ECHO, RESET, LEAVE))
    canary = f"{manner}{number} ".encode() * rng.randint(1, 300)
    with connect(address) as client:
        client.settimeout(deadline.seconds(5))
        patience = rng.choice((0, 1, 2, 3, 3, 3))
        if patience == 0:
            reset(client)
            return ""
        try:
            client.sendall(canary)
        except OSError:
            pass  # the backend was told to; what has come before counts
        if patience == 1:
            reset(client)
            return ""
        ending = read_up_to(client, len(canary) if patience == 3 else 1)
        if patience == 2:
            reset(client)
    if not canary.startswith(ending.data):
        return f"{canary[:20]!r} heard {ending}"
    if manner == ECHO and ending.how != "whole":
        return f"{canary[:20]!r} was cut short: {ending}"
    return ""


def call_often(port: int, count: int) -> None:
    """The callers' process: make `count` calls, say how long they took and what was wrong."""

    def calls(caller: int) -> list[str]:
        rng = random.Random(caller)
        found = []
        for number in range(count // CALLERS):
            try:
                found.append(call(("127.0.0.1", port), rng, f"{caller}-{number}"))
            except OSError as error:
                found.append(repr(error))
        return found

    began = time.monotonic()
    with ThreadPoolExecutor(CALLERS) as pool:
        results = [result for results in pool.map(calls, range(CALLERS)) for result in results]
    say(json.dumps([len(results), time.monotonic() - began, [result for result in results if result]]))


def answer_all() -> None:
    """Their backend's process: say the port; when stdin ends, what was foreign."""
    foreign: list[str] = []
    with Listener() as listener:
        listener.socket.settimeout(None)
        for _ in range(2 * CALLERS):
            threading.Thread(target=answer, args=(listener.socket, foreign), daemon=True).start()
        say(listener.port)
        sys.stdin.read()
        say(json.dumps(foreign))


@pytest.mark.timeout(deadline.seconds(900))
@pytest.mark.row(
    22,
    "connections broken off at any point by either side, so that descriptors are used again at once",
    "each gets its own bytes only, and all of them if nobody broke it off",
)
@compared("rinetd", "haproxy")
def test_descriptors_used_again(row: Row, kind: Kind, watched: StartWatched) -> None:
    """The program is stopped for a moment now and then: many ends and new clients in one batch."""
    port = free_port()
    calls = 1_000_000 if kind == "fastfwd" else 120_000
    with ExitStack() as stack:
        backend = stack.enter_context(apart(__name__, "answer"))
        running = watched(f"127.0.0.1 {port} 127.0.0.1 {said(backend)}\n", kind=kind).running
        callers = stack.enter_context(apart(__name__, "call", port, scaled(2400, calls)))
        pids = running.serving()
        batches = 0

        def stop_and_go() -> bool:
            nonlocal batches
            with processes.stopped(*pids):
                batches += 1
            return callers.poll() is not None

        until(stop_and_go, 800, "the calls")
        count, seconds, wrong = json.loads(said(callers))
        assert backend.stdin is not None
        backend.stdin.close()
        row.tried(count, [*wrong, *(f"at the backend: {each}" for each in json.loads(said(backend)))])
        row.figure("connections a second", count / seconds)
        row.figure("stops", batches)


# Row 23.

STALL: Final = 2.0
"""Seconds without a byte although the sender sends and the reader reads."""

PAUSES: Final = (MIB, 64 * MIB)
"""How much goes between two pauses."""


@dataclass(slots=True)
class Passage:
    """What came of one direction at its reader: bytes that were right, how often either end paused,
    how often nothing came for STALL, what was wrong."""

    right: int = 0
    pauses: int = 0
    stalls: int = 0
    wrong: str = ""


def send_with_pauses(connection: socket.socket, number: int, size: int) -> None:
    """Noise from the place `number`, then the FIN."""
    rng = random.Random(number)
    stream = Stream(connection, number)
    go = rng.randint(*PAUSES)
    while stream.sent < size:
        before = stream.sent
        stream.send(min(PATTERN, size - before))
        go -= stream.sent - before
        if go <= 0:
            let_pass(rng.uniform(0, 0.05))
            go = rng.randint(*PAUSES)
    finish(connection)


def read_with_pauses(connection: socket.socket, number: int) -> Passage:
    """What the other end sends from the place `number`, judged."""
    rng = random.Random(-number)
    pattern = noise(PATTERN) * 2
    found = Passage()
    go = rng.randint(*PAUSES)
    connection.settimeout(deadline.seconds(STALL))
    while found.stalls < 5:
        try:
            data = connection.recv(1 << 18)
        except TimeoutError:
            found.stalls += 1
            continue
        except OSError as error:
            found.wrong = repr(error)
            break
        if not data:
            break
        if not pattern.startswith(data, (number * OFFSET + found.right) % PATTERN):
            found.wrong = f"other bytes after {found.right}"
            break
        found.right += len(data)
        go -= len(data)
        if go <= 0:
            let_pass(rng.uniform(0, 0.05))
            go = rng.randint(*PAUSES)
            found.pauses += 1
    return found


def both_ways(connection: socket.socket, out: int, back: int, size: int) -> Passage:
    """Send from the place `out`, and read what comes from the place `back`."""
    # Another object, because the two directions differ in patience.
    with connection, connection.dup() as also:
        also.settimeout(deadline.seconds(PATIENCE))
        sending = threading.Thread(target=send_with_pauses, args=(also, out, size), daemon=True)
        sending.start()
        found = read_with_pauses(connection, back)
        # This direction may be through long before the other; a send gives up on its own.
        sending.join(deadline.seconds(60))
        return found


def pass_both_ways(how: str, port: int, count: int, size: int) -> None:
    """A process with one end of `count` streams: those that connect, or the backend's. The client's
    first byte is the stream's number, and the places are 2N up and 2N + 1 down."""

    def end_of(number: int) -> Passage:
        if how == "connect":
            connection = connect(("127.0.0.1", port))
            connection.sendall(bytes([number]))
            return both_ways(connection, 2 * number, 2 * number + 1, size)
        connection = listener.accept()
        (number,) = read_exactly(connection, 1)
        return both_ways(connection, 2 * number + 1, 2 * number, size)

    with ThreadPoolExecutor(count) as pool, ExitStack() as stack:
        if how == "listen":
            listener = stack.enter_context(Listener())
            say(listener.port)
        say(json.dumps([asdict(found) for found in pool.map(end_of, range(count))]))


@pytest.mark.row(
    23,
    "pauses at random of senders and readers, large volumes in both directions at once",
    f"no {STALL:g} s without a byte while both ends could move; every byte arrives",
)
@compared("haproxy")
def test_edges(row: Row, kind: Kind, watched: StartWatched) -> None:
    """A try is a pause, after which the stream must go on."""
    port, count, size = free_port(), scaled(2, 8), scaled(128 * MIB, 2560 * MIB)
    with ExitStack() as stack:
        backend = stack.enter_context(apart(__name__, "listen", 0, count, size))
        watched(f"127.0.0.1 {port} 127.0.0.1 {said(backend)}\n", kind=kind)
        began = time.monotonic()
        clients = stack.enter_context(apart(__name__, "connect", port, count, size))
        found = [Passage(**each) for process in (clients, backend) for each in json.loads(said(process))]
        seconds = time.monotonic() - began
    for number, each in enumerate(found):
        broken = [f"stream {number} stood still"] * each.stalls
        if each.wrong or each.right != size:
            broken.append(f"stream {number}: {each.right} of {size} bytes, {each.wrong}")
        row.tried(1 + each.pauses, broken)
    passed = sum(each.right for each in found)
    row.figure("passed", passed / 1e9, "GB")
    row.figure("at", passed / 1e6 / seconds, "MB/s")


# Row 24.

LOSSES: Final = (1, 5)
"""In per cent."""

RATE: Final = 10_000_000 / 8
DELAY: Final = 0.025
"""A line of 10 Mbit/s and 50 ms there and back."""


def carried(client: socket.socket, backend: socket.socket, side: str, data: bytes) -> float:
    """Seconds that `data` takes to `side`. Raises AssertionError if it is not what arrives."""
    one, other = (backend, client) if side == "client" else (client, backend)
    began = time.monotonic()
    with Sending(one, data):
        ending = read_to_end(other)
        took = time.monotonic() - began
    assert ending == Ending(data, "EOF"), f"{ending}"
    return took


@pytest.mark.row(
    24,
    "clients that lose 1 and 5 % of their packets, and clients behind 10 Mbit/s and 50 ms",
    "every byte arrives; goodput like that of the direct way",
)
@compared("rinetd", "haproxy")
def test_bad_lines(row: Row, kind: Kind, watched: StartWatched) -> None:
    """Up and down, with the same loss and the same line on the direct way to a backend of its own."""
    with Sandbox(network=True) as inside, ExitStack() as stack:
        inside.run("ip", "link", "set", "lo", "mtu", "1500", "gso_max_size", "1500")
        inside.run("nft", "add table ip faults")
        inside.run("nft", "add chain ip faults in { type filter hook input priority 0 ; }")
        # Number N of the forwards and of the direct backends has the fault number N; the last one is a line.
        faults = [f"{loss} % loss" for loss in LOSSES] + ["10 Mbit/s and 50 ms"]
        backend, *direct = (
            stack.enter_context(inside.call(Listener, port=TARGET + number))
            for number in range(1 + len(faults))
        )
        for number, loss in enumerate(LOSSES):
            for port in (LISTEN + number, direct[number].port):
                for way in ("sport", "dport"):
                    drop = f"tcp {way} {port} numgen random mod 100 < {loss} drop"
                    inside.run("nft", f"add rule ip faults in {drop}")
        lines = [f"127.0.0.1 {LISTEN + number} 127.0.0.1 {TARGET}\n" for number in range(len(faults))]
        inside.call(watched, "".join(lines), kind=kind)

        def line_to(address: Address) -> Address:
            toxics = [Latency(DELAY), Bandwidth(RATE)]
            return stack.enter_context(Shim(address, up=toxics, down=toxics)).address

        def carry(address: Address, listener: Listener, side: str, data: bytes) -> float:
            with inside.call(connect, address) as client, listener.accept() as behind:
                return carried(client, behind, side, data)

        for number, fault in enumerate(faults):
            lossy = number < len(LOSSES)
            through, past = ("127.0.0.1", LISTEN + number), direct[number].address
            if not lossy:
                through, past = inside.call(line_to, through), inside.call(line_to, past)
            size = scaled(256 * KIB, 4 * MIB) if lossy else scaled(64 * KIB, 2 * MIB)
            by_forwarder = by_itself = 0.0
            for turn in range(scaled(1, 20 if lossy else 3)):
                for side in SIDES:
                    data = noise(size, turn)
                    try:
                        took = carry(through, backend, side, data)
                        by_itself += carry(past, direct[number], side, data)
                        by_forwarder += took
                        row.held(True, "")
                    except (AssertionError, OSError) as error:
                        row.held(False, f"{fault}, to the {side}: {error!r}")
            if by_forwarder:
                row.figure(f"goodput with {fault}", by_itself / by_forwarder, "of the direct way")


# Row 25.

HOST, CLIENT, BACKEND = "192.0.2.1", "192.0.2.7", "192.0.2.9"
"""Of the forwarder, and of those that vanish."""


@dataclass(frozen=True, slots=True)
class Vanishing:
    """How a peer that has vanished is found out: by `name`, in a program with the directives `extra`;
    with `speaking`, the other side sends to it; within so many `seconds`."""

    name: str
    extra: str
    speaking: bool
    seconds: float


VANISHINGS: Final = (
    Vanishing("idle-timeout 2", "idle-timeout 2\n", False, 10),
    Vanishing("unacknowledged bytes (tcp_retries2 2)", "", True, 20),
    *([Vanishing("keepalive (60 s, then 2 probes 1 s apart)", "", False, 80)] if FULL else []),
)


@dataclass(frozen=True, slots=True)
class Widowed:
    """Sessions of `running` whose other side vanishes: the ends that are `left`, and how many
    descriptors it had `before` them."""

    way: Vanishing
    running: Forwarder
    before: int
    left: list[socket.socket]

    def wait_for(self, sessions: int) -> str:
        """Until no more descriptors are held than for so many `sessions`, and no less; then nothing
        is wrong."""
        wanted = self.before + 2 * sessions
        until(lambda: self.running.descriptors() == wanted, what=f"{sessions} sessions, {self.way.name}")
        return ""


@pytest.mark.row(
    25,
    "a client or a backend vanishes: no packet comes or goes any more",
    "the other side is ended, the descriptors are back",
)
@compared("haproxy")
def test_vanished_peers(row: Row, kind: Kind, watched: StartWatched) -> None:
    """By each of the means that find it out, all at the same time."""
    count = scaled(5, 50)
    with Sandbox(network=True) as inside, ExitStack() as stack:
        for address in (HOST, CLIENT, BACKEND):
            inside.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        for name, value in (("retries2", 2), ("keepalive_probes", 2), ("keepalive_intvl", 1)):
            inside.sysctl(f"net.ipv4.tcp_{name}", str(value))
        here, there = (stack.enter_context(inside.call(Listener, host, TARGET)) for host in (HOST, BACKEND))

        def come(port: int, source: str, listener: Listener) -> tuple[socket.socket, socket.socket]:
            client = stack.enter_context(connect((HOST, port), source=source))
            return client, stack.enter_context(listener.accept())

        crowds = []
        for number, way in enumerate(VANISHINGS):
            port = LISTEN + 2 * number
            lines = f"{HOST} {port} {HOST} {TARGET}\n{HOST} {port + 1} {BACKEND} {TARGET}\n"
            running = inside.call(watched, lines + way.extra, kind=kind).running
            before = running.descriptors()
            left = [inside.call(come, port, CLIENT, here)[1] for _ in range(count)]
            left += [inside.call(come, port + 1, HOST, there)[0] for _ in range(count)]
            crowds.append(Widowed(way, running, before, left))
            crowds[-1].wait_for(2 * count)

        inside.run("nft", "add table ip faults")
        inside.run("nft", "add chain ip faults in { type filter hook input priority -300 ; }")
        for address in (CLIENT, BACKEND):
            inside.run("nft", f"add rule ip faults in ip saddr {address} drop")
            inside.run("nft", f"add rule ip faults in ip daddr {address} drop")
        began = time.monotonic()
        for crowd in crowds:
            for end in crowd.left if crowd.way.speaking else []:
                end.sendall(noise(10_000))
        for crowd in crowds:
            ended = endings(crowd.left, began + crowd.way.seconds - time.monotonic())
            row.tried(2 * count, [f"{crowd.way.name}: not ended"] * (2 * count - len(ended)))
            if ended:
                row.figure(f"by {crowd.way.name}", max(ended.values()) - began, "s")
            attempt(row, f"{crowd.way.name}: descriptors", crowd.wait_for, 2 * count - len(ended))


def main() -> None:
    """`answer`, `call PORT COUNT`, `listen 0 COUNT SIZE` or `connect PORT COUNT SIZE`."""
    what, *numbers = sys.argv[1:]
    if what == "answer":
        answer_all()
    elif what == "call":
        call_often(*map(int, numbers))
    else:
        pass_both_ways(what, *map(int, numbers))


if __name__ == "__main__":
    main()
