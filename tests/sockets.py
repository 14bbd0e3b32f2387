"""Small moves of a TCP endpoint, for clients and for backends that a test plays itself.

Every socket made here has a timeout, so a lost byte fails a test instead of hanging it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import random
import socket
import struct
import termios
import threading
from dataclasses import dataclass
from functools import lru_cache

from tests import deadline
from tests.ports import free_port

Address = tuple[str, int]

PATIENCE = 20.0
"""Seconds that one socket call may take (scaled like every deadline)."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended for its reader: the bytes that came, and the errno's name, or `EOF`."""

    data: bytes
    how: str

    def __repr__(self) -> str:
        return f"Ending({len(self.data)} bytes {self.data[:20]!r}, {self.how})"


def family_of(host: str) -> socket.AddressFamily:
    """The address family that `host`, a numeric address, belongs to."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connect(address: Address, source: str | None = None) -> socket.socket:
    """A client connected to `address`, from the address `source` if given."""
    client = socket.socket(family_of(address[0]), socket.SOCK_STREAM)
    try:
        client.settimeout(deadline.seconds(PATIENCE))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            client.bind((source, 0))
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


class Listener:
    """A backend that the test plays itself: `accept()` hands over the forwarder's connections."""

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, backlog: int = 1024) -> None:
        self.socket = socket.socket(family_of(host), socket.SOCK_STREAM)
        try:
            self.socket.settimeout(deadline.seconds(PATIENCE))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((host, port or free_port()))
            self.socket.listen(backlog)
        except BaseException:
            self.socket.close()
            raise
        self.address: Address = self.socket.getsockname()[:2]
        self.host, self.port = self.address

    def accept(self) -> socket.socket:
        """The next connection; raises TimeoutError when none comes."""
        connection, _ = self.socket.accept()
        connection.settimeout(deadline.seconds(PATIENCE))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN (socket(7), SO_LINGER with a zero time)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """The next `size` bytes; fewer only when the stream ends before them."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 20))
        if not piece:
            break
        data += piece
    return bytes(data)


def read_to_end(connection: socket.socket) -> Ending:
    """Everything up to the end of the stream, and how it ended."""
    data = bytearray()
    while True:
        try:
            piece = connection.recv(1 << 20)
        except TimeoutError:
            raise
        except OSError as error:
            return Ending(bytes(data), errno.errorcode[error.errno or 0])
        if not piece:
            return Ending(bytes(data), "EOF")
        data += piece


class Sending:
    """A thread that sends `data` and then, with `finish`, the FIN; `error` is what stopped it."""

    def __init__(self, end: socket.socket, data: bytes, *, finish: bool = True) -> None:
        self.end = end
        self.data = data
        self.finish = finish
        self.error: OSError | None = None
        self.thread = threading.Thread(target=self.send, daemon=True)

    def send(self) -> None:
        """Thread: all of it."""
        try:
            self.end.sendall(self.data)
            if self.finish:
                self.end.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = error

    def __enter__(self) -> Sending:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.join(deadline.seconds(30))
        assert not self.thread.is_alive(), "still sending"


def finish(end: socket.socket) -> None:
    """Send the FIN; go on reading."""
    end.shutdown(socket.SHUT_WR)


@lru_cache(maxsize=32)
def noise(size: int, seed: int = 1) -> bytes:
    """`size` pseudo-random bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes | bytearray) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def queued(connection: socket.socket) -> int:
    """Bytes that wait in the receive queue of `connection` (tcp(7), SIOCINQ)."""
    (size,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))
    return int(size)


def unsent(connection: socket.socket) -> int:
    """Bytes in the send queue of `connection` that the peer's kernel has not taken (tcp(7), SIOCOUTQ)."""
    (size,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(size)
