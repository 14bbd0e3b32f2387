"""The rules of deploy/nftables: nft takes them, twice in a row, and they do what they say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartForwarder
from tests.peers import require_peer
from tests.sockets import Listener, connect
from tests.system.namespaces import Sandbox
from tests.system.test_transparent import BACKEND_SIDE, CLIENT_SIDE, ROUTING, Row

RULES = Path(__file__).parents[2] / "deploy" / "nftables"
FILES = sorted(RULES.glob("*.nft"))


@pytest.fixture
def inside() -> Iterator[Sandbox]:
    """A network of its own."""
    with Sandbox(network=True) as sandbox:
        yield sandbox


@pytest.fixture
def row() -> Iterator[Row]:
    """A client, fastfwd's host and a backend, without any rules yet."""
    require_peer("nft")
    with ExitStack() as stack:
        yield Row(stack)


def test_there_are_rules() -> None:
    """The tests below are about something."""
    assert {path.stem for path in FILES} == {"redirect", "transparent", "limit", "notrack"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nft_takes_it(inside: Sandbox, path: Path) -> None:
    """As a check; and when it is loaded once more, everything is there once."""
    inside.run("nft", "-c", "-f", str(path))
    assert inside.run("nft", "list", "ruleset") == ""
    inside.run("nft", "-f", str(path))
    once = inside.run("nft", "list", "ruleset")
    inside.run("nft", "-f", str(path))
    assert inside.run("nft", "list", "ruleset") == once != ""


@pytest.mark.parametrize("version", [4, 6])
def test_redirect(row: Row, forwarder: StartForwarder, version: int) -> None:
    """Whatever port of the range a client asks for, it reaches the backend's port of that number."""
    row.middle.run("nft", "-f", str(RULES / "redirect.nft"))
    ours, theirs = CLIENT_SIDE[version][0], BACKEND_SIDE[version][1]
    any_address = "0.0.0.0" if version == 4 else "::"
    row.middle.call(forwarder, f"{any_address} 7000 {theirs} 0 [port=original]\n", workers=1)
    for port in (20_000, 33_333, 60_000):
        with (
            row.behind.call(Listener, theirs, port) as backend,
            row.client.call(connect, (ours, port)) as client,
            backend.accept() as served,
        ):
            client.sendall(b"hello")
            assert served.recv(5) == b"hello"


def test_redirect_leaves_alone_what_is_routed_through(row: Row) -> None:
    """A port of the range on another host is that host's."""
    row.middle.run("nft", "-f", str(RULES / "redirect.nft"))
    row.middle.sysctl("net.ipv4.ip_forward", "1")
    there = BACKEND_SIDE[4][1], 33_333
    with (
        row.behind.call(Listener, *there) as listener,
        row.client.call(connect, there),
        listener.accept() as served,
    ):
        assert served.getpeername()[0] == CLIENT_SIDE[4][1]


def test_transparent_is_what_the_script_loads(inside: Sandbox) -> None:
    """Two ways to the same rules."""
    require_peer("ip")
    inside.run("sh", str(ROUTING), "start")
    loaded = inside.run("nft", "list", "ruleset")
    inside.run("nft", "flush", "ruleset")
    inside.run("nft", "-f", str(RULES / "transparent.nft"))
    assert inside.run("nft", "list", "ruleset") == loaded


def test_limit(row: Row, forwarder: StartForwarder) -> None:
    """A client gets its burst of new connections, and no more; another client is not concerned, nor a port
    that is not listed."""
    row.middle.run("nft", "-f", str(RULES / "limit.nft"))
    ours, other = CLIENT_SIDE[4][0], "192.0.2.9"
    row.client.run("ip", "address", "add", f"{other}/24", "dev", "way")
    row.middle.call(forwarder, f"{ours} 443 192.0.2.250 1\n{ours} 80 192.0.2.250 1\n", workers=1)
    assert 100 <= in_time(row, 443, CLIENT_SIDE[4][1], 200) < 200
    assert in_time(row, 443, other, 50) == 50
    assert in_time(row, 80, CLIENT_SIDE[4][1], 200) == 200


def in_time(row: Row, port: int, source: str, count: int) -> int:
    """How many of `count` connections, all begun at once, are made without a second SYN (which follows
    after a second)."""

    def begin() -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        client.bind((source, 0))
        client.connect_ex((CLIENT_SIDE[4][0], port))
        return client

    clients = row.client.call(lambda: [begin() for _ in range(count)])
    try:
        answered = row.client.run("ss", "-Htn", "state", "syn-sent", f"src {source}", f"dport = :{port}")
        return count - answered.count(source)
    finally:
        for client in clients:
            client.close()


def test_notrack(row: Row, forwarder: StartForwarder, tmp_path: Path) -> None:
    """Neither side of a session is tracked, while everything else is."""
    rules = (RULES / "notrack.nft").read_text()
    ours, theirs = CLIENT_SIDE[4][0], BACKEND_SIDE[4][1]
    mine = tmp_path / "notrack.nft"
    mine.write_text(rules.replace("{ 10.1.1.2, 10.1.1.3 }", f"{{ {theirs} }}"))
    row.middle.run("nft", "add table inet tracking")
    row.middle.run("nft", "add chain inet tracking input { type filter hook input priority 0 ; }")
    row.middle.run("nft", "add rule inet tracking input ct state established accept")
    row.middle.call(forwarder, f"{ours} 80 {theirs} 8080\n{ours} 81 {theirs} 8081\n", workers=1)
    assert tracked(row, 80, 8080) == {"client", "backend"}
    row.middle.run("nft", "-f", str(mine))
    assert tracked(row, 80, 8080) == set()
    assert tracked(row, 81, 8081) == {"client", "backend"}


def tracked(row: Row, port: int, behind: int) -> set[str]:
    """Which sides of a session are in the kernel's table while it is open."""
    ours, theirs = (CLIENT_SIDE[4][0], port), (BACKEND_SIDE[4][1], behind)
    with (
        row.behind.call(Listener, *theirs) as listener,
        row.client.call(connect, ours) as client,
        listener.accept() as served,
    ):
        client.sendall(b"x")
        assert served.recv(1) == b"x"
        table = row.middle.call(Path("/proc/thread-self/net/nf_conntrack").read_text)
        sides = {
            "client": f"sport={client.getsockname()[1]} dport={port} ",
            "backend": f"sport={served.getpeername()[1]} dport={behind} ",
        }
    return {side for side, entry in sides.items() if entry in table}
