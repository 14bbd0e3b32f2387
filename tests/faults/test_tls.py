"""Rows 32 to 34, 48 and 49: clients of TLS who take their time, are cut, talk nonsense, come by the
hundred, or want other keys."""

from __future__ import annotations

import json
import random
import select
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from tests import deadline, processes
from tests.apart import apart, said, tell
from tests.certificates import NAME, VERSIONS, Authority
from tests.faults.conftest import StartWatched
from tests.faults.row import FULL, Row, scaled
from tests.faults.test_floods import slowest
from tests.forwarder import Forwarder
from tests.load import Load
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import Address, Ending, Listener, connect, noise, read_exactly, read_to_end, reset
from tests.system.test_tls_peers import Openssl

HOST: Final = "127.0.0.1"

REFUSED: Final = "remote-tls-failed -"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, and the files that it has signed."""
    return Authority(tmp_path)


def hello(version: str = "1.3", name: str = NAME) -> bytes:
    """What a client says first, of that version."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = VERSIONS[version]
    context.set_alpn_protocols(["h2", "http/1.1"])
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(there, back, server_hostname=name).do_handshake()
    return back.read()


def speaks(client: socket.socket) -> bool:
    """Whether the session is there: one byte there and back."""
    try:
        client.sendall(b"x")
        return client.recv(1) == b"x"
    except OSError:
        return False


def refusals(running: Forwarder) -> int:
    """How many handshakes have failed, as the log has it."""
    return sum(line.endswith(REFUSED) for line in running.log_lines())


# 32. Handshakes that take their time.

MOST: Final = 1000
"""Handshakes that a worker has at a time (configuration.md)."""


@pytest.mark.row(
    32,
    "handshakes that never end: a byte of the greeting now and then, from many clients",
    "each is ended when its time is over, or by a newer one; others shake hands, and plain calls are answered"
    " meanwhile; all are counted",
)
def test_slow_greetings(row: Row, watched: StartWatched, authority: Authority) -> None:
    count, seconds, workers = scaled(300, 2200), scaled(2, 20), 2
    plain, secured = free_port(), free_port()
    with serve_apart("echo") as behind, ExitStack() as stack:
        aftermath = watched(
            f"{HOST} {plain} {HOST} {behind.port}\n{HOST} {secured} {HOST} {behind.port}"
            f" [tls-accept, cert={authority.server()}, handshake-timeout={seconds}]\n",
            workers=workers,
        )
        running = aftermath.running
        # The allocator keeps what a thousand handshakes at a time take, some 60 MB, for the next ones.
        aftermath.memory_judged = not FULL
        load = stack.enter_context(Load((HOST, plain), scaled(100, 150)))
        load.more(scaled(100, 1000))
        quiet = slowest(load.calls)
        before = len(load.calls)
        held = stack.enter_context(authority.client((HOST, secured)))
        row.held(speaks(held), "a session before them")
        began = time.monotonic()
        greeting = hello()
        slow = dict.fromkeys((connect((HOST, secured)) for _ in range(count)), began)
        born = {each: time.monotonic() for each in slow}
        longest, turn, newcomers = 0.0, 0, 0
        while slow:
            for each in list(slow):
                with suppress(OSError):
                    each.send(greeting[turn % len(greeting) :][:1])
            turn += 1
            for each in gone(list(slow)):
                longest = max(longest, time.monotonic() - born[each])
                del slow[each]
                each.close()
            with authority.client((HOST, secured)) as client:
                newcomers += 1
                row.held(speaks(client), f"newcomer {newcomers}")
            row.held(speaks(held), "the session from before")
            if time.monotonic() - began > deadline.seconds(seconds + 20):
                break
        row.tried(count, [f"{len(slow)} were not ended"] if slow else [])
        running.wait_log(count, REFUSED)
        row.held(refusals(running) == count, f"{refusals(running)} of {count} counted")
        load.stop()
        row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
        row.figure("slow ones", count)
        row.figure("the last was ended after", longest, "s")
        row.figure("others who shook hands meanwhile", newcomers)
        row.figure("99th percentile of plain calls without", quiet, "ms")
        row.figure("beside them", slowest(load.calls[before:]), "ms")


def gone(clients: list[socket.socket]) -> list[socket.socket]:
    """Those whose end has come."""
    poll = select.poll()
    for each in clients:
        poll.register(each, select.POLLIN | select.POLLRDHUP)
    ready = {descriptor for descriptor, _ in poll.poll(50)}
    return [each for each in clients if each.fileno() in ready]


# 33. Streams that are cut.

CUTS: Final = ("a FIN", "a FIN in a record", "a reset")


@pytest.mark.row(
    33,
    "a stream of TLS that is cut on either side: by a FIN without close_notify, one within a record, a reset",
    "the other side has every byte that came whole, then a reset: never a clean end",
)
def test_streams_that_are_cut(row: Row, watched: StartWatched, authority: Authority) -> None:
    cert = authority.server()
    with Listener() as behind, Listener() as secured:
        ports = free_port(), free_port()
        watched(
            f"{HOST} {ports[0]} {behind.host} {behind.port} [tls-accept, cert={cert}]\n"
            f"{HOST} {ports[1]} {secured.host} {secured.port}"
            f" [tls-connect, server-ca={authority.file}, server-name={NAME}]\n"
        )
        rng = random.Random(33)
        for number in range(scaled(36, 3000)):
            version, how = list(VERSIONS)[number % 2], CUTS[number % 3]
            words = noise(rng.choice((0, 1, 1000, 16_384, 100_000)), number % 8)
            if number % 4 < 2:
                cut: ssl.SSLSocket = authority.client((HOST, ports[0]), version=version)
                whole = behind.accept()
            else:
                whole = connect((HOST, ports[1]))
                serving = authority.serving(cert, version=version)
                cut = serving.wrap_socket(secured.accept(), server_side=True)
            with cut, whole:
                cut.sendall(words)
                came = read_exactly(whole, len(words))
                if how == "a FIN in a record":
                    socket.socket.sendall(cut, b"\x17\x03\x03\x40\x00" + bytes(rng.randrange(100)))
                if how == "a reset":
                    reset(cut)
                else:
                    socket.socket.shutdown(cut, socket.SHUT_WR)
                found = read_to_end(whole)
            row.held(
                (came, found) == (words, Ending(b"", "ECONNRESET")),
                f"try {number}, TLS {version}, {how} after {len(words)} bytes: {found}",
            )


# 34. Greetings that are none.


def mutated(rng: random.Random, greetings: list[bytes]) -> list[bytes]:
    """Something like a greeting, in pieces."""
    data = bytearray(rng.choice(greetings))
    kind = rng.randrange(10)
    if kind <= 3:  # some bytes are others, mostly in the head, where the lengths are
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(rng.choice((12, 50, len(data))))] = rng.choice(
                (0, 1, 0x7F, 0xFF, rng.randrange(256))
            )
    elif kind == 4:  # cut off
        del data[rng.randrange(1, len(data)) :]
    elif kind == 5:  # a piece is missing, or there twice
        start = rng.randrange(5, len(data))
        data[start : start + rng.randrange(40)] = data[start : start + rng.choice((0, 80))]
    elif kind == 6:  # no TLS at all
        data = bytearray(rng.randbytes(rng.choice((1, 5, 100, 5000))))
    elif kind == 7:  # empty records before it
        data[:0] = bytes((rng.choice((0x14, 0x15, 0x16, 0x17)), 3, rng.randrange(5), 0, 0)) * rng.choice(
            (1, 33, 200)
        )
    elif kind == 8:  # a record of the greatest length, or beyond
        data = bytearray(b"\x16\x03\x01" + rng.choice((0x4000, 0x4001, 0x4800, 0xFFFF)).to_bytes(2))
        data += rng.choice((b"\x01\x00", b"\x01\xff", b"\x02\x00")) + rng.randbytes(0x4800)
    else:  # other things of TLS: an alert, application data, a second greeting
        more = (
            b"\x15\x03\x03\x00\x02\x01\x00",
            b"\x17\x03\x03\x00\x10" + bytes(16),
            bytes(data),
            b"\x14\x03\x03\x00\x01\x01",
        )
        data = data + rng.choice(more) if rng.randrange(2) else bytearray(rng.choice(more)) + data
    parts = rng.choice((1, 1, 1, 3))
    size = -(-len(data) // parts)
    return [bytes(data[start : start + size]) for start in range(0, len(data), size)]


@pytest.mark.row(
    34,
    "greetings of TLS with bytes changed, left out, doubled; empty and overlong records; no TLS at all",
    "each is refused and counted, the backend hears of none, the workers live, sessions go on",
)
def test_mutated_greetings(row: Row, watched: StartWatched, authority: Authority) -> None:
    rng = random.Random(34)
    greetings = [hello(version, name) for version in VERSIONS for name in (NAME, ".".join(["a" * 60] * 4))]
    with serve_apart("echo") as behind, ExitStack() as stack:
        port = free_port()
        running = watched(
            f"{HOST} {port} {HOST} {behind.port} [tls-accept, alpn=h2;http/1.1, cert={authority.server()}]\n"
        ).running
        held = stack.enter_context(authority.client((HOST, port)))
        row.held(speaks(held), "a session before them")
        workers = running.workers()
        count = scaled(400, 20_000)
        began = time.monotonic()
        for number in range(count):
            pieces = mutated(rng, greetings)
            with connect((HOST, port)) as client:
                with suppress(OSError):  # it may have been refused before the last one
                    for piece in pieces:
                        client.sendall(piece)
                    client.shutdown(socket.SHUT_WR)
                try:
                    read_to_end(client)
                except TimeoutError:
                    row.held(False, f"greeting {number} was not refused: {b''.join(pieces)[:40].hex()}")
        row.tried(count, [])
        row.figure("greetings", count / (time.monotonic() - began), "/s")
        running.wait_log(count, REFUSED)
        row.held(refusals(running) == count, f"{refusals(running)} of {count} counted")
        row.held(speaks(held), "the session from before")
        row.held(running.workers() == workers, "other workers")
        opened = sum(line.endswith("opened") for line in running.log_lines())
        row.held(opened == 1, f"{opened} of them were opened")
        with authority.client((HOST, port)) as client:
            row.held(speaks(client), "a session after them")


# 48. Handshakes by the hundred.


def beside(load: Load, address: Address, authority: Authority, calls: int) -> tuple[float, int, int, float]:
    """Milliseconds in which 99 of 100 calls end while 200 clients a second shake hands at `address`; how many
    these were, how many failed, how many per second."""
    with apart("tests.faults.greeters", *address, authority.file, 200) as greeters:
        load.more(50)
        before = len(load.calls)
        load.more(calls, 60)
        found = slowest(load.calls[before:])
        tell(greeters, "stop")
        done, failed, seconds = json.loads(said(greeters))
    return found, done, failed, done / seconds


@pytest.mark.row(
    48,
    "200 handshakes a second beside plain calls",
    "all are done, and every call is answered, by the same workers",
)
def test_many_handshakes(row: Row, watched: StartWatched, authority: Authority) -> None:
    calls = scaled(80, 3000)
    cert = authority.server()
    with serve_apart("echo") as behind, ExitStack() as stack:
        plain, secured, others = free_port(), free_port(), free_port()

        def forward(port: int) -> str:
            return f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={cert}]\n"

        running = watched(f"{HOST} {plain} {HOST} {behind.port}\n{forward(secured)}").running
        watched(forward(others))
        load = stack.enter_context(Load((HOST, plain), scaled(100, 150)))
        load.more(50)
        before = len(load.calls)
        load.more(calls, 60)
        row.figure("99th percentile of calls without", slowest(load.calls[before:]), "ms")
        found, done, failed, _ = beside(load, (HOST, others), authority, calls)
        row.figure("beside those of another fastfwd on the same processors", found, "ms")
        row.tried(done, ["a handshake"] * failed)
        found, done, failed, rate = beside(load, (HOST, secured), authority, calls)
        row.figure("beside its own", found, "ms")
        row.figure("handshakes", rate, "/s")
        row.tried(done, ["a handshake"] * failed)
        load.stop()
        row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
        workers, count = running.workers().values(), scaled(50, 2000)
        began = sum(map(processes.busy, workers))
        for _ in range(count):
            authority.client((HOST, secured)).close()
        row.figure("processor time of each", 1000 * (sum(map(processes.busy, workers)) - began) / count, "ms")


# 49. Other keys.


@pytest.mark.row(
    49,
    "clients who ask for a new handshake inside of one (TLS 1.2), or for new keys, again and again (TLS 1.3)",
    "the former is refused; the latter is done, and the stream goes on",
)
def test_other_keys(row: Row, watched: StartWatched, authority: Authority) -> None:
    with serve_apart("echo") as behind:
        port = free_port()
        watched(f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={authority.server()}]\n")
        for number in range(scaled(3, 100)):
            with Openssl(port, "-tls1_2") as client:
                client.say(b"hello there")
                client.hear(b"\nhello there\n")
                client.say(b"R")
                row.held(b"no renegotiation" in client.end(), f"try {number}: a new handshake")
        with Openssl(port, "-tls1_3") as client:
            for number in range(scaled(20, 2000)):
                client.say(b"K")
                client.hear(b"KEYUPDATE\n")
                client.say(b"%d is my number" % number)
                row.held(bool(client.hear(b"%d is my number\n" % number)), f"key {number}")
