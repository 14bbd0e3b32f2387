"""What the service manager is told (sd_notify(3)): a socket of the test's plays the manager's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import StartForwarder
from tests.deadline import until
from tests.ports import free_port
from tests.system.sites import HOST, StartSite, lives, session

Said = dict[str, str]


class Manager:
    """The receiving end of a service manager; `said` are the messages, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.said: list[Said] = []
        self.senders: list[int] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a program is started with that shall tell it."""
        return {"NOTIFY_SOCKET": self.address}

    def heard(self) -> list[Said]:
        """Everything so far."""
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return self.said
            self.senders.append(int.from_bytes(ancillary[0][2][:4], "little"))
            self.said.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    def wait(self, name: str, value: str | None = None, after: int = 0) -> int:
        """Wait until it has been told that `name` is `value`, or anything; the number of the message."""

        def found() -> int:
            for number, each in enumerate(self.heard()):
                if number >= after and name in each and value in {None, each[name]}:
                    return number + 1
            return 0

        return until(found, what=f"{name}={value}, of {self.said}") - 1


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """It waits for messages."""
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.sock.close()


@pytest.fixture(params=["a path", "an abstract name"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """With either kind of address."""
    path = request.param == "a path"
    made = Manager(str(tmp_path / "notify") if path else f"@fastfwd-test-{os.getpid()}")
    yield made
    made.sock.close()


def test_ready_comes_once_every_worker_serves(site: StartSite, either: Manager) -> None:
    """And says what is served."""
    site(env=either.environment)
    first = either.said[either.wait("READY", "1")]
    assert first["STATUS"] == "serving: 1 forward, 0 sessions"


def test_a_start_that_fails_is_never_ready(forwarder: StartForwarder, manager: Manager) -> None:
    """The manager must not believe that it serves."""
    running = forwarder("nonsense\n", env=manager.environment, ready=False)
    running.expected_return = {1}
    assert running.wait() == 1
    assert [each for each in manager.heard() if "READY" in each] == []


def test_a_reload_is_announced_and_ended(site: StartSite, manager: Manager) -> None:
    """RELOADING=1 with the time, then READY=1 (sd_notify(3))."""
    here = site(env=manager.environment)
    here.forwarder.reload()
    begun = manager.wait("RELOADING", "1")
    assert int(manager.said[begun]["MONOTONIC_USEC"]) > 0
    manager.wait("READY", "1", after=begun + 1)


def test_a_refused_reload_is_ended_too(site: StartSite, manager: Manager) -> None:
    """The old configuration serves."""
    here = site(env=manager.environment)
    here.forwarder.reload("nonsense\n")
    manager.wait("READY", "1", after=manager.wait("RELOADING", "1") + 1)


def test_sessions_are_in_the_status(site: StartSite, manager: Manager) -> None:
    """`systemctl status` shows how many there are."""
    here = site(env=manager.environment)
    with session(here.address):
        seen = manager.wait("STATUS", "serving: 1 forward, 1 session")
    manager.wait("STATUS", "serving: 1 forward, 0 sessions", after=seen)


def test_a_stop_is_announced(site: StartSite, manager: Manager) -> None:
    """STOPPING=1, once."""
    here = site(env=manager.environment)
    here.forwarder.stop()
    assert len([each for each in manager.heard() if "STOPPING" in each]) == 1


def test_the_watchdog_is_fed(site: StartSite, manager: Manager) -> None:
    """By the supervisor's loop itself, if the manager has one for it."""
    site(env={**manager.environment, "WATCHDOG_USEC": "3000000"})
    manager.wait("WATCHDOG", "1", after=manager.wait("WATCHDOG", "1") + 1)


def test_the_watchdog_of_another_process_is_not_fed(site: StartSite, manager: Manager) -> None:
    """WATCHDOG_PID says whose it is."""
    here = site(env={**manager.environment, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"})
    with session(here.address):
        manager.wait("STATUS", "serving: 1 forward, 1 session")  # told by the same tick
    assert [each for each in manager.heard() if "WATCHDOG" in each] == []


def test_a_supervisor_that_stands_still_feeds_nothing(site: StartSite, manager: Manager) -> None:
    """The manager ends it then: nothing else could."""
    here = site(env={**manager.environment, "WATCHDOG_USEC": "3000000"})
    manager.wait("WATCHDOG")
    os.kill(here.forwarder.pid, signal.SIGSTOP)
    with session(here.address) as client:  # its workers go on
        before = len(manager.heard())
        assert lives(client)
        assert len(manager.heard()) == before
    os.kill(here.forwarder.pid, signal.SIGCONT)
    manager.wait("WATCHDOG", after=before)


def test_an_upgrade_moves_the_main_process(site: StartSite, manager: Manager) -> None:
    """MAINPID, from the old one; the new one speaks from then on, for the manager believes nobody else."""
    here = site(env={**manager.environment, "WATCHDOG_USEC": "3000000"})
    old = here.forwarder.pid
    new = here.forwarder.upgrade()
    moved = manager.wait("MAINPID", f"{new}")
    manager.wait("WATCHDOG", after=manager.wait("READY", after=moved + 1))
    assert set(manager.senders[: moved + 1]) == {old}
    assert set(manager.senders[moved + 1 :]) == {new}


@pytest.mark.parametrize("gone", ["from the start", "later"])
def test_a_manager_that_is_gone_is_ignored(site: StartSite, tmp_path: Path, gone: str) -> None:
    """Nothing fails for want of somebody to tell."""
    made = Manager(str(tmp_path / "notify"))
    if gone == "from the start":
        made.sock.close()
        os.unlink(made.address)
    here = site(env=made.environment)
    if gone == "later":
        made.wait("READY")
        made.sock.close()
        os.unlink(made.address)
    here.forwarder.reload()
    with session(here.address) as client:
        assert lives(client)
    assert here.forwarder.stop() == 0


def test_a_manager_that_does_not_listen_is_not_waited_for(
    forwarder: StartForwarder, manager: Manager
) -> None:
    """Its queue fills, and the supervisor goes on; what it had no room for is said later."""
    manager.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with filler:
        with suppress(BlockingIOError):
            while True:
                filler.sendto(b"X=1\n", manager.address)
        running = forwarder(f"{HOST} {free_port()} 192.0.2.1 1\n", env=manager.environment)
        running.reload()
    manager.wait("READY", "1")
