"""A client has come in: connect to its backend, trying every address in order.

worker/accept makes a Dial per client; it ends in a Session or in a log line saying
why not. A dial registers the backend only; a client that waits for more than
`PATIENCE` is watched for leaving. It must never resolve a name: the addresses come
from the supervisor.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from _socket import socket as Socket  # noqa: N812
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, Final

from fastfwd.model import Address, Backend, Forward, Outcome
from fastfwd.observe.eventlog import Event
from fastfwd.observe.scoreboard import CONNECT_TIME, DURATION, SIDE, ForwardCell, TlsCell, TlsFailure
from fastfwd.relay.ciphering import Stream
from fastfwd.worker.access import MAPPED
from fastfwd.worker.handshake import Handshake
from fastfwd.worker.introduction import introduction
from fastfwd.worker.limits import LOCAL
from fastfwd.worker.session import READ, READABLE, Session, abort, tls_of
from fastfwd.worker.sorry import Sorry

if TYPE_CHECKING:
    from fastfwd.relay.pump import Side
    from fastfwd.tls import Accepting, Connecting
    from fastfwd.worker.accept import Listener
    from fastfwd.worker.arrival import Announcement
    from fastfwd.worker.main import Worker
    from fastfwd.worker.proxyheader import Endpoint

PATIENCE: Final = 1.0
"""Seconds a dial may take before its client is registered with epoll: most never are,
which saves a wake-up per connection."""

AF_UNIX: Final = socket.AF_UNIX
STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
CONNECTING: Final = READ | select.EPOLLOUT
FAILED: Final = select.EPOLLERR | select.EPOLLHUP

# For every connection; an enum's attribute costs 0.05 µs more.
CONNECTS: Final = int(ForwardCell.CONNECTS)
OPENED: Final = int(ForwardCell.OPENED)

SocketOption = tuple[int, int, int | bytes]

SO_MAX_PACING_RATE: Final = 47  # asm-generic/socket.h
IP_FREEBIND: Final = 15  # linux/in.h
IPV6_FREEBIND: Final = 78  # linux/in6.h
IPV6_TRANSPARENT: Final = 75  # linux/in6.h

_OTHER_LEVEL: Final[dict[int, int]] = {
    socket.AF_INET: socket.IPPROTO_IPV6,
    socket.AF_INET6: socket.IPPROTO_IP,
}
"""The options of this level are not for a socket of that family."""

SUSPECT: Final = 3
"""Failed dials in a row after which the target's name is looked up again."""

NOT_REACHED: Final = frozenset(
    {
        Outcome.LOCAL_CONNECT_FAILED,
        Outcome.LOCAL_BIND_FAILED,
        Outcome.LOCAL_SOCKET_FAILED,
        Outcome.LOCAL_TLS_FAILED,
    }
)

CLIENT_SIDE: Final = int(ForwardCell.HANDSHAKES)
BACKEND_SIDE: Final = CLIENT_SIDE + SIDE
"""Where handshakes are counted."""

NOTHING: Final = bytes(4)
"""What ioctl(FIONREAD) answers when nothing has come."""
IPPROTO_TCP: Final = socket.IPPROTO_TCP
SOL_SOCKET: Final = socket.SOL_SOCKET
KEEPALIVE_IDLE: Final = 60
"""Seconds of silence before the first keepalive probe: a peer that vanished without a
FIN is found in minutes instead of never."""

NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""No room for another connection now. The accept queue stays readable, so going on at
once would spin: C rinetd wrote 18,662 log lines in 0.1 s."""

ESTABLISHED_THEN_RESET: Final = frozenset({0, errno.ECONNRESET, errno.EPIPE})
"""SO_ERROR of a connection that was there before it broke; a refused one says ECONNREFUSED."""

WHY: Final = {
    errno.ECONNREFUSED: ForwardCell.REFUSED,
    errno.ETIMEDOUT: ForwardCell.TIMEOUT,
    errno.EHOSTUNREACH: ForwardCell.UNREACHABLE,
    errno.ENETUNREACH: ForwardCell.UNREACHABLE,
    errno.EHOSTDOWN: ForwardCell.UNREACHABLE,
    errno.ENETDOWN: ForwardCell.UNREACHABLE,
}
"""Where a failed dial is counted; any other error is this host's (no free port, a firewall
rule): ForwardCell.LOCAL."""

CLOSED: Final = {
    Outcome.DONE_LOCAL_CLOSED: ForwardCell.CLOSED_LOCAL,
    Outcome.DONE_REMOTE_CLOSED: ForwardCell.CLOSED_REMOTE,
    Outcome.LOCAL_SOCKET_FAILED: ForwardCell.CLOSED_SOCKET,
    Outcome.LOCAL_BIND_FAILED: ForwardCell.CLOSED_BIND,
    Outcome.LOCAL_CONNECT_FAILED: ForwardCell.CLOSED_CONNECT,
    Outcome.IDLE_TIMEOUT: ForwardCell.CLOSED_IDLE,
    Outcome.HALF_CLOSE_TIMEOUT: ForwardCell.CLOSED_HALF_CLOSED,
    Outcome.EVICTED: ForwardCell.CLOSED_EVICTED,
    Outcome.REMOTE_TLS_FAILED: ForwardCell.CLOSED_REMOTE_TLS,
    Outcome.LOCAL_TLS_FAILED: ForwardCell.CLOSED_LOCAL_TLS,
    Outcome.REMOTE_PROXY_FAILED: ForwardCell.CLOSED_PROXY,
}


class Target:
    """A backend as it is dialled: numeric addresses, changed when a name's do.

    With `spread` each dial begins with the next address; with `transparent` it goes out from the
    client's own. `family` is the only one of addresses
    that is dialled, None for both; `sources` are the local addresses to dial from. `bound`
    without any of them says that the configuration names one that could not be resolved:
    then nothing is dialled, since going out from another address would be a security hole.
    """

    def __init__(
        self,
        backend: Backend,
        family: int | None,
        options: Sequence[SocketOption] = (),
        *,
        spread: bool = False,
        transparent: bool = False,
    ) -> None:
        self.host = backend.endpoint.host
        self.port = backend.endpoint.port
        self.family = family
        self.bound = backend.sources
        self.options = options
        self.addresses: list[Address] = []
        self.sources: list[Address] = []
        self.self_connect = False
        self.spread = spread
        self.transparent = transparent
        self.failures = 0
        """Dials that have failed since one succeeded."""
        self._resolved: dict[str, Sequence[Address]] = {}
        self._turn = 0

    def update(self, hosts: Mapping[str, Sequence[Address]]) -> None:
        """Take the addresses of this target's names out of `hosts`, if they are there."""
        if self.host in hosts:
            self.addresses = [each for each in hosts[self.host] if self.family in (None, each.family)]
        if self.bound:
            self._resolved.update({host: hosts[host] for host in self.bound if host in hosts})
            self.sources = [each for host in self.bound for each in self._resolved.get(host, ())]

    def at(self, address: Address) -> tuple[str, int] | str:
        """What connect(2) calls this target's port at one of its addresses."""
        if address.family == AF_UNIX:
            return f"\0{address.text[1:]}" if address.text.startswith("@") else address.text
        return address.text, self.port

    def prepare(self, backend: Socket, address: Address, client: str | None) -> None:
        """Give `backend` its options and its source for dialling `address`, for the `client` with that
        numeric address (None: for ourselves). Raises OSError."""
        for option in self.options:
            if option[0] != _OTHER_LEVEL.get(address.family, option[0]):
                backend.setsockopt(*option)
        if self.bound:
            self._bind(backend, address)
        elif self.transparent and client is not None:
            _bind_to(backend, address, client)

    def from_another_source(self, backend: Socket, address: Address) -> int:
        """Connect `backend`, whose source has no port left for `address`, from one that has. Returns the
        error, as connect_ex."""
        code = errno.EADDRNOTAVAIL
        for _ in self.sources:
            self._bind(backend, address)  # again: what is bound without a port can be (ip(7))
            code = backend.connect_ex((address.text, self.port))
            if code != errno.EADDRNOTAVAIL:
                break
        return code

    def _bind(self, backend: Socket, address: Address) -> None:
        fitting = [each for each in self.sources if each.family == address.family]
        if not fitting:
            raise OSError(errno.EADDRNOTAVAIL, "no source address of the target's family")
        self._turn += 1
        _bind(backend, fitting[self._turn % len(fitting)].text)

    def failed(self, worker: Worker) -> None:
        """A dial has; `failures` of 0 is for whoever sees one succeed to write."""
        self.failures += 1
        if self.failures % SUSPECT == 0:
            worker.suspect(self)


def _bind(backend: Socket, source: str) -> None:
    # The port is chosen at connect, per destination: a plain bind would use
    # up one of 28,000 ports for all destinations (ip(7)).
    backend.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
    backend.bind((source, 0))


def _bind_to(backend: Socket, address: Address, client: str) -> None:
    """Have `backend`, which is to dial `address`, go out from the client's own address. Raises OSError."""
    source = client.removeprefix(MAPPED) if "." in client else client
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    if family != address.family or client == LOCAL:
        raise OSError(errno.EADDRNOTAVAIL, "the client has no address of the target's family")
    _bind(backend, source)


def tune(sock: Socket) -> None:
    """Options every TCP socket of ours has; accepted ones inherit them from the listener.

    No delay, because we forward pieces that somebody has already decided to send;
    keepalive, because a firewall's peers vanish; urgent data in line, because a
    telnet peer would otherwise lose the byte it marks.
    """
    sock.setsockopt(IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(SOL_SOCKET, socket.SO_OOBINLINE, 1)


def dial_options(forward: Forward) -> list[SocketOption]:
    """What the sockets that `forward` dials with have beyond `tune`, as arguments of setsockopt."""
    found: list[SocketOption] = []
    if forward.device is not None:
        found.append((SOL_SOCKET, socket.SO_BINDTODEVICE, forward.device.encode()))
    if forward.mark is not None:
        found.append((SOL_SOCKET, socket.SO_MARK, struct.pack("@I", forward.mark)))
    if forward.dscp is not None:  # the six upper bits (RFC 2474, 3)
        found.append((socket.IPPROTO_IP, socket.IP_TOS, forward.dscp << 2))
        found.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, forward.dscp << 2))
    if forward.freebind:
        found.append((socket.IPPROTO_IP, IP_FREEBIND, 1))
        found.append((socket.IPPROTO_IPV6, IPV6_FREEBIND, 1))
    if forward.transparent:
        found.append((socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1))
        found.append((socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1))
    return found + client_options(forward)


def client_options(forward: Forward) -> list[SocketOption]:
    """What its clients' sockets have beyond those of the listener."""
    found: list[SocketOption] = []
    if not forward.keepalive:
        found.append((SOL_SOCKET, socket.SO_KEEPALIVE, 0))
    if forward.max_rate is not None:
        # The kernel spaces the segments (tcp(7)); splice goes on as it was.
        found.append((SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("@Q", forward.max_rate)))
    return found


class Dial:
    """A client on its way to its backend. Ready to be a key of a TimerQueue."""

    __slots__ = (
        "_addresses",
        "_dialled",
        "_handshake",
        "_next",
        "_opened",
        "_tried",
        "_watching",
        "address",
        "announced",
        "backend",
        "backend_fd",
        "client",
        "client_fd",
        "client_port",
        "listener",
        "peer",
        "serial",
        "started",
        "trouble",
    )

    def __init__(
        self,
        listener: Listener,
        client: Socket,
        client_fd: int,
        peer: str,
        client_port: int,
        announced: Announcement | None,
    ) -> None:
        """Dial for `client`, a connected non-blocking socket that becomes the dial's, from
        the numeric address `peer` and `client_port`, which it may have `announced`."""
        self.listener = listener
        self.client: Side = client
        self.client_fd = client_fd
        self.peer = peer
        self.client_port = client_port
        worker = listener.worker
        self.serial = worker.next_serial()
        self.started = worker.loop.now if announced is None else announced.since
        self.announced = announced
        self.backend: Side | None = None
        self.backend_fd = -1
        self.address: Address | None = None
        self._addresses: list[Address] | None = None
        """Those of the target when the dial began; they are tried in order."""
        self._dialled = 0.0
        self._handshake: Handshake | None = None
        self._next = 0
        self._opened = False
        self._tried: list[Listener] | None = None
        self._watching = False
        self.trouble: str | None = None
        """What went wrong in a handshake, in words."""
        worker.dials.add(self)

    def welcome(self, accepting: Accepting) -> None:
        """Shake hands with the client, then dial."""
        worker = self.listener.worker
        client = self.client
        assert isinstance(client, Socket)
        stream = self.client = Stream(client, accepting.wrap, worker.records)
        seconds = self.listener.forward.handshake_timeout
        self._handshake = Handshake(worker, stream, seconds, self._welcomed, self._not_welcomed)
        try:
            worker.loop.watch(self.client_fd, READ, self._handshake.event)
        except OSError as error:
            self._handshake.fail(TlsFailure.OTHER, str(error.strerror))

    def _welcomed(self) -> None:
        assert isinstance(self.client, Stream)
        self._handshake = None
        self._shaken(self.client, CLIENT_SIDE)
        # It stays registered: what comes from now on is news of its leaving.
        self._watching = True
        self.listener.worker.loop.handlers[self.client_fd] = self._client_event
        self.attempt()

    def _not_welcomed(self, why: TlsFailure, said: str) -> None:
        self._handshake = None
        self.listener.row[CLIENT_SIDE + why] += 1
        self.trouble = said
        self.end(Outcome.REMOTE_TLS_FAILED)

    def _shaken(self, stream: Stream, side: int) -> None:
        row, tls = self.listener.row, stream.tls
        row[side + (TlsCell.VERSION_13 if tls.version() == "TLSv1.3" else TlsCell.VERSION_12)] += 1
        if tls.session_reused:
            row[side + TlsCell.RESUMED] += 1

    def attempt(self) -> None:
        """Dial the next address; with none left, end."""
        listener = self.listener
        worker = listener.worker
        target = listener.target
        addresses = self._addresses
        if addresses is None:
            if target.spread and len(target.addresses) > 1:
                target.addresses = [*target.addresses[1:], target.addresses[0]]
            addresses = self._addresses = target.addresses
        outcome = Outcome.LOCAL_CONNECT_FAILED if self.trouble is None else Outcome.LOCAL_TLS_FAILED
        while self._next < len(addresses):
            address = self.address = addresses[self._next]
            self._next += 1
            try:
                backend = Socket(address.family, STREAM, 0)
            except OSError as error:
                if error.errno in NO_ROOM:
                    return self._wait_for_room(error)
                outcome = Outcome.LOCAL_SOCKET_FAILED  # EAFNOSUPPORT: no IPv6 here
                self._count(ForwardCell.CONNECTS, ForwardCell.LOCAL)
                continue
            try:
                local = address.family == AF_UNIX
                if not local:
                    tune(backend)
                if target.options or target.bound:
                    target.prepare(backend, address, self.peer)
                if not local and (
                    listener.forward.send_proxy or ioctl(self.client_fd, FIONREAD, NOTHING) != NOTHING
                ):
                    # The client has spoken, or is to be announced: the last ACK of the
                    # handshake can go out with those words (tcp(7), TCP_QUICKACK). A packet
                    # less, and a backend that is woken once instead of twice: 6 of 70 µs per
                    # connection. Without them it would wait for 200 ms, and so would a backend
                    # that speaks first.
                    backend.setsockopt(IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                code = backend.connect_ex(target.at(address) if local else (address.text, target.port))
                if code == errno.EADDRNOTAVAIL and len(target.sources) > 1:
                    code = target.from_another_source(backend, address)
            except OSError:
                backend.close()
                outcome = Outcome.LOCAL_BIND_FAILED
                self._count(ForwardCell.CONNECTS, ForwardCell.LOCAL)
                continue
            if code not in (0, errno.EINPROGRESS):
                backend.close()
                outcome = Outcome.LOCAL_CONNECT_FAILED
                self.trouble = None
                self._count(ForwardCell.CONNECTS)
                self._failed(WHY.get(code, ForwardCell.LOCAL))
                continue
            self.backend_fd = backend.fileno()
            try:
                worker.loop.watch(self.backend_fd, CONNECTING, self.event)
            except OSError as error:
                backend.close()
                return self._wait_for_room(error)
            self.backend = backend
            row = listener.row
            row[CONNECTS] += 1
            if not self._opened:  # rinetd's order: before the backend has answered
                self._opened = True
                row[OPENED] += 1
                self._log(Outcome.OPENED)
            self._dialled = worker.loop.now
            worker.patience.add(self, self._dialled)
            return None
        if not addresses:
            self._count(ForwardCell.CONNECTS, ForwardCell.RESOLVE)
        if self._another_backend():
            return self.attempt()
        return self.end(outcome)

    def event(self, mask: int) -> None:
        """The backend has answered: connected, refused, or unreachable."""
        backend = self.backend
        assert backend is not None
        broken = False
        if mask & FAILED:
            error = backend.getsockopt(SOL_SOCKET, socket.SO_ERROR)
            if error not in ESTABLISHED_THEN_RESET:
                return self._try_another(WHY.get(error, ForwardCell.LOCAL))
            if self.listener.connecting is not None:
                return self._not_secured(TlsFailure.CLOSED, "closed")
            # Asking has taken the error off the socket; its reads will end as if cleanly.
            broken = True
            self._count(ForwardCell.RESET)
        elif self.listener.target.self_connect and _talks_to_itself(backend):
            return self._try_another(ForwardCell.REFUSED)
        if self.listener.forward.send_proxy and not broken:
            return self._introduce(mask)
        if self.listener.connecting is not None:
            return self._secure(self.listener.connecting)
        return self._connected(mask & READABLE, broken=broken)

    def _introduce(self, mask: int) -> None:
        """The backend is there: tell it who the client is. That goes out in one packet with what follows,
        where something does: TLS's first words, or the client's."""
        listener, backend, client = self.listener, self.backend, self.client
        assert isinstance(backend, Socket)
        tls = client.tls if isinstance(client, Stream) else None
        header = introduction(listener.forward.send_proxy, *self._ends(), tls)
        try:
            sent = backend.send(header, socket.MSG_MORE)
        except OSError as error:
            if error.errno not in ESTABLISHED_THEN_RESET:
                return self._try_another(ForwardCell.LOCAL)
            self._count(ForwardCell.RESET)
            return self._connected(mask & READABLE, broken=True)
        if sent < len(header):  # not in a send buffer as large as the smallest one there is (tcp(7))
            return self._try_another(ForwardCell.LOCAL)
        if listener.connecting is not None:
            return self._secure(listener.connecting)
        self._connected(mask & READABLE, broken=False)
        # What the client had to say has gone with it. If that was nothing, it goes now (tcp(7),
        # TCP_NODELAY): the backend may be the one that speaks first.
        if backend.family != AF_UNIX:
            backend.setsockopt(IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return None

    def _ends(self) -> tuple[Endpoint | None, Endpoint | None]:
        """The client, and where it had gone; None where it has no address."""
        if self.peer == LOCAL:
            return None, None
        source = self.peer, self.client_port
        if self.announced is not None and self.announced.destination is not None:
            return source, self.announced.destination
        return source, self.client.getsockname()[:2]

    def _secure(self, connecting: Connecting) -> None:
        """The backend is there: shake hands with it."""
        listener = self.listener
        worker = listener.worker
        worker.patience.discard(self)
        (listener.overdue or worker.overdue).discard(self)
        backend, protocol = self.backend, None
        assert isinstance(backend, Socket)
        if isinstance(self.client, Stream):
            protocol = self.client.tls.selected_alpn_protocol()
        host = listener.target.host
        stream = Stream(backend, lambda i, o: connecting.wrap(i, o, host, protocol), worker.records)
        self.backend = stream
        seconds = listener.forward.handshake_timeout
        self._handshake = Handshake(worker, stream, seconds, self._secured, self._not_secured)
        worker.loop.handlers[self.backend_fd] = self._handshake.event
        self._handshake.event(0)

    def _secured(self) -> None:
        assert isinstance(self.backend, Stream)
        self._handshake = None
        self._shaken(self.backend, BACKEND_SIDE)
        self._connected(select.EPOLLIN, broken=False)

    def _not_secured(self, why: TlsFailure, said: str) -> None:
        self._handshake = None
        self.listener.row[BACKEND_SIDE + why] += 1
        self.trouble = said
        self._try_another(ForwardCell.TLS)

    def _connected(self, mask: int, *, broken: bool) -> None:
        """The backend is there for good."""
        backend = self.backend
        assert backend is not None
        worker = self.listener.worker
        worker.forget_dial(self)
        took = worker.loop.now - self._dialled
        if self.listener.target.failures:
            self.listener.target.failures = 0
        if self.listener.balancer is not None:
            self.listener.balancer.reached(self.listener)
        if not broken:
            CONNECT_TIME.observe(self.listener.row, took)
        session = Session(self, backend, took)
        return session.begin(mask, broken=broken, client_watched=self._watching)

    def waited(self) -> None:
        """PATIENCE is over: from now on notice a client that leaves."""
        self._watch_client()
        worker = self.listener.worker
        (self.listener.overdue or worker.overdue).add(self, worker.loop.now)

    def timed_out(self) -> None:
        """`connect-timeout` is over for this address. (Without one a blackholed backend holds its
        client for the 127 s of the kernel's six SYN retries.)"""
        self._try_another(ForwardCell.TIMEOUT)

    def end(self, outcome: Outcome) -> None:
        """The only way out without a session: one log line, everything closed."""
        worker = self.listener.worker
        worker.forget_dial(self)
        if self._handshake is not None:
            self._handshake.end()
        self._drop_backend()
        if (leaflet := self.listener.leaflet) is not None and outcome in NOT_REACHED:
            Sorry(self.listener, self.client, self.client_fd, leaflet)
        else:
            worker.loop.handlers.pop(self.client_fd, None)
            worker.loop.closing.append(self.client)
        if worker.admission is not None:
            worker.admission.leave(self.peer)
        self._count(CLOSED[outcome])
        DURATION.observe(self.listener.row, worker.loop.now - self.started)
        self._log(outcome)

    def _another_backend(self) -> bool:
        """Go on to another backend of the forward, if one is left."""
        listener = self.listener
        balancer = listener.balancer
        if balancer is None:
            return False
        balancer.failed(listener)
        self._tried = [*(self._tried or ()), listener]
        other = balancer.another(self._tried, self.peer)
        if other is None:
            return False
        # It counts as that one's connection from now on.
        other.row[ForwardCell.ACCEPTED] += 1
        listener.row[ForwardCell.CLOSED_MOVED] += 1
        self.listener = other
        self._addresses = None
        self._next = 0
        return True

    def _wait_for_room(self, error: OSError) -> None:
        """Out of descriptors, memory or epoll's watches: the client keeps its place, with
        those still in the queue, and this address is dialled when there is room."""
        self._next -= 1
        worker = self.listener.worker
        worker.stranded.append(self)
        worker.pause(error)

    def _watch_client(self) -> None:
        if not self._watching:
            try:
                self.listener.worker.loop.watch(self.client_fd, select.EPOLLET, self._client_event)
            except OSError:  # no room to watch: it is missed only if the client leaves
                return
            self._watching = True

    def _client_event(self, mask: int) -> None:
        # Only a reset ends a dial: a FIN may be the half-close of somebody who waits
        # for the answer (`nc -N`), and no system call tells it from a farewell.
        if mask & FAILED:
            if self.backend is not None:
                abort(self.backend)  # it may be connected by now, and this is no clean end
            self.end(Outcome.DONE_REMOTE_CLOSED)

    def _try_another(self, why: ForwardCell) -> None:
        if why is not ForwardCell.TLS:
            self.trouble = None
        self._failed(why)
        worker = self.listener.worker
        worker.patience.discard(self)
        (self.listener.overdue or worker.overdue).discard(self)
        self._drop_backend()
        self.attempt()

    def _drop_backend(self) -> None:
        if self.backend is not None:
            self.listener.worker.loop.forget(self.backend_fd)
            self.listener.worker.loop.closing.append(self.backend)
            self.backend = None

    def _count(self, *cells: ForwardCell) -> None:
        for cell in cells:
            self.listener.row[cell] += 1

    def _failed(self, why: ForwardCell) -> None:
        """An address could not be dialled."""
        self._count(why)
        self.listener.target.failed(self.listener.worker)

    def _log(self, outcome: Outcome) -> None:
        worker = self.listener.worker
        if worker.log is not None:
            worker.log.event(
                Event(
                    self.listener.forward,
                    outcome,
                    self.peer,
                    self.client_port,
                    0,
                    0,
                    worker.loop.now - self.started,
                    self.serial,
                    self.address,
                    None,
                    self.announced and self.announced.via,
                    tls_of(self.client, self.backend, self.trouble),
                )
            )


def _talks_to_itself(sock: Side) -> bool:
    """Whether two SYNs of one socket have crossed (RFC 9293, 3.5): nobody listened, and the
    kernel chose the target's own port as the source."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # ENOTCONN: connected and reset again; its pump finds out
        return False
