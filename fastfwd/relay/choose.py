"""When a direction is copied and when it is spliced, and how much at once. Pure; called
by the movers.

recv+send through a buffer that stays in the cache beats splice for small pieces;
splice wins once the bytes come faster than they are read. So: promote after a few
reads that filled the buffer, demote after a few runs that found little. HAProxy
decides alike (3 full reads up, 3 reads of half a buffer down).
"""

from __future__ import annotations

from typing import Final

BUFFER: Final = 64 * 1024
"""Size in bytes of a worker's one copy buffer; a read that fills it is "full"."""

PROMOTE_AFTER: Final = 3
DEMOTE_AFTER: Final = 3

CHUNK: Final = 1 << 20
"""Bytes spliced at once where long streams have the worker to themselves: a pipe's size."""

POLITE: Final = 3 << 18
"""The same where the worker copies for others too: beside two long streams, 99 of 100 small
requests are answered in three quarters of the time, and the streams lose a tenth of their
throughput. (With 512 KiB it would be 0.57 of the time, and a third.)"""

SHARE: Final = 1 << 18
"""Bytes that end a turn there: it is one chunk, unless little was waiting."""

ALONE: Final = 16
"""Splicing runs in a row, without a byte copied in between, that say there are no others."""


def promote(full_reads: int) -> bool:
    """Whether a direction that made `full_reads` full reads in a row is to be spliced."""
    return full_reads >= PROMOTE_AFTER


def short_runs(before: int, moved: int) -> int:
    """Count of short runs in a row after one that spliced `moved` bytes until the
    source was dry, given the count `before` it."""
    return 0 if moved > BUFFER // 2 else before + 1


def demote(runs: int) -> bool:
    """Whether a direction with that many short runs in a row goes back to copying."""
    return runs >= DEMOTE_AFTER


def portion(runs: int, budget: int) -> tuple[int, int]:
    """How many bytes a splicing run may take at once, and after how many its turn is over,
    given the `budget` and that it is number `runs` since something was copied."""
    if runs > ALONE:
        return CHUNK, budget
    return POLITE, min(budget, SHARE)
