"""UDP endpoints for tests: a backend that answers as it is told, and clients.

with UdpBackend() as backend:                  # echoes; backend.seen: (data, sender) of every datagram
with udp_client(("127.0.0.1", port)) as client: client.send(b"..."); client.recv(LARGEST)
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests import deadline
from tests.sockets import PATIENCE, Address, family_of

LARGEST: Final = 65_535

Answer = Callable[[bytes], list[bytes]]
"""A datagram -> the datagrams that are sent back."""


def same(data: bytes) -> list[bytes]:
    """An echo."""
    return [data]


class UdpBackend:
    """Answers every datagram in a thread; `seen` are all that came, with their senders."""

    def __init__(self, answer: Answer = same, host: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(family_of(host), socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((host, port))
        self.address: Address = self.socket.getsockname()[:2]
        self.host, self.port = self.address
        self.seen: list[tuple[bytes, Address]] = []
        self.answer = answer
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Thread: until it is closed."""
        while True:
            try:
                data, sender = self.socket.recvfrom(LARGEST)
            except OSError:
                return
            if data == b"" and sender[:2] == self.address:
                return  # from `close`
            self.seen.append((data, sender))
            for each in self.answer(data):
                self.socket.sendto(each, sender)

    def senders(self) -> list[Address]:
        """Who has sent something, in order, each once."""
        return list(dict.fromkeys(sender for _, sender in self.seen))

    def close(self) -> None:
        """Stop."""
        self.socket.sendto(b"", self.address)
        self.thread.join(deadline.seconds(10))
        self.socket.close()

    def __enter__(self) -> UdpBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def udp_client(address: Address, source: str | None = None) -> Iterator[socket.socket]:
    """A client that talks to `address` and hears nobody else, from `source` if given."""
    with socket.socket(family_of(address[0]), socket.SOCK_DGRAM) as client:
        client.settimeout(deadline.seconds(PATIENCE))
        if source is not None:
            client.bind((source, 0))
        client.connect(address)
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    """Send a datagram, return the next one that comes."""
    client.send(data)
    return client.recv(LARGEST)
