"""What the supervisor writes on the scoreboard: its own life, the workers', reloads, names, queues.

supervisor/main calls it as things happen; the exporter reads. It decides nothing, must
never write a cell of a worker that lives, and never reads what it has written: every
process can write to the scoreboard, and one that has gone mad could write anything.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence

from fastfwd.model import Config, ConfigError, Forward, Origin, Problem
from fastfwd.observe.rows import FullError, Key, assign, backend_keys, key, needed
from fastfwd.observe.scoreboard import ForwardCell, Scoreboard, State, SupervisorCell, WatchCell
from fastfwd.supervisor.children import Child, Death
from fastfwd.supervisor.listeners import Listeners, Place, queue
from fastfwd.worker.udp import drops


class Ledger:
    """A row with the figures that it should hold."""

    def __init__(self, row: memoryview) -> None:
        """Write to `row`, which is nobody else's to write."""
        self._row = row
        self._figures = [0] * len(row)

    def put(self, cell: int, figure: int) -> None:
        """Set a cell."""
        self._figures[cell] = self._row[cell] = figure

    def add(self, cell: int, figure: int = 1) -> None:
        """Add to a cell."""
        self.put(cell, self._figures[cell] + figure)


class Books:
    """Everything here is a store or two."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._own = Ledger(scoreboard.supervisor)
        self._slots = [Ledger(scoreboard.watch(slot)) for slot in range(scoreboard.slots)]

    # -- the supervisor itself

    def started(self) -> None:
        """The first configuration has been applied."""
        now = time.time_ns()
        self._own.put(SupervisorCell.STARTED, now)
        self._own.put(SupervisorCell.RELOADED, now)
        self._own.put(SupervisorCell.RELOAD_OK, 1)
        self.beat()

    def state(self, state: State) -> None:
        """What the whole program is doing from now on."""
        self._own.put(SupervisorCell.STATE, state)

    def beat(self) -> None:
        """The supervisor has come round its loop."""
        self._own.put(SupervisorCell.HEARTBEAT, time.monotonic_ns())

    def reload_begun(self) -> None:
        """A reload is tried."""
        self._own.add(SupervisorCell.RELOADS)

    def reload_ended(self, *, applied: bool) -> None:
        """It has been applied, or refused."""
        self._own.put(SupervisorCell.RELOAD_OK, applied)
        if applied:
            self._own.put(SupervisorCell.RELOADED, time.time_ns())
        else:
            self._own.add(SupervisorCell.RELOAD_FAILURES)

    # -- hot upgrades

    def upgrade_failed(self) -> None:
        """A new program has not taken over."""
        self._own.add(SupervisorCell.UPGRADE_FAILURES)

    def upgraded(self, times: int, left: int) -> None:
        """This is the program of upgrade number `times`; those before it have `left` sessions."""
        self._own.put(SupervisorCell.UPGRADES, times)
        self._own.put(SupervisorCell.PREVIOUS_SESSIONS, left)

    # -- workers

    def born(self, worker: Child) -> None:
        """`worker` has been forked."""
        self._slots[worker.slot].put(WatchCell.PID, worker.pid)
        self._slots[worker.slot].put(WatchCell.BORN, time.time_ns())

    def serving(self, worker: Child) -> None:
        """`worker` accepts connections."""
        self._slots[worker.slot].put(WatchCell.SERVING, 1)

    def died(self, death: Death, numbers: Iterable[int], *, planned: bool) -> None:
        """A worker is dead; `numbers` are the rows in use."""
        slot = self._slots[death.child.slot]
        slot.add(WatchCell.CPU_USER, int(death.user * 1e6))
        slot.add(WatchCell.CPU_SYSTEM, int(death.system * 1e6))
        slot.put(WatchCell.PID, 0)
        slot.put(WatchCell.SERVING, 0)
        self._scoreboard.settle(death.child.slot, numbers)
        if planned:
            return
        if death.child.unresponsive:
            slot.add(WatchCell.UNRESPONSIVE)
        else:
            slot.add(WatchCell.SIGNALLED if death.code < 0 else WatchCell.EXITED)

    # -- forwards

    def assign(
        self, config: Config, numbers: Mapping[Key, int], serving: Sequence[Forward] = ()
    ) -> dict[Key, int]:
        """The rows for `config`, given the `numbers` in use. Those of the forwards that are still
        `serving` are not to be had. Raises ConfigError when there are too few."""
        capacity = self._scoreboard.forwards
        busy = {numbers[each] for forward in serving for each in (key(forward), *backend_keys(forward))}

        def idle(number: int) -> bool:
            return number not in busy and self._scoreboard.active(number) <= 0

        try:
            return assign(numbers, config.forwards, capacity, idle)
        except FullError:
            count = needed(config.forwards)
            text = f"expected at most {capacity} forwards and backends without a restart, found {count}"
            raise ConfigError([Problem(Origin(config.file, 0), text)]) from None

    def reassigned(self, old: Mapping[Key, int], new: Mapping[Key, int]) -> None:
        """Rows go to other forwards: those that belonged to one that is gone begin at 0."""
        used = set(old.values())
        for each, number in new.items():
            if number in used and old.get(each) != number:
                self._scoreboard.clear(number)

    def looked_up(self, *, failed: bool) -> None:
        """The resolver has answered."""
        self._own.add(SupervisorCell.LOOKUPS)
        self._own.add(SupervisorCell.LOOKUP_FAILURES, failed)

    def resolved(
        self, forwards: Sequence[Forward], numbers: Mapping[Key, int], when: Mapping[str, int]
    ) -> None:
        """The targets' names were looked up with success `when` (nanoseconds since the epoch)."""
        for forward in forwards:
            known = [when[each.endpoint.host] for each in forward.backends if each.endpoint.host in when]
            if known:
                row = self._scoreboard.forward(numbers[key(forward)], 0)
                row[ForwardCell.RESOLVED] = min(known)  # the oldest

    def queues(self, places: Sequence[Place], numbers: Mapping[Key, int], listeners: Listeners) -> None:
        """The accept queues' lengths, and what receive buffers had no room for. The supervisor
        looks, because it is a worker that is stuck whose queue grows."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        lost: dict[tuple[int, int], int] = {}
        for place in places:
            number = numbers[key(place.forward)]
            for slot, listener in enumerate(listeners.held.get(place.key, ())):
                if listener.type == socket.SOCK_DGRAM:
                    lost[number, slot] = lost.get((number, slot), 0) + drops(listener)
                    continue
                if listener.family == socket.AF_UNIX:
                    continue  # the kernel does not tell
                length, limit = queue(listener)
                others = found.get((number, slot), (0, 0))
                found[number, slot] = length + others[0], limit + others[1]
        for (number, slot), (length, limit) in found.items():
            row = self._scoreboard.forward(number, slot)
            row[ForwardCell.QUEUE_LENGTH] = length
            row[ForwardCell.QUEUE_LIMIT] = limit
        for (number, slot), count in lost.items():
            self._scoreboard.forward(number, slot)[ForwardCell.DROPPED_QUEUE] = count
