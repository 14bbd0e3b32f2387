"""docs/dnat.md: its rules are nft's, and do what the page says of them.

Three hosts in a row, as tests/system/test_transparent.py has them: a client, this host, the backends'.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deploy.pages import DOCS, blocks
from tests.sockets import Listener, connect, read_exactly
from tests.system.test_transparent import BACKEND_SIDE, CLIENT_SIDE, Row

PAGE = (DOCS / "dnat.md").read_text("utf-8")
BLOCKS = {block.name: block.text for block in blocks(PAGE)}

HERE, CLIENT = CLIENT_SIDE[4]
INSIDE, BACKEND = BACKEND_SIDE[4]


def placed(text: str) -> str:
    """The page's text, with the addresses of the row in the place of its own; all backends are one."""
    text = text.replace("203.0.113.10", HERE).replace("10.1.1.0/24", "198.51.100.0/24")
    for number in (2, 3, 4):
        text = text.replace(f"10.1.1.{number}", BACKEND)
    return text


@pytest.fixture
def bare() -> Iterator[Row]:
    """The three hosts; the one in the middle routes, and has no rules."""
    with ExitStack() as stack:
        made = Row(stack)
        made.middle.sysctl("net.ipv4.ip_forward", "1")
        yield made


@pytest.fixture
def row(bare: Row, tmp_path: Path) -> Row:
    """With the page's rules."""
    path = tmp_path / "forwards.nft"
    path.write_text(placed(BLOCKS["forwards.nft"]))
    bare.middle.run("nft", "-f", str(path))
    return bare


def test_nft_takes_the_rules_as_they_are(bare: Row, tmp_path: Path) -> None:
    """And again, with the two lines that the page names in front."""
    path = tmp_path / "forwards.nft"
    path.write_text(BLOCKS["forwards.nft"])
    bare.middle.run("nft", "-c", "-f", str(path))
    bare.middle.run("nft", "-f", str(path))
    path.write_text("table ip forwards\ndelete table ip forwards\n" + BLOCKS["forwards.nft"])
    bare.middle.run("nft", "-f", str(path))
    assert bare.middle.run("nft", "list", "tables") == "table ip forwards\n"


@pytest.mark.parametrize(
    ("port", "behind"), [(80, 8080), (20_000, 20_000), (20_999, 20_999), (5432, 5432), (25, 25)]
)
def test_a_backend_sees_the_client(row: Row, port: int, behind: int) -> None:
    """Its address, and both directions arrive."""
    with (
        row.behind.call(Listener, BACKEND, behind) as listener,
        row.client.call(connect, (HERE, port)) as client,
        listener.accept() as served,
    ):
        assert served.getpeername()[0] == CLIENT
        client.sendall(b"hello")
        assert read_exactly(served, 5) == b"hello"
        served.sendall(b"world")
        assert read_exactly(client, 5) == b"world"


def test_a_session_outlives_new_rules(row: Row, tmp_path: Path) -> None:
    """It goes on where it was, though its own rule is gone."""
    rules = placed(BLOCKS["forwards.nft"])
    path = tmp_path / "fewer.nft"
    path.write_text(
        "table ip forwards\ndelete table ip forwards\n" + re.sub(r"(?m)^ *tcp dport 80 .*\n", "", rules)
    )
    with (
        row.behind.call(Listener, BACKEND, 8080) as listener,
        row.client.call(connect, (HERE, 80)) as client,
        listener.accept() as served,
    ):
        row.middle.run("nft", "-f", str(path))
        client.sendall(b"hello")
        assert read_exactly(served, 5) == b"hello"


def test_a_session_without_any_rules(row: Row) -> None:
    """It stands still."""
    with (
        row.behind.call(Listener, BACKEND, 8080) as listener,
        row.client.call(connect, (HERE, 80)) as client,
        listener.accept() as served,
    ):
        row.middle.run("nft", "delete", "table", "ip", "forwards")
        client.sendall(b"hello")
        served.settimeout(deadline.seconds(1))
        with pytest.raises(TimeoutError):
            served.recv(5)


def test_datagrams(row: Row) -> None:
    """The same."""
    with ExitStack() as stack:
        behind = stack.enter_context(row.behind.call(UdpBackend, host=BACKEND, port=53))
        client = row.client.call(stack.enter_context, udp_client((HERE, 53)))
        assert ask(client, b"one") == b"one"
        assert [sender[0] for sender in behind.senders()] == [CLIENT]


def test_a_client_on_this_machine(row: Row) -> None:
    """It has a chain of its own."""
    with (
        row.behind.call(Listener, BACKEND, 8080) as listener,
        row.middle.call(connect, (HERE, 80)),
        listener.accept() as served,
    ):
        assert served.getpeername()[0] in (HERE, INSIDE)


def test_a_neighbour_of_the_backend(row: Row) -> None:
    """It comes with this machine's address."""
    with (
        row.behind.call(Listener, BACKEND, 8080) as listener,
        row.behind.call(connect, (HERE, 80)),
        listener.accept() as served,
    ):
        assert served.getpeername()[0] == INSIDE


def test_a_neighbour_without_that_rule(row: Row) -> None:
    """It gets no answer that it knows."""
    row.middle.run("nft", "flush", "chain", "ip", "forwards", "out")
    with row.behind.call(Listener, BACKEND, 8080), pytest.raises((TimeoutError, ConnectionResetError)):
        row.behind.call(connect_soon, (HERE, 80))


def connect_soon(address: tuple[str, int]) -> None:
    """Connect within two seconds."""
    socket.create_connection(address, deadline.seconds(2)).close()


@pytest.mark.parametrize(("port", "behind"), [(80, 8080), (20_999, 20_999)])
def test_fastfwd_with_the_lines_beside_them(
    bare: Row, forwarder: StartForwarder, port: int, behind: int
) -> None:
    """It leads there too, and there a backend sees this host."""
    config = placed(BLOCKS["fastfwd.conf"]).replace(f"{BACKEND}*2,{BACKEND}", BACKEND)
    config = config.replace(f"{BACKEND},{BACKEND}", BACKEND)
    bare.middle.call(forwarder, config)
    with (
        bare.behind.call(Listener, BACKEND, behind) as listener,
        bare.client.call(connect, (HERE, port)),
        listener.accept() as served,
    ):
        assert served.getpeername()[0] == INSIDE
