"""Every mover against a model: whatever two peers do, in whatever order, over real connections.

Hypothesis writes schedules of sends, ends, resets, stalls and turns. The model is short: the
receiver gets what was sent, in order and each byte once, as far as it reads; END comes after
the sender's FIN and its last byte, and never instead of a reset; a broken sink is blamed only
if the receiver has gone; DRY leaves nothing behind that no event will announce.

An ordinary run plays the same schedules every time; FASTFWD_FUZZ_EXAMPLES=5000 plays that many
new ones with each mover.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from fastfwd.relay.choose import CHUNK
from fastfwd.relay.pump import BUDGET, DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE
from fastfwd.worker.session import announce
from tests import deadline
from tests.relay.ends import FINAL, MOVERS, Ends, between
from tests.sockets import PATIENCE, noise, queued, reset

EXAMPLES = int(os.environ.get("FASTFWD_FUZZ_EXAMPLES", "0"))

ROOM = 150_000
"""Bytes that wait for the pump at most: the source's buffer takes them all, so that what was sent
has also arrived."""

FULL_READ = 65536

pytestmark = [pytest.mark.parametrize("name", MOVERS), pytest.mark.timeout(120 + EXAMPLES)]

Step = tuple[str, int]
"""What happens, and how much of it."""


@dataclass(slots=True)
class Play:
    """A schedule on its way: what has happened, and what that allows the pump to say."""

    ends: Ends
    prompt: bool
    """Whether the pump is told of an end before its next turn, as an epoll event would."""
    finished: bool = False
    was_reset: bool = False
    gone: bool = False
    """The receiver has closed or reset its side."""
    announced: bool = False
    verdicts: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the pump has said its last word."""
        return bool(self.verdicts) and self.verdicts[-1] in FINAL

    @property
    def silent(self) -> bool:
        """Whether the sender can say nothing more."""
        return self.finished or self.was_reset

    def step(self, what: str, amount: int) -> None:
        """Do it, if it can be done now."""
        if what == "turn":
            self.turn(amount)
        elif what == "read":
            self.read(amount)
        elif what in ("close", "abort") and not self.gone:
            self.leave(what)
        elif not self.silent and what in ("send", "urgent"):
            self.send(what, amount)
        elif what == "finish" and not self.silent:
            self.ends.finish()
            self.finished = True
            self.end_is_known()
        elif what == "reset" and not self.was_reset:
            reset(self.ends.sender)
            self.ends.wait(self.ends.source, select.POLLHUP)
            self.was_reset = True
            self.announced = False  # another end than the one that was
            self.end_is_known()

    def send(self, what: str, size: int) -> None:
        """The sender speaks."""
        ends = self.ends
        if what == "urgent":
            ends.send(b"!", socket.MSG_OOB)
            announce(ends.pump, ends.wait(ends.source, select.POLLPRI))
        elif queued(ends.source) + size <= ROOM:
            ends.send(noise(size, len(ends.sent) % 7))

    def end_is_known(self, *, at_last: bool = False) -> None:
        """The pump learns of an end of its source."""
        if self.silent and not self.announced and (self.prompt or at_last):
            events = self.ends.wait(self.ends.source, select.POLLIN | select.POLLRDHUP)
            announce(self.ends.pump, events)
            self.announced = True

    def leave(self, how: str) -> None:
        """The receiver goes."""
        self.gone = True
        if how == "abort":
            reset(self.ends.receiver)
        else:
            self.ends.receiver.close()
        self.ends.wait(self.ends.sink, select.POLLRDHUP)

    def read(self, size: int) -> None:
        """The receiver reads a little."""
        if self.gone:
            return
        ends = self.ends
        ends.receiver.setblocking(False)
        try:
            ends.received += ends.receiver.recv(size)
        except BlockingIOError:
            pass
        ends.receiver.settimeout(deadline.seconds(PATIENCE))

    def turn(self, budget: int) -> None:
        """The pump has its turn, and its verdict must be one that the model allows."""
        ends, pump = self.ends, self.ends.pump
        before = pump.given
        verdict = ends.turn(budget)
        self.verdicts.append(verdict)
        assert pump.given <= pump.taken <= len(ends.sent)
        if verdict == DRY:
            assert not self.announced, "DRY although the end was announced: no event will come"
            assert queued(ends.source) == ends.held() == ends.pool.lent == 0
            assert pump.given == pump.taken == len(ends.sent)
        elif verdict == FULL:
            assert pump.taken - pump.given == ends.held() > 0
        elif verdict == MORE:
            assert 0 < pump.given - before < budget + CHUNK
        elif verdict == END:
            assert self.finished
            assert pump.given == pump.taken == len(ends.sent)
        elif verdict == SOURCE_BROKE:
            assert self.was_reset
            # A reset after a FIN is EPIPE (tcp_reset in the kernel's net/ipv4/tcp_input.c).
            assert pump.error in ((errno.ECONNRESET, errno.EPIPE) if self.finished else (errno.ECONNRESET,))
            assert pump.given == pump.taken == len(ends.sent)
        else:
            assert verdict == SINK_BROKE
            assert self.gone
            assert pump.error in (errno.ECONNRESET, errno.EPIPE)

    def end(self) -> None:
        """What every schedule comes to: the sender ends, the receiver reads, the pump says so."""
        ends = self.ends
        if not self.over and not self.silent:
            self.step("finish", 0)
        limit = time.monotonic() + deadline.seconds(PATIENCE)
        while not self.over:
            assert time.monotonic() < limit, f"no end: {self.verdicts[-5:]}"
            self.end_is_known(at_last=True)
            if not self.gone:
                ends.drain()
            self.turn(BUDGET)
            if self.verdicts[-1] == FULL:
                select.select([] if self.gone else [ends.receiver], [ends.sink], [], 0.02)
        if self.gone:
            return
        if self.verdicts[-1] == END:
            ends.sink.shutdown(socket.SHUT_WR)
            while piece := ends.receiver.recv(1 << 20):
                ends.received += piece
        else:
            ends.receive()
        assert ends.received == ends.sent


steps = st.one_of(
    st.tuples(st.just("send"), st.one_of(st.integers(1, 200), st.integers(1, 100_000))),
    st.tuples(st.just("send"), st.sampled_from([FULL_READ - 1, FULL_READ, FULL_READ, FULL_READ + 1])),
    st.tuples(st.just("turn"), st.sampled_from([1, FULL_READ, 3 * FULL_READ, BUDGET])),
    st.tuples(st.just("turn"), st.just(BUDGET)),
    st.tuples(st.just("read"), st.sampled_from([1, 1000, 1 << 20])),
    st.tuples(st.sampled_from(["urgent", "finish", "reset", "close", "abort"]), st.just(0)),
)


@settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    max_examples=EXAMPLES or 100,
    suppress_health_check=list(HealthCheck),
)
@given(schedule=st.lists(steps, max_size=25), prompt=st.booleans(), small=st.booleans())
def test_any_schedule(name: str, schedule: list[Step], prompt: bool, small: bool) -> None:
    """Whatever the peers do, bytes are exact, verdicts true, and no pipe stays away or dirty."""
    with between(name, small=small, deep=True) as ends:
        play = Play(ends, prompt)
        for what, amount in schedule:
            play.step(what, amount)
            assert ends.sent.startswith(ends.received)
            if play.over:
                break
        play.end()
        assert ends.sent.startswith(ends.received)
        event(f"the last verdict: {play.verdicts[-1]}")
