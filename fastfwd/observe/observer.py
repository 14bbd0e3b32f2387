"""Reads the scoreboard and /proc into a Status, and remembers enough for rates.

The exporter owns one and calls `sample` every INTERVAL. It only looks: a worker that
vanishes between two looks leaves a None, never an error.
"""

from __future__ import annotations

import os
import platform
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, monotonic_ns, time
from typing import Final, NamedTuple

import psutil

from fastfwd import __version__
from fastfwd.model import Forward, Protocol
from fastfwd.observe.rows import Row
from fastfwd.observe.scoreboard import (
    CLOSED,
    CONNECT_TIME,
    DURATION,
    LAG,
    SIDE,
    Cell,
    ForwardCell,
    Histogram,
    Scoreboard,
    State,
    SupervisorCell,
    TlsCell,
    TlsFailure,
    WatchCell,
)
from fastfwd.observe.status import (
    BackendStatus,
    CertificateStatus,
    ConfigStatus,
    Datagrams,
    Distribution,
    ForwardStatus,
    Handshakes,
    History,
    Queue,
    Rates,
    Status,
    Totals,
    Upgrades,
    WorkerStatus,
)

INTERVAL: Final = 2.0
"""Seconds between samples: what a rate is taken over."""

SAMPLES: Final = 61
"""Two minutes of rates."""

LATE: Final = 5.0
"""Seconds without a heartbeat after which a process does not count as beating."""

OUTCOMES: Final = {
    "done-local-closed": ForwardCell.CLOSED_LOCAL,
    "done-remote-closed": ForwardCell.CLOSED_REMOTE,
    "local-socket-failed": ForwardCell.CLOSED_SOCKET,
    "local-bind-failed": ForwardCell.CLOSED_BIND,
    "local-connect-failed": ForwardCell.CLOSED_CONNECT,
    "idle-timeout": ForwardCell.CLOSED_IDLE,
    "half-close-timeout": ForwardCell.CLOSED_HALF_CLOSED,
    "evicted": ForwardCell.CLOSED_EVICTED,
    "remote-tls-failed": ForwardCell.CLOSED_REMOTE_TLS,
    "local-tls-failed": ForwardCell.CLOSED_LOCAL_TLS,
    "remote-proxy-failed": ForwardCell.CLOSED_PROXY,
    "worker-died": ForwardCell.CLOSED_DIED,
}
DENIALS: Final = {
    "not_allowed": ForwardCell.NOT_ALLOWED,
    "denied": ForwardCell.DENIED,
    "limit": ForwardCell.OVER_LIMIT,
    "client_limit": ForwardCell.OVER_CLIENT_LIMIT,
    "rate": ForwardCell.OVER_RATE,
    "client_rate": ForwardCell.OVER_CLIENT_RATE,
}
CONNECT_FAILURES: Final = {
    "refused": ForwardCell.REFUSED,
    "timeout": ForwardCell.TIMEOUT,
    "unreachable": ForwardCell.UNREACHABLE,
    "reset": ForwardCell.RESET,
    "resolve": ForwardCell.RESOLVE,
    "local": ForwardCell.LOCAL,
    "tls": ForwardCell.TLS,
}
DROPPED: Final = {
    "queue": ForwardCell.DROPPED_QUEUE,
    "backend": ForwardCell.DROPPED_BACKEND,
    "client": ForwardCell.DROPPED_CLIENT,
}
SIDES: Final = {
    "client": int(ForwardCell.HANDSHAKES),
    "backend": ForwardCell.HANDSHAKES + SIDE,
}
TLS_VERSIONS: Final = {"TLSv1.2": TlsCell.VERSION_12, "TLSv1.3": TlsCell.VERSION_13}
TLS_FAILURES: Final = {
    "timeout": TlsFailure.TIMEOUT,
    "closed": TlsFailure.CLOSED,
    "not_tls": TlsFailure.NOT_TLS,
    "protocol": TlsFailure.PROTOCOL,
    "certificate": TlsFailure.CERTIFICATE,
    "evicted": TlsFailure.EVICTED,
    "other": TlsFailure.OTHER,
}
PROXY_FAILURES: Final = {
    "malformed": ForwardCell.PROXY_MALFORMED,
    "stranger": ForwardCell.PROXY_STRANGER,
    "timeout": ForwardCell.PROXY_TIMEOUT,
    "closed": ForwardCell.PROXY_CLOSED,
}
ACCEPT_ERRORS: Final = {
    "emfile": Cell.ACCEPT_EMFILE,
    "enfile": Cell.ACCEPT_ENFILE,
    "enobufs": Cell.ACCEPT_ENOBUFS,
    "aborted": Cell.ACCEPT_ABORTED,
    "other": Cell.ACCEPT_OTHER,
}
RESTARTS: Final = {
    "exit": WatchCell.EXITED,
    "signal": WatchCell.SIGNALLED,
    "watchdog": WatchCell.UNRESPONSIVE,
}

RATED: Final = (
    *(ForwardCell.ACCEPTED, ForwardCell.RECEIVED, ForwardCell.SENT),
    *(ForwardCell.DATAGRAMS_RECEIVED, ForwardCell.DATAGRAMS_SENT),
)
"""What rates are taken of, in the order of Rates."""


class Sample(NamedTuple):
    """Figures of one moment (monotonic seconds): RATED of every row, by its number, and the
    processor seconds of every slot."""

    when: float
    figures: array[int]
    processor: list[float]


@dataclass(frozen=True, slots=True)
class Watched:
    """A worker's process, and its /proc/PID/fd if it could be opened."""

    process: psutil.Process
    open_files: int | None


class Observer:
    """`rows` and `file` are the supervisor's to tell, and so is every worker."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self.rows: Sequence[Row] = ()
        self.file = ""
        self.slots = scoreboard.slots
        self._board = scoreboard
        self._workers: dict[int, Watched] = {}
        self._processor: dict[tuple[int, str], float] = {}
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)

    def worker(self, slot: int, pid: int, open_files: int | None) -> None:
        """The process `pid` is the worker of `slot` now; `open_files` is a descriptor of its
        /proc/PID/fd, which becomes the observer's."""
        old = self._workers.pop(slot, None)
        if old is not None and old.open_files is not None:
            os.close(old.open_files)
        try:
            self._workers[slot] = Watched(psutil.Process(pid), open_files)
        except psutil.Error:  # gone already
            if open_files is not None:
                os.close(open_files)

    def sample(self) -> None:
        """Take the figures that rates are made of."""
        highest = max((number for row in self.rows for number in row.numbers), default=-1)
        figures = array("Q", bytes(8 * len(RATED) * (highest + 1)))
        for row in self.rows:
            for slot in range(self._board.slots):
                for number in row.numbers:
                    cells = self._board.forward(number, slot)
                    for place, cell in enumerate(RATED):
                        figures[len(RATED) * row.number + place] += cells[cell]
        processor = [sum(self._cpu(slot).values()) for slot in range(self._board.slots)]
        self._samples.append(Sample(monotonic(), figures, processor))

    def beating(self) -> bool:
        """Whether the supervisor and at least one worker come round their loops, or others do instead."""
        if self.state() is State.REPLACED:
            return True
        now = monotonic()
        workers = (
            now - self._board.read(slot, Cell.HEARTBEAT) / 1e9
            for slot in range(self._board.slots)
            if self._running(slot)
        )
        return now - self._board.supervisor[SupervisorCell.HEARTBEAT] / 1e9 < LATE and any(
            age < LATE for age in workers
        )

    def state(self) -> State:
        """What the program is doing."""
        return State(self._board.supervisor[SupervisorCell.STATE])

    def serving(self) -> int:
        """How many slots have a worker that serves."""
        return sum(self._running(slot) for slot in range(self._board.slots))

    def status(self, *, history: bool = False) -> Status:
        """Everything there is to tell now; the forwards' `history` only if asked for."""
        own = self._board.supervisor.tolist()
        slots = range(self._board.slots)
        workers = [self._worker(slot) for slot in slots]
        forwards = [self._forward(row, history=history) for row in self.rows]
        return Status(
            version=__version__,
            python=platform.python_version(),
            pid=os.getppid(),
            time=time(),
            started=own[SupervisorCell.STARTED] / 1e9,
            state=self.state().name.lower(),
            config=ConfigStatus(
                file=_path(self.file),
                last_reload_successful=bool(own[SupervisorCell.RELOAD_OK]),
                last_reload=own[SupervisorCell.RELOADED] / 1e9,
                reloads=own[SupervisorCell.RELOADS],
                reload_failures=own[SupervisorCell.RELOAD_FAILURES],
            ),
            upgrades=Upgrades(
                done=own[SupervisorCell.UPGRADES],
                failures=own[SupervisorCell.UPGRADE_FAILURES],
                previous_sessions=own[SupervisorCell.PREVIOUS_SESSIONS],
            ),
            workers_configured=len(workers),
            workers_running=sum(worker.running for worker in workers),
            log={
                "lines": self._board.total(Cell.LOG_LINES),
                "dropped": self._board.total(Cell.LOG_DROPPED),
            },
            dns={"lookups": own[SupervisorCell.LOOKUPS], "failures": own[SupervisorCell.LOOKUP_FAILURES]},
            accept_errors={reason: self._board.total(cell) for reason, cell in ACCEPT_ERRORS.items()},
            interval=INTERVAL,
            totals=Totals(
                accepted=sum(each.accepted for each in forwards),
                active=sum(each.active for each in forwards),
                denied=sum(sum(each.denied.values()) for each in forwards),
                closed=sum(sum(each.closed.values()) for each in forwards),
                received_bytes=sum(each.received_bytes for each in forwards),
                sent_bytes=sum(each.sent_bytes for each in forwards),
                rates=self._total_rates(forwards),
            ),
            forwards=forwards,
            workers=workers,
        )

    def _forward(self, row: Row, *, history: bool) -> ForwardStatus:
        board = self._board
        slots = range(board.slots)
        parts = [board.forward(row.number, slot).tolist() for slot in slots]
        behind = [board.forward(number, slot).tolist() for number, _ in row.backends for slot in slots]
        cells = [sum(column) for column in zip(*parts, *behind, strict=True)]
        forward = row.forward
        present = set() if forward is None else {each.label for each in forward.backends}
        queues = [
            Queue(slot, part[ForwardCell.QUEUE_LENGTH], part[ForwardCell.QUEUE_LIMIT])
            for slot, part in enumerate(parts)
        ]
        return ForwardStatus(
            forward=row.label,
            proto=row.protocol.value,
            listen="" if forward is None else str(forward.listen),
            target="" if forward is None else ", ".join(str(each.endpoint) for each in forward.backends),
            tls="off" if forward is None else encryption(forward),
            configured=forward is not None,
            accepted=cells[ForwardCell.ACCEPTED] - cells[ForwardCell.CLOSED_MOVED],
            opened=cells[ForwardCell.OPENED],
            active=cells[ForwardCell.ACCEPTED] - sum(cells[CLOSED.start : CLOSED.stop]),
            denied={reason: cells[cell] for reason, cell in DENIALS.items()},
            closed={outcome: cells[cell] for outcome, cell in OUTCOMES.items()},
            received_bytes=cells[ForwardCell.RECEIVED],
            sent_bytes=cells[ForwardCell.SENT],
            connects=cells[ForwardCell.CONNECTS],
            connect_failures={reason: cells[cell] for reason, cell in CONNECT_FAILURES.items()},
            connect_seconds=distribution(CONNECT_TIME, cells),
            duration_seconds=distribution(DURATION, cells),
            dns_last_success=parts[0][ForwardCell.RESOLVED] / 1e9 if row.named else None,
            queues=[] if forward is None or row.protocol is Protocol.UDP else queues,
            balance="" if forward is None or len(forward.backends) == 1 else forward.balance.value,
            backends=[self._backend(number, label, label in present) for number, label in row.backends],
            datagrams=None if row.protocol is Protocol.TCP else datagrams(cells),
            handshakes=handshakes(forward, cells),
            certificates=[] if forward is None else certificates(forward),
            proxy_failures=proxy_failures(forward, cells),
            rates=self._rates(row.number, -1),
            history=self._history(row.number) if history else None,
        )

    def _backend(self, number: int, label: str, configured: bool) -> BackendStatus:
        parts = [self._board.forward(number, slot).tolist() for slot in range(self._board.slots)]
        cells = [sum(column) for column in zip(*parts, strict=True)]
        now = monotonic_ns()
        down = any(each[ForwardCell.DOWN_UNTIL] > now or each[ForwardCell.CHECKED_DOWN] for each in parts)
        return BackendStatus(
            backend=label,
            configured=configured,
            up=not down,
            accepted=cells[ForwardCell.ACCEPTED],
            active=cells[ForwardCell.ACCEPTED] - sum(cells[CLOSED.start : CLOSED.stop]),
            received_bytes=cells[ForwardCell.RECEIVED],
            sent_bytes=cells[ForwardCell.SENT],
            connects=cells[ForwardCell.CONNECTS],
            connect_failures={reason: cells[cell] for reason, cell in CONNECT_FAILURES.items()},
        )

    def _worker(self, slot: int) -> WorkerStatus:
        row = self._board.row(slot).tolist()
        watch = self._board.watch(slot).tolist()
        memory = files = most = None
        if (watched := self._watched(slot)) is not None:
            try:
                with watched.process.oneshot():
                    memory = watched.process.memory_info().rss
                    most = watched.process.rlimit(psutil.RLIMIT_NOFILE)[0]
                files = _count(watched.open_files)
            except psutil.Error:
                pass  # it has just gone
        return WorkerStatus(
            slot=slot,
            pid=watch[WatchCell.PID],
            running=self._running(slot),
            started=watch[WatchCell.BORN] / 1e9,
            heartbeat=row[Cell.HEARTBEAT] and time() - (monotonic() - row[Cell.HEARTBEAT] / 1e9),
            sessions=row[Cell.SESSIONS],
            open_fds=files,
            max_fds=most,
            memory_bytes=memory,
            cpu_seconds=self._cpu(slot),
            cpu_load=self._load(slot),
            restarts={reason: watch[cell] for reason, cell in RESTARTS.items()},
            accept_paused_seconds=row[Cell.ACCEPT_PAUSED] / 1e9,
            pipes={"lent": row[Cell.PIPES_LENT], "idle": row[Cell.PIPES_IDLE]},
            pipes_short=row[Cell.PIPES_SHORT],
            spliced_bytes=row[Cell.SPLICED],
            copied_bytes=row[Cell.COPIED],
            tickets_shared=not row[Cell.TICKETS_OWN] if self._accepts_tls() else None,
            loop_lag_seconds=distribution(LAG, row),
        )

    def _watched(self, slot: int) -> Watched | None:
        """The slot's process, if it is the one that the supervisor has there."""
        watched = self._workers.get(slot)
        if watched is not None and watched.process.pid == self._board.watch(slot)[WatchCell.PID]:
            return watched
        return None

    def _accepts_tls(self) -> bool:
        return any(row.forward is not None and row.forward.tls_accept is not None for row in self.rows)

    def _running(self, slot: int) -> bool:
        return bool(self._board.watch(slot)[WatchCell.SERVING])

    def _cpu(self, slot: int) -> dict[str, float]:
        """Processor seconds of the slot's workers, dead and living. The supervisor adds a dead
        one's a moment after its process has vanished: the higher figure stays meanwhile."""
        watch = self._board.watch(slot)
        dead = {"user": watch[WatchCell.CPU_USER] / 1e6, "system": watch[WatchCell.CPU_SYSTEM] / 1e6}
        if (watched := self._watched(slot)) is not None:
            try:
                times = watched.process.cpu_times()
                dead["user"] += times.user
                dead["system"] += times.system
            except psutil.Error:
                pass
        for mode, seconds in dead.items():
            dead[mode] = self._processor[slot, mode] = max(seconds, self._processor.get((slot, mode), 0.0))
        return dead

    def _load(self, slot: int) -> float | None:
        if len(self._samples) < 2:
            return None
        before, after = self._samples[-2], self._samples[-1]
        return round((after.processor[slot] - before.processor[slot]) / (after.when - before.when), 3)

    def _rates(self, number: int, last: int) -> Rates | None:
        """The rates of a row between the sample `last` (an index) and the one before."""
        if len(self._samples) < 2:
            return None
        before, after = self._samples[last - 1], self._samples[last]
        seconds = after.when - before.when
        return Rates(
            *(
                round(max(0, _figure(after, number, place) - _figure(before, number, place)) / seconds, 1)
                for place in range(len(RATED))
            )
        )

    def _history(self, number: int) -> History:
        rates = [self._rates(number, last) for last in range(1 - len(self._samples), 0)]
        known = [each for each in rates if each is not None]
        return History(
            [each.connections for each in known],
            [each.received_bytes for each in known],
            [each.sent_bytes for each in known],
        )

    def _total_rates(self, forwards: Sequence[ForwardStatus]) -> Rates | None:
        known = [each.rates for each in forwards if each.rates is not None]
        if len(self._samples) < 2:
            return None
        return Rates(
            round(sum(each.connections for each in known), 1),
            round(sum(each.received_bytes for each in known), 1),
            round(sum(each.sent_bytes for each in known), 1),
            round(sum(each.received_datagrams for each in known), 1),
            round(sum(each.sent_datagrams for each in known), 1),
        )


def distribution(histogram: Histogram, cells: Sequence[int]) -> Distribution:
    """A row's histogram, cumulative."""
    count = 0
    buckets = []
    for place, bound in enumerate(histogram.bounds, histogram.first):
        count += cells[place]
        buckets.append((bound, count))
    return Distribution(cells[histogram.sum] / 1e6, count + cells[histogram.sum - 1], buckets)


def datagrams(cells: Sequence[int]) -> Datagrams:
    """A row's figures of datagrams."""
    return Datagrams(
        received=cells[ForwardCell.DATAGRAMS_RECEIVED],
        sent=cells[ForwardCell.DATAGRAMS_SENT],
        dropped={reason: cells[cell] for reason, cell in DROPPED.items()},
    )


def encryption(forward: Forward) -> str:
    """Where a forward has TLS, in a word."""
    accept, connect = forward.tls_accept is not None, forward.tls_connect is not None
    return "both" if accept and connect else "accept" if accept else "connect" if connect else "off"


def handshakes(forward: Forward | None, cells: Sequence[int]) -> dict[str, Handshakes]:
    """A row's figures of TLS. A side that has none any more keeps its own: no counter ends."""
    wanted = (None, None) if forward is None else (forward.tls_accept, forward.tls_connect)
    found = {}
    for (side, first), tls in zip(SIDES.items(), wanted, strict=True):
        of = cells[first : first + SIDE]
        if tls is not None or any(of):
            found[side] = Handshakes(
                versions={version: of[cell] for version, cell in TLS_VERSIONS.items()},
                resumed=of[TlsCell.RESUMED],
                failures={reason: of[cell] for reason, cell in TLS_FAILURES.items()},
                cut=of[TlsCell.CUT],
            )
    return found


def certificates(forward: Forward) -> list[CertificateStatus]:
    """Those that a forward shows; a file named twice counts once."""
    accept, connect = forward.tls_accept, forward.tls_connect
    shown = [] if accept is None else [("client", each) for each in accept.certificates]
    if connect is not None and connect.certificate is not None:
        shown.append(("backend", connect.certificate))
    found = {(side, _path(each.file)): each.expires for side, each in shown}
    return [CertificateStatus(side, file, expires) for (side, file), expires in found.items()]


def proxy_failures(forward: Forward | None, cells: Sequence[int]) -> dict[str, int] | None:
    """A row's figures of the PROXY protocol; a forward that does without it by now keeps its own."""
    found = {reason: cells[cell] for reason, cell in PROXY_FAILURES.items()}
    wanted = forward is not None and forward.proxy_from
    return found if wanted or any(found.values()) else None


def _path(name: str) -> str:
    """JSON and labels are UTF-8, a path is bytes."""
    return os.fsencode(name).decode(errors="replace")


def _figure(sample: Sample, number: int, place: int) -> int:
    at = len(RATED) * number + place
    return sample.figures[at] if at < len(sample.figures) else 0


def _count(open_files: int | None) -> int | None:
    """The entries of a /proc/PID/fd. Linux 6.2 and newer gives their number as its size."""
    if open_files is None:
        return None
    try:
        return os.fstat(open_files).st_size or len(os.listdir(open_files))
    except OSError:  # ENOENT: the process has gone
        return None
