"""How many sessions each limit of a machine allows with a configuration. The formulas, and nothing else.

doctor/command has the Machine read and the Demand made; doctor/remedy turns the formulas round, doctor/report
writes them down; docs/doctor.md explains each. Pure. What raises a limit never lowers an answer (but for
the sixteenth descriptor, which brings a pipe, and that has two); what is not known limits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fastfwd.doctor.demand import Demand, Pool, Way
from fastfwd.doctor.machine import GroupLimit, Machine, ports
from fastfwd.doctor.program import Program
from fastfwd.model import Protocol
from fastfwd.observe.terminal import size
from fastfwd.worker.main import FILL

OWN_FILES: Final = 9
"""Descriptors of a worker that serves nothing: standard streams, epoll, channel, census, recall and the pipe
of its signals."""

SUPERVISOR_FILES: Final = 16
"""Those of a supervisor without listeners and children, and what the fork of a child takes for a moment."""

CHILD_FILES: Final = 2
"""What it keeps of each child: the channel, and the directory of its open files."""

PROCESS_PART: Final = {"session": 1_103, "tls": 16_200 - 1_103, "flow": 1_067}
"""Bytes of a worker that an idle session, each of its sides with TLS, and a flow take. These figures and
those that follow are measured: docs/capacity.md has how (M_session, M_tls, M_flow)."""

KERNEL_PART: Final = {"session": 8_212, "flow": 2_817, "entry": 256, "listener": 3_972}
"""Bytes of the kernel's for the same, for an entry of conntrack, and for a listener (K_session, K_flow,
K_conntrack, K_listener)."""

BASE_MEMORY: Final = 21 << 20
WORKER_MEMORY: Final = 9 << 20
EXPORTER_MEMORY: Final = 24 << 20
"""Bytes of the program without sessions: once, for each worker, and where there is an exporter (M_supervisor,
M_worker, M_exporter)."""

PLACE_MEMORY: Final = 2_900
PLACE_OF_WORKER_MEMORY: Final = 5_100
"""Bytes for what is listened on: once, and in each worker (M_forward)."""

TIME_WAIT: Final = 60
"""Seconds for which the side that closes first keeps its port (TCP_TIMEWAIT_LEN in the kernel's
include/net/tcp.h; no sysctl changes it)."""

ENDLESS: Final = 1 << 53
"""What is larger is no limit: systemd sets fs.file-max to 2^63 - 1."""

OWN: Final = frozenset({"max-connections", "forwards"})
"""Keys of the limits that the configuration itself has set, rather than the machine."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`sessions` that the limit allows over all workers, None if it allows any number, or nobody knows;
    `value` is how it stands now, `source` where that was read."""

    key: str
    name: str
    value: str
    sessions: int | None
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine, what is asked of it, and the program that does so already, if it runs."""

    machine: Machine
    demand: Demand
    program: Program | None = None

    @property
    def workers(self) -> int:
        """How many there are, or will be."""
        if self.program is not None:
            return len(self.program.workers)
        return self.demand.workers or self.machine.processors or 1

    @property
    def now(self) -> int:
        """Sessions that the program has now, as far as its descriptors tell."""
        if self.program is None or self.program.sockets is None:
            return 0
        beside = self.workers * (self.demand.places + 1)
        return max(0, self.program.sockets - beside) // self.files_of_session

    @property
    def files_of_session(self) -> int:
        """Descriptors of a session, of the kind that takes most: also what epoll watches."""
        return 1 if self.demand.datagrams and not self.demand.streams else 2

    @property
    def memory_of_session(self) -> int:
        """Bytes of an idle session, of the kind that takes most."""
        tracked = 0 if tracked_beside(self) is None else 2 * KERNEL_PART["entry"]
        if self.files_of_session == 1:
            return PROCESS_PART["flow"] + KERNEL_PART["flow"] + tracked
        own = PROCESS_PART["session"] + self.demand.tls * PROCESS_PART["tls"]
        return own + KERNEL_PART["session"] + tracked

    @property
    def memory_of_program(self) -> int:
        """Bytes that it will take without a session: none where it runs, for it has them already."""
        if self.program is not None:
            return 0
        of_worker = PLACE_OF_WORKER_MEMORY + KERNEL_PART["listener"]
        exporter = EXPORTER_MEMORY * self.demand.exporter
        return (
            BASE_MEMORY
            + exporter
            + self.demand.places * PLACE_MEMORY
            + self.workers * (WORKER_MEMORY + self.demand.places * of_worker)
        )

    def resource_source(self, option: str) -> str:
        """Where a limit of the process was read; of a shell that is best asked itself: `ulimit` with an
        `option`."""
        return f"ulimit -{option}" if self.program is None else f"/proc/{self.machine.pid}/limits"

    @property
    def file_limit(self) -> int | None:
        """Descriptors that each process of the program may have. It raises the soft limit to the hard one."""
        soft, hard = self.machine.resources.get("Max open files", (None, None))
        return soft if self.program is not None else hard

    def files_of_worker(self, pipes: int) -> int:
        """Descriptors of a worker that has so many pipes, and no session."""
        return OWN_FILES + self.demand.places + self.demand.files + 2 * pipes


def limits(facts: Facts) -> list[Limit]:
    """All limits, the one that comes first at the head; those that limit nothing at the end."""
    found = [
        *(_connections(facts), _forwards(facts), source_ports(facts), descriptors(facts), _files(facts)),
        *(_conntrack(facts), memory(facts), _watches(facts), _supervisor(facts), _processes(facts)),
    ]
    known = [each for each in found if each is not None]
    return sorted(known, key=lambda each: math.inf if each.sessions is None else each.sessions)


def most_pipes(limit: int) -> int:
    """How many pipes a worker has at most, under a limit of descriptors (worker/main)."""
    return max(4, min(1024, limit // 16))


def spread(share: int, workers: int) -> int:
    """Sessions over all workers when the fullest has its `share`. The kernel spreads clients by a hash, so
    that of N sessions a worker has N/W, give or take: two standard deviations are allowed for."""
    if share <= 0 or workers <= 1:
        return max(0, share) * workers
    deviation = math.sqrt(1 - 1 / workers)
    # A little more, so that what floating point has lost is no session.
    return int(workers * (math.sqrt(deviation**2 + share) - deviation) ** 2 * (1 + 1e-12) + 1e-9)


def share(sessions: int, workers: int) -> int:
    """The opposite of `spread`: what the fullest worker has of so many."""
    if workers <= 1:
        return sessions
    average = sessions / workers
    return math.ceil(average + 2 * math.sqrt(average * (1 - 1 / workers)))


def _connections(facts: Facts) -> Limit | None:
    wanted = facts.demand.connections
    if wanted is None:
        return None
    source = str(facts.demand.connections_origin)
    return Limit("max-connections", "max-connections", f"{wanted:,}", wanted, source)


def _forwards(facts: Facts) -> Limit | None:
    """The limits of all forwards together, if each has one."""
    own = [each.own for each in facts.demand.ways if each.own is not None]
    if not own or len(own) < len(facts.demand.ways):
        return None
    value = f"{own[0]:,}" if len(own) == 1 else f"{len(own)} forwards"
    return Limit("forwards", "limits of forwards", value, sum(own), facts.demand.file)


def usable_ports(machine: Machine, taken: Iterable[int]) -> int | None:
    """Source ports for one pool: those of the range that are neither reserved nor `taken` by a listener,
    for which the kernel leaves them out."""
    first, last = (machine.number("net.ipv4.ip_local_port_range", place) for place in (0, 1))
    if first is None or last is None:
        return None
    reserved = ports(machine.sysctls.get("net.ipv4.ip_local_reserved_ports", ""))
    whole = range(first, last + 1)
    return len(whole) - sum(port in whole for port in reserved.union(taken))


def ports_of(facts: Facts) -> dict[str, int] | None:
    """Source ports of one pool over TCP and over UDP."""
    streams = usable_ports(facts.machine, facts.machine.listening | facts.demand.ports)
    datagrams = usable_ports(facts.machine, facts.demand.datagram_ports)
    return None if streams is None or datagrams is None else {"tcp": streams, "udp": datagrams}


def source_ports(facts: Facts) -> Limit:
    """All pools together; of forwards with limits of their own not more than these."""
    each = ports_of(facts)
    source = "net.ipv4.ip_local_port_range"
    pools = {pool for way in facts.demand.ways for pool in way.pools or ()}
    if each is None:
        return Limit("ports", "source ports", "unknown", None, source)
    value = "none needed"
    if pools:
        value = f"{min(each[str(pool[0])] for pool in pools):,}"
    if len(pools) > 1:
        value = f"{len(pools):,} × {value}"
    return Limit("ports", "source ports", value, together(facts.demand.ways, each), source)


def together(ways: Iterable[Way], each: dict[str, int]) -> int | None:
    """Sessions that forwards can have by their own limits and by their pools, which some may share."""
    total = 0
    groups: list[tuple[set[Pool], int | None]] = []
    for way in ways:
        if way.pools is None:
            if way.own is None:
                return None
            total += way.own
            continue
        pools, own = set(way.pools), way.own
        apart = []
        for others, theirs in groups:
            if pools & others:
                pools |= others
                own = None if own is None or theirs is None else own + theirs
            else:
                apart.append((others, theirs))
        groups = [*apart, (pools, own)]
    for pools, own in groups:
        held = sum(each[str(pool[0])] for pool in pools)
        total += held if own is None else min(held, own)
    return total


def descriptors(facts: Facts) -> Limit:
    """Of the worker that has most sessions."""
    limit = facts.file_limit
    source = facts.resource_source("Hn")
    if limit is None:
        return Limit("descriptors", "descriptors per worker", "unknown", None, source)
    room = limit - facts.files_of_worker(most_pipes(limit))
    sessions = spread(room // facts.files_of_session, facts.workers)
    return Limit("descriptors", "descriptors per worker", f"{limit:,}", sessions, source)


def files_beside(facts: Facts) -> int:
    """Files that are open, or will be, without any session of ours. (Pipes are opened while there is room;
    those of the start stay.)"""
    used = facts.machine.number("fs.file-nr") or 0
    if facts.program is not None and facts.program.files is not None:
        used -= facts.program.files
    return max(0, used) + facts.workers * facts.files_of_worker(FILL)


def _files(facts: Facts) -> Limit:
    most = facts.machine.number("fs.file-max")
    name, source = "files of the machine", "fs.file-max"
    if most is None:
        return Limit("files", name, "unknown", None, source)
    if most > ENDLESS:
        return Limit("files", name, "no limit", None, source)
    sessions = max(0, most - files_beside(facts)) // facts.files_of_session
    return Limit("files", name, f"{most:,}", sessions, source)


def tracked_beside(facts: Facts) -> int | None:
    """Entries of conntrack that are others', None where nothing is tracked: it counts none, although this
    network namespace has connections."""
    count = facts.machine.number("net.netfilter.nf_conntrack_count")
    if count is None or (count == 0 and facts.machine.connections):
        return None
    return max(0, count - 2 * facts.now)


def _conntrack(facts: Facts) -> Limit | None:
    most = facts.machine.number("net.netfilter.nf_conntrack_max")
    if most is None:
        return None  # it is not loaded
    name, source = "conntrack entries", "net.netfilter.nf_conntrack_max"
    others = tracked_beside(facts)
    if others is None:
        return Limit("conntrack", name, f"{most:,}, no use", None, source)
    return Limit("conntrack", name, f"{most:,}", max(0, most - others) // 2, source)


def rooms(facts: Facts) -> list[tuple[int, GroupLimit | None]]:
    """Bytes that are left for sessions: in the machine, and in each control group that has a limit."""
    found: list[tuple[int, GroupLimit | None]] = []
    if facts.machine.available is not None:
        found.append((facts.machine.available, None))
    found += [(int(each.limit) - each.used, each) for each in facts.machine.group("memory")]
    return [(room - facts.memory_of_program, group) for room, group in found]


def memory(facts: Facts) -> Limit:
    """For sessions that are idle."""
    found = rooms(facts)
    if not found:
        return Limit("memory", "memory, all idle", "unknown", None, "/proc/meminfo")
    left, group = min(found, key=lambda each: each[0])
    left = max(0, left)
    sessions = facts.now + left // facts.memory_of_session
    source = "/proc/meminfo" if group is None else group.source
    return Limit("memory", "memory, all idle", f"{size(left)} free", sessions, source)


def watches_beside(facts: Facts) -> int:
    """What the workers watch without sessions."""
    return facts.workers * (facts.demand.places + 3)


def _watches(facts: Facts) -> Limit:
    most = facts.machine.number("fs.epoll.max_user_watches")
    name, source = "epoll watches", "fs.epoll.max_user_watches"
    if most is None:
        return Limit("watches", name, "unknown", None, source)
    return Limit(
        "watches", name, f"{most:,}", max(0, most - watches_beside(facts)) // facts.files_of_session, source
    )


def files_of_supervisor(facts: Facts) -> int:
    """The descriptors it has when all is open: every slot's listeners are its own."""
    children = facts.workers + (facts.demand.exporter + facts.demand.resolver)
    return SUPERVISOR_FILES + facts.demand.places * facts.workers + CHILD_FILES * children


def _supervisor(facts: Facts) -> Limit:
    """No number of sessions: with too few it does not start."""
    limit = facts.file_limit
    source = facts.resource_source("Hn")
    name = "supervisor's files"
    if limit is None:
        return Limit("supervisor", name, "unknown", None, source)
    needed = files_of_supervisor(facts)
    return Limit("supervisor", name, f"{needed:,} of {limit:,}", None if needed <= limit else 0, source)


def processes_needed(facts: Facts) -> int:
    """Those of the program."""
    return 1 + facts.workers + (facts.demand.exporter + facts.demand.resolver)


def process_limits(facts: Facts) -> list[tuple[int, str]]:
    """How many processes there may be for the program, by each limit that is known, and where it stands."""
    ours = processes_needed(facts) if facts.program is not None else 0
    found = [
        (number, name)
        for name in ("kernel.pid_max", "kernel.threads-max")
        if (number := facts.machine.number(name)) is not None
    ]
    soft, _ = facts.machine.resources.get("Max processes", (None, None))
    if soft is not None:
        found.append((soft, facts.resource_source("u")))
    found += [(int(each.limit) - each.used + ours, each.source) for each in facts.machine.group("pids")]
    return found


def _processes(facts: Facts) -> Limit:
    """As for the supervisor's files."""
    found = process_limits(facts)
    if not found:
        return Limit("processes", "processes", "unknown", None, "kernel.pid_max")
    most, source = min(found)
    needed = processes_needed(facts)
    return Limit("processes", "processes", f"{needed:,} of {most:,}", None if needed <= most else 0, source)


def first(found: Sequence[Limit]) -> Limit | None:
    """The limit that comes first, if anything limits."""
    return found[0] if found and found[0].sessions is not None else None


def of_forwards(facts: Facts) -> list[tuple[Way, int, str]]:
    """Forwards that cannot have any number of sessions, were they alone: how many, and by which limit."""
    each = ports_of(facts)
    found = []
    for way in facts.demand.ways:
        held = None if each is None else together([replace(way, own=None)], each)
        if held is not None and (way.own is None or held < way.own):
            found.append((way, held, "source ports"))
        elif way.own is not None:
            udp = way.protocol is Protocol.UDP
            found.append((way, way.own, "max-udp-connections" if udp else "max-connections"))
    return sorted(found, key=lambda each: each[1])
