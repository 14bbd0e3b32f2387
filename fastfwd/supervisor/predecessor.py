"""The program that we replace, as the new one sees it: what it has handed over, and what it still does.

supervisor/main makes one at a start that is an upgrade. The old program serves until we do; then it tells
us to go on alone, and finishes its sessions. As long as it does, orders to stop and to reopen the log are
passed on to it, and it says how many sessions it has.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fastfwd.supervisor.handover import Handover, Link

PART: Final = 20
"""Keys of places in a message: each has the path of a Unix socket, 108 bytes, at most."""


class Predecessor:
    """`sole` says that it has let go of everything that only one program can have; `left` how many
    sessions it has; `gone` that it has ended."""

    def __init__(self, handover: Handover) -> None:
        """The program that has handed over `handover`."""
        self.upgrades = handover.upgrades
        self.sole = False
        self.gone = False
        self.left = 0
        self._link = Link(socket.socket(fileno=handover.link))
        self._messages: int | None = handover.messages
        self._pidfile = handover.pidfile

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._link.fileno()

    def serving(self, dropped: Sequence[str], slots: int) -> bool:
        """All our workers serve, in so many `slots`, without the places `dropped`: it may let go. Whether
        it could be told."""
        parts = [dropped[start : start + PART] for start in range(0, len(dropped), PART)]
        said = [self._link.tell(op="dropped", keys=part) for part in parts]
        return all([*said, self._link.tell(op="serving", slots=slots)])

    def leave(self) -> None:
        """We do not serve after all: it goes on alone."""
        self._link.close()
        self.gone = True

    def stop(self) -> None:
        """It must stop, as we do."""
        self._link.tell(op="stop")

    def reopen(self) -> None:
        """Its log has been renamed, as ours."""
        self._link.tell(op="reopen")

    def messages(self) -> int:
        """Its standard error, the caller's from now on."""
        assert self._messages is not None  # asked for once
        descriptor, self._messages = self._messages, None
        return descriptor

    def has_pidfile(self, path: str) -> bool:
        """Whether `path` is its pid file."""
        return self._pidfile is not None and self._pidfile[0] == path

    def pidfile(self, path: str) -> int | None:
        """The locked descriptor of its pid file, the caller's from now on, if that is `path`. Another one
        is removed: nobody will do it after us."""
        if self._pidfile is None:
            return None
        (old, descriptor), self._pidfile = self._pidfile, None
        if old == path:
            return descriptor
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(old)):
                os.unlink(old)
        os.close(descriptor)
        return None

    def step(self) -> None:
        """Hear what it has said."""
        messages, alive = self._link.heard()
        for message in messages:
            if message.get("op") == "yours":
                self.sole = True
            elif message.get("op") == "left" and isinstance(count := message.get("sessions"), int):
                self.left = max(0, count)
        if not alive:
            # It needs not have said so: what a dead program had, nobody else has.
            self.sole = self.gone = True
            self.left = 0
            self._link.close()

    def abandon(self) -> None:
        """In a new child: let go of everything, which is the supervisor's still."""
        self._link.close()
        if self._messages is not None:
            os.close(self._messages)
        if self._pidfile is not None:
            os.close(self._pidfile[1])
