"""The listening sockets: one SO_REUSEPORT group per forward, one socket per slot.

They are opened, or found among those that were open before us (supervisor/inherited), kept
here and lent to workers, because closing one resets the clients in its queue (measured: 9 of
20), and a queue kept open survives its worker (0 of 20). supervisor/main opens them at start,
supervisor/reload at every reload.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastfwd.config.wording import counted
from fastfwd.model import Address, Config, ConfigError, Endpoint, Forward, Problem, Protocol
from fastfwd.supervisor.inherited import Inherited
from fastfwd.supervisor.unixsocket import UnixListener, adopt_unix, name, open_unix
from fastfwd.worker.dial import IP_FREEBIND, IPV6_FREEBIND, NO_ROOM, tune
from fastfwd.worker.udp import ask_for_address, is_any

BACKLOG: Final = 65535
"""As long as the kernel allows (net.core.somaxconn, 4096 by default): rinetd's 128 drops
bursts."""

KINDS: Final = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}

DATAGRAMS: Final = 4 << 20
"""Bytes of datagrams that may wait in a socket: the kernel's 208 KiB are a burst of 256
small ones (measured with 32 bytes)."""

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

    def __init__(self, slots: int, inherited: Inherited) -> None:
        self.slots = slots
        self.held: dict[str, list[socket.socket]] = {}
        self._inherited = inherited
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
                if (inherited := self._adopted(place)) is not None:
                    opened[place.key] = inherited
                    continue
                try:
                    group = self._bind(place, [], join=False)
                except OSError as error:
                    # Two of our own groups may meet while a reload swaps 0.0.0.0 for one
                    # address: a port that we hold ourselves is not somebody else's.
                    if error.errno != errno.EADDRINUSE or not self._ours(place.forward.listen):
                        raise
                    group = self._bind(place, [], join=True)
            except ConfigError as error:
                problems += error.problems
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
        """Let go of everything, which is somebody else's still: the supervisor's, in a new child, or
        the program's that replaces us."""
        close(self.held)
        self.held = {}
        self._inherited.close()

    def given(self) -> tuple[dict[str, list[socket.socket]], list[str]]:
        """What a program that replaces us is to have: the groups held, without repetitions and without
        Unix sockets whose file is not there any more; and the keys of those that the service manager
        has too."""
        groups = {
            place: list(dict.fromkeys(group))
            for place, group in self.held.items()
            if place not in self._files or self._files[place].in_place()
        }
        return groups, sorted(self._inherited.shared & groups.keys())

    def own(self) -> None:
        """The program that we replace has let go of its files: they are ours."""
        self._files = {place: file._replace(ours=True) for place, file in self._files.items()}

    def _close(self, groups: Mapping[str, Sequence[socket.socket]]) -> None:
        for key in groups:
            if (unix := self._files.pop(key, None)) is not None:
                unix.remove()
        close(groups)

    def _open_unix(self, place: Place, backlog: int | None) -> list[socket.socket]:
        # There is no group of such sockets: all slots accept from the same queue.
        longest = BACKLOG if backlog is None else backlog
        path = place.address.text
        inherited = self._inherited.take(place.key, socket.AF_UNIX, socket.SOCK_STREAM, name(path))
        if not inherited:
            unix = self._files[place.key] = open_unix(path, place.forward.mode, longest)
            return [unix.sock] * self.slots
        inherited[0].listen(longest)
        if place.key not in self._inherited.shared:
            self._files[place.key] = adopt_unix(inherited[0], path, place.forward.mode)
        return [inherited[0]] * self.slots

    def _adopted(self, place: Place) -> list[socket.socket] | None:
        """A group made of what we have inherited for `place`; None if that is nothing. Raises
        ConfigError when it does not suit the workers, OSError."""
        listen, address = place.forward.listen, place.address
        kind = KINDS[listen.protocol]
        found = self._inherited.take(place.key, address.family, kind, (address.text, listen.port))
        if not found:
            return None
        if place.key not in self._inherited.shared:
            for each in found[self.slots :]:
                each.close()
            return self._bind(place, found[: self.slots], join=True)
        # The service manager has these too: where nobody accepted from one of them, or nobody opened
        # another one as root, clients would wait in vain.
        if len(found) > self.slots or (kind == socket.SOCK_DGRAM and len(found) < self.slots):
            most = "at most " if kind == socket.SOCK_STREAM else ""
            sockets = f"expected {most}{counted(self.slots, 'socket')} of the service manager's for {listen}"
            text = f"{sockets}, one for each worker, found {len(found)}"
            raise ConfigError([Problem(place.forward.origin, text)])
        self._bind(place, found, join=True, whole=True)
        return [found[slot % len(found)] for slot in range(self.slots)]

    def _ours(self, listen: Endpoint) -> bool:
        kind = KINDS[listen.protocol]
        groups = (*self.held.values(), *self._inherited.keyed.values())
        return any(group[0].getsockname()[1] == listen.port and group[0].type == kind for group in groups)

    def _bind(
        self, place: Place, group: list[socket.socket], *, join: bool, whole: bool = False
    ) -> list[socket.socket]:
        """`group`, with a socket for each slot unless it is `whole`, and every option set."""
        listen = place.forward.listen
        port = group[0].getsockname()[1] if group else listen.port
        try:
            while len(group) < self.slots and not whole:
                sock = bind(
                    place.address,
                    port,
                    join=join or bool(group),
                    kind=KINDS[listen.protocol],
                    absent=place.forward.freebind,
                )
                group.append(sock)
                port = sock.getsockname()[1]
            for sock in group:
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
