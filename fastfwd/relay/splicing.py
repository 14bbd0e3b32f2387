"""The mover that never sees the bytes: splice(2) from socket to pipe to socket.

For directions in full flow (relay/choose says when). It borrows a pipe while there
is something to move and keeps it across turns only with bytes inside. It keeps the
contract of relay/pump; it must never report DRY with bytes in the pipe.
"""

from __future__ import annotations

import errno
import os
from os import splice as os_splice
from typing import Final

from fastfwd.relay import choose
from fastfwd.relay.copying import copier
from fastfwd.relay.pipes import PipePool
from fastfwd.relay.pump import DRY, FULL, MORE, SINK_BROKE, Mover, Pump, Tally

FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

CANNOT_SPLICE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM})
"""The kernel will not splice from this socket, now or ever; nothing is wrong with the
stream itself, so it is copied instead."""


def movers(pool: PipePool, tally: Tally) -> tuple[Mover, Mover]:
    """The (copying, splicing) pair of a worker. A pump begins with the first; they put
    each other in its place. Pipes come from `pool`; bytes are counted in `tally`."""

    def promote(pump: Pump) -> bool:
        if pump.copy_only or (pipe := pool.lend()) is None:
            pump.streak = 0
            return False
        pump.pipe = pipe
        pump.streak = 0
        pump.move = splice
        return True

    copy = copier(promote, tally)
    seen = runs = 0

    def splice(pump: Pump, budget: int) -> int:
        nonlocal seen, runs
        if tally.copied != seen:
            seen = tally.copied
            runs = 0
        runs += 1
        pipe = pump.pipe
        if pipe is None:
            pipe = pool.lend()
            if pipe is None:
                pump.move = copy
                return copy(pump, budget)
            pump.pipe = pipe
        source = pump.source.fileno()
        sink = pump.sink.fileno()
        read_end = pipe.read_end
        write_end = pipe.write_end
        piped = pump.pending
        moved = 0
        chunk, budget = choose.portion(runs, budget)
        while True:
            # Only into an empty pipe: it would take far more than its size (a slot may hold
            # 64 KiB), all of it kept for a sink that is full. So EAGAIN means dry here.
            if not piped:
                if pump.copy_only:
                    break
                try:
                    piped = os_splice(source, write_end, chunk, flags=FLAGS)
                except BlockingIOError:
                    break
                except OSError as error:
                    # Latched: asking has taken it off the socket, and recv, which is to
                    # read what is left, will end as if cleanly.
                    pump.copy_only = True
                    if error.errno not in CANNOT_SPLICE:
                        pump.error = error.errno or 0
                    break
                if not piped:
                    # No proof of the end: with a FIN behind it, an urgent mark reads as
                    # nothing too (measured). recv knows.
                    pump.copy_only = True
                    break
                pump.taken += piped
                tally.spliced += piped
            while piped:
                try:
                    n = os_splice(read_end, sink, piped, flags=FLAGS)
                except BlockingIOError:
                    pump.pending = piped
                    return FULL
                except OSError as error:
                    pump.error = error.errno or 0
                    pump.pending = piped
                    return SINK_BROKE
                piped -= n
                moved += n
            if moved >= budget:
                pump.pending = 0
                return MORE
        pump.pending = 0
        pump.pipe = None
        pool.give_back(pipe)
        if pump.copy_only:
            pump.move = copy
            pump.streak = 0
            return copy(pump, budget - moved)
        pump.streak = choose.short_runs(pump.streak, moved)
        if choose.demote(pump.streak):
            pump.move = copy
            pump.streak = 0
        return DRY

    return copy, splice
