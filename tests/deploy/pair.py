"""Two firewalls with one address, each a network of its own with keepalived and fastfwd, and the network between.

    with Pair(tmp_path) as pair:
        master, standby = pair.master(), pair.standby()
        sessions = pair.sessions(20)
        with pair.calls() as calls:
            master.die()
            pair.moved_to(standby)
        assert not calls.failed()

The configuration is that of deploy/keepalived, at the places where it says that it is copied to. Clients and backend
are in the network between, on the bridge. `python -m tests.deploy.pair` measures failovers (`make failover`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import deadline
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.servers import Server, echo
from tests.sockets import connect, read_exactly
from tests.system.namespaces import Sandbox

DEPLOY = Path(__file__).parents[2] / "deploy" / "keepalived"
PLACE = Path("/etc/keepalived")
PRIORITY = Path("/run/fastfwd-priority")

ADDRESS = "192.0.2.10"
BACKEND = "192.0.2.1"
OWN = {"fw1": "192.0.2.2", "fw2": "192.0.2.3"}
"""As in the file of deploy/, but for the backend, which is on the same network here."""

PORT, BEHIND = 2001, 3001

EVERY = 0.02
"""Seconds between two new connections."""

QUICK = {"advert_int 1": "advert_int 0.1", "interval 1": "interval 0.2", "rise 3": "rise 1"}
"""What tests change in the configuration, so as not to wait for it."""


class Node:
    """One of the two."""

    def __init__(self, name: str, network: Sandbox, directory: Path, config: str) -> None:
        self.name = name
        self.own = OWN[name]
        self.network = network
        self.directory = directory / name
        self.directory.mkdir()
        self.inside = Sandbox(network=True)
        self.log = self.directory / "keepalived.log"
        self.keepalived: subprocess.Popen[bytes] | None = None
        self.forwarder: Forwarder | None = None
        try:
            for place in (PLACE, Path("/run")):
                self.inside.cover(place)
            for each in DEPLOY.iterdir():
                self.inside.call(shutil.copy, each, PLACE)
            self.inside.call((PLACE / "keepalived.conf").write_text, config)
            pid = str(network.call(threading.get_native_id))
            self.inside.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", pid)
            network.run("ip", "link", "set", name, "master", "lan", "up")
            self.inside.run("ip", "link", "set", "eth0", "up")
            self.inside.run("ip", "address", "add", f"{self.own}/24", "dev", "eth0")
            self.serve()
            self.watch()
        except BaseException:
            self.close()
            raise

    def serve(self) -> None:
        """Start fastfwd."""
        line = f"{ADDRESS} {PORT} {BACKEND} {BEHIND} [freebind=on]\nmetrics 127.0.0.1:9464\n"
        self.forwarder = self.inside.call(Forwarder, self.directory, line, workers=1)

    def watch(self) -> None:
        """Start keepalived."""
        command = [require_peer("keepalived"), "--dont-fork", "--log-console", "--log-detail", "--vrrp"]
        with self.log.open("ab") as log:
            self.keepalived = self.inside.call(
                subprocess.Popen,
                [*command, "--config-id", self.name, "--use-file", PLACE / "keepalived.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def here(self) -> bool:
        """Whether it has the address, on its network."""
        return ADDRESS in self.inside.run("ip", "-o", "-4", "address", "show", "dev", "eth0")

    def said(self, text: str) -> int:
        """How many lines of keepalived's log, and of what it runs, hold `text`."""
        return self.log.read_text().count(text)

    def add_priority(self, number: int) -> None:
        """Change the priority as the configuration says."""
        self.inside.call(PRIORITY.write_text, f"{number}\n")

    def handover(self, *arguments: str) -> None:
        """Run the script of deploy/."""
        require_peer("nft")
        self.inside.run("sh", str(DEPLOY / "fastfwd-handover"), *arguments)

    def kill_fastfwd(self) -> None:
        """All of its processes at once."""
        assert self.forwarder is not None
        self.forwarder.kill()
        self.forwarder = None

    def kill_keepalived(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Both of its processes, or the one that tells the other one."""
        if self.keepalived is None:
            return
        pid, self.keepalived = self.keepalived, None
        if number == signal.SIGKILL:
            # Its children are in the session that it has been given, and nobody else is.
            os.killpg(pid.pid, number)
        else:
            pid.send_signal(number)
        pid.wait(deadline.seconds(10))

    def die(self) -> None:
        """As if the power were gone: no more packets, no more processes."""
        self.network.run("ip", "link", "set", self.name, "down")
        self.kill_keepalived()
        self.kill_fastfwd()

    def close(self) -> None:
        """End all of it."""
        try:
            self.kill_keepalived(signal.SIGTERM)
        finally:
            try:
                if self.forwarder is not None:
                    self.forwarder.close()
            finally:
                self.inside.close()


@dataclass(frozen=True, slots=True)
class Call:
    """A new connection with a question: when it began, when its answer was there, and what was wrong."""

    begun: float
    ended: float
    wrong: str

    @property
    def took(self) -> float:
        return self.ended - self.begun


class Calls:
    """New connections at a steady pace, each with a question that must be echoed."""

    def __init__(self, network: Sandbox) -> None:
        self.network = network
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(256)
        self.calls: list[Future[Call]] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        """Thread: one after the other, whether or not those before have been answered."""
        while not self.stopped.wait(EVERY):
            # A socket belongs to the network in which it was made.
            client = self.network.call(socket.socket)
            self.calls.append(self.pool.submit(self.call, client, b"%d" % len(self.calls)))

    @staticmethod
    def call(client: socket.socket, said: bytes) -> Call:
        """One connection."""
        begun = time.monotonic()
        wrong = ""
        try:
            with client:
                client.settimeout(deadline.seconds(20))
                client.connect((ADDRESS, PORT))
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                if (got := read_exactly(client, 100)) != said:
                    wrong = f"{got!r} in place of {said!r}"
        except OSError as error:
            wrong = repr(error)
        return Call(begun, time.monotonic(), wrong)

    def done(self) -> list[Call]:
        """Those that have ended so far."""
        return [each.result() for each in self.calls.copy() if each.done()]

    def failed(self) -> list[Call]:
        """Those that got no answer, or a wrong one."""
        return [each for each in self.done() if each.wrong]

    def first_after(self, moment: float) -> Call | None:
        """The first to be answered of those that began later."""
        good = [each for each in self.done() if each.begun > moment and not each.wrong]
        return min(good, key=lambda each: each.ended, default=None)

    def stop(self) -> None:
        """Begin no more, and wait for those that have begun."""
        self.stopped.set()
        self.thread.join()
        self.pool.shutdown()


class Pair:
    """Both, from when one of them has the address and serves. `changes` are made in the configuration's text,
    in both or in one host's."""

    def __init__(
        self, directory: Path, changes: dict[str, str] | None = None, preferred: str | None = None
    ) -> None:
        self.stack = ExitStack()
        self.nodes: dict[str, Node] = {}
        try:
            self.network = self.stack.enter_context(Sandbox(network=True))
            self.network.run("ip", "link", "add", "lan", "type", "bridge")
            self.network.run("ip", "link", "set", "lan", "up")
            self.network.run("ip", "address", "add", f"{BACKEND}/24", "dev", "lan")
            self.backend: Server = self.network.call(Server, echo, host=BACKEND, port=BEHIND)
            self.stack.callback(self.backend.close)
            for name in OWN:
                config = (DEPLOY / "keepalived.conf").read_text()
                for old, new in (QUICK if changes is None else changes).items():
                    config, count = re.subn(rf"^( +){re.escape(old)}$", rf"\g<1>{new}", config, flags=re.MULTILINE)
                    assert count == 1, f"{old!r}: {count} lines of keepalived.conf"
                if name == preferred:
                    config = config.replace("    priority 100\n", "    priority 140\n")
                self.nodes[name] = Node(name, self.network, directory, config)
                self.stack.callback(self.nodes[name].close)
            until(lambda: self.holders() and self.call(), 15, f"somebody to have the address\n{self.logs()}")
            # Both begin at about the same time, and may both have thought so.
            until(lambda: len(self.holders()) == 1, what="one of them to have the address")
        except BaseException:
            self.close()
            raise

    def holders(self) -> list[Node]:
        """Who has the address."""
        return [each for each in self.nodes.values() if each.here()]

    def master(self) -> Node:
        """The one that has it."""
        (node,) = self.holders()
        return node

    def other(self, node: Node) -> Node:
        """The one that is not this one."""
        (found,) = (each for each in self.nodes.values() if each is not node)
        return found

    def moved_to(self, node: Node, seconds: float = 15) -> None:
        """Wait until it has the address, and nobody else."""
        until(lambda: self.holders() == [node], seconds, f"{node.name} to have the address\n{self.logs()}")

    def call(self) -> bool:
        """Whether a new connection is answered."""
        return not Calls.call(self.network.call(socket.socket), b"hello").wrong

    @contextmanager
    def calls(self) -> Iterator[Calls]:
        """New connections all the time; when the block ends, every one of them has ended."""
        calls = Calls(self.network)
        try:
            until(lambda: len(calls.done()) >= 5, what="the first calls to be answered")
            yield calls
        finally:
            calls.stop()

    def sessions(self, count: int) -> list[socket.socket]:
        """So many, each of which has been answered once."""
        made = []
        for _ in range(count):
            client = self.network.call(connect, (ADDRESS, PORT))
            self.stack.enter_context(client)
            made.append(client)
        assert alive(made) == count
        return made

    def logs(self) -> str:
        """What the two keepalived have said."""
        return "\n".join(f"{each.name}:\n{each.log.read_text()}" for each in self.nodes.values() if each.log.exists())

    def close(self) -> None:
        """End everything."""
        self.stack.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def alive(sessions: list[socket.socket]) -> int:
    """How many of them still echo."""
    count = 0
    for number, client in enumerate(sessions):
        said = b"%6d" % number
        try:
            client.sendall(said)
            count += read_exactly(client, len(said)) == said
        except OSError:
            continue
    return count
