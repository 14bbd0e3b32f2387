"""A socket with TLS on it, and the mover of a direction that has one at either end.

worker/handshake makes a Stream of a socket, worker/session gives it to a pump in the socket's
place, and a pump with one moves by `ciphering`. The records pass through memory buffers, so that a
read of the socket takes as many of them as are there, and a write sends them as one piece: a fifth
less processor time in bulk than OpenSSL reading and writing the socket record by record. It keeps
the contract of relay/pump; it must never take a stream that was cut for one that has ended.
"""

from __future__ import annotations

import errno
import ssl
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress
from socket import MSG_MORE
from typing import Any, Final

from fastfwd.relay import choose
from fastfwd.relay.copying import send_held
from fastfwd.relay.pump import DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE, Mover, Pump, Tally

RECORDS: Final = 4 * (16384 + 22)
"""Bytes of a buffer for records: as many as fill the buffer for what they hold (RFC 8446, 5.2)."""

NOTHING: Final = memoryview(b"")

CUT: Final = errno.EPROTO
"""The errno of a stream that ended without the peer's close_notify (RFC 8446, 6.1), or with a record
that is none."""


class Stream:
    """TLS over a connected, non-blocking socket, which it owns. It is asked for bytes and given bytes as
    a socket is, with the errors of a socket."""

    __slots__ = (
        "_buffer",
        "_decrypt",
        "_dry",
        "_encrypt",
        "_incoming",
        "_left",
        "_outgoing",
        "_view",
        "ended",
        "fault",
        "getsockopt",
        "setsockopt",
        "sock",
        "tls",
        "unsent",
    )

    def __init__(
        self, sock: Socket, wrap: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject], buffer: bytearray
    ) -> None:
        """`wrap` is a context's `wrap_bio` for this side. `buffer` may be shared by all streams of a
        thread: nothing is in it between two calls."""
        self.sock = sock
        self.setsockopt = sock.setsockopt
        self.getsockopt = sock.getsockopt
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = tls = wrap(self._incoming, self._outgoing)
        # What SSLObject.read and .write do, without their Python (0.2 µs each).
        inner = tls._sslobj  # type: ignore[attr-defined]
        self._decrypt = inner.read
        self._encrypt = inner.write
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._dry = False
        self.unsent = NOTHING
        """Records that the socket has not taken yet."""
        self._left = b""
        self.ended = False
        """The peer's close_notify has been read."""
        self.fault: OSError | None = None
        """Why nothing more is to be read, although it has not `ended`: an error of the socket, or
        (ssl.SSLError) a record that is none, an alert, an end without close_notify."""

    @property
    def family(self) -> int:
        """The socket's."""
        return self.sock.family

    @property
    def waiting(self) -> bool:
        """Whether there are bytes that have been read from the socket, but not from here."""
        return bool(self._incoming.pending or self.tls.pending() or self._left)

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
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                try:
                    if not self._draw():
                        raise ConnectionResetError(errno.ECONNRESET, "closed in the handshake")
                except BlockingIOError:
                    return False
            except ssl.SSLError:
                try:
                    self.flush()
                except OSError:
                    pass
                raise
            else:
                self.flush()
                return True

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`, or take what is there: fewer bytes than its length mean that there are no more
        now, or that `ended` or `fault` is set. Returns 0 at the end. Raises BlockingIOError, and
        OSError where the stream was cut (CUT) or the connection broke."""
        size = len(buffer)
        view = memoryview(buffer)
        decrypt = self._decrypt
        n = 0
        if self._left:
            n = len(self._left)
            view[:n] = self._left
            self._left = b""
        self._dry = False
        while not self.ended and self.fault is None:
            try:
                got = decrypt(size - n, view[n:] if n else buffer)
            except ssl.SSLWantReadError:
                if self._dry:
                    break
                try:
                    if not self._draw():
                        self._incoming.write_eof()
                except BlockingIOError:
                    break
                except OSError as error:
                    self.fault = error
            except ssl.SSLZeroReturnError:  # only if we have said goodbye before; else it is 0
                self.ended = True
            except ssl.SSLError as error:
                self.fault = error
            else:
                if not got:
                    self.ended = True
                n += got
                if n == size:
                    break
        if self._outgoing.pending:  # the answer to a request for new keys (RFC 8446, 4.6.3), or an alert
            self._flush_quietly()
        if n or self.ended:
            return n
        if self.fault is None:
            raise BlockingIOError
        if isinstance(self.fault, ssl.SSLError):
            raise OSError(CUT, "the TLS stream was cut") from self.fault
        raise self.fault

    def send(self, data: memoryview, flags: int = 0) -> int:
        """Encrypt `data` and send it. Returns how many bytes of it the socket has taken, at least. If
        they are fewer, the rest waits here as records: flush them, and do not send them again. Raises
        OSError."""
        self._encrypt(data)
        return len(data) if self.flush(flags) else max(0, len(data) - len(self.unsent))

    def flush(self, flags: int = 0) -> bool:
        """Send what waits here; returns whether nothing does any more. Raises OSError, but not
        BlockingIOError."""
        if self.unsent and not self._pass_on(0):
            return False
        if self._outgoing.pending:
            self.unsent = memoryview(self._outgoing.read())
            return self._pass_on(flags)
        return True

    def say_end(self) -> bool:
        """Send close_notify: nothing follows from here, but the other direction may go on. Returns whether
        it has gone; otherwise it waits here. Raises OSError."""
        # Afterwards OpenSSL looks for the peer's, and what it would find instead were lost.
        while pending := self.tls.pending():
            self._left += self._decrypt(pending)
        unread = self._incoming.read()
        with suppress(ssl.SSLError):  # it has not found it
            self.tls.unwrap()
        if unread:
            self._incoming.write(unread)
        return self.flush(MSG_MORE)

    def _pass_on(self, flags: int) -> bool:
        try:
            sent = self.sock.send(self.unsent, flags)
        except BlockingIOError:
            return False
        self.unsent = self.unsent[sent:] if sent < len(self.unsent) else NOTHING
        return not self.unsent

    def _flush_quietly(self) -> None:
        """Where an error is the other direction's business."""
        with suppress(OSError):
            self.flush()

    def _draw(self) -> int:
        """Take from the socket what is there. Raises OSError."""
        n = self.sock.recv_into(self._buffer)
        self._dry = n < len(self._buffer)
        self._incoming.write(self._view[:n])
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
            final = pump.to_end or (stream is not None and (stream.ended or stream.fault is not None))
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
