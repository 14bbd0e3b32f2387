"""Rows 36 and 38: floods of clients who are not let in, and name servers that are dead or lie."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWatched
from tests.faults.row import FULL, Row, scaled
from tests.forwarder import Forwarder, columns
from tests.load import Call, Load
from tests.ports import free_port
from tests.servers import banner, echo, serve, serve_apart
from tests.sockets import Address, connect, read_exactly, read_to_end
from tests.system.metrics import Scrape, by, metrics_url, scrape
from tests.system.namespaces import Sandbox
from tests.system.test_names import Place

WORKERS = 2

STRANGER = "127.0.0.9"
"""Where the flood comes from."""


def observed(start: StartForwarder, config: str, **options: object) -> Aftermath:
    """Start it with an exporter; look at what it has."""
    return Aftermath(start(f"{config}metrics 127.0.0.1:0\n", **options))


def slowest(calls: list[Call]) -> float:
    """Milliseconds in which 99 of 100 calls ended."""
    return 1000 * statistics.quantiles([call.ended - call.began for call in calls], n=100)[98]


# 36. Clients who are not let in.

TOLD = 10
"""Lines per second and worker about clients over a limit (configuration.md)."""

ROOM = 200
"""Connections of one client."""


@pytest.mark.row(
    36,
    "floods of clients who are denied, over their own limit, over everybody's",
    "everybody else's calls are answered, open sessions go on; all are counted; a denied one is logged, of"
    f" those over a limit {TOLD} a second per worker",
)
def test_a_flood_of_clients(row: Row, forwarder: StartForwarder) -> None:
    count = scaled(1000, 30_000)
    with serve_apart("echo") as behind, ExitStack() as stack:
        port = free_port()
        address = ("127.0.0.1", port)
        forward = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
        aftermath = observed(forwarder, f"{forward}deny {STRANGER}\n", workers=WORKERS)
        running = aftermath.running
        forward += "metrics 127.0.0.1:0\n"
        load = stack.enter_context(Load(address, scaled(100, 200)))
        load.more(100)
        quiet = slowest(load.calls)

        before = len(load.calls)
        seconds = flood(address, count)
        row.held(refused(running) == {"denied": count}, f"{count} denied, counted: {refused(running)}")
        running.wait_log(count, "\tdenied")
        row.held(outcomes(running).count("denied") == count, "lines about the denied")
        row.figure("denied", count / seconds, "/s")
        row.figure("99th percentile of calls without", quiet, "ms")
        row.figure("beside the denied", slowest(load.calls[before:]), "ms")

        began = time.monotonic()
        running.reload(f"{forward}max-connections-per-client {ROOM}\n")
        inside = [stack.enter_context(connect(address, STRANGER)) for _ in range(ROOM)]
        row.tried(ROOM, ["not let in" for client in inside if not speaks(client)])
        before = len(load.calls)
        flood(address, count)
        found = refused(running).get("client_limit", 0)
        row.held(found == count, f"{count} over their own limit, counted: {found}")
        row.figure("beside those over their limit", slowest(load.calls[before:]), "ms")
        row.tried(ROOM, ["an open session broke" for client in inside if not speaks(client)])

        load.stop()  # nobody else gets in now
        running.reload(f"{forward}max-connections {ROOM}\n")
        flood(address, count)
        found = refused(running).get("limit", 0)
        row.held(found == count, f"{count} over everybody's limit, counted: {found}")
        told = sum(outcome.startswith("over-") for outcome in outcomes(running))
        seconds = time.monotonic() - began
        row.held(TOLD <= told <= TOLD * WORKERS * (seconds + 2), f"{told} lines in {seconds:.1f} s")
        row.figure("lines about those over a limit", told / seconds, "/s")
        row.tried(ROOM, ["an open session broke" for client in inside if not speaks(client)])
        row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
    aftermath.judge()


def flood(address: Address, count: int) -> float:
    """So many clients one after the other, none of whom is let in; in how many seconds."""
    began = time.monotonic()
    for _ in range(count):
        with connect(address, STRANGER) as client:
            assert not read_to_end(client).data
    return time.monotonic() - began


def speaks(client: socket.socket) -> bool:
    """Whether the session is there: one byte there and back."""
    try:
        client.sendall(b"x")
        return client.recv(1) == b"x"
    except OSError:
        return False


def refused(running: Forwarder) -> dict[str, float]:
    """How many clients were not let in, by its own count, and why."""
    found: Scrape = scrape(metrics_url(running))
    return by(found, "connections_denied_total", "reason")


def outcomes(running: Forwarder) -> list[str]:
    """The last word of every log line."""
    return [columns(line)["outcome"] for line in running.log_lines()]


# 38. Names.

NAMESERVER: Final = "127.0.0.53"
NAME: Final = "backend.example"
ONE, OTHER = "127.0.0.2", "127.0.0.3"
"""Where backends listen."""


class NameServer:
    """Answers questions for IPv4 addresses with `answer`, whoever is asked for; a thread inside
    of a sandbox."""

    def __init__(self, inside: Sandbox) -> None:
        self.answer: list[str] | bytes = [ONE]
        """Addresses (none: no such name), or the bytes to send instead of any answer."""
        self.asked = 0
        self.socket: socket.socket = inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((NAMESERVER, 53))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """Thread: until the socket is shut down (RFC 1035, 4.1)."""
        while True:
            question, peer = self.socket.recvfrom(512)
            if not question:
                return
            self.asked += 1
            if isinstance(self.answer, bytes):
                self.socket.sendto(self.answer, peer)
                continue
            end = question.index(b"\0", 12) + 5
            a = question[end - 4 : end - 2] == b"\0\1"
            addresses = self.answer if a else []
            code = b"\x81\x80" if self.answer else b"\x81\x83"
            head = question[:2] + code + b"\0\1" + len(addresses).to_bytes(2, "big") + bytes(4)
            records = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) for address in addresses]
            self.socket.sendto(head + question[12:end] + b"".join(records), peer)

    def close(self) -> None:
        """End the thread: a datagram of no bytes says so."""
        self.socket.sendto(b"", self.socket.getsockname())
        self.thread.join(deadline.seconds(10))
        self.socket.close()


@pytest.fixture
def place() -> Iterator[Place]:
    """A network whose names come from one name server."""
    with Sandbox(network=True) as inside:
        yield Place(inside, server=NAMESERVER)


LIES: Final[dict[str, list[str] | bytes]] = {
    "no such name": [],
    "our own listener": ["127.0.0.1"],
    "nowhere": ["240.0.0.1"],
    "everybody": ["255.255.255.255"],
    "a group": ["224.0.0.1"],
    "too many": [f"127.1.0.{number}" for number in range(1, 29)],
    "no DNS": b"HTTP/1.0 400 Bad Request\r\n\r\n",
    "nothing but a head": bytes(12),
}
"""What a name server may say."""


@pytest.mark.row(
    38,
    "name servers that are dead, lie, or change their mind; a resolver that is stopped or killed",
    "calls to known addresses are answered; a new address is used and logged; what cannot be looked up"
    " keeps its address",
)
def test_name_servers(row: Row, watched: StartWatched, place: Place) -> None:
    inside = place.inside
    with ExitStack() as stack:
        names = NameServer(inside)
        stack.callback(names.close)
        known = inside.call(stack.enter_context, serve(echo))
        for host in (ONE, OTHER):
            inside.call(stack.enter_context, serve(banner, host, host=host, port=7000))
        forwards = f"127.0.0.1 5000 {known.host} {known.port}\n127.0.0.1 7000 {NAME} 7000\n"
        running = inside.call(watched, forwards, workers=WORKERS).running
        load = inside.call(stack.enter_context, Load(("127.0.0.1", 5000), scaled(50, 200)))
        load.more(100)
        quiet = slowest(load.calls)
        before = len(load.calls)

        for number in range(scaled(4, 40)):
            host = (OTHER, ONE)[number % 2]
            names.answer = [host]
            running.reload()
            row.held(reaches(inside) == host, f"move {number}: not to {host}")
        row.held(running.said(f"{NAME} is now ") == number + 1, "moves that nobody is told of")

        for lie, answer in LIES.items() if FULL else [("our own listener", LIES["our own listener"])]:
            names.answer = answer
            running.reload()
            row.held(running.running() and known_is_served(inside), f"{lie}: others are not served")
            if lie in ("no such name", "no DNS", "nothing but a head"):
                row.held(reaches(inside) == ONE, f"{lie}: the old address is gone")
            if lie == "our own listener":
                row.held("itself" in running.stderr(), f"{lie}: not reported")
            names.answer = [ONE]
            running.reload()
            row.held(reaches(inside) == ONE, f"after {lie}: the right address is not used")

        inside.run("nft", "add", "table", "ip", "dead")
        inside.run("nft", "add", "chain", "ip", "dead", "in", "{ type filter hook input priority 0; }")
        inside.run("nft", "add", "rule", "ip", "dead", "in", "udp", "dport", "53", "drop")
        took = []
        for number in range(scaled(1, 4)):
            began = time.monotonic()
            running.reload()
            took.append(time.monotonic() - began)
            row.held(reaches(inside) == ONE, f"dead name server, reload {number}: the old address is gone")
        inside.run("nft", "delete", "table", "ip", "dead")
        for fault in (signal.SIGKILL, signal.SIGSTOP)[: scaled(1, 2)]:
            resolver = running.resolver()
            assert resolver is not None
            os.kill(resolver, fault)
            running.reload()
            row.held(reaches(inside) == ONE, f"resolver, {fault.name}: the old address is gone")
            if fault is signal.SIGSTOP:
                os.kill(resolver, signal.SIGCONT)
        names.answer = [OTHER]
        running.reload()
        until(lambda: reaches(inside) == OTHER, what="the new address")

        running.reload(f"{forwards}dns-refresh 1\n")
        moving = len(load.calls)
        moved = []
        for number in range(scaled(1, 10)):
            host = (ONE, OTHER)[number % 2]
            told = running.said(f"{NAME} is now ")
            names.answer = [host]
            began = time.monotonic()
            running.wait_said(f"{NAME} is now ", told + 1)
            # The supervisor says so as it tells the workers.
            until(lambda host=host: reaches(inside) == host, what="the new address")
            moved.append(time.monotonic() - began)
        load.stop()
        row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
        row.figure("99th percentile of calls before", quiet, "ms")
        row.figure("during the faults", slowest(load.calls[before:]), "ms")
        row.figure("reload without a name server", max(took), "s")
        row.figure("new sessions follow a name that is asked for every second within", max(moved), "s")
        row.figure("99th percentile of calls meanwhile", slowest(load.calls[moving:]), "ms")


def reaches(inside: Sandbox) -> str:
    """Which backend a new client of the name is greeted by."""
    with inside.call(connect, ("127.0.0.1", 7000)) as client:
        return read_exactly(client, len(ONE)).decode()


def known_is_served(inside: Sandbox) -> bool:
    """Whether the forward without a name works."""
    with inside.call(connect, ("127.0.0.1", 5000)) as client:
        return speaks(client)
