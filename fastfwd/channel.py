"""The socket pair between the supervisor and one child: framed messages, with descriptors.

Both ends use it. Downwards (supervisor to child) a message is pickled: the child is
the supervisor's own fork. Upwards it is JSON, because a worker faces the network and
the supervisor must not let it choose objects. Sending never waits: what the socket
does not take stays in a queue until `flush`.

End of file means that the other process is gone, and nothing else: orders to retire
are messages.
"""

from __future__ import annotations

import array
import logging
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import orjson

HEADER: Final = struct.Struct("!II")
"""Payload length in bytes, number of descriptors."""

BATCH: Final = 250
"""Descriptors per sendmsg; the kernel takes at most 253 (SCM_MAX_FD, unix(7))."""

LIMIT_DOWN: Final = 64 << 20
LIMIT_UP: Final = 64 << 10
"""Longest payload in bytes: a table of a hundred thousand forwards down, a traceback up."""

DEPTH: Final = 3
"""How deep a message from below is nested at most: a dict of lists of pairs, in an answer with
addresses. What is nested a thousand deep can be read, but not shown: its repr is a RecursionError."""

READS: Final = 64
"""Reads per `receive`: a child that never stops talking must not hold the supervisor."""

Message = dict[str, Any]


class ChannelError(Exception):
    """The peer sent something that is not a message."""


class Channel:
    """One end of the pair."""

    def __init__(self, sock: socket.socket, *, trusted: bool) -> None:
        """Talk over `sock`, a connected AF_UNIX stream socket, which becomes the channel's.
        `trusted` says that what arrives comes from the supervisor (pickle); what is
        sent is encoded for the opposite direction."""
        sock.setblocking(False)
        self.sock = sock
        self._trusted = trusted
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._owned: set[int] = set()
        self._in = bytearray()
        self._descriptors: list[int] = []
        self._lost = False

    def fileno(self) -> int:
        """The descriptor, for epoll."""
        return self.sock.fileno()

    @property
    def backlog(self) -> bool:
        """Whether something waits to be sent: call `flush` when writable."""
        return bool(self._out)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send `message`, and duplicates of `descriptors`, which stay the caller's. Errors of
        a dead peer are not reported here: its end is read as end of file."""
        payload = orjson.dumps(message) if self._trusted else pickle.dumps(message)
        frame = HEADER.pack(len(payload), len(descriptors)) + payload
        batches = [list(descriptors[i : i + BATCH]) for i in range(0, len(descriptors), BATCH)]
        # Each batch rides on a byte of the frame of its own; the header alone has 8, so
        # more than 7 batches ride on slices of the payload.
        for batch in batches[:-1]:
            self._out.append((frame[:1], batch))
            frame = frame[1:]
        self._out.append((frame, batches[-1] if batches else []))
        own = len(batches) or 1
        self.flush()
        # What has to wait outlives the caller's descriptors, so it gets its own.
        for index in range(max(0, len(self._out) - own), len(self._out)):
            data, waiting = self._out[index]
            self._out[index] = (data, [os.dup(descriptor) for descriptor in waiting])
            self._owned.update(self._out[index][1])

    def flush(self) -> None:
        """Send as much as the socket takes."""
        while self._out:
            data, descriptors = self._out[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            try:
                sent = self.sock.sendmsg([data], ancillary if descriptors else [])
            except BlockingIOError:
                return
            except OSError:  # EPIPE, ECONNRESET: the peer is gone
                self._forget()
                return
            self._disown(descriptors)
            if sent < len(data):
                self._out[0] = (data[sent:], [])
            else:
                self._out.popleft()

    def receive(self) -> tuple[list[tuple[Message, list[int] | None]], bool]:
        """Everything that has arrived: a list of (message, descriptors), and whether the
        peer is still there. Descriptors are None when some were lost on the way (no
        room in this process: EMFILE); they belong to the caller. Raises ChannelError."""
        alive = True
        for _ in range(READS):
            try:
                # From below no descriptors are wanted: without room for them the kernel
                # closes any that come.
                data, ancillary, flags, _ = self.sock.recvmsg(
                    1 << 16, socket.CMSG_SPACE(BATCH * 4) if self._trusted else 0, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError:
                data, ancillary, flags = b"", [], 0
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(value[: len(value) - len(value) % received.itemsize])
                    self._descriptors += received
            if flags & socket.MSG_CTRUNC and self._trusted:
                self._lost = True
            if not data:
                alive = False
                break
            self._in += data
        return self._messages(), alive

    def close(self) -> None:
        """Close this end."""
        self._forget()
        self.sock.close()

    def _disown(self, descriptors: Sequence[int]) -> None:
        for descriptor in self._owned.intersection(descriptors):
            os.close(descriptor)
            self._owned.discard(descriptor)

    def _forget(self) -> None:
        self._out.clear()
        self._disown(list(self._owned))

    def _messages(self) -> list[tuple[Message, list[int] | None]]:
        messages: list[tuple[Message, list[int] | None]] = []
        while len(self._in) >= HEADER.size:
            length, count = HEADER.unpack_from(self._in)
            if length > (LIMIT_DOWN if self._trusted else LIMIT_UP):
                raise ChannelError(f"a message of {length} bytes")
            end = HEADER.size + length
            if len(self._in) < end:
                break
            payload = bytes(self._in[HEADER.size : end])
            del self._in[:end]
            descriptors: list[int] | None = None
            if not (self._lost and count):
                descriptors = self._descriptors[:count]
                del self._descriptors[:count]
            messages.append((self._decode(payload), descriptors))
        if self._lost and not self._in:
            # Which ones are missing cannot be known, so none is given to anybody.
            for descriptor in self._descriptors:
                socket.close(descriptor)
            self._descriptors.clear()
            self._lost = False
        return messages

    def _decode(self, payload: bytes) -> Message:
        try:
            message = pickle.loads(payload) if self._trusted else orjson.loads(payload)
        except ValueError as error:
            raise ChannelError(str(error)) from error
        if not isinstance(message, dict):
            raise ChannelError(f"a {type(message).__name__} instead of a message")
        if not self._trusted and not _shallow(message, DEPTH):
            raise ChannelError(f"a message nested more than {DEPTH} deep")
        return message


def _shallow(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, list) or (levels > 0 and all(_shallow(each, levels - 1) for each in value))


class ChannelHandler(logging.Handler):
    """A child's own messages go to the supervisor, which alone writes them: a stalled
    terminal or system log must not stop a worker."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send `record` upwards; dropped when the supervisor does not listen."""
        if not self._channel.backlog:
            self._channel.send({"op": "say", "level": record.levelno, "text": self.format(record)})


def pair() -> tuple[Channel, Channel]:
    """A connected pair: (the supervisor's end, the child's end)."""
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(parent, trusted=False), Channel(child, trusted=True)
