"""Sockets of the service manager's (sd_listen_fds(3)): a launcher of the test's plays the manager."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.datagrams import LARGEST, UdpBackend, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import banner
from tests.sockets import connect, read_exactly
from tests.system.sites import ENOUGH, HOST, all_greet, greeting, lives, session

LAUNCH = """
import os, sys
count, *command = sys.argv[1:]
for place, number in enumerate(map(int, os.environ.pop("TEST_SOCKETS").split())):
    os.dup2(number, 100 + place)
for place in range(int(count)):
    os.dup2(100 + place, 3 + place)
os.closerange(3 + int(count), 200)
os.environ |= {"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}
os.execv(command[0], command)
"""


def listening(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
    """Sockets on one port, as a unit with ReusePort=yes has them."""
    found: list[socket.socket] = []
    for _ in range(count):
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((HOST, found[0].getsockname()[1] if found else 0))
        if kind is socket.SOCK_STREAM:
            sock.listen(64)
        found.append(sock)
    return found


def start(
    forwarder: StartForwarder, given: Sequence[socket.socket], config: str, **options: object
) -> Forwarder:
    """The program, started with these sockets."""
    spare = [os.dup(each.fileno()) for each in given]
    try:
        for each in spare:
            os.set_inheritable(each, True)
        return forwarder(
            config,
            command=[sys.executable, "-c", LAUNCH, str(len(given))],
            env={"TEST_SOCKETS": " ".join(map(str, spare))},
            inherit=spare,
            **options,
        )
    finally:
        for each in spare:
            os.close(each)


@pytest.mark.parametrize("count", [1, 2])
def test_a_given_socket_is_used(forwarder: StartForwarder, backend: StartServer, count: int) -> None:
    """One for all workers, or one for each."""
    one = backend(banner, "one")
    with ExitStack() as stack:
        given = [stack.enter_context(each) for each in listening(count)]
        port = given[0].getsockname()[1]
        running = start(forwarder, given, f"{HOST} {port} {one.host} {one.port}\n")
        assert all_greet((HOST, port), "one")
        inodes = {os.fstat(each.fileno()).st_ino for each in given}
        for pid in running.workers().values():
            held = {text[8:-1] for text in processes.descriptors(pid).values() if text.startswith("socket:")}
            assert len(held & set(map(str, inodes))) == 1


def test_every_worker_accepts_from_a_shared_socket(forwarder: StartForwarder, backend: StartServer) -> None:
    """Sessions that stay open are spread over both: a busy worker leaves clients to the other."""
    one = backend(banner, "one")
    with listening(1)[0] as given, ExitStack() as stack:
        port = given.getsockname()[1]
        running = start(forwarder, [given], f"{HOST} {port} {one.host} {one.port}\nlogformat json\n")
        clients = [stack.enter_context(session((HOST, port))) for _ in range(ENOUGH)]
        with processes.stopped(running.worker(0)):
            clients += [stack.enter_context(session((HOST, port))) for _ in range(5)]
        assert all(lives(each) for each in clients)


def test_a_restart_refuses_nobody(forwarder: StartForwarder, backend: StartServer) -> None:
    """Who connects between two runs waits in the manager's socket."""
    one = backend(banner, "one")
    with listening(1)[0] as given:
        port = given.getsockname()[1]
        config = f"{HOST} {port} {one.host} {one.port}\n"
        first = start(forwarder, [given], config)
        assert greeting((HOST, port)) == "one"
        first.stop()
        with connect((HOST, port)) as client:
            start(forwarder, [given], config)
            assert read_exactly(client, 3) == b"one"


def test_a_unix_socket(forwarder: StartForwarder, backend: StartServer, tmp_path: Path) -> None:
    """Its file is the manager's: it stays when the program ends."""
    one, path = backend(banner, "one"), tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen(8)
        running = start(forwarder, [given], f"unix:{path} {one.host} {one.port}\n")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(deadline.seconds(10))
            client.connect(str(path))
            assert read_exactly(client, 3) == b"one"
        running.stop()
    assert path.is_socket()


def test_the_metrics_port(forwarder: StartForwarder) -> None:
    """It may be one of them."""
    with listening(1)[0] as given:
        port = given.getsockname()[1]
        running = start(forwarder, [given], f"metrics {HOST}:{port}\n{HOST} {free_port()} 192.0.2.1 1\n")
        assert running.said("is not used") == 0
        until(running.exporter, what="the exporter")
        with connect((HOST, port)) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert read_exactly(client, 12)[-3:] in {b"200", b"503"}


def test_udp_with_a_socket_for_each_worker(forwarder: StartForwarder) -> None:
    """Flows stay with their workers."""
    with UdpBackend() as behind, ExitStack() as stack:
        given = [stack.enter_context(each) for each in listening(2, socket.SOCK_DGRAM)]
        port = given[0].getsockname()[1]
        start(forwarder, given, f"{HOST} {port}/udp {behind.host} {behind.port}/udp\n")
        for _ in range(10):
            with udp_client((HOST, port)) as client:
                for _ in range(3):
                    client.send(b"ping")
                    assert client.recv(LARGEST) == b"ping"
        assert len(behind.senders()) == 10


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        (socket.SOCK_DGRAM, 1, "expected 2 sockets of the service manager's for {}/udp, one for each worker"),
        (socket.SOCK_DGRAM, 3, "expected 2 sockets of the service manager's for {}/udp, one for each worker"),
        (socket.SOCK_STREAM, 3, "expected at most 2 sockets of the service manager's for {}/tcp"),
    ],
)
def test_sockets_that_do_not_suit_the_workers(
    forwarder: StartForwarder, kind: socket.SocketKind, count: int, said: str
) -> None:
    """Clients of the one that nobody reads would wait for ever, so it is an error."""
    proto = "udp" if kind is socket.SOCK_DGRAM else "tcp"
    with ExitStack() as stack:
        given = [stack.enter_context(each) for each in listening(count, kind)]
        port = given[0].getsockname()[1]
        config = f"{HOST} {port}/{proto} 192.0.2.1 1/{proto}\n"
        running = start(forwarder, given, config, ready=False)
        running.expected_return = {1}
        assert running.wait() == 1
        assert running.said(said.format(f"{HOST}:{port}")) == 1


def test_a_socket_that_no_forward_wants(forwarder: StartForwarder) -> None:
    """It is closed, with a warning that names it."""
    with listening(1)[0] as given:
        port = given.getsockname()[1]
        running = start(forwarder, [given], f"{HOST} {free_port()} 192.0.2.1 1\n")
        assert running.said(f"no forward listens on {HOST}:{port}:") == 1


def test_an_upgrade_keeps_them(forwarder: StartForwarder, backend: StartServer) -> None:
    """The new program has the manager's sockets too, and refuses fewer workers than there are of them."""
    one = backend(banner, "one")
    with ExitStack() as stack:
        given = [stack.enter_context(each) for each in listening(2)]
        port = given[0].getsockname()[1]
        config = f"{HOST} {port} {one.host} {one.port}\n"
        running = start(forwarder, given, config)
        running.upgrade()
        assert all_greet((HOST, port), "one")
        running.configure(config + "workers 1\n")
        with session((HOST, port)):
            running.send(signal.SIGUSR2)
            running.wait_said("upgrade failed:")
        assert running.said("expected at most 1 socket of the service manager's") == 1


def test_systemds_own_launcher(forwarder: StartForwarder, backend: StartServer) -> None:
    """systemd-socket-activate starts it with the first client, who is served."""
    one, port = backend(banner, "one"), free_port()
    launcher = [require_peer("systemd-socket-activate"), "-l", f"{HOST}:{port}"]
    launcher += [f"-E{name}" for name in ("PATH", "HOME", "FASTFWD_TEST_MARK", "PYTHONPATH")]
    running = forwarder(f"{HOST} {port} {one.host} {one.port}\n", command=launcher, ready=False, args=())
    until(lambda: greeting((HOST, port)) in {"one"}, what="the first client's greeting")
    running.wait_ready()
    assert all_greet((HOST, port), "one")
