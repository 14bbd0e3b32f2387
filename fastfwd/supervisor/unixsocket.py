"""Listening Unix sockets: their files, which outlive processes and must not be taken from living ones.

supervisor/listeners and supervisor/metrics open them here. A name that begins with `@` is one of the
abstract namespace, without a file (unix(7)).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import NamedTuple


class UnixListener(NamedTuple):
    """A bound socket, and its file: device and inode, or None. It is not `ours` to remove while it
    belongs to a program that we replace, or to the service manager."""

    sock: socket.socket
    path: str
    inode: tuple[int, int] | None
    ours: bool = True

    def in_place(self) -> bool:
        """Whether clients still find it: somebody may have removed the file."""
        try:
            return self.inode is None or inode(self.path) == self.inode
        except OSError:
            return False

    def remove(self) -> None:
        """Take the file away, if it is ours still."""
        if self.ours and self.inode is not None and self.in_place():
            try:
                os.unlink(self.path)
            except OSError:  # a directory that we may not write to: nothing is lost
                pass


def open_unix(path: str, mode: int, backlog: int) -> UnixListener:
    """A non-blocking listening socket at `path`, whose file has that `mode`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if path.startswith("@"):
            sock.bind(name(path))
            sock.listen(backlog)
            return UnixListener(sock, path, None)
        _make_room(path)
        # Not chmod afterwards alone: for a moment others could connect.
        before = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, mode)
        sock.listen(backlog)
        return UnixListener(sock, path, inode(path))
    except OSError:
        sock.close()
        raise


def adopt_unix(sock: socket.socket, path: str, mode: int) -> UnixListener:
    """`sock`, which listens at `path` already, with a file of that `mode`, somebody else's so far.
    Raises OSError."""
    if path.startswith("@"):
        return UnixListener(sock, path, None)
    os.chmod(path, mode)
    return UnixListener(sock, path, inode(path), ours=False)


def name(path: str) -> str:
    """What bind(2) and connect(2) call it."""
    return f"\0{path[1:]}" if path.startswith("@") else path


def inode(path: str) -> tuple[int, int]:
    """Which file it is. Raises OSError."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _make_room(path: str) -> None:
    """Remove a socket that nobody listens on any more. Raises OSError for anything else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EEXIST, "there is something else than a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    os.unlink(path)
