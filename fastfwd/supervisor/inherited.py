"""Listening sockets that were open before we were: the service manager's, or the program's that we replace.

supervisor/listeners and supervisor/metrics ask here before they open one themselves. The manager's
(sd_listen_fds(3)) are known by where they listen, those of an upgrade by their places' keys, since a
forward may leave its port to the kernel. Of what is closed here somebody else still has a copy.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final

FIRST: Final = 3
"""The number of the first descriptor from the service manager: SD_LISTEN_FDS_START."""


@dataclass(slots=True)
class Inherited:
    """`keyed` maps keys of places to the sockets of an upgrade, slot by slot; `loose` are the service
    manager's; `shared` names the keys, of either kind, whose sockets the manager has too."""

    keyed: dict[str, list[socket.socket]] = field(default_factory=dict)
    loose: list[socket.socket] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)

    def take(self, key: str, family: int, kind: int, where: tuple[str, int] | str) -> list[socket.socket]:
        """The sockets for the place `key`, the caller's from now on: those that listen `where` (an
        address and a port, or what a Unix socket's path is for bind(2))."""
        found = self.keyed.pop(key, [])
        mine = [each for each in self.loose if _listens(each, family, kind, where)]
        if mine:
            self.loose = [each for each in self.loose if each not in mine]
            self.shared.add(key)
        return found + mine

    def close(self) -> tuple[list[str], list[str]]:
        """Close what nobody has taken: the keys of what was an upgrade's, and where the service manager's
        listened."""
        keys, left = list(self.keyed), [_text(_place(each)) for each in self.loose]
        for each in (*self.loose, *(sock for group in self.keyed.values() for sock in group)):
            each.close()
        self.keyed, self.loose = {}, []
        return keys, left


def from_manager(environment: MutableMapping[str, str] = os.environ) -> Inherited:
    """The sockets that the service manager has opened for us. The variables are removed: they are for no
    process that we start."""
    count, meant = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not count.isdecimal() or meant != str(os.getpid()):
        return Inherited()
    return Inherited(loose=list(_sockets(range(FIRST, FIRST + int(count)))))


def adopted(groups: Mapping[str, Iterable[int]], shared: Iterable[str]) -> Inherited:
    """The sockets of an upgrade, by the keys of their places."""
    return Inherited({key: list(_sockets(group)) for key, group in groups.items()}, shared=set(shared))


def _sockets(descriptors: Iterable[int]) -> Iterable[socket.socket]:
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:  # no socket, or nothing at all
            continue
        os.set_inheritable(descriptor, False)
        sock.setblocking(False)
        yield sock


def _place(sock: socket.socket) -> tuple[str, int] | str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
    return name[0], name[1]


def _text(where: tuple[str, int] | str) -> str:
    if isinstance(where, str):
        return f"unix:{where.replace(chr(0), '@', 1)}"
    host, port = where
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listens(sock: socket.socket, family: int, kind: int, where: tuple[str, int] | str) -> bool:
    return sock.family == family and sock.type == kind and _place(sock) == where
