"""The exporter's /status, fetched and laid out for a terminal: `fastfwd --status`.

cli calls `fetch` and prints what `text` makes of the answer. It reads what any client
may read, and needs no rights.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Sequence
from time import localtime, strftime
from typing import Any, Final

import orjson

from fastfwd.model import MetricsAddress

TIMEOUT: Final = 5.0
"""Seconds for each step of asking."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Called by the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def fetch(address: MetricsAddress) -> dict[str, Any]:
    """What the exporter at `address` says of itself (observe/status.Status as JSON). Raises
    OSError when nobody answers there, ValueError when it is no exporter of ours."""
    connection = (
        http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
        if address.path is None
        else _UnixConnection(address.path)
    )
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        status = orjson.loads(answer.read()) if answer.status == 200 else None
    except http.client.HTTPException as error:
        raise ValueError(f"no HTTP: {error!r}") from None
    finally:
        connection.close()
    if not isinstance(status, dict) or "forwards" not in status:
        raise ValueError(f"no status of fastfwd (HTTP {answer.status})")
    return status


def text(status: dict[str, Any]) -> str:
    """The page: a head, what is wrong if anything, a table of forwards, one of workers."""
    now = status["time"]
    config = status["config"]
    up = f", up {duration(now - status['started'])}" if status["started"] else ""
    reloads = f"reloads: {config['reloads']}, refused: {config['reload_failures']}"
    head = [
        f"fastfwd {status['version']}, process {status['pid']}: {status['state']}{up}",
        f"{config['file']}, applied {moment(config['last_reload'])}; {reloads}",
    ]
    blocks = [head, _warnings(status), _forwards(status), _workers(status)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _warnings(status: dict[str, Any]) -> list[str]:
    found = []
    if not status["config"]["last_reload_successful"]:
        found.append("the last reload was refused: the configuration from before it serves")
    missing = status["workers_configured"] - status["workers_running"]
    if missing:
        found.append(f"{missing} of {status['workers_configured']} workers do not serve")
    if status["log"]["dropped"]:
        found.append(f"{status['log']['dropped']} lines of the connection log were lost")
    return [f"! {each}" for each in found]


def _forwards(status: dict[str, Any]) -> list[str]:
    heads = (
        "FORWARD",
        "TARGET",
        "ACTIVE",
        "ACCEPTED",
        "/S",
        "IN/S",
        "OUT/S",
        "IN",
        "OUT",
        "DENIED",
        "FAILED",
    )
    rows = [
        (
            each["forward"],
            each["target"] or "(removed)",
            *(str(each[name]) for name in ("active", "accepted")),
            *_rates(each["rates"]),
            size(each["received_bytes"]),
            size(each["sent_bytes"]),
            str(sum(each["denied"].values())),
            str(sum(each["connect_failures"].values())),
        )
        for each in status["forwards"]
        if each["configured"] or each["active"]
    ]
    totals = status["totals"]
    total = (
        *("total", "", str(totals["active"]), str(totals["accepted"])),
        *_rates(totals["rates"]),
        *(size(totals["received_bytes"]), size(totals["sent_bytes"]), str(totals["denied"])),
        str(sum(sum(each["connect_failures"].values()) for each in status["forwards"])),
    )
    return table(heads, [*rows, total], words=2)


def _rates(rates: dict[str, float] | None) -> tuple[str, str, str]:
    if rates is None:
        return "-", "-", "-"
    return f"{rates['connections']:.1f}", size(rates["received_bytes"]), size(rates["sent_bytes"])


def _workers(status: dict[str, Any]) -> list[str]:
    heads = ("SLOT", "PID", "UP", "BEAT", "SESSIONS", "LOAD", "CPU", "MEMORY", "FDS", "RESTARTS", "PAUSED")
    rows = []
    for each in status["workers"]:
        load, memory = each["cpu_load"], each["memory_bytes"]
        rows.append(
            (
                str(each["slot"]),
                str(each["pid"]) if each["running"] else "-",
                duration(status["time"] - each["started"]) if each["running"] else "-",
                f"{max(0.0, status['time'] - each['heartbeat']):.1f} s",
                str(each["sessions"]),
                "-" if load is None else f"{load:.0%}",
                f"{sum(each['cpu_seconds'].values()):.1f} s",
                "-" if memory is None else size(memory),
                f"{_known(each['open_fds'])}/{_known(each['max_fds'])}",
                str(sum(each["restarts"].values())),
                f"{each['accept_paused_seconds']:.1f} s",
            )
        )
    return table(heads, rows)


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 0) -> list[str]:
    """Lines of columns as wide as they need to be; the first `words` hold words, the others
    figures, which are set to the right."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]


def size(count: float) -> str:
    """Bytes in units of 1000, to three digits: 999 B, 1.23 kB, 45.6 MB."""
    if count < 999.5:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB", "PB", "EB"))
    unit = ""
    while count >= 999.5:
        count /= 1000
        unit = next(units)
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {unit}"


def duration(seconds: float) -> str:
    """Days, hours, minutes, seconds: the two that matter."""
    left = max(0, int(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def moment(when: float) -> str:
    """A time in the local zone, as a log would write it."""
    return strftime("%Y-%m-%d %H:%M:%S %z", localtime(when))
