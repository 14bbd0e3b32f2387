"""What a configuration asks of its machine: processes, listeners, where source ports come from, own limits.

doctor/command makes a Demand with the addresses that it has looked up; doctor/capacity sets it against the
Machine. Pure.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastfwd.config.resolve import numeric
from fastfwd.model import Address, Backend, Config, Endpoint, Forward, Origin, Protocol

Addresses = Mapping[str, Sequence[Address]]

Pool = tuple[str | int, ...]
"""What has a set of source ports of its own. Over TCP a source address and a backend's address and port;
over UDP the source address alone, since such a socket has its port before it is connected."""

ANY: Final = "*"
"""The source that the kernel chooses."""


@dataclass(frozen=True, slots=True)
class Way:
    """A forward: its `own` limit, None if it has none, and the `pools` of its backends; None where ports are
    no limit, since each client, or each port asked for, has others."""

    label: str
    protocol: Protocol
    origin: Origin
    own: int | None
    pools: frozenset[Pool] | None


@dataclass(frozen=True, slots=True)
class Demand:
    """`workers` None: one per processor. `streams` and `datagrams` are the places that are listened on, each
    a socket in every worker; `files` are those that every worker holds besides; `exporter` and `resolver` say
    whether there is one. `ports` and `datagram_ports` are listened on. `tls` is the most sides of a session
    that are encrypted. `stands_in` says that there is no configuration, and this is what one usually asks."""

    file: str
    ways: tuple[Way, ...]
    workers: int | None
    streams: int
    datagrams: int
    files: int
    exporter: bool
    resolver: bool
    connections: int | None
    connections_origin: Origin
    backlog: int | None
    ports: frozenset[int]
    datagram_ports: frozenset[int]
    tls: int
    stands_in: bool

    @property
    def places(self) -> int:
        """All that is listened on."""
        return self.streams + self.datagrams


def demand(config: Config, addresses: Addresses, *, stands_in: bool = False) -> Demand:
    """What `config` asks for. A host that is not in `addresses` counts as one address."""
    parts = [part for forward in config.forwards for part in forward.parts()]
    streams = [part for part in parts if part.listen.protocol is Protocol.TCP]
    datagrams = [part for part in parts if part.listen.protocol is Protocol.UDP]
    hosts = {part.listen.host for part in parts} | {host for part in parts for host in part.hosts}
    tls = ((each.tls_accept is not None) + (each.tls_connect is not None) for each in parts)
    return Demand(
        file=config.file,
        ways=tuple(_way(config, forward, addresses) for forward in config.forwards),
        workers=config.workers,
        streams=len(streams),
        datagrams=len(datagrams),
        files=int(config.logfile is not None),
        exporter=config.metrics is not None,
        resolver=any(numeric(host) is None for host in hosts),
        connections=config.limits.connections,
        connections_origin=config.origin("max-connections"),
        backlog=config.backlog,
        ports=frozenset(port for part in streams for port in _port(part)),
        datagram_ports=frozenset(port for part in datagrams for port in _port(part)),
        tls=max(tls, default=0),
        stands_in=stands_in,
    )


def usual(file: str) -> Demand:
    """What one forward to one backend would ask for, in place of a `file` that cannot be used."""
    listen, target = (
        Endpoint(host, port, Protocol.TCP) for host, port in (("0.0.0.0", 0), ("192.0.2.1", 80))
    )
    forward = Forward(listen, (Backend(target),), Origin(file, 0))
    return demand(Config(file, (forward,)), {}, stands_in=True)


def _port(part: Forward) -> list[int]:
    return [part.listen.port] if part.listen.port and not part.listen.unix else []


def _way(config: Config, forward: Forward, addresses: Addresses) -> Way:
    own = forward.max_connections
    if forward.listen.protocol is Protocol.UDP:
        own = min(config.limits.udp_connections, own or config.limits.udp_connections)
    pools: frozenset[Pool] | None = None
    if not (forward.transparent or forward.original_port or any(b.endpoint.unix for b in forward.backends)):
        parts = forward.parts()
        pools = frozenset(
            pool
            for part in parts
            for backend in part.backends
            for pool in _pools(config, backend, part.listen.protocol, addresses)
        )
    return Way(forward.label, forward.listen.protocol, forward.origin, own, pools)


def _pools(config: Config, backend: Backend, protocol: Protocol, addresses: Addresses) -> Iterator[Pool]:
    sources = [source for host in backend.sources for source in _resolved(host, addresses)]
    for address in _resolved(backend.endpoint.host, addresses):
        if config.dns_family not in (None, address.family) and address.family != socket.AF_UNSPEC:
            continue
        near = (address.family, socket.AF_UNSPEC) if address.family != socket.AF_UNSPEC else None
        fitting = {each.text for each in sources if near is None or each.family in near}
        for source in fitting if backend.sources else {ANY}:
            if protocol is Protocol.UDP:
                yield "udp", source
            else:
                yield "tcp", source, address.text, backend.endpoint.port


def _resolved(host: str, addresses: Addresses) -> list[Address]:
    if (address := numeric(host)) is not None:
        return [address]
    return list(addresses.get(host, ())) or [Address(socket.AF_UNSPEC, host)]
