"""A lock between workers, held for microseconds.

worker/limits and worker/recall take it where "look, then write" must be one step for all. It must
never wait for a worker that stands still.
"""

from __future__ import annotations

import fcntl
import os
from time import monotonic
from typing import Final

STANDSTILL: Final = 0.002
"""Seconds after which whoever holds the lock is taken to stand still (SIGSTOP, a hypervisor): it
is held for microseconds. Then a limit may be exceeded by one per worker, and nobody waits."""


class Lock:
    """A lock between processes. The kernel lets go of a dead one's (fcntl(2)); for a living one that
    does not let go nobody waits."""

    def __init__(self, name: str) -> None:
        """`name` is what /proc/PID/fd calls it."""
        self._file = os.memfd_create(name, os.MFD_CLOEXEC)

    def take(self) -> bool:
        """Keep the other processes out, until `give`; False when that cannot be had."""
        deadline = 0.0
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                now = monotonic()
                deadline = deadline or now + STANDSTILL
                if now >= deadline:
                    return False
                os.sched_yield()

    def give(self) -> None:
        """Let the others in again."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Have nothing to do with it any more."""
        os.close(self._file)
