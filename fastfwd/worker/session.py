"""A client connection with its backend connection: both pumps, and how they end.

worker/dial makes it when the backend has answered; the loop calls `client_event` and
`backend_event`. Everything that decides about half-close, reset and lingering lives
here; bytes are the pumps' business. `close` and `reset` are the only ways out, each
writes the log line.

How a direction ends, and what the peers see:

* END: the FIN is passed on (shutdown), the other direction goes on; both: close.
* SOURCE_BROKE: a reset is passed on as a reset, after the bytes before it.
* SINK_BROKE: the other direction is read to its end first. A client that is still
  sending to a backend that is gone is read and dropped, so that our own reset does
  not take the backend's last answer with it (RFC 9112, 9.6); so is what comes for a
  client that is gone, until its last bytes have gone up.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import struct
import termios
from typing import TYPE_CHECKING, Final

from fastfwd.model import Outcome
from fastfwd.observe.eventlog import Event
from fastfwd.observe.scoreboard import DURATION, SIDE, ForwardCell, TlsCell
from fastfwd.observe.tlsfields import Tls
from fastfwd.relay.ciphering import CUT, Stream
from fastfwd.relay.pump import BUDGET, DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE, Pump, release

if TYPE_CHECKING:
    from fastfwd.relay.pump import Side
    from fastfwd.worker.dial import Dial

RECEIVED: Final = int(ForwardCell.RECEIVED)
SENT: Final = int(ForwardCell.SENT)
CLOSED_LOCAL: Final = int(ForwardCell.CLOSED_LOCAL)
CLOSED_REMOTE: Final = int(ForwardCell.CLOSED_REMOTE)

CUT_UP: Final = ForwardCell.HANDSHAKES + TlsCell.CUT
CUT_DOWN: Final = CUT_UP + SIDE
"""Streams that were cut: a client's, a backend's."""

TIMED_OUT: Final = {
    Outcome.IDLE_TIMEOUT: ForwardCell.CLOSED_IDLE,
    Outcome.HALF_CLOSE_TIMEOUT: ForwardCell.CLOSED_HALF_CLOSED,
}

READ: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
BYTES: Final = int(select.EPOLLIN)
BYTES_AND_ROOM: Final = int(select.EPOLLIN | select.EPOLLOUT)
"""A backend is registered for room from its dial on, and an edge reports all that is so."""
WROTE: Final = select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP
READABLE: Final = ~select.EPOLLOUT
UNUSUAL: Final = select.EPOLLPRI | select.EPOLLERR | select.EPOLLHUP
TO_END: Final = select.EPOLLRDHUP | UNUSUAL

LINGER: Final = 5.0
"""Seconds a client that keeps sending is read and dropped after its last answer (nginx's
lingering_timeout)."""

RESET_PATIENCE: Final = 30.0
"""Seconds a reset waits for the bytes before it to be acknowledged: SO_LINGER 0 throws
away what is still in the send queue (socket(7))."""

PEER_GONE: Final = frozenset(
    {
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ECONNABORTED,
        errno.ENOTCONN,
    }
)
"""Errors that say the connection itself is over; any other is our side's trouble with it."""

BYTES_RECEIVED: Final = struct.Struct("128xQ")
"""tcpi_bytes_received, and what is before it in linux/tcp.h's struct tcp_info."""

LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Session:
    """Owns both sockets from the moment it exists."""

    __slots__ = (
        "address",
        "announced",
        "backend",
        "backend_fd",
        "broken",
        "client",
        "client_fd",
        "client_mask",
        "client_port",
        "dial_time",
        "down",
        "lingering",
        "listener",
        "open",
        "outcome",
        "peer",
        "row",
        "seen",
        "serial",
        "silent_since",
        "started",
        "up",
    )

    def __init__(self, dial: Dial, backend: Side, dial_time: float) -> None:
        """A session of the client of `dial` and of `backend`, connected and non-blocking.
        `dial_time` in seconds is how long that took. The dial is not kept: an idle session
        would be a tenth larger."""
        listener = dial.listener
        worker = listener.worker
        self.listener = listener
        self.row = listener.row
        self.client = client = dial.client
        self.client_fd = dial.client_fd
        self.client_mask = 0
        self.backend = backend
        self.backend_fd = dial.backend_fd
        self.address = dial.address
        self.peer = dial.peer
        self.client_port = dial.client_port
        self.announced = dial.announced
        self.serial = dial.serial
        self.started = dial.started
        self.dial_time = dial_time
        self.up = Pump(client, backend, worker.copy)
        self.down = Pump(backend, client, worker.copy)
        if type(client) is Stream or type(backend) is Stream:
            self.up.move = self.down.move = worker.cipher
            self.up.copy_only = self.down.copy_only = True
        self.outcome: Outcome | None = None
        self.broken: Side | None = None
        """The side that is known to have been reset although its reads may end cleanly."""
        self.open = True
        self.lingering = False
        self.seen = -1
        self.silent_since = 0.0
        """What `look` has seen last, and since when."""

    def begin(self, mask: int, *, broken: bool, client_watched: bool) -> None:
        """Start relaying. `mask` is what epoll said of the backend besides "connected";
        `broken` that its error has already been taken off the socket; `client_watched`
        that the client is registered with epoll."""
        worker = self.listener.worker
        loop = worker.loop
        worker.open_sessions += 1
        if worker.silence is not None:
            worker.silence.add(self, loop.now)
        loop.handlers[self.client_fd] = self.client_event
        loop.handlers[self.backend_fd] = self.backend_event
        if broken:
            self.broken = self.backend
            mask |= select.EPOLLIN | select.EPOLLRDHUP
        # The client's first bytes are usually here already: reading before registering
        # saves a wake-up per connection.
        self.client_event(BYTES)
        if mask and self.open:
            self.backend_event(mask)
        if self.open:
            self.client_mask |= READ
            try:
                if client_watched:
                    loop.epoll.modify(self.client_fd, self.client_mask)
                else:
                    loop.epoll.register(self.client_fd, self.client_mask)
            except OSError as error:  # ENOMEM; ENOSPC: fs.epoll.max_user_watches
                worker.pause(error)
                self.fail()

    # A request and its answer are one call of each of the next two, and little else: for
    # what nearly every event says they do the work of `turn` themselves (0.2 µs each).

    def client_event(self, mask: int) -> None:
        """The client's socket is ready for what epoll's `mask` says."""
        up = self.up
        if mask == BYTES and up.verdict == DRY:
            before = up.taken
            verdict = up.move(up, BUDGET)
            self.row[RECEIVED] += up.taken - before
            if verdict != DRY:
                self._act(up, verdict)
            return
        if mask & TO_END:
            announce(up, mask)
        if up.verdict == DRY and mask & READABLE:
            self.turn(up)
        if mask & WROTE and self.down.verdict == FULL and self.open:
            self.turn(self.down)

    def backend_event(self, mask: int) -> None:
        """The backend's socket is ready for what epoll's `mask` says."""
        down = self.down
        if mask == BYTES_AND_ROOM and down.verdict == DRY and self.up.verdict != FULL:
            before = down.taken - down.pending
            verdict = down.move(down, BUDGET)
            self.row[SENT] += down.taken - down.pending - before
            if verdict != DRY:
                self._act(down, verdict)
            return
        if mask & TO_END:
            announce(down, mask)
        if down.verdict == DRY and mask & READABLE:
            self.turn(down)
        if mask & WROTE and self.up.verdict == FULL and self.open:
            self.turn(self.up)

    def turn(self, pump: Pump) -> None:
        """Let `pump` move up to its budget and act on the verdict."""
        if pump is self.up:
            before = pump.taken
            verdict = pump.move(pump, BUDGET)
            self.row[RECEIVED] += pump.taken - before
        else:
            before = pump.given
            verdict = pump.move(pump, BUDGET)
            self.row[SENT] += pump.given - before
        if verdict == DRY:
            pump.verdict = DRY
        else:
            self._act(pump, verdict)

    def _act(self, pump: Pump, verdict: int) -> None:
        """Do what a `verdict` other than DRY asks for."""
        pump.verdict = verdict
        if verdict == FULL:
            if pump is self.down and not self.client_mask & select.EPOLLOUT:
                self._watch_client_room()
        elif verdict == MORE:
            self.listener.worker.loop.again.append((self._again, pump))
        elif verdict == END and self.broken is not pump.source:
            self._ended(pump)
        elif verdict == SINK_BROKE:
            self._sink_broke(pump)
        else:
            pump.verdict = SOURCE_BROKE
            if cut(pump, self._other(pump)):
                self.row[CUT_UP if pump is self.up else CUT_DOWN] += 1
            self._blame(pump.source)
            if pump.error and pump.error not in PEER_GONE:
                abort(pump.source)
            self.reset(pump.sink)

    def close(self) -> None:
        """End the session: both sockets closed (a FIN where none was sent), one log line."""
        if not self.open:
            return
        self.open = False
        listener = self.listener
        worker = listener.worker
        worker.open_sessions -= 1
        if self.lingering:
            worker.lingering.discard(self)
        if worker.silence is not None:
            worker.silence.discard(self)
        if worker.admission is not None:
            worker.admission.leave(self.peer)
        handlers = worker.loop.handlers
        handlers.pop(self.client_fd, None)
        handlers.pop(self.backend_fd, None)
        up, down = self.up, self.down
        if up.pipe is not None or down.pipe is not None:
            release(up, worker.pool)
            release(down, worker.pool)
        worker.loop.closing.append(self.client)
        worker.loop.closing.append(self.backend)
        duration = worker.loop.now - self.started
        row = self.row
        outcome = self.outcome or Outcome.DONE_LOCAL_CLOSED
        if outcome is Outcome.DONE_REMOTE_CLOSED:
            row[CLOSED_REMOTE] += 1
        elif outcome is Outcome.DONE_LOCAL_CLOSED:
            row[CLOSED_LOCAL] += 1
        else:
            row[TIMED_OUT[outcome]] += 1
        DURATION.observe(row, duration)
        if worker.log is not None:
            worker.log.event(
                Event(
                    listener.forward,
                    outcome,
                    self.peer,
                    self.client_port,
                    up.taken,
                    down.given,
                    duration,
                    self.serial,
                    self.address,
                    self.dial_time,
                    self.announced and self.announced.via,
                    tls_of(self.client, self.backend, None, up, down),
                )
            )

    def reset(self, sink: Side) -> None:
        """End the session because one side broke: `sink`, the other one, is reset once it
        has acknowledged what it was given."""
        if not self.open:
            return
        self.close()
        worker = self.listener.worker
        worker.loop.closing.remove(sink)
        worker.abort(sink)

    def stop(self) -> None:
        """End the session because the worker ends. A side that would miss bytes we hold
        is reset, so that it cannot take a part for the whole."""
        for pump in (self.up, self.down):
            if pump.pending:
                abort(pump.sink)
        self.close()

    def fail(self) -> None:
        """End the session because of our own trouble: both sides are reset, so that neither
        takes what came so far for everything."""
        abort(self.client)
        abort(self.backend)
        self.close()

    def look(self) -> None:
        """Now and then, where silence has a limit: end the session if nothing has moved for that
        long. Comparing what has moved costs the bytes nothing; it makes the limit late by up
        to two looks."""
        worker = self.listener.worker
        limits, now = worker.limits, worker.loop.now
        up, down = self.up, self.down
        half_closed = END in (up.verdict, down.verdict)
        moved = 2 * (up.taken + up.given + down.taken + down.given) + half_closed
        limit = limits.idle_timeout
        if half_closed and limits.half_close_timeout is not None:
            limit = limits.half_close_timeout
        if moved != self.seen:
            self.seen = moved
            self.silent_since = now
        elif limit is not None and now - self.silent_since >= limit:
            shorter = half_closed and limit is limits.half_close_timeout
            self.outcome = Outcome.HALF_CLOSE_TIMEOUT if shorter else Outcome.IDLE_TIMEOUT
            self.stop()
            return
        assert worker.silence is not None  # or nobody would look
        worker.silence.add(self, now)

    def _again(self, pump: Pump) -> None:
        if self.open and pump.verdict == MORE:
            self.turn(pump)

    def _other(self, pump: Pump) -> Pump:
        return self.down if pump is self.up else self.up

    def _blame(self, side: Side) -> None:
        """Remember which side ended first; it is the log's last word."""
        if self.outcome is None:
            client_left = side is self.client
            self.outcome = Outcome.DONE_REMOTE_CLOSED if client_left else Outcome.DONE_LOCAL_CLOSED

    def _watch_client_room(self) -> None:
        # Not from the start: every edge of writability is a wake-up that small answers
        # do not need.
        self.client_mask |= select.EPOLLOUT
        if self.client_mask & select.EPOLLIN:
            self.listener.worker.loop.epoll.modify(self.client_fd, self.client_mask)

    def _ended(self, pump: Pump) -> None:
        self._blame(pump.source)
        other = self._other(pump)
        if pump is self.up and other.move is self.listener.worker.discard:
            # The client is gone and its last bytes have gone up: tell the backend.
            self.reset(pump.sink)
            return
        if other.verdict >= END:
            self.close()
            return
        try:
            pump.sink.shutdown(socket.SHUT_WR)
        except OSError:  # ENOTCONN: reset meanwhile; its own pump finds out
            pass
        if other.move is self.listener.worker.discard:
            self._linger()

    def _sink_broke(self, pump: Pump) -> None:
        worker = self.listener.worker
        self._blame(pump.sink)
        if pump.error not in PEER_GONE:
            self.fail()  # the connection lives, but we cannot serve it (ENOBUFS, ENOMEM)
            return
        other = self._other(pump)
        release(pump, worker.pool)
        taken = other.taken
        if self.announced is not None and other is self.up:
            taken += self.announced.size
        if other.verdict < END and not finished(pump.sink, taken):
            # The reset came without a FIN before it, and our send has taken the error
            # off the socket: its reads will end cleanly all the same.
            self.broken = pump.sink
        # What is left of a broken side is read to its end, and its last bytes must not wait for
        # a shutdown: what follows may be a reset.
        other.fin, other.to_end = False, True
        if pump is self.up:
            if other.verdict >= END:
                self._linger()
        elif other.verdict >= END:
            self.reset(pump.source)
            return
        # Also what comes for a client that is gone: a backend that waits for us to read would not
        # take that client's last bytes.
        pump.move = worker.discard
        pump.verdict = DRY
        if other.verdict == DRY:
            self.turn(other)
        if self.open:
            self.turn(pump)

    def _linger(self) -> None:
        if not self.lingering:
            self.lingering = True
            worker = self.listener.worker
            worker.lingering.add(self, worker.loop.now)


def cut(pump: Pump, other: Pump) -> bool:
    """Whether what `pump` has taken is but a part: its source broke off although `other`, the opposite
    direction, goes on. Who has been told of the end may go without a farewell (RFC 8446, 6.1)."""
    return pump.error == CUT and pump.verdict == SOURCE_BROKE and other.verdict < END


def tls_of(client: Side, backend: Side | None, trouble: str | None, *pumps: Pump) -> Tls | None:
    """What the log may say of TLS of these two and of the `pumps` between them; None if there is none."""
    if type(client) is not Stream and type(backend) is not Stream and trouble is None:
        return None
    return Tls(
        client.tls if type(client) is Stream else None,
        backend.tls if type(backend) is Stream else None,
        trouble,
        tuple(
            "client" if pump.source is client else "backend"
            for pump, other in zip(pumps, pumps[::-1], strict=True)
            if cut(pump, other)
        ),
    )


def announce(pump: Pump, mask: int) -> None:
    """Tell `pump` of the end of its source that epoll's `mask` speaks of."""
    if mask & select.EPOLLPRI:
        pump.copy_only = True
    if mask & UNUSUAL or pump.copy_only:  # a read stops short at an urgent mark, too
        pump.to_end = True
    else:
        pump.fin = True


def finished(sock: Side, taken: int) -> bool:
    """Whether the peer of `sock`, from which `taken` bytes were read, has sent its FIN, also before a
    reset: then what is left to read is complete. No errno tells. EPIPE means that, or that
    splice(2), after some bytes, has met ECONNRESET and kept it to itself. But a FIN counts as a
    byte received (RFC 9293, 3.4; tcp(7), TCP_INFO). A Unix socket's errors are the peer's own; of TLS
    only close_notify is an end, and what has not been read yet may have it."""
    if type(sock) is Stream or sock.family == socket.AF_UNIX:
        return True
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED.size)
    received: int = BYTES_RECEIVED.unpack(info)[0]
    waiting: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]
    return received > taken + waiting


class Abort:
    """A socket to be closed with a reset as soon as the peer has everything before it."""

    __slots__ = ("_deadline", "sock")

    def __init__(self, sock: Side, now: float) -> None:
        self.sock = sock
        self._deadline = now + RESET_PATIENCE

    def due(self, now: float) -> bool:
        """Whether to reset now: nothing is unacknowledged (SIOCOUTQ, tcp(7)), or we have
        waited long enough. The socket is prepared; its close sends the reset."""
        unacknowledged = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, bytes(4))
        if any(unacknowledged) and now < self._deadline:
            return False
        abort(self.sock)
        return True


def abort(sock: Side) -> None:
    """Make the close of `sock` send a reset, at once and without what is still unsent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
