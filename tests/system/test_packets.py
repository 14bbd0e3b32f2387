"""What a connection costs the network: packets on the loopback, seen as tcpdump sees them (packet(7))."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import processes
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.peers import require_root
from tests.ports import free_port
from tests.sockets import Ending, Listener, connect, finish, read_exactly, read_to_end, unsent
from tests.system.conftest import StartRoute

pytestmark = pytest.mark.alone

ETH_P_IP = 0x0800
FIN, SYN, ACK = 1, 2, 16


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment: its ports, its flags, the bytes it carries."""

    source: int
    target: int
    flags: int
    payload: bytes


class Wire:
    """Every TCP segment that has arrived on the loopback since it was made."""

    def __init__(self) -> None:
        require_root()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind(("lo", ETH_P_IP))
        self.seen: list[Packet] = []

    def packets(self, source: int = 0, target: int = 0) -> list[Packet]:
        """Those from and to the given ports (0: any), in order."""
        arrived = select.poll()  # select(2) knows no descriptor above 1,023
        arrived.register(self.socket, select.POLLIN)
        while arrived.poll(0):
            data, (_, _, kind, *_) = self.socket.recvfrom(1 << 17)
            if kind == socket.PACKET_HOST and data[9] == socket.IPPROTO_TCP:
                self.seen.append(parsed(data))
        return [
            packet for packet in self.seen if source in {0, packet.source} and target in {0, packet.target}
        ]

    def close(self) -> None:
        self.socket.close()


def parsed(data: bytes) -> Packet:
    """A segment out of an IPv4 packet (RFC 791, RFC 9293)."""
    length = int.from_bytes(data[2:4], "big")
    tcp = data[(data[0] & 15) * 4 : length]
    source, target = struct.unpack_from("!HH", tcp)
    return Packet(source, target, tcp[13] & (FIN | SYN | ACK), tcp[(tcp[12] >> 4) * 4 :])


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The loopback, watched."""
    watched = Wire()
    yield watched
    watched.close()


def data(packets: list[Packet]) -> list[tuple[bytes, bool]]:
    """What was sent, segment by segment, and whether the FIN came with it; pure ACKs left out."""
    return [(each.payload, bool(each.flags & FIN)) for each in packets if each.payload or each.flags & FIN]


def test_the_clients_first_words_end_the_handshake_with_the_backend(route: StartRoute, wire: Wire) -> None:
    """What a client has said before it is served goes out with the last ACK: no packet without bytes."""
    here = route()
    with here.frozen():
        client = connect(here.address)
        client.sendall(b"hello")
        until(lambda: not unsent(client), what="the words at the forwarder")
    with client, here.listener.accept() as backend:
        assert read_exactly(backend, 5) == b"hello"
        first, second, *_ = wire.packets(target=here.listener.port)
        assert (first.flags, first.payload) == (SYN, b"")
        assert (second.flags, second.payload) == (ACK, b"hello")


def test_a_backend_that_speaks_first_is_not_kept_waiting(route: StartRoute, wire: Wire) -> None:
    """While the client says nothing, the handshake with the backend is completed at once."""
    here = route()
    with here.pair() as pair:
        pair.backend.sendall(b"banner")
        assert read_exactly(pair.client, 6) == b"banner"
        first, second, *_ = wire.packets(target=here.listener.port)
        greeting = wire.packets(source=here.listener.port)[1]
        assert (first.flags, second.flags, second.payload) == (SYN, ACK, b"")
        assert greeting.payload == b"banner"
        assert wire.seen.index(second) < wire.seen.index(greeting)


@pytest.mark.parametrize("last", ["client", "backend"])
def test_the_last_bytes_and_the_fin_are_one_packet(route: StartRoute, wire: Wire, last: str) -> None:
    """A side that sends and closes is passed on as it came: one segment with the bytes and the FIN."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        speaker, hearer = (pair.client, pair.backend) if last == "client" else (pair.backend, pair.client)
        before = len(wire.packets())
        with here.frozen():
            speaker.sendall(b"farewell")
            finish(speaker)
        assert read_to_end(hearer) == Ending(b"farewell", "EOF")
        wire.packets()
        target = hearer.getsockname()[1]
        assert data([each for each in wire.seen[before:] if each.target == target]) == [(b"farewell", True)]


def test_bytes_without_a_fin_are_not_held_back(route: StartRoute, wire: Wire) -> None:
    """Only an announced end makes bytes wait for it: an answer that goes on is sent as it comes."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        for word in (b"one", b"two"):
            pair.backend.sendall(word)
            assert read_exactly(pair.client, 3) == word
        finish(pair.backend)
        assert read_to_end(pair.client) == Ending(b"", "EOF")
        sent = data(wire.packets(source=here.address[1], target=pair.client.getsockname()[1]))
        assert sent == [(b"pong", False), (b"one", False), (b"two", False), (b"", True)]


def test_who_the_client_is_goes_with_its_first_words(
    forwarder: StartForwarder, listener: Listener, wire: Wire
) -> None:
    """One packet has the PROXY header, what the client has said, and the last ACK of the handshake."""
    port = free_port()
    here = forwarder(f"127.0.0.1 {port} {listener.host} {listener.port} [send-proxy=v2]\n", workers=1)
    with processes.stopped(*here.serving()):
        client = connect(("127.0.0.1", port))
        client.sendall(b"hello")
        until(lambda: not unsent(client), what="the words at the forwarder")
    with client, listener.accept() as backend:
        assert read_exactly(backend, 33).endswith(b"hello")
        first, second, *_ = wire.packets(target=listener.port)
        assert (first.flags, len(second.payload), second.payload[-5:]) == (SYN, 33, b"hello")
