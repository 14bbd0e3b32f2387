"""Signals become entries in a list; everything they ask for happens in the main loop.

supervisor/main owns one. A handler that did more would run between any two lines of
the loop: C rinetd reloads in its handler and crashes or hangs for it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Final

HANDLED: Final = (
    *(signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD),
)


class Signals:
    """Catches HANDLED; `fileno()` is readable when `take()` has something."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending: list[int] = []
        for number in HANDLED:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._reader

    def take(self) -> list[int]:
        """The signals since the last call, each once, in order of arrival."""
        try:
            while os.read(self._reader, 4096):
                pass
        except BlockingIOError:
            pass
        pending, self._pending = self._pending, []
        return list(dict.fromkeys(pending))

    def abandon(self) -> None:
        """In a freshly forked child: back to the defaults, nothing reaches the parent."""
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._reader)
        os.close(self._writer)

    def ignore(self) -> None:
        """At the end: a second SIGTERM must not turn a clean exit into a death. (The
        interpreter restores the defaults while it ends, but leaves SIG_IGN alone.)"""
        for number in HANDLED:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(number)
