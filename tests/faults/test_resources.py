"""Rows 17 to 20, 26, 27: what runs out or fails in the kernel (descriptors, memory, pipe pages, source
ports, single system calls), and connections that lead back to where they came from."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.faults.conftest import StartWatched, compared
from tests.faults.row import FULL, Row, scaled
from tests.faults.test_floods import observed
from tests.forwarder import Forwarder, Kind
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Server, Visit, echo, serve, serve_apart
from tests.sockets import (
    Address,
    Ending,
    Listener,
    Sending,
    connect,
    noise,
    read_exactly,
    read_to_end,
    reset,
)
from tests.system import test_exhaustion, test_faults_injected
from tests.system.metrics import Scrape, metrics_url, scrape, total
from tests.system.namespaces import Sandbox
from tests.system.test_exhaustion import CLIENTS, FILES, many, pages_taken
from tests.system.test_faults_injected import Crowded, Shared
from tests.system.test_names import connect_from
from tests.system.test_stalled_reader import settled

MIB = 1 << 20

# Fixtures that are needed here too.
crowded = test_faults_injected.crowded
narrow = test_exhaustion.narrow


@pytest.fixture
def place() -> Iterator[Sandbox]:
    """A network of the test's own, which has room for every closed connection's port at once."""
    with Sandbox(network=True) as inside:
        inside.sysctl("net.ipv4.tcp_max_tw_buckets", "0")
        yield inside


def few_files(count: int = FILES) -> list[str]:
    """A command that lets the program after it have `count` descriptors per process."""
    return [require_peer("prlimit"), f"--nofile={count}:{count}"]


def used(pid: int) -> int:
    """How many descriptors `pid` has open."""
    return len(processes.descriptors(pid))


def busy(pid: int, seconds: float) -> float:
    """The share of a processor that `pid` takes during so many seconds."""
    before, began = processes.stat(pid), time.monotonic()
    until(lambda: time.monotonic() >= began + seconds, seconds + 1)
    after, passed = processes.stat(pid), time.monotonic() - began
    assert before is not None
    assert after is not None
    return (after.cpu - before.cpu) / passed


def echoed(client: socket.socket, data: bytes) -> bool:
    """Whether an echo gives back `data`, without an end of either direction."""
    try:
        client.sendall(data)
        return read_exactly(client, len(data)) == data
    except OSError:
        return False


# 17. Descriptors of the process.

ROOM_OF_HAPROXY = 15
"""Connections for which FILES descriptors are enough by its own count: two each, pipes for some, its own."""


@pytest.mark.row(
    17,
    f"no descriptor left: {FILES} of them for {CLIENTS} clients",
    "who finds no room waits and is served when others leave; meanwhile under 20 % of a processor"
    " and 20 log lines a second",
)
@compared("rinetd", "haproxy")
def test_descriptors_run_out(row: Row, kind: Kind, watched: StartWatched, backend: StartServer) -> None:
    port, behind = free_port(), backend(echo)
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
    # Left to choose, HAProxy wants descriptors for a hundred connections at least, or does not start.
    args = ["-n", str(ROOM_OF_HAPROXY)] if kind == "haproxy" else []
    running = watched(config, kind=kind, command=few_files(), workers=1, args=args).running
    worker = running.worker()
    cpu, lines, recovery = [], [], []
    for number in range(scaled(1, 8)):
        with ExitStack() as stack:
            clients = [stack.enter_context(knocking(("127.0.0.1", port))) for _ in range(CLIENTS)]
            if kind == "haproxy":  # it takes no more clients than it has descriptors for
                settled(lambda: used(worker))
            else:
                until(lambda: used(worker) > FILES - 4, what="the descriptors to be taken")
            # C rinetd fills the disk with 14 MB of log per second.
            seconds = 0.2 if kind == "rinetd" else scaled(1, 2)
            before = logged(running)
            cpu.append(100 * busy(worker, seconds))
            lines.append((logged(running) - before) / seconds)
            row.held(cpu[-1] < 20, f"round {number}: {cpu[-1]:.0f} % of a processor while it is full")
            row.held(lines[-1] <= 20, f"round {number}: {lines[-1]:.0f} log lines a second")
            began = time.monotonic()
            for each, client in enumerate(clients):
                client.settimeout(max(0.01, began + deadline.seconds(20) - time.monotonic()))
                row.held(echoed(client, b"%03d" % each), f"round {number}: client {each} was not served")
                client.close()
            recovery.append(time.monotonic() - began)
    row.figure("processor while full", max(cpu), "%")
    row.figure("log lines while full", max(lines), "/s")
    row.figure("all served in", max(recovery), "s")


def knocking(address: Address) -> socket.socket:
    """A client on its way in: the queue may have no room for it yet."""
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(address)
    return client


def logged(running: Forwarder) -> int:
    """How many lines its log has."""
    return running.log_path.read_bytes().count(b"\n") if running.log_path.exists() else 0


# 18. System calls that say no.

NO_ROOM = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")

REFUSALS = [
    *(("accept4", error) for error in (*NO_ROOM, "ECONNABORTED", "EPROTO", "EPERM")),
    *(("socket", error) for error in NO_ROOM),
    *(("epoll_ctl", error) for error in ("ENOMEM", "ENOSPC")),
]
"""The call; the error."""

OF_RINETD = {"accept4": "accept", "socket": "socket"}
"""The calls that C rinetd makes instead, if it makes any."""

PIPES = [
    *(("pipe2", f"error={error}") for error in ("EMFILE", "ENFILE", "ENOMEM")),
    *(("fcntl", f"error={error}:when=1+2") for error in ("EPERM", "ENOMEM", "EBUSY")),
]

AT_ONCE = 4
"""Sessions during an injection."""


@pytest.mark.row(
    18,
    "ENFILE, EMFILE, ENOMEM, ENOBUFS, ENOSPC, ECONNABORTED, EPROTO, EPERM from accept, socket, epoll_ctl,"
    " pipe2, fcntl",
    "one connection fails at most, those beside it and after it are served, the worker lives",
)
@compared("rinetd", "haproxy")
def test_system_calls_that_fail(
    row: Row,
    kind: Kind,
    watched: StartWatched,
    backend: StartServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    port, behind = free_port(), backend(echo)
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
    running = watched(config, kind=kind, workers=1).running
    shared = Shared(running, ("127.0.0.1", port), tmp_path)
    worker = running.worker()
    failed = 0
    for name, error in REFUSALS:
        if not (call := OF_RINETD.get(name, "") if kind == "rinetd" else name):
            continue
        for when in range(1, scaled(1, AT_ONCE) + 1):
            what = f"{error} from {call}, time {when}"
            with shared.connect() as beside:
                first = echoed(beside, b"before")
                with shared.injected(call, f"error={error}:when={when}") as trace:
                    lost = AT_ONCE - sum(served(shared.address) for _ in range(AT_ONCE))
                    came = "INJECTED" in trace.read_text()
                row.held(came, f"{what}: not injected")
                row.held(first and echoed(beside, b"after"), f"{what}: the session beside it broke")
            row.held(lost <= 1, f"{what}: {lost} of {AT_ONCE} connections failed")
            row.held(served(shared.address), f"{what}: the next connection failed")
            failed += lost
            if kind != "fastfwd" and not running.running():
                return
            assert running.worker() == worker
    if kind == "fastfwd":
        broken = without_pipes(request.getfixturevalue("crowded"))
        row.tried(len(PIPES), broken)
    row.figure("connections that failed", failed)


def served(address: Address) -> bool:
    """Whether a new connection is served."""
    try:
        with connect(address) as client:
            client.settimeout(deadline.seconds(5))
            return echoed(client, noise(1000))
    except OSError:
        return False


def without_pipes(crowded: Crowded) -> list[str]:
    """What went wrong when the kernel gave no further pipe, or none of the size asked for."""
    broken = []
    for call, what in PIPES:
        try:
            test_faults_injected.test_without_another_pipe_it_copies(crowded, call, what)
        except (AssertionError, OSError) as error:
            broken.append(f"{call} {what}: {error}")
    return broken


# 19. Errors in mid-stream.

STREAM = 4 * MIB
"""Enough for both directions to be spliced most of the way."""

HARMLESS = [
    ("recvfrom", "EINTR"),
    ("sendto", "EINTR"),
    ("splice", "EINTR"),
    ("epoll_wait", "EINTR"),
]
"""After these the stream must be whole. (EAGAIN is not among them: it is the kernel's promise to report the
next change, and one that is not true cannot be told from one that is.)"""

HARMFUL = [
    ("recvfrom", "EINVAL"),
    ("recvfrom", "ENOMEM"),
    ("sendto", "EINVAL"),
    ("sendto", "ENOMEM"),
    ("sendto", "ENOBUFS"),
    ("splice", "EINVAL"),
    ("splice", "ENOMEM"),
    ("splice", "EIO"),
]
"""After these it must be whole or visibly broken."""

WHEN = (1, 2, 3, 4, 5, 7, 10, 14, 20)
"""Which call of the stream fails."""

GONE = [("sendto", "EPIPE"), ("splice", "EPIPE")]
"""These say that the peer has finished and is gone, so its end cannot be judged; the bytes can."""


@pytest.mark.row(
    19,
    "errors of recv, send, splice, epoll_wait at a certain call of a stream; short reads and writes",
    "the stream is whole, or an end sees an error: never a part with a clean end",
)
def test_errors_in_mid_stream(row: Row, watched: StartWatched, place: Sandbox, tmp_path: Path) -> None:
    whole = visible = 0
    with serve(mirror) as behind:
        port = free_port()
        running = watched(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=1).running
        shared = Shared(running, ("127.0.0.1", port), tmp_path)
        worker = running.worker()
        for call, error in (*HARMLESS, *HARMFUL, *GONE):
            for when in WHEN if FULL else WHEN[1:2]:
                what = f"{error} from {call}, time {when}"
                failing = shared.injected(call, f"error={error}:when={when}")
                ends, came = mirrored(shared.address, behind, failing)
                if not came:
                    continue  # the stream was over before
                row.held(allowed((call, error), ends), f"{what}: {ends}")
                whole += ends == WHOLE
                visible += ends != WHOLE
                assert running.worker() == worker
    for name in ("tcp_rmem", "tcp_wmem"):
        place.sysctl(f"net.ipv4.{name}", "4096 4608 4608")
    with ExitStack() as stack:
        behind = place.call(stack.enter_context, serve(mirror))
        place.call(watched, f"127.0.0.1 5000 {behind.host} {behind.port}\n", workers=1)
        for number in range(scaled(2, 20)):
            ends, _ = place.call(mirrored, ("127.0.0.1", 5000), behind, nullcontext())
            row.held(ends == WHOLE, f"short reads and writes, stream {number}: {ends}")
            whole += ends == WHOLE
    row.figure("whole", whole)
    row.figure("visibly broken", visible)


WHOLE = ("whole", "whole")


def mirror(connection: socket.socket, visit: Visit) -> None:
    """A backend that sends back what comes, and remembers it."""
    while data := connection.recv(1 << 16):
        visit.received += data
        connection.sendall(data)
    visit.end("EOF")


def mirrored(
    address: Address, behind: Server, failing: AbstractContextManager[Path | None]
) -> tuple[tuple[str, str], bool]:
    """Send a stream to the mirror while calls are `failing`: what became of it at the backend and at
    the client, and whether one has failed."""
    data, number = noise(STREAM), behind.count
    with connect(address) as client:
        client.settimeout(deadline.seconds(5))
        client.sendall(data[:1])
        assert client.recv(1) == data[:1]
        with failing as trace:
            with Sending(client, data[1:]) as sending:
                try:
                    ending = read_to_end(client)
                    there = judged(data[:1] + ending.data, ending.how, data)
                except TimeoutError:
                    there = "stalled"
            came = trace is not None and "INJECTED" in trace.read_text()
    if isinstance(sending.error, ConnectionError):
        # A socket tells of a reset once: here the sender has heard it.
        there = type(sending.error).__name__
    visit = behind.visit(number)
    if not visit.ended.wait(deadline.seconds(10)):
        return ("stalled", there), came
    return (judged(visit.received, visit.how, data), there), came


def judged(received: bytes | bytearray, how: str, data: bytes) -> str:
    """What it means for the end of a stream of `data` that this came and that it ended so."""
    if not data.startswith(received):
        return "wrong bytes"
    if how != "EOF":
        return how
    return "whole" if len(received) == len(data) else f"cut after {len(received)}"


def allowed(fault: tuple[str, str], ends: tuple[str, str]) -> bool:
    """Whether the stream may end so after that fault."""
    if fault in HARMLESS:
        return ends == WHOLE
    if "wrong bytes" in ends or "stalled" in ends:
        return False
    return fault in GONE or not any(end.startswith("cut") for end in ends)


# 20. Pipe pages.

STALLED = 40
"""Streams with bytes in a pipe each: more than the pipes that a worker opens while it is still root."""


@pytest.mark.row(
    20,
    "no pipe page left for the workers' user (fs.pipe-user-pages-soft)",
    "what cannot be spliced is copied: every stream whole",
)
def test_pipe_pages_run_out(row: Row, forwarder: StartForwarder) -> None:
    uid = 54_323  # nobody else's: the pages are counted per user
    rates: dict[bool, list[float]] = {False: [], True: []}
    with Sandbox(network=True) as inside, ExitStack() as stack:
        for name in ("tcp_rmem", "tcp_wmem"):
            inside.sysctl(f"net.ipv4.{name}", "4096 262144 262144")
        inside.cover(Path("/mnt"))
        accounts = Path("/etc/passwd").read_text() + f"crowd:x:{uid}:{uid}::/:/bin/false\n"
        inside.call(Path("/mnt/passwd").write_text, accounts)
        inside.replace(Path("/etc/passwd"), Path("/mnt/passwd"))
        behind = inside.call(stack.enter_context, serve_apart("echo"))
        config = f"127.0.0.1 5000 {behind.host} {behind.port}\nuser crowd\n"
        for taken in (False, True):
            with pages_taken(uid) if taken else nullcontext(), ExitStack() as crowd:
                aftermath = inside.call(observed, forwarder, config, workers=1)
                url = metrics_url(aftermath.running)

                def pipes() -> Scrape:
                    found: Scrape = inside.call(scrape, url)  # noqa: B023
                    return found

                clients = [crowd.enter_context(inside.call(connect, HERE)) for _ in range(STALLED)]
                for client in clients:
                    crowd.enter_context(Sending(client, noise(PILE)))
                if taken:
                    until(lambda: total(pipes(), "pipes_short_total") > 0, what="a pipe to be refused")
                else:
                    until(lambda: total(pipes(), "pipes", state="lent") >= STALLED, what="the loans")
                for number in range(scaled(1, 10)):
                    began = time.monotonic()
                    with inside.call(connect, HERE) as client, Sending(client, noise(PILE)):
                        exact = read_to_end(client) == Ending(noise(PILE), "EOF")
                    row.held(exact, f"taken: {taken}, stream {number} beside the others")
                    rates[taken].append(PILE / (time.monotonic() - began))
                whole = sum(read_to_end(client) == Ending(noise(PILE), "EOF") for client in clients)
                row.tried(STALLED, [f"taken: {taken}, a stream that stood still"] * (STALLED - whole))
                refused = total(pipes(), "pipes_short_total")
            aftermath.judge()
            aftermath.running.close()
    row.figure("pipes refused", refused)
    row.figure("throughput without pipes, of that with", max(rates[True]) / max(rates[False]))


HERE = ("127.0.0.1", 5000)

PILE = 6 * MIB
"""More than sockets and pipes between a client and itself can hold here."""


# 26. Source ports.

ROOM = 20
"""Source ports in the network of the fixture."""


@pytest.mark.row(
    26,
    f"source ports exhausted: {ROOM} of them, `src=`",
    "who finds none is closed at once, never dialled from another address; the others live; there is room"
    " again when they end; a second backend has as much room again",
)
@compared("rinetd", "haproxy")
def test_source_ports_run_out(row: Row, kind: Kind, watched: StartWatched, narrow: Sandbox) -> None:
    narrow.sysctl("net.ipv4.tcp_max_tw_buckets", "0")  # a closed connection keeps no port
    peak, cpu = 0, 0.0
    with ExitStack() as stack:
        backends = [stack.enter_context(narrow.call(Listener)) for _ in range(2)]
        lines = [
            f"127.0.0.1 {5001 + number} {each.host} {each.port} [src=127.0.0.3]\n"
            for number, each in enumerate(backends)
        ]
        aftermath = narrow.call(watched, "".join(lines), kind=kind, workers=1)
        aftermath.sessions_lost = True  # without a port a dial fails at once: nothing is `opened`
        running = aftermath.running
        worker = running.worker()
        before = used(worker)
        for number in range(scaled(2, 20)):
            with ExitStack() as crowd:
                groups = [
                    Group(crowd, narrow.call(many, crowd, ("127.0.0.1", 5001 + side), CROWD), backend)
                    for side, backend in enumerate(backends)
                ]
                for side, group in enumerate(groups):
                    what = f"round {number}, backend {side}"
                    with suppress(AssertionError):  # judged by what has come
                        until(group.settled, 5)
                    found = len(group.sessions)
                    row.held(found == ROOM, f"{what}: {found} sessions for {ROOM} ports")
                    row.held(group.closed() == CROWD - ROOM, f"{what}: {group.closed()} clients closed")
                    row.held(group.sources() == {"127.0.0.3"}, f"{what}: dialled from {group.sources()}")
                peak = max(peak, sum(len(group.sessions) for group in groups))
                if number == 0:
                    cpu = 100 * busy(worker, 0.5)
                    row.held(cpu < 20, f"{cpu:.0f} % of a processor while there is no port")
            with suppress(AssertionError):  # the next round says so
                until(lambda: used(worker) <= before, 5)
    row.figure("sessions at once", peak)
    row.figure("processor while there is no port", cpu, "%")


CROWD = 25
"""Clients of each backend."""


class Group:
    """Clients of a forward, and what has come to its backend of them."""

    def __init__(self, stack: ExitStack, clients: list[socket.socket], backend: Listener) -> None:
        self.stack = stack
        self.clients = clients
        self.backend = backend
        self.sessions: list[socket.socket] = []

    def settled(self) -> bool:
        """Take what has come; whether nobody is still on the way."""
        self.backend.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                session, _ = self.backend.socket.accept()
                self.stack.callback(reset, session)
                self.sessions.append(session)
        return len(self.sessions) + self.closed() >= len(self.clients)

    def closed(self) -> int:
        """How many clients have been closed."""
        return sum(ended(client) for client in self.clients)

    def sources(self) -> set[str]:
        """From which addresses the backend was dialled."""
        return {session.getpeername()[0] for session in self.sessions}


def ended(client: socket.socket) -> bool:
    """Whether the end of the stream, or a reset, has come."""
    patience = client.gettimeout()
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        client.settimeout(patience)


# 27. What leads back.

BACK = [
    "127.0.0.1 5000 127.0.0.1 5000\n",
    "0.0.0.0 5000 127.0.0.1 5000\n",
    "0.0.0.0 5000 127.0.0.77 5000\n",
    ":: 5000 ::1 5000\n",
    ":: 5000 127.0.0.1 5000\n",
    "127.0.0.1 5000 0.0.0.0 5000\n",
    "127.0.0.1 5000 localhost 5000\n",
    "127.0.0.1 5000 127.0.0.1 5001\n127.0.0.1 5001 127.0.0.1 5000\n",
    "127.0.0.1 5000 127.0.0.1 5001\n127.0.0.1 5001 127.0.0.1 5002\n0.0.0.0 5002 127.0.0.1 5000\n",
]
"""Forwards that lead to themselves, also through others."""

DEPTH = 10
"""The limit on connections of one client that ends a circle."""


@pytest.mark.row(
    27,
    "forwards that lead back: to themselves, in a circle, through the packet filter, a socket connected to"
    " itself",
    "refused at the start; where only the kernel knows of it, a limit ends the circle, and a connection to"
    " itself is a failure",
)
@compared("rinetd")
def test_what_leads_back(
    row: Row, kind: Kind, watched: StartWatched, forwarder: StartForwarder, place: Sandbox
) -> None:
    deepest = 0
    for config in BACK if FULL else BACK[::4]:
        running = place.call(
            forwarder, config, kind=kind, command=few_files(), ready=kind == "rinetd", workers=1
        )
        if kind == "fastfwd":
            running.expected_return = {1}
            row.held(running.wait() == 1 and "expected a target elsewhere" in running.stderr(), config)
        else:
            deepest = max(deepest, place.call(depth, running))
            row.held(False, f"{config.strip()!r} is served")
        running.close()
    # To a port that the packet filter turns round: no configuration shows that.
    place.run("nft", "add", "table", "ip", "back")
    place.run("nft", "add", "chain", "ip", "back", "out", "{ type nat hook output priority -100; }")
    place.run("nft", "add", "rule", "ip", "back", "out", "tcp", "dport", "5009", "redirect", "to", ":5000")
    config = "127.0.0.1 5000 127.0.0.1 5009\n"
    if kind == "fastfwd":
        config += f"max-connections-per-client {DEPTH}\n"
    running = place.call(watched, config, kind=kind, command=few_files(), workers=1).running
    before = used(running.worker())
    for number in range(scaled(2, 20)):
        found = place.call(depth, running)
        row.held(found - before <= 2 * DEPTH, f"circle {number}: {found - before} descriptors")
        deepest = max(deepest, found)
        with suppress(AssertionError):
            until(lambda: used(running.worker()) <= before, 5)
        found = used(running.worker())
        row.held(found <= before, f"circle {number}: {found - before} descriptors left")
    running.close()
    # To a port where nobody listens, and the only one to come from: the kernel connects the socket
    # to itself (RFC 9293, 3.5).
    place.sysctl("net.ipv4.ip_local_port_range", "41000 41000")
    running = place.call(watched, "127.0.0.1 5000 127.0.0.1 41000\n", kind=kind, workers=1).running
    for number in range(scaled(2, 50)):
        with place.call(connect_from, ("127.0.0.1", 5000), 20_000 + number) as client:
            row.held(not echoed(client, b"echo?"), f"self-connect {number}: answered by itself")
    row.figure("descriptors in a circle", deepest)


def depth(running: Forwarder) -> int:
    """The descriptors that one client of port 5000 makes it take at once, before it leaves."""
    worker, most = running.worker(), 0
    with connect(("127.0.0.1", 5000)) as client:

        def over() -> bool:
            nonlocal most
            most = max(most, used(worker))
            return ended(client) or most >= FILES - 4

        with suppress(AssertionError):
            until(over, 5)
    return most
