"""The pid file: written atomically, locked while we live, removed when we stop.

A lock rather than the number in the file tells whether somebody is running: numbers
are reused. supervisor/main takes it before anything else of the host's. It must never
write through a symbolic link or remove another process's file.
"""

from __future__ import annotations

import errno
import fcntl
import os


class PidFileError(Exception):
    """The pid file cannot be ours; the text says why, without the path."""


class PidFile:
    """Holds the lock from `__init__` to `remove`."""

    def __init__(self, path: str, locked: int | None = None) -> None:
        """Write our pid to `path` (absolute). `locked` is a descriptor, ours from now on, that shares the
        lock of the program that we replace. Raises PidFileError: somebody holds it, or it is no
        regular file; OSError: it cannot be written."""
        self.path = path
        if locked is not None and not self._is_at_path(locked):
            os.close(locked)
            locked = None
        stale = self._lock_present() if locked is None else locked
        temporary = f"{path}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(temporary, flags, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(self._descriptor, b"%d\n" % os.getpid())
                if stale is None:
                    os.link(temporary, path)  # unlike rename, fails if somebody was faster
                    os.unlink(temporary)
                else:
                    os.rename(temporary, path)
            except OSError as error:
                os.unlink(temporary)
                os.close(self._descriptor)
                if isinstance(error, FileExistsError):
                    raise PidFileError("another process has just taken it") from None
                raise
        finally:
            if stale is not None:
                os.close(stale)

    def fileno(self) -> int:
        """The locked descriptor."""
        return self._descriptor

    def remove(self) -> None:
        """Remove the file, if it is still ours, and unlock."""
        if self._is_at_path(self._descriptor):
            os.unlink(self.path)
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Drop our copy, in a forked child or for the program that replaces us. The lock stays with the
        others'."""
        os.close(self._descriptor)

    def _lock_present(self) -> int | None:
        """Lock a file that is there already and return its descriptor, so that two starting
        processes cannot both find it stale; None when there is none."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise PidFileError("it is a symbolic link") from None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise PidFileError(f"already running as process {holder}") from None
        if not self._is_at_path(descriptor):
            # Between open and flock somebody else has found it stale and put theirs there.
            os.close(descriptor)
            return self._lock_present()
        return descriptor

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False
