"""How many connections may begin in a time: of a forward, of one of its clients.

worker/accept and worker/udp ask for each that the rules let in. The bucket (a token bucket, kept as
the generic cell rate algorithm: one number, the time at which it will be full again) is shared by
all workers, so that a rate holds exactly.
"""

from __future__ import annotations

from time import monotonic_ns

from fastfwd.model import Outcome, Rate
from fastfwd.worker.limits import key
from fastfwd.worker.recall import Recall

ALL, EACH = b"a", b"e"
"""Kinds of keys: of a forward, of a forward's client."""


class Rates:
    """The rates of one forward, whose row on the scoreboard has the `number`."""

    def __init__(self, recall: Recall, number: int, of_all: Rate | None, of_each: Rate | None) -> None:
        self._recall = recall
        self._number = number.to_bytes(4)
        self._of_all = of_all
        self._of_each = of_each

    def admit(self, client: str) -> Outcome | None:
        """Count a connection of `client`, or say why not."""
        if self._of_each is not None and not self._take(EACH + self._number + key(client), self._of_each):
            return Outcome.OVER_CLIENT_RATE
        if self._of_all is not None and not self._take(ALL + self._number, self._of_all):
            return Outcome.OVER_RATE
        return None

    def _take(self, whose: bytes, rate: Rate) -> bool:
        now = monotonic_ns()
        interval = rate.seconds * 1_000_000_000 // rate.count
        patience = interval * (rate.count - 1)
        taken = False

        def change(full: int | None) -> int | None:
            nonlocal taken
            since = max(full or 0, now)
            taken = since - now <= patience
            return since + interval if taken else None

        self._recall.change(whose, change, now)
        return taken
