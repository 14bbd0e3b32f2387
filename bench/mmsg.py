"""Many datagrams with one system call: sendmmsg(2) and recvmmsg(2), which Python does not have.

The client of datagrams (clients) and the backend that sends them back (echo) are made of
it: what they do per datagram is done by the kernel, so that the forwarder between them
has most of the processors. The layouts are those of 64-bit Linux.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence

LENGTH = 100
"""Bytes of every datagram."""

MSG_WAITFORONE = 0x10000  # recvmmsg(2); the socket module has no name for it
IP_PKTINFO = 8  # linux/in.h; nor for this
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; nor for this

UDP_HEADER = 8
"""Bytes (RFC 768); a filter of a UDP socket sees them before the data."""

WHOLE = (
    (0x80, 0, 0, 0),  # A = the packet's length
    (0x15, 0, 1, UDP_HEADER + LENGTH),  # go on if it is that of our datagrams
    (0x06, 0, 0, 0xFFFF_FFFF),  # take it
    (0x06, 0, 0, 0),  # drop it
)
"""Classic BPF (struct sock_filter, linux/filter.h): code, two jumps, a constant."""


def opened() -> socket.socket:
    """A UDP socket that takes datagrams of LENGTH bytes. The kernel drops others before anybody is
    woken for them: C rinetd begins each flow with an empty one to the backend, and sends clients
    empty ones in between."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in WHOLE))
    filtered = struct.pack("@HP", len(WHOLE), ctypes.addressof(program))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filtered)
    return sock


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", Header), ("length", ctypes.c_uint))


class Name(ctypes.Structure):
    """struct sockaddr_in."""

    _fields_ = (
        ("family", ctypes.c_ushort),
        ("port", ctypes.c_ubyte * 2),
        ("address", ctypes.c_ubyte * 4),
        ("zero", ctypes.c_ubyte * 8),
    )


class Source(ctypes.Structure):
    """struct cmsghdr with struct in_pktinfo: the address that a datagram is sent from (ip(7))."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("level", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("interface", ctypes.c_int),
        ("source", ctypes.c_ubyte * 4),
        ("destination", ctypes.c_ubyte * 4),
    )


libc = ctypes.CDLL(None, use_errno=True)
libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
libc.recvmmsg.argtypes = (*libc.sendmmsg.argtypes, ctypes.c_void_p)


class Batch:
    """Datagrams of LENGTH bytes side by side in one buffer, `data`, each with a name: whom it
    came from, or goes to."""

    def __init__(self, count: int) -> None:
        """Room for `count`."""
        self._names = (Name * count)()
        self._data = ctypes.create_string_buffer(count * LENGTH)
        self._vectors = (Vector * count)()
        self._messages = (Message * count)()
        self._sources = (Source * count)()
        self.data = memoryview(self._data).cast("B")
        for number, (vector, message) in enumerate(zip(self._vectors, self._messages, strict=True)):
            vector.base, vector.length = ctypes.addressof(self._data) + number * LENGTH, LENGTH
            header = message.header
            header.name, header.name_length = ctypes.addressof(self._names[number]), ctypes.sizeof(Name)
            header.vector, header.vectors = ctypes.addressof(vector), 1

    @classmethod
    def to(cls, address: tuple[str, int], sources: Sequence[str]) -> Batch:
        """A datagram to `address` from each of the addresses `sources`, all of which have the
        first one's bytes."""
        batch = cls(len(sources))
        host, port = socket.inet_aton(address[0]), address[1].to_bytes(2, "big")
        for number, source in enumerate(sources):
            batch._vectors[number].base = batch._vectors[0].base
            batch._names[number] = Name(socket.AF_INET, tuple(port), tuple(host))
            batch._sources[number] = Source(
                ctypes.sizeof(ctypes.c_size_t) + 8 + 12,  # CMSG_LEN: without what fills it up
                socket.IPPROTO_IP,
                IP_PKTINFO,
                0,
                tuple(socket.inet_aton(source)),
            )
            header = batch._messages[number].header
            header.control, header.control_length = (
                ctypes.addressof(batch._sources[number]),
                ctypes.sizeof(Source),
            )
        return batch

    def receive(self, sock: socket.socket) -> int:
        """Wait for a datagram, and take what else is there; how many. Raises OSError, also when
        the socket's SO_RCVTIMEO is over."""
        got: int = libc.recvmmsg(sock.fileno(), self._messages, len(self._messages), MSG_WAITFORONE, None)
        return checked(got)

    def send(self, sock: socket.socket, first: int, count: int) -> None:
        """Send `count` datagrams from the `first` on. Raises OSError."""
        while count:
            start = ctypes.addressof(self._messages) + first * ctypes.sizeof(Message)
            sent = checked(libc.sendmmsg(sock.fileno(), start, count, 0))
            first, count = first + sent, count - sent


def checked(result: int) -> int:
    """What a system call has answered. Raises OSError if that is an error."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
