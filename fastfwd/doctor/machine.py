"""What the kernel says of this machine and of one process: limits, sysctls, control groups. Facts only.

doctor/command calls `read`; what follows from the facts is doctor/capacity's. A file that is missing or
cannot be read is a fact that is not known, never an error. Nothing is changed, and no name is looked up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

SYSCTLS: Final = (
    *("fs.epoll.max_user_watches", "fs.file-max", "fs.file-nr", "fs.nr_open"),
    *("fs.pipe-max-size", "fs.pipe-user-pages-hard", "fs.pipe-user-pages-soft"),
    *("kernel.pid_max", "kernel.threads-max"),
    *("net.core.rmem_max", "net.core.somaxconn", "net.core.wmem_max"),
    *("net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.ip_unprivileged_port_start", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.tcp_mem"),
    *("net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies", "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_wmem"),
    *("net.netfilter.nf_conntrack_buckets", "net.netfilter.nf_conntrack_count"),
    *("net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_tcp_timeout_time_wait"),
)
"""Those that somebody here asks for."""

UNLIMITED: Final = 1 << 62
"""What version 1 of control groups writes for no limit is of this size, less a few pages."""

LISTENING: Final = "0A"  # include/net/tcp_states.h: TCP_LISTEN


@dataclass(frozen=True, slots=True)
class GroupLimit:
    """A limit of the process' control group, or of one above it. `what` is `memory` (bytes), `pids` or `cpu`
    (processors); `used` what the group has of it now; `source` the file."""

    what: str
    limit: float
    used: int
    source: str


@dataclass(frozen=True, slots=True)
class Machine:
    """`pid` is the process whose limits these are. `sysctls` has the text of each that could be read;
    `resources` the soft and the hard limit of a row of /proc/PID/limits, None where there is none.
    `listening` are the TCP ports that somebody listens on; `connections` how many TCP sockets the network
    namespace has; `here` whether that is also the one of `pid`. `capabilities` are the bits of those
    that are effective, None if not known."""

    pid: int
    sysctls: dict[str, str] = field(default_factory=dict)
    resources: dict[str, tuple[int | None, int | None]] = field(default_factory=dict)
    groups: tuple[GroupLimit, ...] = ()
    available: int | None = None
    page: int = 4096
    processors: int | None = None
    listening: frozenset[int] = frozenset()
    connections: int | None = None
    capabilities: int | None = None
    here: bool = True

    def number(self, sysctl: str, place: int = 0) -> int | None:
        """The number in that place of a sysctl; None if it is not known."""
        try:
            return int(self.sysctls[sysctl].split()[place])
        except (KeyError, IndexError, ValueError):
            return None

    def with_sysctls(self, values: dict[str, str]) -> Machine:
        """This machine after these have been set."""
        return replace(self, sysctls={**self.sysctls, **values})

    def group(self, what: str) -> list[GroupLimit]:
        """The limits on that, of all groups the process is in."""
        return [each for each in self.groups if each.what == what]

    @property
    def usable_processors(self) -> float | None:
        """Processors the process may use: by its affinity, and by the quota of its group."""
        quotas = [each.limit for each in self.group("cpu")]
        return None if self.processors is None else min([float(self.processors), *quotas])


def read(pid: int, starter: int | None = None, root: str = "/") -> Machine:
    """What is known of this machine, and of the process `pid` in it; the capabilities are those of the
    `starter`, where another process has given them up. `root` is for who has another /proc and /sys."""
    top = Path(root)
    process = top / "proc" / str(pid)
    sysctls = {name: text for name in SYSCTLS if (text := _text(_sysctl(top, name))) is not None}
    status = _table(process / "status")
    processors = None
    if (allowed := status.get("Cpus_allowed_list")) is not None:
        processors = len(ports(allowed))  # the same notation
    capabilities = None
    with suppress(KeyError, ValueError):
        capabilities = int(_table(top / "proc" / str(starter or pid) / "status")["CapEff"], 16)
    available = None
    with suppress(KeyError, ValueError, IndexError):
        available = int(_table(top / "proc/meminfo")["MemAvailable"].split()[0]) * 1024
    return Machine(
        *(pid, sysctls, _resources(process / "limits"), tuple(_groups(top, process)), available),
        *(os.sysconf("SC_PAGESIZE"), processors, _listening(top), _connections(top), capabilities),
        _same(process / "ns/net", top / "proc/self/ns/net"),
    )


def path_of(sysctl: str) -> str:
    """The file of a sysctl."""
    return str(_sysctl(Path("/"), sysctl))


def ports(text: str) -> set[int]:
    """The numbers of a list such as `22,8000-8100`, the kernel's notation; what is no number is left out."""
    found: set[int] = set()
    for piece in text.split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", piece.strip()):
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def port_list(numbers: set[int]) -> str:
    """The opposite of `ports`."""
    pieces: list[list[int]] = []
    for number in sorted(numbers):
        if pieces and pieces[-1][1] == number - 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in pieces)


def _sysctl(top: Path, name: str) -> Path:
    return top.joinpath("proc/sys", *name.split("."))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _table(path: Path) -> dict[str, str]:
    """The lines `name: value` of a file."""
    lines = (line.partition(":") for line in (_text(path) or "").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _same(*links: Path) -> bool:
    """Whether they lead to the same; those that nobody may follow are taken for it."""
    try:
        return len({os.readlink(each) for each in links}) == 1
    except OSError:
        return True


def _resources(path: Path) -> dict[str, tuple[int | None, int | None]]:
    found = {}
    for line in (_text(path) or "").splitlines()[1:]:
        if match := re.match(r"(Max .+?)\s+(\d+|unlimited)\s+(\d+|unlimited)\b", line):
            soft, hard = (None if each == "unlimited" else int(each) for each in match.group(2, 3))
            found[match[1]] = soft, hard
    return found


def _listening(top: Path) -> frozenset[int]:
    """TCP ports that somebody listens on. The kernel lists those sockets first (tcp_get_idx in its
    net/ipv4/tcp_ipv4.c), so that a hundred thousand connections need not be read."""
    found = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError, ValueError, IndexError), open(top / "proc/net" / name) as table:
            next(table, "")
            for line in table:
                _, local, _, state, *_ = line.split()
                if state != LISTENING:
                    break
                found.add(int(local.rpartition(":")[2], 16))
    return frozenset(found)


def _connections(top: Path) -> int | None:
    """TCP sockets that are neither closed nor in TIME_WAIT, listening ones included."""
    total = None
    for name, key in (("sockstat", "TCP"), ("sockstat6", "TCP6")):
        with suppress(KeyError, ValueError, IndexError):
            words = _table(top / "proc/net" / name)[key].split()
            total = (total or 0) + int(words[words.index("inuse") + 1])
    return total


def _groups(top: Path, process: Path) -> Iterator[GroupLimit]:
    """The limits of the process' groups and of all above them, in both versions of control groups."""
    mounts = _mounts(top)
    for line in (_text(process / "cgroup") or "").splitlines():
        try:
            _, controllers, name = line.split(":", 2)
        except ValueError:
            continue
        for controller in controllers.split(",") if controllers else [""]:
            if (mount := mounts.get(controller)) is None:
                continue
            root, point = mount
            # A group that is not below what is mounted here: a container sees its own as the root.
            inside = name.removeprefix(root).strip("/") if name.startswith(root) else ""
            directory = top / point.lstrip("/") / inside
            if ".." in inside or not directory.is_dir():
                directory, inside = top / point.lstrip("/"), ""
            for _ in range(inside.count("/") + 2 if inside else 1):
                yield from _limits_v2(directory) if controller == "" else _limits_v1(directory, controller)
                directory = directory.parent


def _mounts(top: Path) -> dict[str, tuple[str, str]]:
    """Controller -> the group that is mounted and where; of version 2 under the name ""."""
    found = {}
    for line in (_text(top / "proc/self/mountinfo") or "").splitlines():
        ours, _, theirs = line.partition(" - ")
        fields, kind = ours.split(), theirs.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        for controller in [""] if kind[0] == "cgroup2" else kind[2].split(","):
            found[controller] = fields[3], fields[4]
    return found


def _count(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:  # "max", or no such file
        return None


def _idle_cache(directory: Path, key: str) -> int:
    """Bytes of files that the group has not used lately: room, if somebody asks for it."""
    for line in (_text(directory / "memory.stat") or "").splitlines():
        if line.startswith(f"{key} "):
            return int(line.split()[1])
    return 0


def _limits_v2(directory: Path) -> Iterator[GroupLimit]:
    used = max(0, (_count(directory / "memory.current") or 0) - _idle_cache(directory, "inactive_file"))
    for name in ("memory.max", "memory.high"):
        if (limit := _count(directory / name)) is not None:
            yield GroupLimit("memory", limit, used, str(directory / name))
    if (limit := _count(directory / "pids.max")) is not None:
        yield GroupLimit("pids", limit, _count(directory / "pids.current") or 0, str(directory / "pids.max"))
    with suppress(ValueError, ZeroDivisionError):
        quota, period = (_text(directory / "cpu.max") or "").split()
        yield GroupLimit("cpu", int(quota) / int(period), 0, str(directory / "cpu.max"))


def _limits_v1(directory: Path, controller: str) -> Iterator[GroupLimit]:
    if controller == "memory":
        path = directory / "memory.limit_in_bytes"
        if (limit := _count(path)) is not None and limit < UNLIMITED:
            used = _count(directory / "memory.usage_in_bytes") or 0
            used -= _idle_cache(directory, "total_inactive_file")
            yield GroupLimit("memory", limit, max(0, used), str(path))
    elif controller == "pids":
        if (limit := _count(directory / "pids.max")) is not None:
            used = _count(directory / "pids.current") or 0
            yield GroupLimit("pids", limit, used, str(directory / "pids.max"))
    elif controller == "cpu":
        quota, period = _count(directory / "cpu.cfs_quota_us"), _count(directory / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            yield GroupLimit("cpu", quota / period, 0, str(directory / "cpu.cfs_quota_us"))
