"""Rows 50 and 51: SIGUSR2 under load, to a program that serves, and to one that does not.

Neither C rinetd nor HAProxy of this version has anything to compare: HAProxy's reload, row 6, is what
it does for a new version too.
"""

from __future__ import annotations

import os
import signal
import time
from statistics import median

import pytest

from tests import deadline
from tests.conftest import StartServer
from tests.datagrams import LARGEST, UdpBackend, udp_client
from tests.deadline import until
from tests.faults.conftest import StartWatched
from tests.faults.row import Row, scaled
from tests.faults.test_reloads import traffic
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.processes import alive
from tests.servers import banner, serve_apart
from tests.sockets import connect
from tests.system.sites import HOST, lives, session

ASKED = 20
"""Datagrams, each waited for, after every upgrade."""


@pytest.mark.row(
    50,
    "SIGUSR2, a new program that serves, again and again, under load",
    "no connection is refused or reset; every stream goes on; every datagram is answered",
)
@pytest.mark.timeout(deadline.seconds(600))
def test_upgrades_under_load(row: Row, watched: StartWatched) -> None:
    """Calls, streams and datagrams; forwards come and go with the upgrades. The workers are always two: with
    fewer, a datagram on its way to a socket that goes may be lost (docs/decisions/0013)."""
    port, udp, *others = (free_port() for _ in range(4))
    upgrades, took = scaled(4, 50), []
    with serve_apart("echo") as behind, UdpBackend() as echoes:
        target = f"{behind.host} {behind.port}\n"
        kept = f"{HOST} {port} {target}{HOST} {udp}/udp {echoes.host} {echoes.port}/udp [timeout=2]\n"
        running = watched(kept, workers=2).running
        with traffic(row, running, port, scaled(200, 300)) as found:
            for number in range(upgrades):
                found.load.more(scaled(20, 60))
                added = "".join(f"{HOST} {each} {target}" for each in others[: number % 3])
                running.configure(kept + added if number % 2 else added + kept)
                began = time.monotonic()
                running.upgrade()
                took.append(time.monotonic() - began)
                ask(row, udp)
            found.load.more(60)
        running.configure(kept)
        running.upgrade()
        until(lambda: len(running.workers()) == 2 and not others_alive(running), 20, "the old programs' ends")
    row.figure("upgrades", upgrades)
    row.figure("until the new one serves alone, median", median(took) * 1e3, "ms")
    row.figure("slowest", max(took) * 1e3, "ms")


def ask(row: Row, port: int) -> None:
    """A client's datagrams, each of which must come back."""
    with udp_client((HOST, port)) as client:
        for number in range(ASKED):
            client.send(b"%d" % number)
            row.held(client.recv(LARGEST) == b"%d" % number, "a datagram had no answer")


def others_alive(running: Forwarder) -> list[int]:
    """Processes that are neither the program's nor its children's."""
    own = {running.pid, *running.workers().values(), running.exporter(), running.resolver()}
    return [pid for pid in running.pids() if pid not in own]


@pytest.mark.row(
    51,
    "SIGUSR2 when the new program does not start: a bad file, a port that is taken, a program that is killed",
    "the old program goes on, sessions and all; the reason is said",
)
@pytest.mark.timeout(deadline.seconds(600))
def test_upgrades_that_fail(row: Row, watched: StartWatched, backend: StartServer) -> None:
    """Each is tried under load, and after each a good one would be possible."""
    one, port, taken = backend(banner, "one"), free_port(), backend(banner, "two")
    echoing = free_port()
    with serve_apart("echo") as behind:
        config = f"{HOST} {port} {one.host} {one.port}\n{HOST} {echoing} {behind.host} {behind.port}\n"
        spoils = [config + "nonsense\n", config + f"{HOST} {taken.port} {one.host} {one.port}\n", None]
        running = watched(config).running
        old = running.pid
        with traffic(row, running, echoing, 100), session((HOST, port)) as client:
            for number, spoil in enumerate(spoils * scaled(1, 8), 1):
                running.configure(config if spoil is None else spoil)
                running.send(signal.SIGUSR2)
                if spoil is None:
                    running.wait_said("is to take over", number)
                    kill_newest(running)
                running.wait_said("this program goes on", number, 20)
                row.held(running.pid == old and alive(old), "the old program has ended")
                row.held(lives(client), "a session has ended")
                with connect((HOST, port)) as another:
                    row.held(another.recv(3) == b"one", "a new client is not served")
        row.figure("failed upgrades", number)


def kill_newest(running: Forwarder) -> None:
    """Kill the program that is to take over."""
    said = [line for line in running.stderr().splitlines() if "is to take over" in line]
    os.kill(int(said[-1].split("process ")[1].split()[0]), signal.SIGKILL)
