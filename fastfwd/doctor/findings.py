"""What is wrong, or will be one day, whatever the number of sessions. Pure; for doctor/report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fastfwd.config.wording import counted
from fastfwd.doctor.bursts import NET_BIND_SERVICE, room
from fastfwd.doctor.capacity import Facts, tracked_beside
from fastfwd.doctor.machine import port_list, ports
from fastfwd.doctor.remedy import Remedy, reserved
from fastfwd.supervisor.listeners import DATAGRAMS

SOMAXCONN: Final = 4096
"""The kernel's default since 5.4; before that it was 128."""

CROWDED: Final = 8
"""Entries for each bucket of conntrack's table, from which on looking one up is slow."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence without its full stop, and what to do about it."""

    text: str
    remedy: Remedy = field(default_factory=Remedy)


def findings(facts: Facts) -> list[Finding]:
    """All that there is to say."""
    found = [
        *(_elsewhere(facts), _low_ports(facts), _overlap(facts), _processors(facts), _somaxconn(facts)),
        *(_syn_backlog(facts), _datagrams(facts), _conntrack(facts), _buckets(facts)),
    ]
    return [each for each in found if each is not None]


def _elsewhere(facts: Facts) -> Finding | None:
    if facts.machine.here:
        return None
    pid = facts.machine.pid
    return Finding(
        f"process {pid} has another network namespace, whose sysctls are not shown here: "
        f"nsenter -t {pid} -n fastfwd --doctor ... shows them"
    )


def _low_ports(facts: Facts) -> Finding | None:
    start = facts.machine.number("net.ipv4.ip_unprivileged_port_start")
    held = facts.machine.capabilities
    low = {each for each in facts.demand.ports | facts.demand.datagram_ports if start and each < start}
    # A running program has bound them.
    if not low or held is None or held & NET_BIND_SERVICE or facts.program is not None:
        return None
    return Finding(
        f"port {min(low)} cannot be listened on without rights: below {start} "
        "(net.ipv4.ip_unprivileged_port_start)",
        Remedy(service={"AmbientCapabilities": "CAP_NET_BIND_SERVICE"}),
    )


def _overlap(facts: Facts) -> Finding | None:
    first, last = (facts.machine.number("net.ipv4.ip_local_port_range", place) for place in (0, 1))
    if first is None or last is None:
        return None
    kept = ports(facts.machine.sysctls.get("net.ipv4.ip_local_reserved_ports", ""))
    ours = {
        each
        for each in facts.demand.ports | facts.demand.datagram_ports
        if first <= each <= last and each not in kept
    }
    if not ours:
        return None
    listed = port_list(ours)
    return Finding(
        f"the kernel may take {'port ' if len(ours) == 1 else 'ports '}{listed} for an outgoing connection, "
        f"of anybody ({first}-{last}, net.ipv4.ip_local_port_range); then a start finds it in use",
        Remedy(reserved(facts, first, last)),
    )


def _processors(facts: Facts) -> Finding | None:
    usable = facts.machine.usable_processors
    if usable is None or facts.workers <= max(1, round(usable)):
        return None
    return Finding(f"{counted(facts.workers, 'worker')} on {usable:g} processors take turns")


def _somaxconn(facts: Facts) -> Finding | None:
    longest = facts.machine.number("net.core.somaxconn")
    if longest is None or not facts.demand.streams:
        return None
    wanted = facts.demand.backlog or SOMAXCONN
    if longest >= min(wanted, 65_535):
        return None
    return Finding(
        f"accept queues end at {longest:,} clients (net.core.somaxconn): a burst loses those that follow",
        Remedy({"net.core.somaxconn": str(wanted)}),
    )


def _syn_backlog(facts: Facts) -> Finding | None:
    half_open = facts.machine.number("net.ipv4.tcp_max_syn_backlog")
    longest = facts.machine.number("net.core.somaxconn")
    if facts.machine.number("net.ipv4.tcp_syncookies") != 0 or half_open is None or longest is None:
        return None
    if half_open >= longest or not facts.demand.streams:
        return None
    return Finding(
        f"without SYN cookies a flood of {half_open:,} SYNs keeps clients out (net.ipv4.tcp_syncookies)",
        Remedy({"net.ipv4.tcp_syncookies": "1", "net.ipv4.tcp_max_syn_backlog": str(longest)}),
    )


def _datagrams(facts: Facts) -> Finding | None:
    held = room(facts)
    if held is None or held >= DATAGRAMS or not facts.demand.datagrams:
        return None
    low = [
        name
        for name in ("net.core.rmem_max", "net.core.wmem_max")
        if (facts.machine.number(name) or 0) < DATAGRAMS
    ]
    return Finding(
        f"UDP sockets have room for {held:,} bytes instead of {DATAGRAMS:,} (net.core.rmem_max, wmem_max)",
        Remedy({name: str(DATAGRAMS) for name in low}),
    )


def _conntrack(facts: Facts) -> Finding | None:
    most = facts.machine.number("net.netfilter.nf_conntrack_max")
    count = facts.machine.number("net.netfilter.nf_conntrack_count")
    if not most or count is None or count < 0.8 * most:
        return None
    return Finding(
        f"conntrack has {count:,} of {most:,} entries: when it is full, packets are dropped",
        Remedy({"net.netfilter.nf_conntrack_max": str(2 * most)}),
    )


def _buckets(facts: Facts) -> Finding | None:
    most = facts.machine.number("net.netfilter.nf_conntrack_max")
    buckets = facts.machine.number("net.netfilter.nf_conntrack_buckets")
    if not most or not buckets or most <= CROWDED * buckets or tracked_beside(facts) is None:
        return None
    return Finding(
        f"conntrack has {buckets:,} buckets for {most:,} entries (net.netfilter.nf_conntrack_buckets)",
        Remedy({"net.netfilter.nf_conntrack_buckets": str(most)}),
    )
