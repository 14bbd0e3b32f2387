"""Rows 37 and 44 to 47: datagrams of every size; backends that come and go, workers that die, and reloads,
in the midst of a crowd of clients; a flood from addresses where nobody is.

A client's canary tells whose datagram it is, and the port that a backend hears it from tells which flow
carries it: as long as that port stays the same, nothing has happened to the flow.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

import pytest

from tests import deadline, processes
from tests.apart import said, start
from tests.datagrams import LARGEST, UdpBackend, udp_client
from tests.deadline import until
from tests.faults import strangers
from tests.faults.conftest import StartWatched, compared
from tests.faults.row import Row, scaled
from tests.faults.test_floods import TOLD, WORKERS, slowest
from tests.faults.test_processes import GROWN_UP, age
from tests.faults.test_reloads import noted
from tests.forwarder import Forwarder, Kind
from tests.load import Load, slots, successor
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import Address, noise
from tests.system.metrics import by, metrics_url, scrape, status
from tests.system.namespaces import Sandbox
from tests.system.test_udp import SIZES

HOST: Final = "127.0.0.1"

AT_ONCE: Final = 200
"""Datagrams under way: more than these a socket of C rinetd's, or a client's, would not take."""

PATIENCE: Final[dict[Kind, float]] = {"fastfwd": 5.0, "rinetd": 0.3}
"""Seconds for an answer. What is lost takes all of them, so a program that loses many gets fewer."""


class Crowd:
    """So many clients of `address`, each with a canary: it must hear what it has said, and nothing else."""

    def __init__(self, address: Address, count: int, stack: ExitStack, patience: float = 5.0) -> None:
        self.patience = patience
        self.clients = [stack.enter_context(udp_client(address)) for _ in range(count)]
        self.waiting: dict[int, bytes] = {}
        """Number of a client -> what it waits to hear."""
        self.wrong: dict[int, str] = {}
        """Number of a client -> something that was not for it."""
        self.turn = 0

    def say(self, numbers: Iterable[int]) -> None:
        """A new datagram from each of these."""
        self.turn += 1
        for number in numbers:
            self.waiting[number] = data = b"<%d> %d " % (number, self.turn) * (1 + (number + self.turn) % 60)
            with suppress(ConnectionRefusedError):  # the program is gone
                self.clients[number].send(data)

    def hear(self, seconds: float | None = None) -> list[int]:
        """Take the answers; the clients that got none."""
        poll = select.poll()
        numbers = {self.clients[number].fileno(): number for number in self.waiting}
        for descriptor in numbers:
            poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + deadline.seconds(self.patience if seconds is None else seconds)
        while self.waiting and time.monotonic() < end:
            for descriptor, _ in poll.poll(50):
                number = numbers[descriptor]
                try:
                    data = self.clients[number].recv(LARGEST)
                except ConnectionRefusedError:
                    continue
                if data == self.waiting.get(number):
                    del self.waiting[number]
                elif not data.startswith(b"<%d> " % number):
                    self.wrong[number] = f"{data[:20]!r} for client {number}"
        missed = list(self.waiting)
        self.waiting.clear()
        return missed

    def ask(self, numbers: Collection[int] | None = None) -> list[int]:
        """A datagram from each of `numbers`, or from everybody, and its answer; who got none."""
        asking = list(range(len(self.clients)) if numbers is None else numbers)
        missed = []
        for first in range(0, len(asking), AT_ONCE):
            self.say(asking[first : first + AT_ONCE])
            missed += self.hear()
        return missed

    def shout(self) -> None:
        """A datagram from everybody; nobody waits for an answer."""
        for first in range(0, len(self.clients), AT_ONCE):
            self.say(range(first, min(first + AT_ONCE, len(self.clients))))
        self.waiting.clear()

    def judge(self, row: Row) -> None:
        """At the end: nobody has heard another one's words, or the same twice."""
        for number, client in enumerate(self.clients):
            client.setblocking(False)
            with suppress(OSError):
                self.wrong[number] = f"{client.recv(LARGEST)[:20]!r} for client {number}, unasked"
        row.tried(len(self.clients), list(self.wrong.values()))


def served(row: Row, crowd: Crowd, what: str, numbers: Collection[int] | None = None) -> int:
    """All of `crowd`, or these of them, get their answers; how many do not."""
    missed = crowd.ask(numbers)
    count = len(crowd.clients) if numbers is None else len(numbers)
    row.tried(count, [f"{what}: client {number} got no answer" for number in missed])
    return len(missed)


def ports(backend: UdpBackend) -> dict[int, set[int]]:
    """Number of a client -> the ports that its datagrams came from."""
    found: dict[int, set[int]] = {}
    for data, sender in list(backend.seen):
        if data.startswith(b"<"):  # C rinetd sends an empty one first
            found.setdefault(int(data[1 : data.index(b">")]), set()).add(sender[1])
    return found


def changed(numbers: Iterable[int], heard: Collection[dict[int, set[int]]], what: str) -> list[str]:
    """The clients that backends heard from no port, or from more than one."""
    found = {number: set().union(*(each.get(number, set()) for each in heard)) for number in numbers}
    return [f"{what}: client {each} has {len(own)} flows" for each, own in found.items() if len(own) != 1]


def held(running: Forwarder) -> int:
    """How many descriptors those have that serve."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in running.serving())


# 37. Sizes.

WAYS: Final = [(HOST, HOST), ("::1", "::1"), (HOST, "::1"), ("::1", HOST)]
"""Where a forward listens, and where its backend is."""

MOST: Final = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
"""Bytes in a datagram: the headers are in the packet's length with IPv4 only (RFC 791, RFC 8200)."""

NOISE: Final = noise(1 << 17)


@pytest.mark.row(
    37,
    "datagrams of 0 to 65,507 bytes, in fragments, over both families; larger ones, which only IPv6 takes",
    "each arrives whole, in both directions; a client is one flow, with two log lines; what has no room is"
    " dropped and counted",
)
@compared("rinetd")
@pytest.mark.timeout(deadline.seconds(300))
def test_datagrams_of_every_size(row: Row, kind: Kind, watched: StartWatched) -> None:
    """The loopback's packets are as small as an Ethernet's."""
    rng = random.Random(37)
    with Sandbox(network=True) as inside, ExitStack() as stack:
        inside.run("ip", "link", "set", "lo", "mtu", "1500")
        backends = [
            stack.enter_context(
                inside.call(partial(UdpBackend, oversized if kind == "fastfwd" else something, host=behind))
            )
            for _, behind in WAYS
        ]
        listening = [free_port() for _ in WAYS]
        config = "".join(
            f"{host} {port}/udp {backend.host} {backend.port}/udp [timeout=2]\n"
            for (host, _), port, backend in zip(WAYS, listening, backends, strict=True)
        )
        metrics = "metrics 127.0.0.1:0\n" if kind == "fastfwd" else ""
        running = inside.call(watched, config + metrics, kind=kind).running
        ways = []
        for (host, behind), port, backend in zip(WAYS, listening, backends, strict=True):
            client = inside.call(stack.enter_context, udp_client((host, port)))
            client.settimeout(deadline.seconds(PATIENCE[kind]))
            way = Way(row, client, backend, f"{host} to {behind}")
            for size in [
                *SIZES,
                *rng.sample(range(MOST[socket.AF_INET] + 1), scaled(100, 4000) if kind == "fastfwd" else 100),
            ]:
                way.pass_on(size)
            if host != behind:
                way.drop()
            ways.append(way)
        with suppress(AssertionError):
            until(lambda: len(running.log_lines()) >= 2 * len(ways), what="both lines of each client")
        for way, port in zip(ways, listening, strict=True):
            row.held(len(way.ports) == 1, f"{way.name}: one client, {len(way.ports)} flows")
            lines = [each for each in running.log_columns() if each["listen_port"] == str(port)]
            found = [(each["outcome"], int(each["bytes_in"]), int(each["bytes_out"])) for each in lines]
            right = [("opened", SIZES[0], 0), ("idle-timeout", way.taken, way.given)]
            row.held(found == right, f"{way.name}: {found[:4]} in the log, not {right}")
        if kind == "fastfwd":
            dropped = by(inside.call(scrape, metrics_url(running)), "udp_datagrams_dropped_total", "reason")
            row.held(dropped == {"client": LARGE, "backend": LARGE}, f"dropped: {dropped}")
    row.figure("sizes", len({size for way in ways for size in way.sizes}))


LARGE: Final = 20
"""Datagrams in each direction that only IPv6 has room for."""

BIG_ANSWER: Final = b"more than IPv4 has room for"


def oversized(data: bytes) -> list[bytes]:
    """An echo; or, if that is asked for, an answer that no client hears over IPv4."""
    return [NOISE[: MOST[socket.AF_INET6]]] if data == BIG_ANSWER else [data]


def something(data: bytes) -> list[bytes]:
    """An echo that does not heed empty datagrams: C rinetd begins with one of its own, and serves
    no client any more when that is answered."""
    return [data] if data else []


class Way:
    """One client and one backend, and what they have exchanged."""

    def __init__(self, row: Row, client: socket.socket, backend: UdpBackend, name: str) -> None:
        self.row = row
        self.client = client
        self.backend = backend
        self.name = name
        self.sizes: list[int] = []
        self.taken = self.given = 0
        self.ports: set[int] = set()

    def pass_on(self, size: int) -> None:
        """A datagram there and back."""
        start = len(self.sizes) % (len(NOISE) - LARGEST)
        data = NOISE[start : start + size]
        self.sizes.append(size)
        answer = None
        self.client.send(data)
        with suppress(TimeoutError):
            answer = self.client.recv(LARGEST)
        seen = self.seen()
        self.taken += size
        self.given += size
        self.row.held(
            seen == [data], f"{self.name}: {size} bytes come to the backend as {[len(each) for each in seen]}"
        )
        self.row.held(
            answer == data,
            f"{self.name}: {size} bytes come back as {'none' if answer is None else len(answer)}",
        )
        if answer != data:
            self.hush()

    def drop(self) -> None:
        """Datagrams that have no room in a packet of the other side, each before one that has."""
        data = NOISE[: MOST[socket.AF_INET6]] if self.client.family == socket.AF_INET6 else BIG_ANSWER
        for _ in range(LARGE):
            self.client.send(data)
            self.taken += len(data)
            self.pass_on(1)  # what comes is the answer to this one

    def seen(self) -> list[bytes]:
        """What the backend has got since the last look."""
        found, self.backend.seen = self.backend.seen, []
        self.ports |= {sender[1] for _, sender in found}
        return [data for data, _ in found if data != BIG_ANSWER]

    def hush(self) -> None:
        """Forget what has come late."""
        with suppress(OSError):
            self.client.setblocking(False)
            while True:
                self.client.recv(LARGEST)
        self.client.settimeout(deadline.seconds(PATIENCE[self.row.kind]))


# 44. Backends come and go.


@pytest.mark.row(
    44,
    "a backend for datagrams that is not there (ICMP), comes, goes and comes back, in the midst of a crowd",
    "a flow has one socket and keeps it; once somebody is there no datagram is lost; the log says how it was;"
    " after the timeout nothing is left; other flows notice nothing",
)
@compared("rinetd")
@pytest.mark.timeout(deadline.seconds(300))
def test_backends_come_and_go(row: Row, kind: Kind, watched: StartWatched) -> None:
    port, behind, quiet = free_port(), free_port(), free_port()
    # What C rinetd loses takes its time.
    count, rounds = scaled(200, 1000 if kind == "fastfwd" else 200), scaled(1, 8 if kind == "fastfwd" else 2)
    lost = 0
    left = []
    with UdpBackend(something) as other:
        forward = f"{HOST} {port}/udp {HOST} {behind}/udp [timeout=2]\n"
        beside = f"{HOST} {quiet}/udp {HOST} {other.port}/udp\n"
        running = watched(forward + beside, kind=kind).running
        with ExitStack() as stack:
            neighbours = Crowd((HOST, quiet), 50, stack, PATIENCE[kind])
            served(row, neighbours, "neighbours")
            before = held(running)
            for number in range(rounds):
                with ExitStack() as present:
                    crowd = Crowd((HOST, port), count, present, PATIENCE[kind])
                    for _ in range(5):
                        crowd.shout()
                        served(row, neighbours, f"round {number}, nobody there: neighbours")
                    row.held(
                        held(running) <= before + count, f"{held(running) - before} sockets of {count} flows"
                    )
                    left.append(gone(row, running, before, f"round {number}, nobody there"))
                    crowd.shout()
                    heard: list[dict[int, set[int]]] = []
                    for visit in range(3):
                        with UdpBackend(something, port=behind) as backend:
                            lost += served(row, crowd, f"round {number}, visit {visit}")
                            heard.append(ports(backend))
                        crowd.shout()
                        served(row, neighbours, f"round {number}, after visit {visit}: neighbours")
                    row.tried(count, changed(range(count), heard, f"round {number}"))
                    crowd.judge(row)
                left.append(gone(row, running, before, f"round {number}, in the end"))
            neighbours.judge(row)
        row.tried(50, changed(range(50), [ports(other)], "neighbours"))
    words = Counter(line["outcome"] for line in running.log_columns() if line["listen_port"] == str(port))
    flows = rounds * count
    right = {"opened": 2 * flows, "local-connect-failed -": flows, "idle-timeout": flows}
    row.held(words == right, f"in the log: {words}, not {right}")
    end(running)
    row.figure("not answered once the backend was there", lost)
    row.figure("descriptors that are left", max(left))


def end(running: Forwarder, extra: str = "") -> None:
    """End the flows that nobody needs any more: their forward goes. `extra` lines stay."""
    if running.kind == "fastfwd":
        running.reload(f"{HOST} {free_port()} {HOST} 1\n{extra}")


def gone(row: Row, running: Forwarder, before: int, what: str) -> int:
    """After the timeout all flows have ended but those from `before`; how many descriptors are left."""
    left = held(running) - before

    def look() -> bool:
        nonlocal left
        left = min(left, held(running) - before)  # there may be sessions that come and go
        return left <= 0

    with suppress(AssertionError):
        until(look, 10 if row.kind == "fastfwd" else 4)
    row.held(left <= 0, f"{what}: {left} descriptors are left")
    return left


# 45. A worker dies.


@pytest.mark.row(
    45,
    "kill -9 of a worker in the midst of a crowd of clients that send datagrams",
    "flows of the others lose nothing; the victim's begin anew, and what waited in its queue is served",
)
@pytest.mark.timeout(deadline.seconds(300))
def test_a_worker_dies_in_a_crowd(row: Row, watched: StartWatched) -> None:
    """A datagram is lost only if the victim had taken it and not passed it on: stopped before it is killed,
    it takes none of those that are sent meanwhile."""
    port = free_port()
    kills = scaled(2, 16)
    lost: list[int] = []
    took: list[float] = []
    with UdpBackend(something) as backend, ExitStack() as stack:
        aftermath = watched(f"{HOST} {port}/udp {HOST} {backend.port}/udp\nlogformat json\n")
        aftermath.sessions_lost = True
        running = aftermath.running
        crowd = Crowd((HOST, port), AT_ONCE, stack)
        served(row, crowd, "at first")
        until(lambda: len(slots(running)) >= AT_ONCE, what="the log lines")
        slot_of = slots(running)
        own = [slot_of[client.getsockname()[1]] for client in crowd.clients]
        for number in range(kills):
            slot = number % 2
            victim = running.worker(slot)
            if number >= 2:  # one that dies soon after its birth is not replaced at once
                until(lambda: age(victim) >= GROWN_UP, what="a worker that is not newborn")  # noqa: B023
            theirs = {client for client in range(AT_ONCE) if own[client] == slot}
            others = set(range(AT_ONCE)) - theirs
            backend.seen.clear()
            served(row, crowd, f"before kill {number}")
            queued = number % 4 in (0, 3)
            if queued:
                processes.stop(victim)
            began = time.monotonic()
            crowd.say(range(AT_ONCE))
            os.kill(victim, signal.SIGKILL)
            missed = set(crowd.hear(2))
            if queued:
                took.append(time.monotonic() - began)
                row.tried(AT_ONCE, [f"kill {number}: client {each} got no answer" for each in missed])
            else:
                lost.append(len(missed))
                hurt = missed & others
                row.tried(len(others), [f"kill {number}: another worker's client {each}" for each in hurt])
            successor(running, slot, victim)
            served(row, crowd, f"after kill {number}")
            heard = ports(backend)
            row.tried(len(others), changed(others, [heard], f"kill {number}: another worker's"))
            old = [f"kill {number}: the victim's client {each}" for each in theirs if len(heard[each]) != 2]
            row.tried(len(theirs), old)
        crowd.judge(row)
        end(running, "logformat json\n")
    row.figure("kills", kills)
    row.figure("datagrams lost that the victim had taken, each time", statistics.mean(lost))
    row.figure("all that waited are answered after (median)", 1000 * statistics.median(took), "ms")
    row.figure("slowest", 1000 * max(took), "ms")


# 46. Reloads.


@pytest.mark.row(
    46,
    "SIGHUP again and again, in the midst of a crowd of clients that send datagrams",
    "no datagram is lost, and no flow changes; a forward that goes and comes back serves",
)
@compared("rinetd")
@pytest.mark.timeout(deadline.seconds(300))
def test_reloads_in_a_crowd(row: Row, kind: Kind, watched: StartWatched) -> None:
    """The same file; another target, for flows to come; another forward beside it, and none."""
    port, fickle = free_port(), free_port()
    reloads = scaled(8, 200)
    asked = lost = 0
    with UdpBackend(something) as backend, UdpBackend(something) as other, ExitStack() as stack:
        forward = f"{HOST} {port}/udp {HOST} {backend.port}/udp\n"
        beside = f"{HOST} {fickle}/udp {HOST} {other.port}/udp [timeout=2]\n"
        changes = [
            forward,
            f"{HOST} {port}/udp {HOST} {other.port}/udp\n",
            forward + beside,
            f"allow 127.*\n{forward}{beside}",
        ]
        running = watched(forward, kind=kind).running
        crowd = Crowd((HOST, port), AT_ONCE, stack, PATIENCE[kind])
        lost += served(row, crowd, "at first")
        for number in range(reloads):
            change = changes[number % len(changes)]
            running.configure(change)
            # C rinetd does not say when it is done.
            before = running.reloads() if kind == "fastfwd" else 0
            running.hup()
            waves = 0
            while running.reloads() == before if kind == "fastfwd" else waves < 3:
                lost += served(row, crowd, f"reload {number}")
                waves += 1
                asked += AT_ONCE
            if beside in change:
                with ExitStack() as newcomers:
                    few = Crowd((HOST, fickle), 5, newcomers, PATIENCE[kind])
                    served(row, few, f"reload {number}: the other forward")
                    few.judge(row)
            if not running.running():
                break
            if kind == "rinetd" and lost >= 20 * AT_ONCE:  # it hangs
                break
        row.held(running.running(), f"it ended with status {running.process.returncode}")
        row.tried(AT_ONCE, changed(range(AT_ONCE), [ports(backend)], "all the time"))
        crowd.judge(row)
        end(running)
    row.figure("reloads", number + 1)
    row.figure("datagrams during reloads", asked)
    row.figure("of them lost", lost)


# 47. A flood from addresses where nobody is.

STRANGERS: Final = scaled(6000, 100_000)

ROOM: Final = 2 * 64 + 100
"""Descriptors beside those of flows: sockets of ended ones, which the workers close at the end of their turn,
and those of the TCP calls."""

TOLD_OF: Final = 1000
"""Flows a second of which a worker's log tells before anybody has answered them."""

PACE: Final = 8000
"""Datagrams a second that begin flows: two workers on two processors take them, with the flood beside."""

CAP: Final = 5000
"""What `max-udp-connections` is if the file says nothing."""

WIRE: Final = "192.0.2.1"


class Flood:
    """A network inside of a test's, from where strangers send to the forward at `port`."""

    def __init__(self, inside: Sandbox, port: int) -> None:
        self.inside = inside
        self.port = port
        inside.run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        inside.run("ip", "address", "add", f"{WIRE}/24", "dev", "near")
        for end in ("near", "far"):
            inside.run("ip", "link", "set", end, "up")
        inside.run("ip", "route", "add", strangers.NETWORK, "dev", "near")
        self.mac = json.loads(inside.run("ip", "-json", "link", "show", "near"))[0]["address"]

    def come(self, rate: int, meanwhile: Callable[[], None]) -> float:
        """STRANGERS of them; do something `meanwhile`, again and again. In how many seconds."""
        command = (strangers.__name__, "far", self.mac, WIRE, self.port, STRANGERS, rate)
        with self.inside.call(start, *command) as process:
            while process.poll() is None:
                meanwhile()
            return float(said(process))


@pytest.mark.row(
    47,
    f"{STRANGERS:,} datagrams, each from another address where nobody is, {PACE:,} a second, at once, denied;"
    f" `max-udp-connections` is {CAP:,}",
    "never more flows than that, and one per further worker; who was answered keeps the flow; of those"
    f" without an answer {TOLD_OF:,} a second per worker have their log lines, of the denied {TOLD} have one;"
    " TCP calls are answered; all is given back",
)
@compared("rinetd")
@pytest.mark.timeout(deadline.seconds(300))
def test_a_flood_of_datagrams(row: Row, kind: Kind, watched: StartWatched) -> None:
    """The backend answers none of them. Friends are twenty clients whom it knows; TCP calls go on beside."""
    port, calls = 5300, 5000
    with Sandbox(network=True) as inside, ExitStack() as stack:
        flood = Flood(inside, port)
        backend = stack.enter_context(inside.call(UdpBackend, friendly))
        known = inside.call(stack.enter_context, serve_apart("echo"))
        forwards = (
            f"{WIRE} {port}/udp {HOST} {backend.port}/udp [timeout={scaled(2, 3)}]\n"
            f"{HOST} {calls} {known.host} {known.port}\n"
        )
        forwards += "metrics 127.0.0.1:0\n" if kind == "fastfwd" else ""
        running = inside.call(watched, forwards, kind=kind).running
        before = held(running)
        load = inside.call(stack.enter_context, Load((HOST, calls), 100))
        load.more(100)
        quiet = slowest(load.calls)
        crowd = inside.call(Crowd, (WIRE, port), 20, stack, 1.0 if kind == "fastfwd" else 0.2)
        served(row, crowd, "friends at first")
        memory = sum(map(processes.rss, running.serving()))
        url = metrics_url(running) if kind == "fastfwd" else ""
        missed: list[int] = []
        flows: list[int] = []
        descriptors: list[int] = []

        def look() -> None:
            """The friends talk; then see what it has."""
            missed.append(len(crowd.ask()))
            descriptors.append(held(running) - before)
            if url:
                flows.append(inside.call(forward_status, url)["active"])

        floods = 0.0
        for rate in (PACE, 0):
            missed.clear()
            before_it = dealt_with(inside.call(forward_status, url)) if url else 0
            calls_before, lines = len(load.calls), told(running, port)
            began = time.monotonic()
            seconds = flood.come(rate, look)
            name = f"{rate:,} a second" if rate else "at once"
            row.figure(f"{name}: datagrams", STRANGERS / seconds, "/s")
            if url:
                until(lambda: dealt_with(inside.call(forward_status, url)) >= before_it + STRANGERS)  # noqa: B023
            took = time.monotonic() - began
            floods += took
            row.figure(f"{name}: log lines", (told(running, port) - lines) / took, "/s")
            row.figure(f"{name}: friends' datagrams lost", sum(missed), f"of {20 * len(missed):,}")
            if rate:
                grown = sum(map(processes.rss, running.serving())) - memory
                row.figure("memory of a flow", grown / max(1, held(running) - before), "B")
            with noted(row, f"{name}: TCP calls"):
                load.more(20)
                row.figure(f"{name}: 99th percentile of TCP calls", slowest(load.calls[calls_before:]), "ms")
            served(row, crowd, f"{name}: friends after it")
        row.figure("without a flood", quiet, "ms")
        row.figure("most descriptors", max(descriptors))
        row.held(max(descriptors) <= CAP + ROOM, f"{max(descriptors)} descriptors")
        if url:
            row.tried(len(flows), [f"{each} flows" for each in flows if each > CAP + WORKERS - 1])
            row.figure("most flows", max(flows))
        row.tried(20, changed(range(20), [ports(backend)], "friends"))
        left = gone(row, running, before, "after the flood")
        row.figure("descriptors left after it", left)
        found = Counter(line["outcome"] for line in running.log_columns() if line["listen_port"] == str(port))
        ends = found["evicted"] + found["idle-timeout"]
        row.held(found["opened"] == ends == found.total() / 2, f"in the log: {found}")
        row.figure("flows in the log", found["opened"])
        if url:
            row.held(found["opened"] <= TOLD_OF * WORKERS * (floods + 2) + 20, f"{found['opened']} flows")
            here = inside.call(forward_status, url)
            row.figure("flows", here["accepted"])
            row.figure("of them evicted", here["closed"]["evicted"])
            accounted = here["accepted"] + here["datagrams"]["dropped"]["queue"]
            row.held(accounted >= 2 * STRANGERS, f"{accounted} begun or dropped, of {2 * STRANGERS}")
            row.figure("datagrams that found no room", here["datagrams"]["dropped"]["queue"])

            running.reload(f"deny {strangers.NETWORK}\n{forwards}")
            missed.clear()
            seconds = flood.come(0, look)
            with suppress(AssertionError):
                until(lambda: dealt_with(inside.call(forward_status, url)) >= accounted + STRANGERS)
            now = inside.call(forward_status, url)
            row.held(dealt_with(now) >= accounted + STRANGERS, f"{now['denied']}, {now['datagrams']}")
            lines = len(running.wait_log(1, "\tdenied"))
            row.held(lines <= TOLD * WORKERS * (seconds + 2), f"{lines} lines in {seconds:.1f} s")
            row.figure("denied: datagrams", STRANGERS / seconds, "/s")
            row.figure("denied: log lines", lines / seconds, "/s")
            row.figure("denied: friends' datagrams lost", sum(missed), f"of {20 * len(missed):,}")
            served(row, crowd, "friends after the denied")
        crowd.judge(row)
        with noted(row, "the end of the calls"):
            load.stop()
        row.tried(len(load.calls), [f"call: {call.how}" for call in load.failed()])
        end(running)


def forward_status(url: str) -> Any:
    """What the program says of its forward for datagrams."""
    return next(each for each in status(url)["forwards"] if each["proto"] == "udp")


def dealt_with(forward: Any) -> int:
    """Strangers and others that have a flow, are denied, or found no room."""
    queue: int = forward["datagrams"]["dropped"]["queue"]
    return int(forward["accepted"] + sum(forward["denied"].values()) + queue)


def told(running: Forwarder, port: int) -> int:
    """How many lines the log has about a forward."""
    return running.log_text().count(f"\t{port}\t{HOST}\t")


def friendly(data: bytes) -> list[bytes]:
    """An echo for the crowd, and for nobody else."""
    return [data] if data.startswith(b"<") else []
