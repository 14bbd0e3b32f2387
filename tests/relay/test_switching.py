"""When a direction changes from copying to splicing and back, and what it needs for that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastfwd.relay.choose import ALONE, BUFFER, DEMOTE_AFTER, PROMOTE_AFTER, SHARE
from fastfwd.relay.pipes import PipePool
from fastfwd.relay.pump import DRY, END, FULL, MORE, Mover, Tally
from fastfwd.relay.splicing import movers
from tests.relay.ends import MOVERS, Ends, between
from tests.sockets import noise


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mover]:
    """The movers "copy" and "splice" that the next `between("both")` works with."""
    made: dict[str, Mover] = {}

    def both(pool: PipePool) -> Mover:
        made["copy"], made["splice"] = movers(pool, Tally())
        return made["copy"]

    make: Callable[[PipePool], Mover] = both
    monkeypatch.setitem(MOVERS, "both", make)
    return made


def full_reads(ends: Ends, count: int) -> None:
    """Have the pump make `count` reads that fill the buffer."""
    ends.send(noise(count * BUFFER))
    ends.turn_until(DRY)


def test_a_direction_in_full_flow_is_promoted(pair: dict[str, Mover]) -> None:
    """After PROMOTE_AFTER reads in a row that filled the buffer it is spliced."""
    with between("both", deep=True) as ends:
        ends.send(noise(PROMOTE_AFTER * BUFFER))
        assert ends.turn(PROMOTE_AFTER * BUFFER + 1) in (DRY, MORE)
        assert ends.pump.move is pair["splice"]
        assert ends.receive() == ends.sent


def test_fewer_full_reads_do_not_promote(pair: dict[str, Mover]) -> None:
    """One full read less, and it is still copied."""
    with between("both", deep=True) as ends:
        full_reads(ends, PROMOTE_AFTER - 1)
        assert ends.pump.move is pair["copy"]
        assert ends.pool.lent + ends.pool.idle == 0


def test_a_short_read_breaks_the_row(pair: dict[str, Mover]) -> None:
    """Full reads count only in a row."""
    with between("both", deep=True) as ends:
        for seed in range(5):
            full_reads(ends, PROMOTE_AFTER - 1)
            ends.send(noise(100, seed))
            assert ends.turn() == DRY
        assert ends.pump.move is pair["copy"]


def test_small_pieces_are_never_spliced(pair: dict[str, Mover]) -> None:
    """A conversation in small pieces borrows no pipe, however long it is."""
    with between("both") as ends:
        for number in range(100):
            ends.send(noise(500, number % 7))
            assert ends.turn() == DRY
        assert ends.pump.move is pair["copy"]
        assert ends.pool.idle == 0


def test_short_runs_demote(pair: dict[str, Mover]) -> None:
    """After DEMOTE_AFTER turns that found little it is copied again, byte-exact."""
    with between("both") as ends:
        ends.pump.move = pair["splice"]
        for number in range(DEMOTE_AFTER):
            assert ends.pump.move is pair["splice"]
            ends.send(noise(1000, number))
            assert ends.turn() == DRY
        assert ends.pump.move is pair["copy"]
        assert ends.receive() == ends.sent


def test_long_runs_do_not_demote(pair: dict[str, Mover]) -> None:
    """Turns that move more than half a buffer keep it spliced."""
    with between("both") as ends:
        ends.pump.move = pair["splice"]
        for number in range(2 * DEMOTE_AFTER):
            ends.send(noise(BUFFER // 2 + 1, number))
            assert ends.turn() == DRY
        assert ends.pump.move is pair["splice"]


def test_without_a_pipe_it_goes_on_copying(pair: dict[str, Mover]) -> None:
    """With the pool at its cap full flow is copied, byte-exact."""
    with between("both", cap=0) as ends:
        ends.carry(noise(1 << 20))
        assert ends.pump.move is pair["copy"]
        assert ends.receive() == noise(1 << 20)


def test_a_splicer_that_gets_no_pipe_copies(pair: dict[str, Mover]) -> None:
    """A direction that gave its pipe back and finds the pool empty is copied from then on."""
    with between("both", cap=0) as ends:
        ends.pump.move = pair["splice"]
        ends.send(b"without a pipe")
        assert ends.turn() == DRY
        assert ends.pump.move is pair["copy"]
        assert ends.receive() == b"without a pipe"


def test_urgent_data_forbid_promotion(pair: dict[str, Mover]) -> None:
    """With `copy_only` full flow is copied: splice(2) cannot pass the urgent mark."""
    with between("both") as ends:
        ends.pump.copy_only = True
        ends.carry(noise(1 << 20))
        assert ends.pump.move is pair["copy"]
        assert ends.receive() == noise(1 << 20)


def test_urgent_data_end_splicing(pair: dict[str, Mover]) -> None:
    """A spliced direction that hears of urgent data is copied from then on."""
    with between("both") as ends:
        ends.pump.move = pair["splice"]
        ends.pump.copy_only = ends.pump.to_end = True
        ends.send(b"bytes")
        assert ends.turn() == DRY
        assert ends.pump.move is pair["copy"]


def test_a_pipe_with_bytes_in_it_stays_with_its_pump(pair: dict[str, Mover]) -> None:
    """A FULL pump keeps its pipe over turns, and gives it back once it is empty."""
    with between("both", small=True) as ends:
        ends.pump.move = pair["splice"]
        filler = ends.clog()
        ends.send(noise(10_000))
        assert ends.turn() == FULL
        pipe = ends.pump.pipe
        assert pipe is not None
        assert ends.turn() == FULL
        assert ends.pump.pipe is pipe
        ends.finish()
        while (verdict := ends.turn()) == FULL:
            ends.drain()
        ends.turn_until(END)
        assert verdict in (DRY, END)
        assert ends.pump.pipe is None
        assert (ends.pool.lent, ends.pool.idle) == (0, 1)
        while len(ends.received) < len(filler) + 10_000:
            ends.received += ends.receiver.recv(1 << 20)
        assert ends.received == filler + noise(10_000)


def test_copying_never_holds_a_pipe(pair: dict[str, Mover]) -> None:
    """Promotion and demotion back and forth leave no pipe on loan."""
    with between("both") as ends:
        for round_ in range(5):
            ends.carry(noise(1 << 20, round_))
            for number in range(2 * DEMOTE_AFTER):
                ends.send(noise(10, number))
                assert ends.turn() == DRY
            assert ends.pump.move is pair["copy"]
            assert ends.pump.pipe is None
        assert ends.pool.lent == 0
        assert ends.receive() == ends.sent


def test_copying_for_others_shortens_the_turns_of_a_long_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than SHARE bytes are one turn for a stream that has the worker to itself, and two as soon
    as something has been copied."""
    tally = Tally()
    monkeypatch.setitem(MOVERS, "counted", lambda pool: movers(pool, tally)[1])
    with between("counted", deep=True) as ends:
        for _ in range(ALONE):
            ends.send(b"x")
            ends.pump.streak = 0
            assert ends.turn() == DRY
        ends.send(noise(SHARE + 1000))
        assert ends.turn() == DRY
        assert ends.receive() == ends.sent
        tally.copied += 1
        ends.send(noise(SHARE + 1000))
        assert ends.turn() == MORE
