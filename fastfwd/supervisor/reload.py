"""A reload, as two phases over living workers: prepare everything, then commit or roll back.

supervisor/main makes one per SIGHUP and steps it from its loop; it never waits. Until
the commit nothing that serves has been touched, so every way out before it leaves
the old configuration serving. It is over only when every worker serves the new
one: until then they still hold what was removed.

    asking -> preparing -> committing -> done
       \\---------\\--> refused
"""

from __future__ import annotations

import enum
import logging
import os
from typing import TYPE_CHECKING, Final

from fastfwd.config.check import check
from fastfwd.config.diff import diff
from fastfwd.config.load import load
from fastfwd.config.resolve import is_local
from fastfwd.config.wording import counted
from fastfwd.model import ConfigError, Problem
from fastfwd.observe.eventlog import open_log
from fastfwd.supervisor.children import Child
from fastfwd.supervisor.listeners import places
from fastfwd.supervisor.names import bound, dialled, unbound, unreachable
from fastfwd.supervisor.setup import Setup
from fastfwd.worker.privileges import needed

if TYPE_CHECKING:
    from fastfwd.supervisor.main import Supervisor

ASKING_LIMIT: Final = 5.0
"""Seconds a reload waits for the names in it. Backend names may go on without an answer."""

WORKERS_LIMIT: Final = 10.0
"""Seconds the workers have to answer; one that hangs is the watchdog's business."""

log = logging.getLogger("fastfwd")


class Phase(enum.Enum):
    """Where a reload is."""

    ASKING = "asking"
    PREPARING = "preparing"
    COMMITTING = "committing"
    DONE = "done"
    REFUSED = "refused"


class Reload:
    """One attempt. `phase` tells how far it is."""

    def __init__(self, supervisor: Supervisor, now: float) -> None:
        """Read the file again and begin, at `now` (monotonic seconds)."""
        self.phase = Phase.ASKING
        self._supervisor = supervisor
        self._deadline = now + ASKING_LIMIT
        self._waiting: set[Child] = set()
        self._setup: Setup | None = None
        try:
            options = supervisor.options
            self.config = load(options.file, lenient=options.lenient, directory=options.directory)
        except ConfigError as error:
            self._refuse(error.problems)
            return
        supervisor.ask(self.config)

    def step(self, now: float) -> None:
        """Go as far as possible without waiting."""
        if self.phase is Phase.ASKING:
            hosts = bound(self.config) | dialled(self.config)
            if now >= self._deadline or not self._supervisor.names.waiting(hosts):
                self._prepare(now)
        elif now >= self._deadline:
            slow = ", ".join(child.title for child in self._waiting)
            if self.phase is Phase.PREPARING:
                self._refuse([], f"{slow} did not get ready within {WORKERS_LIMIT:.0f} s")
            elif self.phase is Phase.COMMITTING:
                log.warning("%s has not taken over the new configuration yet", slow)
                self._finish()

    def cancel(self, reason: str) -> None:
        """Give up, for `reason`."""
        if self.phase in (Phase.ASKING, Phase.PREPARING):
            self._refuse([], reason)
        elif self.phase is Phase.COMMITTING:
            self._finish()

    def abandon(self) -> None:
        """In a new child: let go of what this reload has opened."""
        if self._setup is not None:
            self._setup.abandon()

    def enlist(self, child: Child) -> None:
        """`child` was forked while this reload prepares: it takes part too."""
        if self.phase is Phase.PREPARING:
            self._waiting.add(child)
            assert self._setup is not None
            self._supervisor.send_table(child, self._setup)
        elif self.phase is Phase.COMMITTING:
            self._waiting.add(child)

    def forget(self, child: Child) -> None:
        """`child` has died; its successor will be enlisted."""
        self._waiting.discard(child)
        self._go_on()

    def prepared(self, child: Child, generation: int, error: str | None) -> None:
        """`child` says that it has prepared `generation`, or why it could not."""
        if self.phase is not Phase.PREPARING or generation != self._generation:
            return
        if error is not None:
            self._refuse([], f"{child.title}: {error}")
            return
        self._waiting.discard(child)
        self._go_on()

    def serving(self, child: Child, generation: int) -> None:
        """`child` says that it serves `generation`."""
        if self.phase is Phase.COMMITTING and generation == self._generation:
            self._waiting.discard(child)
            self._go_on()

    def _prepare(self, now: float) -> None:
        supervisor = self._supervisor
        problems = unbound(self.config, supervisor.names) + unreachable(self.config, supervisor.names)
        problems += self._out_of_reach()
        if not problems:
            problems = check(self.config, addresses=supervisor.names.addresses, is_local=is_local)
        if problems:
            self._refuse(problems)
            return
        self._generation = supervisor.next_generation()
        wanted = places(self.config, supervisor.names.addresses)
        self._setup = setup = Setup(self.config, wanted, {}, self._generation)
        try:
            setup.numbers = supervisor.books.assign(
                self.config, supervisor.setup.numbers, supervisor.config.forwards
            )
            setup.open(supervisor.listeners, supervisor.metrics)
        except ConfigError as error:
            self._refuse(error.problems)
            return
        setup.log_descriptor = self._open_log()
        self.phase = Phase.PREPARING
        self._deadline = now + WORKERS_LIMIT
        self._waiting = set(supervisor.children.workers)
        for child in list(self._waiting):
            supervisor.send_table(child, setup)
        self._go_on()

    def _out_of_reach(self) -> list[Problem]:
        """What the living workers have no right to any more."""
        held = self._supervisor.children.account
        # A supervisor that is not root, and has not got a right either, cannot gain it by a restart.
        given_up = ~held.capabilities if held.uid is not None else held.given & ~held.capabilities
        # One line for each option, the first that has it.
        found: dict[str, Problem] = {}
        for forward in self.config.forwards:
            for option, right in needed(forward).items():
                if right & given_up:
                    why = f"expected no {option!r} before a restart: workers have given up that right"
                    found.setdefault(option, Problem(forward.origin, why))
        return list(found.values())

    def _open_log(self) -> int | None:
        if self.config.logfile is None:
            return None
        try:
            return open_log(self.config.logfile)
        except OSError as error:
            kept = self._supervisor.setup.log_descriptor
            log.warning(
                "%s: cannot open the log %s: %s; %s",
                self.config.origin("logfile"),
                self.config.logfile,
                error.strerror,
                "going on with the old one" if kept is not None else "going on without a log",
            )
            return kept if kept is None else os.dup(kept)

    def _go_on(self) -> None:
        if self._waiting:
            return
        if self.phase is Phase.PREPARING:
            self._commit()
        elif self.phase is Phase.COMMITTING:
            self._finish()

    def _commit(self) -> None:
        supervisor = self._supervisor
        self._changes = diff(supervisor.config, self.config)
        self.phase = Phase.COMMITTING
        self._waiting = set(supervisor.children.workers)
        setup, self._setup = self._setup, None  # the supervisor's now
        assert setup is not None  # PREPARING has made it
        supervisor.commit(setup)
        self._go_on()

    def _finish(self) -> None:
        self.phase = Phase.DONE
        for directive in self._changes.fixed:
            log.warning("%s: %s takes effect at the next start", self.config.origin(directive), directive)
        for warning in self.config.warnings:
            log.warning("%s", warning)
        log.info(
            "reloaded: %s (%d added, %d removed)",
            counted(len(self.config.forwards), "forward"),
            len(self._changes.added),
            len(self._changes.removed),
        )

    def _refuse(self, problems: list[Problem], reason: str = "") -> None:
        if self.phase is Phase.PREPARING:
            for child in self._supervisor.children.workers:
                child.channel.send({"op": "abort"})
        self.phase = Phase.REFUSED
        if self._setup is not None:
            self._setup.drop()
        for problem in problems:
            log.error("%s", problem)
        log.error(
            "reload refused: %s; the old configuration goes on", reason or counted(len(problems), "problem")
        )
        # A rotation must not fail because somebody left the file half edited.
        self._supervisor.reopen_log()
        self._supervisor.forget_other_names()
