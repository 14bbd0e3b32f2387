"""The scoreboard and /proc as a Status: figures, rates, and processes that vanish."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest

from fastfwd.model import Backend, Certificate, Endpoint, Forward, Origin, Protocol, TlsAccept, TlsConnect
from fastfwd.observe.observer import LATE, OUTCOMES, Observer, distribution
from fastfwd.observe.rows import Row
from fastfwd.observe.scoreboard import (
    CELL,
    CLOSED,
    CONNECT_TIME,
    DURATION,
    FORWARD_ROW,
    LAG,
    Cell,
    ForwardCell,
    Scoreboard,
    State,
    SupervisorCell,
    TlsCell,
    TlsFailure,
    WatchCell,
)
from fastfwd.observe.status import (
    CertificateStatus,
    ForwardStatus,
    Handshakes,
    Rates,
    Upgrades,
    WorkerStatus,
)
from tests.deadline import until
from tests.unit.accepting import accepting

SLOTS = 2


def row(number: int, label: str, *, named: bool = False, gone: bool = False) -> Row:
    """A row as the supervisor tells of it."""
    listen = Endpoint("127.0.0.1", 2001, Protocol.TCP)
    forward = Forward(
        listen, (Backend(Endpoint("db.example.org", 5432, Protocol.TCP)),), Origin("file", 1), name=label
    )
    return Row(number, label, Protocol.TCP, None if gone else forward, named)


@pytest.fixture
def board() -> Scoreboard:
    """Two slots, room for ten forwards."""
    return Scoreboard(SLOTS, 10)


@pytest.fixture
def observer(board: Scoreboard) -> Iterator[Observer]:
    """It knows one forward, `a`, in row 0."""
    made = Observer(board)
    made.rows, made.file = [row(0, "a")], "/etc/rinetd.conf"
    yield made
    for slot in range(SLOTS):
        made.worker(slot, 0, None)  # closes what it holds


def forward(observer: Observer, label: str = "a", *, history: bool = False) -> ForwardStatus:
    """What is known of one forward now."""
    [found] = [each for each in observer.status(history=history).forwards if each.forward == label]
    return found


def worker(observer: Observer, slot: int = 0) -> WorkerStatus:
    """What is known of one slot now."""
    return observer.status().workers[slot]


# A worker's process.


class Process:
    """A process that waits; it has used 50 ms of processor time and has four files more than it needs."""

    def __init__(self) -> None:
        waits, self.leash = os.pipe()
        ready, started = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.leash)
                for _ in range(4):
                    os.dup(waits)
                while sum(os.times()[:2]) < 0.05:
                    pass
                os.write(started, b"x")
                os.read(waits, 1)
            finally:
                os._exit(0)
        os.close(waits)
        os.close(started)
        os.read(ready, 1)
        os.close(ready)

    def open_files(self) -> int:
        """A descriptor of its /proc/PID/fd."""
        return os.open(f"/proc/{self.pid}/fd", os.O_RDONLY | os.O_DIRECTORY)

    def end(self) -> resource.struct_rusage:
        """End it and reap it; what it has used."""
        os.close(self.leash)
        self.leash = -1
        _, _, usage = os.wait4(self.pid, 0)
        return usage


@pytest.fixture
def process() -> Iterator[Process]:
    """A process to be looked at."""
    made = Process()
    yield made
    if made.leash >= 0:
        made.end()


@pytest.fixture
def watched(board: Scoreboard, observer: Observer, process: Process) -> Process:
    """The worker of slot 0."""
    board.watch(0)[WatchCell.PID] = process.pid
    board.watch(0)[WatchCell.SERVING] = 1
    observer.worker(0, process.pid, process.open_files())
    return process


def test_memory_of_a_worker(observer: Observer, watched: Process) -> None:
    """Its resident memory, in bytes."""
    memory = worker(observer).memory_bytes
    assert memory is not None
    assert 1 << 20 < memory < 1 << 30


def test_limit_of_a_workers_files(observer: Observer, watched: Process) -> None:
    """How many descriptors it may have."""
    assert worker(observer).max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_open_files_of_a_worker(observer: Observer, watched: Process) -> None:
    """How many descriptors it has, however often one looks."""
    there = len(os.listdir(f"/proc/{watched.pid}/fd"))
    assert [worker(observer).open_fds for _ in range(3)] == [there] * 3


def test_open_files_that_could_not_be_opened(board: Scoreboard, observer: Observer, process: Process) -> None:
    """Without its /proc/PID/fd the count is missing, and nothing else."""
    board.watch(0)[WatchCell.PID] = process.pid
    observer.worker(0, process.pid, None)
    found = worker(observer)
    assert found.open_fds is None
    assert found.memory_bytes is not None


def test_a_vanished_worker_leaves_none(observer: Observer, watched: Process) -> None:
    """It has gone and the supervisor has not said so yet: what cannot be read is None."""
    watched.end()
    found = worker(observer)
    assert (found.open_fds, found.max_fds, found.memory_bytes) == (None, None, None)
    assert found.pid == watched.pid


def test_a_slot_without_a_worker(board: Scoreboard, observer: Observer, watched: Process) -> None:
    """The supervisor says that there is none: pid 0, and nothing is read of the process that was."""
    board.watch(0)[WatchCell.PID] = board.watch(0)[WatchCell.SERVING] = 0
    found = worker(observer)
    assert (found.pid, found.running) == (0, False)
    assert (found.open_fds, found.max_fds, found.memory_bytes) == (None, None, None)


def test_a_worker_that_nobody_told_of(observer: Observer) -> None:
    """Before the supervisor's first word everything of a process is None or 0."""
    found = worker(observer)
    assert (found.open_fds, found.max_fds, found.memory_bytes) == (None, None, None)
    assert found.cpu_seconds == {"user": 0.0, "system": 0.0}


def test_a_worker_that_died_before_it_was_looked_at(observer: Observer, process: Process) -> None:
    """A number that belongs to no process any more is no error."""
    process.end()
    observer.worker(0, process.pid, None)
    observer.sample()
    assert worker(observer).memory_bytes is None


def test_a_successors_files_take_the_place_of_its_predecessors(
    observer: Observer, watched: Process, process: Process
) -> None:
    """The old descriptor is closed; otherwise every death would cost one."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        observer.worker(0, watched.pid, watched.open_files())
    assert len(os.listdir("/proc/self/fd")) == before


# Processor time.


def used(found: WorkerStatus) -> float:
    """Seconds, of both kinds."""
    return sum(found.cpu_seconds.values())


def test_processor_time_of_a_worker(observer: Observer, watched: Process) -> None:
    """What its process has used so far."""
    assert 0.03 <= used(worker(observer)) < 10


def test_processor_time_does_not_fall_when_a_worker_vanishes(observer: Observer, watched: Process) -> None:
    """Until the supervisor has added what it used, the last figure stays."""
    before = worker(observer).cpu_seconds
    watched.end()
    assert worker(observer).cpu_seconds == before


def test_processor_time_of_a_dead_worker_is_counted_once(
    board: Scoreboard, observer: Observer, watched: Process
) -> None:
    """Once the supervisor has added it, it is the higher of what was seen and what was used."""
    before = worker(observer).cpu_seconds
    usage = watched.end()
    watch = board.watch(0)
    watch[WatchCell.CPU_USER] += int(usage.ru_utime * 1e6)
    watch[WatchCell.CPU_SYSTEM] += int(usage.ru_stime * 1e6)
    watch[WatchCell.PID] = 0
    assert worker(observer).cpu_seconds == {
        "user": max(before["user"], int(usage.ru_utime * 1e6) / 1e6),
        "system": max(before["system"], int(usage.ru_stime * 1e6) / 1e6),
    }


def test_processor_time_goes_on_from_a_predecessors(
    board: Scoreboard, observer: Observer, watched: Process
) -> None:
    """A slot's figure is that of all its workers.

    Both kinds together: the kernel shares out a short process's time by where the few
    ticks found it, and sometimes none found it in user code (kernel/sched/cputime.c).
    """
    board.watch(0)[WatchCell.CPU_USER] = 100 * 10**6
    assert 100.03 <= used(worker(observer)) < 110


def test_processor_time_of_a_number_that_has_passed_to_another_process(
    board: Scoreboard, observer: Observer, watched: Process
) -> None:
    """Once the slot has no worker, whatever runs under its old number is not the slot's."""
    board.watch(0)[WatchCell.CPU_USER] = board.watch(0)[WatchCell.CPU_SYSTEM] = 100 * 10**6
    board.watch(0)[WatchCell.PID] = 0
    assert worker(observer).cpu_seconds == {"user": 100, "system": 100}


def test_processor_time_of_the_slots_is_apart(observer: Observer, watched: Process) -> None:
    """The other slot has used nothing."""
    assert used(worker(observer, 1)) == 0


def test_load_needs_two_samples(observer: Observer, watched: Process) -> None:
    """A share of a processor is taken over an interval."""
    loads = []
    for _ in range(3):
        loads.append(worker(observer).cpu_load is not None)
        observer.sample()
    assert loads == [False, False, True]


def test_load_is_never_negative(observer: Observer, watched: Process) -> None:
    """Not even when the process vanishes between the samples."""
    observer.sample()
    watched.end()
    observer.sample()
    assert worker(observer).cpu_load == 0


# Rates.


def test_rates_need_two_samples(observer: Observer) -> None:
    """Before, nobody knows: None, of a forward and of all."""
    known = []
    for _ in range(3):
        shown = observer.status()
        known.append((shown.forwards[0].rates is not None, shown.totals.rates is not None))
        observer.sample()
    assert known == [(False, False), (False, False), (True, True)]


def test_rates_are_per_second(board: Scoreboard, observer: Observer) -> None:
    """What has come divided by the time between the samples, over all slots."""
    instants = [time.monotonic()]
    observer.sample()
    instants.append(time.monotonic())
    for slot, figure in enumerate((400, 600)):
        cells = board.forward(0, slot)
        cells[ForwardCell.ACCEPTED] += figure
        cells[ForwardCell.RECEIVED] += 1000 * figure
        cells[ForwardCell.SENT] += 10**6 * figure
        cells[ForwardCell.DATAGRAMS_RECEIVED] += 10 * figure
        cells[ForwardCell.DATAGRAMS_SENT] += 100 * figure
    instants.append(time.monotonic())
    observer.sample()
    instants.append(time.monotonic())
    shortest, longest = instants[2] - instants[1], instants[3] - instants[0]
    rates = forward(observer).rates
    assert rates is not None
    for rate, figure in (
        (rates.connections, 10**3),
        (rates.received_bytes, 10**6),
        (rates.sent_bytes, 10**9),
        (rates.received_datagrams, 10**4),
        (rates.sent_datagrams, 10**5),
    ):
        assert figure / longest - 0.1 <= rate <= figure / shortest + 0.1


def test_rates_are_of_the_last_interval(board: Scoreboard, observer: Observer) -> None:
    """What came before it does not count."""
    observer.sample()
    board.forward(0, 0)[ForwardCell.SENT] += 1000
    observer.sample()
    observer.sample()
    assert forward(observer).rates == Rates(0.0, 0.0, 0.0)


def test_rates_of_all_are_those_of_the_forwards(board: Scoreboard, observer: Observer) -> None:
    """Removed ones included: their last sessions still move bytes."""
    observer.rows = [row(0, "a"), row(1, "b"), row(2, "c", gone=True)]
    observer.sample()
    for number in range(3):
        board.forward(number, 1)[ForwardCell.SENT] += 10**number
    observer.sample()
    shown = observer.status()
    each = [found.rates.sent_bytes for found in shown.forwards if found.rates is not None]
    assert len(each) == 3
    assert shown.totals.rates is not None
    assert shown.totals.rates.sent_bytes == pytest.approx(sum(each), abs=0.1)


def test_rates_of_no_forwards_are_0(observer: Observer) -> None:
    """A configuration may be empty."""
    observer.rows = []
    observer.sample()
    observer.sample()
    assert observer.status().totals.rates == Rates(0.0, 0.0, 0.0)


def test_rates_of_a_forward_that_a_reload_brings(board: Scoreboard, observer: Observer) -> None:
    """Earlier samples do not know its row; it began at 0."""
    observer.sample()
    observer.rows = [row(0, "a"), row(5, "new")]
    board.forward(5, 0)[ForwardCell.ACCEPTED] = 3
    observer.sample()
    rates = forward(observer, "new").rates
    assert rates is not None
    assert rates.connections > 0


def test_a_recycled_row_gives_no_negative_rate(board: Scoreboard, observer: Observer) -> None:
    """Its figures fall to 0 with its new forward."""
    board.forward(0, 0)[ForwardCell.SENT] = 10**9
    observer.sample()
    board.clear(0)
    observer.rows = [row(0, "new")]
    board.forward(0, 0)[ForwardCell.SENT] = 5
    observer.sample()
    assert forward(observer, "new").rates == Rates(0.0, 0.0, 0.0)
    past = forward(observer, "new", history=True).history
    assert past is not None
    assert past.sent_bytes == [0.0]


# History.


def test_history_only_for_whom_asks(observer: Observer) -> None:
    """It is most of the answer."""
    assert forward(observer).history is None


@pytest.mark.parametrize(("samples", "length"), [(0, 0), (1, 0), (2, 1), (61, 60), (62, 60), (150, 60)])
def test_history_is_at_most_two_minutes(observer: Observer, samples: int, length: int) -> None:
    """One rate per interval, 60 of them."""
    for _ in range(samples):
        observer.sample()
    past = forward(observer, history=True).history
    assert past is not None
    assert [len(past.connections), len(past.received_bytes), len(past.sent_bytes)] == [length] * 3


def test_history_is_oldest_first(board: Scoreboard, observer: Observer) -> None:
    """Each interval has its own rate; what is too old has left."""
    busy = {1, 9, 10, 69}  # of 70 intervals, from 0
    observer.sample()
    for interval in range(70):
        if interval in busy:
            board.forward(0, 0)[ForwardCell.ACCEPTED] += 1000
        observer.sample()
    past = forward(observer, history=True).history
    assert past is not None
    assert [place for place, rate in enumerate(past.connections) if rate > 0] == [0, 59]


def test_the_last_of_the_history_is_the_rate(board: Scoreboard, observer: Observer) -> None:
    """Page and figures agree."""
    for figure in (1, 10, 100):
        board.forward(0, 0)[ForwardCell.RECEIVED] += figure
        observer.sample()
    found = forward(observer, history=True)
    assert found.rates is not None
    assert found.history is not None
    assert found.history.received_bytes[-1] == found.rates.received_bytes


# Forwards.


def test_figures_are_over_all_slots(board: Scoreboard, observer: Observer) -> None:
    """A forward's figure is the sum of its rows."""
    for slot in range(SLOTS):
        cells = board.forward(0, slot)
        for cell in ForwardCell:
            cells[cell] = 10**slot
        cells[ForwardCell.ACCEPTED] = 100
    found = forward(observer)
    assert (found.accepted, found.opened, found.received_bytes, found.sent_bytes) == (189, 11, 11, 11)
    assert found.connects == 11
    assert set(found.closed.values()) == set(found.denied.values()) == {11}
    assert set(found.connect_failures.values()) == {11}
    assert found.active == 200 - 13 * 11
    assert [(queue.slot, queue.length, queue.limit) for queue in found.queues] == [(0, 1, 1), (1, 10, 10)]


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (
            "closed",
            {
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
            },
        ),
        (
            "denied",
            {
                "not_allowed": ForwardCell.NOT_ALLOWED,
                "denied": ForwardCell.DENIED,
                "limit": ForwardCell.OVER_LIMIT,
                "client_limit": ForwardCell.OVER_CLIENT_LIMIT,
                "rate": ForwardCell.OVER_RATE,
                "client_rate": ForwardCell.OVER_CLIENT_RATE,
            },
        ),
        (
            "proxy_failures",
            {
                "malformed": ForwardCell.PROXY_MALFORMED,
                "stranger": ForwardCell.PROXY_STRANGER,
                "timeout": ForwardCell.PROXY_TIMEOUT,
                "closed": ForwardCell.PROXY_CLOSED,
            },
        ),
        (
            "connect_failures",
            {
                "refused": ForwardCell.REFUSED,
                "timeout": ForwardCell.TIMEOUT,
                "unreachable": ForwardCell.UNREACHABLE,
                "reset": ForwardCell.RESET,
                "resolve": ForwardCell.RESOLVE,
                "local": ForwardCell.LOCAL,
                "tls": ForwardCell.TLS,
            },
        ),
    ],
)
def test_every_word_has_its_cell(
    board: Scoreboard, observer: Observer, words: str, cells: dict[str, ForwardCell]
) -> None:
    """Words and cells are not mixed up, and none is missing."""
    board.forward(0, 0)[:] = memoryview(
        b"".join(each.to_bytes(8, "little") for each in range(FORWARD_ROW))
    ).cast("Q")
    board.forward(0, 0)[ForwardCell.ACCEPTED] = 10**6
    assert getattr(forward(observer), words) == {word: int(cell) for word, cell in cells.items()}


@pytest.mark.parametrize(("side", "first"), [("client", 72), ("backend", 84)])
def test_every_word_of_tls_has_its_cell(board: Scoreboard, observer: Observer, side: str, first: int) -> None:
    """So it is on both sides; each begins where workers count its handshakes."""
    board.forward(0, 0)[:] = memoryview(
        b"".join(each.to_bytes(8, "little") for each in range(FORWARD_ROW))
    ).cast("Q")
    assert forward(observer).handshakes[side] == Handshakes(
        versions={"TLSv1.2": first + TlsCell.VERSION_12, "TLSv1.3": first + TlsCell.VERSION_13},
        resumed=first + TlsCell.RESUMED,
        failures={each.name.lower(): first + each for each in TlsFailure},
        cut=first + TlsCell.CUT,
    )


CERTIFICATE = Certificate("web.pem", "web.key", b"chain", b"secret", ("example.org",), 1790000000)


def encrypted(accept: TlsAccept | None = None, connect: TlsConnect | None = None) -> Row:
    """The row of forward `a` with TLS."""
    plain = row(0, "a")
    assert plain.forward is not None
    return replace(plain, forward=replace(plain.forward, tls_accept=accept, tls_connect=connect))


@pytest.mark.parametrize(
    ("shown", "word", "sides"),
    [
        (encrypted(), "off", []),
        (encrypted(TlsAccept((CERTIFICATE,))), "accept", ["client"]),
        (encrypted(None, TlsConnect()), "connect", ["backend"]),
        (encrypted(TlsAccept((CERTIFICATE,)), TlsConnect()), "both", ["client", "backend"]),
    ],
    ids=["off", "accept", "connect", "both"],
)
def test_where_a_forward_has_tls(observer: Observer, shown: Row, word: str, sides: list[str]) -> None:
    """In a word, and with figures of those sides alone."""
    observer.rows = [shown]
    found = forward(observer)
    assert (found.tls, list(found.handshakes)) == (word, sides)


def test_handshakes_of_a_forward_that_is_gone(board: Scoreboard, observer: Observer) -> None:
    """No counter ends because a reload took its forward away."""
    board.forward(0, 1)[ForwardCell.HANDSHAKES + TlsFailure.NOT_TLS] = 3
    observer.rows = [row(0, "a", gone=True)]
    found = forward(observer)
    assert (found.tls, list(found.handshakes)) == ("off", ["client"])
    assert found.handshakes["client"].failures["not_tls"] == 3


def test_certificates_of_a_forward(observer: Observer) -> None:
    """Those that it shows to either side, each once, with their end; also one whose name is no text."""
    odd = replace(CERTIFICATE, file="old\udcff.pem", expires=7)
    accept = TlsAccept((CERTIFICATE, CERTIFICATE, odd))
    observer.rows = [encrypted(accept, TlsConnect(certificate=CERTIFICATE))]
    assert forward(observer).certificates == [
        CertificateStatus("client", "web.pem", 1790000000),
        CertificateStatus("client", "old\ufffd.pem", 7),
        CertificateStatus("backend", "web.pem", 1790000000),
    ]


def test_tickets_are_told_of_where_there_are_some(board: Scoreboard, observer: Observer) -> None:
    """Each worker says whether its own are good for the others; without TLS with clients there are none."""
    board.row(1)[Cell.TICKETS_OWN] = 1
    assert [each.tickets_shared for each in observer.status().workers] == [None, None]
    observer.rows = [encrypted(TlsAccept((CERTIFICATE,)))]
    assert [each.tickets_shared for each in observer.status().workers] == [True, False]


def test_every_end_has_a_word() -> None:
    """What makes a connection end is shown; otherwise closed and active would not add up."""
    assert sorted([*OUTCOMES.values(), ForwardCell.CLOSED_MOVED]) == list(CLOSED)


def test_active_of_a_busy_forward_is_never_negative(board: Scoreboard, observer: Observer) -> None:
    """Whatever a worker writes meanwhile."""
    with accepting(board, 0, 1):
        before = forward(observer).accepted
        lowest = min(forward(observer).active for _ in range(2000))
        until(lambda: forward(observer).accepted > before, what="the other process")
    assert lowest >= 0


def test_a_removed_forward_keeps_its_figures(board: Scoreboard, observer: Observer) -> None:
    """It is not configured, listens nowhere, has no queues, and goes on counting."""
    observer.rows = [row(3, "gone", gone=True)]
    board.forward(3, 1)[ForwardCell.ACCEPTED] = 7
    board.forward(3, 1)[ForwardCell.QUEUE_LIMIT] = 4096
    found = forward(observer, "gone")
    assert (found.configured, found.listen, found.target, found.queues) == (False, "", "", [])
    assert (found.accepted, found.active) == (7, 7)


def test_a_forward_shows_where_it_leads(observer: Observer) -> None:
    """As in the messages."""
    found = forward(observer)
    assert (found.proto, found.listen, found.target, found.tls, found.configured) == (
        "tcp",
        "127.0.0.1:2001/tcp",
        "db.example.org:5432/tcp",
        "off",
        True,
    )


def test_a_numeric_target_was_never_looked_up(observer: Observer) -> None:
    """None, not 0."""
    assert forward(observer).dns_last_success is None


def test_a_name_that_was_never_found(observer: Observer) -> None:
    """0: an alert can be made of it."""
    observer.rows = [row(0, "a", named=True)]
    assert forward(observer).dns_last_success == 0


def test_a_name_that_was_found(board: Scoreboard, observer: Observer) -> None:
    """Seconds since the epoch, from slot 0's row."""
    observer.rows = [row(0, "a", named=True)]
    board.forward(0, 0)[ForwardCell.RESOLVED] = 1_789_990_000_500_000_000
    assert forward(observer).dns_last_success == 1_789_990_000.5


def test_totals_are_those_of_the_forwards(board: Scoreboard, observer: Observer) -> None:
    """Removed ones included."""
    observer.rows = [row(0, "a"), row(1, "b"), row(2, "c", gone=True)]
    for number in range(3):
        cells = board.forward(number, number % SLOTS)
        cells[ForwardCell.ACCEPTED] = 10 * 10**number
        cells[ForwardCell.CLOSED_LOCAL] = 2 * 10**number
        cells[ForwardCell.CLOSED_DIED] = 1 * 10**number
        cells[ForwardCell.NOT_ALLOWED] = cells[ForwardCell.DENIED] = 2 * 10**number
        cells[ForwardCell.RECEIVED] = 5 * 10**number
        cells[ForwardCell.SENT] = 6 * 10**number
    totals = observer.status().totals
    assert (totals.accepted, totals.active, totals.closed, totals.denied) == (1110, 777, 333, 444)
    assert (totals.received_bytes, totals.sent_bytes) == (555, 666)


@pytest.mark.parametrize("histogram", [LAG, DURATION, CONNECT_TIME], ids=["lag", "duration", "connect time"])
def test_a_distribution_is_cumulative(histogram: object) -> None:
    """How many up to each bound, all of them, and their sum in seconds."""
    assert isinstance(histogram, type(LAG))
    cells = memoryview(bytearray(FORWARD_ROW * CELL)).cast("Q")
    values = [bound for bound in histogram.bounds for _ in range(2)] + [histogram.bounds[-1] + 1]
    for each in values:
        histogram.observe(cells, each)
    found = distribution(histogram, cells.tolist())
    assert found.buckets == [(bound, 2 * place) for place, bound in enumerate(histogram.bounds, 1)]
    assert found.count == len(values)
    assert found.sum == pytest.approx(sum(values), abs=1e-6 * len(values))


def test_histograms_of_a_forward_are_its_own(board: Scoreboard, observer: Observer) -> None:
    """Durations and dials of both slots, not mixed up."""
    for slot in range(SLOTS):
        DURATION.observe(board.forward(0, slot), 5)
        CONNECT_TIME.observe(board.forward(0, slot), 0.25)
    found = forward(observer)
    assert (found.duration_seconds.sum, found.duration_seconds.count) == (10, 2)
    assert (found.connect_seconds.sum, found.connect_seconds.count) == (0.5, 2)


# Workers and the supervisor.


def test_a_heartbeat_is_a_time_of_day(board: Scoreboard, observer: Observer) -> None:
    """It is written as monotonic time and shown since the epoch."""
    before = time.time()
    board.row(1)[Cell.HEARTBEAT] = time.monotonic_ns()
    shown = worker(observer, 1).heartbeat
    assert before - 0.1 <= shown <= time.time() + 0.1


def test_an_old_heartbeat_is_old(board: Scoreboard, observer: Observer) -> None:
    """Its age is what it was."""
    board.row(1)[Cell.HEARTBEAT] = time.monotonic_ns() - 3 * 10**9
    shown = worker(observer, 1).heartbeat
    assert time.time() - 3.1 - 10 <= shown <= time.time() - 2.9


def test_a_workers_figures(board: Scoreboard, observer: Observer) -> None:
    """Each cell in its place and unit."""
    cells, watch = board.row(1), board.watch(1)
    for cell, figure in {
        Cell.SESSIONS: 2,
        Cell.ACCEPT_PAUSED: 250_000_000,
        Cell.PIPES_LENT: 3,
        Cell.PIPES_IDLE: 4,
        Cell.PIPES_SHORT: 5,
        Cell.COPIED: 6,
        Cell.SPLICED: 7,
    }.items():
        cells[cell] = figure
    for seen, figure in {
        WatchCell.BORN: 1_789_990_000_500_000_000,
        WatchCell.EXITED: 8,
        WatchCell.SIGNALLED: 9,
        WatchCell.UNRESPONSIVE: 10,
    }.items():
        watch[seen] = figure
    LAG.observe(cells, 0.5)
    found = worker(observer, 1)
    assert (found.slot, found.sessions, found.accept_paused_seconds) == (1, 2, 0.25)
    assert (found.pipes, found.pipes_short) == ({"lent": 3, "idle": 4}, 5)
    assert (found.copied_bytes, found.spliced_bytes) == (6, 7)
    assert found.started == 1_789_990_000.5
    assert found.restarts == {"exit": 8, "signal": 9, "watchdog": 10}
    assert (found.loop_lag_seconds.count, found.loop_lag_seconds.sum) == (1, 0.5)


def test_figures_of_the_whole_program(board: Scoreboard, observer: Observer) -> None:
    """The supervisor's row, and sums over the slots."""
    for cell, figure in {
        SupervisorCell.STARTED: 1_789_990_000_500_000_000,
        SupervisorCell.STATE: State.DRAINING,
        SupervisorCell.RELOADS: 3,
        SupervisorCell.RELOAD_FAILURES: 1,
        SupervisorCell.RELOAD_OK: 1,
        SupervisorCell.RELOADED: 1_789_990_001_500_000_000,
        SupervisorCell.LOOKUPS: 4,
        SupervisorCell.LOOKUP_FAILURES: 2,
        SupervisorCell.UPGRADES: 5,
        SupervisorCell.UPGRADE_FAILURES: 6,
        SupervisorCell.PREVIOUS_SESSIONS: 7,
    }.items():
        board.supervisor[cell] = figure
    for slot in range(SLOTS):
        for place, counter in enumerate(Cell):
            board.row(slot)[counter] = place * 10**slot
    board.watch(1)[WatchCell.SERVING] = 1
    shown = observer.status()
    assert (shown.started, shown.state) == (1_789_990_000.5, "draining")
    assert (shown.workers_configured, shown.workers_running) == (2, 1)
    assert shown.dns == {"lookups": 4, "failures": 2}
    assert shown.log == {"lines": 22, "dropped": 33}
    assert shown.accept_errors == {"emfile": 44, "enfile": 55, "enobufs": 66, "aborted": 77, "other": 88}
    assert shown.upgrades == Upgrades(done=5, failures=6, previous_sessions=7)
    config = shown.config
    assert (config.file, config.last_reload_successful) == ("/etc/rinetd.conf", True)
    assert (config.last_reload, config.reloads, config.reload_failures) == (1_789_990_001.5, 3, 1)


@pytest.mark.parametrize("state", State)
def test_state_is_shown_by_its_name(board: Scoreboard, observer: Observer, state: State) -> None:
    """starting, serving, draining, replaced."""
    board.supervisor[SupervisorCell.STATE] = state
    assert observer.state() is state
    assert observer.status().state == state.name.lower()


def test_serving_counts_slots(board: Scoreboard, observer: Observer) -> None:
    """Those whose worker has said so."""
    counted = [observer.serving()]
    for slot in range(SLOTS):
        board.watch(slot)[WatchCell.SERVING] = 1
        counted.append(observer.serving())
    assert counted == [0, 1, 2]


OLD = int((LATE + 1) * 1e9)


@pytest.mark.parametrize(
    ("supervisor", "workers", "serving", "beating"),
    [
        (0, (0, 0), (1, 1), True),
        (0, (OLD, 0), (1, 1), True),
        (0, (0, OLD), (1, 0), True),
        (0, (OLD, OLD), (1, 1), False),
        (0, (0, 0), (0, 0), False),
        (0, (OLD, 0), (1, 0), False),
        (OLD, (0, 0), (1, 1), False),
    ],
    ids=["all", "one worker", "one slot", "no worker", "none serves", "only a dead one", "no supervisor"],
)
def test_beating(
    board: Scoreboard,
    observer: Observer,
    supervisor: int,
    workers: tuple[int, int],
    serving: tuple[int, int],
    beating: bool,
) -> None:
    """The supervisor and at least one worker that serves; figures are the heartbeats' ages."""
    now = time.monotonic_ns()
    board.supervisor[SupervisorCell.HEARTBEAT] = now - supervisor
    for slot in range(SLOTS):
        board.row(slot)[Cell.HEARTBEAT] = now - workers[slot]
        board.watch(slot)[WatchCell.SERVING] = serving[slot]
    assert observer.beating() == beating


# As JSON.


def test_the_status_as_json_has_the_documented_fields(observer: Observer) -> None:
    """Scripts and the page read them by name."""
    shown = orjson.loads(orjson.dumps(observer.status()))
    assert list(shown) == [
        *("version", "python", "pid", "time", "started", "state", "config", "upgrades"),
        *("workers_configured", "workers_running", "log", "dns", "accept_errors", "interval", "totals"),
        *("forwards", "workers"),
    ]
    assert list(shown["config"]) == [
        *("file", "last_reload_successful", "last_reload", "reloads", "reload_failures"),
    ]
    assert list(shown["upgrades"]) == ["done", "failures", "previous_sessions"]
    assert list(shown["totals"]) == [
        *("accepted", "active", "denied", "closed", "received_bytes", "sent_bytes", "rates"),
    ]
    assert list(shown["forwards"][0]) == [
        *("forward", "proto", "listen", "target", "tls", "configured", "accepted", "opened", "active"),
        *("denied", "closed", "received_bytes", "sent_bytes", "connects", "connect_failures"),
        *("connect_seconds", "duration_seconds", "dns_last_success", "queues"),
        *("balance", "backends", "datagrams", "handshakes", "certificates", "proxy_failures"),
        *("rates", "history"),
    ]
    assert list(shown["workers"][0]) == [
        *("slot", "pid", "running", "started", "heartbeat", "sessions", "open_fds", "max_fds"),
        *("memory_bytes", "cpu_seconds", "cpu_load", "restarts", "accept_paused_seconds", "pipes"),
        *("pipes_short", "spliced_bytes", "copied_bytes", "tickets_shared", "loop_lag_seconds"),
    ]


def test_a_distribution_as_json_is_pairs(observer: Observer) -> None:
    """[bound, count], without the last one."""
    shown = orjson.loads(orjson.dumps(observer.status()))
    buckets = shown["forwards"][0]["duration_seconds"]["buckets"]
    assert buckets == [[bound, 0] for bound in DURATION.bounds]
