"""The settings of deploy/sysctl.d: the kernel has them, sysctl takes them, and they do what they promise."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartForwarder
from tests.deadline import until
from tests.peers import require_peer
from tests.servers import banner, serve
from tests.sockets import connect, finish, read_to_end
from tests.system.namespaces import Sandbox
from tests.system.test_transparent import BACKEND_SIDE, CLIENT_SIDE, Row

FILE = Path(__file__).parents[2] / "deploy" / "sysctl.d" / "fastfwd.conf"

LINES = [line for line in FILE.read_text().splitlines() if line and line[0] not in "#;"]
SETTINGS = {
    name.strip().lstrip("-"): value.strip() for name, _, value in (each.partition("=") for each in LINES)
}
OPTIONAL = {line.partition("=")[0].strip().lstrip("-") for line in LINES if line.startswith("-")}


def place(name: str) -> Path:
    """Where the kernel has a setting."""
    return Path("/proc/sys", *name.split("."))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_kernel_has_it(name: str) -> None:
    """In a network of its own, as far as there is one for each. Only what may fail may be missing."""
    with Sandbox(network=True) as inside:
        assert inside.call(place(name).exists) or name in OPTIONAL


def test_sysctl_takes_the_file() -> None:
    """Every line. (It writes to files in the kernel's place: some of these are the whole machine's.)"""
    require_peer("sysctl")
    with Sandbox(network=True) as inside:
        inside.cover(Path("/proc/sys"))
        for name in SETTINGS:
            inside.call(place(name).parent.mkdir, parents=True, exist_ok=True)
            inside.call(place(name).write_text, "0\n")
        inside.run("sysctl", "-p", str(FILE))
        assert {name: inside.call(place(name).read_text).strip() for name in SETTINGS} == SETTINGS


def test_every_setting_has_its_reason() -> None:
    """docs/hosts.md says where the figure comes from."""
    page = (FILE.parents[2] / "docs" / "hosts.md").read_text()
    assert [name for name in SETTINGS if f"`{name}`" not in page] == []


def test_the_queue(forwarder: StartForwarder) -> None:
    """somaxconn is how many clients may wait for fastfwd."""
    most = SETTINGS["net.core.somaxconn"]
    with Sandbox(network=True) as inside:
        inside.sysctl("net.core.somaxconn", most)
        inside.call(forwarder, "127.0.0.1 80 127.0.0.1 81\n", workers=1)
        assert inside.run("ss", "-Hltn", "sport = :80").split()[2] == most


def test_ports_come_back(forwarder: StartForwarder) -> None:
    """tcp_tw_reuse: with all ports towards a backend used up by connections that clients have ended, the next
    one is made after a second. By default it takes 60."""
    ours, theirs = (CLIENT_SIDE[4][0], 2001), (BACKEND_SIDE[4][1], 3001)
    with ExitStack() as stack:
        row = Row(stack)
        row.middle.sysctl("net.ipv4.tcp_tw_reuse", SETTINGS["net.ipv4.tcp_tw_reuse"])
        row.middle.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
        config = f"{ours[0]} {ours[1]} {theirs[0]} {theirs[1]}\n"
        row.middle.call(forwarder, config, workers=1)
        row.behind.call(stack.enter_context, serve(banner, host=theirs[0], port=theirs[1]))

        def served() -> bool:
            """Whether one more client is; it ends first."""
            with row.client.call(connect, ours) as client:
                finish(client)
                return read_to_end(client).data != b""

        count = 0
        while served():
            count += 1
            assert count <= 20, "the ports are not used up"
        assert count > 0
        until(served, 5, "a port to come back")
