"""A pump between two real TCP connections, with both far ends in the test's hand.

    sender ==TCP==> source | pump | sink ==TCP==> receiver

    with between("splicing") as ends:
        ends.send(b"hello")
        assert ends.turn() == DRY
        assert ends.receive() == b"hello"

A new mover joins the contract by a line in `MOVERS`.
"""

from __future__ import annotations

import array
import fcntl
import select
import socket
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastfwd.relay.copying import copier
from fastfwd.relay.pipes import PipePool
from fastfwd.relay.pump import (
    BUDGET,
    DRY,
    END,
    FULL,
    MORE,
    SINK_BROKE,
    SOURCE_BROKE,
    Mover,
    Pump,
    Tally,
    release,
)
from fastfwd.relay.splicing import movers
from tests import deadline
from tests.deadline import until
from tests.sockets import PATIENCE, queued, unsent

FINAL = (END, SOURCE_BROKE, SINK_BROKE)

MOVERS: dict[str, Callable[[PipePool], Mover]] = {
    "copying": lambda pool: copier(lambda pump: False, Tally()),
    "splicing": lambda pool: movers(pool, Tally())[1],
    "switching": lambda pool: movers(pool, Tally())[0],
}
"""Name -> what makes the mover that a pump begins with. `switching` is what a worker uses:
copying that may promote itself."""

SMALL = 4096
"""Bytes asked for by SO_SNDBUF and SO_RCVBUF where a stall should come soon."""


DEEP = 1 << 20
"""Bytes asked for by SO_RCVBUF where much should be queued; net.core.rmem_max (212992) limits it."""


def connection(*, room: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback: (the one that connected, the one accepted).
    `room` is asked for as the first one's send buffer and the second one's receive buffer."""
    with socket.socket() as listener:
        if room is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.socket()
        try:
            if room is not None:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
            one.settimeout(deadline.seconds(PATIENCE))
            one.connect(listener.getsockname())
            listener.settimeout(deadline.seconds(PATIENCE))
            other, _ = listener.accept()
        except BaseException:
            one.close()
            raise
    for end in (one, other):
        end.settimeout(deadline.seconds(PATIENCE))
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


class Ends:
    """One pump and the far ends of its two connections."""

    def __init__(self, mover: Mover, pool: PipePool, *, small: bool, deep: bool) -> None:
        self.pool = pool
        self.sender, self.source = connection(room=DEEP if deep else None)
        self.sink, self.receiver = connection(room=SMALL if small else None)
        for mine in (self.source, self.sink):
            mine.setblocking(False)
        self.source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # as every socket of a worker
        self.pump = Pump(self.source, self.sink, mover)
        self.sent = bytearray()
        self.received = bytearray()

    # The sender

    def send(self, data: bytes, flags: int = 0) -> None:
        """Send `data` and wait until the source has it."""
        before = queued(self.source)
        self.sender.sendall(data, flags)
        self.sent += data
        until(lambda: queued(self.source) >= before + len(data), what="the bytes at the source")

    def finish(self) -> None:
        """Send the FIN and wait until the source has it."""
        self.sender.shutdown(socket.SHUT_WR)
        self.wait(self.source, select.POLLRDHUP)

    # The pump

    def turn(self, budget: int = BUDGET) -> int:
        """Call the mover once, as a session does."""
        self.pump.verdict = self.pump.move(self.pump, budget)
        return self.pump.verdict

    def turn_until(self, *verdicts: int, budget: int = BUDGET) -> int:
        """Turn, waiting for whatever the verdict says, until the verdict is one of `verdicts` or final."""
        end = time.monotonic() + deadline.seconds(PATIENCE)
        while time.monotonic() < end:
            verdict = self.turn(budget)
            if verdict in verdicts or verdict in FINAL:
                return verdict
            self.wait_for(verdict)
        raise AssertionError(f"no verdict {verdicts} after {self.pump.taken} bytes")

    def wait_for(self, verdict: int) -> None:
        """Wait for what a session would wait for after `verdict`."""
        if verdict == DRY:
            self.wait(self.source, select.POLLIN)
        elif verdict == FULL:
            self.wait(self.sink, select.POLLOUT)

    def carry(self, data: bytes, budget: int = BUDGET, read: bool = True) -> None:
        """Send `data` piece by piece, turning and (with `read`) receiving, until it has all gone through."""
        self.sender.setblocking(False)
        rest = memoryview(data)
        goal = len(self.received) + len(data)
        end = time.monotonic() + deadline.seconds(PATIENCE)
        while (rest or (read and len(self.received) < goal)) and time.monotonic() < end:
            if rest:
                try:
                    rest = rest[self.sender.send(rest) :]
                except BlockingIOError:
                    pass
            assert self.turn(budget) in (DRY, FULL, MORE)
            if read:
                self.drain()
        self.sender.settimeout(deadline.seconds(PATIENCE))
        self.sent += data
        assert not rest

    def clog(self) -> bytes:
        """Fill the way from the sink to the receiver, past the pump; what filled it."""
        filler = bytearray()
        piece = b"#" * 65536
        while True:
            try:
                filler += b"#" * self.sink.send(piece)
            except BlockingIOError:
                if len(piece) > 1:
                    piece = b"#"  # what is not "writable" any more may still take a byte
                elif not select.select([], [self.sink], [], 0.02)[1]:
                    return bytes(filler)

    # The receiver

    def drain(self) -> None:
        """Receive whatever has come, without waiting."""
        self.receiver.setblocking(False)
        try:
            while piece := self.receiver.recv(1 << 20):
                self.received += piece
        except BlockingIOError:
            pass
        self.receiver.settimeout(deadline.seconds(PATIENCE))

    def receive(self) -> bytes:
        """Receive until everything given has come; all of it since the beginning."""
        while len(self.received) < self.pump.given:
            piece = self.receiver.recv(1 << 20)
            assert piece, "the stream ended early"
            self.received += piece
        return bytes(self.received)

    # Both

    def wait(self, end: socket.socket, mask: int) -> int:
        """Wait until `end` is ready for `mask` (select.POLL*) or broken."""
        poll = select.poll()
        poll.register(end, mask)
        events = poll.poll(deadline.seconds(PATIENCE) * 1000)
        assert events, f"socket not ready for {mask:#x}"
        return events[0][1]

    def held(self) -> int:
        """Bytes that the pump holds, counted where they are: in its buffer and in its pipe."""
        pump = self.pump
        return len(pump.held or b"") + (in_pipe(pump.pipe.read_end) if pump.pipe is not None else 0)

    def acknowledged(self) -> None:
        """Wait until the receiver's kernel has everything that was given."""
        until(lambda: unsent(self.sink) == 0, what="the bytes to be acknowledged")

    def close(self) -> None:
        """Close everything."""
        release(self.pump, self.pool)
        self.pool.close()
        for end in (self.sender, self.source, self.sink, self.receiver):
            end.close()


def in_pipe(descriptor: int) -> int:
    """Bytes in a pipe (pipe(7), FIONREAD)."""
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]


@contextmanager
def between(name: str, *, cap: int = 4, small: bool = False, deep: bool = False) -> Iterator[Ends]:
    """A pump that begins with the mover `name`, its pool's `cap`, a path to the receiver
    that is `small`, and one from the sender that is `deep`, or both as the kernel likes."""
    pool = PipePool(cap)
    ends = Ends(MOVERS[name](pool), pool, small=small, deep=deep)
    try:
        yield ends
    finally:
        ends.close()
