"""Which of several backends a client gets, and which comes next if that one fails.

worker/main makes a Balancer where a forward has more than one backend; worker/accept and worker/udp
ask it for each client, worker/dial tells it of every dial. Each backend is a listener of its own, with
its own target and its own row on the scoreboard, which is where the workers see each other's
connections and each other's failures.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from time import monotonic_ns
from typing import Final, Generic, TypeVar
from zlib import crc32

from fastfwd.model import Balance, Forward
from fastfwd.observe.scoreboard import ForwardCell
from fastfwd.worker.limits import key
from fastfwd.worker.recall import Recall

L = TypeVar("L")
"""A Listener, or a UdpListener."""

DOWN_UNTIL: Final = int(ForwardCell.DOWN_UNTIL)
CHECKED_DOWN: Final = int(ForwardCell.CHECKED_DOWN)

MARK: Final = 0xFF_FFFF

AFFINITY: Final = b"b"
"""The kind of key under which a client's backend is remembered."""


class Member(Generic[L]):
    """One backend. `listener` is what its sessions are born with; `rows` are all slots' rows of it,
    the first of them this worker's."""

    def __init__(
        self,
        listener: L,
        weight: int,
        label: str,
        own: memoryview,
        rows: Sequence[memoryview],
        active: Callable[[], int],
    ) -> None:
        self.listener = listener
        self.weight = weight
        self.label = label.encode()
        self.mark = crc32(self.label) & MARK
        """What a client's backend is remembered as: the same after a reload that changes others."""
        self.own = own
        self.rows = rows
        self.active = active
        self.streak = 0
        """Dials of this worker that have failed since one succeeded."""
        self.current = 0
        """Its account in the weighted round."""

    def down(self, now: int) -> bool:
        """Whether any worker has found that nobody is there, at `now` in monotonic nanoseconds."""
        return any(row[DOWN_UNTIL] > now or row[CHECKED_DOWN] for row in self.rows)


class Balancer(Generic[L]):
    """The backends of one forward."""

    def __init__(self, forward: Forward, members: Sequence[Member[L]], recall: Recall, number: int) -> None:
        """`number` is that of the forward's row."""
        self.members = list(members)
        self._of = {id(each.listener): each for each in members}
        self._forward = forward
        self._recall = recall
        self._number = number.to_bytes(4)
        self._pick = {
            Balance.FIRST: self._first,
            Balance.ROUNDROBIN: self._round,
            Balance.LEASTCONN: self._least,
            Balance.RANDOM: self._random,
            Balance.IPHASH: self._hashed,
        }[forward.balance]
        self._random_source = random.Random()

    def choose(self, client: str) -> L:
        """The backend for a new connection of a client with that numeric address."""
        now = monotonic_ns()
        usable = [each for each in self.members if not each.down(now)] or self.members
        if not self._forward.affinity_ttl:
            return self._pick(usable, client).listener
        return self._kept(usable, client, now).listener

    def another(self, tried: Sequence[L], client: str) -> L | None:
        """One for a connection that has `tried` some in vain; None if no other is left."""
        now = monotonic_ns()
        left = [each for each in self.members if each.listener not in tried]
        usable = [each for each in left if not each.down(now)] or left
        return self._pick(usable, client).listener if usable else None

    def failed(self, listener: L) -> None:
        """No address of that backend could be dialled."""
        member = self._member(listener)
        member.streak += 1
        if member.streak >= self._forward.health_threshold:
            member.own[DOWN_UNTIL] = monotonic_ns() + self._forward.recovery_timeout * 1_000_000_000

    def reached(self, listener: L) -> None:
        """That backend has answered."""
        member = self._member(listener)
        if member.streak:
            member.streak = 0
            member.own[DOWN_UNTIL] = 0

    def _member(self, listener: L) -> Member[L]:
        return self._of[id(listener)]

    def _kept(self, usable: Sequence[Member[L]], client: str, now: int) -> Member[L]:
        """The one the client had, if that was not too long ago; else another, which it keeps."""
        lifetime = (self._forward.affinity_ttl or 0) * 1000
        milliseconds = now // 1_000_000
        found: Member[L] | None = None

        def change(note: int | None) -> int:
            nonlocal found
            # The note: when it was so last, and who, in 24 bits.
            if note is not None and milliseconds - (note >> 24) <= lifetime:
                found = next((each for each in usable if each.mark == note & MARK), None)
            if found is None:
                found = self._pick(usable, client)
            return milliseconds << 24 | found.mark

        whose = AFFINITY + self._number + key(client)
        self._recall.change(whose, change, now, self._forward.affinity_entries)
        assert found is not None
        return found

    def _first(self, usable: Sequence[Member[L]], client: str) -> Member[L]:
        return usable[0]

    def _round(self, usable: Sequence[Member[L]], client: str) -> Member[L]:
        """Smoothly: of weights 5, 1, 1 not five times the first in a row. Each gains its weight, the
        richest is chosen and pays what all have gained."""
        for each in usable:
            each.current += each.weight
        chosen = max(usable, key=lambda each: each.current)
        chosen.current -= sum(each.weight for each in usable)
        return chosen

    def _least(self, usable: Sequence[Member[L]], client: str) -> Member[L]:
        """The least connections, over all workers, for its weight; of several the next in the round."""
        loads = [(each.active() / each.weight, each) for each in usable]
        least = min(load for load, _ in loads)
        return self._round([each for load, each in loads if load == least], client)

    def _random(self, usable: Sequence[Member[L]], client: str) -> Member[L]:
        return self._random_source.choices(usable, [each.weight for each in usable])[0]

    def _hashed(self, usable: Sequence[Member[L]], client: str) -> Member[L]:
        """The same client, the same backend, in every worker and after every start. Each backend draws a
        number for the client and the highest one has it (rendezvous hashing): of one that fails only
        its own clients go elsewhere."""
        whose = key(client)

        def score(each: Member[L]) -> float:
            drawn = int.from_bytes(blake2b(whose + each.label, digest_size=8).digest()) + 1
            return -each.weight / math.log(drawn / (2**64 + 2))

        return max(usable, key=score)
