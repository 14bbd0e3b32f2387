"""The pump: one direction of a session, and the contract its movers keep.

A pump takes bytes from its source socket and gives them to its sink, in order,
each exactly once, holding at most one buffer or one pipe of them in between.
worker/session owns two of them and calls `pump.move(pump, budget)`; copying and
splicing provide the movers. A mover never waits, never closes a socket, never
looks at epoll: it answers with a verdict and the session acts on it.

The contract (tests/relay holds every mover to it):

* DRY: the source has nothing more now; call again when epoll reports it readable.
* FULL: the sink takes no more now; call again when epoll reports it writable.
* MORE: the budget is used up and there may be more; call again in the next turn.
* END: the source ended cleanly and everything it sent has been given to the sink, which
  is to be shut down or closed now: the last bytes may wait for that (MSG_MORE).
* SOURCE_BROKE: the source ended with an error (a reset, a timeout); everything that
  arrived before it has been given to the sink.
* SINK_BROKE: the sink refuses bytes for good; what was taken and not given is lost.

The last three are final. `pending` is what the pump still holds; after SINK_BROKE, what is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from _socket import socket

    from fastfwd.relay.ciphering import Stream
    from fastfwd.relay.pipes import Pipe, PipePool

    Side: TypeAlias = socket | Stream
    """One end of a pump."""

DRY, FULL, MORE, END, SOURCE_BROKE, SINK_BROKE = range(6)

BUDGET = 1 << 20
"""Bytes a pump may move in one turn before the others get theirs, about 0.3 ms at the
bench's cost of bulk. (relay/choose shortens it for a stream beside small requests.)"""


class Tally:
    """Bytes that the movers of a worker have taken, by path; only for whoever looks."""

    __slots__ = ("copied", "spliced")

    def __init__(self) -> None:
        self.copied = 0
        self.spliced = 0


class Pump:
    """State of one direction. Plain attributes, no methods on the way of a byte: a
    session makes two of these per connection and the movers touch them per event."""

    __slots__ = (
        "copy_only",
        "ending",
        "error",
        "fin",
        "held",
        "move",
        "pending",
        "pipe",
        "sink",
        "source",
        "streak",
        "taken",
        "to_end",
        "verdict",
    )

    def __init__(self, source: Side, sink: Side, move: Mover) -> None:
        """A pump from `source` to `sink` (non-blocking, connected stream sockets, perhaps with TLS
        on them, which stay the caller's) that begins with the mover `move`."""
        self.source = source
        self.sink = sink
        self.move = move
        self.taken = 0
        """Bytes read from the source so far."""
        self.pending = 0
        """Bytes taken and not given: held, in the pipe, or lost with the sink. Movers set
        it only when the sink falls short, which most never does. No system call tells how
        many are in a pipe (it is full by slots, pipe(7), long before it is full by bytes)."""
        self.held: memoryview | None = None
        """What a short send left over; nothing is read while it is here."""
        self.pipe: Pipe | None = None
        self.streak = 0
        self.fin = False
        """The peer's FIN has come and nothing else: a short read takes the last bytes."""
        self.to_end = False
        """An end of another kind was announced: read on to it although a short read says
        that nothing else is waiting, since epoll's edge will not come again."""
        self.copy_only = False
        """Not to be spliced any more: urgent data was announced, whose mark splice(2)
        cannot pass, or splicing has come to an end of some kind that only recv can name."""
        self.ending = 0
        """END or SOURCE_BROKE once the source has said so, 0 before."""
        self.error = 0
        """The errno behind SOURCE_BROKE or SINK_BROKE, perhaps before the verdict."""
        self.verdict = DRY
        """The last verdict, kept by the session for the session."""

    @property
    def given(self) -> int:
        """Bytes the sink's kernel has accepted so far."""
        return self.taken - self.pending


Mover = Callable[[Pump, int], int]
"""(pump, budget in bytes) -> verdict."""


def release(pump: Pump, pool: PipePool) -> None:
    """Give up whatever the pump holds when its session ends: an empty pipe goes back,
    one with bytes in it is killed, for the next borrower would send them."""
    pump.held = None
    if (pipe := pump.pipe) is not None:
        pump.pipe = None
        if pump.pending:
            pool.kill(pipe)
        else:
            pool.give_back(pipe)
