"""The supervisor: start, then a loop over signals, children, names and a clock.

cli calls `run`. It holds what must outlive a worker: the configuration, every listening
socket, the log, the pid file, the scoreboard. It never reads a byte from the network,
never waits for anything but this loop's poll, and believes nothing a child says.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Final

from fastfwd.channel import Message
from fastfwd.config.check import check
from fastfwd.config.load import load
from fastfwd.config.resolve import is_local, numeric
from fastfwd.config.wording import counted
from fastfwd.model import Config, ConfigError, Problem
from fastfwd.observe.eventlog import open_log
from fastfwd.observe.rows import SPARE, backend_keys, key, needed, rows
from fastfwd.observe.scoreboard import Cell, Scoreboard, State
from fastfwd.supervisor import host
from fastfwd.supervisor.books import Books
from fastfwd.supervisor.children import EXPORTER, RESOLVER, Child, Children
from fastfwd.supervisor.handover import Handover, HandoverError
from fastfwd.supervisor.handover import read as read_handover
from fastfwd.supervisor.inherited import adopted, from_manager
from fastfwd.supervisor.listeners import Listeners, places
from fastfwd.supervisor.metrics import MetricsPort
from fastfwd.supervisor.names import Names, bound, dialled, periods, unbound, unreachable
from fastfwd.supervisor.notify import Notify
from fastfwd.supervisor.pidfile import PidFile, PidFileError
from fastfwd.supervisor.predecessor import Predecessor
from fastfwd.supervisor.reload import Phase, Reload
from fastfwd.supervisor.setup import Setup
from fastfwd.supervisor.signals import Signals
from fastfwd.supervisor.statusfile import StatusFile
from fastfwd.supervisor.upgrade import Phase as UpgradePhase
from fastfwd.supervisor.upgrade import Upgrade
from fastfwd.worker.limits import Census
from fastfwd.worker.main import CANNOT_START, Entry, Table
from fastfwd.worker.privileges import account

DEFAULT_PIDFILE: Final = "/var/run/rinetd.pid"
"""Where rinetd as a daemon leaves its number, and operators look for it."""

TICK: Final = 1.0
"""Seconds between two looks at the heartbeats."""

MISSED: Final = 5
"""Ticks without a heartbeat after which a worker is killed. Ticks, not seconds: after the
whole machine has stood still everybody's heartbeat is old."""

BEGINNING: Final = 60
"""Ticks that the exporter has for its libraries, which is long for a machine that is busy."""

SHOWN: Final = 20
"""Messages of one child in a tick that are written; one that never stops must not fill the log."""

STOP_LIMIT: Final = 5.0
"""Seconds the workers have to write their last lines before they are killed."""

BIND_NAME_LIMIT: Final = 5.0
BACKEND_NAME_LIMIT: Final = 1.0
"""Seconds a start waits for names. Backends can be resolved later: a dead name service
must not keep the firewall closed."""

log = logging.getLogger("fastfwd")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line: the configuration `file` (absolute), the `directory` of the start,
    whether to stay in the `foreground`, whether bad lines are skipped (`lenient`)."""

    file: str
    directory: str
    foreground: bool = False
    lenient: bool = False


class Supervisor:
    """State of the parent process. `start` raises, `serve` returns an exit status."""

    def __init__(self, options: Options, handover: Handover | None = None) -> None:
        """With a `handover`, this is the new program of a hot upgrade. Raises ConfigError."""
        self.options = options
        config = load(options.file, lenient=options.lenient, directory=options.directory)
        slots = config.workers or host.usable_processors()
        self.scoreboard = Scoreboard(slots, needed(config.forwards) + SPARE)
        self.census = Census(slots)
        self.secret = os.urandom(32) if handover is None else bytes.fromhex(handover.secret)
        self.books = Books(self.scoreboard)
        self.setup = Setup(config, [], self.books.assign(config, {}), 1)
        self._inherited = from_manager() if handover is None else adopted(handover.listeners, handover.shared)
        self.listeners = Listeners(slots, self._inherited)
        self.metrics = MetricsPort(self._inherited)
        self.statusfile = StatusFile()
        self.names = Names(self._ask_resolver)
        self.signals = Signals()
        self.notify = Notify()
        self.children = Children(account(config), self._abandon, self._stranger, self.scoreboard, self.census)
        self.predecessor = None if handover is None else Predecessor(handover)
        self._upgrade: Upgrade | None = None
        self._upgrade_wanted = False
        self._handed_over = False
        self._not_taken: list[str] = []
        """Keys of inherited sockets that no forward wanted."""
        self.pidfile: PidFile | None = None
        self._last_generation = self.setup.generation
        self._reload: Reload | None = None
        self._reload_wanted = False
        self._started = False
        self._draining = False
        self._stop_by: float | None = None
        self._next_tick = 0.0
        self._dropped = 0
        self._told = 0
        self._ready: Callable[[], None] | None = None
        self._status = 0

    @property
    def config(self) -> Config:
        """The configuration that serves."""
        return self.setup.config

    # -- start

    def start(self, ready: Callable[[], None]) -> None:
        """Everything up to the forks. `ready` is called once every worker serves. Raises
        ConfigError with what is wrong; nothing is left open then."""
        self._ready = ready
        host.raise_file_limit()
        for warning in self.config.warnings:
            log.warning("%s", warning)
        try:
            self._take_pidfile()
            now = time.monotonic()
            self.ask(self.config)
            self._await_names(bound(self.config), now + BIND_NAME_LIMIT)
            if problems := unbound(self.config, self.names):
                raise ConfigError(problems)
            self.setup.places = places(self.config, self.names.addresses)
            self.setup.open(self.listeners, self.metrics)
            self._hold(self.setup)
            self._not_taken, left = self._inherited.close()
            for place in left:
                log.warning("no forward listens on %s: the service manager's socket is not used", place)
            self._await_names(dialled(self.config), now + BACKEND_NAME_LIMIT)
            problems = unreachable(self.config, self.names)
            problems += check(self.config, addresses=self.names.addresses, is_local=is_local)
            if problems:
                raise ConfigError(problems)
        except ConfigError:
            self._close()
            raise
        if self.config.logfile is not None:
            try:
                self.setup.log_descriptor = open_log(self.config.logfile)
            except OSError as error:
                log.warning(
                    "%s: cannot open the log %s: %s; going on without a log",
                    self.config.origin("logfile"),
                    self.config.logfile,
                    error.strerror,
                )
        self.books.started()
        self._note_resolved()
        for slot in range(self.scoreboard.slots):
            self._replace(slot, now)
        if self.predecessor is None and self._wanted(EXPORTER):
            self._replace(EXPORTER, now)
        self._started = True

    def ask(self, config: Config) -> None:
        """Have every host of `config` looked up; what is numeric is known at once."""
        self.names.want(periods(config))

    def _ask_resolver(self, name: str) -> None:
        child = self.children.living.get(RESOLVER)
        if child is None:
            try:
                child = self.children.fork(RESOLVER, time.monotonic())
            except OSError as error:
                log.error("cannot start the resolver: %s; trying again", error.strerror)
                return  # its successor asks every open question (see _replace)
        child.channel.send({"op": "lookup", "host": name})

    def _await_names(self, hosts: set[str], deadline: float) -> None:
        """The one place that waits, at start: nothing is being served yet."""
        while self.names.waiting(hosts) and (left := deadline - time.monotonic()) > 0:
            self._turn(left)

    def _take_pidfile(self) -> None:
        path = self.config.pidfile
        if path is None:
            if self.options.foreground:
                return
            path = DEFAULT_PIDFILE
        locked = None
        if self.predecessor is not None:
            if self.predecessor.sole:
                locked = self.predecessor.pidfile(path)
            elif self.predecessor.has_pidfile(path):
                return  # until it is sure that we serve
        try:
            self.pidfile = PidFile(path, locked)
        except PidFileError as error:
            raise ConfigError(
                [Problem(self.config.origin("pidlogfile"), f"pid file {path}: {error}")]
            ) from None
        except OSError as error:
            log.warning("cannot write the pid file %s: %s; going on without it", path, error.strerror)

    # -- the loop

    def serve(self) -> int:
        """Run until stopped or drained. Returns the exit status."""
        self._next_tick = time.monotonic() + TICK
        while self._stop_by is None or self.children.living or self._predecessor_lives():
            self._turn(self._patience())
            if self._draining and not self._needed():
                self.stop()
        self._close()
        self.signals.ignore()
        log.info("%s: process %d", "ended after its upgrade" if self._handed_over else "stopped", os.getpid())
        return self._status

    def _needed(self) -> bool:
        """Whether a process that accepts nothing more still has something to do."""
        answering = self._handed_over and EXPORTER in self.children.living
        return bool(self.children.workers) or answering or self._predecessor_lives()

    def _predecessor_lives(self) -> bool:
        """Whether a program that we have replaced has not ended yet."""
        return self.predecessor is not None and self.predecessor.sole and not self.predecessor.gone

    def _patience(self) -> float:
        if (self._reload_wanted or self._upgrade_wanted) and not self._changing():
            return 0.0
        due = self.children.next_due()
        until = self._next_tick if due is None else min(due, self._next_tick)
        return max(0.0, until - time.monotonic())

    def _turn(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for something to happen, and deal with it."""
        poll = select.poll()
        poll.register(self.signals.fileno(), select.POLLIN)
        heard: dict[int, Child] = {}
        for child in self.children.living.values():
            heard[child.channel.fileno()] = child
            poll.register(
                child.channel.fileno(), select.POLLIN | (select.POLLOUT if child.channel.backlog else 0)
            )
        if self.predecessor is not None and not self.predecessor.gone:
            poll.register(self.predecessor.fileno(), select.POLLIN)
        for descriptor in () if self._upgrade is None else self._upgrade.filenos:
            poll.register(descriptor, select.POLLIN)
        for descriptor, mask in poll.poll(timeout * 1000):
            if (speaker := heard.get(descriptor)) is None:
                continue
            if mask & select.POLLOUT:
                speaker.channel.flush()
            for message in self.children.hear(speaker):
                self._hear(speaker, message)
        now = time.monotonic()
        for number in self.signals.take():
            self._signal(number, now)
        for slot in self.children.due(now):
            self._replace(slot, now)
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._tick(now)
        if self._reload_wanted and self._started and not self._changing():
            self._reload_wanted = False
            self.books.reload_begun()
            self.notify.reloading()
            self._reload = Reload(self, now)
        if self._reload is not None:
            self._reload.step(now)
            self._note_reload()
        if self._upgrade_wanted and self._ready is None and not self._changing():
            self._upgrade_wanted = False
            self._upgrade = Upgrade(self, now)
        if self._upgrade is not None:
            self._upgrade.step(now)
            self._note_upgrade()
        if self.predecessor is not None:
            self._hear_predecessor(self.predecessor)

    def _signal(self, number: int, now: float) -> None:
        if number == signal.SIGCHLD:
            self._reap(now)
        elif number == signal.SIGHUP:
            if self._draining or self._stop_by is not None:
                log.warning("draining or stopping: reopening the log, but not reloading")
                self.reopen_log()
            else:
                self._reload_wanted = True
            if self.predecessor is not None:
                self.predecessor.reopen()
        elif number == signal.SIGUSR1:
            self._drain()
        elif number == signal.SIGUSR2:
            if self._draining or self._stop_by is not None:
                log.warning("draining or stopping: not upgrading")
            else:
                self._upgrade_wanted = True
        else:
            if self._stop_by is not None:
                log.warning("stopping at once")
                self._stop_by = now
            self.stop()

    def _hear(self, child: Child, message: Message) -> None:
        """One message of a child. Anything unexpected is ignored, but said."""
        try:
            operation = text(message["op"])
            if operation == "prepared" and child.slot >= 0:
                error = message["error"]
                self._prepared(child, int(message["generation"]), None if error is None else text(error))
            elif operation == "serving" and child.slot >= 0:
                self._serving(child, int(message["generation"]))
            elif operation == "say":
                self._write(child, int(message["level"]), text(message["text"]))
            elif operation == "suspect" and child.slot >= 0:
                self.names.suspect(message["host"], time.monotonic())
            elif operation == "written" and child.slot == EXPORTER:
                self.statusfile.written()
                self._lend_statusfile()
            elif operation == "beat" and child.slot == EXPORTER:
                child.beat += 1
                child.missed = 0
            elif operation in ("found", "failed") and child.slot == RESOLVER:
                name = self.names.answer(message, time.monotonic())
                self.books.looked_up(failed=operation == "failed")
                self._note_resolved()
                if name is not None:
                    self._moved(name)
            else:
                raise ValueError(f"unknown operation {operation!r}")
        except (KeyError, TypeError, ValueError) as error:
            words = f"{child.title} sent something unexpected: {host.printable(str(error))}"
            self._write(child, logging.ERROR, words)

    def _write(self, child: Child, level: int, words: str) -> None:
        """Write what a child says, or `words` about what it has said, as long as it is not too much."""
        child.said += 1
        if child.said <= SHOWN:
            log.log(level if level in host.LEVELS else logging.ERROR, "%s", words)

    def _count_unwritten(self, child: Child) -> None:
        if child.said > SHOWN:
            log.warning("%s: %d more messages are not shown", child.title, child.said - SHOWN)
        child.said = 0

    def _tick(self, now: float) -> None:
        self.books.beat()
        self.notify.beat()
        self._tell_sessions()
        for child in self.children.living.values():
            self._count_unwritten(child)
            if child.slot == RESOLVER:
                continue
            beat, patience = child.beat, MISSED
            if child.slot != EXPORTER:
                beat = self.scoreboard.read(child.slot, Cell.HEARTBEAT)
            elif not beat:  # it has no row to write to, and says "beat" once it has begun
                patience = BEGINNING
            child.missed = 0 if beat != child.beat else child.missed + 1
            child.beat = beat
            if child.missed >= patience:
                log.error(
                    "%s has not come round its loop for %.0f s; killing it", child.title, patience * TICK
                )
                self.children.kill(child)
                child.unresponsive = True
                child.missed = 0
        if EXPORTER in self.children.living:
            self.books.queues(self.setup.places, self.setup.numbers, self.listeners)
        dropped = self.scoreboard.total(Cell.LOG_DROPPED)
        if dropped != self._dropped:
            log.warning("the log %s loses lines: %d so far", self.config.logfile, dropped)
            self._dropped = dropped
        self.names.refresh(now + TICK)  # rather now than at the next look, when it is too late
        if self._stop_by is not None and now >= self._stop_by:
            for child in self.children.living.values():
                self.children.kill(child)
            if self.predecessor is not None and now >= self._stop_by + TICK:
                self.predecessor.gone = True  # it has a clock of its own for that

    # -- children

    def _fork_worker(self, slot: int) -> None:
        child = self.children.fork(slot, time.monotonic())
        child.beat = self.scoreboard.read(slot, Cell.HEARTBEAT)
        self.books.born(child)
        self.send_table(child, self.setup)
        child.channel.send({"op": "commit"})
        child.keys = frozenset(place.key for place in self.setup.places)
        if self._reload is not None:
            self._reload.enlist(child)
        self._introduce(child)

    def send_table(self, child: Child, setup: Setup) -> None:
        """Have the worker `child` prepare `setup`."""
        config = setup.config
        descriptors = [] if setup.log_descriptor is None else [setup.log_descriptor]
        entries = []
        for place in setup.places:
            fresh = place.key not in child.keys
            behind = tuple(setup.numbers[each] for each in backend_keys(place.forward))
            entries.append(Entry(place.key, place.forward, setup.numbers[key(place.forward)], behind, fresh))
            if fresh:
                group = setup.opened.get(place.key) or self.listeners.held[place.key]
                descriptors.append(group[child.slot].fileno())
        table = Table(
            setup.generation,
            tuple(entries),
            config.rules,
            {name: self.names.addresses[name] for name in dialled(config)},
            setup.log_descriptor is not None,
            config.logformat,
            config.logduration,
            host.ephemeral_ports(),
            config.limits,
            config.dns_family,
            config.dns_expand,
            self.secret,
        )
        child.channel.send({"op": "prepare", "table": table}, descriptors)

    def _prepared(self, child: Child, generation: int, error: str | None) -> None:
        if self._reload is not None:
            self._reload.prepared(child, generation, error)
        if error is not None and generation == self.setup.generation:
            log.error("%s cannot serve: %s; killing it", child.title, error)
            self.children.kill(child)

    def _serving(self, child: Child, generation: int) -> None:
        child.serving = True
        self.books.serving(child)
        if self._reload is not None:
            self._reload.serving(child, generation)
        serving = [worker for worker in self.children.workers if worker.serving]
        if self._ready is not None and len(serving) == self.scoreboard.slots:
            if self.predecessor is None or self.predecessor.sole:
                self._begin(self._ready)
            elif not self.predecessor.serving(self._not_taken, self.scoreboard.slots):
                log.critical("cannot tell process %d that this one serves; giving up", os.getppid())
                self._give_up()

    def _give_up(self) -> None:
        """The start has failed."""
        self._status = 1
        if self.predecessor is None or self.predecessor.sole:
            self.stop()
        else:
            # Clients may be with workers that did start: the other program goes on, they need not notice.
            self.predecessor.leave()
            self._drain()

    def _begin(self, ready: Callable[[], None]) -> None:
        """All workers serve, and nobody else does what only one can do."""
        self._ready = None
        if self.predecessor is not None:
            self.listeners.own()
            self.metrics.own()
            if self.pidfile is None:
                try:
                    self._take_pidfile()
                except ConfigError as error:
                    log.error("%s", error.problems[0])
            self.predecessor.pidfile("")
            if self._wanted(EXPORTER):
                # Not before: /readyz must not say for a moment that nobody serves.
                self._replace(EXPORTER, time.monotonic())
        self.books.state(State.SERVING)
        ready()
        self.notify.ready(self._serves())
        workers = counted(self.scoreboard.slots, "worker")
        log.info("ready: %s, %s, process %d", self._forwards(), workers, os.getpid())

    def _forwards(self) -> str:
        return counted(len(self.config.forwards), "forward")

    def _serves(self) -> str:
        """What the service manager shows."""
        sessions = counted(self.scoreboard.total(Cell.SESSIONS), "session")
        return f"{'draining' if self._draining else 'serving'}: {self._forwards()}, {sessions}"

    def _reap(self, now: float) -> None:
        for death in self.children.reap(now):
            child, words, code = death.child, death.words, death.code
            for message in self.children.hear(child):  # its last words
                self._hear(child, message)
            self._count_unwritten(child)
            child.close()
            if self._reload is not None:
                self._reload.forget(child)
            wanted = self._wanted(child.slot)
            planned = self._stop_by is not None or (code == 0 and not wanted)
            if child.slot >= 0:
                self.books.died(death, self.setup.numbers.values(), planned=planned)
                self.census.parts[child.slot].clear()
            if not wanted:
                self.children.forget(child.slot)
            if planned:
                continue
            if self._ready is not None and code == CANNOT_START:
                log.critical("%s cannot start; giving up", child.title)
                self.children.forget(child.slot)
                self._give_up()
                continue
            what_next = "starting another" if wanted else "not replaced"
            log.error("%s (process %d) %s; %s", child.title, child.pid, words, what_next)

    def _wanted(self, slot: int) -> bool:
        """Whether a dead child of `slot` is to have a successor."""
        if self._stop_by is not None:
            return False
        if slot == EXPORTER and self._handed_over:
            return False
        if slot == EXPORTER:
            return self.metrics.sock is not None or bool(self.config.statusfile or self.config.stats_interval)
        return not self._draining

    def _replace(self, slot: int, now: float) -> None:
        if not self._wanted(slot):
            self.children.forget(slot)
            return
        try:
            if slot == RESOLVER:
                self.children.fork(RESOLVER, now)
                self.names.ask_again()
            elif slot == EXPORTER:
                self._fork_exporter()
            else:
                self._fork_worker(slot)
        except OSError as error:
            log.error("cannot fork: %s; trying again", error.strerror)

    # -- the exporter

    def _fork_exporter(self) -> None:
        self.children.fork(EXPORTER, time.monotonic())
        self._show_port()
        self._show_rows()
        self._ask_for_reports()
        for worker in self.children.workers:
            self._introduce(worker)

    def _tell_exporter(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        if (exporter := self.children.living.get(EXPORTER)) is not None:
            exporter.channel.send(message, descriptors)

    def _show_port(self) -> None:
        """Tell the exporter where to listen."""
        if self.metrics.sock is not None:
            message = {"op": "listen", "page": self.metrics.page}
            self._tell_exporter(message, [self.metrics.sock.fileno()])

    def _show_rows(self) -> None:
        """Tell the exporter whose the scoreboard's rows are."""
        shown = rows(
            self.setup.numbers,
            self.config.forwards,
            lambda forward: any(numeric(each.endpoint.host) is None for each in forward.backends),
        )
        self._tell_exporter({"op": "rows", "rows": shown, "file": self.options.file})

    def _ask_for_reports(self) -> None:
        """Tell the exporter which reports are wanted, and lend it the file for the first one."""
        config = self.config
        intervals = {"file": config.status_interval, "line": config.stats_interval}
        self._tell_exporter({"op": "report", "text": config.status_text, **intervals})
        self.statusfile.commit(config)
        self._lend_statusfile()

    def _lend_statusfile(self) -> None:
        descriptor = self.statusfile.open()
        self._tell_exporter({"op": "file"}, [] if descriptor is None else [descriptor])
        if descriptor is not None:
            os.close(descriptor)

    def _introduce(self, worker: Child) -> None:
        """Tell the exporter of a worker, and let it count the files that this one has open."""
        descriptors = [] if worker.open_files is None else [worker.open_files]
        self._tell_exporter({"op": "worker", "slot": worker.slot, "pid": worker.pid}, descriptors)

    def _commit_exporter(self) -> None:
        """Have an exporter that shows what serves, or none."""
        if not self._wanted(EXPORTER):
            self._tell_exporter({"op": "stop"})
            self.statusfile.commit(self.config)
        elif EXPORTER in self.children.living:
            self._show_rows()
            if self.metrics.sock is None:
                self._tell_exporter({"op": "deaf"})
            else:
                self._show_port()
            self._ask_for_reports()
        else:
            self._replace(EXPORTER, time.monotonic())

    # -- changes

    def _note_reload(self) -> None:
        """Forget a reload that has ended."""
        if self._reload is not None and self._reload.phase in (Phase.DONE, Phase.REFUSED):
            self.books.reload_ended(applied=self._reload.phase is Phase.DONE)
            self._reload = None
            if self._stop_by is None:
                self.notify.ready(self._serves())

    def _changing(self) -> bool:
        """Whether a reload or an upgrade is under way: one at a time."""
        return self._reload is not None or self._upgrade is not None

    def _note_resolved(self) -> None:
        self.books.resolved(self.config.forwards, self.setup.numbers, self.names.resolved)

    # -- a hot upgrade, as the old program

    def _note_upgrade(self) -> None:
        """Forget an upgrade that has failed."""
        if self._upgrade is not None and self._upgrade.phase is UpgradePhase.FAILED:
            self.books.upgrade_failed()
            self._upgrade = None

    def _stranger(self, pid: int, words: str) -> None:
        """A process has ended that is none of the children."""
        if self._upgrade is not None:
            self._upgrade.ended(pid, words)
            self._note_upgrade()

    def hand_over(self, pid: int, dropped: Set[str], slots: int) -> None:
        """Process `pid` serves, in so many `slots` and without the places `dropped`: accept nothing more,
        keep nothing that only one program can have, and let the sessions finish."""
        sessions = counted(self.scoreboard.total(Cell.SESSIONS), "session")
        log.info("upgraded: process %d has taken over; %s to finish here", pid, sessions)
        self.books.state(State.REPLACED)
        self._draining = self._handed_over = True
        self._end_reload("handed over")
        self.listeners.abandon()
        self.metrics.abandon()
        self.statusfile.abandon()
        self._tell_exporter({"op": "retire"})
        for child in self.children.workers:
            # A UDP socket that the new program has not got must not stay open: a part of the clients
            # would be led to it, and nobody would read what they send.
            kept = child.keys - dropped if child.slot < slots else frozenset[str]()
            child.channel.send({"op": "drain", "flows": kept})
        if self.pidfile is not None:
            self.pidfile.abandon()
            self.pidfile = None
        self.notify.handed_over(pid, f"process {pid} has taken over; {sessions} to finish")
        self.notify.close()

    def _tell_sessions(self) -> None:
        """Say how many sessions there are here: to the service manager, and to the new program."""
        sessions = self.scoreboard.total(Cell.SESSIONS)
        if self._upgrade is not None:
            before = 0 if self.predecessor is None else self.predecessor.left
            self._upgrade.left(sessions + before)
        if self._ready is None and self._stop_by is None and sessions != self._told:
            self._told = sessions
            self.notify.status(self._serves())

    # -- a hot upgrade, as the new program

    def _hear_predecessor(self, predecessor: Predecessor) -> None:
        if predecessor.gone:
            return
        predecessor.step()
        self.books.upgraded(predecessor.upgrades, predecessor.left)
        serving = all(worker.serving for worker in self.children.workers)
        if predecessor.sole and serving and self._started and self._ready is not None:
            self._begin(self._ready)

    def next_generation(self) -> int:
        """A number for a table to prepare; each is given once."""
        self._last_generation += 1
        return self._last_generation

    def commit(self, setup: Setup) -> None:
        """Make a prepared configuration the one that serves."""
        old, self.setup = self.setup, setup
        self._hold(setup)
        if old.log_descriptor is not None:
            os.close(old.log_descriptor)
        self.books.reassigned(old.numbers, setup.numbers)
        for child in self.children.workers:
            child.keys = frozenset(place.key for place in setup.places)
            child.channel.send({"op": "commit"})
        self.forget_other_names()
        self._note_resolved()
        self._commit_exporter()

    def _hold(self, setup: Setup) -> None:
        """Take over what was opened for `setup`."""
        self.listeners.commit(setup.places, setup.opened)
        if self.metrics.commit(setup.metrics) and self.metrics.sock is not None:
            log.info("metrics: %s", self.metrics.url)
        setup.opened, setup.metrics = {}, None

    def forget_other_names(self) -> None:
        """Stop looking up what the configuration in force does not name."""
        self.names.keep(periods(self.config))

    def reopen_log(self) -> None:
        """Go on in a new log file, after a rotation, without a new configuration."""
        if self.setup.log_descriptor is None or self.config.logfile is None:
            return
        try:
            reopened = open_log(self.config.logfile)
        except OSError as error:
            log.warning(
                "cannot reopen the log %s: %s; going on with the old one", self.config.logfile, error.strerror
            )
            return
        os.close(self.setup.log_descriptor)
        self.setup.log_descriptor = reopened
        for child in self.children.workers:
            child.channel.send({"op": "log"}, [reopened])

    def _moved(self, name: str) -> None:
        """`name` has other addresses: tell the workers, unless they lead back to us."""
        if not self.children.workers:
            return  # starting: the start judges for itself
        found = ", ".join(str(address) for address in self.names.addresses[name])
        log.info("%s is now %s", name, found)
        if name in dialled(self.config):
            for problem in check(self.config, addresses=self.names.addresses, is_local=is_local):
                log.error("%s", problem)
                self.names.addresses[name] = []
            for child in self.children.workers:
                child.channel.send({"op": "addresses", "hosts": {name: self.names.addresses[name]}})

    # -- the end

    def _drain(self) -> None:
        if self._draining:
            return
        self._give_up_upgrade("draining")
        sessions = counted(self.scoreboard.total(Cell.SESSIONS), "session")
        self.books.state(State.DRAINING)
        log.info("draining: no new connections, %s to finish", sessions)
        self._draining = True
        self._end_reload("draining")
        # Our copies first: the last one to close a queue must be the worker, which
        # empties it before.
        self.listeners.close()
        for child in self.children.workers:
            child.channel.send({"op": "drain", "flows": frozenset()})

    def stop(self) -> None:
        """End every session, and then this process."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_LIMIT
            self.notify.stopping("stopping")
        self._give_up_upgrade("stopping")
        if self.predecessor is not None:
            self.predecessor.stop()
        self._end_reload("stopping")
        self.listeners.close()
        for child in self.children.living.values():
            child.channel.send({"op": "stop"})

    def _give_up_upgrade(self, reason: str) -> None:
        self._upgrade_wanted = False
        if self._upgrade is not None:
            self._upgrade.cancel(reason)
            self._note_upgrade()

    def _end_reload(self, reason: str) -> None:
        self._reload_wanted = False
        if self._reload is not None:
            self._reload.cancel(reason)
            self._note_reload()

    def _close(self) -> None:
        self.listeners.close()
        self.metrics.close()
        self.statusfile.remove()
        for child in list(self.children.living.values()):
            self.children.kill(child)
            os.waitpid(child.pid, 0)
        if self.pidfile is not None:
            self.pidfile.remove()
            self.pidfile = None

    def _abandon(self) -> None:
        """In a new child: let go of everything of the supervisor's."""
        if self.options.foreground:
            # The starter's terminal, too: who has it can type on it (ioctl_tty(2), TIOCSTI).
            os.setsid()
        host.let_go()
        self.signals.abandon()
        self.listeners.abandon()
        if self.pidfile is not None:
            self.pidfile.abandon()
        self.metrics.abandon()
        self.setup.abandon()
        if self._reload is not None:
            self._reload.abandon()
        if self._upgrade is not None:
            self._upgrade.close()
        if self.predecessor is not None:
            self.predecessor.abandon()
        self.notify.close()


def text(said: object) -> str:
    """What a child has said, if that is text, fit to be shown. Raises TypeError."""
    if not isinstance(said, str):
        raise TypeError(f"a {type(said).__name__} instead of text")
    return host.printable(said)


def run(options: Options) -> int:
    """Start and serve. Returns the exit status; raises ConfigError if the start fails."""
    host.occupy_stdio()
    # The handler goes to standard error until the background is reached: a shell that
    # starts the daemon sees why it does not start.
    log.setLevel(logging.INFO)
    log.handlers = [host.log_to_stderr()]
    try:
        handover = read_handover()
    except HandoverError as error:
        log.critical("%s", error)
        return 1
    ready: Callable[[], None] = lambda: None  # noqa: E731
    if handover is not None:

        def ready() -> None:
            assert supervisor.predecessor is not None
            host.speak_on(supervisor.predecessor.messages())
            if not options.foreground:
                log.handlers = [host.SyslogHandler()]

    elif not options.foreground:
        detached = host.detach()

        def ready() -> None:
            log.handlers = [host.SyslogHandler()]
            detached()

    supervisor = Supervisor(options, handover)
    supervisor.start(ready)
    return supervisor.serve()
