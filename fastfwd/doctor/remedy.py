"""What has to be set so that a limit allows so many sessions: doctor/capacity's formulas turned round.

doctor/report prints it. Pure; a test sets what it says and asks doctor/capacity again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from fastfwd.doctor.capacity import (
    Facts,
    Limit,
    files_beside,
    files_of_supervisor,
    most_pipes,
    ports_of,
    process_limits,
    processes_needed,
    rooms,
    share,
    source_ports,
    together,
    tracked_beside,
    watches_beside,
)
from fastfwd.doctor.machine import GroupLimit, port_list, ports
from fastfwd.observe.terminal import size

STEP: Final = 1024
"""Figures are rounded up to multiples of it."""

RANGES: Final = (10_240, 1_024)
"""Where a wider range of source ports may begin: rather above most of the ports that programs listen on."""

LAST_PORT: Final = 65_535

MIB: Final = 1 << 20

MOST_SOURCES: Final = 256
"""Addresses that `src=` takes."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """Lines for /etc/sysctl.d and for the [Service] section of a drop-in, and what no line can do."""

    sysctls: dict[str, str] = field(default_factory=dict)
    service: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def remedy(facts: Facts, limit: Limit, wanted: int) -> Remedy:
    """What makes `limit` allow the `wanted` sessions."""
    return _REMEDIES[limit.key](facts, wanted)


def merged(remedies: Iterable[Remedy]) -> Remedy:
    """All of them: where two ask for the same, the larger one counts."""
    sysctls: dict[str, str] = {}
    service: dict[str, str] = {}
    words: list[str] = []
    for each in remedies:
        for found, lines in ((sysctls, each.sysctls), (service, each.service)):
            for name, value in lines.items():
                before = found.get(name, value)
                found[name] = max(before, value, key=_magnitude) if before != value else value
        words += [word for word in each.words if word not in words]
    return Remedy(sysctls, service, tuple(words))


def _magnitude(value: str) -> float:
    return math.inf if value == "infinity" else float(value) if value.isdigit() else 0.0


def rounded(number: float) -> int:
    """At least that, as a figure that looks chosen."""
    return math.ceil(number / STEP) * STEP


def reserved(facts: Facts, first: int, last: int) -> dict[str, str]:
    """The line that keeps the ports that are listened on out of a range of source ports, if one is needed."""
    name = "net.ipv4.ip_local_reserved_ports"
    before = ports(facts.machine.sysctls.get(name, ""))
    listening = facts.machine.listening | facts.demand.ports | facts.demand.datagram_ports
    after = before | {port for port in listening if first <= port <= last}
    return {} if after == before else {name: port_list(after)}


def _max_connections(facts: Facts, wanted: int) -> Remedy:
    return Remedy(words=(f"max-connections {wanted} at {facts.demand.connections_origin}",))


def _forwards(facts: Facts, wanted: int) -> Remedy:
    return Remedy(words=(f"the limits of the forwards in {facts.demand.file}: {wanted:,} together",))


def _ports(facts: Facts, wanted: int) -> Remedy:
    machine = facts.machine
    name = "net.ipv4.ip_local_port_range"
    present = machine.number(name)
    held, lines, after = source_ports(facts).sessions, {}, facts
    for first in RANGES:
        low = first if present is None else min(first, present)
        lines = {name: f"{low} {LAST_PORT}", **reserved(facts, low, LAST_PORT)}
        after = Facts(machine.with_sysctls(lines), facts.demand, facts.program)
        held = source_ports(after).sessions
        if held is None or held >= wanted:
            return Remedy(lines)
    if machine.sysctls.get(name, "").split() == lines[name].split():
        del lines[name]
    words = f"source ports: the widest range is good for {held or 0:,} sessions."
    if (each := ports_of(after)) is not None and (times := _times(facts, each, wanted)) is not None:
        words += (
            " Every source address has as many again for the same backend: src= with a pool of "
            f"{times} addresses where there is one, or {times} times as many backends."
        )
    return Remedy(lines, words=(words,))


def _times(facts: Facts, each: dict[str, int], wanted: int) -> int | None:
    """With how many source addresses in place of one there are ports for so many sessions."""
    for times in range(2, MOST_SOURCES + 1):
        held = together(facts.demand.ways, {kind: count * times for kind, count in each.items()})
        if held is None or held >= wanted:
            return times
    return None


def file_limit_for(facts: Facts, wanted: int) -> int:
    """A limit of descriptors with which the workers have room for so many sessions."""
    needed = share(wanted, facts.workers) * facts.files_of_session
    limit = rounded(needed + facts.files_of_worker(most_pipes(needed)))
    while limit - facts.files_of_worker(most_pipes(limit)) < needed:
        limit += STEP
    return limit


def _file_limit(facts: Facts, limit: int) -> Remedy:
    sysctls = {}
    most = facts.machine.number("fs.nr_open")
    if most is not None and limit > most:
        sysctls["fs.nr_open"] = str(limit)
    return Remedy(sysctls, {"LimitNOFILE": str(limit)})


def _descriptors(facts: Facts, wanted: int) -> Remedy:
    return _file_limit(facts, file_limit_for(facts, wanted))


def _supervisor(facts: Facts, wanted: int) -> Remedy:
    return _file_limit(facts, rounded(files_of_supervisor(facts)))


def _files(facts: Facts, wanted: int) -> Remedy:
    return Remedy({"fs.file-max": str(rounded(files_beside(facts) + facts.files_of_session * wanted))})


def _conntrack(facts: Facts, wanted: int) -> Remedy:
    entries = rounded((tracked_beside(facts) or 0) + 2 * wanted)
    lines = {"net.netfilter.nf_conntrack_max": str(entries)}
    buckets = facts.machine.number("net.netfilter.nf_conntrack_buckets")
    if buckets is not None and buckets < entries:  # one for each entry, as the kernel does it by itself
        lines["net.netfilter.nf_conntrack_buckets"] = str(entries)
    return Remedy(lines)


def _memory(facts: Facts, wanted: int) -> Remedy:
    needed = max(0, wanted - facts.now) * facts.memory_of_session
    found = []
    for room, group in rooms(facts):
        if (missing := needed - room) <= 0:
            continue
        if group is None:
            found.append(Remedy(words=(f"memory: {size(missing)} more than this machine has",)))
        else:
            setting = "MemoryHigh" if group.source.endswith("memory.high") else "MemoryMax"
            found.append(_group(group, setting, str(math.ceil((group.limit + missing) / MIB) * MIB)))
    return merged(found)


def _group(group: GroupLimit, setting: str, value: str) -> Remedy:
    """A line for the unit whose group it is; of another one only who made it can say where it is set."""
    directory = group.source.rpartition("/")[0]
    if directory.endswith(".service"):
        return Remedy(service={setting: value})
    return Remedy(words=(f"{setting} of what made {directory}: {value}",))


def _watches(facts: Facts, wanted: int) -> Remedy:
    needed = watches_beside(facts) + facts.files_of_session * wanted
    return Remedy({"fs.epoll.max_user_watches": str(rounded(needed))})


def _processes(facts: Facts, wanted: int) -> Remedy:
    needed = processes_needed(facts)
    found = []
    groups = {each.source: each for each in facts.machine.group("pids")}
    for most, source in process_limits(facts):
        if most >= needed:
            continue
        if source in groups:
            found.append(_group(groups[source], "TasksMax", "infinity"))
        elif source == facts.resource_source("u"):
            found.append(Remedy(service={"LimitNPROC": str(rounded(needed))}))
        else:
            found.append(Remedy({source: str(rounded(needed))}))
    return merged(found)


_REMEDIES: Final[dict[str, Callable[[Facts, int], Remedy]]] = {
    "max-connections": _max_connections,
    "forwards": _forwards,
    "ports": _ports,
    "descriptors": _descriptors,
    "files": _files,
    "conntrack": _conntrack,
    "memory": _memory,
    "watches": _watches,
    "supervisor": _supervisor,
    "processes": _processes,
}
