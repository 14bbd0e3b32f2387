"""Waiting for facts: poll with a deadline, never sleep for a guess.

Every figure of seconds in the suite is a deadline, so a slow machine needs only
FASTFWD_DEADLINE_SCALE (a float, 1 by default) to multiply them all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SCALE = float(os.environ.get("FASTFWD_DEADLINE_SCALE", "1"))

PAUSE = 0.005
"""Seconds between two looks: short beside any deadline, long enough to leave the two cores to the program."""


def seconds(figure: float) -> float:
    """`figure` seconds on this machine."""
    return figure * SCALE


def until(predicate: Callable[[], T], seconds: float = 10, what: str = "") -> T:
    """Call `predicate` until it returns something true, and return that.

    Raises AssertionError after `seconds` (scaled); the message names `what` was
    awaited and what the predicate said last.
    """
    limit = seconds * SCALE
    end = time.monotonic() + limit
    while True:
        late = time.monotonic() >= end
        value = predicate()
        if value:
            return value
        if late:
            raise AssertionError(f"not within {limit:g} s: {what or predicate}; last seen: {value!r}")
        time.sleep(PAUSE)
