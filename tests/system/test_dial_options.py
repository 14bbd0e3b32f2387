"""How a forward dials: from which of many addresses and which interface, with which marks, how long and
how fast; and what a client gets if there is nobody."""

from __future__ import annotations

import http.client
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import echo, source
from tests.sockets import Address, Listener, Sending, connect, noise, read_exactly, read_to_end, reset
from tests.system.namespaces import Sandbox
from tests.system.test_privileges import status

PORT, BEHIND = 2001, 3001
"""In a network of the test's own."""


@pytest.fixture
def inside() -> Iterator[Sandbox]:
    """A network of its own, with a few addresses."""
    with Sandbox(network=True) as sandbox:
        for number in range(1, 9):
            sandbox.run("ip", "address", "add", f"192.0.2.{number}/32", "dev", "lo")
        yield sandbox


@pytest.fixture
def behind(inside: Sandbox) -> Iterator[Listener]:
    """A backend there that the test plays by hand."""
    with inside.call(Listener, "192.0.2.1", BEHIND) as listener:
        yield listener


def begin(inside: Sandbox, forwarder: StartForwarder, options: str, **others: object) -> Forwarder:
    """A program there whose forward has those options."""
    running: Forwarder = inside.call(
        forwarder, f"127.0.0.1 {PORT} 192.0.2.1 {BEHIND} [{options}]\n", **others
    )
    return running


def caller(inside: Sandbox, behind: Listener) -> str:
    """The address from which a session's backend is called."""
    with inside.call(connect, ("127.0.0.1", PORT)), behind.accept() as served:
        return str(served.getpeername()[0])


# Source addresses.


@pytest.mark.parametrize("pool", ["192.0.2.4/30", "192.0.2.4;192.0.2.5;192.0.2.6;192.0.2.7"])
def test_a_pool_of_sources(inside: Sandbox, forwarder: StartForwarder, behind: Listener, pool: str) -> None:
    """Each has its turn."""
    begin(inside, forwarder, f"src={pool}", workers=1)
    found = Counter(caller(inside, behind) for _ in range(8))
    assert found == {f"192.0.2.{number}": 2 for number in (4, 5, 6, 7)}


def test_a_pool_has_as_many_ports_as_addresses(
    inside: Sandbox, forwarder: StartForwarder, behind: Listener
) -> None:
    """Where one address has ten ports for a backend, four have forty, and all are used."""
    inside.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
    inside.call(forwarder, f"0.0.0.0 {PORT} 192.0.2.1 {BEHIND} [src=192.0.2.4/30]\n", workers=1)
    with ExitStack() as stack:
        for number in range(40):
            # Each client asks another address, and has a port left for it. (One that were bound would take
            # that port from everybody who lets connect(2) choose.)
            stack.enter_context(inside.call(connect, (f"127.0.1.{1 + number}", PORT)))
            stack.enter_context(behind.accept())


def test_a_source_that_is_not_here_yet(inside: Sandbox, forwarder: StartForwarder, behind: Listener) -> None:
    """Without `freebind` the dial fails; with it the address may come later (a cluster's)."""
    running = begin(inside, forwarder, "src=192.0.2.99")
    with inside.call(connect, ("127.0.0.1", PORT)) as client:
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-bind-failed")
    running.reload(f"127.0.0.1 {PORT} 192.0.2.1 {BEHIND} [src=192.0.2.99, freebind=on]\n")
    inside.run("ip", "route", "add", "local", "192.0.2.99", "dev", "lo")
    assert caller(inside, behind) == "192.0.2.99"


# Interface, mark, code point: what the packet filter sees.


def count(inside: Sandbox, match: str) -> None:
    """Count what goes to the backend and matches."""
    inside.run("nft", "add table ip seen")
    inside.run("nft", "add chain ip seen out { type filter hook output priority 0 ; }")
    inside.run("nft", f"add rule ip seen out tcp dport {BEHIND} {match} counter")


def counted(inside: Sandbox) -> int:
    """How many packets that were."""
    match = re.search(r"counter packets (\d+)", inside.run("nft", "list table ip seen"))
    assert match
    return int(match[1])


@pytest.mark.parametrize("mark", [42, 0xFFFF_FFFF])
def test_a_mark(mark: int, inside: Sandbox, forwarder: StartForwarder, behind: Listener) -> None:
    """Every packet to the backend has it, and of all rights the workers keep the one that this takes."""
    count(inside, f"meta mark {mark:#x}")
    running = begin(inside, forwarder, f"mark={mark}")
    assert caller(inside, behind)
    assert counted(inside) > 0
    for pid in running.workers().values():
        assert int(status(pid)["CapEff"], 16) == int(status(pid)["CapPrm"], 16) == 1 << 12
        assert int(status(pid)["CapInh"], 16) == int(status(pid)["CapAmb"], 16) == 0


def test_a_mark_takes_a_start(inside: Sandbox, forwarder: StartForwarder, behind: Listener) -> None:
    """Workers that have given up all rights cannot mark: the reload is refused, with the line."""
    running = begin(inside, forwarder, "timeout=1")
    running.reload(f"127.0.0.1 {PORT} 192.0.2.1 {BEHIND} [mark=42]\n")
    assert running.said("rinetd.conf:1: expected no 'mark' before a restart") == 1
    assert caller(inside, behind)


def test_a_code_point(inside: Sandbox, forwarder: StartForwarder, behind: Listener) -> None:
    """Expedited forwarding, 46, is what the network sees."""
    count(inside, "ip dscp 46")
    begin(inside, forwarder, "dscp=46")
    assert caller(inside, behind)
    assert counted(inside) > 0


def test_a_device(inside: Sandbox, forwarder: StartForwarder, behind: Listener) -> None:
    """What is bound to an interface that does not lead there reaches nobody."""
    inside.run("ip", "link", "add", "aside", "type", "veth", "peer", "name", "far")
    inside.run("ip", "link", "set", "aside", "up")
    running = begin(inside, forwarder, "device=aside, connect-timeout=1")
    with inside.call(connect, ("127.0.0.1", PORT)) as client:
        assert read_to_end(client).data == b""
    running.reload(f"127.0.0.1 {PORT} 192.0.2.1 {BEHIND} [device=lo]\n")
    assert caller(inside, behind)


# Time and speed.


def test_a_connect_timeout_of_its_own(inside: Sandbox, forwarder: StartForwarder) -> None:
    """It is in the place of the configuration's."""
    inside.run("nft", "add table ip holes")
    inside.run("nft", "add chain ip holes in { type filter hook input priority 0 ; }")
    inside.run("nft", f"add rule ip holes in tcp dport {BEHIND} drop")
    running = begin(inside, forwarder, "connect-timeout=1")
    with inside.call(connect, ("127.0.0.1", PORT)) as client:
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-connect-failed")


@pytest.mark.parametrize("side", ["client", "backend"])
def test_the_most_bytes_a_second(forwarder: StartForwarder, listener: Listener, side: str) -> None:
    """Two megabytes at one a second take a second and more, the last byte included."""
    port = free_port()
    forwarder(f"127.0.0.1 {port} {listener.host} {listener.port} [max-rate=1M]\n")
    data = noise(2 << 20)
    with connect(("127.0.0.1", port)) as client, listener.accept() as served:
        one, other = (client, served) if side == "client" else (served, client)
        began = time.monotonic()
        with Sending(one, data):
            assert read_to_end(other).data == data
    assert time.monotonic() - began > 1.0


def test_no_more_than_so_many_a_second(forwarder: StartForwarder, backend: StartServer) -> None:
    """`connection-rate=5/h`: five at once, then nobody, over all workers."""
    behind = backend(echo)
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [connection-rate=5/h]\n", workers=4)
    assert sum(served(("127.0.0.1", port)) for _ in range(20)) == 5
    assert running.wait_log(1, "over-rate")


def test_no_client_more_than_so_many_a_second(forwarder: StartForwarder, backend: StartServer) -> None:
    """`client-rate=3/h`: three for each."""
    behind = backend(echo)
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [client-rate=3/h]\n", workers=4)
    for number in (1, 2):
        assert sum(served(("127.0.0.1", port), f"127.0.1.{number}") for _ in range(8)) == 3
    assert running.wait_log(1, "over-client-rate")


def test_a_rate_comes_back(forwarder: StartForwarder, backend: StartServer) -> None:
    """Ten a second: who has used them up is served again soon."""
    behind = backend(echo)
    port = free_port()
    forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [connection-rate=10/s]\n")
    while served(("127.0.0.1", port)):
        pass
    until(lambda: served(("127.0.0.1", port)), what="room again")


def served(address: Address, source: str | None = None) -> bool:
    """Whether a client gets to an echo."""
    with connect(address, source) as client:
        try:
            client.sendall(b"x")
            return read_exactly(client, 1) == b"x"
        except OSError:
            return False


# Nobody there.

SORRY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nsorry"


def test_a_word_of_regret(forwarder: StartForwarder, tmp_path: Path) -> None:
    """An HTTP client gets the file as its answer."""
    (tmp_path / "sorry").write_bytes(SORRY)
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()} [sorry-file={tmp_path}/sorry]\n")
    for _ in range(3):
        there = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        there.request("GET", "/")
        answer = there.getresponse()
        assert (answer.status, answer.read()) == (503, b"sorry")
        there.close()
    running.wait_log(3, "local-connect-failed")


def test_a_long_word_to_a_client_that_still_speaks(forwarder: StartForwarder, tmp_path: Path) -> None:
    """Every byte of a megabyte arrives, although the client sends as much at the same time."""
    (tmp_path / "sorry").write_bytes(noise(1 << 20))
    port = free_port()
    forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()} [sorry-file={tmp_path}/sorry]\n")
    with connect(("127.0.0.1", port)) as client, Sending(client, noise(1 << 20), finish=False):
        assert read_exactly(client, 1 << 20) == noise(1 << 20)


def test_whoever_leaves_meanwhile(forwarder: StartForwarder, tmp_path: Path) -> None:
    """Neither a reset nor a drain is in the way of the other."""
    (tmp_path / "sorry").write_bytes(noise(1 << 20))
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()} [sorry-file={tmp_path}/sorry]\n")
    for _ in range(5):
        reset(connect(("127.0.0.1", port)))
    with connect(("127.0.0.1", port)) as client:
        read_exactly(client, 10)
        running.send(signal.SIGUSR1)
        assert read_exactly(client, 1 << 21) == noise(1 << 20)[10:]
    assert running.wait() == 0


# Checks.


def test_a_check_finds_out_before_a_client(forwarder: StartForwarder, backend: StartServer) -> None:
    """Within its interval a backend that is gone is out of use, and no dial has failed."""
    first, second = backend(echo), backend(source, 1)
    port = free_port()
    where = f"{first.host}:{first.port},{second.host}:{second.port}"
    running = forwarder(f"127.0.0.1 {port} {where} 1 [balance=first, check=1, recovery-timeout=1h]\n")
    assert served(("127.0.0.1", port))
    before = second.count
    first.close()
    until(lambda: not served(("127.0.0.1", port)), what="the second one to be chosen")
    assert second.count > before
    assert running.said("Traceback") == 0
