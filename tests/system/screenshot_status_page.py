"""Makes docs/status-page.png: the page of a real program under traffic of several shapes.

    python -m tests.system.screenshot_status_page docs/status-page.png

Everything stays on loopback addresses: fastfwd listens on 127.1.0.1, its backends on
127.2.0.0/16, and clients and backends live in this process. It takes a little over two
minutes, because a sparkline holds that much. No test runs it.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deadline import until
from tests.forwarder import Forwarder
from tests.sockets import Address
from tests.system.browser import open_browser, show_at
from tests.system.test_status_page import url_of

CLIENT = "127.0.0.1"
STRANGER = "127.0.0.66"
"""A client that the access rules deny."""

SECONDS = 126
"""A sparkline holds 60 rates of two seconds."""

WIDTH = 1280
MOST_BYTES = 250_000

PIECE = 1 << 16

STAMINA = 0.995
"""Probability that a backend goes on after an exchange; else it ends the session."""


@asynccontextmanager
async def backend(address: Address) -> AsyncIterator[None]:
    """Serves until the block ends, then waits for its sessions' ends.

    It reads `TAKE GIVE` and a line end, takes and gives that many bytes, again and again.
    """
    sessions: set[asyncio.Task[object] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.add(asyncio.current_task())
        try:
            while random.random() < STAMINA and (line := await reader.readline()):
                taken, given = map(int, line.split())
                await reader.readexactly(taken)
                for _ in range(0, given, PIECE):
                    writer.write(bytes(min(given, PIECE)))
                    given -= PIECE
                    await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            sessions.discard(asyncio.current_task())

    async with await asyncio.start_server(answer, *address):
        yield
    async with asyncio.timeout(10):
        while sessions:
            await asyncio.sleep(0.05)


class Session:
    """A client's session with a backend."""

    def __init__(self, address: Address, source: str = CLIENT) -> None:
        self.address = address
        self.source = source

    async def __aenter__(self) -> Session:
        self.reader, self.writer = await asyncio.open_connection(*self.address, local_addr=(self.source, 0))
        return self

    async def exchange(self, sent: int, received: int) -> None:
        """Send and receive this many bytes."""
        self.writer.write(f"{sent} {received}\n".encode() + bytes(sent))
        await self.writer.drain()
        await self.reader.readexactly(received)

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()


def tide(period: float, low: float, high: float, phase: float = 0) -> float:
    """A figure that swings between `low` and `high` once per `period` seconds, with some noise."""
    wave = (1 + math.sin(2 * math.pi * (time.monotonic() / period + phase))) / 2
    return (low + (high - low) * wave) * random.uniform(0.75, 1.25)


async def call(address: Address, sent: int, received: int, source: str) -> None:
    """One session with one exchange; who is refused goes away."""
    try:
        async with Session(address, source) as session:
            await session.exchange(sent, received)
    except (OSError, EOFError):
        pass


async def pages(address: Address, low: float, high: float, period: float, size: int) -> None:
    """`low` to `high` short sessions per second, with answers around `size` bytes; some from a stranger."""
    async with asyncio.TaskGroup() as group:
        while True:
            source = STRANGER if random.random() < 0.01 else CLIENT
            sent, received = random.randint(200, 900), random.randint(size // 3, 2 * size)
            group.create_task(call(address, sent, received, source))
            await asyncio.sleep(1 / tide(period, low, high))


async def queries(address: Address, sessions: int, pause: float, size: int) -> None:
    """A pool of sessions with small questions and answers; one that has ended is replaced."""

    async def member(phase: float) -> None:
        while True:
            try:
                async with Session(address) as session:
                    for _ in range(random.randint(20, 600)):
                        await session.exchange(random.randint(60, 300), random.randint(100, size))
                        await asyncio.sleep(pause / tide(40, 0.3, 1.7, phase))
            except (OSError, EOFError):
                continue

    async with asyncio.TaskGroup() as group:
        for number in range(sessions):
            group.create_task(member(number / sessions / 4))


async def bursts(address: Address, seconds: float, rest: float, sent: int, received: int) -> None:
    """Sessions one after the other that move pieces for a while, at most 25 a second; a rest between them."""
    while True:
        end = time.monotonic() + seconds * random.uniform(0.6, 1.4)
        try:
            async with Session(address) as session:
                while time.monotonic() < end:
                    await session.exchange(sent, received)
                    await asyncio.sleep(0.04)
        except (OSError, EOFError):
            continue
        await asyncio.sleep(rest * random.uniform(0.6, 1.4))


@dataclass(frozen=True, slots=True)
class Example:
    """A forward of the picture: name and port, its backend's address and whether that is up, its traffic."""

    name: str
    port: int
    backend: Address
    traffic: Callable[[Address], Coroutine[None, None, None]]
    up: bool = True

    @property
    def address(self) -> Address:
        return "127.1.0.1", self.port

    @property
    def line(self) -> str:
        """Its line of the configuration."""
        host, port = self.backend
        return f"127.1.0.1 {self.port} {host} {port} [name={self.name}]\n"


EXAMPLES = (
    Example("www", 8080, ("127.2.0.2", 8080), lambda at: pages(at, 10, 60, 55, 24_000)),
    Example("mail-submission", 5587, ("127.2.0.5", 5587), lambda at: bursts(at, 5, 9, 48_000, 90)),
    Example("imaps", 9993, ("127.2.0.5", 9993), lambda at: queries(at, 34, 2.5, 2_400)),
    Example("postgres", 5432, ("127.2.1.9", 5432), lambda at: queries(at, 12, 0.12, 3_000)),
    Example("redis-cache", 6379, ("127.2.1.3", 6379), lambda at: queries(at, 6, 0.04, 500)),
    Example("ssh-bastion", 2222, ("127.2.3.8", 2222), lambda at: queries(at, 5, 0.7, 160)),
    Example("git", 9418, ("127.2.3.6", 9418), lambda at: bursts(at, 7, 14, 400, 900_000)),
    Example("backup", 8730, ("127.2.4.2", 8730), lambda at: bursts(at, 30, 2, 60_000, 60)),
    Example("metrics-push", 9091, ("127.2.4.9", 9091), lambda at: pages(at, 0.5, 0.7, 60, 120), up=False),
)


@asynccontextmanager
async def traffic() -> AsyncIterator[None]:
    """Every example's clients and backends, while the block runs."""
    async with AsyncExitStack() as stack:
        for example in EXAMPLES:
            if example.up:
                await stack.enter_async_context(backend(example.backend))
        clients = [asyncio.create_task(example.traffic(example.address)) for example in EXAMPLES]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            for ended in await asyncio.gather(*clients, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended


def take(url: str, profile: Path) -> bytes:
    """The page as a PNG, as high as it is."""
    with open_browser(profile) as browser:
        show_at(browser, WIDTH)
        browser.get(url)
        state = "return document.querySelector('#state').textContent"
        until(lambda: browser.execute_script(state) == "serving", 15, "the page's figures")
        show_at(browser, WIDTH, int(browser.execute_script("return document.documentElement.scrollHeight")))
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        return base64.b64decode(shot["data"])


async def photograph(url: str, profile: Path) -> bytes:
    """Let traffic fill the sparklines, and take the picture while it goes on."""
    async with traffic():
        await asyncio.sleep(SECONDS)
        return await asyncio.to_thread(take, url, profile)


def main() -> None:
    """`python -m tests.system.screenshot_status_page FILE`"""
    target = Path(sys.argv[1])
    config = f"deny {STRANGER}\nmetrics 127.0.0.1:0\n" + "".join(example.line for example in EXAMPLES)
    with tempfile.TemporaryDirectory(prefix="fastfwd-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with Forwarder(directory, config) as program:
            shot = asyncio.run(photograph(url_of(program), directory / "profile"))
    assert len(shot) <= MOST_BYTES, f"the picture has {len(shot)} bytes"
    target.write_bytes(shot)


if __name__ == "__main__":
    main()
