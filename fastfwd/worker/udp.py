"""Datagrams: a listener for UDP, and the flows that stand in for sessions.

worker/main makes a UdpListener where a forward says `/udp`; the loop calls `event`. A flow is
a client with a backend socket of its own: it begins with a datagram that is let in
(worker/access, worker/limits) and ends when neither side has said anything for the forward's
timeout. Every datagram stays one, from 0 to 65,507 bytes. It must never hold a datagram back: what
a socket does not take at once is dropped, and counted.

The kernel gives all datagrams of a client to the same slot, as long as the group of listeners
stays what it is; the supervisor sees to that.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from _socket import socket as Socket  # noqa: N812
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fastfwd.model import Address, Outcome
from fastfwd.observe.eventlog import Event
from fastfwd.observe.scoreboard import DURATION, ForwardCell
from fastfwd.worker.accept import ACCEPTED, REFUSED, zone
from fastfwd.worker.dial import CLOSED, CONNECTS, NO_ROOM, OPENED, WHY
from fastfwd.worker.introduction import introduction

if TYPE_CHECKING:
    from fastfwd.model import Forward
    from fastfwd.worker.access import Judge
    from fastfwd.worker.balance import Balancer
    from fastfwd.worker.dial import Target
    from fastfwd.worker.main import Worker
    from fastfwd.worker.proxyheader import Endpoint
    from fastfwd.worker.rates import Rates

BATCH: Final = 64
"""Datagrams from clients per event, so that a flood does not starve the sessions."""

BURST: Final = 512
"""Flows that one look ends."""

LARGEST: Final = 65_535
"""Bytes of the longest IP packet; a UDP datagram is 28 or 48 shorter (RFC 768)."""

DATAGRAM: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK

RECEIVED: Final = int(ForwardCell.RECEIVED)
SENT: Final = int(ForwardCell.SENT)
DATAGRAMS_RECEIVED: Final = int(ForwardCell.DATAGRAMS_RECEIVED)
DATAGRAMS_SENT: Final = int(ForwardCell.DATAGRAMS_SENT)

EVICTIONS: Final = 16
"""Flows that one newcomer ends at most, where a reload has lowered the limit."""

SO_MEMINFO: Final = 55  # asm-generic/socket.h
IP_PKTINFO: Final = 8  # linux/in.h; the socket module has no name for it
PACKET_INFO: Final[dict[int, tuple[int, int, struct.Struct]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_PKTINFO, struct.Struct("@I4s4s")),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.Struct("@16sI")),
}
"""Level, type and layout of what tells to which of our addresses a datagram came, and from which an
answer goes (ip(7), ipv6(7))."""

Key = Any
"""Whose a datagram is: the client's socket address; where the listener has every address of this
host, with the one it was sent to."""


class UdpListener:
    """One bound socket of one forward in this worker's slot. A reload makes a new one around the same
    socket and the same flows, which keep the forward they were born with."""

    def __init__(
        self,
        worker: Worker,
        forward: Forward,
        sock: Socket,
        judge: Judge | None,
        rates: Rates | None,
        target: Target,
        row: memoryview,
        active: Callable[[], int],
        flows: Flows,
    ) -> None:
        """Receive for `forward` on `sock` (bound, non-blocking; the caller's), and count in `row`, the
        forward's on the scoreboard; `active()` is the sum over all workers' rows. The `flows` are the
        socket's. With a `balancer` it receives for its backends, which are listeners that share it."""
        self.worker = worker
        self.forward = forward
        self.sock = sock
        self.judge = judge
        self.rates = rates
        self.balancer: Balancer[UdpListener] | None = None
        self.target = target
        self.row = row
        self.active = active
        self.flows = flows
        self.everywhere = is_any(sock)

    def event(self, mask: int) -> None:
        """Take a batch of datagrams to their backends."""
        worker = self.worker
        now = worker.loop.now
        buffer = worker.datagram
        receive = self._receive_with_address if self.everywhere else self.sock.recvfrom_into
        find = self.flows.of.get
        count = octets = 0
        for _ in range(BATCH):
            try:
                size, key = receive(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                worker.complain("not receiving", error)
                break
            count += 1
            octets += size
            if flow := find(key):
                flow.last = now
                flow.order.move_to_end(flow)
                flow.taken += size
            elif not (flow := self._begin(key, size)):
                continue
            try:
                flow.send(buffer[:size])
            except OSError as error:
                flow.refused(error, buffer[:size])
        self.row[DATAGRAMS_RECEIVED] += count
        self.row[RECEIVED] += octets

    def update(self, hosts: Mapping[str, Sequence[Address]]) -> None:
        """Names have other addresses; flows keep theirs."""
        self.target.update(hosts)
        for member in [] if self.balancer is None else self.balancer.members:
            member.listener.target.update(hosts)

    def part(
        self, forward: Forward, target: Target, row: memoryview, active: Callable[[], int]
    ) -> UdpListener:
        """What flows to one of its backends are born with."""
        return UdpListener(self.worker, forward, self.sock, self.judge, None, target, row, active, self.flows)

    def asked(self, key: Key) -> Endpoint:
        """The address and port that a flow's first datagram was sent to."""
        address, port, *_ = self.sock.getsockname()
        if self.everywhere and key[1]:
            _, _, layout = PACKET_INFO[self.sock.family]
            # ipi_addr, not ipi_spec_dst: what the client knows.
            which = 2 if self.sock.family == socket.AF_INET else 0
            address = socket.inet_ntop(self.sock.family, layout.unpack(key[1])[which])
        return address, port

    def expire(self, now: float) -> None:
        """End the flows that have been silent for the forward's timeout."""
        silent_since = now - self.forward.timeout
        for order in (self.flows.unanswered, self.flows.answered):
            for _ in range(BURST):
                flow = next(iter(order), None)
                if flow is None or flow.last > silent_since:
                    break
                flow.end()

    def empty(self) -> None:
        """The socket is about to be closed: end all flows."""
        for flow in list(self.flows.of.values()):
            flow.end(Outcome.DONE_LOCAL_CLOSED)

    def _receive_with_address(self, buffer: memoryview) -> tuple[int, Key]:
        # 1.5 µs more than recvfrom: only where an answer could go out from another address.
        size, ancillary, _, client = self.sock.recvmsg_into([buffer], 64)
        return size, (client, ancillary[0][2] if ancillary else b"")

    def _begin(self, key: Key, size: int) -> Flow | None:
        """A flow for the client that has sent `size` bytes; None if it is not let in, or cannot be."""
        worker = self.worker
        peer = key[0] if self.everywhere else key
        client = f"{peer[0]}%{zone(peer[3])}" if len(peer) == 4 and peer[3] else peer[0]
        if self.judge is not None and (refusal := self.judge(client)) is not None:
            self._refuse(client, peer[1], refusal)
            return None
        if self.rates is not None and (refusal := self.rates.admit(client)) is not None:
            self._refuse(client, peer[1], refusal)
            return None
        for _ in range(EVICTIONS):
            if self.active() < worker.limits.udp_connections or not self.flows.evict():
                break
        listener = self if self.balancer is None else self.balancer.choose(client)
        admission = worker.admission
        if admission is None:
            listener.row[ACCEPTED] += 1
        elif refusal := admission.admit(client, listener.row, self.forward.max_connections, self.active):
            self._refuse(client, peer[1], refusal)
            return None
        ancillary = [] if not self.everywhere else answer_from(self.sock.family, key[1])
        flow = Flow(listener, key, peer, ancillary, client, size)
        return flow if flow.dial() else None

    def _refuse(self, client: str, port: int, outcome: Outcome) -> None:
        self.row[REFUSED[outcome]] += 1
        worker = self.worker
        # Every datagram is a try of its own here, so also what the rules refuse is told so often only.
        if worker.log is not None and worker.refusals.one_more(worker.loop.now):
            worker.log.event(Event(self.forward, outcome, client, port, serial=worker.next_serial()))


class Flows:
    """The flows of one listening socket, and the order in which they have last been heard of."""

    def __init__(self) -> None:
        self.of: dict[Key, Flow] = {}
        self.unanswered: OrderedDict[Flow, None] = OrderedDict()
        self.answered: OrderedDict[Flow, None] = OrderedDict()

    def evict(self) -> bool:
        """End the flow that has been silent longest; of those that a backend has answered none, while
        there are others: anybody can send datagrams in anybody's name. Returns whether there was one."""
        flow = next(iter(self.unanswered), None) or next(iter(self.answered), None)
        if flow is None:
            return False
        flow.end(Outcome.EVICTED)
        return True


class Flow:
    """A client's datagrams, and a backend socket that is connected, so that no other sender's
    datagrams get in."""

    __slots__ = (
        "_next",
        "address",
        "ancillary",
        "backend",
        "client",
        "fd",
        "given",
        "key",
        "last",
        "listener",
        "open",
        "order",
        "outcome",
        "peer",
        "receive",
        "send",
        "serial",
        "started",
        "taken",
        "told",
    )

    def __init__(
        self, listener: UdpListener, key: Key, peer: Any, ancillary: list[Any], client: str, size: int
    ) -> None:
        """For `listener`, under `key`; answers go to the socket address `peer` with `ancillary` data.
        `client` is the numeric address, `size` the bytes that it has sent."""
        worker = listener.worker
        self.listener = listener
        self.key = key
        self.peer = peer
        self.ancillary = ancillary
        self.client = client
        self.serial = worker.next_serial()
        self.started = self.last = worker.loop.now
        self.taken, self.given = size, 0
        self.address: Address | None = None
        self.outcome = Outcome.IDLE_TIMEOUT
        self.order = listener.flows.unanswered
        self.open = False
        self.told = False
        """Whether the log has its first line."""
        self.backend: Socket
        self.fd = -1
        self._next = 0

    def dial(self) -> bool:
        """Have a socket that is connected to the target's next address; with none, end. Returns
        whether there is one."""
        listener = self.listener
        worker, target, row = listener.worker, listener.target, listener.row
        outcome = Outcome.LOCAL_CONNECT_FAILED
        for _ in target.addresses:
            address = target.addresses[self._next % len(target.addresses)]
            self._next += 1
            row[CONNECTS] += 1
            try:
                backend = Socket(address.family, DATAGRAM, 0)
            except OSError as error:
                outcome = Outcome.LOCAL_SOCKET_FAILED
                row[ForwardCell.LOCAL] += 1
                if error.errno in NO_ROOM:
                    worker.complain("no room for another flow", error)
                    listener.flows.evict()  # the next one shall have some
                    break
                continue
            try:
                if target.options or target.bound:
                    target.prepare(backend, address, self.client)
            except OSError:
                backend.close()
                outcome = Outcome.LOCAL_BIND_FAILED
                row[ForwardCell.LOCAL] += 1
                continue
            code = backend.connect_ex((address.text, target.port))
            if code == 0 and target.self_connect and backend.getsockname() == backend.getpeername():
                code = errno.ECONNREFUSED  # nobody is there, and we have got the port ourselves
            if code == 0:
                try:
                    worker.loop.watch(backend.fileno(), select.EPOLLIN, self.event)
                except OSError as error:
                    worker.complain("no room for another flow", error)
                    code = errno.ENOMEM
            if code != 0:
                backend.close()
                outcome = Outcome.LOCAL_CONNECT_FAILED
                row[WHY.get(code, ForwardCell.LOCAL)] += 1
                continue
            self._take(backend, address)
            return True
        if not target.addresses:
            row[CONNECTS] += 1
            row[ForwardCell.RESOLVE] += 1
        self.end(outcome)
        return False

    def event(self, mask: int) -> None:
        """Take one of the backend's datagrams to the client. (One: the level-triggered epoll comes
        again at once, and asking in vain whether there is another one costs as much as that.)"""
        listener = self.listener
        worker, row = listener.worker, listener.row
        buffer = worker.datagram
        try:
            size = self.receive(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._unreachable(error)
            return
        if self.order is listener.flows.answered:
            self.order.move_to_end(self)
        else:
            self._answered()
        self.last = worker.loop.now
        try:
            if self.ancillary:
                listener.sock.sendmsg([buffer[:size]], self.ancillary, 0, self.peer)
            else:
                listener.sock.sendto(buffer[:size], self.peer)
        except OSError:
            row[ForwardCell.DROPPED_CLIENT] += 1
            return
        self.given += size
        row[SENT] += size
        row[DATAGRAMS_SENT] += 1

    def refused(self, error: OSError, data: memoryview) -> None:
        """The backend's socket has not taken `data`, a datagram."""
        if error.errno in WHY:
            # That was the answer to an earlier datagram (ICMP); this one has not been sent yet.
            self._unreachable(error)
            try:
                self.send(data)
            except OSError:
                pass
            else:
                return
        self.listener.row[ForwardCell.DROPPED_BACKEND] += 1

    def end(self, outcome: Outcome | None = None) -> None:
        """The only way out: everything closed, one log line. `outcome` says why, if neither silence nor
        a backend that was never reached does."""
        listener = self.listener
        worker, row = listener.worker, listener.row
        begun = self.open
        if begun:
            self.open = False
            worker.open_sessions -= 1
            row[ForwardCell.DROPPED_CLIENT] += drops(self.backend)
            del listener.flows.of[self.key]
            del self.order[self]
            worker.loop.handlers.pop(self.fd, None)
            worker.loop.closing.append(self.backend)
        if worker.admission is not None:
            worker.admission.leave(self.client)
        if outcome is None or self.outcome is not Outcome.IDLE_TIMEOUT:
            outcome = self.outcome
        row[CLOSED[outcome]] += 1
        duration = worker.loop.now - self.started
        DURATION.observe(row, duration)
        if self.told or (not begun and worker.refusals.one_more(worker.loop.now)):
            self._log(outcome, duration)

    def _take(self, backend: Socket, address: Address) -> None:
        listener = self.listener
        worker = listener.worker
        if self.open:
            listener.row[ForwardCell.DROPPED_CLIENT] += drops(self.backend)
            worker.loop.handlers.pop(self.fd, None)
            worker.loop.closing.append(self.backend)
        self.backend = backend
        self.fd = backend.fileno()
        self.address = address
        self.send = self._introduce if listener.forward.send_proxy else backend.send
        self.receive = backend.recv_into
        if not self.open:
            self.open = True
            worker.open_sessions += 1
            listener.flows.of[self.key] = self
            self.order[self] = None
            listener.row[OPENED] += 1
            if worker.strangers.one_more(worker.loop.now):
                self._begin_log()

    def _introduce(self, data: memoryview) -> int:
        """Send `data`, the first datagram for this backend, behind who the client is. Raises OSError."""
        listener = self.listener
        source = self.client, self.peer[1]
        asked = listener.asked(self.key)
        sent = self.backend.sendmsg([introduction(2, source, asked, datagram=True), data])
        self.send = self.backend.send
        return sent

    def _answered(self) -> None:
        if not self.told:
            self._begin_log()
        flows = self.listener.flows
        del flows.unanswered[self]
        self.order = flows.answered
        self.order[self] = None
        self.listener.target.failures = 0
        if self.listener.balancer is not None:
            self.listener.balancer.reached(self.listener)
        self.outcome = Outcome.IDLE_TIMEOUT

    def _unreachable(self, error: OSError) -> None:
        """A datagram has not reached the backend. The flow stays: the next one may, or another address."""
        listener = self.listener
        if self.order is listener.flows.unanswered and self.outcome is Outcome.IDLE_TIMEOUT:
            self.outcome = Outcome.LOCAL_CONNECT_FAILED
            listener.row[WHY.get(error.errno or 0, ForwardCell.LOCAL)] += 1
            listener.target.failed(listener.worker)
        if len(listener.target.addresses) > 1 or self._another_backend():
            self.dial()

    def _another_backend(self) -> bool:
        """Go over to another backend of the forward, if there is one."""
        listener = self.listener
        if listener.balancer is None:
            return False
        listener.balancer.failed(listener)
        other = listener.balancer.another([listener], self.client)
        if other is None:
            return False
        other.row[ACCEPTED] += 1
        listener.row[ForwardCell.CLOSED_MOVED] += 1
        self.listener = other
        self._next = 0
        return True

    def _begin_log(self) -> None:
        self.told = True
        self._log(Outcome.OPENED, self.listener.worker.loop.now - self.started)

    def _log(self, outcome: Outcome, duration: float) -> None:
        listener = self.listener
        if listener.worker.log is not None:
            listener.worker.log.event(
                Event(
                    listener.forward,
                    outcome,
                    self.client,
                    self.peer[1],
                    self.taken,
                    self.given,
                    duration,
                    self.serial,
                    self.address,
                )
            )


def is_any(sock: Socket) -> bool:
    """Whether `sock` is bound to every address of its family."""
    return sock.getsockname()[0] in ("0.0.0.0", "::")


def drops(sock: socket.socket | Socket) -> int:
    """Datagrams that a UDP socket had no room for: SO_MEMINFO's SK_MEMINFO_DROPS (linux/sock_diag.h)."""
    information = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
    dropped: int = struct.unpack_from("=I", information, 32)[0]
    return dropped


def ask_for_address(sock: Socket) -> None:
    """Have the kernel tell to which of our addresses each datagram of `sock` came (PACKET_INFO)."""
    level = PACKET_INFO[sock.family][0]
    sock.setsockopt(level, IP_PKTINFO if sock.family == socket.AF_INET else socket.IPV6_RECVPKTINFO, 1)


def answer_from(family: int, information: bytes) -> list[Any]:
    """The ancillary data of an answer to a datagram that came with `information` (struct in_pktinfo,
    in6_pktinfo), for sendmsg; empty where the kernel is to choose the address."""
    if not information:
        return []
    level, kind, layout = PACKET_INFO[family]
    if family == socket.AF_INET:
        _, ours, _ = layout.unpack(information)
        # ipi_spec_dst, which for a broadcast is our own address; interface 0: as the routes say.
        return [(level, kind, layout.pack(0, ours, bytes(4)))]
    ours, interface = layout.unpack(information)
    if ours[0] == 0xFF:  # a multicast group (RFC 4291, 2.7) is nobody's source
        return []
    # A link-local address means something on its interface only.
    return [(level, kind, layout.pack(ours, interface if ours[:2] == b"\xfe\x80" else 0))]
