"""Amounts and times as a configuration writes them.

Called by parse and forward. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from fastfwd.model import Rate

MOST: Final = 10_000_000
"""The largest amount of connections: no machine has more ports and memory."""

LONGEST: Final = 2**31 - 1
"""Seconds: 68 years, and still a C int."""

AMOUNT: Final = f"a number from 1 to {MOST}"
TIME: Final = "a time such as 30 (seconds), 90s, 5m, 2h or 1d"
NO_TIME: Final = f"{TIME}, or 0 for never"
SIZE: Final = "bytes per second such as 500k, 10M or 1G (k: 1024)"
RATE: Final = "a rate such as 100/s, 600/m or 1000/h"
"""What should have stood there, for messages."""

UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
FACTORS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_TIME: Final = re.compile(r"0*([1-9][0-9]{0,9})([smhd]?)")
_AMOUNT: Final = re.compile(r"0*([1-9][0-9]{0,7})")
_SIZE: Final = re.compile(r"0*([1-9][0-9]{0,12})([kMG]?)")
_RATE: Final = re.compile(r"0*([1-9][0-9]{0,6})/([smh])")


def amount(text: str) -> int | None:
    """How many, 1 to MOST; None for anything else."""
    match = _AMOUNT.fullmatch(text)
    return None if match is None or int(match[1]) > MOST else int(match[1])


def seconds(text: str, *, or_none: bool = False) -> int | None:
    """A time of 1 s to LONGEST, in seconds; with `or_none` 0 too. None for anything else."""
    if or_none and re.fullmatch("0+s?", text):
        return 0
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    number = int(match[1]) * UNITS[match[2]]
    return number if number <= LONGEST else None


def size(text: str) -> int | None:
    """Bytes, at least 1; None for anything else."""
    match = _SIZE.fullmatch(text)
    return None if match is None else int(match[1]) * FACTORS[match[2]]


def rate(text: str) -> Rate | None:
    """So many a second, minute or hour; None for anything else."""
    match = _RATE.fullmatch(text)
    return None if match is None else Rate(int(match[1]), UNITS[match[2]])
