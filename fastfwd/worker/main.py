"""A worker: one process, one loop, the sessions of one slot.

The supervisor forks it with an end of a channel and a scoreboard row, and nothing
else: its listeners, its log and its table of forwards arrive as messages, the same
way a reload brings new ones. It never opens a file, resolves a name or binds a port,
and outlives the supervisor only to let its sessions finish.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from fastfwd.channel import Channel, Message
from fastfwd.model import AccessRule, Address, Forward, Limits, LogFormat, Outcome, Protocol
from fastfwd.observe.eventlog import Allowance, Event, EventLog, line_format
from fastfwd.observe.scoreboard import LAG, Cell, ForwardCell, Scoreboard, TlsFailure
from fastfwd.relay.ciphering import Records, Stream, ciphering
from fastfwd.relay.copying import discarder
from fastfwd.relay.pipes import PipePool, share
from fastfwd.relay.pump import Tally
from fastfwd.relay.splicing import movers
from fastfwd.tls import Contexts, not_raised
from fastfwd.worker.accept import Listener
from fastfwd.worker.access import Judge, Scope, compile_rules
from fastfwd.worker.arrival import Arrival
from fastfwd.worker.balance import Balancer, Member
from fastfwd.worker.check import Check
from fastfwd.worker.dial import PATIENCE, Dial, Target, dial_options
from fastfwd.worker.handshake import Handshake
from fastfwd.worker.limits import LOCAL, Admission, Census
from fastfwd.worker.loop import GRANULARITY, Loop, TimerQueue
from fastfwd.worker.privileges import UNCOUNTED, Account, PrivilegeError, drop
from fastfwd.worker.rates import Rates
from fastfwd.worker.session import LINGER, Abort, Session
from fastfwd.worker.sorry import Leaflet, Sorry
from fastfwd.worker.udp import LARGEST, Flow, Flows, UdpListener

HEARTBEAT: Final = int(Cell.HEARTBEAT)  # an enum's attribute costs 0.05 µs more, every turn

LOOKS: Final = 8
"""How often a session is looked at during the silence that it may keep."""

TOLD: Final = 10
"""Log lines per second about clients that were over a limit. All are counted."""

STRANGERS: Final = 1000
"""Flows per second of which the log tells before a backend has answered them: anybody can make them
begin. Once it has, every one is told of."""

PAUSE: Final = 0.25
"""Seconds without accepting after the process or the system ran out of room."""

FILL: Final = 32
"""Pipes opened before privileges are dropped."""

ACCEPT_ERRORS: Final = {
    errno.EMFILE: Cell.ACCEPT_EMFILE,
    errno.ENFILE: Cell.ACCEPT_ENFILE,
    errno.ENOBUFS: Cell.ACCEPT_ENOBUFS,
    errno.ENOMEM: Cell.ACCEPT_ENOBUFS,
    errno.ECONNABORTED: Cell.ACCEPT_ABORTED,
}
"""Where an error of accept(2) is counted; any other: Cell.ACCEPT_OTHER."""

CANNOT_START: Final = 3
"""Exit status of a worker that failed before it served."""

log = logging.getLogger("fastfwd")


@dataclass(frozen=True, slots=True)
class Entry:
    """One forward of a table, for one slot. `key` is the supervisor's name of the listening
    socket; `row` the number of the forward's row on the scoreboard, `rows` those of its
    backends where there are several; `fresh` that the socket's descriptor comes with the
    message."""

    key: str
    forward: Forward
    row: int
    rows: tuple[int, ...]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Table:
    """What a worker serves from the commit of `generation` on. `hosts` maps every host of
    the forwards, numeric or not, to its addresses; `ephemeral` is the range the kernel
    takes source ports from, `family` the only one of addresses that are dialled (None: both);
    session tickets are sealed with what is made of the `secret`."""

    generation: int
    entries: tuple[Entry, ...]
    rules: tuple[AccessRule, ...]
    hosts: dict[str, list[Address]]
    logging: bool
    logformat: LogFormat
    logduration: bool
    ephemeral: range
    limits: Limits
    family: int | None
    spread: bool
    secret: bytes = field(repr=False)


Listeners = dict[str, Listener | UdpListener]


L = TypeVar("L", Listener, UdpListener)


class Worker:
    """State of the process; the rest of the package works on it."""

    def __init__(self, slot: int, channel: Channel, scoreboard: Scoreboard, census: Census) -> None:
        """The worker of `slot`, talking to the supervisor over `channel`, its figures in
        the slot's rows of the `scoreboard`, its clients in its part of the `census`."""
        self.slot = slot
        self.census = census
        self.channel = channel
        self.scoreboard = scoreboard
        self.row = scoreboard.row(slot)
        self.loop = Loop(self._beat, self._failed)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.pool = PipePool(cap=max(4, min(1024, limit // 16)))
        self.tally = Tally()
        self.copy, _ = movers(self.pool, self.tally)
        self.discard = discarder()
        self.cipher = ciphering(self.tally)
        self.records = Records()
        """Where TLS records are, between the socket and OpenSSL."""
        self.log: EventLog | None = None
        self.open_sessions = 0
        self.dials: set[Dial] = set()
        self.stranded: list[Dial] = []
        """Dials that found no descriptor left; they go on when accepting does."""
        self.limits = Limits()
        self.admission: Admission | None = None
        """None where no limit on connections makes anybody count them."""
        self.silence: TimerQueue[Session] | None = None
        """Where a session may not be silent for ever, all of them."""
        self.refusals = Allowance(TOLD)
        self.strangers = Allowance(STRANGERS)
        self._serial = 0
        self.patience = self.loop.timer(PATIENCE, Dial.waited)
        self.overdue = self.loop.timer(self.limits.connect_timeout - PATIENCE, Dial.timed_out)
        self.sorries = self.loop.timer(LINGER, Sorry.close)
        self.lingering = self.loop.timer(LINGER, Session.close)
        self._aborts = self.loop.timer(GRANULARITY, self._try_abort)
        self._paused = self.loop.timer(PAUSE, self._resume)
        self.datagram = memoryview(bytearray(LARGEST))
        """Where every datagram is, one after the other."""
        self._overdue: dict[float, TimerQueue[Dial]] = {}
        self._handshakes: dict[int, TimerQueue[Handshake]] = {}
        self._arriving: dict[int, TimerQueue[Arrival]] = {}
        self._leaflets: WeakValueDictionary[bytes, Leaflet] = WeakValueDictionary()
        self._checks: list[Check] = []
        self._listeners: Listeners = {}
        self._udp: list[UdpListener] = []
        """Those of the listeners that have flows."""
        self._contexts = Contexts(b"", None)
        self._prepared: tuple[int, Listeners, EventLog | None, Limits, Contexts] | None = None
        self._draining = False
        self._complained = -60.0
        self._paused_at = 0.0
        # Counters go on where the slot's last worker left them.
        self._before = {cell: int(self.row[cell]) for cell in (Cell.PIPES_SHORT, Cell.COPIED, Cell.SPLICED)}
        self._born = f"{slot:x}-{time.time_ns() // 1_000_000:x}"

    def next_serial(self) -> int:
        """A number for a connection, its own in this process."""
        self._serial += 1
        return self._serial

    def run(self) -> None:
        """Serve until told to stop, or until drained."""
        self.loop.watch(self.channel.fileno(), select.EPOLLIN, self._hear)
        self.loop.now_and_then += [self._publish, self._observe_lag, self._expire_flows, self._end_if_drained]
        self.loop.now_and_then.append(lambda: self._contexts.renew(time.time()))
        self.loop.run()
        if self.log is not None:
            self.log.close()
        self._publish()

    # -- what accept, dial and session need of the process

    def sessions(self) -> list[Session]:
        """All open ones, found by what they have the loop call: a set of them would cost
        each 33 bytes or more, of 1,100."""
        owners = (getattr(handler, "__self__", None) for handler in self.loop.handlers.values())
        return list({owner for owner in owners if isinstance(owner, Session)})

    def flows(self) -> list[Flow]:
        """All of them."""
        return [flow for listener in self._udp for flow in listener.flows.of.values()]

    def suspect(self, target: Target) -> None:
        """Dials to `target` fail one after the other: its name may have other addresses by now."""
        self.channel.send({"op": "suspect", "host": target.host})

    def overdue_after(self, seconds: int) -> TimerQueue[Dial]:
        """Where dials wait that may take so long."""
        after = max(0, seconds - PATIENCE)
        if after not in self._overdue:
            self._overdue[after] = self.loop.timer(after, Dial.timed_out)
        return self._overdue[after]

    def handshakes(self, seconds: int) -> TimerQueue[Handshake]:
        """Where handshakes wait that may take so long."""
        if seconds not in self._handshakes:
            self._handshakes[seconds] = self.loop.timer(seconds, Handshake.timed_out)
        return self._handshakes[seconds]

    def arriving(self, seconds: int) -> TimerQueue[Arrival]:
        """Where connections wait that have so long to say whose they are."""
        if seconds not in self._arriving:
            self._arriving[seconds] = self.loop.timer(seconds, Arrival.timed_out)
        return self._arriving[seconds]

    def arrivals(self) -> list[Arrival]:
        """All that have not said it yet."""
        return [each for queue in self._arriving.values() for each in queue.due]

    def handshakes_now(self) -> int:
        """How many there are."""
        return sum(len(queue.due) for queue in self._handshakes.values())

    def oldest_handshake(self) -> Handshake:
        """Of those that there are, whichever time each may take."""
        queues = [queue for queue in self._handshakes.values() if queue.due]
        firsts = [(next(iter(queue.due.items())), queue.seconds) for queue in queues]
        return min(firsts, key=lambda each: each[0][1] - each[1])[0][0]

    def leaflet(self, content: bytes) -> Leaflet | None:
        """`content` as a file to send, one for all that send the same; None if there is none."""
        if not content:
            return None
        if (found := self._leaflets.get(content)) is None:
            found = self._leaflets[content] = Leaflet(content)
        return found

    def forget_dial(self, dial: Dial) -> None:
        """`dial` has ended, in a session or without one."""
        self.dials.discard(dial)
        self.patience.discard(dial)
        (dial.listener.overdue or self.overdue).discard(dial)

    def abort(self, sock: Socket | Stream) -> None:
        """Close `sock` with a reset, after what was sent on it has been acknowledged."""
        self._try_abort(Abort(sock, self.loop.now))

    def accept_failed(self, listener: Listener, error: OSError, *, pause: bool) -> None:
        """accept(2) said `error`. With `pause`, stop accepting for a moment."""
        self.row[ACCEPT_ERRORS.get(error.errno or 0, Cell.ACCEPT_OTHER)] += 1
        if pause and not self.pause(error):
            return
        if self.log is not None:
            self.log.event(Event(listener.forward, Outcome.ACCEPT_FAILED, "?", serial=self.next_serial()))

    def pause(self, error: OSError) -> bool:
        """Out of descriptors or memory: leave clients in the kernel's queues for PAUSE
        seconds. Says so at most once a second; returns whether it did."""
        if not self._paused.due:
            for listener in self._listeners.values():
                if isinstance(listener, Listener):
                    self.loop.forget(listener.sock.fileno())
            self._paused.add(None, self.loop.now)
            self._paused_at = self.loop.now
        return self.complain("not accepting for now", error)

    def complain(self, what: str, error: OSError) -> bool:
        """Say so, with the `error`, at most once a second. Returns whether it did."""
        if self.loop.now < self._complained + 1.0:
            return False
        self._complained = self.loop.now
        log.warning("slot %d: %s: %s (%d sessions)", self.slot, what, error.strerror, self.open_sessions)
        return True

    # -- orders

    def _hear(self, mask: int) -> None:
        messages, alive = self.channel.receive()
        for message, descriptors in messages:
            self._obey(message, descriptors)
        if not alive:
            # The supervisor is gone and a new one cannot adopt us: leave the ports to
            # it and let the sessions, which may be days old, finish.
            log.warning("slot %d: the supervisor is gone; draining", self.slot)
            self.loop.forget(self.channel.fileno())
            self.drain()

    def _obey(self, message: Message, descriptors: list[int] | None) -> None:
        operation = message["op"]
        if operation == "prepare":
            self._prepare(message["table"], descriptors)
        elif operation == "commit":
            self._commit()
        elif operation == "abort":
            self._forget_prepared()
        elif operation == "log":
            self._reopen(descriptors)
        elif operation == "addresses":
            for listener in self._listeners.values():
                listener.update(message["hosts"])
        elif operation == "drain":
            self.drain(message["flows"])
        elif operation == "stop":
            self.stop()

    def _prepare(self, table: Table, descriptors: list[int] | None) -> None:
        """Make everything the table needs without touching what serves, then answer."""
        self._forget_prepared()
        answer = {"op": "prepared", "generation": table.generation}
        if descriptors is None:
            self.channel.send({**answer, "error": "no descriptors left for the new listeners"})
            return
        arrived = iter(descriptors)
        event_log = None
        if table.logging:
            line = line_format(table.logformat, duration=table.logduration, slot=self.slot, born=self._born)
            event_log = EventLog(next(arrived), line, self.row, self.scoreboard.shared)
        listeners: Listeners = {}
        contexts = Contexts(table.secret, self._contexts)
        scopes: dict[int, Scope] = {}  # for as long as the table lives
        for entry in table.entries:
            sock = _adopt(next(arrived)) if entry.fresh else self._listeners[entry.key].sock
            listeners[entry.key] = self._listener(entry, sock, table, contexts, scopes)
        self._prepared = (table.generation, listeners, event_log, table.limits, contexts)
        self.channel.send({**answer, "error": None})

    def _listener(
        self, entry: Entry, sock: Socket, table: Table, contexts: Contexts, scopes: dict[int, Scope]
    ) -> Listener | UdpListener:
        forward = entry.forward
        judge = compile_rules((table.rules, forward.rules), scopes)
        if judge is not None and forward.listen.unix:
            judge = _of_addresses(judge) if forward.proxy_from else None
        rates = None
        if forward.connection_rate is not None or forward.client_rate is not None:
            rates = Rates(self.census.recall, entry.row, forward.connection_rate, forward.client_rate)
        if forward.listen.protocol is Protocol.TCP:
            return self._balanced(
                entry,
                table,
                Listener(
                    *(self, forward, sock, judge, rates, *self._end(forward, entry.row, table)),
                    *contexts.of(forward),
                ),
            )
        before = self._listeners.get(entry.key)
        assert before is None or isinstance(before, UdpListener)
        flows = Flows() if before is None else before.flows
        one = UdpListener(self, forward, sock, judge, rates, *self._end(forward, entry.row, table), flows)
        return self._balanced(entry, table, one)

    def _end(self, forward: Forward, row: int, table: Table) -> tuple[Target, memoryview, Callable[[], int]]:
        """What is the (first) backend's of a forward, whose row has that number: its target, this slot's
        row, and what counts its connections."""
        target = Target(
            *(forward.backends[0], table.family, dial_options(forward)),
            spread=table.spread,
            transparent=forward.transparent,
        )
        target.update(table.hosts)
        # Only a target among the kernel's own source ports can be dialled by itself.
        target.self_connect = forward.original_port or target.port in table.ephemeral
        return target, self.scoreboard.forward(row, self.slot), partial(self.scoreboard.active, row)

    def _balanced(self, entry: Entry, table: Table, listener: L) -> L:
        """Give a listener its backends, if there are several: each is a listener of its own."""
        if not entry.rows:
            return listener
        board = self.scoreboard
        members = []
        for backend, row in zip(entry.forward.backends, entry.rows, strict=True):
            forward = entry.forward.to(backend)
            target, own, active = self._end(forward, row, table)
            others = [board.forward(row, slot) for slot in range(board.slots)]
            part = listener.part(forward, target, own, active)
            members.append(Member(part, backend.weight, backend.label, own, others, active))
        listener.balancer = Balancer(entry.forward, members, self.census.recall, entry.row)
        for each in members:
            each.listener.balancer = listener.balancer
        rows = [entry.row, *entry.rows]
        listener.active = lambda: sum(map(board.active, rows))
        return listener

    def _commit(self) -> None:
        if self._prepared is None:
            return
        old = self._listeners
        generation, self._listeners, event_log, limits, self._contexts = self._prepared
        self._prepared = None
        self._contexts.renew(time.time())
        self._udp = [each for each in self._listeners.values() if isinstance(each, UdpListener)]
        self._limit(limits)
        if self.log is not None:
            self.log.close()
        self.log = event_log
        self.loop.end_of_turn = [] if event_log is None else [event_log.flush]
        self._check()
        kept = {listener.sock for listener in self._listeners.values()}
        for listener in old.values():
            if listener.sock not in kept:
                self._empty_and_close(listener)
        known = {listener.sock for listener in old.values()}
        for listener in self._listeners.values():
            descriptor = listener.sock.fileno()
            if listener.sock in known:
                if descriptor in self.loop.handlers:  # it is not while accepting is paused
                    self.loop.handlers[descriptor] = listener.event
            elif self._draining:
                self._empty_and_close(listener)
            else:
                self._serve(listener)
        self.channel.send({"op": "serving", "generation": generation})

    def _limit(self, limits: Limits) -> None:
        """Have `limits`, and those of the present listeners, hold from now on. Those who are here
        are gone through only if they were not counted, or watched, before."""
        self.limits = limits
        # What waits already keeps its time, and what comes now waits behind it.
        self.overdue.seconds = max(0.0, limits.connect_timeout - PATIENCE)
        own = any(each.forward.max_connections for each in self._listeners.values())
        if not (own or limits.connections or limits.connections_per_client):
            self.admission = None
        elif self.admission is None:
            clients = [each.peer for each in self.sessions()] + [each.peer for each in self.dials]
            clients += [each.client for each in self.flows()]
            self.admission = Admission(self.census, self.slot, limits, clients)
        else:
            self.admission.limits = limits
        times = [each for each in (limits.idle_timeout, limits.half_close_timeout) if each is not None]
        if times and self.silence is not None and self.silence.seconds == min(times) / LOOKS:
            return
        if self.silence is not None:
            self.loop.retire(self.silence)
            self.silence = None
        if times:
            self.silence = self.loop.timer(min(times) / LOOKS, Session.look)
            for session in self.sessions():
                self.silence.add(session, self.loop.now)

    def _check(self) -> None:
        """Have the present backends checked, those that are this worker's to check."""
        for check in self._checks:
            check.end()
        self._checks = []
        for listener in self._listeners.values():
            if isinstance(listener, UdpListener) or listener.balancer is None:
                continue
            if (seconds := listener.forward.check_interval) is None:
                continue
            for place, member in enumerate(listener.balancer.members):
                if place % self.scoreboard.slots == self.slot:
                    self._checks.append(Check(self, member, seconds))

    def _reopen(self, descriptors: list[int] | None) -> None:
        if descriptors and self.log is not None:
            self.log.reopen(descriptors[0])
        else:
            log.error("slot %d: no descriptor left for the reopened log", self.slot)

    def _forget_prepared(self) -> None:
        if self._prepared is None:
            return
        _, listeners, event_log, *_ = self._prepared
        self._prepared = None
        serving = {listener.sock for listener in self._listeners.values()}
        for listener in listeners.values():
            if listener.sock not in serving:
                listener.sock.close()
        if event_log is not None:
            event_log.close()

    def _empty_and_close(self, listener: Listener | UdpListener) -> None:
        self.loop.forget(listener.sock.fileno())
        listener.empty()
        listener.sock.close()

    def drain(self, flows: Set[str] = frozenset()) -> None:
        """Accept what is queued, then nothing more; end with the last session. Flows of the listeners
        with these keys end when they have been silent, too: another program has the sockets and takes what
        clients send from now on, but what backends still answer comes to us."""
        self._draining = True
        self.pool.close()  # in an upgrade the new program's may need them: an account has so many
        listeners, self._listeners = self._listeners, {}
        self._check()
        for key, listener in listeners.items():
            if key in flows and isinstance(listener, UdpListener):
                self.loop.forget(listener.sock.fileno())
            else:
                self._empty_and_close(listener)

    def stop(self) -> None:
        """End every session now, with its log line."""
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            self.loop.forget(listener.sock.fileno())
        for udp in self._udp:
            udp.empty()
        for listener in listeners.values():
            listener.sock.close()
        for session in self.sessions():
            session.stop()
        for dial in list(self.dials):
            dial.end(Outcome.DONE_LOCAL_CLOSED)
        for arrival in self.arrivals():
            arrival.end(Outcome.DONE_LOCAL_CLOSED)
        self.loop.running = False

    # -- the loop's callbacks

    def _beat(self, now: float) -> None:
        self.row[HEARTBEAT] = int(now * 1e9)

    def _failed(self, owner: object) -> None:
        """A handler of `owner` has raised what nobody foresaw: that connection ends, the
        others go on."""
        log.exception("slot %d: this is a fault in fastfwd; please report it", self.slot)
        if isinstance(owner, Session):
            owner.fail()
        elif isinstance(owner, Dial | Arrival):
            # It may have become the next thing already.
            sessions = [each for each in self.sessions() if each.client_fd == owner.client_fd]
            dials = [each for each in self.dials if each.client_fd == owner.client_fd]
            if sessions:
                sessions[0].fail()
            elif dials:
                dials[0].end(Outcome.LOCAL_CONNECT_FAILED)
            elif isinstance(owner, Arrival) and owner in self.arrivals():
                owner.fail(ForwardCell.PROXY_CLOSED)
        elif isinstance(owner, Handshake):
            owner.fail(TlsFailure.OTHER, "a fault")
        elif isinstance(owner, Flow):
            owner.end(Outcome.DONE_LOCAL_CLOSED)
        elif isinstance(owner, Listener):
            self.pause(OSError(errno.EPROTO, "a fault"))  # do not repeat it a thousand times a second
        else:
            raise  # noqa: PLE0704  # called in the loop's except clause

    def _end_if_drained(self) -> None:
        left = self.open_sessions or self.dials or self._aborts.due
        if self._draining and not (left or self.arrivals()):
            self.loop.running = False

    def _publish(self) -> None:
        self.channel.flush()  # what a busy supervisor had no room for
        row = self.row
        arriving = sum(len(each.due) for each in self._arriving.values())
        row[Cell.SESSIONS] = self.open_sessions + len(self.dials) + arriving
        row[Cell.PIPES_LENT] = self.pool.lent
        row[Cell.PIPES_IDLE] = self.pool.idle
        row[Cell.PIPES_SHORT] = self._before[Cell.PIPES_SHORT] + self.pool.short
        row[Cell.COPIED] = self._before[Cell.COPIED] + self.tally.copied
        row[Cell.SPLICED] = self._before[Cell.SPLICED] + self.tally.spliced
        row[Cell.TICKETS_OWN] = not self._contexts.shared_tickets

    def _expire_flows(self) -> None:
        for listener in self._udp:
            listener.expire(self.loop.now)

    def _observe_lag(self) -> None:
        LAG.observe(self.row, self.loop.longest)

    def _try_abort(self, abort: Abort) -> None:
        if abort.due(self.loop.now):
            self.loop.closing.append(abort.sock)
        else:
            self._aborts.add(abort, self.loop.now)

    def _resume(self, _: None) -> None:
        self.row[Cell.ACCEPT_PAUSED] += int((self.loop.now - self._paused_at) * 1e9)
        stranded, self.stranded = self.stranded, []
        for dial in stranded:
            if dial in self.dials:
                dial.attempt()
        for listener in self._listeners.values():
            if listener.sock.fileno() not in self.loop.handlers:
                self._serve(listener)

    def _serve(self, listener: Listener | UdpListener) -> None:
        """Accept on `listener`, unless accepting is paused: then all of them resume later."""
        if self._paused.due:
            return
        try:
            # Workers may share a queue: that of a Unix socket or of one of the service manager's, and in
            # an upgrade those of both programs. A client wakes one of them.
            self.loop.watch(listener.sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE, listener.event)
        except OSError as error:  # ENOMEM; ENOSPC: fs.epoll.max_user_watches
            self.pause(error)


def _of_addresses(judge: Judge) -> Judge:
    """Rules are about addresses; who may connect to a Unix socket its file says."""
    return lambda client: None if client == LOCAL else judge(client)


def _adopt(descriptor: int) -> Socket:
    """A listening socket received from the supervisor, as an object that owns it."""
    sock = Socket(fileno=descriptor)
    return Socket(sock.family, sock.type | socket.SOCK_NONBLOCK, 0, sock.detach())


def main(slot: int, channel: Channel, scoreboard: Scoreboard, census: Census, account: Account) -> int:
    """Be the worker of `slot` in this freshly forked process, as `account`. Returns the
    exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the supervisor, and sent to us by mistake
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(f"fastfwd-w{slot}")
    worker = Worker(slot, channel, scoreboard, census)
    worker.pool.fill(FILL if account.given & UNCOUNTED else min(FILL, share(scoreboard.slots)))
    try:
        drop(account)
    except PrivilegeError as error:
        log.critical("slot %d: %s", slot, error)
        return CANNOT_START
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    sys.unraisablehook = not_raised
    worker.loop.watch(reader, select.EPOLLIN, lambda mask: worker.stop())
    # Sessions break their own reference cycles when they close, so there is nothing for
    # the collector to find, and its full passes would cost milliseconds.
    gc.collect()
    gc.freeze()
    gc.disable()
    worker.run()
    return 0
