"""The shim does what its toxics say, or rows that use it would measure something else."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

import pytest

from tests.conftest import StartServer
from tests.faults.shim import (
    Bandwidth,
    End,
    Latency,
    LimitData,
    Piece,
    ResetPeer,
    Shim,
    Slicer,
    SlowClose,
    Stage,
    Timeout,
    Toxic,
    passed,
)
from tests.servers import echo, sink
from tests.sockets import (
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    read_exactly,
    read_to_end,
    reset,
)

FIN = Piece(1.0, End.FIN)


def stages(*toxics: Toxic, seed: int = 1) -> list[Stage]:
    """Those of one connection."""
    rng = random.Random(seed)
    return [toxic.stage(rng) for toxic in toxics]


# What the toxics compute.


def test_latency() -> None:
    """Bytes and end alike come later."""
    late = stages(Latency(0.5))
    assert passed(Piece(1.0, b"x"), late) == [Piece(1.5, b"x")]
    assert passed(FIN, late) == [Piece(1.5, End.FIN)]


def test_jitter_stays_in_its_bounds() -> None:
    """And it is not always the same."""
    late = stages(Latency(0.5, jitter=0.1))
    dues = {passed(Piece(1.0, b"x"), late)[0].due for _ in range(100)}
    assert len(dues) > 50
    assert min(dues) >= 1.4
    assert max(dues) <= 1.6


def test_bandwidth() -> None:
    """A piece is due when its last byte has gone, behind the pieces before it."""
    narrow = stages(Bandwidth(100))
    assert [passed(Piece(1.0, bytes(size)), narrow)[0].due for size in (50, 100)] == [1.5, 2.5]
    assert passed(Piece(9.0, bytes(100)), narrow)[0].due == 10.0


def test_slices() -> None:
    """The same bytes, in pieces of the sizes asked for and with gaps between them, also across reads."""
    cut = stages(Slicer(10, 5, gap=0.25))
    first, second = (passed(Piece(1.0, noise(1000, seed)), cut) for seed in (1, 2))
    assert b"".join(piece.what for piece in first + second if isinstance(piece.what, bytes)) == (
        noise(1000, 1) + noise(1000, 2)
    )
    assert all(5 <= piece.size <= 15 for piece in first[:-1])
    assert [piece.due for piece in first + second] == [
        1.0 + 0.25 * number for number in range(len(first + second))
    ]
    assert passed(FIN, cut)[0].due >= second[-1].due


def test_the_same_seed_makes_the_same_slices() -> None:
    """Another seed makes others."""
    one, same, other = (
        [piece.size for piece in passed(Piece(0, bytes(10_000)), stages(Slicer(50, 40), seed=seed))]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_slow_close() -> None:
    """Only the end is late."""
    slow = stages(SlowClose(2))
    assert passed(Piece(1.0, b"x"), slow) == [Piece(1.0, b"x")]
    assert passed(FIN, slow) == [Piece(3.0, End.FIN)]


def test_toxics_one_behind_the_other() -> None:
    """Each works on what the one before it has left."""
    assert passed(Piece(1.0, bytes(100)), stages(Bandwidth(100), Slicer(60), Latency(0.5))) == [
        Piece(2.5, bytes(60)),
        Piece(2.5, bytes(40)),
    ]


# What passes through the sockets.


def test_without_a_toxic_everything_passes(backend: StartServer) -> None:
    """Bytes and both FINs."""
    data = noise(3_000_000)
    with Shim(backend(echo).address) as shim, connect(shim.address) as client, Sending(client, data):
        assert read_to_end(client) == Ending(data, "EOF")


@pytest.mark.parametrize("side", ["client", "backend"])
def test_a_reset_passes_as_a_reset(listener: Listener, side: str) -> None:
    """In either direction."""
    with Shim(listener.address) as shim, connect(shim.address) as client, listener.accept() as behind:
        one, other = (client, behind) if side == "client" else (behind, client)
        one.sendall(b"before")
        assert read_exactly(other, 6) == b"before"
        reset(one)
        assert read_to_end(other) == Ending(b"", "ECONNRESET")


def test_every_byte_passes_whatever_the_toxics(backend: StartServer) -> None:
    """Cut, delayed with jitter and narrowed both ways, on ten connections at once."""
    toxics = [Slicer(700, 699), Latency(0.01, jitter=0.01), Bandwidth(2_000_000)]
    with ExitStack() as stack:
        shim = stack.enter_context(Shim(backend(echo).address, up=toxics, down=toxics, seed=5))
        clients = [stack.enter_context(connect(shim.address)) for _ in range(10)]
        for number, client in enumerate(clients):
            stack.enter_context(Sending(client, noise(60_000, number)))
        assert [read_to_end(client).data for client in clients] == [
            noise(60_000, number) for number in range(10)
        ]


def test_a_line_is_as_long_and_as_narrow_as_it_says(backend: StartServer) -> None:
    """50,000 bytes at 200,000 a second, 0.1 s away, take no less than 0.35 s."""
    toxics = [Latency(0.1), Bandwidth(200_000)]
    with Shim(backend(echo).address, up=toxics) as shim, connect(shim.address) as client:
        began = time.monotonic()
        client.sendall(noise(50_000))
        finish(client)
        assert len(read_to_end(client).data) == 50_000
        assert time.monotonic() - began >= 0.35


def test_timeout(backend: StartServer) -> None:
    """Not a byte arrives; then both sides are closed."""
    behind = backend(sink)
    with Shim(behind.address, up=[Timeout(0.2)]) as shim, connect(shim.address) as client:
        client.sendall(b"into the void")
        assert read_to_end(client) == Ending(b"", "EOF")
        visit = behind.visit()
        assert visit.ended.wait(10)
        assert (bytes(visit.received), visit.how) == (b"", "EOF")


def test_reset_peer(listener: Listener) -> None:
    """What was there before has arrived."""
    toxics = [ResetPeer(0.2)]
    with (
        Shim(listener.address, down=toxics) as shim,
        connect(shim.address) as client,
        listener.accept() as behind,
    ):
        behind.sendall(b"so far")
        assert read_to_end(client) == Ending(b"so far", "ECONNRESET")
        assert read_to_end(behind) == Ending(b"", "ECONNRESET")


def test_limit_data(listener: Listener) -> None:
    """So many bytes, then the end for both sides."""
    toxics = [LimitData(1000)]
    with (
        Shim(listener.address, down=toxics) as shim,
        connect(shim.address) as client,
        listener.accept() as behind,
    ):
        behind.sendall(noise(1500))
        assert read_to_end(client) == Ending(noise(1500)[:1000], "EOF")
        assert read_to_end(behind).how == "EOF"


def test_a_refusal_is_a_reset() -> None:
    """There is nobody behind the line."""
    with Listener() as gone:
        address = gone.address
    with Shim(address) as shim, pytest.raises(ConnectionResetError), connect(shim.address) as client:
        client.recv(1)  # unless connect(2) has been told already
