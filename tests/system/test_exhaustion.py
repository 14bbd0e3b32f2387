"""When something runs out: descriptors, pipe pages, source ports. It waits, and recovers."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import (
    Address,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    read_exactly,
    read_to_end,
    sha256,
)
from tests.system.namespaces import Sandbox

MIB = 1 << 20

CLIENTS = 200
FILES = 64


# Descriptors.


class Crowd:
    """A forwarder with few descriptors, and many clients who stay."""

    def __init__(self, running: Forwarder, address: Address, stack: ExitStack) -> None:
        self.running = running
        self.address = address
        self.clients = [stack.enter_context(connect(address)) for _ in range(CLIENTS)]
        for number, client in enumerate(self.clients):
            client.sendall(b"%03d\n" % number)

    def answered(self) -> list[bytes]:
        """Have every client finish, and what each of them got, in order."""
        found = []
        for client in self.clients:
            try:
                finish(client)
            except OSError:
                pass  # refused meanwhile: what it reads tells
            found.append(read_to_end(client).data)
        return found


@pytest.fixture
def crowd(forwarder: StartForwarder, backend: StartServer) -> Iterator[Crowd]:
    """A worker with FILES descriptors and CLIENTS clients of an echo."""
    port, behind = free_port(), backend(echo)
    limit = [require_peer("prlimit"), f"--nofile={FILES}:{FILES}"]
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", command=limit, workers=1)
    with ExitStack() as stack:
        yield Crowd(running, ("127.0.0.1", port), stack)


def test_out_of_descriptors_it_does_not_spin(crowd: Crowd) -> None:
    """With the queue full of clients that cannot be accepted, it waits: less than 20 % of a
    processor over two seconds, a message a second, and no flood in the log (rinetd wrote
    18,662 lines in 0.1 s)."""
    running = crowd.running
    running.wait_said("not accepting for now: Too many open files")
    worker = running.worker()
    before, lines, said = processes.stat(worker), len(running.log_lines()), running.said("not accepting")
    began = time.monotonic()
    crowd.clients[0].settimeout(2)
    with pytest.raises(TimeoutError):
        read_exactly(crowd.clients[0], 100)  # nobody sends it so much: two seconds go by
    passed = time.monotonic() - began
    after = processes.stat(worker)
    assert before is not None
    assert after is not None
    assert after.cpu - before.cpu < 0.2 * passed
    assert running.said("not accepting") - said <= passed + 1
    assert len(running.log_lines()) - lines <= 20 * passed
    crowd.clients[0].settimeout(deadline.seconds(20))


def test_out_of_descriptors_it_recovers(crowd: Crowd) -> None:
    """Clients for whom there is no room wait in the queue and are served, every one, as others
    leave; so are newcomers; and afterwards the worker holds no more than before them."""
    crowd.running.wait_said("not accepting for now")
    assert crowd.answered() == [b"%03d\n" % number for number in range(CLIENTS)]
    with connect(crowd.address) as client:
        client.sendall(b"again")
        finish(client)
        assert read_to_end(client).data == b"again"
    worker = crowd.running.worker()
    until(lambda: sockets(worker) == 2, what="the listener and the channel to be left")


def test_out_of_descriptors_open_sessions_go_on(crowd: Crowd) -> None:
    """Those who are in notice nothing."""
    crowd.running.wait_said("not accepting for now")
    first = crowd.clients[0]
    assert read_exactly(first, 4) == b"000\n"
    with Sending(first, noise(MIB), finish=False):
        assert read_exactly(first, MIB) == noise(MIB)


def sockets(pid: int) -> int:
    """How many sockets `pid` has open."""
    return sum(target.startswith("socket:") for target in processes.descriptors(pid).values())


def test_a_reload_without_descriptors_is_refused(crowd: Crowd, backend: StartServer) -> None:
    """A worker without room for a new listener refuses the reload and serves on."""
    crowd.running.wait_said("not accepting for now")
    old = crowd.running.config_path.read_text()
    more = "".join(f"127.0.0.1 {free_port()} 192.0.2.1 1\n" for _ in range(3))
    crowd.running.reload(old + more)
    assert crowd.running.said("reload refused: worker 0: no descriptors left") == 1
    first = crowd.clients[0]
    assert read_exactly(first, 4) == b"000\n"
    assert len(crowd.running.workers()) == 1


# Pipe pages.


@contextmanager
def pages_taken(uid: int) -> Iterator[None]:
    """All pipe pages of the user `uid` are taken (fs.pipe-user-pages-soft, pipe(7))."""
    require_root()
    ready, release = os.pipe(), os.pipe()
    with open("/proc/sys/fs/pipe-user-pages-soft", "rb") as soft:
        pages = int(soft.read())
    pid = os.fork()
    if pid == 0:
        try:
            os.close(release[1])
            os.setresuid(uid, uid, uid)
            try:
                while pages > 0:
                    _, writer = os.pipe()
                    pages -= fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20) // 4096
            except OSError:
                pass
            os.write(ready[1], b"x")
            os.read(release[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"x"
        yield
    finally:
        for end in (*ready, *release):
            os.close(end)
        os.waitpid(pid, 0)


def test_without_pipe_pages_it_copies(forwarder: StartForwarder, backend: StartServer) -> None:
    """A worker whose user has no pipe pages left, and whose pool is at its end, moves bytes all
    the same: 60 bulk flows at once, each exact."""
    flows = 60
    uid = 54_322  # nobody else's: the pages are counted per user
    with pages_taken(uid), Sandbox() as inside, ExitStack() as stack:
        inside.cover(Path("/mnt"))
        accounts = Path("/etc/passwd").read_text() + f"crowd:x:{uid}:{uid}::/:/bin/false\n"
        inside.call(Path("/mnt/passwd").write_text, accounts)
        inside.replace(Path("/etc/passwd"), Path("/mnt/passwd"))
        port, behind = free_port(), backend(echo)
        config = f"127.0.0.1 {port} {behind.host} {behind.port}\nuser crowd\n"
        running = inside.call(forwarder, config, workers=1)
        worker = running.worker()
        clients = [stack.enter_context(connect(("127.0.0.1", port))) for _ in range(flows)]
        sending = [stack.enter_context(Sending(client, noise(MIB))) for client in clients]
        assert {sha256(read_to_end(client).data) for client in clients} == {sha256(noise(MIB))}
        assert not any(sender.error for sender in sending)
        assert running.worker() == worker


# Source ports.


@pytest.fixture
def narrow() -> Iterator[Sandbox]:
    """A network whose outgoing connections have 20 ports to come from."""
    with Sandbox(network=True) as inside:
        inside.sysctl("net.ipv4.ip_local_port_range", "40000 40019")
        yield inside


def many(stack: ExitStack, address: Address, count: int) -> list[socket.socket]:
    """`count` clients, whose own source ports are not those of the range: they bind others."""
    found = []
    for number in range(count):
        client = socket.socket()
        stack.callback(client.close)
        client.settimeout(deadline.seconds(20))
        client.bind((f"127.0.1.{address[1] - 5000}", 20_000 + number))
        client.connect(address)
        found.append(client)
    return found


def test_out_of_source_ports_connections_fail_one_by_one(narrow: Sandbox, forwarder: StartForwarder) -> None:
    """With a 20-port range and `src=` the 21st session to one backend fails, is logged and ends
    at once; the others live, and when one of them ends there is room again."""
    with narrow, ExitStack() as stack:
        behind = stack.enter_context(narrow.call(Listener))
        config = f"127.0.0.1 5000 {behind.host} {behind.port} [src=127.0.0.3]\n"
        running = narrow.call(forwarder, config, workers=1)
        clients = narrow.call(many, stack, ("127.0.0.1", 5000), 25)
        backends = [stack.enter_context(behind.accept()) for _ in range(20)]
        failed = running.wait_log(5, "local-connect-failed -")
        assert len(failed) == 5
        for number, client in enumerate(clients):
            client.sendall(b"%02d" % number) if number < 20 else None
        assert sorted(read_exactly(each, 2) for each in backends) == [b"%02d" % n for n in range(20)]
        assert [read_to_end(client).data for client in clients[20:]] == [b""] * 5
        backends[0].close()
        assert any(read_to_end(client).how for client in clients[:1])
        clients[0].close()


def test_source_ports_are_counted_per_backend(narrow: Sandbox, forwarder: StartForwarder) -> None:
    """`src=` takes no port before the destination is known (IP_BIND_ADDRESS_NO_PORT): two
    backends give room for twice as many sessions."""
    with narrow, ExitStack() as stack:
        one, two = (stack.enter_context(narrow.call(Listener)) for _ in range(2))
        lines = [
            f"127.0.0.1 {port} {behind.host} {behind.port} [src=127.0.0.3]\n"
            for port, behind in ((5001, one), (5002, two))
        ]
        running = narrow.call(forwarder, "".join(lines), workers=1)
        for number, behind in enumerate((one, two)):
            narrow.call(many, stack, ("127.0.0.1", 5001 + number), 20)
            for _ in range(20):
                stack.enter_context(behind.accept())
        assert running.log_text().count("local-") == 0
