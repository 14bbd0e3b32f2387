"""Rows 6 to 9: SIGHUP under load, with a good file, with a bad one, a hundred times at once, and
while clients of a forward that goes are in session and in its queue.

C rinetd goes through all of them too. It answers who has said that he is finished in part at best
(it has no half close), so of its short calls only errors count, and of its streams whether they lived:
without a SIGHUP it has neither. HAProxy's signal is SIGUSR2, to the master, and all of its load counts.
A program that ends is one failure, however many are refused after it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests import deadline, forwarder, processes
from tests.conftest import StartServer
from tests.deadline import until
from tests.faults.conftest import StartWatched, compared
from tests.faults.row import Row, scaled
from tests.forwarder import Forwarder, Kind
from tests.load import Load, word
from tests.ports import free_port
from tests.servers import banner, serve_apart
from tests.sockets import Address, connect, read_exactly
from tests.system.sites import ENOUGH, HOST, Site, all_greet, greeting, lives, session
from tests.system.test_reload import (
    Spoil,
    clear,
    directory,
    missing,
    syntax,
    taken,
    unreadable,
    unresolvable,
)

STREAMS = 8

SESSIONS = 8
"""Of a `Site`, open while its configuration changes."""

REFUSED = {
    "fastfwd": "reload refused: 1 problem; the old configuration goes on",
    "haproxy": forwarder.REFUSED["haproxy"],
}
"""What is said then."""


def alien(here: Site, stack: ExitStack) -> str:
    """What is not a line of rinetd's either is none of HAProxy's."""
    here.forwarder.config_path.write_text(f"{HOST} 80 nowhere\n")
    return ""


SPOILS: tuple[Spoil, ...] = (syntax, missing, taken, unresolvable, directory, unreadable)


@contextmanager
def noted(row: Row, what: str) -> Iterator[None]:
    """What a program that is only compared fails to do, or its death, is written down; of ours it
    fails the test."""
    try:
        yield
    except (AssertionError, OSError) as error:
        if row.kind == "fastfwd":
            raise
        row.held(False, f"{what}: {str(error).splitlines()[0]}")


@dataclass(slots=True)
class Traffic:
    """A load on an echo behind `running`, through whatever comes; `row` gets what was lost of it."""

    row: Row
    running: Forwarder
    load: Load
    streams: int = field(default=0, init=False)

    def begin(self) -> None:
        self.load.open_streams(STREAMS)
        self.streams += STREAMS

    def end(self) -> None:
        """Judge it. A stream that has ended before it was told to has been cut."""
        cut = list(self.load.streams)
        with noted(self.row, "the end of the load"):
            self.load.stop()
        gone = not self.running.running()
        streams = self.load.streams if gone else cut
        if self.row.kind != "rinetd":
            streams = [each for each in self.load.streams if each.verified != each.sent or each.how != "ok"]
        self.row.tried(
            self.streams, [f"a stream: {each.how}, {each.verified} of {each.sent}" for each in streams]
        )
        self.row.held(not gone, f"the program ended with status {self.running.process.returncode}")
        calls = [call.how for call in self.load.calls if not (gone and call.how == "ECONNREFUSED")]
        failed = [how for how in calls if how != "ok" and (self.row.kind != "rinetd" or "bytes" not in how)]
        self.row.tried(len(calls), [f"a call: {how}" for how in failed])


@contextmanager
def traffic(row: Row, running: Forwarder, port: int, rate: int) -> Iterator[Traffic]:
    """Short calls and long streams to `port`, judged at the end."""
    with Load((HOST, port), rate) as load:
        found = Traffic(row, running, load)
        found.begin()
        yield found
        found.end()


def alive(client: socket.socket) -> bool:
    """Whether the session still echoes."""
    try:
        return lives(client)
    except OSError:
        return False


def greeted(client: socket.socket) -> str:
    """What the backend has said to `client`, or the error."""
    try:
        return read_exactly(client, 3).decode()
    except OSError as error:
        return word(error)


def told(address: Address, seen: Counter[str]) -> str:
    """What a new client is told first, or how it fails; counted in `seen`."""
    try:
        answer = greeting(address)
    except ConnectionError as error:
        answer = "reset" if isinstance(error, ConnectionResetError) else word(error)
    seen[answer] += 1
    return answer


def all_told(address: Address, expected: str, seen: Counter[str]) -> bool:
    """Whether as many new clients as it takes to meet both workers are told `expected`."""
    return all(told(address, seen) == expected for _ in range(ENOUGH))


def memory(running: Forwarder) -> int:
    """Bytes that all its processes have resident."""
    return sum(map(processes.rss, running.pids()))


@compared("rinetd", "haproxy")
@pytest.mark.row(
    6,
    "SIGHUP with a good file, again and again, under load",
    "no connection is refused or reset; every stream goes on",
)
@pytest.mark.timeout(deadline.seconds(240))
def test_reloads_under_load(row: Row, kind: Kind, watched: StartWatched) -> None:
    """Other forwards come and go with them."""
    port, *others = (free_port() for _ in range(4))
    reloads, done, took = scaled(5, 100), 0, []
    with serve_apart("echo") as behind:
        target = f"{behind.host} {behind.port}\n"
        kept = f"{HOST} {port} {target}"
        running = watched(kept, kind=kind).running
        with traffic(row, running, port, scaled(200, 300)) as found, noted(row, "reloads under load"):
            for number in range(reloads):
                found.load.more(scaled(20, 60))
                added = "".join(f"{HOST} {each} {target}" for each in others[: number % 4])
                running.configure(added + kept if number % 2 else kept + added)
                began = time.monotonic()
                if not running.running():
                    break
                running.hup()
                done += 1
                if kind != "rinetd":
                    running.wait_reloaded(number + 1)
                    took.append(time.monotonic() - began)
            found.load.more(60)
        if kind != "rinetd":
            row.held(running.reloaded() == reloads, f"only {running.reloaded()} were carried out")
            row.figure("slowest", max(took) * 1e3, "ms")
        if kind == "fastfwd":
            running.reload(kept)
    row.figure("reloads", done)


@compared("rinetd", "haproxy")
@pytest.mark.row(
    7,
    "SIGHUP with a bad file: a syntax error, no file, a port that is taken, an unknown name, a directory,"
    " a file that cannot be read",
    "the old configuration goes on, sessions and all; the reason is said",
)
@pytest.mark.timeout(deadline.seconds(240))
def test_bad_reloads(row: Row, kind: Kind, watched: StartWatched, backend: StartServer) -> None:
    """The others are started anew for each of them: C rinetd ends with the first, and what HAProxy
    carries out instead of refusing it would be the configuration that the next one finds."""
    spoils = (alien if kind == "haproxy" else syntax, *SPOILS[1:]) * scaled(1, 8)
    if kind == "rinetd":  # the small form is content with two
        spoils = SPOILS[: scaled(2, len(SPOILS))]
    lives_of_it = [spoils] if kind == "fastfwd" else [(spoil,) for spoil in spoils]
    ended = 0
    with serve_apart("echo") as behind:
        for some in lives_of_it:
            one, two = (backend(banner, text) for text in ("one", "two"))
            port, echoing = free_port(), free_port()
            # By name: the resolver, which the first name calls into being, is there from the start.
            config = f"{HOST} {port} {one.host} {one.port}\n{HOST} {echoing} localhost {behind.port}\n"
            here = Site(watched(config, kind=kind).running, port, one, two)
            with traffic(row, here.forwarder, echoing, 100), ExitStack() as stack:
                clients = [stack.enter_context(session(here.address)) for _ in range(SESSIONS)]
                for number, spoil in enumerate(some, 1):
                    with ExitStack() as spoiled, noted(row, spoil.__name__):
                        spoil(here, spoiled)
                        here.forwarder.hup()
                        wait_refused(here.forwarder, number)
                        refused = here.forwarder.said(REFUSED[kind]) if kind in REFUSED else number
                        row.held(refused == number, f"{spoil.__name__}: not refused")
                        row.held(
                            all_greet(here.address, "one"), f"{spoil.__name__}: new clients are not served"
                        )
                    clear(here.forwarder.config_path)
                    here.forwarder.configure(config)
                for client in clients:
                    row.held(alive(client), "a session has ended")
            ended += not here.forwarder.running()
    row.figure("bad files", sum(map(len, lives_of_it)))
    row.figure("the program ended", ended)


def wait_refused(running: Forwarder, count: int) -> None:
    """Wait until it has dealt with so many bad files. C rinetd does not say so: it ends, or it has
    looked at the file within a second, as far as anybody can tell."""
    if running.kind != "rinetd":
        running.wait_reloaded(count)
        return
    try:
        until(lambda: not running.running(), 1)
    except AssertionError:
        pass


@compared("rinetd", "haproxy")
@pytest.mark.row(
    8,
    "a storm of 100 SIGHUPs, sessions and calls going on",
    "nobody is refused or reset, and the last configuration serves",
)
@pytest.mark.timeout(deadline.seconds(240))
def test_storms(row: Row, kind: Kind, watched: StartWatched, backend: StartServer) -> None:
    """Before each storm one forward changes and another one comes; then they change back."""
    storms, settled, seen, others = 0, [], Counter[str](), Counter[str]()
    with serve_apart("echo") as behind:
        one, two = (backend(banner, text) for text in ("one", "two"))
        port, echoing, added = (free_port() for _ in range(3))
        kept = f"{HOST} {echoing} {behind.host} {behind.port}\n"
        running = watched(f"{HOST} {port} {one.host} {one.port}\n" + kept, kind=kind).running
        here = Site(running, port, one, two)
        before = memory(running)
        with ExitStack() as stack, traffic(row, running, echoing, 100):
            clients = [stack.enter_context(session(here.address)) for _ in range(SESSIONS)]
            for number in range(scaled(2, 20)):
                if not running.running():
                    break
                name, gone = ("two", "") if number % 2 == 0 else ("one", "refused")
                running.configure(kept + here.line(port, name) + ("" if gone else here.line(added)))
                began = time.monotonic()
                storms += 1
                with noted(row, "a storm"):
                    for _ in range(100):
                        running.hup()
                    until(partial(all_told, here.address, name, seen), what="the last configuration")
                    until(partial(all_told, (HOST, added), gone or "one", others), what="what came or went")
                    settled.append(time.monotonic() - began)
                row.held(all(map(alive, clients)), "a session has ended")
        if not running.running():
            del seen["refused"]  # its end is one failure
        lost = sum(count for answer, count in seen.items() if answer not in ("one", "two"))
        row.tried(seen.total(), [f"clients of the changed forward: {dict(seen)}"] * lost)
        if kind != "rinetd":
            row.figure("reloads that came of 100", running.reloads() / storms)
        if running.running():
            row.figure("memory after", (memory(running) - before) / 1024, "KiB more")
    row.figure("storms", storms)
    row.figure("settled", len(settled))
    if settled:
        row.figure("slowest to settle", max(settled) * 1e3, "ms")


@compared("rinetd", "haproxy")
@pytest.mark.row(
    9,
    "a forward is removed while it has sessions and clients in its queue, and comes back",
    "its sessions go on, who is in the queue is served, newcomers are refused until it is back; other"
    " forwards notice nothing",
)
@pytest.mark.timeout(deadline.seconds(240))
def test_a_forward_goes_and_comes_back(
    row: Row, kind: Kind, watched: StartWatched, backend: StartServer
) -> None:
    """Its workers stand still when the signal comes, so that there is a queue."""
    removals, queued, cut, seen = 0, 0, 0, Counter[str]()
    with serve_apart("echo") as behind:
        one, two = (backend(banner, text) for text in ("one", "two"))
        port, echoing = free_port(), free_port()
        kept = f"{HOST} {echoing} {behind.host} {behind.port}\n"
        running = watched(f"{HOST} {port} {one.host} {one.port}\n" + kept, kind=kind).running
        here = Site(running, port, one, two)
        with traffic(row, running, echoing, 100):
            for _ in range(scaled(2, 30)):
                if not running.running():
                    break
                with noted(row, "a removal"), ExitStack() as stack:
                    clients = [stack.enter_context(session(here.address)) for _ in range(SESSIONS)]
                    pids = running.serving()
                    processes.stop(*pids)
                    waiting = [stack.enter_context(connect(here.address)) for _ in range(ENOUGH)]
                    running.configure(kept)
                    running.wait_obedient()
                    running.hup()
                    for pid in pids:
                        os.kill(pid, signal.SIGCONT)
                    until(lambda: told(here.address, seen) == "refused", what="refused connections")
                    answers = list(map(greeted, waiting))
                    lost = [f"a client in the queue: {answer!r}" for answer in answers if answer != "one"]
                    row.tried(len(answers), lost)
                    removals, queued, cut = removals + 1, queued + len(answers), cut + len(lost)
                    row.held(all(map(alive, clients)), "a session of the removed forward has ended")
                    row.held(all_told(here.address, "refused", seen), "a newcomer is let in")
                    running.configure(here.line(port) + kept)
                    running.wait_obedient()
                    running.hup()
                    until(partial(all_told, here.address, "one", seen), what="the forward to be back")
                    row.held(all(map(alive, clients)), "a session of the removed forward has ended")
    row.figure("removals", removals)
    row.figure("clients in the queue", queued)
    row.figure("of them lost", cut)
    row.figure("newcomers reset", seen["reset"])
