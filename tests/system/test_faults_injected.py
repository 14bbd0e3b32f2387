"""System calls that fail in a worker (strace -e inject): the bytes are exact or the failure is
visible, never a silent cut, and the next client is served."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.servers import Server, Visit, echo, serve, sink
from tests.sockets import (
    Address,
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    queued,
    read_exactly,
    read_to_end,
)
from tests.system.namespaces import Sandbox

MIB = 1 << 20

SIZE = 4 * MIB
"""Enough for both directions to be spliced most of the way."""


@contextmanager
def injected(pid: int, directory: Path, call: str, what: str) -> Iterator[Path]:
    """Have system calls `call` of the process `pid` fail as `what` says (strace(1), -e inject);
    gives the file that notes them."""
    require_root()
    trace = directory / f"trace-{call}"
    command = ["-p", str(pid), "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{what}"]
    with subprocess.Popen([require_peer("strace"), *command], stderr=subprocess.DEVNULL) as strace:
        try:
            until(lambda: "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text(), what="strace")
            yield trace
        finally:
            strace.terminate()
            strace.wait(deadline.seconds(10))


class Shared:
    """One running worker in front of an echo, for all rows of a table."""

    def __init__(
        self, running: Forwarder, address: Address, directory: Path, inside: Sandbox | None = None
    ) -> None:
        self.running = running
        self.address = address
        self.directory = directory
        self.inside = inside

    def connect(self) -> socket.socket:
        """A client."""
        client: socket.socket = (
            self.inside.call(connect, self.address) if self.inside else connect(self.address)
        )
        return client

    def injected(self, call: str, what: str) -> AbstractContextManager[Path]:
        """Inject into the worker."""
        return injected(self.running.worker(), self.directory, call, what)

    def transfer(self, size: int = SIZE) -> tuple[bytes, Ending | None]:
        """Send `size` bytes and the FIN to the echo: what was sent, and what came back; None if
        there was no connection at all."""
        data = noise(size)
        try:
            client = self.connect()
        except ConnectionError:
            return data, None
        with client, Sending(client, data):
            return data, read_to_end(client)

    def works(self) -> bool:
        """Whether a session is carried through without a fault."""
        data, ending = self.transfer(1000)
        return ending == Ending(data, "EOF")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """The worker; its port is among the source ports, so that self-connects are looked for."""
    directory = tmp_path_factory.mktemp("faults")
    port = free_port()
    with ExitStack() as stack:
        behind = stack.enter_context(serve(echo, port=free_high_port()))
        config = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
        running = stack.enter_context(Forwarder(directory, config, workers=1))
        yield Shared(running, ("127.0.0.1", port), directory)


def free_high_port() -> int:
    """A free port among those that the kernel takes for outgoing connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


HARMLESS = [
    # What the kernel says of one attempt, and another way or another time is right.
    ("recvfrom", "error=EINTR:when=2"),
    ("sendto", "error=EINTR:when=2"),
    ("epoll_wait", "error=EINTR:when=3"),
    ("accept4", "error=EINTR:when=1"),
    ("accept4", "error=ECONNABORTED:when=1"),
    ("accept4", "error=EPROTO:when=1"),
    ("accept4", "error=EPERM:when=1"),
    ("accept4", "error=EMFILE:when=1"),
    ("accept4", "error=ENFILE:when=1"),
    ("accept4", "error=ENOMEM:when=1"),
    ("accept4", "error=ENOBUFS:when=1"),
    ("getpeername", "error=ENOTCONN:when=1"),
    ("write", "error=ENOSPC:when=1"),
    ("write", "error=EIO:when=1"),
]


@pytest.mark.parametrize(("call", "what"), HARMLESS, ids=lambda text: text.replace(":when", ""))
def test_a_harmless_failure_costs_nobody_anything(shared: Shared, call: str, what: str) -> None:
    """The session in which the call fails is carried through, byte-exact, and the worker lives."""
    worker = shared.running.worker()
    with shared.injected(call, what) as trace:
        data, ending = shared.transfer()
        assert ending == Ending(data, "EOF")
        until(lambda: "INJECTED" in trace.read_text(), what="the failure to be injected")
    assert shared.running.worker() == worker
    assert shared.works()


FATAL = [
    # What ends this session and no other.
    ("recvfrom", "error=ECONNRESET:when=2"),
    ("recvfrom", "error=ETIMEDOUT:when=2"),
    ("recvfrom", "error=EHOSTUNREACH:when=3"),
    ("recvfrom", "error=ENOMEM:when=2"),
    ("sendto", "error=ENOBUFS:when=1"),
    ("sendto", "error=ENOMEM:when=3"),
    ("socket", "error=EMFILE:when=1"),
    ("socket", "error=ENFILE:when=1"),
    ("socket", "error=ENOBUFS:when=1"),
    ("socket", "error=ENOMEM:when=1"),
    ("connect", "error=EADDRNOTAVAIL:when=1"),
    ("connect", "error=ENETUNREACH:when=1"),
    ("connect", "error=EPERM:when=1"),
    ("connect", "error=EAGAIN:when=1"),
    ("setsockopt", "error=ENOMEM:when=1"),
    ("epoll_ctl", "error=ENOMEM:when=1"),
    ("epoll_ctl", "error=ENOSPC:when=1"),
    ("epoll_ctl", "error=ENOMEM:when=2"),
    ("epoll_ctl", "error=ENOSPC:when=1+3"),  # 1 the backend, 2 the listener taken out, 4 put back
]


@pytest.mark.parametrize(("call", "what"), FATAL, ids=lambda text: text.replace(":when", ""))
def test_a_failure_is_never_a_silent_cut(shared: Shared, call: str, what: str) -> None:
    """The session in which the call fails is carried through, or its client gets an error, or
    nothing at all; it never gets a part with a clean end. The next client is served."""
    with shared.injected(call, what) as trace:
        data, ending = shared.transfer()
        until(lambda: "INJECTED" in trace.read_text(), what="the failure to be injected")
    assert ending is None or ending.how != "EOF" or ending.data in (b"", data)
    until(shared.works, what="the next session")
    assert shared.running.running()


@pytest.mark.parametrize(
    ("call", "what"),
    [row for row in FATAL if row[0] in ("epoll_ctl", "setsockopt", "socket", "connect")],
    ids=lambda text: text.replace(":when", ""),
)
def test_a_failure_is_one_session_s_own(shared: Shared, call: str, what: str) -> None:
    """A session beside the one in which the call fails goes on, and the worker lives."""
    worker = shared.running.worker()
    with connect(shared.address) as beside:
        beside.sendall(b"before")
        assert read_exactly(beside, 6) == b"before"
        with shared.injected(call, what):
            shared.transfer(1000)
        beside.sendall(b"after")
        assert read_exactly(beside, 5) == b"after"
    assert shared.running.worker() == worker


# One direction, in full flow.


class Flow:
    """A transfer from a client that sends all the time to a backend that the test plays, brought
    to the point where it is spliced, and stalled with bytes in its pipe."""

    def __init__(self, worker: int, sending: Sending, connection: socket.socket) -> None:
        self.sending = sending
        self.connection = connection
        self.received = bytearray()
        until(lambda: self.read(256 * 1024) and bytes_in_pipes(worker), what="bytes in a pipe")

    def read(self, size: int) -> bool:
        """Take `size` bytes more, then give the worker the time to fill the way again."""
        self.received += read_exactly(self.connection, size)
        until(lambda: queued(self.connection) > 0)
        return True

    def rest(self) -> Ending:
        """All that comes, from the beginning."""
        ending = read_to_end(self.connection)
        return Ending(bytes(self.received + ending.data), ending.how)


def pipes(pid: int) -> dict[str, int]:
    """The pipes of `pid`, each with one of its descriptors."""
    return {name: number for number, name in processes.descriptors(pid).items() if name.startswith("pipe:")}


def bytes_in_pipes(pid: int) -> dict[str, int]:
    """The pipes of `pid` that have bytes in them, and how many."""
    found = {}
    for name, number in pipes(pid).items():
        end = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK)
        size = array.array("i", [0])
        fcntl.ioctl(end, termios.FIONREAD, size)
        found[name] = size[0]
        os.close(end)
    return {name: size for name, size in found.items() if size}


@contextmanager
def flow(forwarder: StartForwarder, data: bytes) -> Iterator[tuple[Forwarder, Flow]]:
    """A program with a `Flow` of `data`."""
    port = free_port()
    with ExitStack() as stack:
        behind = stack.enter_context(Listener())
        running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=1)
        client = stack.enter_context(connect(("127.0.0.1", port)))
        connection = stack.enter_context(behind.accept())
        sending = stack.enter_context(Sending(client, data))
        stack.callback(connection.close)  # whatever happens, the sender ends
        yield running, Flow(running.worker(), sending, connection)


def failed_on(trace: Path, pipe_ends: set[int]) -> str:
    """The side of the splice(2) that was made to fail: `sink` if it gave from one of the
    `pipe_ends`, `source` if it took from something else."""
    (line,) = (line for line in trace.read_text().splitlines() if "INJECTED" in line)
    return "sink" if int(line.partition("splice(")[2].partition(",")[0]) in pipe_ends else "source"


@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("error", ["EINTR", "EINVAL", "ENOMEM", "EIO", "ENOBUFS"])
def test_a_splice_that_fails(forwarder: StartForwarder, tmp_path: Path, error: str, when: int) -> None:
    """When splice(2) is interrupted, or will not take from this socket at all, the stream is exact.
    When it takes no more because of a fault, or cannot give to a backend that is alive, the backend
    sees a reset, not the stream's end: it must not take a part for the whole."""
    data = noise(MIB) * 24
    with flow(forwarder, data) as (running, stalled):
        worker = running.worker()
        pipe_ends = {n for n, name in processes.descriptors(worker).items() if name.startswith("pipe:")}
        with injected(worker, tmp_path, "splice", f"error={error}:when={when}") as trace:
            ending = stalled.rest()
            side = failed_on(trace, pipe_ends)
        harmless = error == "EINTR" or (side == "source" and error in {"EINVAL", "ENOMEM"})
        assert ending == Ending(data, "EOF") if harmless else ending.how == "ECONNRESET"
        assert running.worker() == worker


def test_an_epipe_is_no_proof_of_an_end(forwarder: StartForwarder, tmp_path: Path) -> None:
    """splice(2) keeps an ECONNRESET to itself when it has moved bytes before it, and the next call
    says EPIPE. A backend that had not sent its FIN until then was reset: the client hears that, and
    no clean end."""
    with flow(forwarder, noise(MIB) * 24) as (running, stalled):
        pipe_ends = {n for n, name in processes.descriptors(running.worker()).items() if "pipe:" in name}
        with injected(running.worker(), tmp_path, "splice", "error=EPIPE:when=1") as trace:
            until(lambda: stalled.read(1 << 16) and "INJECTED" in trace.read_text(), what="the EPIPE")
        assert failed_on(trace, pipe_ends) == "sink"
        stalled.connection.shutdown(socket.SHUT_WR)
        ending = read_to_end(stalled.sending.end)
        # Whichever call is the first to meet a reset is the only one to be told (tcp(7), SO_ERROR).
        assert ending.how == "ECONNRESET" or stalled.sending.error is not None


@pytest.mark.parametrize("what", ["ENOBUFS:when=1", "ENOMEM:when=3"])
def test_a_send_that_fails_is_visible(forwarder: StartForwarder, tmp_path: Path, what: str) -> None:
    """When bytes cannot be sent to a backend that is alive, it sees a reset, not the stream's end."""
    port = free_port()
    data = noise(SIZE)
    with Listener() as behind:
        running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=1)
        with connect(("127.0.0.1", port)) as client, behind.accept() as connection:
            with injected(running.worker(), tmp_path, "sendto", f"error={what}"), Sending(client, data):
                ending = read_to_end(connection)
                connection.close()
            assert ending.how == "ECONNRESET" or ending == Ending(data, "EOF")


def test_a_client_that_cannot_be_watched_is_not_forgotten_in_silence(
    forwarder: StartForwarder, tmp_path: Path
) -> None:
    """When a client cannot be registered (fs.epoll.max_user_watches) after a part of what it sends
    has been relayed, the backend sees a reset, not the stream's end."""
    port = free_port()
    with Listener() as behind:
        running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=1)
        worker = running.worker()
        with injected(worker, tmp_path, "epoll_ctl", "error=ENOSPC:when=2") as trace:
            with processes.stopped(worker):
                client = connect(("127.0.0.1", port))
                client.sendall(b"a part, ")
            with client, behind.accept() as connection:
                until(lambda: "INJECTED" in trace.read_text(), what="the failure to be injected")
                ending = read_to_end(connection)
    assert ending.how == "ECONNRESET"


# Addresses and pipes.


@pytest.mark.parametrize("error", ["EAFNOSUPPORT", "EACCES"])
def test_an_address_that_has_no_socket_is_passed_over(
    forwarder: StartForwarder, backend: StartServer, tmp_path: Path, error: str
) -> None:
    """When there is no socket for the first address (no IPv6 here, say), the next one is
    dialled, and nobody else has to wait."""
    port, behind = free_port(), backend(echo)
    with Sandbox() as inside:
        inside.cover(Path("/mnt"))
        hosts = "::1 backend\n127.0.0.1 backend\n127.0.0.1 localhost\n"  # in this order by RFC 6724 too
        inside.call(Path("/mnt/hosts").write_text, hosts)
        inside.replace(Path("/etc/hosts"), Path("/mnt/hosts"))
        running = inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\n", workers=1)
    fails = injected(running.worker(), tmp_path, "socket", f"error={error}:when=1")
    with fails, connect(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        finish(client)
        assert read_to_end(client) == Ending(b"hello", "EOF")
    assert running.said("not accepting") == 0


def reluctant(connection: socket.socket, visit: Visit) -> None:
    """A backend that reads half a megabyte, and the rest only when it is released."""
    while len(visit.received) < MIB // 2 and (data := connection.recv(1 << 16)):
        visit.received += data
    visit.released.wait()
    sink(connection, visit)


def pour(client: socket.socket) -> bytes:
    """Send as much as the kernel takes now; what was sent."""
    patience = client.gettimeout()
    client.setblocking(False)
    sent = bytearray()
    try:
        while True:
            sent += noise(MIB)[: client.send(noise(MIB))]
    except BlockingIOError:
        client.settimeout(patience)
    return bytes(sent)


class Crowded(Shared):
    """A worker whose pipes are all on loan to stalled flows, in front of a reluctant backend."""

    def __init__(self, running: Forwarder, address: Address, directory: Path, inside: Sandbox) -> None:
        super().__init__(running, address, directory, inside)
        self.behind: Server
        self.clients: list[socket.socket] = []

    def exhaust(self) -> None:
        """Stall flows until no pipe is idle. What meets a worker that was frozen meanwhile is
        there at once: it reads full buffers, and so it splices."""
        worker = self.running.worker()
        while idle := len(pipes(worker)) - 1 - len(bytes_in_pipes(worker)):  # one is its wake-up
            goal = idle + len(bytes_in_pipes(worker))
            with processes.stopped(worker):
                self.clients += [self.connect() for _ in range(idle)]
                for client in self.clients[-idle:]:
                    pour(client)
            until(partial(self.full, goal), what="the loans")

    def full(self, goal: int) -> bool:
        """Keep the flows full; whether the backend has stalled them all, with bytes in `goal` pipes."""
        for client in self.clients:
            pour(client)
        stalled = sum(MIB // 2 <= len(visit.received) < MIB for visit in self.behind.visits)
        return stalled >= len(self.clients) and len(bytes_in_pipes(self.running.worker())) >= goal


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    """The worker, in a network where a path is soon full."""
    with ExitStack() as stack:
        inside = stack.enter_context(Sandbox(network=True))
        for name in ("tcp_rmem", "tcp_wmem"):
            inside.sysctl(f"net.ipv4.{name}", "4096 1048576 1048576")
        behind: Server = inside.call(stack.enter_context, serve(reluctant))
        address = ("127.0.0.1", free_port())
        config = f"{address[0]} {address[1]} {behind.host} {behind.port}\n"
        directory = tmp_path_factory.mktemp("crowded")
        running = stack.enter_context(inside.call(Forwarder, directory, config, workers=1))
        made = Crowded(running, address, directory, inside)
        made.behind = behind
        yield made
        for client in made.clients:
            client.close()


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("pipe2", "error=EMFILE"),
        ("pipe2", "error=ENFILE"),
        ("fcntl", "error=EPERM:when=1+2"),
        ("fcntl", "error=ENOMEM:when=1+2"),
    ],
    ids=["EMFILE", "ENFILE", "EPERM", "ENOMEM"],
)
def test_without_another_pipe_it_copies(crowded: Crowded, call: str, what: str) -> None:
    """When all pipes are on loan and the kernel gives no further one, or none of the size asked
    for (fcntl: the setting fails, the asking that may follow does not), a further flow is
    carried all the same."""
    crowded.exhaust()
    worker = crowded.running.worker()
    number = crowded.behind.count
    with crowded.connect() as client, crowded.injected(call, what) as trace:
        visit = crowded.behind.visit(number)
        visit.released.set()
        sent = bytearray()

        def happened() -> bool:
            crowded.full(0)  # a path that has grown meanwhile would set a pipe free
            with processes.stopped(worker):
                sent.extend(pour(client))
            return "INJECTED" in trace.read_text()

        until(happened, what="the failure to be injected")
        finish(client)
        until(visit.ended.is_set, 30, "the end of the flow")
    assert visit.how == "EOF"
    assert visit.received == sent
    assert crowded.running.worker() == worker


# The supervisor.


@pytest.mark.parametrize(
    ("call", "what"), [("clone", "error=EAGAIN:when=1"), ("socketpair", "error=EMFILE:when=1")]
)
def test_a_fork_that_fails_is_tried_again(
    forwarder: StartForwarder, backend: StartServer, tmp_path: Path, call: str, what: str
) -> None:
    """When the system has no process or descriptor to spare, the replacement of a dead worker
    comes later, and the supervisor lives."""
    port, behind = free_port(), backend(echo)
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=1)
    with injected(running.pid, tmp_path, call, what) as trace:
        os.kill(running.worker(), signal.SIGKILL)
        until(lambda: "INJECTED" in trace.read_text(), what="the failure to be injected")
        with connect(("127.0.0.1", port)) as client:
            client.sendall(b"patience")
            finish(client)
            assert read_to_end(client) == Ending(b"patience", "EOF")
    assert running.running()
