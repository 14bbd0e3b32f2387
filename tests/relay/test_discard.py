"""The mover of a lingering end: reads and drops."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator

import pytest

from fastfwd.relay.copying import discarder
from fastfwd.relay.pump import BUDGET, DRY, END, MORE, SOURCE_BROKE
from tests.relay.ends import Ends, between
from tests.sockets import noise, queued, reset


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A pump that discards."""
    with between("copying", deep=True) as made:
        made.pump.move = discarder()
        yield made


def test_what_comes_is_dropped(ends: Ends) -> None:
    """Bytes are read until the source is dry, counted as taken, and never given."""
    ends.send(noise(100_000))
    assert ends.turn() == DRY
    assert queued(ends.source) == 0
    assert (ends.pump.taken, ends.pump.given) == (100_000, 0)


def test_nothing_to_drop_is_dry(ends: Ends) -> None:
    """Without a byte the verdict is DRY."""
    assert ends.turn() == DRY


def test_the_sink_gets_nothing(ends: Ends) -> None:
    """The sink is never touched, even if it could take bytes."""
    ends.send(b"dropped")
    ends.turn()
    ends.finish()
    ends.turn()
    ends.sink.send(b"mark")
    assert ends.receiver.recv(100) == b"mark"


def test_a_broken_sink_does_not_matter(ends: Ends) -> None:
    """A sink that is gone does not end it."""
    ends.receiver.close()
    ends.send(b"dropped")
    assert ends.turn() == DRY


def test_the_end_is_found(ends: Ends) -> None:
    """A FIN after dropped bytes is END."""
    ends.send(noise(1000))
    ends.finish()
    assert ends.turn() == END
    assert ends.pump.taken == 1000


def test_a_reset_is_found(ends: Ends) -> None:
    """A reset is SOURCE_BROKE with its errno."""
    ends.send(noise(1000))
    reset(ends.sender)
    ends.wait(ends.source, select.POLLRDHUP)
    assert ends.turn() == SOURCE_BROKE
    assert ends.pump.error == errno.ECONNRESET


def test_the_budget_is_kept(ends: Ends) -> None:
    """With more to drop than the budget the verdict is MORE, and the rest waits."""
    ends.send(noise(150_000))
    assert ends.turn(1) == MORE
    assert queued(ends.source) > 0
    assert ends.turn(BUDGET) == DRY
