"""The exporter's listening socket and its page, opened and kept by the supervisor.

As with the forwards' listeners, a busy port is known before anything changes, a
privileged one can be had, and an exporter that dies leaves its clients waiting in a
queue that its successor serves. supervisor/main opens it at start, supervisor/reload
at every reload. It must never answer a client itself.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastfwd.model import Address, Config, ConfigError, MetricsAddress, Problem
from fastfwd.observe import PAGE
from fastfwd.supervisor.inherited import Inherited
from fastfwd.supervisor.listeners import bind
from fastfwd.supervisor.unixsocket import UnixListener, adopt_unix, name, open_unix

BACKLOG: Final = 128
MODE: Final = 0o666


@dataclass(frozen=True, slots=True)
class Opened:
    """What a configuration's `metrics` needs: the `sock`, None when the one held already is
    it; the status page; the `unix` socket, if it is one."""

    address: MetricsAddress
    sock: socket.socket | None
    page: bytes
    unix: UnixListener | None = None


class MetricsPort:
    """`sock` is the socket held, `page` what the exporter shows at `/`."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self.sock: socket.socket | None = None
        self.page = b""
        self._address: MetricsAddress | None = None
        self._unix: UnixListener | None = None

    @property
    def url(self) -> str:
        """Where the exporter is found; the port is the one the kernel gave."""
        if self.sock is None or self._address is None:
            return ""
        if self._address.path is not None:
            return str(self._address)
        host, port = self.sock.getsockname()[:2]
        return f"http://{MetricsAddress(host, port)}/"

    def open(self, config: Config) -> Opened | None:
        """Open what `config` asks for; None when it asks for nothing. What is held is not
        touched. Raises ConfigError."""
        address = config.metrics
        if address is None:
            return None
        try:
            page = Path(PAGE).read_bytes()
        except OSError as error:
            text = f"cannot read the status page {PAGE}: {error.strerror}"
            raise ConfigError([Problem(config.origin("metrics"), text)]) from None
        if address == self._address and self._in_place():
            return Opened(address, None, page, self._unix)
        try:
            inherited = self._inherited.take(_key(address), *_where(address))
            if address.path is None:
                sock = inherited[0] if inherited else self._listen(address)
                return Opened(address, sock, page)
            # Whoever reaches the directory may ask, as everybody on this host may ask a
            # loopback port; no client's address is in the answer.
            if inherited:
                unix = adopt_unix(inherited[0], address.path, MODE)
            else:
                unix = open_unix(address.path, MODE, BACKLOG)
            return Opened(address, unix.sock, page, unix)
        except OSError as error:
            text = f"cannot serve metrics on {address}: {error.strerror or error}"
            raise ConfigError([Problem(config.origin("metrics"), text)]) from None

    def given(self) -> tuple[dict[str, list[socket.socket]], list[str]]:
        """What a program that replaces us is to have; see Listeners.given."""
        if self.sock is None or self._address is None or not self._in_place():
            return {}, []
        key = _key(self._address)
        return {key: [self.sock]}, [key] if key in self._inherited.shared else []

    def own(self) -> None:
        """The program that we replace has let go of its file: it is ours."""
        if self._unix is not None and self._address is not None:
            ours = _key(self._address) not in self._inherited.shared
            self._unix = self._unix._replace(ours=ours)

    def commit(self, opened: Opened | None) -> bool:
        """Hold what was opened instead of what is held. Returns whether the socket is another
        one now."""
        if opened is not None and opened.sock is None:
            self.page = opened.page
            return False
        changed = self.sock is not None or opened is not None
        self.close()
        if opened is not None:
            self.sock, self.page, self._address = opened.sock, opened.page, opened.address
            self._unix = opened.unix
        return changed

    def close(self) -> None:
        """Close the socket, and remove it from the file system if it is there still."""
        if self._unix is not None:
            self._unix.remove()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket in a new child, or for the program that replaces us: it is not closed by
        that."""
        if self.sock is not None:
            self.sock.close()
        self.sock = self._address = self._unix = None

    def _in_place(self) -> bool:
        """Whether clients still find the socket: somebody may have removed a Unix socket's file."""
        return self._unix is None or self._unix.in_place()

    def _listen(self, address: MetricsAddress) -> socket.socket:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        held = self.sock
        # A reload that swaps 127.0.0.1 for 0.0.0.0 meets its own socket there.
        ours = held is not None and held.family != socket.AF_UNIX and held.getsockname()[1] == address.port
        sock = bind(Address(family, address.host), address.port, join=ours)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock


def _key(address: MetricsAddress) -> str:
    """What the socket is called when it is handed on."""
    return f"metrics {address}"


def _where(address: MetricsAddress) -> tuple[int, int, tuple[str, int] | str]:
    """Family, kind and name of the socket."""
    if address.path is not None:
        return socket.AF_UNIX, socket.SOCK_STREAM, name(address.path)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return family, socket.SOCK_STREAM, (address.host, address.port)


def discard(opened: Opened | None) -> None:
    """Close what was opened and is not wanted after all."""
    if opened is not None and opened.sock is not None:
        opened.sock.close()
        if opened.unix is not None:
            opened.unix.remove()
