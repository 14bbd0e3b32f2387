"""Which host has which addresses: the supervisor's book, filled by the resolver.

Numeric hosts are in it at once. A name keeps its last known addresses when a later
lookup fails: an old address is better than none. supervisor/main asks and passes
changes on; nothing here waits.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fastfwd.channel import Message
from fastfwd.config.resolve import numeric
from fastfwd.model import Address, Config, Forward, Problem

AGAIN: Final = 5.0
"""Seconds between two questions about a name that dials complain of."""

RETRY: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a failed lookup is tried again; the last one goes on."""

ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""The interface of a link-local address, as far as one is used for that."""

log = logging.getLogger("fastfwd")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a name has no new addresses. `definitive`: it does not exist."""

    reason: str
    definitive: bool


class Names:
    """Answers are taken one by one; nothing about a host that was not asked for is believed."""

    def __init__(self, ask: Callable[[str], None]) -> None:
        """`ask(host)` sends a question to the resolver."""
        self._ask = ask
        self.addresses: dict[str, list[Address]] = {}
        self.failures: dict[str, Failure] = {}
        self.resolved: dict[str, int] = {}
        """When a name was last looked up with success, in nanoseconds since the epoch."""
        self._waiting: set[str] = set()
        self._dropped: set[str] = set()
        self._due: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._asked: dict[str, float] = {}
        self._periods: dict[str, int] = {}

    def want(self, periods: Mapping[str, int]) -> None:
        """Look up every name now; numeric hosts are entered as they are. `periods` says for how
        many seconds an answer about each holds; 0: until somebody asks again."""
        self._periods.update(periods)
        for host in periods:
            if (address := numeric(host)) is not None:
                self.addresses[host] = [address]
            else:
                self.addresses.setdefault(host, [])
                self.failures.pop(host, None)
                self._question(host)

    def waiting(self, hosts: Iterable[str]) -> bool:
        """Whether an answer about one of `hosts` is still to come."""
        return not self._waiting.isdisjoint(hosts)

    def answer(self, message: Message, now: float) -> str | None:
        """Take the resolver's `message`. Returns the host if its addresses have changed.
        Raises ValueError for what no resolver of ours sends."""
        host = message.get("host")
        if isinstance(host, str) and host in self._dropped:
            self._dropped.discard(host)
            return None
        if not isinstance(host, str):
            raise ValueError(f"an answer to a question nobody asked: {type(host).__name__}")
        if host not in self._waiting:
            raise ValueError(f"an answer to a question nobody asked: {host!r}")
        self._waiting.discard(host)
        if message["op"] == "failed":
            tries = self._tries[host] = self._tries.get(host, 0) + 1
            self._due[host] = now + RETRY[min(tries, len(RETRY)) - 1]
            reason = message.get("reason")
            if not isinstance(reason, str) or not reason.isprintable():
                raise ValueError(f"no reason why there is no {host}")
            self.failures[host] = Failure(reason, message.get("definitive") is True)
            return None
        if period := self._periods.get(host):
            self._due[host] = now + period
        self.resolved[host] = time.time_ns()
        addresses = [_address(family, text) for family, text in message["addresses"]]
        self._tries.pop(host, None)
        self.failures.pop(host, None)
        # A name server rotates its answers; the same set in another order is no news.
        if set(addresses) == set(self.addresses[host]):
            return None
        self.addresses[host] = addresses
        return host

    def refresh(self, now: float) -> None:
        """Ask again for what is due at `now`."""
        for host, due in list(self._due.items()):
            if due <= now:
                self._question(host)

    def suspect(self, host: object, now: float) -> None:
        """Dials to `host`, so a worker says, fail: its addresses may be old."""
        if (
            isinstance(host, str)
            and numeric(host) is None
            and host in self.addresses
            and now >= self._asked.get(host, -AGAIN) + AGAIN
        ):
            self._asked[host] = now
            self._question(host)

    def ask_again(self) -> None:
        """Repeat every open question, to a resolver that has taken a dead one's place."""
        for host in self._waiting:
            self._ask(host)

    def keep(self, periods: Mapping[str, int]) -> None:
        """Forget every host but these, whose answers hold for so many seconds (see `want`)."""
        self._periods = dict(periods)
        wanted = set(periods)
        for book in (self.addresses, self.failures, self.resolved, self._due, self._tries, self._asked):
            for host in set(book) - wanted:
                del book[host]
        self._dropped |= self._waiting - wanted
        self._waiting &= wanted

    def _question(self, host: str) -> None:
        self._due.pop(host, None)
        if host not in self._waiting:
            self._waiting.add(host)
            if host in self._dropped:  # the question is still out
                self._dropped.discard(host)
            else:
                self._ask(host)


def dialled(config: Config) -> set[str]:
    """Every host a configuration's forwards dial, or dial from."""
    return {host for forward in config.forwards for host in forward.hosts}


def bound(config: Config) -> set[str]:
    """Every host a configuration's forwards listen on."""
    return {forward.listen.host for forward in config.forwards}


def periods(config: Config) -> dict[str, int]:
    """Every host of a configuration, and how many seconds its addresses hold: as the forward that asks
    most often says. 0: until the next reload."""
    found: dict[str, set[int]] = {host: {config.dns_refresh} for host in bound(config)}
    for forward in config.forwards:
        for backend in forward.backends:
            own = config.dns_refresh if backend.dns_refresh is None else backend.dns_refresh
            for host in (backend.endpoint.host, *backend.sources):
                found.setdefault(host, set()).add(own)
    return {host: min(each - {0}, default=0) for host, each in found.items()}


def unbound(config: Config, names: Names) -> list[Problem]:
    """The forwards that have no address to listen on, their lookups having ended or had
    their time."""
    return [
        _unresolved(forward, forward.listen.host, names)
        for forward in config.forwards
        if not names.addresses.get(forward.listen.host)
    ]


def unreachable(config: Config, names: Names) -> list[Problem]:
    """The forwards that dial a name, or from one, that does not exist. One that could not
    be asked for yet is no mistake of the file: it is reported as a warning, and asked
    for again."""
    problems = []
    for forward in config.forwards:
        for host in sorted(forward.hosts):
            if names.addresses.get(host):
                continue
            failure = names.failures.get(host)
            if failure is not None and failure.definitive:
                problems.append(_unresolved(forward, host, names))
            else:
                log.warning("%s; trying again", _unresolved(forward, host, names))
    return problems


def _unresolved(forward: Forward, host: str, names: Names) -> Problem:
    failure = names.failures.get(host)
    reason = failure.reason if failure else "no answer from the name service yet"
    return Problem(forward.origin, f"expected a host that can be resolved, found '{host}': {reason}")


def _address(family: object, text: object) -> Address:
    if (
        type(family) is not int
        or family not in (socket.AF_INET, socket.AF_INET6)
        or not isinstance(text, str)
    ):
        raise ValueError(f"no address: a {type(family).__name__} and a {type(text).__name__}")
    bare, zoned, zone = text.partition("%")
    if zoned and (family != socket.AF_INET6 or not ZONE.fullmatch(zone)):
        raise ValueError(f"no address: {text!r}")
    try:
        socket.inet_pton(family, bare)
    except OSError:
        raise ValueError(f"no address: {text!r}") from None
    return Address(family, text)
