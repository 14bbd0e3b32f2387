"""The directives: every word that may begin a line which is no forward.

Tables for parse, and through it for structured, which says the same in YAML; docs/reference.py writes
those of the documents from them. What parse reads by a method of its own (`allow`, `include`,
`metrics` ...) is here too: there is no other list of the words.
"""

from __future__ import annotations

import enum
import socket
from typing import Final, NamedTuple

from fastfwd.config.value import (
    AMOUNT,
    CONNECT_TIME,
    FILE,
    NO_TIME,
    SWITCH,
    TIME,
    Value,
    name,
    number,
    one_of,
)
from fastfwd.model import LogFormat


class Kind(enum.Enum):
    """What a directive sets, and so how parse reads what follows it."""

    SETTING = "a field of Config, by one word"
    LIMIT = "a field of Limits, by one word"
    FILE = "a field of Config, by the name of a file"
    NOTHING = "nothing, by one word: rinetd-uv's about its buffers"
    OWN = "what its method in parse says"


class Directive(NamedTuple):
    """The `field` that a directive sets, and what its `value` may be.

    The rest is for the documents, in Markdown: the `effect`, with `{bounds}` for those of the value, and
    what is so by `default` where the model has no value.
    """

    kind: Kind
    field: str
    value: Value
    effect: str
    default: str = ""


_PATTERN = name("a pattern", form="PATTERN")
_ALONE = Value("nothing", str)
_WORKERS = number(1, 1024)
_BUFFERS = "taken for rinetd-uv's sake, without effect: buffers are the kernel's"

GROUPS: Final = {
    "names": {
        "dns-refresh": Directive(
            Kind.SETTING, "dns_refresh", NO_TIME, "how long an answer holds; `0`: until the next reload"
        ),
        "dns-multi-ip-expand": Directive(
            Kind.SETTING,
            "dns_expand",
            SWITCH,
            "spread connections over all addresses of a name, instead of taking the first that works",
        ),
        "dns-multi-ip-proto": Directive(
            Kind.SETTING,
            "dns_family",
            one_of({"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "any": None}),
            "which addresses of a name to dial",
        ),
    },
    "include": {
        "include": Directive(
            Kind.OWN, "", _PATTERN, "read the files whose names match, as if they stood here"
        ),
    },
    "access": {
        "allow": Directive(
            Kind.OWN,
            "rules",
            _PATTERN,
            "clients whose address matches may come in. Where there is one of these, who matches none is "
            "kept out",
        ),
        "deny": Directive(Kind.OWN, "rules", _PATTERN, "clients whose address matches are kept out"),
    },
    "limits": {
        "max-connections": Directive(
            Kind.LIMIT,
            "connections",
            AMOUNT,
            "so many connections at a time, {bounds}, over all forwards",
            "none",
        ),
        "max-connections-per-client": Directive(
            Kind.LIMIT,
            "connections_per_client",
            AMOUNT,
            "so many at a time, {bounds}, from one client, over all forwards. A client is an IPv4 address, "
            "or the /64 of an IPv6 one",
            "none",
        ),
        "max-udp-connections": Directive(
            Kind.LIMIT,
            "udp_connections",
            AMOUNT,
            "so many [flows](#udp), {bounds}, for each forward; then the one that was silent longest goes",
        ),
        "connect-timeout": Directive(
            Kind.LIMIT,
            "connect_timeout",
            CONNECT_TIME,
            "how long an address of a backend has to accept; then the next one is tried. `0`: as long as "
            "the kernel tries, some 127 s",
        ),
        "idle-timeout": Directive(
            Kind.LIMIT,
            "idle_timeout",
            TIME,
            "end a session in which nothing has moved in either direction for that long",
            "none",
        ),
        "half-close-timeout": Directive(
            Kind.LIMIT,
            "half_close_timeout",
            TIME,
            "the same for one in which one side has said that it is finished",
            "none, so the `idle-timeout`",
        ),
    },
    "directives": {
        "logfile": Directive(Kind.FILE, "logfile", FILE, "append the connection log to `FILE`", "no log"),
        "logformat": Directive(
            Kind.SETTING,
            "logformat",
            one_of({each.value: each for each in LogFormat}),
            "the form of the log's lines",
        ),
        "logcommon": Directive(Kind.OWN, "logformat", _ALONE, "the same as `logformat common`"),
        "logduration": Directive(
            Kind.OWN,
            "logduration",
            _ALONE,
            "in the format `rinetd`, a tenth column: seconds since the client connected",
            "off",
        ),
        "pidlogfile": Directive(
            Kind.FILE,
            "pidfile",
            FILE,
            "the pid file; locked while the program runs, so a second one with the same file does not start; "
            "removed at exit; a symbolic link there is refused",
            "`/var/run/rinetd.pid` as a daemon, none with `-f`",
        ),
        "pidfile": Directive(Kind.FILE, "pidfile", FILE, "what rinetd-uv calls the `pidlogfile`", "the same"),
        "workers": Directive(
            Kind.SETTING,
            "workers",
            Value(
                f"'auto' or {_WORKERS.what}",
                lambda text: None if text == "auto" else _WORKERS.read(text),
                form="N|auto",
                bounds=_WORKERS.bounds,
            ),
            "processes that serve every port, {bounds}; `auto` is one per processor the program may use",
        ),
        "user": Directive(
            Kind.SETTING,
            "user",
            name("the name of an account"),
            "the account of the workers; one with all rights (`root`) earns a warning. Without root it "
            "cannot change",
            "`nobody` when started by root",
        ),
        "group": Directive(
            Kind.SETTING, "group", name("the name of a group"), "the group of the workers", "the user's own"
        ),
        "listen-backlog": Directive(
            Kind.SETTING,
            "backlog",
            number(1, 65535),
            "the longest accept queue, {bounds}",
            "what the kernel allows",
        ),
        "statusfile": Directive(
            Kind.FILE, "statusfile", FILE, "write the figures of all forwards to `FILE`", "none"
        ),
        "statusinterval": Directive(Kind.SETTING, "status_interval", TIME, "how often they are written"),
        "statusformat": Directive(
            Kind.SETTING,
            "status_text",
            one_of({"json": False, "text": True}),
            "the form in which they are written, as rinetd-uv does",
        ),
        "statsloginterval": Directive(
            Kind.SETTING,
            "stats_interval",
            NO_TIME,
            "write a line of statistics to the program's own log that often; `0`: never",
        ),
        "metrics": Directive(
            Kind.OWN,
            "metrics",
            name("'ADDRESS:PORT' or 'unix:/path'", form="ADDRESS:PORT|unix:/path"),
            "start the exporter there: Prometheus metrics, a status page, health checks. See "
            "[metrics](#metrics)",
            "none",
        ),
        "buffersize": Directive(Kind.NOTHING, "", number(1024, 1 << 20), _BUFFERS),
        "pool-min-free": Directive(Kind.NOTHING, "", number(0, 10_000), _BUFFERS),
        "pool-max-free": Directive(Kind.NOTHING, "", number(1, 100_000), _BUFFERS),
        "pool-trim-delay": Directive(Kind.NOTHING, "", number(100, 300_000), _BUFFERS),
    },
}
"""Every directive there is, by what it is about."""

DIRECTIVES: Final = {word: each for group in GROUPS.values() for word, each in group.items()}
"""The same by their words alone."""


def _of(kind: Kind) -> dict[str, Directive]:
    return {word: each for word, each in DIRECTIVES.items() if each.kind is kind}


SETTINGS: Final = _of(Kind.SETTING)
LIMITS: Final = _of(Kind.LIMIT)
WITHOUT_MEANING: Final = _of(Kind.NOTHING)
"""Directives with one word as their value, by what they set."""

FILES: Final = {word: each.field for word, each in _of(Kind.FILE).items()}
"""Directives with a file's name as their value -> fields of Config."""

GUARDS: Final = frozenset(
    {
        *("allow", "deny", "user", "group", "include"),
        *("max-connections", "max-connections-per-client", "max-udp-connections"),
    }
)
"""Directives that keep somebody out, or could."""
