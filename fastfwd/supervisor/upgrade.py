"""A hot upgrade (SIGUSR2): start the program anew, and hand it the listening sockets.

supervisor/main makes one and steps it in its loop. The new program is whatever the command line that
started this one starts now: another version, another interpreter. Nothing changes until all its workers
serve; whatever goes wrong before that is reported, and this program goes on. It must never wait, and never
close a socket that the new program needs.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from fastfwd.supervisor import host
from fastfwd.supervisor.handover import VARIABLE, Handover, Link, pair

if TYPE_CHECKING:
    from fastfwd.supervisor.main import Supervisor

PATIENCE: Final = 60.0
"""Seconds the new program has until all its workers serve."""

LAST_WORDS: Final = 0.5
"""Seconds from the end of the link to that of the new program, if it ends: then we can say how."""

SHOWN: Final = 40
"""Lines of the new program that are written."""

log = logging.getLogger("fastfwd")


class Phase(enum.Enum):
    """Where an upgrade is."""

    STARTING = "starting"
    HANDED_OVER = "handed over"
    FAILED = "failed"


def command(directory: str) -> list[str]:
    """What started this program in `directory`, to be started again. A script chooses its interpreter by
    itself: with a new version the same path may lead to another environment, with its own one."""
    arguments = sys.orig_argv[1:]
    script = os.path.join(directory, arguments[0])
    if os.path.isfile(script) and os.access(script, os.X_OK):
        return [script, *arguments[1:]]
    return [sys.executable, *arguments]


class Upgrade:
    """One attempt. `phase` tells how far it is; `pid` is the new program."""

    def __init__(self, supervisor: Supervisor, now: float) -> None:
        """Start the new program, at `now` (monotonic seconds)."""
        self.phase = Phase.STARTING
        self.pid = 0
        self._supervisor = supervisor
        self._deadline = now + PATIENCE
        self._link: Link | None = None
        self._messages = -1
        self._heard = b""
        self._lines = 0
        self._dropped: set[str] = set()
        self._wait_for_end = 0.0
        if os.getpid() == 1:
            # Its end would be that of the container, and of the new program with it.
            self._fail("this is process 1 of a container; replace the container instead")
            return
        try:
            self._start()
        except (OSError, ImportError) as error:
            self._fail(f"cannot start {command(supervisor.options.directory)[0]}: {error}")
            return
        log.info("upgrading: process %d is to take over", self.pid)

    @property
    def filenos(self) -> list[int]:
        """Descriptors to poll for reading."""
        found = [] if self._link is None else [self._link.fileno()]
        return found if self._messages < 0 else [*found, self._messages]

    def step(self, now: float) -> None:
        """Go as far as possible without waiting."""
        if self._messages >= 0:
            self._read()
        if self._link is not None:
            messages, alive = self._link.heard()
            for message in messages:
                self._obey(message)
            if not alive:
                self._link.close()
                self._link = None
                self._wait_for_end = now + LAST_WORDS
        if self.phase is Phase.STARTING and self._link is None and now >= self._wait_for_end:
            # It has not ended, since its workers have accepted clients by now, which it lets finish.
            self._fail(f"process {self.pid} has given up")
        if self.phase is Phase.STARTING and now >= self._deadline:
            self.cancel(f"process {self.pid} did not serve within {PATIENCE:.0f} s")

    def ended(self, pid: int, words: str) -> None:
        """Process `pid`, which is none of the children, has ended; how, in `words`."""
        if pid != self.pid:
            return
        if self._messages >= 0:
            self._read()
        if self.phase is Phase.STARTING:
            self._fail(f"process {pid} {words}")
        elif self.phase is Phase.HANDED_OVER:
            log.error("process %d, which has taken over, %s", pid, words)

    def cancel(self, reason: str) -> None:
        """Give up, for `reason`."""
        if self.phase is Phase.STARTING:
            os.kill(self.pid, signal.SIGKILL)  # it is our child, and has not been collected
            self._fail(reason)

    def left(self, sessions: int) -> None:
        """Tell the new program how many sessions are still here."""
        if self.phase is Phase.HANDED_OVER and self._link is not None:
            self._link.tell(op="left", sessions=sessions)

    def close(self) -> None:
        """Let go of the new program; in a new child, leave it to the parent."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._messages >= 0:
            os.close(self._messages)
            self._messages = -1

    def _start(self) -> None:
        # Here, because a program that is never upgraded does not need it.
        from subprocess import Popen  # noqa: PLC0415

        supervisor = self._supervisor
        ours, theirs = pair()
        self._link = Link(ours)
        self._messages, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(writer, True)
        spare = [messages := os.dup(2)]
        handover = self._handover(theirs.fileno(), messages)
        try:
            spare.append(description := handover.write())
            environment = {**os.environ, VARIABLE: f"{description}"}
            environment.pop("WATCHDOG_PID", None)  # it will be the one that is watched
            process = Popen(
                command(supervisor.options.directory),
                cwd=supervisor.options.directory,
                env=environment,
                stderr=writer,
                pass_fds=[description, *handover.descriptors],
            )
            self.pid = process.pid
            process.returncode = 0  # it is collected with the children: see supervisor/children
        finally:
            theirs.close()
            os.close(writer)
            for descriptor in spare:
                os.close(descriptor)

    def _handover(self, link: int, messages: int) -> Handover:
        """What the new program is given; `link` is its end of the link, `messages` our standard error."""
        supervisor = self._supervisor
        groups, shared = supervisor.listeners.given()
        more, also = supervisor.metrics.given()
        pidfile, predecessor = supervisor.pidfile, supervisor.predecessor
        return Handover(
            pid=os.getpid(),
            link=link,
            messages=messages,
            listeners={place: [each.fileno() for each in group] for place, group in (groups | more).items()},
            shared=[*shared, *also],
            pidfile=None if pidfile is None else (pidfile.path, pidfile.fileno()),
            secret=supervisor.secret.hex(),
            upgrades=1 + (0 if predecessor is None else predecessor.upgrades),
        )

    def _obey(self, message: dict[str, Any]) -> None:
        order = message.get("op")
        if order == "dropped" and self.phase is Phase.STARTING:
            self._dropped.update(map(str, message.get("keys", ())))
        elif order == "serving" and self.phase is Phase.STARTING:
            self.phase = Phase.HANDED_OVER
            self._supervisor.hand_over(self.pid, self._dropped, int(message.get("slots", 0)))
            if self._link is not None:
                self._link.tell(op="yours")
        elif order == "stop" and self.phase is Phase.HANDED_OVER:
            self._supervisor.stop()
        elif order == "reopen" and self.phase is Phase.HANDED_OVER:
            self._supervisor.reopen_log()

    def _read(self) -> None:
        """Write what the new program has said on its standard error: nobody else would."""
        while True:
            try:
                data = os.read(self._messages, 1 << 16)
            except BlockingIOError:
                return
            self._heard += data
            *lines, self._heard = self._heard.split(b"\n")
            if not data:
                os.close(self._messages)
                self._messages = -1
                lines, self._heard = [*lines, self._heard], b""
            for line in filter(None, lines):
                self._lines += 1
                if self._lines <= SHOWN:
                    text = line.decode(errors="replace").removeprefix("fastfwd: ")
                    log.warning("process %d: %s", self.pid, host.printable(text))
            if not data:
                return

    def _fail(self, reason: str) -> None:
        self.phase = Phase.FAILED
        self.close()
        log.error("upgrade failed: %s; this program goes on", reason)
