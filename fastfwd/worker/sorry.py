"""What a client gets when no backend can be reached: a static file, then the end.

worker/dial makes a Sorry instead of closing the client. The file is the kernel's to send
(sendfile(2)); what the client still says is read and dropped for a while, so that a reset of ours
does not overtake the last bytes (RFC 9112, 9.6). It must never hold a client for longer than LINGER.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Final

from fastfwd.observe.scoreboard import ForwardCell
from fastfwd.relay.ciphering import Stream

if TYPE_CHECKING:
    from fastfwd.relay.pump import Side
    from fastfwd.worker.accept import Listener

SENT: Final = int(ForwardCell.SENT)

PIECE: Final = 1 << 16
"""Bytes that are encrypted at a time."""


class Leaflet:
    """A file in memory that any number of clients are sent."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self.file = os.memfd_create("fastfwd-sorry", os.MFD_CLOEXEC)
        os.write(self.file, content)

    def __del__(self) -> None:
        os.close(self.file)


class Sorry:
    """One client with nothing but the file to come."""

    __slots__ = ("_client", "_done", "_ended", "_fd", "_leaflet", "_listener", "_sent", "open")

    def __init__(self, listener: Listener, client: Side, descriptor: int, leaflet: Leaflet) -> None:
        """Send `leaflet` to `client`, whose descriptor that is, and which is this one's from now on."""
        self._listener = listener
        self._client = client
        self._fd = descriptor
        self._leaflet = leaflet
        self._sent = 0
        self._done = False
        self._ended = False
        self.open = True
        worker = listener.worker
        worker.open_sessions += 1
        worker.sorries.add(self, worker.loop.now)
        # A dial may have watched it already.
        worker.loop.forget(descriptor)
        try:
            worker.loop.watch(descriptor, select.EPOLLIN | select.EPOLLOUT, self.event)
        except OSError:  # no room to watch: what can be sent at once is better than nothing
            self._send()
            self.close()

    def event(self, mask: int) -> None:
        """There is room for more, or the client has said something."""
        try:
            if mask & select.EPOLLOUT and not self._done:
                self._send()
            if mask & select.EPOLLIN and not self._ended:
                self._ended = not self._client.recv_into(self._listener.worker.datagram)
            if self._ended:  # nothing more comes, and an end would be reported for ever
                if self._done:
                    self.close()
                else:
                    self._listener.worker.loop.epoll.modify(self._fd, select.EPOLLOUT)
        except BlockingIOError:
            return
        except OSError:  # it is gone
            self.close()

    def _send(self) -> None:
        client, leaflet = self._client, self._leaflet
        stream = client if isinstance(client, Stream) else None
        while self._sent < leaflet.size:
            try:
                if stream is None:
                    count = os.sendfile(self._fd, leaflet.file, self._sent, leaflet.size - self._sent)
                elif stream.flush():
                    piece = os.pread(leaflet.file, PIECE, self._sent)
                    count = len(piece)
                    stream.send(memoryview(piece))
                else:
                    return
            except BlockingIOError:
                return
            self._sent += count
            self._listener.row[SENT] += count
        if stream is not None and not (stream.flush() and stream.say_end()):
            return
        self._done = True
        client.shutdown(socket.SHUT_WR)
        self._listener.worker.loop.epoll.modify(self._fd, select.EPOLLIN)

    def close(self) -> None:
        """It has the file and is gone, or has had its time."""
        if self.open:
            self.open = False
            worker = self._listener.worker
            worker.open_sessions -= 1
            worker.sorries.discard(self)
            worker.loop.handlers.pop(self._fd, None)
            worker.loop.closing.append(self._client)
