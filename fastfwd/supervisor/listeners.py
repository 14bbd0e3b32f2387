"""The listening sockets: one SO_REUSEPORT group per forward, one socket per slot.

They are opened and kept here and lent to workers, because closing one resets the
clients in its queue (measured: 9 of 20), and a queue kept open survives its worker
(0 of 20). supervisor/main opens them at start, supervisor/reload at every reload.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastfwd.model import Address, Config, ConfigError, Endpoint, Forward, Problem, Protocol
from fastfwd.supervisor.unixsocket import UnixListener, open_unix
from fastfwd.worker.dial import IP_FREEBIND, IPV6_FREEBIND, NO_ROOM, tune
from fastfwd.worker.udp import ask_for_address, is_any

BACKLOG: Final = 65535
"""As long as the kernel allows (net.core.somaxconn, 4096 by default): rinetd's 128 drops
bursts."""

KINDS: Final = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}

DATAGRAMS: Final = 4 << 20
"""Bytes of datagrams that may wait in a socket: the kernel's 208 KiB are a burst of 2,000 small ones."""

SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; root's way past the limits
SO_RCVBUFFORCE: Final = 33


@dataclass(frozen=True, slots=True)
class Place:
    """Where a forward, or a part of one, listens on this host. `key` names the sockets across reloads: the
    address and port, and for port 0, which any number of forwards may ask for, which
    of them it is."""

    key: str
    forward: Forward
    address: Address


def places(config: Config, hosts: Mapping[str, Sequence[Address]]) -> list[Place]:
    """The places of a configuration's forwards, in order. Each bind host in `hosts` must
    have an address; as in rinetd the first one counts."""
    result: list[Place] = []
    used: dict[str, int] = {}
    for forward in (part for each in config.forwards for part in each.parts()):
        address = hosts[forward.listen.host][0]
        base = f"{forward.listen.protocol.value} {address} {forward.listen.port}"
        used[base] = nth = used.get(base, 0) + 1
        result.append(Place(f"{base} #{nth}", forward, address))
    return result


class Listeners:
    """`held` maps a place's key to its sockets, one per slot."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: dict[str, list[socket.socket]] = {}
        self._files: dict[str, UnixListener] = {}

    def open(self, wanted: Sequence[Place], backlog: int | None) -> dict[str, list[socket.socket]]:
        """Open the groups of `wanted` that are not held yet and return them, with accept queues of
        `backlog` (None: what the kernel allows); they are not held before `commit`. All or
        nothing: raises ConfigError naming every line whose address cannot be had."""
        opened: dict[str, list[socket.socket]] = {}
        problems: list[Problem] = []
        for place in wanted:
            if place.key in self.held:
                continue
            try:
                if place.address.family == socket.AF_UNIX:
                    opened[place.key] = self._open_unix(place, backlog)
                    continue
                try:
                    group = self._bind(place, join=False)
                except OSError as error:
                    # Two of our own groups may meet while a reload swaps 0.0.0.0 for one
                    # address: a port that we hold ourselves is not somebody else's.
                    if error.errno != errno.EADDRINUSE or not self._ours(place.forward.listen):
                        raise
                    group = self._bind(place, join=True)
            except OSError as error:
                text = f"cannot listen on {place.forward.listen}: {error.strerror}"
                problems.append(Problem(place.forward.origin, text))
                if error.errno in NO_ROOM:
                    break  # all that follow would say the same
            else:
                opened[place.key] = group
        try:
            if not problems:
                for place in wanted:
                    if place.forward.listen.protocol is Protocol.TCP and not place.forward.listen.unix:
                        for sock in opened.get(place.key, ()):
                            sock.listen(BACKLOG if backlog is None else backlog)
        except OSError as error:
            text = f"cannot listen on {place.forward.listen}: {error.strerror}"
            problems.append(Problem(place.forward.origin, text))
        if problems:
            self._close(opened)
            raise ConfigError(problems)
        return opened

    def commit(self, wanted: Sequence[Place], opened: dict[str, list[socket.socket]]) -> None:
        """Hold exactly the groups of `wanted`. The workers still have the others, and must
        be told afterwards: each empties its queue before it closes the last copy."""
        keys = {place.key for place in wanted}
        self.held.update(opened)
        self._close({key: group for key, group in self.held.items() if key not in keys})
        self.held = {key: group for key, group in self.held.items() if key in keys}

    def close(self) -> None:
        """Close everything."""
        self._close(self.held)
        self.held = {}

    def abandon(self) -> None:
        """In a new child: let go of everything, which is the supervisor's still."""
        close(self.held)
        self.held = {}

    def _close(self, groups: Mapping[str, Sequence[socket.socket]]) -> None:
        for key in groups:
            if (unix := self._files.pop(key, None)) is not None:
                unix.remove()
        close(groups)

    def _open_unix(self, place: Place, backlog: int | None) -> list[socket.socket]:
        # There is no group of such sockets: all slots accept from the same queue.
        longest = BACKLOG if backlog is None else backlog
        unix = self._files[place.key] = open_unix(place.address.text, place.forward.mode, longest)
        return [unix.sock] * self.slots

    def _ours(self, listen: Endpoint) -> bool:
        kind = KINDS[listen.protocol]
        return any(
            group[0].getsockname()[1] == listen.port and group[0].type == kind for group in self.held.values()
        )

    def _bind(self, place: Place, *, join: bool) -> list[socket.socket]:
        listen = place.forward.listen
        port = listen.port
        group: list[socket.socket] = []
        try:
            for _ in range(self.slots):
                sock = bind(
                    place.address,
                    port,
                    join=join or bool(group),
                    kind=KINDS[listen.protocol],
                    absent=place.forward.freebind,
                )
                group.append(sock)
                port = sock.getsockname()[1]
                if listen.protocol is Protocol.TCP:
                    tune(sock)
                else:
                    make_room(sock)
        except OSError:
            for sock in group:
                sock.close()
            raise
        return group


def bind(
    address: Address,
    port: int,
    *,
    join: bool,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    absent: bool = False,
) -> socket.socket:
    """A non-blocking socket bound to `port` of `address`, for TCP or for UDP; `join` lets it share the
    port with our own sockets there; `absent` lets the address be one that this host does not have now.
    Raises OSError."""
    sock = socket.socket(address.family, kind)
    try:
        sock.setblocking(False)
        if kind is socket.SOCK_STREAM:
            # Restart while old connections are in TIME_WAIT (ip(7)). With UDP it would let anybody
            # join in.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family == socket.AF_INET6:
            # `::` takes IPv4 clients too, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if absent:  # the half of a pair that waits binds the address before it has it
            if address.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        # The first socket binds without SO_REUSEPORT and so fails if any other process has
        # the port; with it, a second copy of the program would get half of the clients. Set
        # afterwards it lets those in that join.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, join)
        sock.bind((address.text, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def make_room(sock: socket.socket) -> None:
    """Room for DATAGRAMS bytes in a UDP socket, in both directions; without the right to that, as much
    as net.core.rmem_max and wmem_max allow. Have it say to which address each datagram came, where
    that is not always the same."""
    for force, modest in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, DATAGRAMS)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, modest, DATAGRAMS)
    if is_any(sock):
        ask_for_address(sock)


def queue(listener: socket.socket) -> tuple[int, int]:
    """Length and limit of a listener's accept queue, in connections: tcpi_unacked and
    tcpi_sacked of struct tcp_info (linux/tcp.h), which mean that for a listening socket."""
    information = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    length, limit = struct.unpack_from("=II", information, 24)
    return length, limit


def close(groups: Mapping[str, Sequence[socket.socket]]) -> None:
    """Close every socket of `groups`."""
    for group in groups.values():
        for sock in group:
            sock.close()
