"""What is wrong between the lines of a configuration: listeners in each other's way, forwards that lead back.

Called by load with nothing resolved yet, and by the supervisor once names are
known. Pure: what names mean and which addresses are this host's own is handed
in, and what is not known is not judged.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from fastfwd.config.resolve import numeric
from fastfwd.config.wording import expected, place, quote
from fastfwd.model import Address, Backend, Config, Forward, Origin, Problem, Protocol

MOST_PORTS: Final = 4096
"""Ports of all ranges together."""

Addresses = Mapping[str, Sequence[Address]]
IsLocal = Callable[[Address], bool]

_ANY4 = Address(socket.AF_INET, "0.0.0.0")
_ANY6 = Address(socket.AF_INET6, "::")
# connect(2) to "any" reaches this host's loopback.
_LOOPBACK = {_ANY4: Address(socket.AF_INET, "127.0.0.1"), _ANY6: Address(socket.AF_INET6, "::1")}


def check(config: Config, *, addresses: Addresses, is_local: IsLocal) -> list[Problem]:
    """Every conflict between the forwards, in file order; each problem names the other line.

    Args:
        config: as `parse` made it.
        addresses: what host names (as written) resolve to, in the resolver's order. A name
            that is missing or has no address is not judged. A bind name listens on its first
            address, as in rinetd; a connect name may be dialled on any of them.
        is_local: whether an address belongs to this host. Asked only when it matters.
    """
    problems = [
        *_mixed(config),
        *_too_many(config),
        *_conflicts(config, addresses),
        *_metrics(config, addresses),
        *_sources(config, addresses),
        *_loops(config, addresses, is_local),
    ]
    order = {file: number for number, file in enumerate(config.files)}
    return sorted(problems, key=lambda each: (order.get(each.origin.file, 0), each.origin.line))


def _parts(config: Config) -> list[Forward]:
    """Forwards of one port each."""
    return [part for forward in config.forwards for part in forward.parts()]


def _resolved(host: str, addresses: Addresses) -> list[Address]:
    address = numeric(host)
    return list(addresses.get(host, ())) if address is None else [address]


def _listening(forward: Forward, addresses: Addresses) -> Address | None:
    resolved = _resolved(forward.listen.host, addresses)
    return _unmapped(resolved[0]) if resolved else None


def _unmapped(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped one stands for: the kernel has one port space for both."""
    _, mapped, ipv4 = address.text.partition("::ffff:")
    return Address(socket.AF_INET, ipv4) if mapped and "." in ipv4 else address


def _wildcards(address: Address) -> tuple[Address, ...]:
    """What else a listener may be bound to that takes in `address`; `::` is dual-stack in rinetd."""
    if address.family == socket.AF_UNIX:
        return ()
    return (_ANY4, _ANY6) if address.family == socket.AF_INET else (_ANY6,)


def _mixed(config: Config) -> Iterator[Problem]:
    for forward in config.forwards:
        for backend in forward.backends:
            ends = (forward.listen, backend.endpoint)
            if ends[0].protocol is ends[1].protocol:
                continue
            if any(end.unix for end in ends):
                wanted, found = "'/tcp' with a Unix socket", next(end for end in ends if not end.unix)
            else:
                wanted, found = f"'/{ends[0].protocol.value}' on both sides", ends[1]
            yield Problem(forward.origin, expected(wanted, str(found)))
            break


def _too_many(config: Config) -> Iterator[Problem]:
    ranges = [forward for forward in config.forwards if forward.listen.last is not None]
    count = 0
    for forward in ranges:
        count += len(forward.listen.ports)
        if count > MOST_PORTS:
            yield Problem(
                forward.origin,
                f"expected at most {MOST_PORTS} ports in ranges, found {count}: each is a socket in every "
                "worker. Have nftables redirect them to one port, and forward that one with 'port=original'",
            )
            return


def _conflicts(config: Config, addresses: Addresses) -> Iterator[Problem]:
    taken: dict[tuple[Protocol, int], dict[Address | str, Forward]] = {}
    told: set[tuple[Origin, Origin]] = set()
    for forward in _parts(config):
        listen = forward.listen
        if listen.port == 0 and not listen.unix:
            continue
        # A name that is not resolved yet still clashes with itself.
        key = _listening(forward, addresses) or listen.host.lower()
        others = taken.setdefault((listen.protocol, listen.port), {})
        other, how = _clash(key, others)
        if other is not None and (forward.origin, other.origin) not in told:
            told.add((forward.origin, other.origin))
            yield Problem(
                forward.origin,
                f"expected a listener of its own, found '{listen}', {how} '{other.listen}' of "
                f"{place(other.origin, forward.origin)}",
            )
        others.setdefault(key, forward)


def _metrics(config: Config, addresses: Addresses) -> Iterator[Problem]:
    """The exporter's port must not be a forward's."""
    metrics = config.metrics
    if metrics is None or metrics.path is not None or metrics.port == 0:
        return
    address = numeric(metrics.host)
    assert address is not None  # parse sees to it
    for forward in config.forwards:
        if forward.listen.protocol is not Protocol.TCP or metrics.port not in forward.listen.ports:
            continue
        listening = _listening(forward, addresses)
        other, how = _clash(_unmapped(address), {listening: forward} if listening else {})
        if other is not None:
            yield Problem(
                config.origin("metrics"),
                f"expected a metrics port of its own, found '{metrics}', {how} '{forward.listen}' of "
                f"{place(forward.origin, config.origin('metrics'))}",
            )


def _clash(key: Address | str, others: Mapping[Address | str, Forward]) -> tuple[Forward | None, str]:
    if key in others:
        return others[key], "the same as"
    if isinstance(key, Address):
        for wildcard in _wildcards(key):
            if wildcard in others:
                return others[wildcard], "which is taken in by"
        if key in (_ANY4, _ANY6):
            for other, forward in others.items():
                if isinstance(other, Address) and key in _wildcards(other):
                    return forward, "which takes in"
    return None, ""


def _sources(config: Config, addresses: Addresses) -> Iterator[Problem]:
    for forward in config.forwards:
        for backend in forward.backends:
            host, sources = backend.endpoint.host, backend.sources
            ours = {each.family for source in sources for each in _resolved(source, addresses)}
            theirs = {each.family for each in _resolved(host, addresses)}
            if backend.endpoint.unix and sources:
                what = "'src' with an address to dial, which a Unix socket has not"
                yield Problem(forward.origin, expected(what, host))
            elif ours and theirs and not ours & theirs:
                version = "IPv6" if socket.AF_INET6 in theirs else "IPv4"
                yield Problem(
                    forward.origin,
                    f"expected an {version} address after 'src=' to dial {quote(host)} from, "
                    f"found {quote(sources[0])}",
                )


def _loops(config: Config, addresses: Addresses, is_local: IsLocal) -> Iterator[Problem]:
    forwards = _parts(config)
    following = _following(forwards, addresses, is_local)
    told: set[Origin] = set()
    for cycle in _cycles(following):
        path = [forwards[index] for index in cycle]
        last = max(path, key=lambda forward: forward.origin.line)
        if last.origin in told:  # another port of its range
            continue
        told.add(last.origin)
        turn = path.index(last)
        places = [place(each.origin, last.origin) for each in path[turn + 1 :] + path[: turn + 1]]
        if len(path) == 1:
            way = f"the listener '{last.listen}' of {places[0]} itself"
        else:
            way = "which comes back through " + " -> ".join(places)
        yield Problem(last.origin, f"expected a target elsewhere, found '{last.target}', {way}")


def _following(forwards: Sequence[Forward], addresses: Addresses, is_local: IsLocal) -> list[list[int]]:
    """For every forward, the indices of those that would accept what it dials."""
    listeners: dict[tuple[Protocol, int], dict[Address, int]] = {}
    for index, forward in enumerate(forwards):
        address = _listening(forward, addresses)
        if address is not None and (forward.listen.port != 0 or forward.listen.unix):
            near = listeners.setdefault((forward.listen.protocol, forward.listen.port), {})
            near.setdefault(address, index)
    following = []
    for forward in forwards:
        found: list[int | None] = []
        for backend in forward.backends:
            near = listeners.get((backend.endpoint.protocol, backend.endpoint.port), {})
            if near:
                dialled = _dialled(backend, addresses)
                found += [_accepting(near, address, is_local) for address in dialled]
        following.append([index for index in dict.fromkeys(found) if index is not None])
    return following


def _accepting(listeners: Mapping[Address, int], address: Address, is_local: IsLocal) -> int | None:
    if address in listeners:
        return listeners[address]
    for wildcard in _wildcards(address):
        if wildcard in listeners and is_local(address):
            return listeners[wildcard]
    return None


def _dialled(backend: Backend, addresses: Addresses) -> list[Address]:
    found = [_unmapped(address) for address in _resolved(backend.endpoint.host, addresses)]
    return [_LOOPBACK.get(address, address) for address in found]


def _cycles(following: list[list[int]]) -> Iterator[list[int]]:
    """One cycle for every edge that closes one, in a depth-first walk without recursion."""
    done: set[int] = set()
    for start in range(len(following)):
        path: dict[int, None] = {}  # in order, and quick to search
        ahead = [iter([start])]
        while ahead:
            index = next(ahead[-1], None)
            if index is None:
                ahead.pop()
                if path:
                    done.add(path.popitem()[0])
            elif index in path:
                way = list(path)
                yield way[way.index(index) :]
            elif index not in done:
                path[index] = None
                ahead.append(iter(following[index]))
