"""A socket with TLS on it, and the mover of a direction that has one at either end.

worker/handshake makes a Stream of a socket, worker/session gives it to a pump in the socket's
place, and a pump with one moves by `ciphering`. The records pass through memory buffers, so that a
read of the socket takes as many of them as are there, and a write sends them as one piece: a fifth
less processor time in bulk than OpenSSL reading and writing the socket record by record. These buffers
are all streams' together: an idle session has nothing of them. It keeps the contract of relay/pump; it
must never take a stream that was cut for one that has ended, nor leave anything in those buffers.
"""

from __future__ import annotations

import errno
import os
import ssl
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress
from socket import MSG_MORE
from typing import Any, Final

from fastfwd.relay import choose
from fastfwd.relay.copying import send_held
from fastfwd.relay.pump import DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE, Mover, Pump, Tally

NOTHING: Final = memoryview(b"")

CUT: Final = errno.EPROTO
"""The errno of a stream that ended without the peer's close_notify (RFC 8446, 6.1), or with a record
that is none."""


class Records:
    """What records pass through on their way between sockets and OpenSSL, for all streams of a thread.
    Nothing is in it between two calls of a stream, or one would read and send another one's: after a
    megabyte a session that has buffers of its own keeps 64 KiB of them."""

    OVERHEAD: Final = 128
    """Bytes, at least, by which four full records are larger than what they hold: 4 * 22 in TLS 1.3 (RFC
    8446, 5.2), 4 * 29 in TLS 1.2."""

    SIZE: Final = choose.BUFFER + OVERHEAD
    """Bytes taken from a socket at once, at most."""

    __slots__ = ("drawn", "incoming", "outgoing", "view")

    def __init__(self) -> None:
        self.drawn = bytearray(self.SIZE)
        self.view = memoryview(self.drawn)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()


class Stream:
    """TLS over a connected, non-blocking socket, which it owns. It is asked for bytes and given bytes as
    a socket is, with the errors of a socket."""

    __slots__ = (
        "_decrypt",
        "_encrypt",
        "_left",
        "_more",
        "_records",
        "_unread",
        "ended",
        "fault",
        "getsockopt",
        "setsockopt",
        "sock",
        "tls",
        "unsent",
    )

    def __init__(
        self, sock: Socket, wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject], records: Records
    ) -> None:
        """`wrap` is a context's `wrap_bio` for this side."""
        self.sock = sock
        self.setsockopt = sock.setsockopt
        self.getsockopt = sock.getsockopt
        self._records = records
        self.tls = tls = wrap(records.incoming, records.outgoing)
        # What SSLObject.read and .write do, without their Python (0.2 µs each).
        inner = tls._sslobj  # type: ignore[attr-defined]
        self._decrypt = inner.read
        self._encrypt = inner.write
        self._unread = b""
        """Records that have been taken from the socket, and were too many."""
        self._more = not tls.server_side
        """Whether OpenSSL has something to do before more is drawn: a client speaks first."""
        self.unsent = NOTHING
        """Records that the socket has not taken yet, or that go with the next ones."""
        self._left = b""
        self.ended = False
        """The peer's close_notify has been read."""
        self.fault = 0
        """The errno for which nothing more is to be read, although it has not `ended`: the socket's, or CUT
        for a record that is none, an alert, an end without close_notify. Not the exception: it would hold
        the stream, by its traceback, and a worker has nobody who finds such circles."""

    @property
    def family(self) -> int:
        """The socket's."""
        return self.sock.family

    @property
    def waiting(self) -> bool:
        """Whether there are bytes that have been read from the socket, but not from here."""
        return bool(self._unread or self.tls.pending() or self._left)

    def fileno(self) -> int:
        """The socket's."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket. No farewell: who has not had one knows that this is not the end."""
        self.sock.close()

    def getsockname(self) -> Any:
        """The socket's."""
        return self.sock.getsockname()

    def getpeername(self) -> Any:
        """The socket's."""
        return self.sock.getpeername()

    def shutdown(self, how: int) -> None:
        """End the connection's own direction; the mover has said so inside of TLS. Raises OSError."""
        self.sock.shutdown(how)

    def handshake(self) -> bool:
        """Go on with it; returns whether it is done. Raises ssl.SSLError, with the alert sent, and
        OSError; BlockingIOError never."""
        incoming, tls = self._records.incoming, self.tls
        if self.unsent:
            self.flush()
        draw = not self._more
        self._more = False
        while True:
            if draw:
                try:
                    if not self._draw(Records.SIZE):
                        raise ConnectionResetError(errno.ECONNRESET, "closed in the handshake")
                except BlockingIOError:
                    return False
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                draw = True
            except ssl.SSLError:
                incoming.read()
                self._flush_quietly()
                raise
            else:
                break
        self._unread = incoming.read()
        self._more = bool(self._unread)
        if tls.server_side and tls.version() == "TLSv1.3":
            # What is left are session tickets, which have time until there is something to say: a packet
            # less, and a client that is woken once instead of twice. One that only writes, and closes
            # without having read them, would reset the connection.
            self.unsent = memoryview(self.unsent.tobytes() + self._records.outgoing.read())
        else:
            self.flush()
        return True

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`, or take what is there: fewer bytes than its length mean that there are no more
        now, or that `ended` or `fault` is set. Returns 0 at the end. Raises BlockingIOError, and
        OSError where the stream was cut (CUT) or the connection broke."""
        records = self._records
        incoming = records.incoming
        size = len(buffer)
        n = 0
        if self._left:
            n = len(self._left)
            memoryview(buffer)[:n] = self._left
            self._left = b""
        fed = 0
        if self._unread:
            fed = len(self._unread)
            incoming.write(self._unread)
            self._unread = b""
        # An OpenSSL that is only asked when it has records, and not again when it has had them, need not say
        # that it wants some: that is an exception (2 µs).
        dry, draw = False, not self._more
        self._more = False
        while not self.ended and not self.fault:
            if draw:
                # With nothing to give, part of a record says nothing of what is behind it: the end may be
                # there, of which epoll has told already.
                if dry and n:
                    break
                # No more than fills the buffer: what is left over is copied twice.
                limit = min(max(size + Records.OVERHEAD - fed, size - n), Records.SIZE)
                try:
                    got = self._draw(limit)
                except BlockingIOError:
                    break
                except OSError as error:
                    self.fault = error.errno or errno.EIO
                    break
                if not got:
                    self.fault = CUT  # no close_notify before it
                    break
                dry = got < limit
                fed += got
            try:
                got = self._decrypt(size - n, memoryview(buffer)[n:] if n else buffer)
            except ssl.SSLWantReadError:
                draw = True
            except ssl.SSLZeroReturnError:  # only if we have said goodbye before; else it is 0
                self.ended = True
            except ssl.SSLError:
                self.fault = CUT
            else:
                if not got:
                    self.ended = True
                n += got
                if n == size:
                    self._more = True
                    break
                draw = not incoming.pending
        if incoming.pending:
            self._unread = incoming.read()
        if records.outgoing.pending:  # the answer to a request for new keys (RFC 8446, 4.6.3), or an alert
            self._flush_quietly()
        if n or self.ended:
            return n
        if not self.fault:
            raise BlockingIOError
        raise OSError(self.fault, os.strerror(self.fault))

    def send(self, data: memoryview, flags: int = 0) -> int:
        """Encrypt `data` and send it. Returns how many bytes of it the socket has taken, at least. If
        they are fewer, the rest waits here as records: flush them, and do not send them again. Raises
        OSError."""
        try:
            self._encrypt(data)
        except ssl.SSLError:
            self._records.outgoing.read()  # nobody else shall send that
            raise
        return len(data) if self.flush(flags) else max(0, len(data) - len(self.unsent))

    def flush(self, flags: int = 0) -> bool:
        """Send what waits here; returns whether nothing does any more. Raises OSError, but not
        BlockingIOError."""
        records = self._records.outgoing.read()
        if self.unsent:
            records = self.unsent.tobytes() + records
        elif not records:
            return True
        try:
            sent = self.sock.send(records, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(records):
            self.unsent = memoryview(records)[sent:]
            return False
        self.unsent = NOTHING
        return True

    def say_end(self) -> bool:
        """Send close_notify: nothing follows from here, but the other direction may go on. Returns whether
        it has gone; otherwise it waits here. Raises OSError."""
        # Afterwards OpenSSL looks for the peer's, and what it would find instead were lost.
        while pending := self.tls.pending():
            self._left += self._decrypt(pending)
        with suppress(ssl.SSLError):  # it has not found it
            self.tls.unwrap()
        return self.flush(MSG_MORE)

    def _flush_quietly(self) -> None:
        """Where an error is the other direction's business."""
        with suppress(OSError):
            self.flush()

    def _draw(self, limit: int) -> int:
        """Take from the socket what is there, at most `limit` bytes. Raises OSError."""
        records = self._records
        n = self.sock.recv_into(records.drawn, limit)
        if n:
            records.incoming.write(records.view[:n])
        return n


def ciphering(tally: Tally) -> Mover:
    """The mover of a pump that has a Stream at its source, at its sink, or at both, for all such pumps
    of a worker. What is taken is counted in `tally`. It is not told of a FIN (`pump.fin`), only to
    read `to_end`: the end of a stream is in the stream."""
    size = choose.BUFFER
    buffer = bytearray(size)
    view = memoryview(buffer)

    def cipher(pump: Pump, budget: int) -> int:
        if pump.held is not None and (verdict := _resume(pump)):
            return verdict
        if pump.ending:
            return pump.ending
        source, sink = pump.source, pump.sink
        stream = source if type(source) is Stream else None
        while True:
            try:
                n = source.recv_into(buffer)
            except BlockingIOError:
                return DRY
            except OSError as error:
                pump.error = error.errno or 0
                pump.ending = SOURCE_BROKE
                return SOURCE_BROKE
            if not n:
                return _end(pump)
            pump.taken += n
            tally.copied += n
            try:
                sent = sink.send(view[:n])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                pump.error = error.errno or 0
                pump.pending = n
                return SINK_BROKE
            if sent < n:
                pump.held = NOTHING if type(sink) is Stream else memoryview(bytes(view[sent:n]))
                pump.pending = n - sent
                return FULL
            final = pump.to_end or (stream is not None and (stream.ended or bool(stream.fault)))
            if n < size and not final:
                return DRY
            budget -= n
            if budget <= 0:
                return MORE

    return cipher


def _resume(pump: Pump) -> int:
    """Send what an earlier send left over, as copying.send_held does."""
    sink = pump.sink
    if type(sink) is not Stream:
        return send_held(pump)
    try:
        flushed = sink.flush(MSG_MORE if pump.ending else 0)
    except OSError as error:
        pump.error = error.errno or 0
        return SINK_BROKE
    if not flushed:
        pump.pending = min(pump.pending, len(sink.unsent))
        return FULL
    pump.pending = 0
    pump.held = None
    return 0


def _end(pump: Pump) -> int:
    """The source has ended."""
    pump.ending = SOURCE_BROKE if pump.error else END
    sink = pump.sink
    if type(sink) is not Stream or pump.ending != END:
        return pump.ending
    try:
        if sink.say_end():
            return END
    except OSError as error:
        pump.error = error.errno or 0
        return SINK_BROKE
    pump.held = NOTHING
    return FULL
