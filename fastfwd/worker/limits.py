"""Who is inside, over all workers: what the limits on connections are judged by.

worker/accept asks before it lets a client in, dial and session tell when one has gone.
The supervisor makes the census before the first fork; every worker has a part of it and
writes there only. A lock makes "look, then enter" one step for all workers, so that a
limit holds exactly; leaving takes none. It must never wait for a worker that stands still.
"""

from __future__ import annotations

import mmap
import socket
from collections.abc import Callable, Iterable
from typing import Final

from fastfwd.model import Limits, Outcome
from fastfwd.observe.scoreboard import ForwardCell, protect
from fastfwd.worker.lock import Lock
from fastfwd.worker.recall import Recall

WAYS: Final = 16
SETS: Final = 4096
"""A client's entry is in one of the WAYS places of the set that its key's hash names. Ten thousand
clients fill two or three of sixteen; only one in a million workers so full has a set that overflows."""

ENTRIES: Final = SETS * WAYS
KEY: Final = 16
HEADER: Final = 64
PART: Final = HEADER + ENTRIES * (4 + KEY)
"""Bytes of a worker's part: its connections (8 bytes used), its clients' counts, their keys. Only
what is used becomes memory."""

ACCEPTED: Final = int(ForwardCell.ACCEPTED)

LOCAL: Final = "unix"
"""What all clients of Unix sockets are called. They are of this host, and count as one."""

MAPPED: Final = bytes(10) + b"\xff\xff"
"""An IPv4 address as an IPv6 one (RFC 4291, 2.5.5.2)."""


def key(client: str) -> bytes:
    """Whom a numeric address counts as: an IPv4 address as itself, mapped or not; an IPv6 address as
    its /64, which is what a single host is given (RFC 6177, RFC 7421)."""
    if client == LOCAL:
        return LOCAL.encode().ljust(KEY, b"\0")
    if ":" not in client:
        return MAPPED + socket.inet_pton(socket.AF_INET, client)
    packed = socket.inet_pton(socket.AF_INET6, client.partition("%")[0])
    return packed if packed.startswith(MAPPED) else packed[:8] + bytes(8)


class Part:
    """What one worker says of its own connections."""

    def __init__(self, area: memoryview) -> None:
        """In `area`, PART bytes, 0 at first."""
        self._area = area
        self.inside = area[:8].cast("Q")
        """One cell: how many connections."""
        self._counts = area[HEADER : HEADER + 4 * ENTRIES].cast("I")
        self._keys = area[HEADER + 4 * ENTRIES :]

    def count(self, client: bytes) -> int:
        """The connections of the client with that key."""
        place = self._find(client)
        return 0 if place is None else self._counts[place]

    def add(self, client: bytes) -> None:
        """One more. Where the client's set is full, it is not counted."""
        place = self._find(client)
        if place is None:
            first = self._first(client)
            place = next((each for each in range(first, first + WAYS) if not self._counts[each]), None)
            if place is None:
                return
            self._keys[KEY * place : KEY * (place + 1)] = client
        self._counts[place] += 1

    def remove(self, client: bytes) -> None:
        """One less."""
        place = self._find(client)
        if place is not None and self._counts[place]:
            self._counts[place] -= 1

    def clear(self) -> None:
        """No connections at all."""
        if self.inside[0]:  # not otherwise: what is not touched is not memory
            self.inside[0] = 0
            self._area[HEADER : HEADER + 4 * ENTRIES] = bytes(4 * ENTRIES)

    @staticmethod
    def _first(client: bytes) -> int:
        # hash() has a secret of its own in every start, which the workers inherit: nobody can
        # choose addresses that fall into one set.
        return hash(client) % SETS * WAYS

    def _find(self, client: bytes) -> int | None:
        first = self._first(client)
        keys = bytes(self._keys[KEY * first : KEY * (first + WAYS)])
        at = keys.find(client)
        while at % KEY and at > 0:  # across two keys
            at = keys.find(client, at + 1)
        return None if at < 0 else first + at // KEY


class Census:
    """Every worker's part, in one anonymous mapping."""

    def __init__(self, slots: int) -> None:
        """Nobody is inside of any of the `slots`."""
        self._map = mmap.mmap(-1, slots * PART)
        area = memoryview(self._map)
        self.parts = [Part(area[slot * PART : (slot + 1) * PART]) for slot in range(slots)]
        self._lock = Lock("fastfwd-limits")
        self.recall = Recall(Lock("fastfwd-recall"))

    def lock(self) -> bool:
        """Keep the other workers out of here, until `unlock`. Returns False when there is nothing to
        unlock: nobody else is there, or one stands still in here."""
        return len(self.parts) > 1 and self._lock.take()

    def abandon(self) -> None:
        """In a child that is not a worker: let go of the lock, and be unable to write. Raises
        OSError."""
        self._lock.close()
        self.recall.abandon()
        protect(self._map)

    def unlock(self) -> None:
        """Let the others in again."""
        self._lock.give()


class Admission:
    """A worker's way in, while there is a limit on connections."""

    def __init__(self, census: Census, slot: int, limits: Limits, clients: Iterable[str]) -> None:
        """For the worker of `slot` that has connections of `clients` (one each) already."""
        self.limits = limits
        self._census = census
        self._part = census.parts[slot]
        self._part.clear()
        for client in clients:
            self._enter(key(client))

    def admit(
        self, client: str, row: memoryview, limit: int | None, active: Callable[[], int]
    ) -> Outcome | None:
        """Let a client in and count it, also in its forward's `row`, or say why not. `limit` is
        the forward's own, `active()` counts the forward's connections by all workers' rows."""
        limits, parts = self.limits, self._census.parts
        its_key = key(client)
        locked = self._census.lock()
        try:
            if limits.connections is not None and sum(each.inside[0] for each in parts) >= limits.connections:
                return Outcome.OVER_LIMIT
            if limit is not None and active() >= limit:
                return Outcome.OVER_LIMIT
            per_client = limits.connections_per_client
            if per_client is not None and sum(each.count(its_key) for each in parts) >= per_client:
                return Outcome.OVER_CLIENT_LIMIT
            self._enter(its_key)
            row[ACCEPTED] += 1
            return None
        finally:
            if locked:
                self._census.unlock()

    def leave(self, client: str) -> None:
        """One of the client's connections has ended."""
        self._part.inside[0] -= 1
        self._part.remove(key(client))

    def _enter(self, its_key: bytes) -> None:
        # Clients are counted whichever limit is set: a reload may bring the other one.
        self._part.inside[0] += 1
        self._part.add(its_key)
