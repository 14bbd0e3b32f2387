"""What the service manager is told: sd_notify(3), without its library.

supervisor/main says when it serves, reloads, stops, lives, or hands over to another process. Where
nobody wants to know (no NOTIFY_SOCKET), or the socket is gone, nothing is said and nothing fails. It
must never wait.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

LATER: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})
"""The manager is busy; anything else means that it is not there."""


class Notify:
    """Talks to the manager that started this process, if one did."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = address(environment.get("NOTIFY_SOCKET", ""))
        self._waiting: dict[str, str] = {}
        self._sock: socket.socket | None = None
        if self._address is not None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        # Whose watchdog it is; without the second variable, that of whoever reads the first.
        period = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", "")
        self.watched = period.isdecimal() and meant in ("", str(os.getpid()))

    def ready(self, status: str) -> None:
        """It serves, after the start, a reload or a change of process; in `status`, what."""
        self._tell({"READY": "1", "STATUS": status})

    def reloading(self) -> None:
        """A reload has begun; `ready` says when it has ended."""
        # The time tells the manager which of two reloads the next READY=1 ends (sd_notify(3)).
        self._tell({"RELOADING": "1", "MONOTONIC_USEC": f"{time.monotonic_ns() // 1000}"})

    def stopping(self, status: str) -> None:
        """It ends."""
        self._tell({"STOPPING": "1", "STATUS": status})

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._tell({"STATUS": status})

    def beat(self) -> None:
        """The loop has come round; and what the manager had no room for is said again."""
        self._tell({"WATCHDOG": "1"} if self.watched else {})

    def handed_over(self, pid: int, status: str) -> None:
        """`pid` is the main process from now on."""
        self._tell({"MAINPID": f"{pid}", "READY": "1", "STATUS": status})

    def close(self) -> None:
        """Say nothing more; in a new child, leave it to the parent."""
        if self._sock is not None:
            self._sock.close()
        self._sock = None

    def _tell(self, words: dict[str, str]) -> None:
        if self._sock is None or self._address is None:
            return
        if "READY" in words or "RELOADING" in words:  # the later one is true
            for old in ("READY", "RELOADING", "MONOTONIC_USEC"):
                self._waiting.pop(old, None)
        self._waiting |= words
        if not self._waiting:
            return
        text = "".join(f"{name}={value}\n" for name, value in self._waiting.items())
        try:
            self._sock.sendto(text.encode(), self._address)
        except OSError as error:
            if error.errno in LATER:
                return
        self._waiting = {}


def address(text: str) -> str | None:
    """Where NOTIFY_SOCKET leads, as sendto(2) wants it; None: to nothing that is ours to reach."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None
