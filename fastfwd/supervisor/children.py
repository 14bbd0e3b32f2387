"""The processes the supervisor has forked: their channels, births and deaths.

supervisor/main forks through this and hears of deaths through it. It knows nothing of
configurations; what a child is told is the caller's. It never trusts what a child says.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple

from fastfwd import resolver
from fastfwd.channel import Channel, ChannelError, ChannelHandler, Message, pair
from fastfwd.observe.scoreboard import Scoreboard
from fastfwd.supervisor.restart import after_death
from fastfwd.worker import main as worker
from fastfwd.worker.limits import Census
from fastfwd.worker.privileges import Account, drop, hide_memory

RESOLVER: Final = -1
EXPORTER: Final = -2
"""Their places among the slots."""

TITLES: Final = {RESOLVER: "resolver", EXPORTER: "exporter"}

FORK_AGAIN: Final = 1.0
"""Seconds until a fork that the system refused is tried again."""

log = logging.getLogger("fastfwd")


@dataclass(eq=False, slots=True)
class Child:
    """A living child. `slot` is RESOLVER, EXPORTER or a worker's; `born` is monotonic seconds;
    `open_files` its /proc/PID/fd, opened while that was allowed, or None; `serving` that a
    worker has committed its first table; `keys` names the listeners it has; `beat`,
    `missed` and `unresponsive` are the watchdog's; `said` counts what it has had us write
    since the last tick."""

    pid: int
    slot: int
    channel: Channel
    born: float
    open_files: int | None = None
    serving: bool = False
    keys: frozenset[str] = frozenset()
    beat: int = 0
    missed: int = 0
    unresponsive: bool = False
    said: int = 0

    @property
    def title(self) -> str:
        """What messages call it."""
        return TITLES.get(self.slot) or f"worker {self.slot}"

    def close(self) -> None:
        """Let go of what the supervisor has of it."""
        self.channel.close()
        if self.open_files is not None:
            os.close(self.open_files)


class Death(NamedTuple):
    """How a child ended: in `words`, with the exit code or minus the signal as `code`, and
    the processor time it has used, in seconds."""

    child: Child
    words: str
    code: int
    user: float
    system: float


@dataclass(slots=True)
class _Slot:
    failures: int = 0
    due: float | None = None


@dataclass(slots=True)
class Children:
    """`living` maps slots to children. `account` is who they become; `abandon` is called
    in each new child to let go of everything that is the supervisor's, `stranger` with the process
    number of whoever else has ended, and in words how."""

    account: Account
    abandon: Callable[[], None]
    stranger: Callable[[int, str], None]
    scoreboard: Scoreboard
    census: Census
    living: dict[int, Child] = field(default_factory=dict)
    _slots: dict[int, _Slot] = field(default_factory=dict)

    @property
    def workers(self) -> list[Child]:
        """The living workers."""
        return [child for child in self.living.values() if child.slot >= 0]

    def fork(self, slot: int, now: float) -> Child:
        """Fork the child of `slot`. Raises OSError (EMFILE, EAGAIN, ENOMEM), and is due again
        a little later then."""
        self._slots.setdefault(slot, _Slot()).due = now + FORK_AGAIN
        # The child waits at the gate until its open files can be counted: once it has
        # changed its account nobody else may look (ptrace(2), dumpable).
        gate, key = os.pipe2(os.O_CLOEXEC)
        try:
            ours, theirs = pair()
        except OSError:
            os.close(gate)
            os.close(key)
            raise
        # A signal between fork and the child's own handlers would be noted in the
        # parent's pipe; it waits until the child has none of the parent's any more.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # Without root, children have our account. Where we have rights that they must not get, our
        # memory is closed to them, and open for the moment in which their files are opened.
        hides = self.account.uid is None and self.account.given != 0
        if hides:
            hide_memory(hidden=False)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(key)
                self._be_child(slot, ours, theirs, gate)
            child = Child(pid, slot, ours, now, _open_files(pid))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(gate)
            os.close(key)
            if hides:
                hide_memory(hidden=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        self.living[slot] = child
        self._slots[slot].due = None
        return child

    def reap(self, now: float) -> list[Death]:
        """Collect the dead. Each one's next birth is scheduled: see `due`."""
        dead = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            words = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
            child = next((each for each in self.living.values() if each.pid == pid), None)
            if child is None:
                self.stranger(pid, words)  # of an upgrade; or not ours: we are process 1 of a container
                continue
            del self.living[child.slot]
            entry = self._slots[child.slot]
            entry.failures, delay = after_death(entry.failures, now - child.born)
            entry.due = now + delay
            dead.append(Death(child, words, code, usage.ru_utime, usage.ru_stime))
        return dead

    def due(self, now: float) -> list[int]:
        """Slots whose next child is to be forked now."""
        return [slot for slot, entry in self._slots.items() if entry.due is not None and entry.due <= now]

    def next_due(self) -> float | None:
        """When the next child is to be forked, in monotonic seconds."""
        return min((entry.due for entry in self._slots.values() if entry.due is not None), default=None)

    def forget(self, slot: int) -> None:
        """No child for `slot` any more."""
        self._slots.pop(slot, None)

    def kill(self, child: Child) -> None:
        """SIGKILL, which a stopped process gets too. Not for one that has been collected: its number
        may be somebody else's by now."""
        if self.living.get(child.slot) is child:
            os.kill(child.pid, signal.SIGKILL)

    def hear(self, child: Child) -> list[Message]:
        """What `child` has said since the last call. One that speaks nonsense, or has hung up
        without ending, is killed."""
        try:
            messages, alive = child.channel.receive()
        except ChannelError as error:
            log.error("%s sent %s; killing it", child.title, error)
            self.kill(child)
            return []
        if not alive:
            self.kill(child)
        return [message for message, _ in messages]

    def _be_child(self, slot: int, ours: Channel, theirs: Channel, gate: int) -> None:
        """In the new process: become what belongs into `slot`, and never return."""
        status = worker.CANNOT_START
        account = self.account
        if slot < 0:
            account = replace(account, capabilities=0)
        try:
            os.read(gate, 1)  # the end of the pipe: the parent is done, or gone
            os.close(gate)
            log.handlers = [ChannelHandler(theirs)]
            self.abandon()
            ours.close()
            for sibling in self.living.values():
                sibling.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
            if slot < 0:
                self.census.abandon()
                self.scoreboard.protect()
            if slot == RESOLVER:
                status = resolver.main(theirs, account)
            elif slot == EXPORTER:
                # Here, because nobody else needs its libraries.
                from fastfwd.observe import exporter  # noqa: PLC0415

                status = exporter.main(theirs, self.scoreboard, partial(drop, account))
            else:
                status = worker.main(slot, theirs, self.scoreboard, self.census, account)
        except BaseException:
            status = 1
            log.critical("process %d failed", os.getpid(), exc_info=True)
        finally:
            # No clean-up of the parent's: no exit handlers, no flushing of its buffers.
            os._exit(status)


def _open_files(pid: int) -> int | None:
    """The directory /proc/PID/fd of a child that waits at the gate."""
    try:
        return os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # EMFILE; no /proc: the count is missing, nothing else
        return None
