"""The directives that have one word, or a file's name, as their value -> fields of Config.

Tables for parse, and through it for structured, which says the same in YAML. Every directive of these
kinds is a line of one of them; the others (`allow`, `include`, `metrics` ...) are methods of parse.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from fastfwd.config.value import (
    AMOUNT,
    CONNECT_TIME,
    NO_TIME,
    SWITCH,
    TIME,
    Value,
    name,
    number,
    one_of,
)
from fastfwd.model import LogFormat


class Setting(NamedTuple):
    """The `field` of Config, or of its limits, that a directive sets, and what its value may be."""

    field: str
    value: Value


_WORKERS = number(1, 1024)

SETTINGS: Final = {
    "workers": Setting(
        "workers",
        Value(f"'auto' or {_WORKERS.what}", lambda text: None if text == "auto" else _WORKERS.read(text)),
    ),
    "user": Setting("user", name("the name of an account")),
    "group": Setting("group", name("the name of a group")),
    "logformat": Setting("logformat", one_of({each.value: each for each in LogFormat})),
    "listen-backlog": Setting("backlog", number(1, 65535)),
    "statusinterval": Setting("status_interval", TIME),
    "statusformat": Setting("status_text", one_of({"json": False, "text": True})),
    "statsloginterval": Setting("stats_interval", NO_TIME),
    "dns-refresh": Setting("dns_refresh", NO_TIME),
    "dns-multi-ip-expand": Setting("dns_expand", SWITCH),
    "dns-multi-ip-proto": Setting(
        "dns_family", one_of({"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "any": None})
    ),
}
"""Directives with one word as their value."""

LIMITS: Final = {
    "max-connections": Setting("connections", AMOUNT),
    "max-connections-per-client": Setting("connections_per_client", AMOUNT),
    "max-udp-connections": Setting("udp_connections", AMOUNT),
    "connect-timeout": Setting("connect_timeout", CONNECT_TIME),
    "idle-timeout": Setting("idle_timeout", TIME),
    "half-close-timeout": Setting("half_close_timeout", TIME),
}
"""Those of them that set a field of Limits."""

WITHOUT_MEANING: Final = {
    "buffersize": Setting("", number(1024, 1 << 20)),
    "pool-min-free": Setting("", number(0, 10_000)),
    "pool-max-free": Setting("", number(1, 100_000)),
    "pool-trim-delay": Setting("", number(100, 300_000)),
}
"""Those of them that are rinetd-uv's words about its buffers."""

WORDS: Final = {**SETTINGS, **LIMITS, **WITHOUT_MEANING}
"""All of them."""

FILES: Final = {
    "logfile": "logfile",
    "pidlogfile": "pidfile",
    "pidfile": "pidfile",
    "statusfile": "statusfile",
}
"""Directives with a file's name as their value -> fields of Config."""

GUARDS: Final = frozenset(
    {
        *("allow", "deny", "user", "group", "include"),
        *("max-connections", "max-connections-per-client", "max-udp-connections"),
    }
)
"""Directives that keep somebody out, or could."""
