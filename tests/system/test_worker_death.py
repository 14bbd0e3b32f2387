"""Workers die, the service does not: what a kill -9 costs, and whom.

A dead worker takes its own sessions with it and nothing else. To tell a connection
that it had accepted from one that only waited in its queue, it is stopped first
(SIGSTOP): what begins after that, it can never have accepted.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import echo, serve_apart
from tests.sockets import Address, connect, noise, read_exactly

RATE = 300
"""Short connections per second."""

STREAMS = 4
"""Long streams on each worker, at least."""

QUEUED = 40
"""Connections that wait in the victims' queues when they are killed, at least."""

PATTERN = 1_000_003
"""Length of a stream's repeating noise: a prime, so that no lost or doubled buffer fits into it."""


# The load: clients in a process of their own, against a backend that echoes.


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
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.address[0], str(self.address[1]), str(self.rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
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

    def order(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def open_streams(self, count: int) -> None:
        """Open `count` more streams and wait until bytes have come back on all of them."""
        wanted = len(self.ports) + count
        self.order(f"streams {count}")
        until(lambda: len(self.ports) >= wanted, what="the streams")

    def more(self, count: int, seconds: float = 20) -> None:
        """Wait until `count` more calls have ended."""
        wanted = len(self.calls) + count
        until(lambda: len(self.calls) >= wanted, seconds, f"{count} more calls")

    def stop(self) -> None:
        """No new call; every stream finishes; returns when all have reported."""
        self.order("stop")
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
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


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


def queue_length(pid: int) -> int:
    """Connections that wait in the accept queues of the sockets `pid` listens on (proc(5), net/tcp)."""
    held = set(processes.descriptors(pid).values())
    waiting = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, _, state, queues, _, _, _, _, inode, *_ = line.split()
        if state == "0A" and f"socket:[{inode}]" in held:
            waiting += int(queues.partition(":")[2], 16)
    return waiting


# Under load.


@dataclass(frozen=True, slots=True)
class Killing:
    """What became of a load whose victims were stopped at `stopped` and killed at `killed`."""

    stopped: float
    killed: float
    calls: list[Call]
    streams: list[Stream]
    lost_ports: set[int]

    def between(self) -> list[Call]:
        """Calls that began while the victims were stopped: about their share was queued."""
        return [call for call in self.calls if self.stopped <= call.began < self.killed]

    def after(self) -> list[Call]:
        """Calls that began after the kill."""
        return [call for call in self.calls if call.began >= self.killed]

    def before(self) -> list[Call]:
        """Calls that had ended when the victims were stopped."""
        return [call for call in self.calls if call.ended < self.stopped]


@pytest.fixture(scope="module", params=["one worker", "every worker"])
def killing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Killing:
    """Two workers under load; one of them, or both, are killed while connections queue."""
    port = free_port()
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        config = f"127.0.0.1 {port} {backend.host} {backend.port}\nlogformat json\n"
        forwarder = stack.enter_context(Forwarder(tmp_path_factory.mktemp("killing"), config, workers=2))
        load = stack.enter_context(Load(("127.0.0.1", port), RATE))
        held = stream_on_every_worker(load, forwarder)
        load.more(RATE)
        victims = {
            slot: pid
            for slot, pid in forwarder.workers().items()
            if slot == 0 or request.param != "one worker"
        }
        for pid in victims.values():
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(found.state == "T" for pid in victims.values() if (found := processes.stat(pid))))
        stopped = time.monotonic()
        # Well before the supervisor's watchdog would do it.
        until(lambda: all(queue_length(pid) >= QUEUED for pid in victims.values()), 3, "queued connections")
        killed = time.monotonic()
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: sum(call.began >= killed for call in load.calls) >= RATE, 20, "calls after the kill")
        load.stop()
        lost = {port for slot in victims for port in held[slot]}
        return Killing(stopped, killed, list(load.calls), list(load.streams), lost)
    raise AssertionError("unreachable")


def test_streams_of_other_workers_lose_nothing(killing: Killing) -> None:
    """Every stream on a worker that was not killed ends with all its bytes echoed."""
    others = [stream for stream in killing.streams if stream.port not in killing.lost_ports]
    assert [stream for stream in others if stream.how != "ok" or stream.verified != stream.sent] == []


def test_streams_of_a_killed_worker_end(killing: Killing) -> None:
    """Both ends of a killed worker's sessions are closed at once; no wrong byte came before."""
    lost = [stream.how for stream in killing.streams if stream.port in killing.lost_ports]
    assert len(lost) >= STREAMS
    assert set(lost) <= {"ECONNRESET", "EPIPE", "EOF"}


def test_queued_connections_are_served_by_the_successor(killing: Killing) -> None:
    """A connection that the victim had not accepted is answered in full: none is reset or refused."""
    assert len(killing.between()) >= QUEUED
    assert [call for call in killing.between() if call.how != "ok"] == []


def test_new_connections_are_served(killing: Killing) -> None:
    """Of the connections after the kill none is reset or refused."""
    assert len(killing.after()) >= RATE
    assert [call for call in killing.after() if call.how != "ok"] == []


def test_nothing_else_fails(killing: Killing) -> None:
    """Before the victim stopped, no connection failed."""
    assert len(killing.before()) >= RATE
    assert [call for call in killing.before() if call.how != "ok"] == []


# Replacements.


def successor(forwarder: Forwarder, slot: int, victim: int, seconds: float = 10) -> int:
    """Wait for another worker in `slot` than `victim`; return its pid."""
    return until(
        lambda: pid if (pid := forwarder.workers().get(slot)) not in {None, victim} else 0,
        seconds,
        f"a successor of worker {slot}",
    )


@pytest.fixture
def serving(forwarder: StartForwarder, backend: StartServer) -> tuple[Forwarder, Address]:
    """A program with ten workers and one forward to an echo."""
    port = free_port()
    return forwarder(f"127.0.0.1 {port} 127.0.0.1 {backend(echo).port}\n", workers=10), ("127.0.0.1", port)


def answers(address: Address, source: str | None = None) -> bool:
    """Whether a new session echoes."""
    with connect(address, source) as client:
        client.sendall(b"hello")
        return read_exactly(client, 5) == b"hello"


def test_a_new_worker_has_the_slot_within_a_second(serving: tuple[Forwarder, Address]) -> None:
    """From kill -9 to the birth of the successor it takes less than 1 s (10 times)."""
    forwarder, _ = serving
    for slot, victim in forwarder.workers().items():
        os.kill(victim, signal.SIGKILL)
        successor(forwarder, slot, victim, seconds=1)


def test_descriptors_of_the_supervisor_after_20_kills(serving: tuple[Forwarder, Address]) -> None:
    """The supervisor holds as many descriptors after 20 killed workers as before."""
    forwarder, address = serving
    assert answers(address)
    before = len(processes.descriptors(forwarder.pid))
    for _ in range(2):
        for slot, victim in forwarder.workers().items():
            os.kill(victim, signal.SIGKILL)
            successor(forwarder, slot, victim)
    assert forwarder.said("starting another") == 20
    until(lambda: len(processes.descriptors(forwarder.pid)) == before, what=f"{before} descriptors")


def test_descriptors_of_a_successor(serving: tuple[Forwarder, Address]) -> None:
    """A worker that replaces a dead one holds what that one held: nothing of its siblings comes along."""
    forwarder, _ = serving
    for slot, victim in forwarder.workers().items():
        before = len(processes.descriptors(victim))
        os.kill(victim, signal.SIGKILL)
        pid = successor(forwarder, slot, victim)
        until(lambda: len(processes.descriptors(pid)) == before, what=f"{before} descriptors")  # noqa: B023


def test_a_terminated_worker_is_replaced(serving: tuple[Forwarder, Address]) -> None:
    """A worker that somebody sends SIGTERM to has a successor, and clients notice nothing."""
    forwarder, address = serving
    for slot, victim in forwarder.workers().items():
        os.kill(victim, signal.SIGTERM)
        successor(forwarder, slot, victim)
    assert all(answers(address) for _ in range(40))


if __name__ == "__main__":
    asyncio.run(clients((sys.argv[1], int(sys.argv[2])), int(sys.argv[3])))
