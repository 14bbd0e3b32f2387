"""The example of discovery: backends that a name server knows are followed as their set changes, by a program
that nobody reloads. The name server is dnsmasq, which is told to read its file again."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Server, banner
from tests.sockets import connect, finish, read_to_end
from tests.system.metrics import metrics_url, scrape, series
from tests.system.namespaces import Sandbox
from tests.system.test_names import Place

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "examples" / "discovery" / "fastfwd.conf"
NAME = "web.service.consul"


class NameServer:
    """A dnsmasq in the sandbox that knows what its hosts file says."""

    def __init__(self, inside: Sandbox, directory: Path) -> None:
        self.hosts = directory / "hosts"
        self.hosts.write_text("")
        directory.chmod(0o755)
        command = [
            *(require_peer("dnsmasq"), "--no-daemon", "--conf-file=/dev/null", "--pid-file", "--user=root"),
            *("--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts"),
            *(f"--addn-hosts={self.hosts}", "--auth-ttl=0", "--local=/consul/", "--local=/org/"),
        ]
        output = (directory / "dnsmasq").open("wb")
        self.process: subprocess.Popen[bytes] = inside.call(
            subprocess.Popen, command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        output.close()
        self.output = directory / "dnsmasq"
        self.inside = inside
        try:
            until(lambda: "started" in self.output.read_text(), 10, "dnsmasq")
        except AssertionError as error:
            self.close()
            raise AssertionError(self.output.read_text()) from error

    def say(self, *addresses: str, name: str = NAME) -> None:
        """From now on it knows these addresses of the name, and no other."""
        kept = [line for line in self.hosts.read_text().splitlines() if not line.endswith(f" {name}")]
        self.hosts.write_text(
            "".join(f"{line}\n" for line in (*kept, *(f"{each} {name}" for each in addresses)))
        )
        self.process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(deadline.seconds(10))


class Scene:
    """Three backends on one port, each at an address of its own, whose number it says; the example's program
    in front of those that the name server knows."""

    def __init__(
        self, inside: Sandbox, names: NameServer, forwarder: StartForwarder, backend: StartServer
    ) -> None:
        self.inside = inside
        self.names = names
        self.behind, self.front = free_port(), free_port()
        self.servers: dict[int, Server] = {
            number: inside.call(backend, banner, str(number), host=f"127.0.0.{number}", port=self.behind)
            for number in (2, 3, 4)
        }
        self.names.say("127.0.0.2", "127.0.0.3")
        self.names.say("192.0.2.9", name="db.example.org")
        until(lambda: self.known() == {"127.0.0.2", "127.0.0.3"}, 10, "dnsmasq to have read its file")
        text = re.sub(r"(?m)^dns-refresh 5$", "dns-refresh 1", EXAMPLE.read_text())
        text = re.sub(r"(?m)^0\.0\.0\.0  8080 (.*) 8080 ", rf"127.0.0.1 {self.front} \1 {self.behind}", text)
        self.running: Forwarder = inside.call(forwarder, f"{text}metrics 127.0.0.1:0\n")

    def known(self) -> set[str]:
        """What the name server says now."""
        try:
            found = self.inside.call(socket.getaddrinfo, NAME, None, type=socket.SOCK_STREAM)
        except socket.gaierror:
            return set()
        return {str(each[4][0]) for each in found}

    def visits(self, count: int = 40) -> set[int]:
        """Whom so many clients come to; 0 is nobody."""
        found = set()
        for _ in range(count):
            with self.inside.call(connect, ("127.0.0.1", self.front)) as client:
                try:
                    finish(client)
                except OSError:
                    pass  # closed already: what it reads tells
                found.add(int(read_to_end(client).data or b"0"))
        return found


@pytest.fixture
def scene(tmp_path: Path, forwarder: StartForwarder, backend: StartServer) -> Iterator[Scene]:
    """The scene, with two backends known."""
    with Sandbox(network=True) as inside:
        Place(inside, server="127.0.0.1")
        with closing(NameServer(inside, tmp_path)) as names:
            yield Scene(inside, names, forwarder, backend)


def test_connections_are_spread_over_a_name_s_addresses(scene: Scene) -> None:
    """Both that the name server knows have some, and the third has none."""
    assert scene.visits() == {2, 3}


def test_a_set_that_moves_is_followed(scene: Scene) -> None:
    """One comes and one goes: new sessions find those that are known now, without a reload; a session with
    one that is gone goes on."""
    with scene.inside.call(connect, ("127.0.0.1", scene.front)) as client:
        old = client.recv(1)
        scene.names.say("127.0.0.3", "127.0.0.4")
        scene.running.wait_said(f"{NAME} is now")
        until(lambda: scene.visits() == {3, 4}, 10, "the new set")
        scene.names.say("127.0.0.4")
        until(lambda: scene.visits() == {4}, 10, "the last one")
        client.sendall(b"still here")
        assert client.recv(100) == b"still here"
    assert old in (b"2", b"3")
    assert scene.running.reloads() == 0


def test_one_that_has_died_costs_nobody_a_connection(scene: Scene) -> None:
    """Before the name server knows it, clients come to the other one."""
    scene.servers[2].close()
    assert scene.visits() == {3}


def test_the_last_answer_stays(scene: Scene) -> None:
    """A name that has no address any more keeps those it had, look-up after look-up."""
    url = metrics_url(scene.running)
    scene.names.say()
    until(lambda: scene.known() == set(), 10, "the name server to know nobody")
    failures = series("dns_lookup_failures_total")
    until(lambda: scene.inside.call(scrape, url)[failures] >= 2, 10, "two look-ups in vain")
    assert scene.visits() == {2, 3}
    assert scene.running.said("is now") == 0
