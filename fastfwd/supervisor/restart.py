"""When a dead child is replaced. Pure; called by supervisor/children.

The first death costs nothing but the fork: clients are waiting in the queue. One that
dies again soon after its birth waits longer each time, so that a fault at start does
not become a fork bomb.
"""

from __future__ import annotations

from typing import Final

STEADY: Final = 5.0
"""Seconds after which a child counts as having worked."""

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 10.0


def after_death(failures: int, lived: float) -> tuple[int, float]:
    """What to do about a child that lived `lived` seconds, `failures` deaths in a row
    having come before: (failures now, seconds to wait before the next one is forked)."""
    if lived >= STEADY:
        failures = 0
    delay = 0.0 if failures == 0 else min(FIRST_DELAY * 2.0 ** min(failures - 1, 16), LONGEST_DELAY)
    return failures + 1, delay
