"""What /proc says of processes: children, names, descriptors, marks in the environment. And: to stop some."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deadline import until


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that tests use (proc_pid_stat(5)); `cpu` in seconds, `start` in ticks."""

    pid: int
    comm: str
    state: str
    ppid: int
    cpu: float
    start: int


def stat(pid: int) -> Stat | None:
    """The process' state now; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name is in parentheses and may itself hold parentheses and blanks: the last ')' ends it.
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    ticks = int(rest[11]) + int(rest[12])
    return Stat(pid, name, rest[0], int(rest[1]), ticks / os.sysconf("SC_CLK_TCK"), int(rest[19]))


def busy(pid: int) -> float:
    """Processor seconds that the process has used, to the nanosecond where the kernel counts so (in
    /proc/PID/stat a hundredth is the least); 0 when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(text.split()[0]) / 1e9


def all_stats() -> list[Stat]:
    """Every process of the machine."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [found for pid in pids if (found := stat(pid))]


def children(pid: int) -> list[Stat]:
    """The living children of `pid` (a zombie is not alive)."""
    return [found for found in all_stats() if found.ppid == pid and found.state != "Z"]


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    found = stat(pid)
    return found is not None and found.state != "Z"


def arguments(pid: int) -> list[str]:
    """The command line of `pid`; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return []
    return text.removesuffix("\0").split("\0")


def marked(mark: str) -> list[int]:
    """Processes whose initial environment holds the string `mark`, other than this one, zombies left out."""
    needle = mark.encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if needle in environment.split(b"\0") and alive(int(name)):
            found.append(int(name))
    return found


def descriptors(pid: int) -> dict[int, str]:
    """Open descriptors of `pid`: number -> what it is (`socket:[...]`, `pipe:[...]`, a path)."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def rss(pid: int) -> int:
    """Resident memory of `pid` in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def stop(*pids: int) -> None:
    """SIGSTOP, and wait until it has had its effect."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # `t` if somebody traces it. One that is gone does not run either.
    until(lambda: all(found.state in "Tt" for pid in pids if (found := stat(pid))), what=f"{pids} to stop")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """They do not run inside the block, so what happens there meets them as one burst."""
    try:
        stop(*pids)
        yield
    finally:
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
