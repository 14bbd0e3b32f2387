"""What sessions, flows, listeners and workers take of a machine: `python -m bench.capacity`.

The constants of docs/capacity.md, measured on the real program, as root, in a network of its own. What
the kernel takes is read from its slab caches (proc(5), slabinfo). They are the whole machine's: the
clients and the backend are here too, so half of the sockets are theirs. `--write` puts the table into the
document.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD

import orjson

from bench.clients import UNVERIFIED
from bench.contenders import CONTENDERS, Setup, Way
from bench.lab import enter_namespace, raise_limits
from bench.processes import HOST, ROOT, family, needed, run, wait
from bench.results import DIRECTORY
from fastfwd.observe.scoreboard import CELL, FORWARD_ROW

DOCUMENT = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- capacity:constants -->\n", "<!-- capacity:end -->"

WARM = 200
"""Sessions or flows that are there before anything is counted: what the first ones make is nobody's share."""

SESSIONS = 4_000
TLS_SESSIONS = 1_000
FLOWS = 4_000
STALLED = 20
LOGGED = 500
FEW, MANY = 10, 1_010
"""Forwards."""

BULK = 64 << 20
"""Bytes that a session has carried before it stalls, in one case: its buffers have grown by then."""

PIECE = 1 << 20
QUIET = 0.5
"""Seconds without a byte after which a sender is stalled."""

BUFFERS = {"tcp_rmem": "4096 131072 6291456", "tcp_wmem": "4096 16384 4194304"}
"""What most kernels have (tcp(7)); some distributions set more."""

EPOLL = 128 + 16
"""struct epitem and the head of a file's list of them: both from caches that are merged with others."""

OF_A_SOCKET = ("TCP", "UDP", "sock_inode_cache", "filp", "dentry", "lsm_inode_cache", "lsm_file_cache")
OF_OTHERS = re.compile(r"eventpoll_epi|ep_head|tcp_bind.*|kmalloc-192")

Growth = dict[str, tuple[float, int]]
"""Cache -> how many objects more, and the bytes of one."""

Ends = list[tuple[socket.socket, socket.socket]]
"""Of sessions: the client's socket, and the backend's."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A line of the table: its name in the formulas, what it is, its value in words, how that was found."""

    name: str
    what: str
    value: str
    how: str


def slabs() -> dict[str, tuple[int, int]]:
    """Cache -> objects in use, and the bytes that each takes, with its part of what a slab leaves over."""
    found = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, active, _, _, per_slab, pages = line.split()[:6]
        found[name] = int(active), int(pages) * os.sysconf("SC_PAGE_SIZE") // int(per_slab)
    return found


def grown(before: dict[str, tuple[int, int]], count: int) -> Growth:
    """Since `before`, for each of `count`. Caches that have grown by chance, or for all together, are left
    out."""
    return {
        name: (more, size)
        for name, (now, size) in slabs().items()
        if (more := (now - before.get(name, (0, 0))[0]) / count) > 0.3
    }


def of_a_socket(growth: Growth) -> int:
    """Bytes of one socket with its file and inode, by the sizes of what was seen to grow."""
    return sum(size for name, (_, size) in growth.items() if name in OF_A_SOCKET)


@contextmanager
def started(setup: Setup, workers: int = 1) -> Iterator[Way]:
    """fastfwd, from when all of its workers are there and have done what they do at their start."""
    with tempfile.TemporaryDirectory(prefix="capacity-") as text:
        directory = Path(text)
        directory.chmod(0o777)  # the log is written by whoever a worker has become
        with CONTENDERS[f"fastfwd-{workers}"].start(directory, setup) as way:
            wait(lambda: len(workers_of(way)) == workers, "the workers are there")
            time.sleep(QUIET)
            yield way


def workers_of(way: Way) -> list[int]:
    """The pids of its workers."""
    return [each.pid for each in family(way.pids[0]) if re.fullmatch(r"fastfwd-w\d+", each.name())]


def descriptors(pid: int) -> int:
    """How many it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def free_port() -> int:
    """One that nobody uses in this network."""
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])


class Sessions:
    """Sessions whose clients and whose backend are this process."""

    def __init__(self, stack: ExitStack) -> None:
        """They are closed with `stack`."""
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server((HOST, 0), backlog=4096))
        self.behind = int(self._listener.getsockname()[1])
        self.port = free_port()
        self.setup = Setup(((self.port, self.behind),))

    def open(self, count: int, tls: ssl.SSLContext | None = None) -> Ends:
        """So many more."""
        return [self._one(tls) for _ in range(count)]

    def _one(self, tls: ssl.SSLContext | None) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((HOST, self.port), 10)
        if tls is not None:
            client = tls.wrap_socket(client)
        self._stack.enter_context(client)
        served, _ = self._listener.accept()
        return client, self._stack.enter_context(served)


def idle() -> Iterator[Constant]:
    """Sessions that say nothing."""
    with ExitStack() as stack:
        sessions = Sessions(stack)
        with started(sessions.setup) as way:
            (worker,) = workers_of(way)
            start = descriptors(worker)
            sessions.open(WARM)
            before, memory, files = slabs(), way.memory(), descriptors(worker)
            sessions.open(SESSIONS)
            growth = grown(before, SESSIONS)
            files = descriptors(worker) - files
            memory = way.memory() - memory
    print("a session, with its client and its backend:", growth, file=sys.stderr)
    # The places in epoll are the worker's alone; the caches that they share also have the ports that are
    # dialled from, of which the client has one and the worker one.
    ports = sum(more * size for name, (more, size) in growth.items() if OF_OTHERS.fullmatch(name)) - 2 * EPOLL
    kernel = 2 * (of_a_socket(growth) + EPOLL) + ports / 2
    each = f"{SESSIONS:,} idle sessions"
    yield Constant(
        "", "descriptors of a worker at its start (32 pipes, one forward)", f"{start}", "/proc/PID/fd"
    )
    yield Constant("", "descriptors of a session", f"{files / SESSIONS:g}", f"/proc/PID/fd, {each}")
    yield Constant(
        "M_session", "worker's memory, idle session", f"{memory / SESSIONS:,.0f} B", f"PSS, {each}"
    )
    yield Constant("K_session", "kernel's memory, idle session", f"{kernel:,.0f} B", f"slabs, {each}")


def encrypted() -> Iterator[Constant]:
    """Sessions with TLS that say nothing."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="capacity-") as text:
        sessions = Sessions(stack)
        path = Path(text) / "certificate.pem"
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        run([needed("openssl"), *new, "-subj", "/CN=capacity", "-keyout", path, "-out", path], 5)
        path.chmod(0o600)
        with started(replace(sessions.setup, certificate=path)) as way:
            sessions.open(WARM, UNVERIFIED)
            memory = way.memory()
            sessions.open(TLS_SESSIONS, UNVERIFIED)
            each = (way.memory() - memory) / TLS_SESSIONS / 1024
    how = f"PSS, {TLS_SESSIONS:,} idle sessions, TLS 1.3 with the client"
    yield Constant(
        "M_tls",
        "worker's memory, idle session with TLS on one side, in place of M_session",
        f"{each:,.1f} KiB",
        how,
    )


def flows() -> Iterator[Constant]:
    """UDP flows that have had one datagram each way."""
    with ExitStack() as stack:
        behind = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        behind.bind((HOST, 0))
        port = free_port()
        with started(Setup(((port, behind.getsockname()[1]),), "udp")) as way:
            (worker,) = workers_of(way)
            clients = [
                stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(WARM + FLOWS)
            ]

            def begin(some: list[socket.socket]) -> None:
                for client in some:
                    client.sendto(b"?", (HOST, port))
                    behind.sendto(b"!", behind.recvfrom(9)[1])
                    client.recv(9)

            begin(clients[:WARM])
            before, memory, files = slabs(), way.memory(), descriptors(worker)
            begin(clients[WARM:])
            growth = grown(before, FLOWS)
            memory, files = way.memory() - memory, descriptors(worker) - files
    print("a flow:", growth, file=sys.stderr)
    each = f"{FLOWS:,} flows"
    yield Constant("", "descriptors of a flow", f"{files / FLOWS:g}", f"/proc/PID/fd, {each}")
    yield Constant("M_flow", "worker's memory, flow", f"{memory / FLOWS:,.0f} B", f"PSS, {each}")
    # The clients' sockets were there before.
    kernel = of_a_socket(growth) + EPOLL
    yield Constant("K_flow", "kernel's memory, flow", f"{kernel:,.0f} B", f"slabs, {each}")


def stalled() -> Iterator[Constant]:
    """Sessions whose client sends and whose backend reads no more."""
    for name, limits in BUFFERS.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(limits)
    for when, bulk in (("from the first byte", 0), (f"after {BULK >> 20} MiB", BULK)):
        with ExitStack() as stack:
            sessions = Sessions(stack)
            with started(sessions.setup) as way:
                for ours, theirs in sessions.open(STALLED):
                    push(ours, theirs, bulk)
                sockets = waiting_in_sockets(sessions.port, sessions.behind) / STALLED
                pipes = sum(map(waiting_in_pipes, workers_of(way))) / STALLED
        yield Constant(
            "K_stalled",
            f"kernel's memory, a direction that stalls {when}: sockets + pipe",
            f"{sockets / 2**20:.2f} + {pipes / 2**20:.2f} MiB",
            f"`ss -m`, FIONREAD; {STALLED} sessions, tcp_rmem up to 6 MiB, tcp_wmem up to 4 MiB",
        )


def push(client: socket.socket, served: socket.socket, bulk: int) -> None:
    """Send until nothing more is taken; of that the backend reads `bulk` bytes."""
    client.setblocking(False)
    served.setblocking(False)
    piece = bytes(PIECE)
    last = time.monotonic()
    while time.monotonic() < last + QUIET:
        moved = 0
        try:
            moved = client.send(piece)
        except BlockingIOError:
            pass
        if bulk > 0:
            try:
                bulk -= (got := len(served.recv(PIECE)))
                moved += got
            except BlockingIOError:
                pass
        if moved:
            last = time.monotonic()


def waiting_in_sockets(port: int, behind: int) -> int:
    """Bytes that the kernel has for what waits in the worker's sockets, both ways (ss(8), skmem)."""
    said = run(
        [needed("ss"), "-tmnH", "state", "established", f"( sport = :{port} or dport = :{behind} )"], 5
    )
    total = 0
    for fields in re.findall(r"skmem:\(([^)]*)\)", said):
        values = {name: int(number) for name, number in re.findall(r"([a-z]+)(\d+)", fields)}
        total += values["r"] + values["w"] + values["f"]
    return total


def waiting_in_pipes(pid: int) -> int:
    """Bytes in its pipes."""
    found: dict[str, int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if (kind := os.readlink(path)).startswith("pipe:") and kind not in found:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as pipe:
                found[kind] = int.from_bytes(ioctl(pipe, FIONREAD, bytes(4)), sys.byteorder)
    return sum(found.values())


def processes() -> Iterator[Constant]:
    """What the program takes before anybody comes."""
    memory: dict[int, int] = {}
    with ExitStack() as stack:
        behind = Sessions(stack).behind
        for workers in (1, 2, 4):
            with started(Setup(((free_port(), behind),)), workers) as way:
                memory[workers] = way.memory()
    each = (memory[4] - memory[2]) / 2
    yield Constant(
        "M_worker", "a worker more", f"{each / 2**20:.1f} MiB", "PSS of all processes, 4 workers less 2"
    )
    yield Constant(
        "M_supervisor",
        "everything else, of which each worker has a part in common",
        f"{(memory[1] - each) / 2**20:.1f} MiB",
        "PSS of all processes with 1 worker, less that",
    )


def listeners() -> Iterator[Constant]:
    """What a forward takes, with nobody on it."""
    memory: dict[int, float] = {}
    with ExitStack() as stack:
        behind = Sessions(stack).behind
        for workers in (1, 2):
            base = 0
            for count in (FEW, MANY):
                before = slabs()
                with started(Setup(tuple((12_000 + n, behind) for n in range(count))), workers) as way:
                    growth = grown(before, count * workers)
                    memory[workers] = (way.memory() - base) / (MANY - FEW)
                    base = way.memory()
    of_worker = memory[2] - memory[1]
    how = f"{MANY:,} forwards less {FEW}, 1 and 2 workers"
    yield Constant(
        "M_forward",
        "memory of a forward, in the supervisor + in each worker, its row included",
        f"{(memory[1] - of_worker) / 1024:.1f} + {of_worker / 1024:.1f} KiB",
        f"PSS, {how}",
    )
    yield Constant(
        "K_listener",
        "kernel's memory, listener",
        f"{of_a_socket(growth) + EPOLL:,.0f} B",
        f"slabs, {MANY:,} forwards with 2 workers",
    )
    yield Constant(
        "M_row", "a row of the scoreboard", f"{FORWARD_ROW * CELL} B", "`python -m bench.counters`"
    )


def conntrack() -> Iterator[Constant]:
    """What the packet filter keeps of a session, where it keeps anything."""
    for command in (
        "add table ip seen",
        "add chain ip seen in { type filter hook input priority 0 ; }",
        "add rule ip seen in ct state established accept",
    ):
        run([needed("nft"), *command.split()], 5)
    entries = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    try:
        with ExitStack() as stack:
            sessions = Sessions(stack)
            with started(sessions.setup):
                sessions.open(WARM)
                before, count = slabs(), int(entries.read_text())
                sessions.open(SESSIONS)
                growth, count = grown(before, SESSIONS), int(entries.read_text()) - count
    finally:
        run([needed("nft"), "delete", "table", "ip", "seen"], 5)
    print("a session with conntrack:", growth, file=sys.stderr)
    yield Constant(
        "",
        "entries of conntrack for a session",
        f"{count / SESSIONS:.2f}",
        f"nf_conntrack_count, {SESSIONS:,} sessions",
    )
    yield Constant(
        "K_conntrack",
        "kernel's memory, entry",
        f"{growth['nf_conntrack'][1]} B",
        "the size in /proc/slabinfo",
    )


def lines() -> Iterator[Constant]:
    """Bytes of log for a connection."""
    for form in ("tab", "common", "json"):
        with ExitStack() as stack:
            sessions = Sessions(stack)
            with started(replace(sessions.setup, log=form)) as way:
                path = way.directory / "log"
                for client, served in sessions.open(LOGGED):
                    client.close()
                    served.close()
                wait(lambda path=path: path.read_bytes().count(b"\n") == 2 * LOGGED, "all lines are there")  # type: ignore[misc]
                size = path.stat().st_size / LOGGED
        name = {"tab": "rinetd"}.get(form, form)
        yield Constant(
            "L",
            f"log of a connection, two lines, `logformat {name}`",
            f"{size:.0f} B",
            f"{LOGGED} connections; an address has {len(HOST)} characters",
        )


PUBLISHED = (
    (
        "P_connection",
        "processor time of a connection",
        "connections",
        "64 at a time",
        "fastfwd-2",
        "cpu",
        "{:.0f} µs",
    ),
    (
        "P_request",
        "of a small request and its answer",
        "requests",
        "64 connections",
        "fastfwd-2",
        "cpu",
        "{:.1f} µs",
    ),
    ("P_GB", "of a GB (10⁹ bytes), spliced", "bulk", "1 flow", "fastfwd-2", "cpu", "{:.2f} s"),
    ("P_GB,tls", "of a GB with TLS on one side", "tls-chain", "1 flow", "fastfwd-2", "cpu/2", "{:.2f} s"),
    (
        "P_handshake",
        "of a connection with a full handshake (P-256, TLS 1.3)",
        "handshakes",
        "full",
        "fastfwd-2",
        "cpu",
        "{:.0f} µs",
    ),
    ("", "of one that takes up a session again", "handshakes", "resumed", "fastfwd-2", "cpu", "{:.0f} µs"),
    (
        "",
        "of a small request and its answer with TLS",
        "tls-requests",
        "64 connections",
        "fastfwd-2",
        "cpu",
        "{:.1f} µs",
    ),
    (
        "P_datagram",
        "of a datagram and its answer",
        "datagrams",
        "2,000 flows",
        "fastfwd-2",
        "cpu",
        "{:.1f} µs",
    ),
    (
        "P_log",
        "of a connection, when it is logged, `rinetd`",
        "logging",
        "tab",
        "fastfwd-2",
        "cpu",
        "{:.0f} µs",
    ),
    ("M_exporter", "exporter, 200 forwards", "scrape", "scrapes alone", "fastfwd-2", "memory", "{:.1f} MiB"),
)
"""What the bench has measured: the file of bench/results, and the place in it."""


def published() -> Iterator[Constant]:
    """Medians of what is published."""
    for name, what, scenario, case, contender, figure, form in PUBLISHED:
        result = orjson.loads((DIRECTORY / f"{scenario}.json").read_bytes())
        key, _, parts = figure.partition("/")
        found = [
            each["figures"][key]
            for each in result["measurements"]
            if each["case"] == case and each["contender"] == contender
        ]
        value = form.format(statistics.median(found) / int(parts or 1))
        yield Constant(
            name, what, value, f"[{scenario}](benchmarks.md#{scenario}), 2 workers, {result['date']}"
        )


MEASURED = (processes, idle, stalled, encrypted, flows, listeners, conntrack, lines, published)


def table() -> str:
    """All of it as Markdown."""
    rows = [each for measure in MEASURED for each in measure()]
    python = f"Python {platform.python_version()}"
    said = f"Linux {platform.release()}, {python}, {ssl.OPENSSL_VERSION}, {datetime.date.today()}"
    head = f"{said}; what is linked: as the benchmarks say.\n\n| name | what | value | how |\n"
    head += "| --- | --- | ---: | --- |\n"
    return head + "".join(f"| {each.name} | {each.what} | {each.value} | {each.how} |\n" for each in rows)


def main() -> None:
    """Measure, and print or write."""
    if not enter_namespace("bench.capacity"):
        sys.exit("needs root, unshare(1) and ip(8)")
    raise_limits()
    text = table()
    print(text)
    if sys.argv[1:] == ["--write"]:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{after}")


if __name__ == "__main__":
    main()
