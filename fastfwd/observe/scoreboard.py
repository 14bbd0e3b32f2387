"""Cells shared by all processes: one anonymous mapping, made before the first fork.

Rows of unsigned 64-bit cells: one of the supervisor's, one of all workers', two per slot,
one per (slot, forward). Every cell but the workers' common ones has a single writer, so
there are no locks: an aligned 8-byte store is atomic on every Linux machine Python runs on.
Rows belong to slots and to forwards' labels (observe/rows), not to processes and not to one
configuration, so nothing falls when a worker dies or a reload takes a forward away.

Workers and the supervisor write, the exporter reads. It must never be a place to keep
anything else. Times are nanoseconds, of CLOCK_MONOTONIC where they are compared, since
the epoch where they are shown.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

CELL: Final = 8
LARGEST: Final = 2**64 - 1
LINE: Final = 8
"""Cells per cache line: what different processes write lies on different lines."""


class Histogram:
    """Where a histogram of seconds lies in a row: a cell per upper bound and one for
    everything above the last, not cumulative; then the sum in microseconds."""

    __slots__ = ("bounds", "first", "sum")

    def __init__(self, first: int, bounds: tuple[float, ...]) -> None:
        """Cells from `first` on, upper `bounds` in seconds, rising."""
        self.first = first
        self.bounds = bounds
        self.sum = self.first + len(bounds) + 1

    def observe(self, row: memoryview, seconds: float) -> None:
        """Count `seconds` in `row`."""
        row[self.first + bisect_left(self.bounds, seconds)] += 1
        row[self.sum] += int(seconds * 1e6)


class SupervisorCell(enum.IntEnum):
    """The supervisor's own row."""

    HEARTBEAT = 0
    """Monotonic time of its last tick."""
    STARTED = 1
    STATE = 2
    """A State."""
    RELOADS = 3
    RELOAD_FAILURES = 4
    RELOAD_OK = 5
    """1 if the last load or reload was applied."""
    RELOADED = 6
    """When one was applied last."""
    LOOKUPS = 7
    LOOKUP_FAILURES = 8
    UPGRADES = 9
    """Hot upgrades from the first program to this one."""
    UPGRADE_FAILURES = 10
    PREVIOUS_SESSIONS = 11
    """Open now in the programs that this one has replaced."""


class State(enum.IntEnum):
    """What the whole program is doing."""

    STARTING = 0
    SERVING = 1
    DRAINING = 2
    REPLACED = 3
    """Another program serves; whoever has asked us before is told so."""


class SharedCell(enum.IntEnum):
    """The row that all workers write."""

    LOG_CUT = 0
    """The inode of a log that ends in half a line, 0 if none does. Who finds it there ends the
    line and clears it, under a lock on the log (observe/eventlog)."""


class Cell(enum.IntEnum):
    """The row of a slot that its worker writes."""

    HEARTBEAT = 0
    """Monotonic time of the loop's last look at its timers."""
    SESSIONS = 1
    """Sessions and dials open now."""
    LOG_LINES = 2
    LOG_DROPPED = 3
    """Connection-log lines written, and lost because the log would not take them."""
    ACCEPT_EMFILE = 4
    ACCEPT_ENFILE = 5
    ACCEPT_ENOBUFS = 6
    ACCEPT_ABORTED = 7
    ACCEPT_OTHER = 8
    """Failed accept(2)s by reason."""
    ACCEPT_PAUSED = 9
    """Nanoseconds without accepting because there was no room."""
    PIPES_LENT = 10
    PIPES_IDLE = 11
    PIPES_SHORT = 12
    COPIED = 13
    SPLICED = 14
    """Bytes moved by either way, both directions."""
    TICKETS_OWN = 15
    """1 if the TLS session tickets that it gives are worth nothing to other workers."""
    LAG = 16
    """Histogram: see LAG below."""


class WatchCell(enum.IntEnum):
    """The row of a slot that the supervisor writes: what it sees of the workers there."""

    PID = 0
    """0: there is none."""
    BORN = 1
    SERVING = 2
    EXITED = 3
    SIGNALLED = 4
    UNRESPONSIVE = 5
    """Unplanned ends by reason; the last was ended by the watchdog."""
    CPU_USER = 6
    CPU_SYSTEM = 7
    """Microseconds that the slot's dead workers have used."""


class ForwardCell(enum.IntEnum):
    """The row of a forward in a slot, or of one of its several backends. The slot's worker writes
    it, up to QUEUE_LENGTH, from where on it is the supervisor's; and from HANDSHAKES on."""

    CLOSED_LOCAL = 0
    CLOSED_REMOTE = 1
    CLOSED_SOCKET = 2
    CLOSED_BIND = 3
    CLOSED_CONNECT = 4
    CLOSED_IDLE = 5
    CLOSED_HALF_CLOSED = 6
    CLOSED_EVICTED = 7
    CLOSED_REMOTE_TLS = 8
    CLOSED_LOCAL_TLS = 9
    CLOSED_PROXY = 10
    CLOSED_MOVED = 11
    """Has not ended, but gone on to another backend: it is accepted there again."""
    CLOSED_DIED = 12
    """Written by the supervisor, when the slot has no worker: see Scoreboard.settle."""
    ACCEPTED = 13
    """Connections let in: one cell of CLOSED_* counts the end of each. Whoever reads the row
    in order reads it after them: one that begins and ends in between does no harm."""
    OPENED = 14
    """Those for which a first dial was begun."""
    RECEIVED = 15
    SENT = 16
    """Bytes from clients, to clients."""
    NOT_ALLOWED = 17
    DENIED = 18
    OVER_LIMIT = 19
    OVER_CLIENT_LIMIT = 20
    OVER_RATE = 21
    OVER_CLIENT_RATE = 22
    """Connections that were not let in, by reason."""
    CONNECTS = 23
    """Dials, one per address tried."""
    REFUSED = 24
    TIMEOUT = 25
    UNREACHABLE = 26
    RESET = 27
    RESOLVE = 28
    LOCAL = 29
    TLS = 30
    """Dials that failed, by reason."""
    DATAGRAMS_RECEIVED = 31
    DATAGRAMS_SENT = 32
    """From clients, to clients."""
    DROPPED_BACKEND = 33
    DROPPED_CLIENT = 34
    """Datagrams that the socket to that side did not take."""
    DURATION = 35
    CONNECT_TIME = 46
    """Histograms: see DURATION and CONNECT_TIME below."""
    DOWN_UNTIL = 62
    """Monotonic time up to which this worker leaves the backend out, after failures."""
    CHECKED_DOWN = 63
    """1 while a check that this worker makes finds nobody there."""
    QUEUE_LENGTH = 64
    QUEUE_LIMIT = 65
    """The listener's accept queue."""
    RESOLVED = 66
    """When the target's name was last looked up with success; in slot 0's row."""
    DROPPED_QUEUE = 67
    """Datagrams that the listener's receive buffer had no room for."""
    HANDSHAKES = 72
    """With clients, then with backends, SIDE cells each: see TlsCell."""
    PROXY_MALFORMED = 96
    PROXY_STRANGER = 97
    PROXY_TIMEOUT = 98
    PROXY_CLOSED = 99
    """Clients that were not announced as they should have been."""


class TlsCell(enum.IntEnum):
    """Handshakes of one side, from HANDSHAKES or HANDSHAKES + SIDE on; TlsFailure has the rest."""

    VERSION_12 = 0
    VERSION_13 = 1
    RESUMED = 2
    """Of both versions."""
    CUT = 3
    """Streams that ended without the peer's close_notify."""


class TlsFailure(enum.IntEnum):
    """Why a handshake failed; its cell, as in TlsCell."""

    TIMEOUT = 4
    CLOSED = 5
    NOT_TLS = 6
    PROTOCOL = 7
    CERTIFICATE = 8
    EVICTED = 9
    OTHER = 10


SIDE: Final = 12
"""Cells of one side's handshakes."""


LAG: Final = Histogram(Cell.LAG, (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5))
DURATION: Final = Histogram(ForwardCell.DURATION, (0.01, 0.1, 1, 10, 60, 300, 1800, 7200, 43200))
CONNECT_TIME: Final = Histogram(
    ForwardCell.CONNECT_TIME, (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
)

SUPERVISOR_ROW: Final = 2 * LINE
SHARED_ROW: Final = LINE
SLOT_ROW: Final = 4 * LINE
WATCH_ROW: Final = LINE
FORWARD_ROW: Final = 13 * LINE
"""Cells per row of each kind."""

CLOSED: Final = range(ForwardCell.CLOSED_LOCAL, ForwardCell.CLOSED_DIED + 1)

PROT_READ: Final = 1  # sys/mman.h


class Scoreboard:
    """All cells, 0 at first."""

    def __init__(self, slots: int, forwards: int) -> None:
        """Room for `slots` slots and `forwards` forwards. Only what is used becomes memory."""
        self.slots = slots
        self.forwards = forwards
        self._watch = SUPERVISOR_ROW + SHARED_ROW
        self._slot = self._watch + slots * WATCH_ROW
        self._forward = self._slot + slots * SLOT_ROW
        cells = self._forward + forwards * slots * FORWARD_ROW
        self._map = mmap.mmap(-1, cells * CELL)
        self._cells = memoryview(self._map).cast("Q")
        self.supervisor = self._cells[:SUPERVISOR_ROW]
        """Indexed by SupervisorCell, like every row by its enum."""
        self.shared = self._cells[SUPERVISOR_ROW : self._watch]

    def row(self, slot: int) -> memoryview:
        """The row that the slot's worker writes, indexed by Cell."""
        start = self._slot + slot * SLOT_ROW
        return self._cells[start : start + SLOT_ROW]

    def watch(self, slot: int) -> memoryview:
        """What the supervisor writes about the slot, indexed by WatchCell."""
        start = self._watch + slot * WATCH_ROW
        return self._cells[start : start + WATCH_ROW]

    def forward(self, number: int, slot: int) -> memoryview:
        """The row of the forward with that `number` (observe/rows), indexed by ForwardCell."""
        start = self._forward + (number * self.slots + slot) * FORWARD_ROW
        return self._cells[start : start + FORWARD_ROW]

    def read(self, slot: int, cell: Cell) -> int:
        """The present value of one cell of a slot's row."""
        return int(self._cells[self._slot + slot * SLOT_ROW + cell])

    def total(self, cell: Cell) -> int:
        """The sum of a cell over all slots."""
        return sum(self.read(slot, cell) for slot in range(self.slots))

    def active(self, number: int) -> int:
        """Connections of a forward that have been let in and have not ended."""
        return sum(active(self.forward(number, slot)) for slot in range(self.slots))

    def settle(self, slot: int, numbers: Iterable[int]) -> None:
        """The slot's worker is dead: its connections, those of forwards `numbers`, have ended
        with it, and what it had is gone."""
        for number in numbers:
            row = self.forward(number, slot)
            # Nothing is believed of what a dead worker has left: the sum must fit all the same.
            row[ForwardCell.CLOSED_DIED] = min(row[ForwardCell.CLOSED_DIED] + max(0, active(row)), LARGEST)
        row = self.row(slot)
        for cell in (Cell.SESSIONS, Cell.PIPES_LENT, Cell.PIPES_IDLE):
            row[cell] = 0

    def clear(self, number: int) -> None:
        """Make the row of a forward that is gone one for another."""
        for slot in range(self.slots):
            self.forward(number, slot)[:] = memoryview(bytes(FORWARD_ROW * CELL)).cast("Q")

    def protect(self) -> None:
        """Make it read-only in this process. Raises OSError."""
        protect(self._map)


def protect(area: mmap.mmap) -> None:
    """Make a mapping read-only in this process: a store is a SIGSEGV from now on. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(len(area)), PROT_READ) != 0:
        raise OSError(ctypes.get_errno(), f"mprotect: {os.strerror(ctypes.get_errno())}")


def active(row: memoryview) -> int:
    """The connections of a forward's row that have not ended."""
    closed = sum(row[CLOSED.start : CLOSED.stop])
    return int(row[ForwardCell.ACCEPTED]) - closed
