"""Workers die, the service does not: what a kill -9 costs, and whom.

A dead worker takes its own sessions with it and nothing else. To tell a connection
that it had accepted from one that only waited in its queue, it is stopped first
(SIGSTOP): what begins after that, it can never have accepted.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests import processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.load import STREAMS, Call, Load, Stream, stream_on_every_worker, successor
from tests.ports import free_port
from tests.servers import echo, serve_apart
from tests.sockets import Address, connect, read_exactly

RATE = 300
"""Short connections per second."""

QUEUED = 40
"""Connections that wait in the victims' queues when they are killed, at least."""


def queue_length(pid: int) -> int:
    """Connections that wait in the accept queues of the sockets `pid` listens on (proc(5), net/tcp)."""
    held = set(processes.descriptors(pid).values())
    waiting = 0
    with open("/proc/net/tcp", encoding="ascii") as sockets:
        next(sockets)
        for line in sockets:
            _, _, _, state, queues, _, _, _, _, inode, *_ = line.split()
            if state != "0A":  # listening sockets come first, and then perhaps tens of thousands of others
                break
            if f"socket:[{inode}]" in held:
                waiting += int(queues.partition(":")[2], 16)
    return waiting


# Under load.


@dataclass(frozen=True, slots=True)
class Killing:
    """What became of a load whose victims were stopped at `stopped` and killed at `killed`."""

    stopped: float
    killed: float
    calls: list[Call]
    streams: list[Stream]
    lost_ports: set[int]

    def between(self) -> list[Call]:
        """Calls that began while the victims were stopped: about their share was queued."""
        return [call for call in self.calls if self.stopped <= call.began < self.killed]

    def after(self) -> list[Call]:
        """Calls that began after the kill."""
        return [call for call in self.calls if call.began >= self.killed]

    def before(self) -> list[Call]:
        """Calls that had ended when the victims were stopped."""
        return [call for call in self.calls if call.ended < self.stopped]


@pytest.fixture(scope="module", params=["one worker", "every worker"])
def killing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Killing:
    """Two workers under load; one of them, or both, are killed while connections queue."""
    port = free_port()
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        config = f"127.0.0.1 {port} {backend.host} {backend.port}\nlogformat json\n"
        forwarder = stack.enter_context(Forwarder(tmp_path_factory.mktemp("killing"), config, workers=2))
        load = stack.enter_context(Load(("127.0.0.1", port), RATE))
        held = stream_on_every_worker(load, forwarder)
        load.more(RATE)
        victims = {
            slot: pid
            for slot, pid in forwarder.workers().items()
            if slot == 0 or request.param != "one worker"
        }
        processes.stop(*victims.values())
        stopped = time.monotonic()
        # Well before the supervisor's watchdog would do it.
        until(lambda: all(queue_length(pid) >= QUEUED for pid in victims.values()), 3, "queued connections")
        killed = time.monotonic()
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: sum(call.began >= killed for call in load.calls) >= RATE, 20, "calls after the kill")
        load.stop()
        lost = {port for slot in victims for port in held[slot]}
        return Killing(stopped, killed, list(load.calls), list(load.streams), lost)
    raise AssertionError("unreachable")


def test_streams_of_other_workers_lose_nothing(killing: Killing) -> None:
    """Every stream on a worker that was not killed ends with all its bytes echoed."""
    others = [stream for stream in killing.streams if stream.port not in killing.lost_ports]
    assert [stream for stream in others if stream.how != "ok" or stream.verified != stream.sent] == []


def test_streams_of_a_killed_worker_end(killing: Killing) -> None:
    """Both ends of a killed worker's sessions are closed at once; no wrong byte came before."""
    lost = [stream.how for stream in killing.streams if stream.port in killing.lost_ports]
    assert len(lost) >= STREAMS
    assert set(lost) <= {"ECONNRESET", "EPIPE", "EOF"}


def test_queued_connections_are_served_by_the_successor(killing: Killing) -> None:
    """A connection that the victim had not accepted is answered in full: none is reset or refused."""
    assert len(killing.between()) >= QUEUED
    assert [call for call in killing.between() if call.how != "ok"] == []


def test_new_connections_are_served(killing: Killing) -> None:
    """Of the connections after the kill none is reset or refused."""
    assert len(killing.after()) >= RATE
    assert [call for call in killing.after() if call.how != "ok"] == []


def test_nothing_else_fails(killing: Killing) -> None:
    """Before the victim stopped, no connection failed."""
    assert len(killing.before()) >= RATE
    assert [call for call in killing.before() if call.how != "ok"] == []


# Replacements.


@pytest.fixture
def serving(forwarder: StartForwarder, backend: StartServer) -> tuple[Forwarder, Address]:
    """A program with ten workers and one forward to an echo."""
    port = free_port()
    return forwarder(f"127.0.0.1 {port} 127.0.0.1 {backend(echo).port}\n", workers=10), ("127.0.0.1", port)


def answers(address: Address, source: str | None = None) -> bool:
    """Whether a new session echoes."""
    with connect(address, source) as client:
        client.sendall(b"hello")
        return read_exactly(client, 5) == b"hello"


def test_a_new_worker_has_the_slot_within_a_second(serving: tuple[Forwarder, Address]) -> None:
    """From kill -9 to the birth of the successor it takes less than 1 s (10 times)."""
    forwarder, _ = serving
    for slot, victim in forwarder.workers().items():
        os.kill(victim, signal.SIGKILL)
        successor(forwarder, slot, victim, seconds=1)


def test_descriptors_of_the_supervisor_after_20_kills(serving: tuple[Forwarder, Address]) -> None:
    """The supervisor holds as many descriptors after 20 killed workers as before."""
    forwarder, address = serving
    assert answers(address)
    before = len(processes.descriptors(forwarder.pid))
    for _ in range(2):
        for slot, victim in forwarder.workers().items():
            os.kill(victim, signal.SIGKILL)
            successor(forwarder, slot, victim)
    assert forwarder.said("starting another") == 20
    until(lambda: len(processes.descriptors(forwarder.pid)) == before, what=f"{before} descriptors")


def test_descriptors_of_a_successor(serving: tuple[Forwarder, Address]) -> None:
    """A worker that replaces a dead one holds what that one held: nothing of its siblings comes along."""
    forwarder, _ = serving
    for slot, victim in forwarder.workers().items():
        before = len(processes.descriptors(victim))
        os.kill(victim, signal.SIGKILL)
        pid = successor(forwarder, slot, victim)
        until(lambda: len(processes.descriptors(pid)) == before, what=f"{before} descriptors")  # noqa: B023


def test_a_terminated_worker_is_replaced(serving: tuple[Forwarder, Address]) -> None:
    """A worker that somebody sends SIGTERM to has a successor, and clients notice nothing."""
    forwarder, address = serving
    for slot, victim in forwarder.workers().items():
        os.kill(victim, signal.SIGTERM)
        successor(forwarder, slot, victim)
    assert all(answers(address) for _ in range(40))
