"""The mover of TLS, between real connections: OpenSSL's own sockets are at the far ends."""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.relay.ciphering import CUT, Records, Stream, ciphering
from fastfwd.relay.pump import BUDGET, DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE, Pump, Tally
from tests import deadline
from tests.relay.ends import SMALL, connection
from tests.sockets import PATIENCE, noise, reset

WAYS = ("plain-tls", "tls-plain", "tls-tls")
"""What is at the source, and what at the sink."""

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost")


def contexts(version: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, which speak that version only."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFICATE.configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(client)
    for each in (server, client):
        each.minimum_version = each.maximum_version = VERSIONS[version]
    return server, client


class Path:
    """sender ==> source | pump | sink ==> receiver, of which one or both have TLS; the far ends block."""

    def __init__(
        self, way: str, version: str, *, small: bool = False, records: Records | None = None
    ) -> None:
        server, client = contexts(version)
        before, after = way.split("-")
        self.sender, source = connection()
        sink, self.receiver = connection(room=SMALL if small else None)
        self.records = shared = records or Records()
        self.source: socket.socket | Stream = source
        self.sink: socket.socket | Stream = sink
        for mine in (source, sink):
            mine.setblocking(False)
        if before == "tls":
            self.source = Stream(source, lambda i, o: server.wrap_bio(i, o, server_side=True), shared)
            self.sender = self.greet(self.source, self.sender, client, {"server_hostname": "localhost"})
        if after == "tls":
            self.sink = Stream(sink, lambda i, o: client.wrap_bio(i, o, server_hostname="localhost"), shared)
            self.receiver = self.greet(self.sink, self.receiver, server, {"server_side": True})
        self.pump = Pump(self.source, self.sink, ciphering(Tally()))
        self.pump.copy_only = True

    def greet(
        self, stream: Stream, far: socket.socket, context: ssl.SSLContext, how: dict[str, object]
    ) -> ssl.SSLSocket:
        """The handshake of `stream` with the far end."""
        found: list[ssl.SSLSocket] = []
        thread = threading.Thread(
            target=lambda: found.append(
                context.wrap_socket(far, suppress_ragged_eofs=False, **how)  # type: ignore[arg-type]
            )
        )
        thread.start()
        while not stream.handshake():
            wait(stream, select.POLLIN)
        thread.join(deadline.seconds(PATIENCE))
        return found[0]

    def turn(self, budget: int = BUDGET) -> int:
        """Call the mover once. Nothing is left in what all streams share."""
        verdict = self.pump.move(self.pump, budget)
        assert not self.records.incoming.pending
        assert not self.records.outgoing.pending
        return verdict

    def turn_until(self, *verdicts: int, budget: int = BUDGET) -> int:
        """Turn, waiting for whatever the verdict says, until it is one of `verdicts`."""
        while (verdict := self.turn(budget)) not in verdicts:
            assert verdict in (DRY, FULL, MORE), verdict
            if verdict == DRY:
                self.pump.to_end = bool(
                    wait(self.source, select.POLLIN | select.POLLRDHUP) & select.POLLRDHUP
                )
            elif verdict == FULL:
                wait(self.sink, select.POLLOUT)
        return verdict

    def receiving(self) -> tuple[threading.Thread, bytearray]:
        """A thread that receives to the end, and what it has received."""
        found = bytearray()

        def receive() -> None:
            while piece := self.receiver.recv(1 << 16):
                found.extend(piece)

        thread = threading.Thread(target=receive)
        thread.start()
        return thread, found

    def say_end(self) -> None:
        """The sender's farewell: close_notify, or a FIN; it can still receive."""
        if isinstance(self.sender, ssl.SSLSocket):
            self.sender.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                self.sender._sslobj.shutdown()  # type: ignore[attr-defined]
            self.sender.setblocking(True)
        else:
            self.sender.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close everything."""
        for end in (self.sender, self.source, self.sink, self.receiver):
            end.close()


def wait(end: socket.socket | Stream, mask: int) -> int:
    """Wait until `end` is ready for `mask` (select.POLL*); what for."""
    poll = select.poll()
    poll.register(end.fileno(), mask)
    events = poll.poll(deadline.seconds(PATIENCE) * 1000)
    assert events, f"socket not ready for {mask:#x}"
    return events[0][1]


@contextmanager
def path(
    way: str, version: str = "1.3", *, small: bool = False, records: Records | None = None
) -> Iterator[Path]:
    """A path of that kind, perhaps with records that others have too."""
    with ExitStack() as stack:
        made = Path(way, version, small=small, records=records)
        stack.callback(made.close)
        yield made


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", WAYS)
@settings(derandomize=True, deadline=None, max_examples=8)
@given(
    sizes=st.lists(st.one_of(st.integers(1, 200), st.integers(1, 200_000)), min_size=1, max_size=6),
    budget=st.sampled_from([1, 1000, 65536, BUDGET]),
    small=st.booleans(),
)
def test_bytes_are_exact_and_in_order(
    way: str, version: str, sizes: list[int], budget: int, small: bool
) -> None:
    """Whatever the pieces and the budget, what comes out is what went in, then the end."""
    with path(way, version, small=small) as here:
        data = [noise(size, number) for number, size in enumerate(sizes)]

        def send() -> None:
            for piece in data:
                here.sender.sendall(piece)
            here.say_end()

        sender = threading.Thread(target=send)
        sender.start()
        receiver, found = here.receiving()
        assert here.turn_until(END, budget=budget) == END
        here.sink.shutdown(socket.SHUT_WR)
        for thread in (sender, receiver):
            thread.join(deadline.seconds(PATIENCE))
        assert bytes(found) == b"".join(data)
        assert here.pump.taken == here.pump.given == len(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_streams_that_share_buffers_do_not_disturb_each_other(version: str) -> None:
    """By turns, with records that have come in part and records that have not been taken."""
    records = Records()
    with (
        path("tls-tls", version, small=True, records=records) as one,
        path("tls-tls", version, small=True, records=records) as other,
    ):
        here = {one: noise(500_000, 1), other: noise(500_000, 2)}
        threads, found = [], {}
        for each, data in here.items():
            threads.append(threading.Thread(target=each.sender.sendall, args=(data,)))
            threads[-1].start()
            receiver, found[each] = each.receiving()
            threads.append(receiver)
        while any(each.pump.given < len(data) for each, data in here.items()):
            for each in here:
                assert each.turn(1000) in (DRY, FULL, MORE)
        for each in here:
            each.say_end()
            assert each.turn_until(END) == END
            each.sink.shutdown(socket.SHUT_WR)
        for thread in threads:
            thread.join(deadline.seconds(PATIENCE))
        assert [bytes(found[each]) == data for each, data in here.items()] == [True, True]


def test_a_session_ticket_comes_with_the_first_answer() -> None:
    """A client that only writes has none to leave unread, which would reset its connection."""
    with path("tls-plain") as here:
        stream, client = here.source, here.sender
        assert isinstance(stream, Stream)
        assert isinstance(client, ssl.SSLSocket)
        assert stream.unsent
        assert client.session is None or not client.session.has_ticket
        stream.send(memoryview(b"answer"))
        assert client.recv(10) == b"answer"
        assert client.session is not None
        assert client.session.has_ticket
        assert not stream.unsent


def test_a_client_that_leaves_in_the_handshake_is_noticed_though_it_has_spoken() -> None:
    """Its words and its FIN are one event."""
    server, client = contexts("1.3")
    far, sock = connection()
    sock.setblocking(False)
    stream = Stream(sock, lambda i, o: server.wrap_bio(i, o, server_side=True), Records())
    hello = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    far.sendall(hello.read())
    far.shutdown(socket.SHUT_WR)
    wait(stream, select.POLLRDHUP)
    with pytest.raises(ConnectionResetError):
        stream.handshake()
    stream.close()
    far.close()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_move_is_dry(way: str) -> None:
    """Without a byte at the source the verdict is DRY, and nothing is counted."""
    with path(way) as here:
        assert here.turn() == DRY
        assert here.pump.taken == 0


@pytest.mark.parametrize("size", [1, 16384, 16385, 65536, 150_000])
@pytest.mark.parametrize("way", ["tls-plain", "tls-tls"])
def test_dry_means_that_everything_was_decrypted(way: str, size: int) -> None:
    """DRY with a record at the source, or half-way in OpenSSL, would lose epoll's edge."""
    with path(way) as here:
        here.sender.sendall(noise(size))
        here.turn_until(DRY)
        while here.pump.taken < size:  # loopback may still be on the way
            wait(here.source, select.POLLIN)
            here.turn_until(DRY)
        assert not here.source.waiting  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["tls-plain", "tls-tls"])
def test_a_stream_that_is_cut_has_not_ended(way: str) -> None:
    """A FIN without close_notify before it is no end: somebody else may have sent it."""
    with path(way) as here:
        here.sender.sendall(b"half of it")
        socket.socket.shutdown(here.sender, socket.SHUT_WR)
        assert here.turn_until(SOURCE_BROKE) == SOURCE_BROKE
        assert (here.pump.given, here.pump.error) == (10, CUT)


@pytest.mark.parametrize("way", ["tls-plain", "tls-tls"])
def test_a_stream_that_is_cut_within_a_record_has_not_ended(way: str) -> None:
    """Part of a record and the FIN at once: epoll tells of both in one event, and never again."""
    with path(way) as here:
        socket.socket.send(here.sender, b"\x17\x03\x03\x40\x00" + bytes(100))
        socket.socket.shutdown(here.sender, socket.SHUT_WR)
        assert wait(here.source, select.POLLRDHUP)
        here.pump.to_end = True
        assert here.turn() == SOURCE_BROKE
        assert here.pump.error == CUT


@pytest.mark.parametrize("way", ["tls-plain", "tls-tls"])
def test_a_record_that_is_none_breaks_the_stream(way: str) -> None:
    """What does not decrypt is not passed on; what came before it is."""
    with path(way) as here:
        here.sender.sendall(b"good")
        socket.socket.send(here.sender, b"\x17\x03\x03\x00\x20" + bytes(32))
        assert here.turn_until(SOURCE_BROKE) == SOURCE_BROKE
        assert (here.pump.given, here.pump.error) == (4, CUT)


@pytest.mark.parametrize("way", WAYS)
def test_a_reset_is_not_an_end(way: str) -> None:
    """After a reset the verdict is SOURCE_BROKE, and the error is the socket's."""
    with path(way) as here:
        reset(here.sender)
        assert here.turn_until(SOURCE_BROKE) == SOURCE_BROKE
        assert here.pump.error == errno.ECONNRESET


@pytest.mark.parametrize("way", WAYS)
def test_a_clogged_sink_is_full_and_resumes_exactly(way: str) -> None:
    """Nothing more is read while the sink takes nothing; then everything comes, once."""
    with path(way, small=True) as here:
        data = noise(4 << 20)
        sender = threading.Thread(target=lambda: (here.sender.sendall(data), here.say_end()))
        sender.start()
        here.turn_until(FULL)
        taken = here.pump.taken
        assert here.turn() == FULL
        assert here.pump.taken == taken
        assert 0 < here.pump.pending <= 1 << 17
        receiver, found = here.receiving()
        here.turn_until(END)
        here.sink.shutdown(socket.SHUT_WR)
        for thread in (sender, receiver):
            thread.join(deadline.seconds(PATIENCE))
        assert bytes(found) == data


@pytest.mark.parametrize("way", WAYS)
def test_a_sink_that_was_reset_is_broken(way: str) -> None:
    """SINK_BROKE, and what was lost with it is counted as pending."""
    with path(way) as here:
        reset(here.receiver)
        wait(here.sink, select.POLLHUP)
        here.sender.sendall(b"late")
        assert here.turn_until(SINK_BROKE) == SINK_BROKE
        assert here.pump.given == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_other_direction_goes_on_after_the_farewell(version: str) -> None:
    """close_notify ends one direction only (RFC 8446, 6.1): what the client still says comes through."""
    with path("tls-plain", version) as here:
        stream = here.source
        assert isinstance(stream, Stream)
        here.sender.sendall(noise(100_000))  # on its way, before the farewell
        wait(stream, select.POLLIN)
        assert stream.say_end()
        stream.shutdown(socket.SHUT_WR)
        assert here.sender.recv(1) == b""
        receiver, found = here.receiving()
        here.sender._sslobj.write(b"last words")  # type: ignore[attr-defined]
        here.sender = here.sender.unwrap()  # type: ignore[attr-defined]
        assert here.turn_until(END) == END
        here.sink.shutdown(socket.SHUT_WR)
        receiver.join(deadline.seconds(PATIENCE))
        assert bytes(found) == noise(100_000) + b"last words"
