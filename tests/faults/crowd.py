"""The clients of the soak, in a process of their own: many kinds at once, every byte verified.

Long streams and short calls (those of tests.load), sessions that are mostly silent, slow readers,
clients that reset, clients that are denied, and some whose backend comes and goes. `python -m
tests.faults.crowd` is that process; the soak starts it through `Crowd`.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests import deadline
from tests.apart import start
from tests.deadline import until
from tests.load import Call, Stream, call, report, stream, word
from tests.sockets import Address, noise

HOST = "127.0.0.1"
DENIED = "127.0.0.66"
"""The address of the clients whom the access rules refuse."""

CALLS = 150
"""Short calls per second."""

STREAMS, SILENT, SLOW, RESETS, REFUSED, FICKLE = 8, 40, 4, 2, 1, 2
"""How many clients of each other kind there are at a time."""

SEEDS = 16
"""Streams repeat the noise of so many seeds."""

TEXT = 1 << 20
"""Noise from which other texts are cut, anywhere."""


@dataclass(slots=True)
class Crowd:
    """All clients: of the forward at `steady`, whose backend stays, and of that at `fickle`, whose
    backend does not. What they report is counted; what went wrong is kept, with the time it came."""

    steady: Address
    fickle: Address
    seed: int
    rate: int = CALLS
    counts: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    calls: list[Call] = field(default_factory=list)
    streams: list[tuple[float, Stream]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] = field(init=False)
    reader: threading.Thread = field(init=False)

    def __enter__(self) -> Crowd:
        self.process = start(__name__, self.steady[1], self.fickle[1], self.seed, self.rate)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        return self

    def read(self) -> None:
        """Thread: what the clients report, a line each."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, *fields = json.loads(line)
            self.counts[kind] += 1
            if kind == "call":
                self.note_call(Call(*fields))
            elif kind != "port":
                self.note(kind, Stream(*fields))

    def note_call(self, ended: Call) -> None:
        """A short call: of the good ones there are too many to keep."""
        if ended.how != "ok":
            self.calls.append(ended)

    def note(self, kind: str, ended: Stream) -> None:
        """Anything longer. Of the kind `other` an end of any sort is right, wrong bytes are not."""
        self.verified += ended.verified
        if ended.how.startswith("wrong"):
            self.wrong.append(f"{kind} {ended.port}: {ended.how}")
        elif ended.how != "ok" and kind == "stream":
            self.streams.append((time.monotonic(), ended))

    def busy(self, count: int) -> None:
        """Wait until so many calls and a long stream have ended well: all of it works."""
        until(lambda: self.counts["call"] >= count and self.counts["port"] > 0, 20, "the crowd")

    def stop(self) -> None:
        """Nobody new; everybody finishes; returns when all have reported."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.reader.join(deadline.seconds(60))
        assert not self.reader.is_alive(), "the crowd does not end"
        assert self.process.wait(deadline.seconds(10)) == 0

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            self.reader.join(deadline.seconds(10))


# The process.


@dataclass(slots=True)
class Session:
    """One connection of a client, and what it has found."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0
    verified: int = 0


Act = Callable[[Session], Awaitable[str]]
"""What a client does on its connection; gives `ok`, or what was wrong."""


class Clients:
    """Everybody, until `stop`."""

    def __init__(self, steady: Address, fickle: Address, seed: int) -> None:
        self.steady = steady
        self.fickle = fickle
        self.rng = random.Random(seed)
        self.stop = asyncio.Event()

    async def pause(self, shortest: float, longest: float) -> None:
        """Some seconds, unless the end comes first."""
        try:
            async with asyncio.timeout(self.rng.uniform(shortest, longest)):
                await self.stop.wait()
        except TimeoutError:
            pass

    def text(self, size: int) -> bytes:
        """Noise, hardly ever the same."""
        start = self.rng.randrange(TEXT - size)
        return noise(TEXT)[start : start + size]

    async def connected(self, kind: str, address: Address, act: Act, source: str = HOST) -> None:
        """A connection, on which the client does what it does; the report of it."""
        session, port, how = None, 0, "ok"
        try:
            async with asyncio.timeout(deadline.seconds(120)):
                ends = await asyncio.open_connection(*address, local_addr=(source, 0))
                session = Session(*ends)
                port = session.writer.get_extra_info("sockname")[1]
                try:
                    how = await act(session)
                finally:
                    session.writer.close()
                    await session.writer.wait_closed()
        except asyncio.IncompleteReadError:
            how = "EOF"
        except (OSError, TimeoutError) as error:
            how = word(error)
        sent, verified = (session.sent, session.verified) if session else (0, 0)
        report(kind, port, sent, verified, how)

    # What they do.

    async def echoed(self, session: Session, size: int) -> bool:
        """Say something, and see that it comes back."""
        text = self.text(size)
        session.writer.write(text)
        session.sent += size
        answer = await session.reader.readexactly(size)
        if answer != text:
            return False
        session.verified += size
        return True

    async def say_little(self, session: Session) -> str:
        """A few words now and then."""
        for _ in range(self.rng.randint(2, 4)):
            if not await self.echoed(session, self.rng.randint(1, 500)):
                return "wrong bytes"
            await self.pause(1, 20)
        return "ok"

    async def read_slowly(self, session: Session) -> str:
        """A megabyte, of which little is read at a time."""
        text = self.text(TEXT - 1)
        session.writer.write(text)
        session.writer.write_eof()
        session.sent = len(text)
        while piece := await session.reader.read(16_384):
            if piece != text[session.verified : session.verified + len(piece)]:
                return f"wrong bytes after {session.verified}"
            session.verified += len(piece)
            await self.pause(0.01, 0.05)
        return "ok" if session.verified == session.sent else "EOF"

    async def reset(self, session: Session) -> str:
        """Send a lot, read a little, reset."""
        text = self.text(self.rng.choice((1, 1000, 100_000, 400_000)))
        session.writer.write(text)
        session.sent = len(text)
        piece = await session.reader.read(16_384)
        session.verified = len(piece)
        linger = struct.pack("ii", 1, 0)
        session.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        session.writer.transport.abort()
        return "ok" if text.startswith(piece) else "wrong bytes"

    async def exchange(self, session: Session) -> str:
        """A question and its answer, if the backend is there."""
        return "ok" if await self.echoed(session, 10_000) else "wrong bytes"

    async def be_refused(self, session: Session) -> str:
        """Nothing may come."""
        return "wrong bytes: a denied client is served" if await session.reader.read() else "ok"

    async def stream(self) -> None:
        """A long stream, of some seconds or a minute."""
        over = asyncio.Event()

        async def end() -> None:
            await self.pause(2, 60)
            over.set()

        ending = asyncio.create_task(end())
        await stream(self.steady, self.rng.randrange(SEEDS), over)
        over.set()
        ending.cancel()

    # How many, how often.

    async def again(self, visit: Callable[[], Awaitable[None]], longest: float) -> None:
        """One after the other, with pauses."""
        while not self.stop.is_set():
            await visit()
            await self.pause(0, longest)

    async def call_steadily(self, rate: int) -> None:
        """Short calls, so many per second."""
        tasks: set[asyncio.Task[None]] = set()
        begin = time.monotonic()
        number = 0
        while not self.stop.is_set():
            while number < (time.monotonic() - begin) * rate:
                number += 1
                task = asyncio.create_task(call(self.steady, number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await self.pause(0.005, 0.005)
        await asyncio.gather(*tasks)

    async def run(self, rate: int) -> None:
        """Everybody, until stdin ends and all have finished."""
        kinds: list[tuple[int, Callable[[], Awaitable[None]], float]] = [
            (STREAMS, self.stream, 1),
            (SILENT, lambda: self.connected("stream", self.steady, self.say_little), 1),
            (SLOW, lambda: self.connected("stream", self.steady, self.read_slowly), 1),
            (RESETS, lambda: self.connected("other", self.steady, self.reset), 0.5),
            (FICKLE, lambda: self.connected("other", self.fickle, self.exchange), 0.5),
            (REFUSED, lambda: self.connected("denied", self.steady, self.be_refused, DENIED), 0.5),
        ]
        everybody = [self.again(visit, longest) for count, visit, longest in kinds for _ in range(count)]
        tasks = [asyncio.create_task(each) for each in (*everybody, self.call_steadily(rate))]
        await asyncio.to_thread(sys.stdin.read)
        self.stop.set()
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    steady_port, fickle_port, own_seed, own_rate = map(int, sys.argv[1:])
    asyncio.run(Clients((HOST, steady_port), (HOST, fickle_port), own_seed).run(own_rate))
