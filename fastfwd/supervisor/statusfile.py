"""The status file: the supervisor puts it in its place, the exporter fills it.

Only the supervisor may write to the file's directory, and only the exporter has the figures. So the
supervisor opens a new file beside the place and lends it; once the exporter says that it is written,
it takes the place of the last one, whole. Nothing here reads what the exporter has written.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final

from fastfwd.model import Config

MODE: Final = 0o644

log = logging.getLogger("fastfwd")


class StatusFile:
    """`path` is where the file belongs; None: nowhere."""

    def __init__(self) -> None:
        self.path: str | None = None
        self._complained = False

    @property
    def _fresh(self) -> str:
        return f"{self.path}.new"

    def commit(self, config: Config) -> None:
        """Write to what `config` names from now on. The old file goes if it is another one."""
        if self.path is not None and self.path != config.statusfile:
            self.remove()
        self.path = config.statusfile
        self._complained = False

    def open(self) -> int | None:
        """A file to be filled, which is the caller's; None if there is none, or it cannot be had."""
        if self.path is None:
            return None
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._fresh)
            # Nobody else's file, and no link: O_EXCL (open(2)).
            return os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        except OSError as error:
            self._complain(error)
            return None

    def written(self) -> None:
        """The file that was lent last is full."""
        if self.path is None:
            return
        try:
            os.rename(self._fresh, self.path)
            self._complained = False
        except OSError as error:
            self._complain(error)

    def remove(self) -> None:
        """It is no longer true."""
        if self.path is not None:
            for path in (self._fresh, self.path):
                with suppress(OSError):
                    os.unlink(path)

    def abandon(self) -> None:
        """It is another program's from now on."""
        self.path = None

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("cannot write the status file %s: %s", self.path, error.strerror)
