"""Small real backends, in threads of the test or in a process of their own.

    with serve(echo) as backend: ...             # backend.host, backend.port
    with serve(source, 1 << 20) as backend: ...  # sends noise(1 << 20), closes
    with serve_apart("echo") as backend: ...     # the same handlers, another process: for load

A handler gets one accepted connection and may return when it is done with it; the
server closes it. To play the backend by hand, move by move, see sockets.Listener.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests import deadline
from tests.apart import apart, said, say
from tests.deadline import until
from tests.sockets import Address, Listener, noise, reset, sha256

PIECE = 1 << 16


@dataclass(slots=True)
class Visit:
    """What a backend saw of one connection: the caller's address, its bytes, how they ended.

    `ended` is set at the end of the caller's stream, `how` is then `EOF` or the
    errno's name; `digest` is the SHA-256 of what came.
    """

    peer: Address
    received: bytearray = field(default_factory=bytearray)
    how: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def digest(self) -> str:
        return sha256(self.received)

    def end(self, how: str) -> None:
        """Note how the caller's stream ended."""
        self.how = how
        self.ended.set()


Handler = Callable[..., None]
"""Called as handler(connection, visit, *arguments)."""


def echo(connection: socket.socket, visit: Visit) -> None:
    """Send back what comes, until EOF; then close."""
    while data := connection.recv(PIECE):
        connection.sendall(data)
    visit.end("EOF")


def answer_at_end(connection: socket.socket, visit: Visit, size: int = 0) -> None:
    """Read until EOF, then send noise(`size`) and close: needs half close."""
    sink(connection, visit)
    connection.sendall(noise(size))


def banner(connection: socket.socket, visit: Visit, text: str = "SSH-2.0-test\r\n") -> None:
    """Speak first, as ssh and smtp do, then echo."""
    connection.sendall(text.encode())
    echo(connection, visit)


def sink(connection: socket.socket, visit: Visit) -> None:
    """Read until the end and keep the bytes in the visit."""
    while data := connection.recv(PIECE):
        visit.received += data
    visit.end("EOF")


def source(connection: socket.socket, visit: Visit, size: int = 1 << 20, seed: int = 1) -> None:
    """Send noise(`size`, `seed`), close the sending side, then read what comes until EOF."""
    connection.sendall(noise(size, seed))
    connection.shutdown(socket.SHUT_WR)
    sink(connection, visit)


def stalled(connection: socket.socket, visit: Visit) -> None:
    """Read nothing until `visit.released` is set (or the server closes), then read to the end."""
    connection.settimeout(None)
    visit.released.wait()
    sink(connection, visit)


def resetter(connection: socket.socket, visit: Visit, size: int = 1) -> None:
    """Read `size` bytes, then answer with RST."""
    while len(visit.received) < size and (data := connection.recv(PIECE)):
        visit.received += data
    reset(connection)


def goodbye(connection: socket.socket, visit: Visit) -> None:
    """Close at once: with `Server.count` it counts connections."""


HANDLERS: dict[str, Handler] = {
    handler.__name__: handler
    for handler in (echo, answer_at_end, banner, sink, source, stalled, resetter, goodbye)
}


class Server:
    """Accepts connections and runs a handler for each in a thread of its own."""

    def __init__(self, handler: Handler, *arguments: object, host: str, port: int | None) -> None:
        self.handler = handler
        self.arguments = arguments
        self.visits: list[Visit] = []
        self.open: dict[int, socket.socket] = {}
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.closing = False
        self.listener = Listener(host, port)
        self.listener.socket.settimeout(None)
        self.address = self.listener.address
        self.host, self.port = self.address
        self.acceptor = threading.Thread(target=self.accept, daemon=True)
        self.acceptor.start()

    @property
    def count(self) -> int:
        """How many connections have come."""
        return len(self.visits)

    def visit(self, index: int = 0, seconds: float = 10) -> Visit:
        """The visit of the connection with this number, once it has come."""
        until(lambda: len(self.visits) > index, seconds, f"connection {index} at the backend")
        return self.visits[index]

    def accept(self) -> None:
        """Thread: accept until the listener is shut down."""
        while True:
            try:
                connection, peer = self.listener.socket.accept()
            except ConnectionAbortedError:  # a caller that reset before it was accepted
                continue
            except OSError:
                return
            visit = Visit(peer[:2])
            with self.lock:
                if self.closing:
                    connection.close()
                    return
                number = len(self.visits)
                self.visits.append(visit)
                self.open[number] = connection
                thread = threading.Thread(target=self.handle, args=(number, connection, visit), daemon=True)
                self.threads = [held for held in self.threads if held.is_alive()] + [thread]
                thread.start()

    def handle(self, number: int, connection: socket.socket, visit: Visit) -> None:
        """Thread: one connection."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.handler(connection, visit, *self.arguments)
        except OSError as error:
            visit.end(errno.errorcode.get(error.errno or 0, type(error).__name__))
        finally:
            with self.lock:
                self.open.pop(number, None)
                connection.close()
            visit.ended.set()

    def close(self) -> None:
        """Stop accepting, end what is open, wait for the threads."""
        with self.lock:
            self.closing = True
            for connection in self.open.values():
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        for visit in self.visits:
            visit.released.set()
        try:
            self.listener.socket.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would not
        except OSError:
            pass
        self.acceptor.join(deadline.seconds(10))
        self.listener.close()
        for thread in self.threads:
            thread.join(deadline.seconds(10))


@contextmanager
def serve(
    handler: Handler, *arguments: object, host: str = "127.0.0.1", port: int | None = None
) -> Iterator[Server]:
    """A server in threads of this process."""
    server = Server(handler, *arguments, host=host, port=port)
    try:
        yield server
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class Apart:
    """A server in a process of its own."""

    host: str
    port: int
    pid: int

    @property
    def address(self) -> Address:
        return self.host, self.port


@contextmanager
def serve_apart(name: str, *arguments: int | str, host: str = "127.0.0.1") -> Iterator[Apart]:
    """The handler called `name` in another process, so that a test's load does not share its interpreter."""
    with apart(__name__, host, name, *arguments) as process:
        yield Apart(host, int(said(process)), process.pid)


def main() -> None:
    """`python -m tests.servers HOST HANDLER [ARGUMENT...]`: say the port, serve until stdin ends."""
    host, name, *rest = sys.argv[1:]
    arguments = [int(text) if text.isdigit() else text for text in rest]
    server = Server(HANDLERS[name], *arguments, host=host, port=None)
    say(server.port)
    sys.stdin.read()
    os._exit(0)  # its threads may be in the middle of a connection


if __name__ == "__main__":
    main()
