"""Errors stay errors: an RST from one side is an RST at the other, after the bytes before it.

rinetd turns every RST into a clean FIN, so a truncated transfer looks complete.
"""

from __future__ import annotations

import errno
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import columns
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import (
    PATIENCE,
    Address,
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    queued,
    read_exactly,
    read_to_end,
    reset,
    unsent,
)
from tests.system.conftest import Pair, StartRoute

MIB = 1 << 20

MOST_BUFFERED = 256 * MIB
"""More than four socket buffers and a pipe can hold, however far the kernel lets them grow."""

SIDES = pytest.mark.parametrize("side", ["client", "backend"])
"""Who resets; the other one must notice."""


def ends(pair: Pair, side: str) -> tuple[socket.socket, socket.socket]:
    """The socket of `side`, and the other one."""
    return (pair.client, pair.backend) if side == "client" else (pair.backend, pair.client)


def send_all_the_way(end: socket.socket, data: bytes) -> None:
    """Send `data` and wait until the forwarder's kernel has taken all of it."""
    end.sendall(data)
    until(lambda: unsent(end) == 0, what="the bytes to be taken")


def wait_for_bytes(end: socket.socket) -> None:
    """Wait until something can be read from `end`."""
    until(lambda: queued(end) > 0, what="bytes to read")


def fill(end: socket.socket, data: bytes) -> None:
    """Send `data` again and again until the kernel takes no more."""
    limit = end.gettimeout()
    end.setblocking(False)
    sent = 0
    try:
        while sent < MOST_BUFFERED:
            sent += end.send(data[sent % len(data) :])
    except BlockingIOError:
        end.settimeout(limit)
        return
    raise AssertionError(f"{sent} bytes did not fill the path")


@SIDES
def test_a_reset_is_passed_on(route: StartRoute, side: str) -> None:
    """A reset in mid-stream is ECONNRESET at the other end, never a clean end (100 times)."""
    here = route()
    for _ in range(100):
        with here.pair() as pair:
            one, other = ends(pair, side)
            one.sendall(noise(1000))
            assert read_exactly(other, 1000) == noise(1000)
            reset(one)
            assert read_to_end(other) == Ending(b"", "ECONNRESET")


@SIDES
def test_a_reset_without_a_byte_is_passed_on(route: StartRoute, side: str) -> None:
    """A reset of a session that has not carried a byte is ECONNRESET at the other end."""
    here = route()
    for _ in range(20):
        with here.pair() as pair:
            one, other = ends(pair, side)
            reset(one)
            assert read_to_end(other) == Ending(b"", "ECONNRESET")


@SIDES
def test_bytes_before_a_reset_arrive(route: StartRoute, side: str) -> None:
    """What was sent before the reset is delivered before it, when sent just before (100 times)."""
    here = route()
    for number in range(100):
        data = noise(5000, number)
        with here.pair() as pair:
            one, other = ends(pair, side)
            send_all_the_way(one, data)
            reset(one)
            assert read_to_end(other) == Ending(data, "ECONNRESET")


@SIDES
@pytest.mark.parametrize("size", [1, 5, 1000, 60_000])
def test_bytes_and_reset_in_one_burst(route: StartRoute, side: str, size: int) -> None:
    """Bytes and RST that the worker meets in one event: first the bytes, then the reset (25 times)."""
    here = route()
    for _ in range(25):
        with here.pair() as pair:
            here.greet(pair)
            one, other = ends(pair, side)
            with here.frozen():
                send_all_the_way(one, noise(size))
                reset(one)
            assert read_to_end(other) == Ending(noise(size), "ECONNRESET")


@SIDES
def test_a_reset_is_passed_on_at_once(route: StartRoute, side: str) -> None:
    """A reset right behind a few bytes reaches the other end within 0.25 s (the median of 15)."""
    here = route()
    delays = []
    for _ in range(15):
        with here.pair() as pair:
            here.greet(pair)
            one, other = ends(pair, side)
            with here.frozen():
                send_all_the_way(one, b"the last words")
                reset(one)
            began = time.monotonic()
            assert read_to_end(other) == Ending(b"the last words", "ECONNRESET")
            delays.append(time.monotonic() - began)
    assert statistics.median(delays) < deadline.seconds(0.25)


@SIDES
@pytest.mark.parametrize("size", [0, 1, 5, 1000, 60_000])
def test_bytes_and_fin_in_one_burst(route: StartRoute, side: str, size: int) -> None:
    """Bytes and FIN that the worker meets in one event: first the bytes, then the FIN (50 times)."""
    here = route()
    for _ in range(50):
        with here.pair() as pair:
            here.greet(pair)
            one, other = ends(pair, side)
            with here.frozen():
                one.sendall(noise(size))
                finish(one)
            assert read_to_end(other) == Ending(noise(size), "EOF")
            other.sendall(b"back")
            assert read_exactly(one, 4) == b"back"


def test_connect_bytes_and_end_in_one_burst(route: StartRoute) -> None:
    """A client that connects, sends and ends before it is accepted is served all the same (50 times)."""
    here = route()
    for _ in range(50):
        with ExitStack() as stack:
            with here.frozen():
                client = stack.enter_context(connect(here.address))
                client.sendall(b"at once")
                finish(client)
            backend = stack.enter_context(here.listener.accept())
            assert read_to_end(backend) == Ending(b"at once", "EOF")
            backend.sendall(b"answer")
            backend.close()
            assert read_to_end(client) == Ending(b"answer", "EOF")


@SIDES
def test_a_reset_behind_a_stalled_reader(route: StartRoute, side: str) -> None:
    """A reset while the other side does not read: it gets a true prefix of the bytes, then ECONNRESET."""
    here = route()
    with here.pair() as pair:
        one, other = ends(pair, side)
        fill(one, noise(MIB))
        wait_for_bytes(other)
        reset(one)
        ending = read_to_end(other)
    assert ending.how == "ECONNRESET"
    assert ending.data == (noise(MIB) * 256)[: len(ending.data)]


@SIDES
def test_a_reset_in_the_reply_to_a_half_closed_side(route: StartRoute, side: str) -> None:
    """A side that has sent its FIN and is reading the answer still learns of a reset."""
    here = route()
    with here.pair() as pair:
        one, other = ends(pair, side)
        finish(other)
        assert one.recv(1) == b""
        send_all_the_way(one, noise(1000))
        assert read_exactly(other, 1000) == noise(1000)
        reset(one)
        assert read_to_end(other) == Ending(b"", "ECONNRESET")


def test_a_half_closed_client_that_resets_stops_the_backend(route: StartRoute) -> None:
    """After its FIN the client resets: the backend, still sending, gets an error instead of a black hole."""
    here = route()
    with here.pair() as pair:
        finish(pair.client)
        assert pair.backend.recv(1) == b""
        with Sending(pair.backend, noise(64 * MIB)) as sending:
            read_exactly(pair.client, 1000)
            reset(pair.client)
        assert sending.error is not None
        assert sending.error.errno in {errno.EPIPE, errno.ECONNRESET}


@pytest.mark.parametrize(
    ("side", "word"), [("client", "done-remote-closed"), ("backend", "done-local-closed")]
)
def test_the_log_names_who_reset(route: StartRoute, side: str, word: str) -> None:
    """A reset is logged like a close of the same side, with the bytes that were passed."""
    here = route()
    with here.pair() as pair:
        one, other = ends(pair, side)
        here.greet(pair)
        reset(one)
        assert read_to_end(other).how == "ECONNRESET"
    line = columns(here.forwarder.wait_log(2)[1])
    assert (line["outcome"], line["bytes_in"], line["bytes_out"]) == (word, "4", "4")


def test_resets_leave_no_descriptor(route: StartRoute) -> None:
    """After 100 resets, with bytes under way, the worker holds as many descriptors as before."""
    here = route()
    here.turn()
    here.forwarder.wait_log(2)
    worker = here.forwarder.worker()
    before = len(processes.descriptors(worker))
    for number in range(100):
        with here.pair() as pair:
            one, other = ends(pair, "client" if number % 2 else "backend")
            one.sendall(noise(100_000))
            reset(one)
            read_to_end(other)
    until(lambda: len(processes.descriptors(worker)) <= before, what=f"no more than {before} descriptors")


# Backends that are not there, or leave early.


def test_a_refused_backend_ends_the_client(forwarder: StartForwarder) -> None:
    """The client of a backend that refuses is closed without a byte; the log says so after `opened`."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()}\n")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        assert read_to_end(client).data == b""
    outcomes = [columns(line)["outcome"] for line in running.wait_log(2)]
    assert outcomes == ["opened", "local-connect-failed -"]


def test_refused_backends_leave_no_descriptor(forwarder: StartForwarder) -> None:
    """After 500 refusals the program holds as many descriptors as before, and has logged each of them."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()}\n")
    before = running.descriptors()

    def knock(_: int) -> bytes:
        with connect(("127.0.0.1", port)) as client:
            return read_to_end(client).data

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(knock, range(500))) == {b""}
    running.wait_log(500, "local-connect-failed")
    until(lambda: running.descriptors() <= before, what=f"no more than {before} descriptors")


def test_a_backend_that_comes_back_is_reached(forwarder: StartForwarder) -> None:
    """A refusal is of one connection: as soon as the backend listens, the next client reaches it."""
    port, backend_port = free_port(), free_port()
    forwarder(f"127.0.0.1 {port} 127.0.0.1 {backend_port}\n")
    with connect(("127.0.0.1", port)) as client:
        assert read_to_end(client).data == b""
    with ExitStack() as stack:
        listener = stack.enter_context(Listener(port=backend_port))
        client = stack.enter_context(connect(("127.0.0.1", port)))
        backend = stack.enter_context(listener.accept())
        backend.sendall(b"here")
        assert read_exactly(client, 4) == b"here"


ANSWER = 256 * 1024
"""Fits into the forwarder's buffers, but not into the receive buffer of the client below."""


def slow_reader(address: Address) -> socket.socket:
    """A client whose kernel takes little ahead of its reads, like one behind a slow line.

    Its segments are as small as Ethernet's: loopback's 64 KiB ones would not fit its
    buffer and be dropped, and retransmission would set the pace.
    """
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    client.settimeout(deadline.seconds(PATIENCE))
    client.connect(address)
    return client


def upload(client: socket.socket, data: bytes) -> None:
    """Send as a client does that reads the answer only afterwards; it may be told to stop."""
    try:
        client.sendall(data)
    except (ConnectionResetError, BrokenPipeError):
        return


def test_answer_of_a_backend_that_closes_during_an_upload(route: StartRoute) -> None:
    """A backend answers the first 1,000 bytes of a 10 MB upload and closes; the client, which
    reads only after its upload, still gets the whole answer."""
    here = route()
    for _ in range(10):
        with slow_reader(here.address) as client, here.listener.accept() as backend:
            client.sendall(noise(1000))
            assert read_exactly(backend, 1000) == noise(1000)
            # All of it: a socket that is closed, and gets bytes, loses what it still has to send.
            send_all_the_way(backend, noise(ANSWER, 2))
            backend.close()
            wait_for_bytes(client)
            upload(client, noise(10_000_000))
            assert read_to_end(client).data == noise(ANSWER, 2)


def test_answer_of_a_backend_that_closes_on_unread_bytes(route: StartRoute) -> None:
    """A backend answers and closes with bytes unread, which resets its side (RFC 2525, 2.17); the client
    still gets the whole answer."""
    here = route()
    for _ in range(10):
        with slow_reader(here.address) as client, here.listener.accept() as backend:
            fill(client, noise(MIB))
            assert read_exactly(backend, 1000) == noise(MIB)[:1000]
            wait_for_bytes(backend)
            send_all_the_way(backend, noise(ANSWER, 2))
            backend.close()
            assert read_to_end(client).data == noise(ANSWER, 2)


def test_a_backend_that_stops_reading_but_answers(route: StartRoute) -> None:
    """The answer and the FIN of a backend that no longer reads pass by a stuck upload."""
    here = route()
    with here.pair() as pair, Sending(pair.client, noise(10_000_000)):
        wait_for_bytes(pair.backend)
        pair.backend.sendall(noise(ANSWER, 2))
        finish(pair.backend)
        assert read_to_end(pair.client) == Ending(noise(ANSWER, 2), "EOF")
        assert read_to_end(pair.backend) == Ending(noise(10_000_000), "EOF")


def test_an_upload_to_nobody_ends(route: StartRoute) -> None:
    """A client that goes on sending after its backend has left is told so in the end."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        pair.backend.close()
        assert pair.client.recv(1) == b""

        def told() -> bool:
            try:
                pair.client.sendall(noise(1000))
            except (ConnectionResetError, BrokenPipeError):
                return True
            return False

        until(told, 30, "an error for the client")
    here.forwarder.wait_log(1, "done-local-closed")


@pytest.mark.parametrize("how", ["reset", "close", "FIN, then reset"])
def test_a_client_that_leaves_with_both_directions_full(
    forwarder: StartForwarder, backend: StartServer, how: str
) -> None:
    """It has poured into an echo and read nothing, so the backend waits for us to read before it
    takes more. The session ends all the same, and the backend hears of it."""
    port, behind = free_port(), backend(echo)
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n")
    client = connect(("127.0.0.1", port))
    client.setblocking(False)
    full = time.monotonic() + 1
    while time.monotonic() < full:
        with suppress(BlockingIOError):
            client.send(noise(MIB))
            full = time.monotonic() + 1
    client.setblocking(True)
    if how == "close":
        client.close()
    else:
        if how != "reset":
            finish(client)
        reset(client)
    running.wait_log(2)
    assert columns(running.log_lines()[-1])["outcome"] == "done-remote-closed"
