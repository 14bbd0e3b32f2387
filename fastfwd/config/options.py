"""The options of a forward, `[key=value, ...]` -> fields of Forward.

Called by forward with what follows the connect port, and by whoever has options from another place.
Pure. Every option is a line of OPTIONS: its name, the field it sets, and the function that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from fastfwd.config.endpoint import Say, host_of
from fastfwd.config.number import AMOUNT, NO_TIME, RATE, SIZE, TIME, amount, rate, seconds, size
from fastfwd.config.pattern import network
from fastfwd.config.wording import expected
from fastfwd.model import Balance

DEFAULT_TIMEOUT: Final = 72  # seconds, rinetd(8); timeout=0 means it too
LONGEST_TIMEOUT: Final = 2**31 - 1  # seconds: 68 years, and still a C int

MOST_SOURCES: Final = 256
"""Addresses of a pool: seven million connections to one backend."""

_OPTION = re.compile(r"[ \t]*([^ \t=]*)[ \t]*=[ \t]*(.*?)[ \t]*", re.DOTALL)
_TWO_LISTS = re.compile(r"\][ \t]*\[")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_DEVICE = re.compile(r"[^\s/:\x00-\x1f]{1,15}")


class Option(NamedTuple):
    """`read(value)` gives the `field`'s value, or raises ValueError with what should have stood there."""

    field: str
    read: Callable[[str], Any]


def options(pairs: Iterable[tuple[str, str]], wrong: Say, warn: Say) -> dict[str, Any]:
    """Fields of Forward, and `sources` and `dns_refresh`, which are its backends'. Errors are told
    to `wrong`, warnings to `warn`."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for key, value in pairs:
        if key in seen:
            warn(f"option {key!r} is repeated, the last one counts")
        seen.add(key)
        if key == "src":
            found["sources"] = _sources(value, wrong, warn)
        elif (option := OPTIONS.get(key)) is None:
            wrong(expected("one of the options that fastfwd(8) lists", key) + _meant(key))
        else:
            try:
                found[option.field] = option.read(value)
            except ValueError as error:
                wrong(expected(str(error), value))
    return found


def pairs(rest: str, wrong: Say) -> list[tuple[str, str]]:
    """What stands in the square brackets, as (key, value)."""
    if not rest:
        return []
    if not rest.startswith("["):
        wrong(expected("'[options]', a comment or nothing after the connect port", rest))
        return []
    inside, bracket, after = rest[1:].rpartition("]")
    if not bracket:
        wrong(expected("']' at the end of the options", rest))
        return []
    if after.strip(" \t"):
        wrong(expected("a comment or nothing after the options", after.strip(" \t")))
        return []
    if _TWO_LISTS.search(inside):
        wrong(expected("one list of options ('[timeout=5, src=10.0.0.1]')", rest))
        return []
    if not inside.strip(" \t"):
        wrong(expected("at least one option between the square brackets", rest))
        return []
    found = []
    for option in inside.split(","):
        match = _OPTION.fullmatch(option)
        if match is None:
            wrong(expected("an option 'key=value'", option.strip(" \t")))
        elif "=" in match[2]:
            wrong(expected("',' between options", option.strip(" \t")))
        else:
            found.append((match[1], match[2]))
    return found


def _meant(key: str) -> str:
    import difflib  # noqa: PLC0415  # only a bad file pays for it

    close = difflib.get_close_matches(key.lower(), ["src", *OPTIONS], 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _timeout(value: str) -> int:
    if re.fullmatch("[0-9]+", value) is None:
        raise ValueError("a timeout in whole seconds")
    digits = value.lstrip("0")
    if len(digits) > len(str(LONGEST_TIMEOUT)):
        return LONGEST_TIMEOUT
    return min(int(digits or "0"), LONGEST_TIMEOUT) or DEFAULT_TIMEOUT


def _sources(value: str, wrong: Say, warn: Say) -> tuple[str, ...]:
    """`ADDRESS`, `NETWORK/BITS` or several of them with `;` between."""
    found: list[str] = []
    for each in value.split(";"):
        word = each.strip(" \t")
        if "/" not in word:
            found.append(host_of(word, wrong, warn))
            continue
        try:
            pool = ip_network(network(word))
        except ValueError as error:
            wrong(expected(str(error), word))
            continue
        if pool.num_addresses > MOST_SOURCES:
            wrong(expected(f"a pool of at most {MOST_SOURCES} addresses", word))
            continue
        found += map(str, pool)
    if len(found) > MOST_SOURCES:
        wrong(expected(f"at most {MOST_SOURCES} addresses", value))
    return tuple(found)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name of letters, digits and '_.:-'")
    return value


def _read(read: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    def checked(value: str) -> Any:
        found = read(value)
        if found is None:
            raise ValueError(what)
        return found

    return checked


def _one_of(words: dict[str, Any]) -> Callable[[str], Any]:
    def chosen(value: str) -> Any:
        if value not in words:
            raise ValueError(
                " or ".join(map(repr, words)) if len(words) < 3 else f"one of {', '.join(words)}"
            )
        return words[value]

    return chosen


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(value: str) -> int:
        try:
            found = int(value, 0) if re.fullmatch("[0-9A-Fa-fxX]{1,12}", value) else -1
        except ValueError:  # 010: neither ten nor eight is meant for certain
            found = -1
        if not least <= found <= most:
            raise ValueError(f"a number from {least} to {most}")
        return found

    return number


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value) or value in (".", ".."):
        raise ValueError("the name of a network interface")
    return value


def _mode(value: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError("a file's mode in octal, such as 0660")
    return int(value, 8)


def _path(value: str) -> str:
    if not value:
        raise ValueError("the name of a file")
    return value


_TIME = _read(seconds, TIME)
_TIME_OR_NONE = _read(lambda value: seconds(value, or_none=True), NO_TIME)
_SWITCH = _one_of({"on": True, "off": False})

OPTIONS: Final = {
    "timeout": Option("timeout", _timeout),
    "name": Option("name", _name),
    "max-connections": Option("max_connections", _read(amount, AMOUNT)),
    "connection-rate": Option("connection_rate", _read(rate, RATE)),
    "client-rate": Option("client_rate", _read(rate, RATE)),
    "max-rate": Option("max_rate", _read(size, SIZE)),
    "port": Option("original_port", _one_of({"original": True})),
    "balance": Option("balance", _one_of({each.value: each for each in Balance})),
    "health-threshold": Option("health_threshold", _number(1, 100)),
    "recovery-timeout": Option("recovery_timeout", _TIME),
    "check": Option("check_interval", _TIME),
    "affinity-ttl": Option("affinity_ttl", _TIME_OR_NONE),
    "affinity-max-entries": Option("affinity_entries", _number(100, 10_000_000)),
    "connect-timeout": Option("connect_timeout", _TIME),
    "dns-refresh": Option("dns_refresh", _TIME_OR_NONE),
    "keepalive": Option("keepalive", _SWITCH),
    "device": Option("device", _device),
    "mark": Option("mark", _number(1, 2**32 - 1)),
    "dscp": Option("dscp", _number(0, 63)),
    "freebind": Option("freebind", _SWITCH),
    "mode": Option("mode", _mode),
    "sorry-file": Option("sorry_file", _path),
}
