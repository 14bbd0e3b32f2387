"""A process that lets connections in and ends them on the scoreboard as fast as it can, for
tests that read meanwhile. It stores in a worker's order: let in first, ended later."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fastfwd.observe.scoreboard import ForwardCell, Scoreboard
from tests.deadline import until


@contextmanager
def accepting(board: Scoreboard, number: int, slot: int) -> Iterator[None]:
    """While it lasts, another process writes the row of the forward `number` in `slot`."""
    row = board.forward(number, slot)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            # Plain numbers and the last of the ends: a reader that looks in the wrong order is
            # caught only if a connection can begin and end between two of its looks.
            let_in, ended = int(ForwardCell.ACCEPTED), int(ForwardCell.CLOSED_CONNECT)
            while os.getppid() == parent:
                for _ in range(1000):
                    row[let_in] += 1
                    row[ended] += 1
        finally:
            os._exit(0)
    try:
        until(lambda: row[ForwardCell.ACCEPTED] > 0, what="the first connection")
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
