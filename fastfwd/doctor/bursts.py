"""What a machine takes at once and a second, beside the sessions that it holds. Pure; for doctor/report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastfwd.doctor.capacity import TIME_WAIT, Facts, most_pipes, ports_of, tracked_beside
from fastfwd.doctor.machine import Machine
from fastfwd.model import Protocol
from fastfwd.observe.terminal import size
from fastfwd.relay.pipes import SIZE
from fastfwd.supervisor.listeners import BACKLOG, DATAGRAMS
from fastfwd.worker.main import FILL

SYS_RESOURCE: Final = 1 << 24
NET_ADMIN: Final = 1 << 12
NET_BIND_SERVICE: Final = 1 << 10
"""capabilities(7)."""

REUSE_EVERYWHERE: Final = 1
"""net.ipv4.tcp_tw_reuse: 2, the default, is for loopback only."""


@dataclass(frozen=True, slots=True)
class Burst:
    """`value` is what there is room for; `source` where that was read."""

    name: str
    value: str
    source: str


def bursts(facts: Facts) -> list[Burst]:
    """All of them; what is not known is left out."""
    found = [
        *(_backlog(facts), _connections(facts), _tracked(facts), _stalled(facts)),
        *(_splicing(facts), _datagrams(facts), _processors(facts)),
    ]
    return [each for each in found if each is not None]


def _backlog(facts: Facts) -> Burst | None:
    longest = facts.machine.number("net.core.somaxconn")
    if longest is None or not facts.demand.streams:
        return None
    wanted = BACKLOG if facts.demand.backlog is None else facts.demand.backlog
    return Burst("clients that wait, for each worker", f"{min(longest, wanted):,}", "net.core.somaxconn")


def _connections(facts: Facts) -> Burst | None:
    """To the backend with the fewest sources. A connection that the client ends is closed by us first towards
    the backend, so that our port waits."""
    each = ports_of(facts)
    sources: dict[tuple[str | int, ...], int] = {}
    for way in facts.demand.ways:
        if way.protocol is Protocol.TCP:
            for pool in way.pools or ():
                sources[pool[2:]] = sources.get(pool[2:], 0) + 1
    if each is None or not sources:
        return None
    # After a second in TIME_WAIT, instead of all of it (net.ipv4.tcp_tw_reuse_delay).
    reuse = facts.machine.number("net.ipv4.tcp_tw_reuse") == REUSE_EVERYWHERE
    rate = each["tcp"] * min(sources.values()) // (1 if reuse else TIME_WAIT)
    return Burst("connections/s, one backend", f"{rate:,}", "net.ipv4.tcp_tw_reuse")


def _tracked(facts: Facts) -> Burst | None:
    most = facts.machine.number("net.netfilter.nf_conntrack_max")
    seconds = facts.machine.number("net.netfilter.nf_conntrack_tcp_timeout_time_wait")
    others = tracked_beside(facts)
    if most is None or others is None or not seconds or not facts.demand.streams:
        return None
    rate = max(0, most - others) // (2 * seconds)
    return Burst("connections/s, conntrack", f"{rate:,}", "net.netfilter.nf_conntrack_max")


def _stalled(facts: Facts) -> Burst | None:
    """One direction of each: what we have received waits, and what we have sent is not taken."""
    pages = facts.machine.number("net.ipv4.tcp_mem", 2)
    received = facts.machine.number("net.ipv4.tcp_rmem", 2)
    sent = facts.machine.number("net.ipv4.tcp_wmem", 2)
    if pages is None or received is None or sent is None or not facts.demand.streams:
        return None
    sessions = pages * facts.machine.page // max(1, received + sent)
    return Burst("stalled, buffers full", f"{sessions:,}", "net.ipv4.tcp_mem, tcp_rmem, tcp_wmem")


def pipes(facts: Facts) -> int | None:
    """Pipes of SIZE that all workers together can have."""
    machine = facts.machine
    limit, soft = facts.file_limit, machine.number("fs.pipe-user-pages-soft")
    if limit is None or soft is None:
        return None
    most = facts.workers * most_pipes(limit)
    granted = soft // max(1, SIZE // machine.page) if soft else most
    # Who may go over the limits opens FILL pipes for each worker before it gives that right up, in the
    # name of another account.
    before = facts.workers * min(FILL, most_pipes(limit)) if _has(machine, SYS_RESOURCE) else 0
    return min(most, before + granted)


def _splicing(facts: Facts) -> Burst | None:
    most = pipes(facts)
    if most is None or not facts.demand.streams:
        return None
    return Burst("directions that splice", f"{most:,}", "fs.pipe-user-pages-soft")


def room(facts: Facts) -> int | None:
    """Bytes of datagrams that may wait in a socket."""
    if _has(facts.machine, NET_ADMIN):
        return DATAGRAMS
    sizes = [facts.machine.number(name) for name in ("net.core.rmem_max", "net.core.wmem_max")]
    return min([DATAGRAMS, *(each for each in sizes if each is not None)]) if None not in sizes else None


def _datagrams(facts: Facts) -> Burst | None:
    held = room(facts)
    if held is None or not facts.demand.datagrams:
        return None
    return Burst("datagrams that wait in a socket", size(held), "net.core.rmem_max, wmem_max")


def _processors(facts: Facts) -> Burst | None:
    usable = facts.machine.usable_processors
    if usable is None:
        return None
    return Burst(
        "processors",
        f"{usable:g} for {facts.workers}",
        "nproc" if facts.program is None else f"/proc/{facts.machine.pid}/status",
    )


def _has(machine: Machine, capability: int) -> bool:
    return machine.capabilities is None or bool(machine.capabilities & capability)
