"""One direction may end long before the other: every FIN is passed on, nothing else is closed by it.

rinetd closes both sides at the first FIN and loses the reply. Here a FIN from one
side becomes a shutdown(SHUT_WR) on the other after the last byte (RFC 9293, 3.6).
"""

from __future__ import annotations

import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.forwarder import columns
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import Ending, Sending, connect, finish, noise, queued, read_exactly, read_to_end
from tests.system.conftest import Route, StartRoute

MIB = 1 << 20


def test_reply_of_1_mib_follows_the_clients_fin(route: StartRoute) -> None:
    """After the client's FIN the backend's whole reply still reaches it, however late the reply begins."""
    here = route()
    with here.pair() as pair:
        pair.client.sendall(b"request")
        finish(pair.client)
        assert read_to_end(pair.backend) == Ending(b"request", "EOF")
        here.turn()
        assert queued(pair.client) == 0
        with Sending(pair.backend, noise(MIB)):
            assert read_to_end(pair.client) == Ending(noise(MIB), "EOF")


def test_upload_of_1_mib_follows_the_backends_fin(route: StartRoute) -> None:
    """After the backend's FIN the client's bytes still reach it."""
    here = route()
    with here.pair() as pair:
        pair.backend.sendall(b"banner")
        finish(pair.backend)
        assert read_to_end(pair.client) == Ending(b"banner", "EOF")
        here.turn()
        with Sending(pair.client, noise(MIB)):
            assert read_to_end(pair.backend) == Ending(noise(MIB), "EOF")


@pytest.mark.parametrize("first", ["client", "backend"])
def test_a_fin_alone_is_passed_on(route: StartRoute, first: str) -> None:
    """A FIN without a byte reaches the other side while the way back stays open."""
    here = route()
    with here.pair() as pair:
        ends = (pair.client, pair.backend) if first == "client" else (pair.backend, pair.client)
        finish(ends[0])
        assert ends[1].recv(1) == b""
        here.turn()
        ends[1].sendall(b"later")
        assert read_exactly(ends[0], 5) == b"later"


def test_a_fin_is_passed_on_at_once(route: StartRoute) -> None:
    """The backend sees the client's FIN within 50 ms (the median of 100): no timer is waited for."""
    here = route()
    delays = []
    for _ in range(100):
        with here.pair() as pair:
            began = time.monotonic()
            finish(pair.client)
            assert pair.backend.recv(1) == b""
            delays.append(time.monotonic() - began)
    assert statistics.median(delays) < deadline.seconds(0.05)


def test_both_directions_end_independently(route: StartRoute) -> None:
    """4 MiB and a FIN each way at the same time: both arrive whole."""
    here = route()
    one, two = noise(4 * MIB, 1), noise(4 * MIB, 2)
    with (
        ThreadPoolExecutor(2) as pool,
        here.pair() as pair,
        Sending(pair.client, one),
        Sending(pair.backend, two),
    ):
        endings = list(pool.map(read_to_end, (pair.backend, pair.client)))
    assert endings == [Ending(one, "EOF"), Ending(two, "EOF")]


@pytest.mark.parametrize("direction", ["to-backend", "to-client"])
def test_a_fin_behind_a_stalled_reader_waits_for_the_bytes(route: StartRoute, direction: str) -> None:
    """A FIN behind 16 MiB for a side that does not read arrives after them, not instead of them."""
    here = route()
    with here.pair() as pair:
        writer, reader = (
            (pair.client, pair.backend) if direction == "to-backend" else (pair.backend, pair.client)
        )
        with Sending(writer, noise(16 * MIB)):
            until_full(here, reader)
            assert read_to_end(reader) == Ending(noise(16 * MIB), "EOF")
        reader.sendall(b"and back")
        assert read_exactly(writer, 8) == b"and back"


def until_full(here: Route, reader: socket.socket) -> None:
    """Wait until the reader's queue no longer grows from one turn of the loop to the next."""
    sizes = [0]

    def steady() -> bool:
        here.turn()
        sizes.append(queued(reader))
        return sizes[-1] > 0 and sizes[-1] == sizes[-2]

    until(steady, what="a full receive queue")


def test_a_half_closed_session_behind_a_stalled_reader_costs_no_cpu(route: StartRoute) -> None:
    """The client's FIN behind a full backend is an event that cannot be handled yet: the loop rests."""
    here = route()
    with here.pair() as pair, Sending(pair.client, noise(8 * MIB)):
        until_full(here, pair.backend)
        worker = here.forwarder.worker()
        span, before = 1.0, cpu(worker)
        end = time.monotonic() + span
        until(lambda: time.monotonic() >= end)
        assert cpu(worker) - before < 0.1 * span
        assert read_to_end(pair.backend).data == noise(8 * MIB)


def cpu(pid: int) -> float:
    """Seconds of processor time used by `pid`."""
    found = processes.stat(pid)
    assert found is not None
    return found.cpu


def test_a_thousand_sessions_with_half_close(forwarder: StartForwarder) -> None:
    """1,000 requests that end with a FIN, 20 at a time, get their whole replies of 20,000 bytes."""
    port = free_port()
    with serve_apart("answer_at_end", 20_000) as backend:
        forwarder(f"127.0.0.1 {port} {backend.host} {backend.port}\n")

        def ask(number: int) -> Ending:
            with connect(("127.0.0.1", port)) as client:
                client.sendall(b"%d" % number)
                finish(client)
                return read_to_end(client)

        with ThreadPoolExecutor(20) as pool:
            endings = list(pool.map(ask, range(1000)))
    assert [ending for ending in endings if ending != Ending(noise(20_000), "EOF")] == []


def test_sizes_around_every_buffer(route: StartRoute) -> None:
    """Requests and replies of sizes at the edges of buffers and pipes pass whole, with a FIN behind each."""
    here = route()
    for size in (0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 131_072, 262_145, MIB + 1):
        with here.pair() as pair:
            with Sending(pair.client, noise(size, 1)):
                assert read_to_end(pair.backend) == Ending(noise(size, 1), "EOF")
            with Sending(pair.backend, noise(size, 2)):
                assert read_to_end(pair.client) == Ending(noise(size, 2), "EOF")


@pytest.mark.parametrize(
    ("first", "word"), [("client", "done-remote-closed"), ("backend", "done-local-closed")]
)
def test_the_log_names_who_closed_first(route: StartRoute, first: str, word: str) -> None:
    """The word is that of the first FIN; the line comes at the very end, with the bytes after that FIN."""
    here = route()
    with here.pair() as pair:
        ends = (pair.client, pair.backend) if first == "client" else (pair.backend, pair.client)
        finish(ends[0])
        assert ends[1].recv(1) == b""
        here.turn()
        assert "\t4\t4\tdone-" in here.forwarder.wait_log(3)[2]  # the turn's, and still none of this session
        ends[1].sendall(noise(3000))
        finish(ends[1])
        assert len(read_to_end(ends[0]).data) == 3000
    line = columns(here.forwarder.wait_log(4)[3])
    sent = {"client": ("0", "3000"), "backend": ("3000", "0")}[first]
    assert (line["outcome"], line["bytes_in"], line["bytes_out"]) == (word, *sent)


def test_half_closed_sessions_leave_no_descriptor(route: StartRoute) -> None:
    """After 100 sessions with half close the program holds as many descriptors as before."""
    here = route()
    here.turn()
    here.forwarder.wait_log(2)
    worker = here.forwarder.worker()
    before = len(processes.descriptors(worker))
    for _ in range(100):
        with here.pair() as pair:
            finish(pair.client)
            assert pair.backend.recv(1) == b""
            pair.backend.sendall(b"x")
    until(lambda: len(processes.descriptors(worker)) <= before, what=f"no more than {before} descriptors")
