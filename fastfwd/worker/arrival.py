"""Connections that must say first whose they are: the PROXY protocol on the clients' side.

worker/accept makes an Arrival of each connection of a forward with `accept-proxy=`; one that has sent its
header goes on from there, as if it had come from the address that it announces. The header is looked at
in the socket, and then exactly its bytes are taken, so that what follows is the session's, or TLS's. Until
then nothing has been judged, counted or dialled: it must never let in who is not on the list, nor take
an address from anything but a whole header.
"""

from __future__ import annotations

import select
import socket
from _socket import socket as Socket  # noqa: N812
from typing import TYPE_CHECKING, Final, NamedTuple

from fastfwd.model import Address, Outcome
from fastfwd.observe.eventlog import Event
from fastfwd.observe.scoreboard import DURATION, ForwardCell
from fastfwd.worker.access import spellings
from fastfwd.worker.dial import CLOSED
from fastfwd.worker.limits import LOCAL
from fastfwd.worker.proxyheader import LONGEST, BadHeader, Endpoint, parse
from fastfwd.worker.session import READ

if TYPE_CHECKING:
    from fastfwd.worker.accept import Listener

GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Announcement(NamedTuple):
    """What a connection has said before its first byte."""

    size: int
    """Bytes of it, which the kernel has received with the session's and the session has not."""
    via: str | None
    """The connection's own address and port, if another one is announced as the client's."""
    destination: Endpoint | None
    """Where the client had gone, if that is announced."""
    since: float
    """When it came, in the loop's time."""


class Arrival:
    """A connection before its header is complete. Ready to be a key of a TimerQueue."""

    __slots__ = ("_client", "_listener", "_watched", "address", "client_fd", "port", "since")

    def __init__(self, listener: Listener, client: Socket, client_fd: int, address: str, port: int) -> None:
        """Of `client`, connected and non-blocking, which is the arrival's from now on; it has come to
        `listener` from the numeric `address` and `port`, and has the forward's `handshake-timeout`."""
        worker = listener.worker
        self._listener = listener
        self._client = client
        self._watched = False
        self.client_fd = client_fd
        self.address = address
        self.port = port
        self.since = worker.loop.now
        worker.arriving(listener.forward.handshake_timeout).add(self, self.since)
        assert listener.announcers is not None  # or nobody would announce anything
        if listener.announcers.match(spellings(address)):
            self.event(0)
        else:
            self.fail(ForwardCell.PROXY_STRANGER)

    def event(self, mask: int) -> None:
        """More of it may have come."""
        try:
            data = self._client.recv(LONGEST, socket.MSG_PEEK)
            header = parse(data)
            if header is None:
                if not data or mask & GONE:
                    self.fail(ForwardCell.PROXY_CLOSED)
                else:
                    self._wait()
                return
            if len(self._client.recv(header.size)) < header.size:  # urgent data begin in the middle of it
                raise BadHeader("length")
        except BlockingIOError:
            self._wait()
            return
        except BadHeader:
            self.fail(ForwardCell.PROXY_MALFORMED)
            return
        except OSError:
            self.fail(ForwardCell.PROXY_CLOSED)
            return
        self._forget()
        source = header.source
        via = None
        if source is not None:
            via = LOCAL if self.address == LOCAL else Address(0, self.address).at(self.port)
        announced = Announcement(header.size, via, header.destination, self.since)
        address, port = source or (self.address, self.port)
        self._listener.let_in(self._client, self.client_fd, address, port, announced)

    def timed_out(self) -> None:
        """It has had its time."""
        self.fail(ForwardCell.PROXY_TIMEOUT)

    def fail(self, why: ForwardCell) -> None:
        """It is nobody's."""
        self._listener.row[why] += 1
        # Anybody can be a stranger, as often as they like.
        self.end(Outcome.REMOTE_PROXY_FAILED, bounded=why is ForwardCell.PROXY_STRANGER)

    def end(self, outcome: Outcome, *, bounded: bool = False) -> None:
        """The only way out but that to a dial: one log line (a `bounded` one where there are not too many),
        the connection closed."""
        worker, row = self._listener.worker, self._listener.row
        self._forget()
        worker.loop.closing.append(self._client)
        row[ForwardCell.ACCEPTED] += 1
        row[CLOSED[outcome]] += 1
        duration = worker.loop.now - self.since
        DURATION.observe(row, duration)
        if worker.log is not None and (not bounded or worker.refusals.one_more(worker.loop.now)):
            worker.log.event(
                Event(
                    self._listener.forward,
                    outcome,
                    self.address,
                    self.port,
                    duration=duration,
                    serial=worker.next_serial(),
                )
            )

    def _wait(self) -> None:
        if self._watched:
            return
        worker = self._listener.worker
        try:
            worker.loop.watch(self.client_fd, READ, self.event)
        except OSError as error:  # ENOMEM; ENOSPC: fs.epoll.max_user_watches
            worker.pause(error)
            self.fail(ForwardCell.PROXY_CLOSED)
        else:
            self._watched = True

    def _forget(self) -> None:
        worker = self._listener.worker
        worker.arriving(self._listener.forward.handshake_timeout).discard(self)
        if self._watched:
            self._watched = False
            worker.loop.forget(self.client_fd)
