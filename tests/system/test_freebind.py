"""`freebind=on` where fastfwd listens: the address of a pair may come later, and go again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask
from tests.forwarder import Forwarder, run
from tests.sockets import PATIENCE, Listener, connect, read_exactly
from tests.system.namespaces import Sandbox

PORT, BEHIND = 2001, 3001
HERE = "192.0.2.1"
ADDRESSES = {4: "192.0.2.99", 6: "2001:db8::99"}
"""Not of the network that a test begins with."""


@pytest.fixture
def inside() -> Iterator[Sandbox]:
    """A network of its own, in which none of ADDRESSES is."""
    with Sandbox(network=True) as sandbox:
        sandbox.run("ip", "address", "add", f"{HERE}/32", "dev", "lo")
        yield sandbox


def change(inside: Sandbox, how: str, version: int) -> None:
    """`add` the address, or `del` it."""
    inside.run("ip", "address", how, ADDRESSES[version], "dev", "lo")


def line(version: int, protocol: str = "tcp", options: str = "freebind=on") -> str:
    """A forward that listens there."""
    return f"{ADDRESSES[version]} {PORT}/{protocol} {HERE} {BEHIND}/{protocol} [{options}]\n"


@pytest.mark.parametrize("version", [4, 6])
def test_the_address_comes_later(version: int, inside: Sandbox, forwarder: StartForwarder) -> None:
    """The program starts without it, and serves as soon as it is there."""
    inside.call(forwarder, line(version))
    with inside.call(Listener, HERE, BEHIND) as behind:
        change(inside, "add", version)
        with inside.call(connect, (ADDRESSES[version], PORT)) as client, behind.accept() as served:
            client.sendall(b"hello")
            assert read_exactly(served, 5) == b"hello"


def test_the_address_goes_and_comes_back(inside: Sandbox, forwarder: StartForwarder) -> None:
    """The listener outlives it, without a reload."""
    change(inside, "add", 4)
    inside.call(forwarder, line(4))
    change(inside, "del", 4)
    change(inside, "add", 4)
    with (
        inside.call(Listener, HERE, BEHIND) as behind,
        inside.call(connect, (ADDRESSES[4], PORT)),
        behind.accept(),
    ):
        pass


def test_datagrams_to_an_address_that_comes_later(inside: Sandbox, forwarder: StartForwarder) -> None:
    """They are answered from it."""
    inside.call(forwarder, line(4, "udp"))
    change(inside, "add", 4)
    with (
        inside.call(UdpBackend, host=HERE, port=BEHIND),
        inside.call(socket.socket, type=socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(deadline.seconds(PATIENCE))
        client.connect((ADDRESSES[4], PORT))  # so it hears nobody else
        assert ask(client, b"?") == b"?"


def test_without_it_the_start_fails(inside: Sandbox, tmp_path: Path) -> None:
    """With the line, and the reason."""
    path = tmp_path / "fastfwd.conf"
    path.write_text(line(4, options="keepalive=on"))
    done = inside.call(run, "-f", "-c", str(path))
    assert done.returncode == 1
    assert f"{path}:1: cannot listen on {ADDRESSES[4]}:{PORT}/tcp" in done.stderr


def test_a_reload_brings_it(inside: Sandbox, forwarder: StartForwarder) -> None:
    """A forward whose address is not here is refused without the option, and taken with it."""
    running: Forwarder = inside.call(forwarder, f"127.0.0.1 {PORT} {HERE} {BEHIND}\n")
    running.reload(line(4, options="keepalive=on"))
    refused = running.said("reload refused:")
    running.reload(line(4))
    assert (refused, running.said("reloaded:")) == (1, 1)
