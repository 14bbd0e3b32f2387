"""Which forward has which row of the scoreboard.

supervisor/main assigns rows at start and at every reload; workers and exporter are told.
A forward is known by its label, as operators know it: one whose target changes, or that
a reload takes away and a later one brings back, goes on counting in the same row. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fastfwd.model import Certificate, Forward, Protocol

Key = tuple[str, Protocol, str | None]
"""A forward's label, its protocol, and the label of one of its backends; None: the forward itself."""

SPARE: Final = 4096
"""Rows beyond those of the forwards at start, for what reloads bring."""


class FullError(Exception):
    """There are more forwards than rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row's `number` and whose it is, without keys. `forward` is None once a reload has taken it away;
    `named` says that it dials a host name; `backends` are the numbers and labels of those it
    has, or had, where there are several."""

    number: int
    label: str
    protocol: Protocol
    forward: Forward | None
    named: bool = False
    backends: tuple[tuple[int, str], ...] = ()

    @property
    def numbers(self) -> list[int]:
        """All rows whose figures are the forward's."""
        return [self.number, *(number for number, _ in self.backends)]


def key(forward: Forward) -> Key:
    """What a forward is known by. Forwards that listen on port 0 of one address, and have
    no `name=`, share it, and their row."""
    return forward.label, forward.listen.protocol, None


def backend_keys(forward: Forward) -> list[Key]:
    """What its backends are known by, if there are several: each has a row of its own then."""
    if len(forward.backends) == 1:
        return []
    return [(forward.label, forward.listen.protocol, each.label) for each in forward.backends]


def needed(forwards: Sequence[Forward]) -> int:
    """How many rows they take."""
    return sum(1 + len(backend_keys(each)) for each in forwards)


def assign(
    known: Mapping[Key, int], forwards: Sequence[Forward], capacity: int, idle: Callable[[int], bool]
) -> dict[Key, int]:
    """The rows for a configuration's `forwards`, given those `known` so far, which keep theirs.

    Once all `capacity` rows are taken, new forwards get those of forwards that are gone,
    the longest-gone first, unless one of its connections lives (`idle(number)` says).
    The order of the answer is that of going: those still wanted come last. Raises FullError.
    """
    wanted = dict.fromkeys(each for forward in forwards for each in (key(forward), *backend_keys(forward)))
    gone = {each: number for each, number in known.items() if each not in wanted}
    kept = {each: known[each] for each in wanted if each in known}
    fresh = [each for each in wanted if each not in known]
    unused = iter(sorted(set(range(min(capacity, len(known) + len(fresh)))) - set(known.values())))
    for each in fresh:
        if (number := next(unused, None)) is not None:
            kept[each] = number
            continue
        victim = next((old for old, its in gone.items() if idle(its)), None)
        if victim is None:
            raise FullError
        kept[each] = gone.pop(victim)
    return gone | kept


def rows(
    numbers: Mapping[Key, int], forwards: Sequence[Forward], named: Callable[[Forward], bool]
) -> list[Row]:
    """Every row in use: those of `forwards` in their order, then those of forwards that are
    gone. `named(forward)` says whether its target is a name."""
    present: dict[Key, Forward] = {}
    for forward in forwards:
        present.setdefault(key(forward), forward)
    behind: dict[Key, list[tuple[int, str]]] = {}
    for (label, protocol, backend), number in numbers.items():
        if backend is not None:
            behind.setdefault((label, protocol, None), []).append((number, backend))
    gone = [each for each in numbers if each[2] is None and each not in present]
    found = []
    for each in (*present, *gone):
        label, protocol, _ = each
        serving = present.get(each)
        dials_name = serving is not None and named(serving)
        shown = None if serving is None else public(serving)
        found.append(Row(numbers[each], label, protocol, shown, dials_name, tuple(behind.get(each, ()))))
    return found


def public(forward: Forward) -> Forward:
    """`forward` for those who only look: no key, and no certificate but its name and its end."""
    accept, connect = forward.tls_accept, forward.tls_connect
    if accept is None and connect is None:
        return forward
    if accept is not None:
        accept = replace(accept, certificates=tuple(map(_public, accept.certificates)))
    if connect is not None and connect.certificate is not None:
        connect = replace(connect, certificate=_public(connect.certificate))
    return replace(forward, tls_accept=accept, tls_connect=connect)


def _public(certificate: Certificate) -> Certificate:
    return replace(certificate, chain=b"", key=b"")
