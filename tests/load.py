"""Load on a running program: clients in a process of their own, against a backend that echoes.

Short calls at a steady rate and long streams, every byte verified. `python -m
tests.load` is that process; the test starts it through `Load`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from tests import deadline
from tests.apart import say, start, tell
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.sockets import Address, noise

STREAMS = 4
"""Long streams on each worker, at least."""

PATTERN = 1_000_003
"""Length of a stream's repeating noise: a prime, so that no lost or doubled buffer fits into it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A short connection: begin and end on the monotonic clock, and `ok` or what went wrong."""

    began: float
    ended: float
    how: str


@dataclass(frozen=True, slots=True)
class Stream:
    """A long connection: the client's port, bytes sent, bytes echoed right, and how it ended."""

    port: int
    sent: int
    verified: int
    how: str


@dataclass(slots=True)
class Load:
    """`rate` short connections per second, each verified, and as many long streams as asked for.

    `calls` and `streams` grow while it runs: a call is in there once it has ended, a
    stream too; `ports` are those of streams whose first bytes have come back.
    """

    address: Address
    rate: int
    calls: list[Call] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    process: subprocess.Popen[str] = field(init=False)
    reader: threading.Thread = field(init=False)

    def __enter__(self) -> Load:
        self.process = start(__name__, *self.address, self.rate)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        return self

    def read(self) -> None:
        """Thread: what the clients report, a line each."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, *fields = json.loads(line)
            if kind == "call":
                self.calls.append(Call(*fields))
            elif kind == "stream":
                self.streams.append(Stream(*fields))
            else:
                self.ports.append(fields[0])

    def open_streams(self, count: int) -> None:
        """Open `count` more streams and wait until bytes have come back on all of them."""
        wanted = len(self.ports) + count
        tell(self.process, f"streams {count}")
        until(lambda: len(self.ports) >= wanted, what="the streams")

    def more(self, count: int, seconds: float = 20) -> None:
        """Wait until `count` more calls have ended."""
        wanted = len(self.calls) + count
        until(lambda: len(self.calls) >= wanted, seconds, f"{count} more calls")

    def stop(self) -> None:
        """No new call; every stream finishes; returns when all have reported."""
        tell(self.process, "stop")
        self.reader.join(deadline.seconds(40))
        assert not self.reader.is_alive(), "the clients do not end"
        assert self.process.wait(deadline.seconds(10)) == 0

    def failed(self) -> list[Call]:
        """The calls that went wrong."""
        return [call for call in self.calls if call.how != "ok"]

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            self.reader.join(deadline.seconds(10))


def report(*fields: object) -> None:
    """In the clients' process: a line to the test."""
    say(json.dumps(fields))


def word(error: OSError | TimeoutError) -> str:
    """What went wrong, in a word."""
    return errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)


async def call(address: Address, number: int) -> None:
    """One short connection: up to 2 kB, different for each, come back, then the end does."""
    text = f"{number} ".encode() * random.Random(number).randint(1, 300)
    began = time.monotonic()
    how = "ok"
    try:
        async with asyncio.timeout(deadline.seconds(20)):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(text)
                writer.write_eof()
                answer = await reader.read()
                if answer != text:
                    how = f"{len(answer)} of {len(text)} bytes"
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        how = word(error)
    report("call", began, time.monotonic(), how)


async def stream(address: Address, seed: int, stop: asyncio.Event) -> None:
    """One long connection: pieces of every size go out and must come back, until `stop`."""
    pattern = noise(PATTERN, seed) * 2
    rng = random.Random(seed)
    sent = verified = port = 0
    how = "ok"

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while not stop.is_set():
            size = rng.choice((1, 100, 1460, 16_384, 65_536, 300_000))
            start = sent % PATTERN
            writer.write(pattern[start : start + size])
            sent += size
            await writer.drain()
            await asyncio.sleep(0.05)  # leaves the processors to the others
        writer.write_eof()

    try:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
        port = writer.get_extra_info("sockname")[1]
        sending = asyncio.create_task(send(writer))
        try:
            while data := await reader.read(1 << 18):
                start = verified % PATTERN
                if data != pattern[start : start + len(data)]:
                    how = f"wrong bytes after {verified}"
                    break
                if not verified:
                    report("port", port)
                verified += len(data)
            else:
                how = "ok" if stop.is_set() and verified == sent else "EOF"
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
            await writer.wait_closed()
    except OSError as error:
        how = word(error)
    report("stream", port, sent, verified, how)


async def clients(address: Address, rate: int) -> None:
    """The clients' process: obey orders from stdin, report to stdout."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    stop = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    streams = 0

    async def obey() -> None:
        nonlocal streams
        while not stop.is_set():
            match (await orders.readline()).split():
                case [b"streams", count]:
                    for _ in range(int(count)):
                        streams += 1
                        tasks.add(asyncio.create_task(stream(address, streams, stop)))
                case _:
                    stop.set()

    obeying = asyncio.create_task(obey())
    begin = time.monotonic()
    number = 0
    while not stop.is_set():
        if number < (time.monotonic() - begin) * rate:
            number += 1
            task = asyncio.create_task(call(address, number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0 if number < (time.monotonic() - begin) * rate else 0.002)
    await obeying
    await asyncio.gather(*tasks)
    pipe.close()


def slots(forwarder: Forwarder) -> dict[int, int]:
    """Client port -> slot of the worker that opened its session; needs `logformat json`."""
    lines = [json.loads(line) for line in forwarder.log_lines()]
    return {line["client_port"]: line["slot"] for line in lines if line["outcome"] == "opened"}


def stream_on_every_worker(load: Load, forwarder: Forwarder) -> dict[int, list[int]]:
    """Open streams until each worker has STREAMS of them; slot -> their ports."""
    while True:
        load.open_streams(STREAMS)
        until(lambda: set(load.ports) <= set(slots(forwarder)), what="the streams in the log")
        of = slots(forwarder)
        held = {slot: [port for port in load.ports if of[port] == slot] for slot in forwarder.workers()}
        if min(map(len, held.values())) >= STREAMS:
            return held


def successor(forwarder: Forwarder, slot: int, victim: int, seconds: float = 10) -> int:
    """Wait for another worker in `slot` than `victim`; return its pid."""
    return until(
        lambda: pid if (pid := forwarder.workers().get(slot)) not in {None, victim} else 0,
        seconds,
        f"a successor of worker {slot}",
    )


if __name__ == "__main__":
    asyncio.run(clients((sys.argv[1], int(sys.argv[2])), int(sys.argv[3])))
