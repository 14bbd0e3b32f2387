"""Thousands of sessions at once: every byte to its own client, and nothing left when they are gone.

Clients and backends run in processes of their own, each with a share of the sessions,
because a process may have too few descriptors for all of them.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests import deadline, processes
from tests.apart import apart, said, say, tell
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import lack
from tests.ports import free_port
from tests.sockets import Address, noise

SESSIONS = 8_000
CLIENTS = 4
"""Client processes; each has its share of the sessions, over all forwards."""

BACKENDS = 2
"""Backend processes, each with a forward of its own."""

NEEDED = SESSIONS + 1_000
"""Descriptors that a worker needs with its half of the sessions, two for each."""

AT_ONCE = 100
"""Connections that a client process has under way at a time."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker holds: descriptors of any kind, and pipe ends among them."""

    descriptors: int
    pipes: int


def workers(forwarder: Forwarder) -> dict[int, Worker]:
    """Slot -> what its worker holds."""
    held = {}
    for slot, pid in forwarder.workers().items():
        kinds = list(processes.descriptors(pid).values())
        held[slot] = Worker(len(kinds), sum(kind.startswith("pipe:") for kind in kinds))
    return held


def order(crowd: list[subprocess.Popen[str]], text: str) -> list[str]:
    """Tell every client process `text`; return what each answers."""
    for client in crowd:
        tell(client, text)
    return [said(client) for client in crowd]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen of all sessions: the workers before, with all of them open, and after;
    what each client process answered to each order."""

    before: dict[int, Worker]
    during: dict[int, Worker]
    after: dict[int, Worker]
    opened: list[str]
    echoed: list[str]
    closed: list[str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Open SESSIONS, talk on all of them while they are all open, close them all."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < NEEDED:
        lack(f"needs {NEEDED} descriptors per process (ulimit -Hn)")
    ports = [free_port() for _ in range(BACKENDS)]
    with ExitStack() as stack:
        backends = [stack.enter_context(apart(__name__, "echo")) for _ in range(BACKENDS)]
        lines = [
            f"127.0.0.1 {port} 127.0.0.1 {said(backend)}\n"
            for port, backend in zip(ports, backends, strict=True)
        ]
        forwarder = stack.enter_context(Forwarder(tmp_path_factory.mktemp("many"), "".join(lines), workers=2))
        before = workers(forwarder)
        share = SESSIONS // CLIENTS
        clients = [
            stack.enter_context(apart(__name__, "clients", number, share, *ports))
            for number in range(CLIENTS)
        ]
        opened = order(clients, "open")
        during = workers(forwarder)
        echoed = order(clients, "echo")
        closed = order(clients, "close")
        try:
            until(lambda: workers(forwarder) == before, 20, f"the workers to hold {before} again")
        except AssertionError:
            pass  # the tests show what is left
        return Outcome(before, during, workers(forwarder), opened, echoed, closed)
    raise AssertionError("unreachable")


EVERY_ONE = [str(SESSIONS // CLIENTS)] * CLIENTS


def test_all_sessions_open(outcome: Outcome) -> None:
    """Every one of them is open at the same time and has echoed."""
    assert outcome.opened == EVERY_ONE


def test_all_sessions_echo_while_all_are_open(outcome: Outcome) -> None:
    """Each gets back its own bytes, different from all others', while the others are there."""
    assert outcome.echoed == EVERY_ONE


def test_all_sessions_end(outcome: Outcome) -> None:
    """After each client's FIN its backend's FIN comes back, and nothing else."""
    assert outcome.closed == EVERY_ONE


def test_both_workers_carry_sessions(outcome: Outcome) -> None:
    """The kernel gives each of two workers a good share, and together they hold two sockets per session."""
    carried = [outcome.during[slot].descriptors - outcome.before[slot].descriptors for slot in outcome.before]
    assert sum(carried) == 2 * SESSIONS
    assert min(carried) > SESSIONS / 2


def test_no_descriptor_is_left(outcome: Outcome) -> None:
    """Each worker holds as many descriptors as before, and the same number of pipes."""
    assert outcome.after == outcome.before


# The processes beside the test.


def text_of(client: int, session: int, time: int) -> bytes:
    """What a session says, no two alike: 1 to 40 kB, or half a megabyte, enough to be spliced."""
    head = f"client {client} session {session} time {time}: ".encode()
    start = (client * 7919 + session * 104_729) % 50_000
    size = 500_000 if session % 50 == 0 else 1_000 + session * 31 % 40_000
    return head + noise(600_000)[start : start + size]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The backend's side of a session."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass  # the client sees it


async def serve() -> None:
    """A backend: say the port, echo until stdin ends."""
    server = await asyncio.start_server(echo, "127.0.0.1", free_port(), backlog=4096)
    say(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(sys.stdin.read)


class Clients:
    """A share of the sessions."""

    def __init__(self, number: int, count: int, addresses: list[Address]) -> None:
        self.number = number
        self.count = count
        self.addresses = addresses
        self.sessions: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self.room = asyncio.Semaphore(AT_ONCE)

    async def open(self, session: int) -> bool:
        """Connect, and see that it echoes."""
        address = self.addresses[session % len(self.addresses)]
        self.sessions[session] = await asyncio.open_connection(*address)
        return await self.echo(session, 1)

    async def echo(self, session: int, time: int = 2) -> bool:
        """Whether what the session says comes back."""
        reader, writer = self.sessions[session]
        text = text_of(self.number, session, time)
        writer.write(text)
        return await reader.readexactly(len(text)) == text

    async def close(self, session: int) -> bool:
        """Whether the end comes back."""
        reader, writer = self.sessions[session]
        writer.write_eof()
        rest = await reader.read()
        writer.close()
        await writer.wait_closed()
        return rest == b""

    async def one(self, move: str, session: int) -> str:
        """`ok`, or what was wrong."""
        try:
            async with self.room, asyncio.timeout(deadline.seconds(30)):
                return "ok" if await getattr(self, move)(session) else "wrong bytes"
        except (OSError, EOFError, KeyError) as error:
            return repr(error)

    async def obey(self) -> None:
        """Until stdin ends: a move per line, with all sessions; answer with how many went well."""
        while move := (await asyncio.to_thread(sys.stdin.readline)).strip():
            results = await asyncio.gather(*(self.one(move, session) for session in range(self.count)))
            good = results.count("ok")
            wrong = next((result for result in results if result != "ok"), "")
            say(f"{good} {wrong}".strip())


def main() -> None:
    """`echo`, or `clients NUMBER COUNT PORT...`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1] == "echo":
        asyncio.run(serve())
    else:
        number, count, *ports = map(int, sys.argv[2:])
        asyncio.run(Clients(number, count, [("127.0.0.1", port) for port in ports]).obey())
    os._exit(0)  # closing thousands of transports one by one helps nobody


if __name__ == "__main__":
    main()
