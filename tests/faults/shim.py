"""A bad line: a TCP proxy in user space that delays, narrows, cuts and ends what passes through it.

    with Shim(backend.address, down=[Latency(0.05), Bandwidth(1_250_000)]) as shim:
        running = watched(f"127.0.0.1 {port} {shim.host} {shim.port}\n").running

The toxics are toxiproxy's, under its names (github.com/Shopify/toxiproxy), for kernels without
netem. A toxic computes what becomes of a piece and when it is due, so all but the waiting is
arithmetic, and the same seed makes the same pieces. A FIN passes as a FIN after the bytes before
it; a reset passes as a reset, which may take bytes with it that are still under way, as on any
line. Loss is not here: a proxy cannot lose a segment.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from tests import deadline
from tests.sockets import Address, Listener, family_of, reset

CHUNK: Final = 1 << 14
"""Bytes read at once: 13 ms of a line of 10 Mbit/s."""

LINE: Final = 64
"""Pieces under way in one direction, like the segments in a line and its queues; then the sender waits."""


class End(Enum):
    """How a stream ends."""

    FIN = auto()
    """It is passed on, and the other direction goes on."""
    CLOSE = auto()
    """Both sides are closed."""
    RESET = auto()
    """Both sides are reset."""


class Over(Exception):  # noqa: N818  # it is not an error
    """The connection ends in both directions."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.end = end


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes, or the end behind them, and when they are due on the loop's clock."""

    due: float
    what: bytes | End

    @property
    def size(self) -> int:
        """How many bytes."""
        return 0 if isinstance(self.what, End) else len(self.what)


Stage = Callable[[Piece], list[Piece]]
"""What a toxic makes of the pieces of one connection, one after the other."""


class Toxic:
    """What may be wrong with one direction of a line. Pieces keep their order whatever their
    times, so no toxic need see to it."""

    __slots__ = ()

    def stage(self, rng: random.Random) -> Stage:
        """For one connection."""
        return lambda piece: [piece]

    def ends(self) -> tuple[float, End] | None:
        """The end that a connection comes to by itself, and after how many seconds."""
        return None


@dataclass(frozen=True, slots=True)
class Latency(Toxic):
    """Everything comes `seconds` later, up to `jitter` more or less."""

    seconds: float
    jitter: float = 0.0

    def stage(self, rng: random.Random) -> Stage:
        return lambda piece: [
            replace(piece, due=piece.due + self.seconds + rng.uniform(-self.jitter, self.jitter))
        ]


@dataclass(frozen=True, slots=True)
class Bandwidth(Toxic):
    """No more than `rate` bytes a second."""

    rate: float

    def stage(self, rng: random.Random) -> Stage:
        free = 0.0

        def narrow(piece: Piece) -> list[Piece]:
            nonlocal free
            free = max(free, piece.due) + piece.size / self.rate
            return [replace(piece, due=free)]

        return narrow


@dataclass(frozen=True, slots=True)
class Slicer(Toxic):
    """Pieces of `average` bytes, up to `variation` more or less, `gap` seconds apart."""

    average: int
    variation: int = 0
    gap: float = 0.0

    def stage(self, rng: random.Random) -> Stage:
        free = 0.0

        def cut(piece: Piece) -> list[Piece]:
            nonlocal free
            if isinstance(piece.what, End):
                return [replace(piece, due=max(free, piece.due))]
            pieces = []
            rest = piece.what
            while rest:
                size = max(1, self.average + rng.randint(-self.variation, self.variation))
                free = max(free, piece.due)
                pieces.append(Piece(free, rest[:size]))
                free += self.gap
                rest = rest[size:]
            return pieces

        return cut


@dataclass(frozen=True, slots=True)
class SlowClose(Toxic):
    """The end comes `seconds` later."""

    seconds: float

    def stage(self, rng: random.Random) -> Stage:
        return lambda piece: (
            [replace(piece, due=piece.due + self.seconds)] if isinstance(piece.what, End) else [piece]
        )


@dataclass(frozen=True, slots=True)
class Timeout(Toxic):
    """Nothing passes; after `seconds` the connection is closed, with 0 never."""

    seconds: float

    def stage(self, rng: random.Random) -> Stage:
        return lambda piece: []

    def ends(self) -> tuple[float, End] | None:
        return (self.seconds, End.CLOSE) if self.seconds else None


@dataclass(frozen=True, slots=True)
class ResetPeer(Toxic):
    """After `seconds` both sides are reset."""

    seconds: float

    def ends(self) -> tuple[float, End] | None:
        return self.seconds, End.RESET


@dataclass(frozen=True, slots=True)
class LimitData(Toxic):
    """After `size` bytes the connection is closed."""

    size: int

    def stage(self, rng: random.Random) -> Stage:
        left = self.size

        def limit(piece: Piece) -> list[Piece]:
            nonlocal left
            if isinstance(piece.what, End):
                return [piece]
            passed = replace(piece, what=piece.what[:left])
            left -= passed.size
            return [passed] if left else [passed, Piece(piece.due, End.CLOSE)]

        return limit


def passed(piece: Piece, stages: Sequence[Stage]) -> list[Piece]:
    """What becomes of `piece` in all `stages`."""
    pieces = [piece]
    for stage in stages:
        pieces = [out for each in pieces for out in stage(each)]
    return pieces


class Shim:
    """The line to `target`, with the toxics of either direction; `address` is its near end.
    A target that refuses is, seen from there, a reset. It runs in a thread of its own."""

    def __init__(
        self, target: Address, *, up: Sequence[Toxic] = (), down: Sequence[Toxic] = (), seed: int = 1
    ) -> None:
        self.target = target
        self.up = up
        self.down = down
        self.seed = seed
        self.listener = Listener(target[0])
        self.listener.socket.setblocking(False)
        self.address = self.listener.address
        self.host, self.port = self.address

    def __enter__(self) -> Shim:
        self.loop = asyncio.new_event_loop()
        self.accepting = self.loop.create_task(self._accept())
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.accepting.cancel)
        self.thread.join(deadline.seconds(10))
        self.listener.close()
        assert not self.thread.is_alive(), "the shim does not end"

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.accepting)
        self.loop.close()

    async def _accept(self) -> None:
        async with asyncio.TaskGroup() as links:
            for number in itertools.count():
                near, _ = await self.loop.sock_accept(self.listener.socket)
                links.create_task(self._link(near, number))

    async def _link(self, near: socket.socket, number: int) -> None:
        with near, socket.socket(family_of(self.target[0]), socket.SOCK_STREAM) as far:
            for end in (near, far):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self.loop.sock_connect(far, self.target)
            except OSError:
                reset(near)
                return
            try:
                async with asyncio.TaskGroup() as group:
                    ways = [
                        self._way(group, near, far, self.up, random.Random(f"{self.seed} {number} up")),
                        self._way(group, far, near, self.down, random.Random(f"{self.seed} {number} down")),
                    ]
                    alarms = [
                        group.create_task(self._end(*its_end))
                        for toxic in (*self.up, *self.down)
                        if (its_end := toxic.ends()) is not None
                    ]
                    await asyncio.gather(*ways)
                    for alarm in alarms:
                        alarm.cancel()
            except* Over as over:
                if any(isinstance(each, Over) and each.end is End.RESET for each in over.exceptions):
                    reset(near)
                    reset(far)

    def _way(
        self,
        group: asyncio.TaskGroup,
        source: socket.socket,
        sink: socket.socket,
        toxics: Sequence[Toxic],
        rng: random.Random,
    ) -> asyncio.Task[None]:
        """One direction of a connection; the task that ends when its FIN has been passed on."""
        line: asyncio.Queue[Piece] = asyncio.Queue(LINE)
        group.create_task(self._read(source, [toxic.stage(rng) for toxic in toxics], line))
        return group.create_task(self._write(sink, line))

    async def _read(self, source: socket.socket, stages: Sequence[Stage], line: asyncio.Queue[Piece]) -> None:
        what: bytes | End = b""
        while not isinstance(what, End):
            try:
                what = await self.loop.sock_recv(source, CHUNK) or End.FIN
            except OSError:
                what = End.RESET
            for piece in passed(Piece(self.loop.time(), what), stages):
                await line.put(piece)

    async def _write(self, sink: socket.socket, line: asyncio.Queue[Piece]) -> None:
        while True:
            piece = await line.get()
            if (early := piece.due - self.loop.time()) > 0:
                await asyncio.sleep(early)
            try:
                if piece.what is End.FIN:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if isinstance(piece.what, End):
                    raise Over(piece.what)
                await self.loop.sock_sendall(sink, piece.what)
            except OSError:
                raise Over(End.RESET) from None

    async def _end(self, seconds: float, end: End) -> None:
        await asyncio.sleep(seconds)
        raise Over(end)
