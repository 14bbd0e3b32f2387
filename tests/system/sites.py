"""A running program with two backends that say who they are, and what its clients see of it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.forwarder import Forwarder
from tests.servers import Server
from tests.sockets import Address, connect, read_exactly

HOST = "127.0.0.1"
ENOUGH = 40
"""Connections after which every worker has had one: the kernel spreads them by a hash of the ports."""


@dataclass(frozen=True, slots=True)
class Site:
    """A running program and two backends, which greet with their own names and then echo."""

    forwarder: Forwarder
    port: int
    one: Server
    two: Server

    @property
    def address(self) -> Address:
        """The forward that the program was started with; it leads to `one`."""
        return HOST, self.port

    def line(self, port: int, backend: str = "one", host: str = HOST) -> str:
        """A line of configuration: from `port` on `host` to the backend called `backend`."""
        target: Server = getattr(self, backend)
        return f"{host} {port} {target.host} {target.port}\n"


StartSite = Callable[..., Site]


@contextmanager
def session(address: Address, greeting: str = "one") -> Iterator[socket.socket]:
    """A session with the backend that says `greeting`."""
    with connect(address) as client:
        assert read_exactly(client, 3) == greeting.encode()
        yield client


def lives(client: socket.socket) -> bool:
    """Whether the session still echoes."""
    client.sendall(b"ping")
    return read_exactly(client, 4) == b"ping"


def greeting(address: Address) -> str:
    """What a new client of `address` is told first.

    "" if it is turned away, `refused` if nobody listens, `reset` if its listener went while it
    connected: connect() itself says so where the reset comes before it returns.
    """
    try:
        with connect(address) as client:
            return read_exactly(client, 3).decode()
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"


def all_greet(address: Address, expected: str) -> bool:
    """Whether as many clients as it takes to meet both workers are all told `expected`."""
    return all(greeting(address) == expected for _ in range(ENOUGH))
