"""The project's bench: fastfwd beside C rinetd and HAProxy, on the same backends, in interleaved rounds.

    bench/bench.py [--rounds N] [--seconds S] [--only NAME ...]

Everything runs on loopback of this machine: nginx (one process) and wrk for requests
and connections, iperf3 for bulk. Each figure is the median over the rounds; in every
round each forwarder is measured once, one after the other, so that a noisy machine is
unfair to all alike. Compare ratios, not absolutes. A forwarder that is not installed
is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

CONNECTIONS = 64
"""Of wrk."""

IDLE = 2_000
"""Connections that do nothing while requests are measured beside them."""

PATIENCE = 30.0
"""Seconds that anything may take beyond its measured time."""

REFERENCE = "rinetd"
"""Whom the ratios are to."""


# Programs and ports.


def installed(name: str) -> str | None:
    """The path of a program; daemons live in sbin, which a user's PATH often leaves out."""
    return shutil.which(name, path=PATH)


TAKEN: set[int] = set()


def free_port() -> int:
    """A port that nobody uses, below the range of outgoing connections."""
    start = 12_000 + os.getpid() % 10_000
    candidates: list[int] = [*range(start, 32_000), *range(12_000, start)]
    for port in candidates:
        if port in TAKEN:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        TAKEN.add(port)
        return port
    raise RuntimeError("no free port")


def listens(port: int) -> bool:
    """Whether somebody listens on `port` (proc(5), net/tcp): to iperf3 a connection would be a test."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(line[3] == "0A" and int(line[1][-4:], 16) == port for line in lines)


@contextmanager
def running(command: Sequence[str | Path], directory: Path, ports: Iterable[int]) -> Iterator[int]:
    """`command`, which stays in the foreground, from when it listens on `ports`; gives its pid."""
    said = directory / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + PATIENCE
        for port in ports:
            while not listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command[0]} does not start:\n{said.read_text()}")
                time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def client(command: Sequence[str], seconds: float) -> str:
    """The output of a client that measures for `seconds`."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


def cpu_seconds(pid: int) -> float:
    """Processor time of `pid` and its living children so far (proc_pid_stat(5))."""
    total = 0.0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path(f"/proc/{name}/stat").read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if pid in {int(name), int(fields[1])}:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# The backends.


def nginx(directory: Path, port: int) -> list[str | Path]:
    """The command of a web server of one process that serves a small file on `port`."""
    program = installed("nginx")
    if program is None:
        raise SystemExit("bench: needs nginx")
    (directory / "small").write_text("x" * 100)
    temporary = " ".join(
        f"{name}_temp_path {directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {directory}/pid; error_log stderr crit;
        worker_rlimit_nofile {4 * IDLE};
        events {{ worker_connections {3 * IDLE}; }}
        http {{
            access_log off; {temporary}
            keepalive_requests 100000000; keepalive_timeout 1h; client_header_timeout 1h;
            open_file_cache max=10;
            server {{ listen {HOST}:{port} backlog=4096; root {directory}; }}
        }}""")
    return [program, "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]


def iperf3() -> str:
    """The path of iperf3."""
    program = installed("iperf3")
    if program is None:
        raise SystemExit("bench: needs iperf3")
    return program


# The forwarders: each gets a directory, the ports to listen on and the ports to forward to.

Command = Callable[[Path, dict[int, int]], "list[str | Path] | None"]


def rinetd(directory: Path, forwards: dict[int, int]) -> list[str | Path] | None:
    """C rinetd."""
    program = installed("rinetd")
    if program is None:
        return None
    config = directory / "rinetd.conf"
    lines = "".join(f"{HOST} {port} {HOST} {target}\n" for port, target in forwards.items())
    config.write_text(lines + f"pidlogfile {directory}/rinetd.pid\n")
    return [program, "-f", "-c", config]


def haproxy(directory: Path, forwards: dict[int, int]) -> list[str | Path] | None:
    """HAProxy as a TCP proxy, one thread, splicing where it thinks fit."""
    program = installed("haproxy")
    if program is None:
        return None
    config = directory / "haproxy.cfg"
    text = f"""
global
    nbthread 1
    maxconn {3 * IDLE}
defaults
    mode tcp
    option splice-auto
    timeout connect 10s
    timeout client 1h
    timeout server 1h
"""
    for port, target in forwards.items():
        text += f"listen {port}\n    bind {HOST}:{port} backlog 4096\n    server s {HOST}:{target}\n"
    config.write_text(text)
    return [program, "-db", "-f", config]


def fastfwd(workers: int) -> Command:
    """fastfwd of this checkout with `workers` workers."""

    def command(directory: Path, forwards: dict[int, int]) -> list[str | Path]:
        config = directory / "fastfwd.conf"
        lines = "".join(f"{HOST} {port} {HOST} {target}\n" for port, target in forwards.items())
        config.write_text(lines + f"workers {workers}\n")
        return [sys.executable, "-m", "fastfwd", "-f", "-c", config]

    return command


FORWARDERS: dict[str, Command] = {
    "rinetd": rinetd,
    "haproxy": haproxy,
    "fastfwd-1": fastfwd(1),
    "fastfwd-2": fastfwd(2),
}


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the two backends: `pid` of the forwarder, None for the direct one."""

    name: str
    web: int
    bulk: int
    pid: int | None

    def cpu(self) -> float:
        """Processor time of the forwarder so far."""
        return 0.0 if self.pid is None else cpu_seconds(self.pid)


# The measurements: each takes a way and a number of seconds, and gives figures by the names of FIGURES.


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table: what it is, how it is written, and whether less is better."""

    title: str
    form: str
    less: bool = False


FIGURES = {
    "requests": Figure("requests/s, keep-alive", ",.0f"),
    "requests-cpu": Figure("  CPU µs per request", ".1f", less=True),
    "connections": Figure("connections/s", ",.0f"),
    "connections-cpu": Figure("  CPU µs per connection", ".1f", less=True),
    "bulk": Figure("bulk, 1 flow, Gbit/s", ".1f"),
    "bulk-cpu": Figure("  CPU s per GB", ".3f", less=True),
    "idle": Figure(f"requests/s beside {IDLE:,} idle", ",.0f"),
    "idle-cpu": Figure("  CPU µs per request", ".1f", less=True),
}


def wrk(port: int, seconds: float, *headers: str) -> tuple[int, float]:
    """Requests that wrk had answered through `port`, and the seconds it took."""
    program = installed("wrk")
    if program is None:
        raise SystemExit("bench: needs wrk")
    flags = [flag for header in headers for flag in ("-H", header)]
    command = [program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", *flags, f"http://{HOST}:{port}/small"]
    said = client(command, seconds)
    if errors := re.findall(r"Socket errors.*|Non-2xx.*", said):
        print(f"wrk on port {port}: {'; '.join(errors)}", file=sys.stderr)
    found = re.search(r"(\d+) requests in ([0-9.]+)(m?)s", said)
    if found is None:
        raise RuntimeError(said)
    return int(found[1]), float(found[2]) / (1000 if found[3] else 1)


def web(way: Way, seconds: float, name: str, *headers: str) -> dict[str, float]:
    """Rate of requests under `name`, and their price."""
    before = way.cpu()
    count, took = wrk(way.web, seconds, *headers)
    return {name: count / took, f"{name}-cpu": (way.cpu() - before) / count * 1e6}


def requests(way: Way, seconds: float) -> dict[str, float]:
    """Small requests on connections that stay open."""
    return web(way, seconds, "requests")


def connections(way: Way, seconds: float) -> dict[str, float]:
    """A connection for each request."""
    return web(way, seconds, "connections", "Connection: close")


def bulk(way: Way, seconds: float) -> dict[str, float]:
    """One flow from client to backend."""
    before = way.cpu()
    said = client([iperf3(), "-J", "-c", HOST, "-p", str(way.bulk), "-t", f"{seconds:.0f}"], seconds)
    received = json.loads(said)["end"]["sum_received"]
    price = (way.cpu() - before) / (received["bytes"] / 1e9)
    return {"bulk": received["bits_per_second"] / 1e9, "bulk-cpu": price}


def idle(way: Way, seconds: float) -> dict[str, float]:
    """Small requests while IDLE connections are open and silent."""
    with ExitStack() as stack:
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection((HOST, way.web), PATIENCE))
        wrk(way.web, 1)  # until then every idle one has been accepted
        return web(way, seconds, "idle")


MEASUREMENTS: dict[str, Callable[[Way, float], dict[str, float]]] = {
    "requests": requests,
    "connections": connections,
    "bulk": bulk,
    "idle": idle,
}


# The bench.


@dataclass(slots=True)
class Table:
    """Figures by way and name, one per round."""

    ways: list[str]
    cells: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, way: str, figures: dict[str, float]) -> None:
        """Take in one measurement."""
        for name, value in figures.items():
            self.cells.setdefault((way, name), []).append(value)

    def median(self, way: str, name: str) -> float | None:
        """The median over the rounds so far."""
        values = self.cells.get((way, name))
        return statistics.median(values) if values else None

    def cell(self, way: str, name: str) -> str:
        """The median, and its ratio to the reference's."""
        value, reference = self.median(way, name), self.median(REFERENCE, name)
        if value is None or (way == "direct" and name.endswith("-cpu")):
            return "-"
        text = format(value, FIGURES[name].form)
        return text if not reference or way == "direct" else f"{text} x{value / reference:.2f}"

    def text(self) -> str:
        """The table, and how to read it."""
        rows = [name for name in FIGURES if any(name == measured for _, measured in self.cells)]
        grid = [["", *self.ways]]
        grid += [[FIGURES[name].title, *(self.cell(way, name) for way in self.ways)] for name in rows]
        widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if not column else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in grid
        ]
        return "\n".join(lines)


def start(stack: ExitStack, directory: Path, names: Sequence[str]) -> list[Way]:
    """Start the backends and the forwarders called `names`; the direct way comes first."""
    web_port, bulk_port = free_port(), free_port()
    for name in ("nginx", "iperf3", *names):
        (directory / name).mkdir()
    stack.enter_context(running(nginx(directory / "nginx", web_port), directory / "nginx", [web_port]))
    stack.enter_context(
        running([iperf3(), "-s", "-B", HOST, "-p", str(bulk_port)], directory / "iperf3", [bulk_port])
    )
    ways = [Way("direct", web_port, bulk_port, None)]
    for name in names:
        forwards = {free_port(): web_port, free_port(): bulk_port}
        command = FORWARDERS[name](directory / name, forwards)
        if command is None:
            print(f"bench: {name} is not installed", file=sys.stderr)
            continue
        near_web, near_bulk = forwards
        pid = stack.enter_context(running(command, directory / name, forwards))
        ways.append(Way(name, near_web, near_bulk, pid))
    return ways


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Compare fastfwd with C rinetd and HAProxy on this machine.")
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="rounds, of which the median counts (default 5)")
    add("--seconds", type=int, default=3, metavar="S", help="seconds for one measurement (default 3)")
    names = [*MEASUREMENTS, *FORWARDERS]
    add("--only", action="append", choices=names, help="a measurement or a forwarder; may be repeated")
    options = parser.parse_args()
    wanted = set(options.only or ())
    measurements = [name for name in MEASUREMENTS if not wanted & set(MEASUREMENTS) or name in wanted]
    forwarders = [name for name in FORWARDERS if not wanted & set(FORWARDERS) or name in wanted]

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="bench-") as text, ExitStack() as stack:
        directory = Path(text)
        directory.chmod(0o755)
        ways = start(stack, directory, forwarders)
        table = Table([way.name for way in ways])
        length = options.rounds * len(measurements) * len(ways) * (options.seconds + 1)
        print(f"{options.rounds} rounds, about {length / 60:.0f} min", file=sys.stderr)
        for number in range(options.rounds):
            for name in measurements:
                # Another order each round: nobody always comes after the same one.
                for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                    table.add(way.name, MEASUREMENTS[name](way, options.seconds))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
        kernel, processors = os.uname().release, len(os.sched_getaffinity(0))
        print(table.text())
        print(
            f"\nMedian of {options.rounds}, {options.seconds} s each; x is the ratio to C rinetd. "
            f"Linux {kernel}, {processors} processors, Python {sys.version.split()[0]}."
        )


if __name__ == "__main__":
    main()
