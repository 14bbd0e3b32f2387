"""What a reload changes: which listeners stay, which open, which close.

Called by the supervisor between a good `load` and the commit. Pure; it must
never decide what to do about a difference.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from fastfwd.config.resolve import numeric
from fastfwd.model import Address, Config, Endpoint, Forward, Protocol

Key = tuple[Address | str, range, Protocol]


@dataclass(frozen=True, slots=True)
class Difference:
    """The way from one configuration to another.

    `kept` pairs the old and the new forward of each listener that stays (target, options
    and rules may differ), `added` and `removed` are the listeners to open and to close;
    `kept` and `added` are in the new file's order, `removed` in the old one's. `fixed`
    names the changed directives that take effect at the next start only.
    """

    kept: tuple[tuple[Forward, Forward], ...]
    added: tuple[Forward, ...]
    removed: tuple[Forward, ...]
    fixed: tuple[str, ...]


def diff(old: Config, new: Config) -> Difference:
    """Compare two configurations.

    Listeners are the same when protocol, port and address are; a name is compared as
    written, without case. Several forwards may ask for port 0 of one address: those
    are matched in order of occurrence.
    """
    waiting: dict[Key, deque[Forward]] = {}
    for forward in old.forwards:
        waiting.setdefault(_key(forward.listen), deque()).append(forward)
    kept = []
    added = []
    for forward in new.forwards:
        before = waiting.get(_key(forward.listen))
        if before:
            kept.append((before.popleft(), forward))
        else:
            added.append(forward)
    left = {id(forward) for forwards in waiting.values() for forward in forwards}
    removed = [forward for forward in old.forwards if id(forward) in left]
    return Difference(tuple(kept), tuple(added), tuple(removed), _fixed(old, new))


def _key(listen: Endpoint) -> Key:
    return numeric(listen.host) or listen.host.lower(), listen.ports, listen.protocol


def _fixed(old: Config, new: Config) -> tuple[str, ...]:
    directives = {
        "workers": old.workers != new.workers,
        "user": old.user != new.user,
        "group": old.group != new.group,
        "pidlogfile": old.pidfile != new.pidfile,
    }
    return tuple(directive for directive, changed in directives.items() if changed)
