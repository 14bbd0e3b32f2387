"""A running forwarder with one forward, whose backend the test plays move by move."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests import processes
from tests.conftest import StartForwarder, StartServer
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import banner
from tests.sockets import Address, Listener, connect
from tests.system.sites import HOST, Site, StartSite


@dataclass(frozen=True, slots=True)
class Pair:
    """The two ends of a session: the client's socket and the backend's."""

    client: socket.socket
    backend: socket.socket


class Route:
    """One forward of a running program: `address` is where clients connect, `listener` its backend."""

    def __init__(self, forwarder: Forwarder, address: Address, listener: Listener) -> None:
        self.forwarder = forwarder
        self.address = address
        self.listener = listener

    @contextmanager
    def pair(self, source: str | None = None) -> Iterator[Pair]:
        """A session that is established on both sides; whatever is still open is closed at the end."""
        with connect(self.address, source) as client, self.listener.accept() as backend:
            yield Pair(client, backend)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It moves no byte inside the block: what happens there meets its workers as one burst."""
        pids = self.forwarder.serving()
        assert pids
        with processes.stopped(*pids):
            yield

    def greet(self, pair: Pair) -> None:
        """Four bytes each way: the session is established in the forwarder's eyes too."""
        pair.client.sendall(b"ping")
        assert pair.backend.recv(4) == b"ping"
        pair.backend.sendall(b"pong")
        assert pair.client.recv(4) == b"pong"

    def turn(self) -> None:
        """Let its loop turn: a whole session back and forth takes no less."""
        with self.pair() as pair:
            self.greet(pair)


StartRoute = Callable[..., Route]


@pytest.fixture
def route(forwarder: StartForwarder) -> Iterator[StartRoute]:
    """Call it, with options of `Forwarder` if need be, for a running `Route`.

    `extra` is configuration text that follows the forward's line; the default is
    one worker, whose loop `turn` then is known to pass.
    """
    with ExitStack() as stack:

        def start(extra: str = "", **options: object) -> Route:
            listener = stack.enter_context(Listener())
            port = free_port()
            line = f"127.0.0.1 {port} {listener.host} {listener.port}\n"
            running = forwarder(line + extra, **{"workers": 1, **options})
            return Route(running, ("127.0.0.1", port), listener)

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificate for localhost and its key, in one file that nobody else may read."""
    path = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    path.touch(mode=0o600)
    path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    return path


@pytest.fixture
def site(forwarder: StartForwarder, backend: StartServer) -> StartSite:
    """Call it for a running `Site`.

    `extra` is configuration text that follows the forward's line; options of
    `Forwarder` may follow.
    """

    def start(extra: str = "", **options: object) -> Site:
        one, two = (backend(banner, text) for text in ("one", "two"))
        port = free_port()
        line = f"{HOST} {port} {one.host} {one.port}\n"
        return Site(forwarder(line + extra, **options), port, one, two)

    return start
