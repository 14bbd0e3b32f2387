"""Status -> what rinetd-uv writes of itself now and then: a status file, a line of statistics.

The exporter makes it where `statusfile` or `statsloginterval` ask for it. Pure. The fields are those
that rinetd-uv documents; no client's and no backend's address is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from orjson import OPT_APPEND_NEWLINE, OPT_INDENT_2, dumps

from fastfwd.observe.status import ForwardStatus, Status

KINDS = ("tcp", "udp", "unix")


def by_kind(status: Status) -> dict[str, list[ForwardStatus]]:
    """The forwards by what their clients come by."""
    found: dict[str, list[ForwardStatus]] = {kind: [] for kind in KINDS}
    for each in status.forwards:
        found["unix" if each.listen.startswith("unix:") else each.proto].append(each)
    return found


def document(status: Status) -> dict[str, Any]:
    """The status file's content. Counters begin at the start, and go on over reloads."""
    forwards = [each for each in status.forwards if each.configured]
    connections = {
        "active": sum(each.active for each in status.forwards),
        **{f"active_{kind}": sum(each.active for each in of) for kind, of in by_kind(status).items()},
        "total": sum(each.accepted for each in status.forwards),
        **{f"total_{kind}": sum(each.accepted for each in of) for kind, of in by_kind(status).items()},
    }
    return {
        "timestamp": datetime.fromtimestamp(int(status.time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": status.version,
        "uptime_seconds": int(status.time - status.started),
        "config_reloads": status.config.reloads,
        "stats_since_reload": False,
        "connections": connections,
        "traffic": {"bytes_in": status.totals.received_bytes, "bytes_out": status.totals.sent_bytes},
        "errors": errors(status),
        # It has no buffers of its own to tell of: the kernel moves the bytes.
        "buffer_pool": {"buffer_size": 0, "free": 0, "allocs_from_pool": 0, "allocs_from_malloc": 0},
        "servers": len(forwards),
        "rules": [rule(each) for each in forwards],
    }


def errors(status: Status) -> dict[str, int]:
    """Failures to accept, to connect, and who was not let in."""
    return {
        "accept": sum(status.accept_errors.values()),
        "connect": sum(sum(each.connect_failures.values()) for each in status.forwards),
        "denied": status.totals.denied,
    }


def rule(forward: ForwardStatus) -> dict[str, Any]:
    """One forward, with its backends if there are several."""
    return {
        "name": forward.forward,
        "algorithm": forward.balance,
        "connections_active": forward.active,
        "connections_total": forward.accepted,
        "bytes_in": forward.received_bytes,
        "bytes_out": forward.sent_bytes,
        "backends": [
            {
                "name": each.backend,
                "healthy": each.up,
                "connections_active": each.active,
                "connections_total": each.accepted,
                "bytes_in": each.received_bytes,
                "bytes_out": each.sent_bytes,
            }
            for each in forward.backends
        ],
    }


def as_json(status: Status) -> bytes:
    """The file in JSON."""
    return dumps(document(status), option=OPT_INDENT_2 | OPT_APPEND_NEWLINE)


def as_text(status: Status) -> bytes:
    """The file as lines of `name: value`, a dot for each level."""

    def flat(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, each in value.items():
                yield from flat(each, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for number, each in enumerate(value):
                yield from flat(each, f"{name}[{number}]")
        else:
            yield f"{name}: {str(value).lower() if isinstance(value, bool) else value}\n"

    return "".join(flat(document(status), "")).encode()


def line(status: Status) -> str:
    """One line of statistics for the program's own log."""
    found = document(status)
    connections, traffic, failures = found["connections"], found["traffic"], found["errors"]
    each_kind = [f"{kind}={connections[f'active_{kind}']}/{connections[f'total_{kind}']}" for kind in KINDS]
    words = [
        f"uptime={found['uptime_seconds']}s",
        f"conns={connections['active']}/{connections['total']}",
        *each_kind,
        f"traffic={traffic['bytes_in']}/{traffic['bytes_out']}",
        f"errors={failures['accept']}/{failures['connect']}/{failures['denied']}",
    ]
    return "STATS: " + " ".join(words)
