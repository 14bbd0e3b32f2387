"""The worker's epoll loop: readiness, timers, turns.

A turn is: wait; call the handler of every ready descriptor; look at the timers, if the
last look is long enough ago; give the pumps that used up their budget another go; close
what was closed; run the end-of-turn work (the log's one write). worker/main makes it,
everything in the worker registers with it. It must never know what a session is.

Hot path: handlers are plain callables in a dict keyed by descriptor, called with
epoll's mask; there are no event objects.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

GRANULARITY: Final = 0.05
"""Seconds between two looks at the timers; every limit here is much longer."""

BURST: Final = 512
"""Items that one look expires: thousands that are due together must not stop the rest for longer
than a few milliseconds."""

BEAT: Final = 1.0
"""Seconds an idle loop sleeps at most, so that its heartbeat goes on."""

Handler = Callable[[int], object]
"""Called with epoll's mask; what it returns is nobody's business."""


class Closable(Protocol):
    """Whatever owns a descriptor."""

    def close(self) -> None: ...


Item = TypeVar("Item")


class TimerQueue(Generic[Item]):
    """Things that expire the same number of seconds after they were added.

    Same duration means order of adding is order of expiry, so a dict is the whole
    priority queue: adding and removing cost one hash each, which a connection can
    afford (a heap would also keep every finished dial alive until its deadline).
    """

    def __init__(self, seconds: float, expired: Callable[[Item], None]) -> None:
        self.seconds = seconds
        self.expired = expired
        self.due: dict[Item, float] = {}
        self.expiring: Item | None = None
        """The last item that expired: whose fault it is if its callback raised."""

    def add(self, item: Item, now: float) -> None:
        """Have `expired(item)` called `seconds` from `now` (monotonic)."""
        self.due[item] = now + self.seconds

    def discard(self, item: Item) -> None:
        """Forget `item`, if it is here."""
        self.due.pop(item, None)

    def run(self, now: float) -> None:
        """Expire what is due, at most BURST of it. An item is removed before its callback runs."""
        left = BURST
        while self.due and left:
            left -= 1
            item = next(iter(self.due))
            if self.due[item] > now:
                return
            del self.due[item]
            self.expiring = item
            self.expired(item)


class Loop:
    """One thread, one epoll. `now` is the monotonic time of the current turn in seconds."""

    def __init__(self, beat: Callable[[float], None], failed: Callable[[object], None]) -> None:
        """`beat(now)` is called with every look at the timers: the heartbeat the supervisor
        watches. It comes from the loop itself so that a hung loop looks hung. `failed(owner)` is
        called in the except clause of whatever a handler raises, with the object whose
        method it was, or the item that expired."""
        self.epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}
        self.now = monotonic()
        self.running = True
        self.again: list[tuple[Callable[[Any], object], object]] = []
        """(callable, its argument) for the next turn: pumps with more than their budget."""
        self.failed = failed
        self.closing: list[Closable] = []
        """Closed at the end of the turn: a number closed earlier could come back from
        accept and receive the events still waiting in this turn's batch."""
        self.end_of_turn: list[Callable[[], None]] = []
        self.now_and_then: list[Callable[[], None]] = []
        """Called with the look at the timers, for what need not be fresher than that."""
        self.longest = 0.0
        """Seconds of the longest turn between the last two looks at the timers: how long
        something that was ready may have waited."""
        self._queues: list[TimerQueue[object]] = []
        self._beat = beat
        self._next_look = 0.0

    def timer(self, seconds: float, expired: Callable[[Item], None]) -> TimerQueue[Item]:
        """A queue for everything that expires after `seconds`."""
        queue = TimerQueue(seconds, expired)
        self._queues.append(queue)  # type: ignore[arg-type]
        return queue

    def retire(self, queue: TimerQueue[Item]) -> None:
        """Nothing of `queue`, made by `timer`, expires any more."""
        self._queues = [each for each in self._queues if each is not queue]

    def watch(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Call `handler(mask)` when `descriptor` is ready for any of `mask` (select.EPOLL*).
        Raises OSError (ENOMEM, ENOSPC), and nothing is watched then."""
        self.epoll.register(descriptor, mask)
        self.handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Stop watching. Needed before closing a descriptor that another process holds
        too: epoll would go on reporting it (epoll(7), question 6)."""
        if self.handlers.pop(descriptor, None) is not None:
            self.epoll.unregister(descriptor)

    def run(self) -> None:
        """Turn until `running` is false."""
        poll = self.epoll.poll
        handler_of = self.handlers.get
        self.now = monotonic()
        longest = 0.0
        events: list[tuple[int, int]] = []
        while self.running:
            if self.again:
                timeout = 0.0
            elif events:  # a busy loop need not ask the queues: it comes round anyway
                timeout = GRANULARITY
            else:
                timeout = GRANULARITY if any(queue.due for queue in self._queues) else BEAT
            took = monotonic() - self.now
            if took > longest:  # noqa: PLR1730  # max() costs 0.06 µs more, every turn
                longest = took
            events = poll(timeout, 256)
            self.now = now = monotonic()
            for descriptor, mask in events:
                handler = handler_of(descriptor)
                if handler is not None:
                    try:
                        handler(mask)
                    except Exception:
                        self.failed(getattr(handler, "__self__", None))
            if now >= self._next_look:
                self._next_look = now + GRANULARITY
                self._beat(now)
                self.longest, longest = longest, 0.0
                for queue in self._queues:
                    try:
                        queue.run(now)
                    except Exception:
                        self.failed(queue.expiring)
                for work in self.now_and_then:
                    work()
            if self.again:
                again, self.again = self.again, []
                for go_on, argument in again:
                    try:
                        go_on(argument)
                    except Exception:
                        self.failed(getattr(go_on, "__self__", None))
            if self.closing:
                for closable in self.closing:
                    closable.close()
                self.closing.clear()
            for work in self.end_of_turn:
                work()
