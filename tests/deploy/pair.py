"""Two firewalls with one address, each a network of its own with keepalived and fastfwd; one in between.

    with Pair(tmp_path) as pair:
        master, standby = pair.master(), pair.standby()
        sessions = pair.sessions(20)
        with pair.calls() as calls:
            master.die()
            pair.moved_to(standby)
        assert not calls.failed()

The configuration is that of deploy/keepalived, in the place that it says it is copied to. Clients and
backend are in the network between, on the bridge. `python -m tests.deploy.pair` (`make failover`) measures.
"""

from __future__ import annotations

import os
import platform
import random
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

from tests import deadline, processes
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.servers import Server, echo
from tests.sockets import connect, read_exactly
from tests.system.namespaces import Sandbox

DEPLOY = Path(__file__).parents[2] / "deploy" / "keepalived"
PLACE = Path("/etc/keepalived")
PRIORITY = Path("/run/fastfwd-priority")

ADDRESS, ADDRESS6 = "192.0.2.10", "2001:db8::10"
BACKEND, BACKEND6 = "192.0.2.1", "2001:db8::1"
OWN = {"fw1": ("192.0.2.2", "2001:db8::2"), "fw2": ("192.0.2.3", "2001:db8::3")}
"""As in the file of deploy/, but for the backend, which is on the same network here."""

EXCLUDED = """\
    # virtual_ipaddress_excluded {
    #     2001:db8::10/64 dev eth0
    # }
"""
"""What whoever has IPv6 takes the comment signs from."""

PORT, BEHIND = 2001, 3001

EVERY = 0.02
"""Seconds between two new connections."""

QUICK = {"advert_int 1": "advert_int 0.1", "rise 3": "rise 1"}
"""What tests change in the configuration, so as not to wait for it."""


class Node:
    """One of the two."""

    def __init__(self, name: str, network: Sandbox, directory: Path, config: str) -> None:
        self.name = name
        self.own, self.own6 = OWN[name]
        self.network = network
        self.directory = directory / name
        self.directory.mkdir()
        self.inside = Sandbox(network=True)
        self.log = self.directory / "keepalived.log"
        self.keepalived: subprocess.Popen[bytes] | None = None
        self.forwarder: Forwarder | None = None
        self.dead = False
        try:
            for place in (PLACE, Path("/run")):
                self.inside.cover(place)
            for each in DEPLOY.iterdir():
                self.inside.call(shutil.copy, each, PLACE)
            self.inside.call((PLACE / "keepalived.conf").write_text, config)
            notify = (DEPLOY / "fastfwd-notify").read_text()
            both = notify.replace(f":-{ADDRESS}}}", f":-{ADDRESS} {ADDRESS6}}}")
            assert both != notify
            self.inside.call((PLACE / "fastfwd-notify").write_text, both)
            pid = str(network.call(threading.get_native_id))
            self.inside.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", pid)
            network.run("ip", "link", "set", name, "master", "lan", "up")
            self.inside.run("ip", "link", "set", "eth0", "up")
            self.inside.run("ip", "address", "add", f"{self.own}/24", "dev", "eth0")
            self.inside.run("ip", "address", "add", f"{self.own6}/64", "dev", "eth0", "nodad")
            self.serve()
            self.watch()
        except BaseException:
            self.close()
            raise

    def serve(self) -> None:
        """Start fastfwd."""
        lines = [f"{each} {PORT} {BACKEND} {BEHIND} [freebind=on]" for each in (ADDRESS, ADDRESS6)]
        config = "\n".join([*lines, "metrics 127.0.0.1:9464", ""])
        self.forwarder = self.inside.call(Forwarder, self.directory, config, workers=1)

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

    def watchers(self) -> list[processes.Stat]:
        """Its keepalived: the process that was started, and the one that does the work."""
        assert self.keepalived is not None
        found = processes.stat(self.keepalived.pid)
        return [*([found] if found else []), *processes.children(self.keepalived.pid)]

    def here(self) -> bool:
        """Whether it has the address, on its network. (A dead host has it too, and nobody cares.)"""
        return not self.dead and ADDRESS in self.inside.run(
            "ip", "-o", "-4", "address", "show", "dev", "eth0"
        )

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

    def stop_keepalived(self) -> None:
        """As systemd does: it tells the other one."""
        self._end_keepalived(signal.SIGTERM)

    def _end_keepalived(self, number: signal.Signals) -> None:
        if self.keepalived is None:
            return
        process, self.keepalived = self.keepalived, None
        if number == signal.SIGKILL:
            # Its child is in the session that it has been given, and nobody else is.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(deadline.seconds(10))

    def die(self) -> None:
        """As if the power were gone: no more packets, no more processes."""
        self.network.run("ip", "link", "set", self.name, "down")
        self.dead = True
        self._end_keepalived(signal.SIGKILL)
        self.kill_fastfwd()

    def close(self) -> None:
        """End all of it."""
        try:
            self._end_keepalived(signal.SIGKILL)
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
            self.network.run("ip", "address", "add", f"{BACKEND6}/64", "dev", "lan", "nodad")
            self.backend: Server = self.network.call(Server, echo, host=BACKEND, port=BEHIND)
            self.stack.callback(self.backend.close)
            for name in OWN:
                config = (DEPLOY / "keepalived.conf").read_text()
                for old, new in (QUICK if changes is None else changes).items():
                    line = re.compile(rf"^( +){re.escape(old)}$", re.MULTILINE)
                    config, count = line.subn(rf"\g<1>{new}", config)
                    assert count == 1, f"{old!r}: {count} lines of keepalived.conf"
                assert EXCLUDED in config
                config = config.replace(EXCLUDED, EXCLUDED.replace("# ", ""))
                if name == preferred:
                    config = config.replace("    priority 100\n", "    priority 140\n")
                self.nodes[name] = Node(name, self.network, directory, config)
                self.stack.callback(self.nodes[name].close)
            until(self.settled, 20, "one to have the address, and the other one to wait")
            until(self.call, what="a call to be answered")
        except BaseException:
            self.close()
            raise

    def settled(self) -> bool:
        """Whether one has the address, and the other one waits."""
        ready = all(each.said("Entering BACKUP STATE") for each in self.nodes.values())
        return ready and len(self.holders()) == 1

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
        try:
            until(lambda: self.holders() == [node], seconds, f"{node.name} to have the address")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def switch(self, master: Node, standby: Node) -> None:
        """As docs/pair.md says, up to where the old sessions end."""
        standby.handover("take", ADDRESS, master.own, "eth0")
        standby.handover("take", ADDRESS6, master.own6, "eth0")
        master.handover("keep", ADDRESS)
        master.handover("keep", ADDRESS6)
        master.add_priority(-50)
        self.moved_to(standby)

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

    def sessions(self, count: int, address: str = ADDRESS) -> list[socket.socket]:
        """So many, each of which has been answered once."""
        made = []
        for _ in range(count):
            client = self.network.call(connect, (address, PORT))
            self.stack.enter_context(client)
            made.append(client)
        assert alive(made) == count
        return made

    def logs(self) -> str:
        """What the two keepalived have said."""
        return "\n".join(
            f"{each.name}:\n{each.log.read_text()}" for each in self.nodes.values() if each.log.exists()
        )

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


# Measured: `python -m tests.deploy.pair`.

DOCUMENT = DEPLOY.parents[1] / "docs" / "pair.md"
BEGIN, END = "<!-- pair:figures -->\n", "<!-- pair:end -->"

SESSIONS = 50

Event = Callable[[Pair, Node, Node], None]


def dies(pair: Pair, master: Node, standby: Node) -> None:
    """No more packets, no more processes."""
    master.die()


def fastfwd_dies(pair: Pair, master: Node, standby: Node) -> None:
    """All its processes are killed; keepalived lives."""
    master.kill_fastfwd()


def keepalived_stops(pair: Pair, master: Node, standby: Node) -> None:
    """With a farewell."""
    master.stop_keepalived()


def switched(pair: Pair, master: Node, standby: Node) -> None:
    """By the priority, with the handover."""
    pair.switch(master, standby)


def switched_only(pair: Pair, master: Node, standby: Node) -> None:
    """By the priority alone."""
    master.add_priority(-50)


CASES: tuple[tuple[str, Event, str, int], ...] = (
    ("the host dies", dies, "1", 10),
    ("the host dies", dies, "0.1", 20),
    ("fastfwd dies, keepalived sees it", fastfwd_dies, "1", 10),
    ("fastfwd dies, keepalived sees it", fastfwd_dies, "0.1", 10),
    ("keepalived is stopped, without a switch", keepalived_stops, "1", 10),
    ("planned switch, priority only", switched_only, "1", 10),
    ("planned switch with fastfwd-handover", switched, "1", 10),
    ("planned switch with fastfwd-handover", switched, "0.1", 20),
)
"""What happens, with which `advert_int`, how often."""


@dataclass(frozen=True, slots=True)
class Failover:
    """Seconds until the first new connection was answered that had begun after the event, the longest that
    one waited for its answer, how many there were, how many failed, and how many sessions were lost."""

    answered: float
    longest: float
    calls: int
    failed: int
    lost: int


def measure(directory: Path, event: Event, advert: str) -> Failover:
    """Once."""
    with Pair(directory, {"advert_int 1": f"advert_int {advert}"}) as pair:
        master = pair.master()
        standby = pair.other(master)
        sessions = pair.sessions(SESSIONS)
        with pair.calls() as calls:
            # At any point between two advertisements, or two checks.
            time.sleep(random.uniform(0, 1))
            begun = time.monotonic()
            event(pair, master, standby)
            pair.moved_to(standby, 30)
            moved = time.monotonic()
            first = until(lambda: calls.first_after(begun), 30, "a new connection to be answered")
            # And one more second of them, from when the new host has the address.
            until(lambda: calls.first_after(moved + 1), 30, "new connections to be answered")
        assert first is not None
        concerned = [each for each in calls.done() if each.ended > begun]
        for wrong in {each.wrong for each in concerned if each.wrong}:
            tell(f"  {wrong}")
        longest = max(each.took for each in concerned if not each.wrong)
        failed = sum(bool(each.wrong) for each in concerned)
        return Failover(first.ended - begun, longest, len(concerned), failed, SESSIONS - alive(sessions))


def tell(text: str) -> None:
    """How it goes on."""
    sys.stderr.write(f"{text}\n")


def spread(values: list[float]) -> str:
    """Median and the greatest."""
    return f"{statistics.median(values):.2f}, {max(values):.2f}"


def main() -> None:
    """Measure all cases and print a table; with `--write` put it into the document."""
    head = "what happens | `advert_int` | times | first answer (s) | longest wait (s)"
    lines = [
        f"| {head} | new connections failed | sessions lost |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, event, advert, times in CASES:
        found = []
        for number in range(times):
            tell(f"{title}, advert_int {advert}: {number + 1} of {times}")
            with tempfile.TemporaryDirectory(prefix="pair-") as text:
                found.append(measure(Path(text), event, advert))
        failed, calls = sum(each.failed for each in found), sum(each.calls for each in found)
        answered = spread([each.answered for each in found])
        longest = spread([each.longest for each in found])
        lost = f"{sum(each.lost for each in found)} of {times * SESSIONS}"
        lines.append(
            f"| {title} | {advert} s | {times} | {answered} | {longest} | {failed} of {calls:,} | {lost} |"
        )
        tell(lines[-1])
    version = subprocess.run(["keepalived", "-v"], capture_output=True, text=True, check=True).stderr.split()[
        1
    ]
    about = f"keepalived {version}, Linux {platform.release()}, Python {platform.python_version()}"
    text = "\n".join([f"{about}. Median, and the greatest.", "", *lines]) + "\n"
    sys.stdout.write(text)
    if sys.argv[1:] == ["--write"]:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{after}")


if __name__ == "__main__":
    main()
