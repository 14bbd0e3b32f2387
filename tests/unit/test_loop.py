"""The worker's loop: turns, timers, and descriptors that come and go."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.worker.loop import BEAT, GRANULARITY, Handler, Loop, TimerQueue
from tests.deadline import seconds

# Timers.


def unexpected(owner: object) -> None:
    """What the loops here do with a handler that raises: let it through."""
    raise  # noqa: PLE0704  # called in the loop's except clause


class Expired(list[object]):
    """What has expired."""


def queue(seconds: float) -> tuple[TimerQueue[object], Expired]:
    """A queue and what has expired in it."""
    expired = Expired()
    return TimerQueue(seconds, expired.append), expired


def test_nothing_expires_early() -> None:
    """An item stays until exactly its time, and expires once."""
    timers, expired = queue(10.0)
    timers.add("a", 100.0)
    timers.run(109.99)
    assert expired == []
    timers.run(110.0)
    timers.run(111.0)
    assert expired == ["a"]


def test_items_expire_in_order() -> None:
    """Those added first expire first, and only those that are due."""
    timers, expired = queue(10.0)
    for number in range(5):
        timers.add(number, 100.0 + number)
    timers.run(112.0)
    assert expired == [0, 1, 2]
    timers.run(1000.0)
    assert expired == [0, 1, 2, 3, 4]


def test_a_discarded_item_does_not_expire() -> None:
    """Discarding is for ever, and harmless for what is not there."""
    timers, expired = queue(10.0)
    timers.add("a", 0.0)
    timers.discard("a")
    timers.discard("b")
    timers.run(100.0)
    assert expired == []


def test_an_item_may_add_itself_again() -> None:
    """A callback that adds its item again is called once per run, not for ever."""
    expired = []

    def again(item: str) -> None:
        expired.append(item)
        timers.add(item, now)

    timers: TimerQueue[str] = TimerQueue(1.0, again)
    now = 0.0
    timers.add("a", now)
    for now in (1.0, 2.0, 2.5, 3.0):
        timers.run(now)
    assert expired == ["a", "a", "a"]


def test_an_item_is_gone_when_its_callback_runs() -> None:
    """The callback sees a queue without its item, and may discard others."""
    seen = []

    def expired(item: str) -> None:
        seen.append((item, dict(timers.due)))
        timers.discard("c")

    timers: TimerQueue[str] = TimerQueue(1.0, expired)
    for item in "abc":
        timers.add(item, 0.0)
    timers.run(1.0)
    assert seen == [("a", {"b": 1.0, "c": 1.0}), ("b", {})]


STEPS = st.lists(
    st.tuples(st.floats(0, 5), st.sampled_from(["add", "discard", "run"]), st.integers(0, 5)), max_size=40
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(STEPS)
def test_timers_behave_like_a_list_of_deadlines(steps: list[tuple[float, str, int]]) -> None:
    """Over any sequence of adding (what is not there), discarding and running: what expires
    is what a plain list of deadlines says."""
    timers, expired = queue(3.0)
    model: dict[int, float] = {}
    now = 0.0
    for pause, step, item in steps:
        now += pause
        if step == "add" and item not in model:
            timers.add(item, now)
            model[item] = now + 3.0
        elif step == "discard":
            timers.discard(item)
            model.pop(item, None)
        elif step == "run":
            expired.clear()
            timers.run(now)
            due: list[int] = [each for each, deadline in model.items() if deadline <= now]
            assert expired == list(due)
            for gone in due:
                del model[gone]
    assert dict(timers.due) == model


# The loop.


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that stops after a turn in which somebody set `running` to false."""
    made = Loop(lambda now: None, unexpected)
    yield made
    made.epoll.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe."""
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            pass


def stop(loop: Loop) -> None:
    """End the loop with this turn."""
    loop.running = False


def turn(loop: Loop) -> None:
    """One turn, without waiting."""
    loop.running = True
    loop.again.append((lambda _: stop(loop), None))
    loop.run()


def test_a_handler_is_called_with_the_mask(loop: Loop, pipe: tuple[int, int]) -> None:
    """Readiness is a call of the handler with epoll's bits."""
    masks: list[int] = []
    loop.watch(pipe[0], select.EPOLLIN, masks.append)
    turn(loop)
    assert masks == []
    os.write(pipe[1], b"x")
    turn(loop)
    assert masks == [select.EPOLLIN]


def test_a_forgotten_descriptor_is_silent(loop: Loop, pipe: tuple[int, int]) -> None:
    """After `forget` nothing is called, and a second one is harmless."""
    masks: list[int] = []
    loop.watch(pipe[0], select.EPOLLIN, masks.append)
    os.write(pipe[1], b"x")
    loop.forget(pipe[0])
    loop.forget(pipe[0])
    turn(loop)
    assert masks == []


def test_a_descriptor_that_lives_elsewhere_is_silent_too(loop: Loop, pipe: tuple[int, int]) -> None:
    """Closed here and open in another process (here: a duplicate), epoll would go on reporting
    it (epoll(7), question 6); after `forget` it does not wake the loop."""
    elsewhere = os.dup(pipe[0])
    loop.watch(pipe[0], select.EPOLLIN, lambda mask: None)
    loop.forget(pipe[0])
    os.close(pipe[0])
    os.write(pipe[1], b"x")
    assert loop.epoll.poll(0) == []
    os.close(elsewhere)


def test_a_handler_may_forget_another_of_the_same_batch(loop: Loop) -> None:
    """A descriptor forgotten in this turn gets no event of this turn."""
    called: list[int] = []
    pipes = [os.pipe() for _ in range(2)]

    def handler(own: int, other: int) -> Handler:
        def handle(mask: int) -> None:
            called.append(own)
            loop.forget(other)

        return handle

    for (own, _), (other, _) in (pipes, pipes[::-1]):
        loop.watch(own, select.EPOLLIN, handler(own, other))
    for _, writer in pipes:
        os.write(writer, b"x")
    turn(loop)
    assert len(called) == 1
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_what_is_to_be_closed_stays_open_until_the_end_of_the_turn(loop: Loop, pipe: tuple[int, int]) -> None:
    """Its number cannot come back within the batch that still holds events for it."""
    one, other = socket.socketpair()
    states: list[bool] = []

    def close(mask: int) -> None:
        loop.closing.append(one)
        loop.again.append((lambda _: states.append(one.fileno() >= 0), None))

    loop.watch(pipe[0], select.EPOLLIN, close)
    loop.end_of_turn.append(lambda: states.append(one.fileno() >= 0))
    os.write(pipe[1], b"x")
    turn(loop)
    assert states == [True, False]
    other.close()


def test_a_pump_that_goes_on_has_its_turn_after_the_others(loop: Loop, pipe: tuple[int, int]) -> None:
    """What is in `again` runs after the handlers, once per turn, and may ask for another."""
    order: list[str] = []

    def pump(_: object) -> None:
        order.append("pump")
        if order.count("pump") < 3:
            loop.again.append((pump, None))

    loop.watch(pipe[0], select.EPOLLIN, lambda mask: order.append("handler"))
    os.write(pipe[1], b"x")
    loop.again.append((pump, None))
    for _ in range(3):
        turn(loop)
    assert order == ["handler", "pump"] * 3


def test_work_at_the_end_of_a_turn_comes_last(loop: Loop, pipe: tuple[int, int]) -> None:
    """The log is written after all that could add to it."""
    order: list[str] = []
    loop.end_of_turn.append(lambda: order.append("end"))
    loop.again.append((lambda _: order.append("again"), None))
    loop.watch(pipe[0], select.EPOLLIN, lambda mask: order.append("handler"))
    os.write(pipe[1], b"x")
    turn(loop)
    assert order == ["handler", "again", "end"]


def test_every_look_at_the_timers_beats() -> None:
    """The heartbeat comes from the loop itself, with the time of the look."""
    beats: list[float] = []
    looks: list[float] = []
    beating = Loop(beats.append, unexpected)
    beating.now_and_then.append(lambda: looks.append(beating.now))
    before = time.monotonic()
    while len(looks) < 3:
        turn(beating)
    assert beats == looks
    assert before <= beats[0] < beats[1] < beats[2] <= time.monotonic()
    beating.epoll.close()


def test_an_idle_loop_beats() -> None:
    """Without any event a turn ends by itself: a heartbeat at least every BEAT seconds."""
    beats: list[float] = []

    def beat(now: float) -> None:
        beats.append(now)
        idle.running = False

    idle = Loop(beat, unexpected)
    idle.run()
    assert len(beats) == 1
    assert BEAT <= 1.0
    idle.epoll.close()


def test_the_loop_runs_its_timers(loop: Loop) -> None:
    """An item expires after its time, not before."""
    began = time.monotonic()
    ended: list[float] = []

    def expired(item: str) -> None:
        ended.append(time.monotonic())
        stop(loop)

    timers = loop.timer(0.1, expired)
    timers.add("a", began)
    loop.run()
    assert ended[0] - began >= 0.1
    assert GRANULARITY < 0.1


def test_a_closed_descriptor_of_a_batch_costs_nothing(loop: Loop, pipe: tuple[int, int]) -> None:
    """An event for a descriptor without a handler is dropped."""
    loop.watch(pipe[0], select.EPOLLIN, lambda mask: None)
    del loop.handlers[pipe[0]]
    os.write(pipe[1], b"x")
    turn(loop)


# The longest turn.


def spin(seconds: float) -> None:
    """Keep the processor busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def looks(loop: Loop) -> list[float]:
    """What `longest` is at every look at the timers from now on."""
    seen: list[float] = []
    loop.now_and_then.append(lambda: seen.append(loop.longest))
    timers: TimerQueue[str] = loop.timer(GRANULARITY, lambda item: None)
    timers.add("looks come at this pace", time.monotonic() + 3600)
    return seen


def test_the_longest_turn_is_told(loop: Loop, pipe: tuple[int, int]) -> None:
    """A handler that takes its time makes a turn as long, whatever else is short."""
    seen = looks(loop)
    loop.watch(pipe[0], select.EPOLLIN | select.EPOLLET, lambda mask: spin(0.2))
    os.write(pipe[1], b"x")
    loop.now_and_then.append(lambda: stop(loop) if len(seen) == 3 else None)
    loop.run()
    assert max(seen) >= 0.2


def test_work_at_the_end_belongs_to_the_turn(loop: Loop) -> None:
    """Timers, pumps and the log's write keep others waiting like handlers do."""
    seen = looks(loop)
    slow = iter([0.2])
    loop.end_of_turn.append(lambda: spin(next(slow, 0)))
    loop.now_and_then.append(lambda: stop(loop) if len(seen) == 3 else None)
    loop.run()
    assert max(seen) >= 0.2


def test_a_long_turn_is_told_once(loop: Loop, pipe: tuple[int, int]) -> None:
    """A look at the timers tells of the turns since the last look, not of earlier ones."""
    seen = looks(loop)
    loop.watch(pipe[0], select.EPOLLIN | select.EPOLLET, lambda mask: spin(0.2))
    os.write(pipe[1], b"x")
    end = time.monotonic() + seconds(10)

    def enough() -> None:
        told = [place for place, longest in enumerate(seen) if longest >= 0.2]
        if (told and seen[-1] < 0.2) or time.monotonic() > end:
            stop(loop)

    loop.now_and_then.append(enough)
    loop.run()
    assert max(seen) >= 0.2
    assert seen[-1] < 0.2


def test_waiting_is_no_turn(loop: Loop) -> None:
    """An idle loop sleeps for BEAT, and nobody has waited for it."""
    seen: list[float] = []

    def look() -> None:
        seen.append(loop.longest)
        if len(seen) == 1:  # after the first sleep; the turn that had it is told at the next look
            timers: TimerQueue[str] = loop.timer(GRANULARITY, lambda item: None)
            timers.add("looks come sooner now", loop.now + 3600)
        else:
            stop(loop)

    loop.now_and_then.append(look)
    began = time.monotonic()
    loop.run()
    assert time.monotonic() - began >= BEAT
    assert max(seen) < BEAT


class Broken:
    """Something whose handler raises."""

    def event(self, argument: object) -> None:
        """Raise."""
        raise RuntimeError


def test_a_handler_that_raises_stops_nobody(loop: Loop, pipe: tuple[int, int]) -> None:
    """What a handler raises is reported with the object it belongs to, and the turn goes on."""
    failed: list[object] = []
    loop.failed = failed.append
    broken = Broken()
    loop.watch(pipe[0], select.EPOLLIN, broken.event)
    os.write(pipe[1], b"x")
    turn(loop)
    assert failed == [broken]


def test_a_timer_that_raises_stops_nobody(loop: Loop) -> None:
    """What an expiry raises is reported with the item, and the turn goes on."""
    failed: list[object] = []
    loop.failed = failed.append
    loop.timer(0.0, Broken().event).add("item", 0.0)
    turn(loop)
    assert failed == ["item"]
