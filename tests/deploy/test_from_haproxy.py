"""docs/from-haproxy.md: what its pairs of files do is the same, where that can be seen from outside."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests import deadline
from tests.announcing import header
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.deploy.pages import DOCS, blocks
from tests.peers import require_peer
from tests.servers import serve
from tests.sockets import connect, read_to_end
from tests.system.namespaces import Sandbox

PAGE = (DOCS / "from-haproxy.md").read_text("utf-8")
FILES = {
    name: {block.heading: block.text for block in blocks(PAGE) if block.name == name}
    for name in ("haproxy.cfg", "fastfwd.conf")
}

CLIENT, STRANGER, PROXY = "198.51.100.7", "192.0.2.7", "10.1.0.7"
BACKENDS = {"10.1.1.2": (5432, 80), "10.1.1.3": (5432,), "10.1.1.4": (25,), "10.1.1.5": (30_000, 30_999)}
"""Those of the page that are there, with their ports."""

ADDRESSES = ("203.0.113.10", "10.1.0.1", CLIENT, STRANGER, PROXY, *BACKENDS)


def tell(connection: socket.socket, visit: object, name: str) -> None:
    """Say who one is and who has come, and what came first."""
    connection.sendall(f"{name} {connection.getpeername()[0]} ".encode())
    connection.settimeout(deadline.seconds(10))
    connection.sendall(connection.recv(1 << 16))


class Place:
    """A network with these addresses, in which the backends listen."""

    def __init__(self, sandbox: Sandbox, directory: Path, stack: ExitStack) -> None:
        self.sandbox, self.directory = sandbox, directory
        for address in ADDRESSES:
            sandbox.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        for address, ports in BACKENDS.items():
            for port in ports:
                inside = partial(stack.enter_context, serve(tell, address, host=address, port=port))
                sandbox.call(inside)

    def answer(self, address: str, port: int, source: str, said: bytes) -> list[str]:
        """Words of whoever is there, for a client with the address `source` that says something; none if it
        is closed."""

        def look() -> socket.socket | None:
            try:
                found: socket.socket = self.sandbox.call(connect, (address, port), source)
            except ConnectionRefusedError:
                return None
            return found

        try:
            with until(look, what=f"{address}:{port} to be listened on") as client:  # type: ignore[union-attr]
                client.sendall(said)
                return read_to_end(client).data.decode().split()
        except (ConnectionResetError, BrokenPipeError):
            return []


@pytest.fixture(params=FILES)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, forwarder: StartForwarder
) -> Iterator[Callable[[str], Place]]:
    """Call it with a heading: HAProxy, or fastfwd, runs with the file there."""
    with ExitStack() as stack:

        def start(heading: str) -> Place:
            made = Place(stack.enter_context(Sandbox(network=True)), tmp_path, stack)
            text = re.sub("/run/|/var/log/", f"{tmp_path}/", FILES[request.param][heading])
            if request.param == "fastfwd.conf":
                made.sandbox.call(forwarder, text)
                return made
            path = tmp_path / request.param
            # As many as descriptors suffice for.
            path.write_text(text.replace("maxconn 20000", "maxconn 1000"))
            command = [require_peer("haproxy"), "-db", "-f", str(path)]
            process = made.sandbox.call(
                partial(subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.wait, deadline.seconds(10))
            stack.callback(process.terminate)
            return made

        yield start


def test_two_databases(place: Callable[[str], Place]) -> None:
    """Both have clients; who is not allowed has none; mail goes to the first."""
    here = place("Two databases, and a spare")
    answers = [here.answer("203.0.113.10", 5432, CLIENT, b"hello") for _ in range(6)]
    assert {each[0] for each in answers} == {"10.1.1.2", "10.1.1.3"}
    assert all(each[2:] == ["hello"] for each in answers)
    assert here.answer("203.0.113.10", 5432, STRANGER, b"hello") == []
    assert here.answer("203.0.113.10", 25, STRANGER, b"hello")[0] == "10.1.1.4"


def test_who_the_client_is(place: Callable[[str], Place]) -> None:
    """A proxy is believed; ports of a range are ten thousand higher, from the address that is named."""
    here = place("Who the client is")
    announced = header("v1", ("192.0.2.9", 4711), ("10.1.0.1", 80))
    said = here.answer("10.1.0.1", 80, PROXY, announced + b"hello")
    assert said[2:] == ["PROXY", "TCP4", "192.0.2.9", "10.1.0.1", "4711", "80", "hello"]
    for port in (20_000, 20_999):
        assert here.answer("203.0.113.10", port, CLIENT, b"x") == ["10.1.1.5", "10.1.0.1", "x"]
