"""docs/from-socat.md: what its pairs of a socat and a line of ours do is the same."""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from bench.results import DIRECTORY, load_all
from tests import deadline
from tests.certificates import Authority, over_tls
from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deadline import until
from tests.deploy.pages import DOCS, blocks
from tests.peers import require_peer
from tests.servers import echo, serve
from tests.sockets import connect, noise, read_exactly
from tests.system.namespaces import Sandbox

PAGE = (DOCS / "from-socat.md").read_text("utf-8")
SOCAT = {block.heading: block.text for block in blocks(PAGE) if block.name == "socat"}
OURS = {block.heading: block.text for block in blocks(PAGE) if block.name == "fastfwd.conf"}

HERE, BACKEND, SOURCE, CLIENT = "203.0.113.10", "10.1.1.9", "10.1.0.1", "198.51.100.7"
"""Addresses of the page: this host's, the backend's, what it is dialled from, a client's."""

MESSAGE = noise(100_000)

Trial = Callable[["Place"], None]


class Place:
    """A network with these addresses, and a directory in the place of /run and of the page's files."""

    def __init__(self, sandbox: Sandbox, directory: Path, stack: ExitStack) -> None:
        self.sandbox = sandbox
        self.directory = directory
        self.stack = stack
        self.authority = Authority(directory)
        self.authority.server("localhost").rename(directory / "mail.pem")
        (directory / "ours.pem").write_bytes(self.authority.pem)

    def local(self, text: str) -> str:
        """The page's text, with this directory in the place of its own."""
        return re.sub(r"/run/|\b(?=(?:mail|ours)\.pem)", f"{self.directory}/", text)

    def serve(self, port: int, handler: Callable[..., None] = echo) -> None:
        """A backend that sends back what comes."""
        inside = partial(self.stack.enter_context, serve(handler, host=BACKEND, port=port))
        self.sandbox.call(inside)

    def client(self, address: tuple[str, int], source: str | None = None) -> socket.socket:
        """One that is connected as soon as somebody listens."""

        def look() -> socket.socket | None:
            try:
                found: socket.socket = self.sandbox.call(connect, address, source)
            except ConnectionRefusedError:
                return None
            return self.stack.enter_context(closing(found))

        return until(look, what=f"{address} to be listened on")  # type: ignore[return-value]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One for each test: whose ports are all free."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(network=True))
        for address in (HERE, BACKEND, SOURCE, CLIENT):
            sandbox.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        for parent in (tmp_path, *tmp_path.parents):  # the workers' account dials a socket there
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & stat.S_IXOTH:
                parent.chmod(0o755)
        yield Place(sandbox, tmp_path, stack)


def exchange(client: socket.socket) -> None:
    """The message, there and back."""
    client.sendall(MESSAGE)
    assert read_exactly(client, len(MESSAGE)) == MESSAGE


def unit(place: Place) -> None:
    """Of two clients one is let in."""
    place.serve(5432)
    exchange(place.client((HERE, 5432), CLIENT))
    stranger = place.client((HERE, 5432), SOURCE)
    try:
        assert stranger.recv(1) == b""
    except ConnectionResetError:
        pass


def tcp(place: Place) -> None:
    """The backend sees the address that was asked for."""
    seen: list[str] = []

    def note(connection: socket.socket, *visit: object) -> None:
        seen.append(connection.getpeername()[0])
        echo(connection, *visit)  # type: ignore[arg-type]

    place.serve(22, note)
    exchange(place.client((HERE, 2222)))
    assert set(seen) == {SOURCE}


def both_versions(place: Place) -> None:
    """A client of either."""
    place.serve(80)
    exchange(place.client(("::1", 8080)))
    exchange(place.client((HERE, 8080)))


def tls_accept(place: Place) -> None:
    """The client has TLS, the backend has not."""
    place.serve(143)
    context = place.authority.trusting()
    with context.wrap_socket(place.client((HERE, 993)), server_hostname="localhost") as client:
        exchange(client)


def tls_connect(place: Place) -> None:
    """The backend has TLS, the client has not."""
    cert = place.authority.server("ldap.example.org")
    place.serve(636, over_tls(echo, place.authority.serving(cert)))
    exchange(place.client(("127.0.0.1", 389)))


def udp(place: Place) -> None:
    """Datagrams of two clients, each with its answers."""
    place.stack.enter_context(place.sandbox.call(UdpBackend, host=BACKEND, port=53))
    until(lambda: f"{HERE}:53 " in place.sandbox.run("ss", "-Hlun"), what="port 53 to be listened on")
    for source in (CLIENT, SOURCE):
        client = place.sandbox.call(place.stack.enter_context, udp_client((HERE, 53), source))
        assert [ask(client, each) for each in (b"one", noise(4000))] == [b"one", noise(4000)]


def unix_listen(place: Place) -> None:
    """Its rights, and what goes through it."""
    place.serve(5432)
    path = place.directory / "db.sock"

    def there() -> socket.socket | None:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(deadline.seconds(10))
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            return None
        return client

    with until(there, what=f"{path}") as client:  # type: ignore[union-attr]
        assert path.stat().st_mode & 0o777 == 0o660
        exchange(client)


def unix_dial(place: Place) -> None:
    """A backend at a path."""
    with unix_echo(place.directory / "backend.sock"):
        exchange(place.client(("127.0.0.1", 5433)))


@contextmanager
def unix_echo(path: Path) -> Iterator[None]:
    """A process that sends back what comes to the socket there."""
    with subprocess.Popen(
        [require_peer("socat"), f"UNIX-LISTEN:{path},fork,mode=666", "EXEC:cat"]
    ) as process:
        try:
            until(path.exists, what=f"{path}")
            yield
        finally:
            process.terminate()


TRIALS: dict[str, Trial] = {
    "A unit": unit,
    "TCP": tcp,
    "TCP, IPv6 and IPv4": both_versions,
    "TLS with the clients": tls_accept,
    "TLS with the backend": tls_connect,
    "UDP": udp,
    "A Unix socket to listen on": unix_listen,
    "A Unix socket to dial": unix_dial,
}
"""By heading, what is tried with both programs."""


def test_every_pair_is_tried() -> None:
    """Those of the page, and no others; the unit's command is in the unit."""
    assert list(OURS) == list(TRIALS)
    assert list(SOCAT) == list(TRIALS)[1:]


@pytest.mark.parametrize("heading", TRIALS)
def test_socat(place: Place, heading: str) -> None:
    """As the page has it."""
    text = SOCAT.get(heading) or command_of_the_unit()
    words = shlex.split(place.local(text))
    process = place.sandbox.call(
        partial(subprocess.Popen, [require_peer("socat"), *words[1:]], stderr=subprocess.DEVNULL)
    )
    try:
        TRIALS[heading](place)
    finally:
        process.terminate()
        process.wait(deadline.seconds(10))


@pytest.mark.parametrize("heading", TRIALS)
def test_fastfwd(place: Place, forwarder: StartForwarder, heading: str) -> None:
    """The same with the line beside it."""
    place.sandbox.call(forwarder, place.local(OURS[heading]))
    TRIALS[heading](place)


def test_nine_times() -> None:
    """What the page says of the processor time of a connection is what was measured."""
    measured = load_all(DIRECTORY, ("connections",))["connections"]
    [case] = measured.cases
    spent = {name: measured.value(case.label, name, "cpu") for name in ("socat", "fastfwd-1")}
    assert spent["socat"] is not None
    assert spent["fastfwd-1"] is not None
    assert f"{spent['socat'].median / spent['fastfwd-1'].median:.0f}" == "9"
    assert "[nine times the processor time]" in PAGE


def command_of_the_unit() -> str:
    """What it starts."""
    [block] = [block for block in blocks(PAGE) if block.language == "ini"]
    found = re.search(r"(?m)^ExecStart=/usr/bin/(.*)$", block.text)
    assert found
    return found[1]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It says nothing of it."""
    [block] = [block for block in blocks(PAGE) if block.language == "ini"]
    require_peer("socat")
    path = tmp_path / block.name
    path.write_text(block.text)
    done = subprocess.run(
        [require_peer("systemd-analyze"), "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )
    assert [line for line in done.stderr.splitlines() if block.name in line] == []
    assert done.returncode == 0, done.stderr
