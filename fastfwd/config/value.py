"""The kinds of single words that a configuration has as values: amounts, times, rates, switches, names.

Called by parse for directives and by options for options, so that a kind reads alike in both, and is
called the same in messages. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastfwd.config.wording import expected, meant
from fastfwd.model import Rate

MOST: Final = 10_000_000
"""The largest amount of connections: no machine has more ports and memory."""

LONGEST: Final = 2**31 - 1
"""Seconds: 68 years, and still a C int."""

SYSTEMS_TIMEOUT: Final = 127
"""Seconds that the kernel's own six repetitions of a SYN take (tcp(7), tcp_syn_retries)."""

UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
FACTORS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}

_DECIMAL: Final = re.compile("0*([0-9]{1,10})")
_HEXADECIMAL: Final = re.compile("0[xX]([0-9A-Fa-f]{1,8})")
_TIME: Final = re.compile(r"0*([0-9]{1,10})([smhd]?)")
_SIZE: Final = re.compile(r"0*([1-9][0-9]{0,8})([kMG]?)")
_RATE: Final = re.compile(r"0*([1-9][0-9]{0,6})/([smh])")


@dataclass(frozen=True, slots=True)
class Value:
    """A kind of value.

    `what` it is, as a noun phrase for messages; `read` makes of its text what Config or Forward has,
    and raises ValueError for anything else, with a noun phrase of its own if it knows a better one;
    `words` are all there are, where they can be listed. For the documents: `form` stands for it in a
    line, `bounds` are the least and the most, in words.
    """

    what: str
    read: Callable[[str], Any]
    words: tuple[str, ...] = ()
    form: str = ""
    bounds: str = ""

    def wrong(self, text: str) -> str:
        """The message for a `text` that `read` does not take."""
        return expected(self.what, text) + meant(text, self.words)


def number(least: int, most: int, *, noun: str = "number", hexadecimal: bool = False) -> Value:
    """A whole number, a `noun` in messages. Zeros before it mean nothing; `hexadecimal` takes 0x too."""

    def read(text: str) -> int:
        found = -1
        if (match := _DECIMAL.fullmatch(text)) is not None:
            found = int(match[1])
        elif hexadecimal and (match := _HEXADECIMAL.fullmatch(text)) is not None:
            found = int(match[1], 16)
        if not least <= found <= most:
            raise ValueError
        return found

    bounds = f"{least} to {most if most < 10_000 else f'{most:,}'}{' (or `0x…`)' if hexadecimal else ''}"
    return Value(f"a {noun} from {least} to {most}", read, form="N", bounds=bounds)


def one_of(words: Mapping[str, Any]) -> Value:
    """One of a few words, each with what it means."""

    def read(text: str) -> Any:
        if text not in words:
            raise ValueError
        return words[text]

    quoted, form = [repr(each) for each in words], "|".join(words)
    if len(quoted) > 2:
        return Value(f"one of {', '.join(quoted)}", read, tuple(words), form)
    return Value(" or ".join(quoted), read, form=form)


def name(what: str, pattern: str = ".+", *, form: str = "NAME") -> Value:
    """A word that stays what it is."""
    expression = re.compile(pattern, re.DOTALL)

    def read(text: str) -> str:
        if expression.fullmatch(text) is None:
            raise ValueError
        return text

    return Value(what, read, form=form)


def listed(what: str, pattern: str, *, form: str = "ONE;TWO") -> Value:
    """Several of them, with `;` between, each of which matches the `pattern`."""
    expression = re.compile(pattern, re.DOTALL)

    def read(text: str) -> tuple[str, ...]:
        found = tuple(each.strip(" \t") for each in text.split(";"))
        if not all(map(expression.fullmatch, found)):
            raise ValueError
        return found

    return Value(f"{what} (with ';' between them)", read, form=form)


def _seconds(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        match = _TIME.fullmatch(text)
        found = -1 if match is None else int(match[1]) * UNITS[match[2]]
        if not least <= found <= LONGEST:
            raise ValueError
        return found

    return read


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError
    return int(match[1]) * FACTORS[match[2]]


def _rate(text: str) -> Rate:
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError
    return Rate(int(match[1]), UNITS[match[2]])


AMOUNT: Final = number(1, MOST)
TIME: Final = Value("a time such as 30 (seconds), 90s, 5m, 2h or 1d", _seconds(1), form="TIME")
NO_TIME: Final = Value(f"{TIME.what}, or 0 for never", _seconds(0), form="TIME")
CONNECT_TIME: Final = Value(
    f"{TIME.what}, or 0 for the kernel's own",
    lambda text: _seconds(0)(text) or SYSTEMS_TIMEOUT,
    form="TIME",
)
SIZE: Final = Value("bytes per second such as 500k, 10M or 1G (k: 1024)", _size, form="SIZE")
RATE: Final = Value("a rate such as 100/s, 600/m or 1000/h", _rate, form="N/s")
SWITCH: Final = one_of({"on": True, "off": False})
FILE: Final = name("the name of a file", form="FILE")
