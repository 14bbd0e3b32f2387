"""What all workers remember of clients: which backend one had, how fast one comes.

The supervisor makes the table before the first fork; worker/balance and worker/rates look clients up
and note them. A note is a number under a key of any bytes; the table has PLACES of them, in sets of
WAYS: where a set is full the note that is oldest goes. A lock makes "look, then note" one step for
all workers; what that costs, and why nobody waits for a worker that stands still, is in worker/limits.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from fastfwd.worker.lock import Lock

WAYS: Final = 16
PLACES: Final = 1 << 20
NOTE: Final = struct.Struct("=16sQQ")
"""The key's digest, the note, and when it was made. An empty place was made at 0."""

EMPTY: Final = bytes(16)
SET: Final = WAYS * NOTE.size


class Recall:
    """The table, in one anonymous mapping; only what is used becomes memory."""

    def __init__(self, lock: Lock) -> None:
        """Guarded by `lock`, which is its own."""
        self._map = mmap.mmap(-1, PLACES * NOTE.size)
        self._lock = lock

    def change(
        self, key: bytes, change: Callable[[int | None], int | None], now: int, places: int = PLACES
    ) -> None:
        """Have `change(note)` give the note for `key` a new value, which is noted at `now` (monotonic
        nanoseconds); None leaves it as it is. It is asked with None if there is no note. The key is
        one of those that share about `places` places: more of them push each other out."""
        digest = blake2b(key, digest_size=16).digest()
        sets = max(1, min(places, PLACES) // WAYS)
        # Which of all sets these are depends on the first byte of the key, its kind, too.
        number = (int.from_bytes(digest[:8]) % sets + int.from_bytes(key[:5]) * 7919) % (PLACES // WAYS)
        first = number * SET
        locked = self._lock.take()
        try:
            whole = self._map[first : first + SET]
            place, oldest = None, None
            for offset in range(0, SET, NOTE.size):
                its_digest, note, made = NOTE.unpack_from(whole, offset)
                if its_digest == digest:
                    place, known = offset, note
                    break
                if oldest is None or made < oldest[0]:
                    oldest = made, offset
            value = change(known if place is not None else None)
            if value is not None:
                if place is None:
                    assert oldest is not None
                    place = oldest[1]
                NOTE.pack_into(self._map, first + place, digest, value, now)
        finally:
            if locked:
                self._lock.give()

    def abandon(self) -> None:
        """In a child that is not a worker: let go of it."""
        self._lock.close()
        self._map.close()
