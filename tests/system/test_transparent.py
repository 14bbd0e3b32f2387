"""Backends that see the client's own address: three hosts in a row, the client, fastfwd, the backend."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import deadline
from tests.announcing import CLIENT, header
from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.sockets import Listener, connect, noise, read_exactly, read_to_end
from tests.system.namespaces import Sandbox
from tests.system.test_privileges import status

ROUTING = Path(__file__).parents[2] / "deploy" / "transparent" / "fastfwd-transparent"

PORT, BEHIND = 2001, 3001

NET_ADMIN, NET_RAW = 1 << 12, 1 << 13

CLIENT_SIDE = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8:1::1", "2001:db8:1::2")}
BACKEND_SIDE = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:2::1", "2001:db8:2::2")}
"""fastfwd's address, the other one's, by version of IP."""


class Row:
    """The three of them. The client and the backend each have fastfwd's host as their only way."""

    def __init__(self, stack: ExitStack) -> None:
        self.client, self.middle, self.behind = (stack.enter_context(Sandbox(network=True)) for _ in range(3))
        for side, other, addresses in (
            ("clients", self.client, CLIENT_SIDE),
            ("backends", self.behind, BACKEND_SIDE),
        ):
            # A device is moved by a process of the namespace that it goes to.
            pid = str(other.call(threading.get_native_id))
            self.middle.run("ip", "link", "add", side, "type", "veth", "peer", "name", "way", "netns", pid)
            self.middle.run("ip", "link", "set", side, "up")
            other.run("ip", "link", "set", "way", "up")
            for version, (ours, theirs) in addresses.items():
                size = "24" if version == 4 else "64"
                extra = ["nodad"] if version == 6 else []
                self.middle.run("ip", "address", "add", f"{ours}/{size}", "dev", side, *extra)
                other.run("ip", "address", "add", f"{theirs}/{size}", "dev", "way", *extra)
                other.run("ip", f"-{version}", "route", "add", "default", "via", ours)

    def routing(self, *arguments: str) -> None:
        """Run the script of deploy/."""
        for tool in ("ip", "nft"):
            require_peer(tool)
        self.middle.run("sh", str(ROUTING), *arguments)


@pytest.fixture
def row() -> Iterator[Row]:
    """With the routing in place."""
    with ExitStack() as stack:
        made = Row(stack)
        made.routing("start")
        yield made


def begin(row: Row, forwarder: StartForwarder, config: str) -> Forwarder:
    """A program in the middle."""
    running: Forwarder = row.middle.call(forwarder, config, workers=1)
    return running


def line(version: int, protocol: str = "tcp", options: str = "transparent=on") -> str:
    """A forward of that kind."""
    ours, theirs = CLIENT_SIDE[version][0], BACKEND_SIDE[version][1]
    return f"{ours} {PORT}/{protocol} {theirs} {BEHIND}/{protocol} [{options}]\n"


@contextmanager
def session(
    row: Row, said: bytes = b"", *, clients: int = 4, backends: int = 4
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The ends of one, whose client has said that; the versions of IP on either side."""
    there, here = (BACKEND_SIDE[backends][1], BEHIND), (CLIENT_SIDE[clients][0], PORT)
    with row.behind.call(Listener, *there) as listener, row.client.call(connect, here) as client:
        client.sendall(said)
        with listener.accept() as served:
            yield client, served


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection(row: Row, forwarder: StartForwarder, version: int) -> None:
    """The backend sees the client's address, and both directions arrive."""
    begin(row, forwarder, line(version))
    with session(row, clients=version, backends=version) as (client, served):
        assert served.getpeername()[0] == client.getsockname()[0] == CLIENT_SIDE[version][1]
        client.sendall(noise(300_000))
        assert read_exactly(served, 300_000) == noise(300_000)
        served.sendall(noise(300_000))
        served.close()
        assert read_to_end(client).data == noise(300_000)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams(row: Row, forwarder: StartForwarder, version: int) -> None:
    """The same."""
    begin(row, forwarder, line(version, "udp"))
    with ExitStack() as stack:
        behind = stack.enter_context(row.behind.call(UdpBackend, host=BACKEND_SIDE[version][1], port=BEHIND))
        client = row.client.call(stack.enter_context, udp_client((CLIENT_SIDE[version][0], PORT)))
        for data in (b"", b"one", noise(20_000)):
            assert ask(client, data) == data
        assert [sender[0] for sender in behind.senders()] == [CLIENT_SIDE[version][1]]


def test_ipv4_on_an_ipv6_socket(row: Row, forwarder: StartForwarder) -> None:
    """Its client is dialled for from the address that it has."""
    begin(row, forwarder, f":: {PORT} {BACKEND_SIDE[4][1]} {BEHIND} [transparent=on]\n")
    with session(row) as (_, served):
        assert served.getpeername()[0] == CLIENT_SIDE[4][1]


@pytest.mark.parametrize("version", [4, 6])
def test_a_backend_of_the_other_kind(row: Row, forwarder: StartForwarder, version: int) -> None:
    """The client has no address there: it is not dialled for from another one."""
    running = begin(
        row,
        forwarder,
        f"{CLIENT_SIDE[version][0]} {PORT} {BACKEND_SIDE[10 - version][1]} {BEHIND} [transparent=on]\n",
    )
    with row.client.call(connect, (CLIENT_SIDE[version][0], PORT)) as client:
        assert read_to_end(client).data == b""
    assert running.wait_log(1)[0].endswith("\tlocal-bind-failed -")


def test_the_announced_address(row: Row, forwarder: StartForwarder) -> None:
    """Behind a proxy it is that of the proxy's client."""
    begin(row, forwarder, line(4, options=f"transparent=on, accept-proxy={CLIENT_SIDE[4][1]}"))
    with session(row, header("v2") + b"ping") as (_, served):
        assert served.getpeername()[0] == CLIENT[0]
        assert read_exactly(served, 4) == b"ping"


def test_without_the_routing(row: Row, forwarder: StartForwarder) -> None:
    """The script takes away what it has put there; then no answer comes back."""
    row.routing("start", "7", "300")
    row.routing("stop", "7", "300")
    row.routing("stop")
    for version in ("-4", "-6"):
        assert "fwmark" not in row.middle.run("ip", version, "rule")
    assert row.middle.run("nft", "list", "ruleset") == ""
    running = begin(row, forwarder, line(4, options="transparent=on, connect-timeout=1"))
    here = CLIENT_SIDE[4][0], PORT
    with row.behind.call(Listener, BACKEND_SIDE[4][1], BEHIND), row.client.call(connect, here) as client:
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-connect-failed")


@pytest.mark.parametrize("arguments", [[], ["begin"], ["start", "x"], ["start", "1", "2", "3"]])
def test_the_script_says_what_it_takes(arguments: list[str]) -> None:
    """And does nothing."""
    done = subprocess.run(
        ["sh", str(ROUTING), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(10),
    )
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)


# Rights.


@pytest.mark.parametrize(
    ("options", "kept"),
    [("transparent=on", NET_RAW), ("transparent=on, mark=7", NET_RAW | NET_ADMIN), ("transparent=off", 0)],
)
def test_the_right_that_it_takes(row: Row, forwarder: StartForwarder, options: str, kept: int) -> None:
    """Workers have that one, where a forward asks for it, and nobody else has it."""
    running = begin(row, forwarder, line(4, options=options) + "metrics 127.0.0.1:0\n")
    for pid in running.workers().values():
        found = status(pid)
        assert [int(found[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [
            kept,
            kept,
            0,
            0,
        ]
    exporter = until(running.exporter, what="the exporter")
    assert exporter is not None
    until(lambda: int(status(exporter)["CapPrm"], 16) == 0, what="the exporter to drop its rights")


def test_it_takes_a_start(row: Row, forwarder: StartForwarder) -> None:
    """Workers that have given the right up cannot do it: the reload is refused, with the line."""
    running = begin(row, forwarder, line(4, options="transparent=off"))
    running.reload("\n" + line(4, options="transparent=on, mark=7"))
    assert running.said("rinetd.conf:2: expected no 'transparent' before a restart") == 1
    assert running.said("rinetd.conf:2: expected no 'mark' before a restart") == 1
    with session(row) as (_, served):
        assert served.getpeername()[0] == BACKEND_SIDE[4][0]
