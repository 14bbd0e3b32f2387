"""Several instances behind a router that hashes (ECMP), as docs/containers.md tells of them: which sessions
survive when one leaves. Client, router and instances are networks of the test's own."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.servers import banner
from tests.sockets import connect
from tests.system.namespaces import Sandbox

SERVICE = "203.0.113.10"
INSTANCES = (1, 2, 3)
SESSIONS = 90


class Net:
    """A client behind a router, and three instances with the service's address; each says its number."""

    def __init__(self, stack: ExitStack, forwarder: StartForwarder, backend: StartServer) -> None:
        self.router = stack.enter_context(Sandbox(network=True))
        self.client = stack.enter_context(Sandbox(network=True))
        self.router.sysctl("net.ipv4.ip_forward", "1")
        self.router.sysctl("net.ipv4.fib_multipath_hash_policy", "1")
        self.wire(self.client, "client", "10.9.0")
        for number in INSTANCES:
            inside = stack.enter_context(Sandbox(network=True))
            self.wire(inside, f"to{number}", f"10.9.{number}")
            inside.run("ip", "address", "add", f"{SERVICE}/32", "dev", "lo")
            server = inside.call(backend, banner, str(number))
            inside.call(forwarder, f"{SERVICE} 80 {server.host} {server.port}\n", workers=1)
            self.ip("nexthop", "add", "id", str(number), "via", f"10.9.{number}.2", "dev", f"to{number}")

    def wire(self, inside: Sandbox, name: str, network: str) -> None:
        """Join a network to the router, which is its way to everywhere."""
        there = f"/proc/{inside.call(threading.get_native_id)}/ns/net"
        self.ip("link", "add", name, "type", "veth", "peer", "name", "way", "netns", there)
        self.ip("address", "add", f"{network}.1/24", "dev", name)
        self.ip("link", "set", name, "up")
        inside.run("ip", "address", "add", f"{network}.2/24", "dev", "way")
        inside.run("ip", "link", "set", "way", "up")
        inside.run("ip", "route", "add", "default", "via", f"{network}.1")

    def ip(self, *words: str) -> str:
        """ip(8) on the router."""
        return self.router.run("ip", *words)

    def sessions(self) -> list[tuple[int, socket.socket]]:
        """Sessions that are open, each with the number of its instance."""
        found = []
        for _ in range(SESSIONS):
            client: socket.socket = self.client.call(connect, (SERVICE, 80))
            found.append((int(client.recv(1)), client))
        assert {number for number, _ in found} == set(
            INSTANCES
        )  # one of 3 * (2/3) ** 90 runs would not be so
        return found


@pytest.fixture
def net(forwarder: StartForwarder, backend: StartServer) -> Iterator[Net]:
    """The networks, with the programs running; sessions end before them."""
    with ExitStack() as stack:
        yield Net(stack, forwarder, backend)


def broken(sessions: list[tuple[int, socket.socket]], gone: int) -> int:
    """How many sessions with the other instances no longer echo."""
    count = 0
    for number, client in sessions:
        if number == gone:
            continue
        try:
            client.sendall(b"?")
            count += client.recv(1) != b"?"
        except ConnectionResetError:
            count += 1
    return count


def close(sessions: list[tuple[int, socket.socket]]) -> None:
    """End them all."""
    for _, client in sessions:
        client.close()


def test_a_resilient_group_breaks_nobody_else_s_sessions(net: Net) -> None:
    """One of three leaves: every session with the other two goes on, as the document says."""
    text = (Path(__file__).parents[2] / "docs" / "containers.md").read_text()
    (line,) = re.findall(r"(?m)^ +ip (nexthop add .* type resilient .*)$", text)
    net.ip(*line.split())
    net.ip("route", "add", f"{SERVICE}/32", "nhid", "10")
    sessions = net.sessions()
    net.ip("nexthop", "del", "id", "3")
    assert broken(sessions, gone=3) == 0
    close(sessions)


def test_an_ordinary_group_breaks_them(net: Net) -> None:
    """The same with a group that is not resilient: sessions with instances that stayed are reset."""
    net.ip("nexthop", "add", "id", "10", "group", "1/2/3")
    net.ip("route", "add", f"{SERVICE}/32", "nhid", "10")
    sessions = net.sessions()
    net.ip("nexthop", "del", "id", "3")
    assert broken(sessions, gone=3) > 0
    close(sessions)
