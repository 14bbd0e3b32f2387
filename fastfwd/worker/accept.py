"""Clients come in: one Listener per forward, accepting in batches.

worker/main makes the listeners from the table the supervisor sends; the loop calls
`event`. A listener judges the client (worker/access, worker/limits) and hands it to a
dial; where the client has to be announced, worker/arrival waits for that first. It must
never close its socket's kernel queue unread: see `empty`.
"""

from __future__ import annotations

import os
import socket
import struct

# The C class under socket.socket: no Python-level accept and close.
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fastfwd.model import AccessRule, Address, Forward, Outcome
from fastfwd.observe.eventlog import Event
from fastfwd.observe.scoreboard import ForwardCell
from fastfwd.worker.access import Judge, Patterns
from fastfwd.worker.arrival import Announcement, Arrival
from fastfwd.worker.dial import NO_ROOM, STREAM, Dial, Target, client_options, dial_options
from fastfwd.worker.limits import LOCAL

if TYPE_CHECKING:
    from fastfwd.tls import Accepting, Connecting
    from fastfwd.worker.balance import Balancer
    from fastfwd.worker.loop import TimerQueue
    from fastfwd.worker.main import Worker
    from fastfwd.worker.rates import Rates

SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h

BATCH: Final = 16
"""Connections taken per event, so that a burst does not starve the sessions."""

ACCEPTED: Final = int(ForwardCell.ACCEPTED)

REFUSED: Final = {
    Outcome.NOT_ALLOWED: ForwardCell.NOT_ALLOWED,
    Outcome.DENIED: ForwardCell.DENIED,
    Outcome.OVER_LIMIT: ForwardCell.OVER_LIMIT,
    Outcome.OVER_CLIENT_LIMIT: ForwardCell.OVER_CLIENT_LIMIT,
    Outcome.OVER_RATE: ForwardCell.OVER_RATE,
    Outcome.OVER_CLIENT_RATE: ForwardCell.OVER_CLIENT_RATE,
}

ACCESS: Final = frozenset({Outcome.NOT_ALLOWED, Outcome.DENIED})
"""Refusals by rinetd's rules, which rinetd logs each."""


class Listener:
    """One bound socket of one forward in this worker's slot, and what its sessions need
    to know of the forward. A reload makes a new one around the same socket; sessions
    keep the one they were born with."""

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
        accepting: Accepting | None,
        connecting: Connecting | None,
    ) -> None:
        """Accept for `forward` on `sock` (listening, non-blocking; the caller's), and count in
        `row`, the forward's on the scoreboard; `active()` is the sum over all workers' rows;
        `accepting` and `connecting` are its TLS with clients and with backends.
        With a `balancer` it accepts for its backends, which are listeners that share it."""
        self.worker = worker
        self.forward = forward
        self.sock = sock
        self.local = forward.listen.unix
        self.judge = judge
        self.rates = rates
        self.balancer: Balancer[Listener] | None = None
        self.target = target
        self.row = row
        self.active = active
        self.accepting = accepting
        self.connecting = connecting
        self.overdue: TimerQueue[Dial] | None = None
        """Where the forward has a connect timeout of its own."""
        if forward.connect_timeout is not None:
            self.overdue = worker.overdue_after(forward.connect_timeout)
        self.announcers: Patterns | None = None
        """Who is believed when it says whose connection it brings; nobody else gets in then."""
        if forward.proxy_from:
            self.announcers = Patterns(AccessRule(True, each) for each in forward.proxy_from)
        self.leaflet = worker.leaflet(forward.sorry)
        self.client_options = client_options(forward)
        self._parts: dict[int, Listener] = {}

    def event(self, mask: int) -> int:
        """Accept a batch. Returns how many connections there were."""
        # accept() of socket.socket would wrap each one in Python; _accept is the same
        # system call without that (2 µs less).
        accept = self.sock._accept  # type: ignore[attr-defined]
        for count in range(BATCH):
            try:
                descriptor, peer = accept()
            except BlockingIOError:
                return count
            except OSError as error:
                # accept(2): errors of the connection itself (ECONNABORTED, EPROTO,
                # ENETDOWN ...) are the network's, not ours: try the next one.
                self.worker.accept_failed(self, error, pause=error.errno in NO_ROOM)
                if error.errno in NO_ROOM:
                    return count
                continue
            os.set_blocking(descriptor, False)
            client = Socket(self.sock.family, STREAM, 0, descriptor)
            if self.local:
                peer = LOCAL, 0
            address: str = peer[0]
            if len(peer) == 4 and peer[3]:  # a link-local client: rinetd shows its zone too
                address = f"{address}%{zone(peer[3])}"
            if self.announcers is None:
                self.let_in(client, descriptor, address, peer[1])
            else:
                Arrival(self, client, descriptor, address, peer[1])
        return BATCH

    def let_in(
        self,
        client: Socket,
        descriptor: int,
        address: str,
        port: int,
        announced: Announcement | None = None,
    ) -> None:
        """Dial for `client`, whose numeric `address` and `port` those are, unless it is refused."""
        if self.judge is not None and (refusal := self.judge(address)) is not None:
            self._refuse(client, address, port, refusal, announced)
            return
        if self.rates is not None and (refusal := self.rates.admit(address)) is not None:
            self._refuse(client, address, port, refusal, announced)
            return
        for option in self.client_options:
            client.setsockopt(*option)
        listener = self
        if self.balancer is not None:
            listener = self.balancer.choose(address)
        elif self.forward.original_port:
            listener = self._asked_for(client)
        admission = self.worker.admission
        if admission is None:
            listener.row[ACCEPTED] += 1
        elif refusal := admission.admit(address, listener.row, self.forward.max_connections, self.active):
            self._refuse(client, address, port, refusal, announced)
            return
        dial = Dial(listener, client, descriptor, address, port, announced)
        if self.accepting is None:
            dial.attempt()
        else:
            dial.welcome(self.accepting)

    def update(self, hosts: Mapping[str, Sequence[Address]]) -> None:
        """Names have other addresses."""
        self.target.update(hosts)
        self._parts.clear()
        for member in [] if self.balancer is None else self.balancer.members:
            member.listener.target.update(hosts)

    def part(self, forward: Forward, target: Target, row: memoryview, active: Callable[[], int]) -> Listener:
        """What sessions with one of its backends are born with."""
        return Listener(
            *(self.worker, forward, self.sock, self.judge, None, target, row, active),
            *(self.accepting, self.connecting),
        )

    def empty(self) -> None:
        """Accept whatever is still queued, before the socket is closed: closing resets
        what waits in the queue."""
        while self.event(0) == BATCH:
            pass

    def _asked_for(self, client: Socket) -> Listener:
        """The part of this listener that is for the port which `client` asked for, before the packet
        filter redirected it."""
        port = original_port(client)
        if port not in self._parts:
            forward = self.forward.at(port, [port] * len(self.forward.backends))
            target = Target(
                *(forward.backends[0], self.target.family, dial_options(forward)),
                transparent=forward.transparent,
            )
            if port != self.forward.listen.port:  # else nobody has redirected it
                target.addresses, target.sources = self.target.addresses, self.target.sources
            target.self_connect = self.target.self_connect
            self._parts[port] = self.part(forward, target, self.row, self.active)
        return self._parts[port]

    def _refuse(
        self, client: Socket, address: str, port: int, outcome: Outcome, announced: Announcement | None
    ) -> None:
        self.row[REFUSED[outcome]] += 1
        worker = self.worker
        worker.loop.closing.append(client)
        # A flood over a limit must not become one of the log, too.
        if worker.log is not None and (outcome in ACCESS or worker.refusals.one_more(worker.loop.now)):
            worker.log.event(
                Event(
                    self.forward,
                    outcome,
                    address,
                    port,
                    serial=worker.next_serial(),
                    via=announced and announced.via,
                )
            )


def original_port(client: Socket) -> int:
    """The port to which the SYN of an accepted connection was sent: netfilter's SO_ORIGINAL_DST, or the
    listener's where nothing has redirected it. Both answers begin like a struct sockaddr_in."""
    levels = (socket.IPPROTO_IPV6, socket.IPPROTO_IP)  # the latter also for IPv4 clients of an IPv6 listener
    for level in levels if client.family == socket.AF_INET6 else levels[1:]:
        try:
            (port,) = struct.unpack_from("!2xH", client.getsockopt(level, SO_ORIGINAL_DST, 28))
        except OSError:  # ENOENT: no such connection in the tables; ENOPROTOOPT: no tables
            continue
        return int(port)
    return int(client.getsockname()[1])


def zone(index: int) -> str:
    """The name of the interface with that `index`, for a link-local address."""
    try:
        name = socket.if_indextoname(index)
    except OSError:  # the interface went away meanwhile
        return str(index)
    # The kernel allows any byte but a blank, "/" and ":"; a log line does not.
    return name if name.isprintable() else str(index)
