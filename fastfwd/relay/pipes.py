"""The pipe pool: lend, give back, kill. One per worker; used by splicing and pump.release.

Idle sessions hold no pipe. The pool is filled before privileges are dropped: the
kernel counts pipe pages per user (`fs.pipe-user-pages-soft`, pipe(7)), and past the
limit an unprivileged user gets pipes of one or two slots. It must never lend a pipe
that has bytes in it: they would come out in another client's stream.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Final

SIZE: Final = 1 << 20
"""Bytes asked for per pipe: what the kernel grants anybody (fs.pipe-max-size), in slots of
a page. A bulk flow costs a quarter less processor time with that than with 256 KiB, and
a third less than with 64: larger moves wake the two ends less often. A stalled direction
holds that much, on top of what is in its sockets."""

SECOND: Final = 1 << 18
"""Bytes asked for where SIZE is refused."""

USABLE: Final = 64 * 1024
"""A pipe the kernel made smaller than this is slower than copying and is not used."""


def share(workers: int) -> int:
    """Pipes of SIZE that each of so many workers may open without rights: the kernel counts those of all
    processes of an account together, and who came first would leave nothing to the others (pipe(7))."""
    try:
        with open("/proc/sys/fs/pipe-user-pages-soft", encoding="ascii") as sysctl:
            pages = int(sysctl.read())
    except (OSError, ValueError):
        return 0  # unknown: when one is needed is early enough
    if not pages:  # no limit
        return sys.maxsize
    return pages * os.sysconf("SC_PAGE_SIZE") // SIZE // workers


class Pipe:
    """A pipe's two ends as file descriptors."""

    __slots__ = ("read_end", "write_end")

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self.write_end = write_end


class PipePool:
    """At most `cap` pipes, lent to one pump at a time.

    `lent` counts the pipes on loan, `short` those the kernel made smaller than asked
    or refused; both only for whoever looks.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.lent = 0
        self.short = 0
        self._idle: list[Pipe] = []

    @property
    def idle(self) -> int:
        """Pipes open and not on loan."""
        return len(self._idle)

    def fill(self, count: int) -> None:
        """Open pipes until `count` are idle, or the kernel or the cap says no."""
        while len(self._idle) < min(count, self.cap) and (pipe := self._make()) is not None:
            self._idle.append(pipe)

    def lend(self) -> Pipe | None:
        """An empty pipe for the caller alone, or None: then copy."""
        if self._idle:
            self.lent += 1
            return self._idle.pop()
        if self.lent >= self.cap:
            return None
        if (pipe := self._make()) is not None:
            self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """End a loan. The pipe must be empty."""
        self.lent -= 1
        self._idle.append(pipe)

    def kill(self, pipe: Pipe) -> None:
        """End a loan of a pipe that has bytes in it: close it, and them."""
        self.lent -= 1
        os.close(pipe.read_end)
        os.close(pipe.write_end)

    def close(self) -> None:
        """Close the idle pipes."""
        while self._idle:
            pipe = self._idle.pop()
            os.close(pipe.read_end)
            os.close(pipe.write_end)

    def _make(self) -> Pipe | None:
        try:
            read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # EMFILE, ENFILE: the descriptors are better spent on clients
            self.short += 1
            return None
        for wanted in (SIZE, SECOND):
            try:
                size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, wanted)
                break
            except OSError:  # EPERM past fs.pipe-max-size or the user's pages; ENOMEM
                pass
        else:
            size = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
        if size < SIZE:
            self.short += 1
        if size < USABLE:
            os.close(read_end)
            os.close(write_end)
            return None
        return Pipe(read_end, write_end)
