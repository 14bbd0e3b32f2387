"""What every mover must do, in the words of fastfwd/relay/pump.py."""

from __future__ import annotations

import errno
import select
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.relay.choose import CHUNK
from fastfwd.relay.pump import BUDGET, DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE
from tests import deadline
from tests.relay.ends import FINAL, MOVERS, Ends, between
from tests.sockets import PATIENCE, noise, queued, reset

pytestmark = pytest.mark.parametrize("name", MOVERS)

MIB = 1 << 20


def stall(ends: Ends, size: int = 16 * MIB) -> None:
    """Send into a path that nobody reads, until the pump is full and the sender blocked."""
    data = noise(MIB) * (size // MIB)
    ends.sender.setblocking(False)
    sent = 0
    while True:
        try:
            sent += ends.sender.send(data[sent : sent + MIB])
        except BlockingIOError:
            if ends.turn() == FULL and not select.select([], [ends.sender, ends.sink], [], 0.02)[1]:
                break
        else:
            ends.turn()
        assert sent < size, "the path did not fill"
    ends.sender.settimeout(deadline.seconds(PATIENCE))
    ends.sent += data[:sent]


# The bytes.


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.one_of(st.integers(1, 200), st.integers(1, 300_000)), min_size=1, max_size=6),
    budget=st.sampled_from([1, 1000, 65536, BUDGET]),
    small=st.booleans(),
)
def test_bytes_are_exact_and_in_order(name: str, sizes: list[int], budget: int, small: bool) -> None:
    """Whatever the pieces and the budget, what comes out is what went in, then the end."""
    with between(name, small=small) as ends:
        for number, size in enumerate(sizes):
            ends.carry(noise(size, number), budget)
        ends.finish()
        assert ends.turn_until(budget=budget) == END
        assert ends.receive() == ends.sent
        assert ends.pump.taken == ends.pump.given == len(ends.sent)


def test_a_stream_in_full_flow_is_exact(name: str) -> None:
    """16 MiB through a path that is full most of the time come out as they went in."""
    with between(name) as ends:
        for seed in range(4):
            ends.carry(noise(4 * MIB, seed))
        ends.finish()
        assert ends.turn_until() == END
        assert ends.receive() == ends.sent


def test_urgent_data_stay_in_line(name: str) -> None:
    """With `copy_only`, urgent bytes come through like the others, in their place."""
    with between(name) as ends:
        ends.pump.copy_only = ends.pump.to_end = True  # what a session does on EPOLLPRI
        for piece, flags in ((b"before", 0), (b"!", socket.MSG_OOB), (b"after", 0)):
            ends.send(piece, flags)
        ends.turn_until(DRY)
        assert ends.receive() == b"before!after"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("before", [b"", b"before"])
def test_urgent_data_before_the_end_are_not_lost(name: str, before: bytes, known: bool) -> None:
    """Urgent bytes and what follows them arrive although the FIN is there already, whether
    they were `known` before the turn or came in the middle of it."""
    with between(name) as ends:
        if before:
            ends.send(before)
        ends.send(b"!", socket.MSG_OOB)
        ends.send(b"after")
        ends.finish()
        ends.pump.copy_only = ends.pump.to_end = known
        if ends.turn() == DRY:
            ends.pump.copy_only = ends.pump.to_end = True
            ends.turn()
        assert ends.pump.verdict == END
        assert ends.receive() == before + b"!after"


# DRY.


def test_nothing_to_move_is_dry(name: str) -> None:
    """Without a byte at the source the verdict is DRY, and nothing is counted."""
    with between(name) as ends:
        assert ends.turn() == DRY
        assert ends.pump.taken == ends.pump.given == 0


@pytest.mark.parametrize("size", [1, 1000, 65536, 150_000])
def test_dry_means_that_the_source_is_empty(name: str, size: int) -> None:
    """DRY with bytes at the source would lose the edge: there are none, and the sink has them all."""
    with between(name, deep=True) as ends:
        ends.send(noise(size))
        assert ends.turn() == DRY
        assert queued(ends.source) == 0
        assert ends.receive() == noise(size)


def test_a_dry_pump_goes_on(name: str) -> None:
    """After DRY the next bytes go through."""
    with between(name) as ends:
        for number in range(10):
            ends.send(noise(1000, number))
            assert ends.turn() == DRY
        assert ends.receive() == ends.sent


def test_a_dry_pump_holds_nothing(name: str) -> None:
    """DRY means that taken equals given, and that no pipe is on loan."""
    with between(name) as ends:
        ends.carry(noise(MIB))
        assert ends.turn() == DRY
        assert ends.pump.taken == ends.pump.given == MIB
        assert ends.held() == 0
        assert ends.pool.lent == 0


# FULL.


def test_a_clogged_sink_is_full(name: str) -> None:
    """When the sink takes no more the verdict is FULL, and something is held for it."""
    with between(name, small=True) as ends:
        stall(ends)
        assert ends.pump.taken > ends.pump.given


def test_what_is_held_is_what_is_counted(name: str) -> None:
    """`taken - given` is exactly what the buffer and the pipe contain."""
    with between(name, small=True) as ends:
        stall(ends)
        assert ends.pump.taken - ends.pump.given == ends.held()


def test_a_full_pump_stays_full(name: str) -> None:
    """Turned again without room, it answers FULL and takes nothing: it holds a buffer or
    a chunk, and TCP slows the sender down."""
    with between(name, small=True) as ends:
        stall(ends)
        taken = ends.pump.taken
        assert [ends.turn() for _ in range(5)] == [FULL] * 5
        assert ends.pump.taken == taken
        assert ends.held() <= CHUNK


def test_a_full_pump_resumes_exactly(name: str) -> None:
    """Once the receiver reads again, every byte comes, none twice."""
    with between(name, small=True) as ends:
        stall(ends)
        while ends.turn() == FULL or len(ends.received) < len(ends.sent):
            ends.drain()
        ends.finish()
        assert ends.turn_until() == END
        assert ends.receive() == ends.sent


def test_a_trickle_into_a_clogged_sink_is_exact(name: str) -> None:
    """One byte per send fills a pipe by slots long before it is full by bytes; none is lost."""
    with between(name, small=True) as ends:
        filler = ends.clog()
        for number in range(200):
            ends.send(bytes([number % 251]))
            assert ends.turn() in (DRY, FULL)
        assert ends.turn() == FULL
        ends.finish()
        ends.pump.to_end = True
        while (verdict := ends.turn()) == FULL:
            ends.drain()
        assert verdict == END
        while len(ends.received) < len(filler) + 200:
            ends.received += ends.receiver.recv(1 << 20)
        assert ends.received == filler + bytes(number % 251 for number in range(200))


# MORE.


@pytest.mark.parametrize("budget", [1, 65536, BUDGET])
def test_the_budget_is_kept(name: str, budget: int) -> None:
    """Between a sender and a receiver that never stop, a turn ends: it moves the budget and
    at most one piece more."""
    with between(name) as ends:
        stop = threading.Event()
        data = noise(MIB)
        moved: list[int] = []
        verdicts: list[int] = []

        def pour() -> None:
            while not stop.is_set():
                try:
                    ends.sender.send(data)
                except OSError:
                    return

        def swallow() -> None:
            while not stop.is_set():
                if not ends.receiver.recv(1 << 20):
                    return

        threads = [threading.Thread(target=pour), threading.Thread(target=swallow)]
        for thread in threads:
            thread.start()
        try:
            while verdicts.count(MORE) < 20:
                before = ends.pump.given
                verdicts.append(ends.turn(budget))
                moved.append(ends.pump.given - before)
                if verdicts[-1] != MORE:
                    ends.wait_for(verdicts[-1])
        finally:
            stop.set()
            for end in (ends.sender, ends.receiver):
                end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(deadline.seconds(PATIENCE))
        assert max(moved) < budget + CHUNK


def test_after_more_the_rest_comes(name: str) -> None:
    """With a budget of one byte every turn makes progress, until everything has come."""
    with between(name, deep=True) as ends:
        ends.send(noise(200_000))
        ends.finish()
        verdicts: list[int] = []
        while not verdicts or verdicts[-1] not in FINAL:
            given = ends.pump.given
            verdicts.append(ends.turn(1))
            assert ends.pump.given > given or verdicts[-1] != MORE
            ends.drain()
        assert verdicts[0] == MORE
        assert verdicts[-1] == END
        assert ends.receive() == noise(200_000)


# END.


def test_an_empty_stream_ends(name: str) -> None:
    """A FIN without a byte is END."""
    with between(name) as ends:
        ends.finish()
        assert ends.turn() == END
        assert ends.pump.taken == 0


ANNOUNCED = pytest.mark.parametrize("announced", ["fin", "to_end"])
"""Both ways in which a session tells a pump of an end."""


@ANNOUNCED
@pytest.mark.parametrize("size", [1, 65536, 65537, 150_000])
def test_an_announced_end_is_reached_in_one_turn(name: str, size: int, announced: str) -> None:
    """Bytes and FIN that are both there end in END: no further edge will come. The bytes have
    left at the latest when the sink is shut down."""
    with between(name, deep=True) as ends:
        ends.send(noise(size))
        ends.finish()
        setattr(ends.pump, announced, True)
        assert ends.turn() == END
        ends.sink.shutdown(socket.SHUT_WR)
        assert ends.receive() == noise(size)


@ANNOUNCED
def test_the_end_comes_after_everything_was_given(name: str, announced: str) -> None:
    """With a clogged sink a stream that has ended is FULL until its last byte was given."""
    with between(name, small=True) as ends:
        filler = ends.clog()
        ends.send(noise(100_000))
        ends.finish()
        setattr(ends.pump, announced, True)
        verdicts = [ends.turn()]
        while verdicts[-1] == FULL:
            assert ends.pump.given < 100_000
            ends.drain()
            verdicts.append(ends.turn())
        assert verdicts[0] == FULL
        assert verdicts[-1] == END
        assert ends.pump.taken == ends.pump.given == 100_000
        ends.sink.shutdown(socket.SHUT_WR)
        while len(ends.received) < len(filler) + 100_000:
            ends.received += ends.receiver.recv(1 << 20)
        assert ends.received == filler + noise(100_000)


def test_the_end_does_not_touch_the_sink(name: str) -> None:
    """END is a verdict, not a deed: the mover neither closes nor shuts down."""
    with between(name) as ends:
        ends.finish()
        assert ends.turn() == END
        ends.sink.send(b"open")
        assert ends.receiver.recv(10) == b"open"


# SOURCE_BROKE.


def broken(ends: Ends) -> None:
    """Reset the sender's side, and wait until the source knows."""
    reset(ends.sender)
    ends.wait(ends.source, select.POLLRDHUP)


def test_a_reset_is_not_an_end(name: str) -> None:
    """A source that was reset is SOURCE_BROKE, with the errno."""
    with between(name) as ends:
        broken(ends)
        assert ends.turn() == SOURCE_BROKE
        assert ends.pump.error == errno.ECONNRESET


@pytest.mark.parametrize("size", [1, 65536, 150_000])
def test_bytes_before_a_reset_are_given(name: str, size: int) -> None:
    """What had arrived before the reset reaches the sink, before the verdict."""
    with between(name, deep=True) as ends:
        ends.send(noise(size))
        broken(ends)
        ends.pump.to_end = True
        assert ends.turn() == SOURCE_BROKE
        assert ends.pump.error == errno.ECONNRESET
        assert ends.receive() == noise(size)


def test_a_reset_waits_for_a_clogged_sink(name: str) -> None:
    """With a clogged sink a source that broke is FULL until its last byte was given."""
    with between(name, small=True) as ends:
        filler = ends.clog()
        ends.send(noise(100_000))
        broken(ends)
        ends.pump.to_end = True
        verdicts = [ends.turn()]
        while verdicts[-1] == FULL:
            ends.drain()
            verdicts.append(ends.turn())
        assert verdicts[0] == FULL
        assert verdicts[-1] == SOURCE_BROKE
        while len(ends.received) < len(filler) + 100_000:
            ends.received += ends.receiver.recv(1 << 20)
        assert ends.received == filler + noise(100_000)


# SINK_BROKE.


def test_a_sink_that_was_reset_is_broken(name: str) -> None:
    """A reset that came without a FIN before it is SINK_BROKE with ECONNRESET."""
    with between(name) as ends:
        reset(ends.receiver)
        ends.wait(ends.sink, select.POLLRDHUP)
        ends.send(b"too late")
        assert ends.turn() == SINK_BROKE
        assert ends.pump.error == errno.ECONNRESET


def test_a_sink_that_was_closed_is_broken(name: str) -> None:
    """A receiver that said FIN and then answered bytes with a reset is SINK_BROKE with EPIPE."""
    with between(name) as ends:
        ends.receiver.close()
        ends.wait(ends.sink, select.POLLRDHUP)
        ends.send(b"answered by a reset")
        assert ends.turn() == DRY
        until_broken = ends.wait(ends.sink, 0)
        assert until_broken & select.POLLHUP
        ends.send(b"too late")
        assert ends.turn() == SINK_BROKE
        assert ends.pump.error == errno.EPIPE


def test_what_a_broken_sink_missed_is_counted(name: str) -> None:
    """After SINK_BROKE `given` has no byte that the sink refused."""
    with between(name) as ends:
        ends.send(noise(1000))
        assert ends.turn() == DRY
        ends.acknowledged()
        reset(ends.receiver)
        ends.wait(ends.sink, select.POLLRDHUP)
        ends.send(noise(500))
        assert ends.turn() == SINK_BROKE
        assert (ends.pump.taken, ends.pump.given) == (1500, 1000)


def test_a_sink_may_break_while_it_is_clogged(name: str) -> None:
    """A FULL pump whose sink is reset answers SINK_BROKE."""
    with between(name, small=True) as ends:
        stall(ends)
        reset(ends.receiver)
        ends.wait(ends.sink, select.POLLRDHUP)
        assert ends.turn() == SINK_BROKE
        assert ends.pump.error == errno.ECONNRESET
