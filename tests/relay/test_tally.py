"""What the movers of a worker have taken, by path."""

from __future__ import annotations

import pytest

from fastfwd.relay.choose import BUFFER, PROMOTE_AFTER
from fastfwd.relay.copying import copier, discarder
from fastfwd.relay.pump import DRY, END, FULL, SOURCE_BROKE, Tally
from fastfwd.relay.splicing import movers
from tests.relay.ends import MOVERS, between
from tests.sockets import noise, reset


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Tally:
    """What every mover of the test counts in."""
    made = Tally()
    monkeypatch.setitem(MOVERS, "copying", lambda pool: copier(lambda pump: False, made))
    monkeypatch.setitem(MOVERS, "splicing", lambda pool: movers(pool, made)[1])
    monkeypatch.setitem(MOVERS, "switching", lambda pool: movers(pool, made)[0])
    return made


def test_nothing_has_been_moved_at_first() -> None:
    """Both begin at 0."""
    assert (Tally().copied, Tally().spliced) == (0, 0)


def test_copied_bytes_are_counted_as_copied(tally: Tally) -> None:
    """Byte by byte, and not as spliced."""
    with between("copying") as ends:
        ends.carry(noise(300_001))
        assert ends.receive() == ends.sent
        assert (tally.copied, tally.spliced) == (300_001, 0)


def test_spliced_bytes_are_counted_as_spliced(tally: Tally) -> None:
    """What stays in the kernel is none of the buffer's."""
    with between("splicing") as ends:
        ends.send(noise(100_000))
        ends.turn_until(DRY)
        assert ends.receive() == ends.sent
        assert (tally.copied, tally.spliced) == (0, 100_000)


def test_a_direction_that_changes_its_mover_is_counted_by_both(tally: Tally) -> None:
    """The reads that filled the buffer were copied; what came after them was spliced."""
    with between("switching", deep=True) as ends:
        ends.send(noise(PROMOTE_AFTER * BUFFER))
        ends.turn_until(DRY)
        ends.send(noise(BUFFER))
        ends.turn_until(DRY)
        assert (tally.copied, tally.spliced) == (PROMOTE_AFTER * BUFFER, BUFFER)


@pytest.mark.parametrize("name", ["copying", "splicing", "switching"])
def test_together_they_are_what_was_taken(tally: Tally, name: str) -> None:
    """Whichever way each byte has gone, it is counted once."""
    with between(name) as ends:
        ends.carry(noise(1 << 20))
        ends.finish()
        ends.turn_until(END)
        assert ends.receive() == ends.sent
        assert tally.copied + tally.spliced == ends.pump.taken == len(ends.sent)


@pytest.mark.parametrize("name", ["copying", "splicing"])
def test_what_is_held_is_counted_once(tally: Tally, name: str) -> None:
    """Taken is counted, given is not: a sink that is full makes no byte count twice."""
    with between(name, small=True) as ends:
        ends.clog()
        ends.send(noise(10_000))
        assert ends.turn() == FULL
        assert ends.turn() == FULL
        assert tally.copied + tally.spliced == ends.pump.taken == 10_000
        ends.finish()
        while ends.turn() == FULL:
            ends.drain()
        ends.turn_until(END)
        assert tally.copied + tally.spliced == 10_000


@pytest.mark.parametrize("name", ["copying", "splicing"])
def test_a_reset_adds_nothing(tally: Tally, name: str) -> None:
    """An end is no byte."""
    with between(name) as ends:
        ends.send(b"five!")
        ends.turn_until(DRY)
        reset(ends.sender)
        ends.turn_until(SOURCE_BROKE)
        assert tally.copied + tally.spliced == 5


def test_two_pumps_are_counted_together(tally: Tally) -> None:
    """A tally is a worker's."""
    with between("copying") as one, between("splicing") as other:
        for ends, size in ((one, 100), (other, 200)):
            ends.send(noise(size))
            ends.turn_until(DRY)
        assert (tally.copied, tally.spliced) == (100, 200)


def test_discarded_bytes_are_not_moved(tally: Tally) -> None:
    """What is read at the lingering end of a session and dropped has gone nowhere."""
    with between("copying") as ends:
        ends.pump.move = discarder()
        ends.send(noise(1000))
        ends.turn_until(DRY)
        assert (tally.copied, tally.spliced) == (0, 0)
