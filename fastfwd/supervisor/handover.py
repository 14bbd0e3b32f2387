"""What a program hands to the one that replaces it in a hot upgrade: open descriptors, and what they are.

supervisor/upgrade writes it in the old program, supervisor/predecessor reads it in the new one, which may
be another version: the description is JSON with a number for its format, in a file without a name
(memfd_create(2)) whose descriptor is in the environment. It never changes what either program does.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

VARIABLE: Final = "FASTFWD_HANDOVER"

FORMAT: Final = 1
"""Raised when a field changes its meaning; a new one that may be missing needs no other number."""

LONGEST: Final = 4096
"""Bytes of a message on the link."""


class HandoverError(Exception):
    """What was handed over cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Descriptors are numbers that both programs know them by. `pid` is the old program; `link` the new
    one's end of the socket pair between them; `messages` the old one's standard error; `listeners` maps
    keys of places to sockets; `shared` names those keys whose sockets the service manager has too;
    `pidfile` is the path of the pid file and the locked descriptor of it; `secret` what session tickets
    are sealed with, in hexadecimal; `upgrades` how often that has been done."""

    pid: int
    link: int
    messages: int
    listeners: dict[str, list[int]]
    shared: list[str]
    pidfile: tuple[str, int] | None
    secret: str
    upgrades: int

    @property
    def descriptors(self) -> list[int]:
        """All that the new program needs."""
        found = [self.link, self.messages]
        found += [each for group in self.listeners.values() for each in group]
        return found if self.pidfile is None else [*found, self.pidfile[1]]

    def write(self) -> int:
        """A descriptor to read it from, which is the caller's. Raises OSError."""
        descriptor = os.memfd_create("fastfwd-handover")
        os.write(descriptor, orjson.dumps({"format": FORMAT, **asdict(self)}))
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


def read(environment: MutableMapping[str, str] = os.environ) -> Handover | None:
    """What the process that started us has handed over, None if nothing. The variable is removed. Raises
    HandoverError."""
    number = environment.pop(VARIABLE, None)
    if number is None:
        return None
    try:
        with open(int(number), "rb") as file:
            said: Any = orjson.loads(file.read())
        if (found := said.pop("format")) != FORMAT:
            raise HandoverError(f"expected a handover of format {FORMAT}, found {found}")
        handover = Handover(**said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HandoverError(f"expected a handover in descriptor {number}: {error}") from None
    if handover.pid != os.getppid():
        raise HandoverError(f"expected a handover of process {os.getppid()}, found one of {handover.pid}")
    for descriptor in handover.descriptors:
        os.set_inheritable(descriptor, False)
    return handover


class Link:
    """One end of the socket pair: small JSON messages, whole or not at all, and never waiting."""

    def __init__(self, sock: socket.socket) -> None:
        """Talk over `sock`, of AF_UNIX and SOCK_SEQPACKET."""
        sock.setblocking(False)
        self._sock = sock

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._sock.fileno()

    def tell(self, **message: Any) -> bool:
        """Send a message. One that there is no room for is lost, as is one to a program that is gone;
        whether it was sent."""
        try:
            self._sock.send(orjson.dumps(message))
        except OSError:
            return False
        return True

    def heard(self) -> tuple[list[dict[str, Any]], bool]:
        """What has arrived, and whether the other program is still there."""
        found: list[dict[str, Any]] = []
        while True:
            try:
                data = self._sock.recv(LONGEST)
            except BlockingIOError:
                return found, True
            except OSError:
                return found, False
            if not data:
                return found, False
            try:
                message = orjson.loads(data)
            except ValueError:
                continue
            if isinstance(message, dict):
                found.append(message)

    def close(self) -> None:
        """Close this end."""
        self._sock.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
