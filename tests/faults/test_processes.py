"""Rows 1 to 5: workers and the supervisor die, fail or stand still, under load.

What a worker carries dies with it, and nothing else does. To tell a connection that it had accepted
from one that only waited in its queue, it is stopped before it is killed: what begins after that, it
can never have accepted.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.faults.conftest import StartWatched
from tests.faults.row import FULL, Row, scaled
from tests.forwarder import Forwarder
from tests.load import Load, Stream, stream_on_every_worker, successor
from tests.peers import require_peer, require_root
from tests.ports import bindable, free_port
from tests.servers import echo, serve_apart
from tests.sockets import Address, connect, finish, read_to_end
from tests.system.test_worker_death import Killing, queue_length

HOST = "127.0.0.1"

RATE = scaled(100, 200)
"""Short connections per second."""

SOME = scaled(25, 100)
"""Short connections before a fault, and after it, at least."""

QUEUED = 20
"""Connections that wait in a victim's queue when it is killed, at least."""

GROWN_UP = 5.5
"""Seconds after which a worker's death is not one soon after its birth: its successor comes at once."""

WATCHDOG = 15
"""Seconds within which a worker that stands still must have been replaced: five ticks of one
second, and a machine that is busy."""


def age(pid: int) -> float:
    """Seconds since the process was born."""
    found = processes.stat(pid)
    assert found is not None, f"process {pid} is gone"
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - found.start / os.sysconf("SC_CLK_TCK")


def incomplete(streams: Collection[Stream]) -> list[str]:
    """The streams that have not got every byte back, or not their end."""
    wrong = [each for each in streams if each.how != "ok" or each.verified != each.sent]
    return [f"a stream of another worker: {each.how}, {each.verified} of {each.sent}" for each in wrong]


def losing(
    running: Forwarder, address: Address, victims: Collection[int], *, grown_up: bool, watchdog: bool = False
) -> tuple[Killing, float]:
    """A load during which the workers in the slots `victims` are killed, or with `watchdog` stand
    still until the supervisor kills them; and the seconds until all had successors."""
    with Load(address, RATE) as load:
        held = stream_on_every_worker(load, running)
        load.more(SOME)
        pids = {slot: running.worker(slot) for slot in victims}
        if grown_up:
            until(lambda: min(map(age, pids.values())) >= GROWN_UP, what="workers that are not newborn")
        processes.stop(*pids.values())
        stopped = time.monotonic()
        until(lambda: all(queue_length(pid) >= QUEUED for pid in pids.values()), 3, "queued connections")
        killed = time.monotonic()
        if not watchdog:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
        for slot, pid in pids.items():
            successor(running, slot, pid, WATCHDOG if watchdog else 10)
        replaced = time.monotonic()
        until(lambda: sum(call.began >= replaced for call in load.calls) >= SOME, 20, "calls after it")
        load.stop()
    lost = {port for slot in victims for port in held[slot]}
    return Killing(stopped, killed, load.calls, load.streams, lost), replaced - killed


def judge(row: Row, killing: Killing) -> None:
    """Whatever the victims had not accepted must be served, whatever others carry must be complete.
    A call that had begun and not ended when they were stopped may have been theirs."""
    calls = killing.before() + killing.between() + killing.after()
    row.tried(len(calls), [f"a call: {call.how}" for call in calls if call.how != "ok"])
    others = [each for each in killing.streams if each.port not in killing.lost_ports]
    row.tried(len(others), incomplete(others))
    lost = [each for each in killing.streams if each.port in killing.lost_ports]
    row.tried(len(lost), [f"a victim's stream: {each.how}" for each in lost if each.how.startswith("wrong")])


def longest(killing: Killing) -> float:
    """Seconds that a call took which began while the victims stood still, or after."""
    return max(call.ended - call.began for call in killing.between() + killing.after())


def killed_again_and_again(row: Row, watched: StartWatched, rounds: int, *, every: bool) -> None:
    """So many times, kill one worker, each slot in turn, or `every` one at once."""
    port = free_port()
    with serve_apart("echo") as behind:
        aftermath = watched(f"{HOST} {port} {behind.host} {behind.port}\nlogformat json\n")
        aftermath.sessions_lost = True
        replaced, waits, streams = [], [], 0
        for number in range(rounds):
            victims = aftermath.running.workers() if every else [number % 2]
            killing, seconds = losing(aftermath.running, (HOST, port), list(victims), grown_up=number > 0)
            judge(row, killing)
            replaced.append(seconds)
            waits.append(longest(killing))
            streams += len(killing.lost_ports)
    row.figure("kills", rounds * (2 if every else 1))
    row.figure("streams lost with them, each time", streams / rounds)
    row.figure("median until replaced", statistics.median(replaced) * 1e3, "ms")
    row.figure("slowest", max(replaced) * 1e3, "ms")
    row.figure("longest call", max(waits) * 1e3, "ms")


@pytest.mark.row(
    1,
    "kill -9 of one worker under load",
    "no connection is refused or reset but those it had accepted; other workers' streams lose no byte",
)
@pytest.mark.timeout(deadline.seconds(300))
def test_a_worker_is_killed(row: Row, watched: StartWatched) -> None:
    """Clients in its queue are served by its successor."""
    killed_again_and_again(row, watched, scaled(1, 10), every=False)


@pytest.mark.row(
    2,
    "kill -9 of all workers at once under load",
    "new connections wait and are served; none is refused or reset",
)
@pytest.mark.timeout(deadline.seconds(300))
def test_all_workers_are_killed(row: Row, watched: StartWatched) -> None:
    """While there is no worker at all, the supervisor's sockets keep the clients."""
    killed_again_and_again(row, watched, scaled(1, 6), every=True)


@pytest.mark.row(
    3,
    "kill -9 of the supervisor under load",
    "open sessions finish, whoever was connected is served, the workers leave with their last session,"
    " and a new instance has the port at once",
)
@pytest.mark.timeout(deadline.seconds(300))
def test_the_supervisor_is_killed(row: Row, watched: StartWatched, forwarder: StartForwarder) -> None:
    """Between the two instances connections are refused, which is all that clients notice."""
    ready, left, refused = [], [], 0
    with serve_apart("echo") as behind:
        for _ in range(scaled(1, 10)):
            port = free_port()
            config = f"{HOST} {port} {behind.host} {behind.port}\nlogformat json\n"
            old = forwarder(config)
            old.expected_return = {-signal.SIGKILL}
            with Load((HOST, port), RATE) as load:
                stream_on_every_worker(load, old)
                load.more(SOME)
                killed = time.monotonic()
                old.stop(signal.SIGKILL)
                new = watched(config)
                serves = time.monotonic()
                until(lambda: sum(call.began >= serves for call in load.calls) >= SOME)  # noqa: B023
                row.held(bool(old.pids()), "the workers left before their sessions had ended")
                load.stop()
            ended = time.monotonic()
            until(lambda: not old.pids(), what="the old workers to leave")  # noqa: B023
            ready.append(serves - killed)
            left.append(time.monotonic() - ended)
            row.tried(len(load.streams), incomplete(load.streams))
            judged = [call for call in load.calls if call.began < killed or call.began >= serves]
            row.tried(len(judged), [f"a call: {call.how}" for call in judged if call.how != "ok"])
            refused += len(load.failed()) - sum(call.how != "ok" for call in judged)
            new.running.stop()
    row.figure("kills", len(ready))
    row.figure("the new instance serves after", max(ready) * 1e3, "ms")
    row.figure("the old workers are gone after their last session within", max(left) * 1e3, "ms")
    row.figure("refused between the two, each time", refused / len(ready))


@contextmanager
def barred(supervisor: int, directory: Path) -> Iterator[None]:
    """Inside the block no child that `supervisor` forks can give up its rights (setgroups fails),
    so that each of them fails at boot."""
    command = ["-f", "-p", str(supervisor), "-o", str(directory / "trace"), "-e", "trace=setgroups"]
    command += ["-e", "inject=setgroups:error=EPERM"]
    with subprocess.Popen([require_peer("strace"), *command], stderr=subprocess.DEVNULL) as strace:
        try:
            status = Path(f"/proc/{supervisor}/status")
            until(lambda: "TracerPid:\t0\n" not in status.read_text(), what="strace")
            yield
        finally:
            strace.terminate()
            strace.wait(deadline.seconds(10))


@pytest.mark.row(
    4,
    "a worker that fails at boot, every time",
    "births come at growing pauses, the other worker's sessions go on, nobody in the queue is refused"
    " or reset; at the start it is an end with status 1",
)
@pytest.mark.timeout(deadline.seconds(240))
def test_a_worker_fails_at_boot(
    row: Row, watched: StartWatched, forwarder: StartForwarder, backend: StartServer, tmp_path: Path
) -> None:
    """First in a program that serves, then in one that starts."""
    require_root()
    port, deaths = free_port(), scaled(4, 10)
    aftermath = watched(f"{HOST} {port} {HOST} {backend(echo).port}\nlogformat json\n")
    aftermath.sessions_lost = True
    running = aftermath.running
    # No short calls: half of them would have to wait for the end of it.
    with Load((HOST, port), 0) as load, ExitStack() as stack:
        held = stream_on_every_worker(load, running)
        with barred(running.pid, tmp_path):
            victim = running.worker(0)
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            clients = [stack.enter_context(connect((HOST, port))) for _ in range(scaled(20, 100))]
            for number, client in enumerate(clients):
                client.sendall(b"%03d" % number)
                finish(client)
            until(lambda: running.said("exited with status 3") >= deaths, 120, f"{deaths} deaths at boot")
            took = time.monotonic() - began
        for number, client in enumerate(clients):
            ending = read_to_end(client)
            row.held((ending.data, ending.how) == (b"%03d" % number, "EOF"), f"a queued client: {ending}")
        back = time.monotonic() - began - took
        load.stop()
    pauses = sum(min(0.1 * 2**number, 10) for number in range(deaths - 1))
    row.held(took >= pauses, f"{deaths} deaths within {took:.2f} s, and {pauses:.1f} s of pauses are due")
    others = [each for each in load.streams if each.port not in held[0]]
    row.tried(len(others), incomplete(others))
    row.figure("deaths at boot", deaths)
    row.figure("within", took, "s")
    row.figure("back after the cause has gone", back, "s")

    setpriv = [require_peer("setpriv"), "--bounding-set=-setuid", "--inh-caps=-setuid"]
    for _ in range(scaled(1, 20)):
        port = free_port()
        starting = forwarder(f"{HOST} {port} 192.0.2.1 1\n", command=setpriv, ready=False)
        starting.expected_return = {1}
        status = starting.wait()
        row.held(status == 1 and not starting.said("ready:"), f"a start ended with {status}")
        row.held(bindable(socket.AF_INET, socket.SOCK_STREAM, HOST, port), "the port is still taken")


@pytest.mark.row(
    5,
    "a worker that stands still (SIGSTOP) under load",
    "for a moment: nobody loses anything; for longer: it is replaced, and its successor serves who queued",
)
@pytest.mark.timeout(deadline.seconds(300))
def test_a_worker_stands_still(row: Row, watched: StartWatched) -> None:
    """The campaign has both, the small form only the moment: the watchdog has a system test."""
    port, moments = free_port(), scaled(2, 10)
    with serve_apart("echo") as behind:
        aftermath = watched(f"{HOST} {port} {behind.host} {behind.port}\nlogformat json\n")
        aftermath.sessions_lost = True
        running = aftermath.running
        with Load((HOST, port), RATE) as load:
            stream_on_every_worker(load, running)
            workers = running.workers()
            for number in range(moments):
                load.more(SOME)
                pid = workers[number % 2]
                processes.stop(pid)
                until(lambda: queue_length(pid) >= QUEUED, 3, "queued connections")  # noqa: B023
                os.kill(pid, signal.SIGCONT)
            load.stop()
        row.tried(len(load.calls), [f"a call: {call.how}" for call in load.failed()])
        row.tried(len(load.streams), incomplete(load.streams))
        row.held(running.workers() == workers, "a worker was replaced after a moment")
        row.figure("moments", moments)
        row.figure("longest call", max(call.ended - call.began for call in load.calls), "s")
        if not FULL:
            return
        stalls, waited, rounds = [], 0, 4
        for number in range(rounds):
            killing, _ = losing(running, (HOST, port), [number % 2], grown_up=True, watchdog=True)
            judge(row, killing)
            stalls.append(longest(killing))
            waited += sum(call.ended - call.began > 1 for call in killing.between())
        row.figure("replaced", rounds)
        row.figure("longest call then", max(stalls), "s")
        row.figure("calls that waited longer than a second, each time", waited / rounds)
