"""Programs that a measurement runs: starting, stopping, and what they have used.

Used by contenders, lab and clients. Everything is found and ended by pid.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

INSIDE = "FASTFWD_BENCH_NAMESPACE"
"""The variable of the environment that is set in a network namespace of our own."""

PATIENCE = 60.0
"""Seconds that anything may take beyond its measured time."""

LISTEN, ESTABLISHED, UNCONNECTED = "0A", "01", "07"
"""States of proc(5), net/tcp and net/udp."""


def installed(name: str) -> str | None:
    """The path of a program; daemons live in sbin, which a user's PATH often leaves out."""
    return shutil.which(name, path=PATH)


def needed(name: str) -> str:
    """The path of a program. Raises RuntimeError if it is not installed."""
    program = installed(name)
    if program is None:
        raise RuntimeError(f"needs {name}, which is not installed")
    return program


def sockets(state: str, protocol: str = "tcp") -> list[int]:
    """The local ports of all IPv4 sockets in `state` (proc(5), net/tcp and net/udp). Asking the
    kernel disturbs nobody: to iperf3 a connection would be a test."""
    with open(f"/proc/net/{protocol}", encoding="ascii") as lines:
        next(lines)
        return [
            int(fields[1][-4:], 16)
            for fields in (line.split(None, 4) for line in lines)
            if fields[3] == state
        ]


def queued(port: int) -> int:
    """How many connections the kernel has made for whoever listens on `port`, and nobody has
    taken yet. Listening sockets come first in proc(5), net/tcp; more is not read."""
    count = 0
    with open("/proc/net/tcp", encoding="ascii") as lines:
        next(lines)
        for line in lines:
            _, local, _, state, queues, _ = line.split(None, 5)
            if state != LISTEN:
                break
            if int(local[-4:], 16) == port:
                count += int(queues[-8:], 16)
    return count


def wait(reached: Callable[[], bool], what: str, pause: float = 0.02) -> None:
    """Look until `reached`. Raises RuntimeError with `what` after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(pause)


def run(command: Sequence[str | Path], seconds: float) -> str:
    """What a client that measures for `seconds` says. Raises RuntimeError with its words if it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return done.stdout


@contextmanager
def running(
    command: Sequence[str | Path], directory: Path, ports: Iterable[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, which stays in the foreground, from when it listens on `ports`, for connections or
    for datagrams, until the block ends. What it says goes to the file `said` in `directory`."""
    said = directory / "said"
    with said.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wanted = set(ports)

    def listens() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} does not start:\n{said.read_text()}")
        return wanted <= {*sockets(LISTEN), *sockets(UNCONNECTED, "udp")}

    try:
        if wanted:
            wait(listens, f"{command[0]} listens", 0.005)
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and wait for it; kill it, and what it has started, if it does not go."""
    children = family(process.pid)[1:]
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass


def stop_descendants() -> None:
    """Kill what this process has started, directly or not, and wait for it. After an interruption that
    may be a client: subprocess neither ends one that it was just starting, nor waits long for
    one that it has killed."""
    children = family(os.getpid())[1:]
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(children, 5)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it; nothing if it has gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """Processor time, user and system, that `pid` and its descendants have used so far,
    those that have ended and were waited for included (proc_pid_stat(5))."""
    total = 0.0
    for process in family(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def proportional_memory(pid: int) -> int:
    """PSS of `pid` and its descendants in bytes (proc(5), smaps_rollup): pages that several
    processes share are divided among them."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total
