"""The exporter's /status, fetched and laid out for a terminal: `fastfwd --status`.

cli calls `fetch` and prints what `text` makes of the answer. It reads what any client
may read, and needs no rights.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import localtime, strftime
from typing import Any, Final

import orjson

from fastfwd.model import MetricsAddress

TIMEOUT: Final = 5.0
"""Seconds for each step of asking."""

SOON: Final = 14 * 86400
"""Seconds before a certificate's end from which on it is warned of."""

SHORTEST: Final = 12
"""Characters that are left of a name, however narrow the terminal is."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: `words` are set to the left, and cut where there is no room for them;
    figures never are. Of those with a `spare`, the highest goes first from a narrow terminal."""

    head: str
    words: bool = False
    spare: int = 0


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


def width() -> int | None:
    """Columns of the terminal that standard output is; None if it is none: a file has room."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # ValueError: there is no file behind it
        return None


def text(status: dict[str, Any], width: int | None = None) -> str:
    """The page: a head, what is wrong if anything, a table of forwards, one of the backends of
    those that have several, one of UDP's datagrams, one of TLS, one of PROXY headers, one of workers;
    each in so many columns."""
    now = status["time"]
    config = status["config"]
    up = f", up {duration(now - status['started'])}" if status["started"] else ""
    reloads = f"reloads: {config['reloads']}, refused: {config['reload_failures']}"
    before = status["upgrades"]["previous_sessions"]
    older = f", {before} more of the program before an upgrade" if before else ""
    head = [
        f"fastfwd {status['version']}, process {status['pid']}: {status['state']}{up}{older}",
        f"{config['file']}, applied {moment(config['last_reload'])}; {reloads}",
    ]
    shown = [each for each in status["forwards"] if each["configured"] or each["active"]]
    tables = [
        _forwards(status, shown, width),
        _backends(shown, width),
        _datagrams(shown, width),
        _tls(shown, now, width),
        _proxy(shown, width),
        _workers(status, width),
    ]
    blocks = [head, _warnings(status), *tables]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _warnings(status: dict[str, Any]) -> list[str]:
    found = []
    if not status["config"]["last_reload_successful"]:
        found.append("the last reload was refused: the configuration from before it serves")
    if failures := status["upgrades"]["failures"]:
        found.append(f"{failures} hot upgrades have failed: the log says why")
    missing = status["workers_configured"] - status["workers_running"]
    if missing:
        found.append(f"{missing} of {status['workers_configured']} workers do not serve")
    if status["log"]["dropped"]:
        found.append(f"{status['log']['dropped']} lines of the connection log were lost")
    for each in status["forwards"]:
        found += _forward_warnings(each) + _certificate_warnings(each, status["time"])
    return [f"! {each}" for each in found]


def _forward_warnings(forward: dict[str, Any]) -> list[str]:
    found = []
    several = _several(forward)
    down = [each["backend"] for each in several if not each["up"]]
    if down and len(down) == len(several):
        found.append(f"{forward['forward']}: all backends are left out; every one is tried all the same")
    elif down:
        found.append(f"{forward['forward']}: left out of {len(several)} backends: {', '.join(down)}")
    if evicted := forward["closed"]["evicted"]:
        found.append(f"{forward['forward']}: {evicted} flows were evicted (max-udp-connections)")
    return found


def _certificate_warnings(forward: dict[str, Any], now: float) -> list[str]:
    found = []
    for each in forward["certificates"]:
        if (left := each["expires"] - now) < SOON:
            when = f"expires in {duration(left)}" if left > 0 else "has expired"
            found.append(f"{forward['forward']}: the certificate {each['file']} {when}")
    return found


def _several(forward: dict[str, Any]) -> list[dict[str, Any]]:
    """The backends of a forward that has more than one."""
    return [each for each in forward["backends"] if each["configured"]] if forward["balance"] else []


def _forwards(status: dict[str, Any], shown: list[dict[str, Any]], width: int | None) -> list[str]:
    columns = (
        *(Column("FORWARD", words=True), Column("TARGET", words=True, spare=2)),
        *(Column("ACTIVE"), Column("ACCEPTED"), Column("/S"), Column("IN/S", spare=1)),
        *(Column("OUT/S", spare=1), Column("IN", spare=4), Column("OUT", spare=4)),
        *(Column("DENIED", spare=3), Column("FAILED")),
    )
    rows = [
        (
            each["forward"],
            _target(each),
            *(str(each[name]) for name in ("active", "accepted")),
            *_rates(each["rates"]),
            size(each["received_bytes"]),
            size(each["sent_bytes"]),
            str(sum(each["denied"].values())),
            str(sum(each["connect_failures"].values())),
        )
        for each in shown
    ]
    totals = status["totals"]
    total = (
        *("total", "", str(totals["active"]), str(totals["accepted"])),
        *_rates(totals["rates"]),
        *(size(totals["received_bytes"]), size(totals["sent_bytes"]), str(totals["denied"])),
        str(sum(sum(each["connect_failures"].values()) for each in status["forwards"])),
    )
    return table(columns, [*rows, total], width)


def _target(forward: dict[str, Any]) -> str:
    if several := _several(forward):
        return f"{len(several)} backends"
    return forward["target"] or "(removed)"


def _rates(rates: dict[str, float] | None) -> tuple[str, str, str]:
    if rates is None:
        return "-", "-", "-"
    return f"{rates['connections']:.1f}", size(rates["received_bytes"]), size(rates["sent_bytes"])


def _backends(shown: list[dict[str, Any]], width: int | None) -> list[str]:
    """Nothing if no forward has several. SHARE is one of the connections since the start."""
    columns = (
        *(Column("FORWARD", words=True), Column("BACKEND", words=True), Column("STATE", words=True)),
        *(Column("ACTIVE"), Column("ACCEPTED", spare=1), Column("SHARE"), Column("IN", spare=3)),
        *(Column("OUT", spare=3), Column("DIALS", spare=2), Column("FAILED")),
    )
    rows = []
    for forward in shown:
        several = _several(forward)
        accepted = sum(each["accepted"] for each in several)
        rows += [
            (
                forward["forward"],
                each["backend"],
                "up" if each["up"] else "left out",
                *(str(each["active"]), str(each["accepted"])),
                f"{each['accepted'] / accepted:.0%}" if accepted else "-",
                *(size(each["received_bytes"]), size(each["sent_bytes"])),
                *(str(each["connects"]), str(sum(each["connect_failures"].values()))),
            )
            for each in several
        ]
    return table(columns, rows, width) if rows else []


def _datagrams(shown: list[dict[str, Any]], width: int | None) -> list[str]:
    """Nothing if no forward is one of UDP. The last three columns before EVICTED are those lost here:
    in the listener's queue, on the way to a backend, on the way to a client."""
    columns = (
        *(Column("DATAGRAMS OF", words=True), Column("IN/S"), Column("OUT/S"), Column("IN", spare=1)),
        *(Column("OUT", spare=1), Column("LOST: QUEUE"), Column("BACKEND"), Column("CLIENT")),
        Column("EVICTED"),
    )
    rows = []
    for each in shown:
        if (counts := each["datagrams"]) is None:
            continue
        rates = each["rates"]
        rows.append(
            (
                each["forward"],
                "-" if rates is None else f"{rates['received_datagrams']:.1f}",
                "-" if rates is None else f"{rates['sent_datagrams']:.1f}",
                *(str(counts[way]) for way in ("received", "sent")),
                *(str(counts["dropped"][reason]) for reason in ("queue", "backend", "client")),
                str(each["closed"]["evicted"]),
            )
        )
    return table(columns, rows, width) if rows else []


def _tls(shown: list[dict[str, Any]], now: float, width: int | None) -> list[str]:
    """Nothing if no forward has TLS. The last column is the time that the certificate has left which
    ends first."""
    columns = (
        *(Column("TLS OF", words=True), Column("WITH", words=True), Column("HANDSHAKES")),
        *(Column("RESUMED", spare=1), Column("FAILED"), Column("CUT", spare=2), Column("CERTIFICATE")),
    )
    rows = []
    for forward in shown:
        for side, counts in forward["handshakes"].items():
            ends = [each["expires"] for each in forward["certificates"] if each["side"] == side]
            rows.append(
                (
                    forward["forward"],
                    f"{side}s",
                    str(sum(counts["versions"].values())),
                    str(counts["resumed"]),
                    str(sum(counts["failures"].values())),
                    str(counts["cut"]),
                    "-" if not ends else duration(left) if (left := min(ends) - now) > 0 else "expired",
                )
            )
    return table(columns, rows, width) if rows else []


def _proxy(shown: list[dict[str, Any]], width: int | None) -> list[str]:
    """Nothing if nobody announces clients."""
    reasons = ("malformed", "stranger", "timeout", "closed")
    columns = (
        Column("NO PROXY HEADER FOR", words=True),
        *(Column(reason.upper()) for reason in reasons),
    )
    rows = [
        (each["forward"], *(str(each["proxy_failures"][reason]) for reason in reasons))
        for each in shown
        if each["proxy_failures"] is not None
    ]
    return table(columns, rows, width) if rows else []


def _workers(status: dict[str, Any], width: int | None) -> list[str]:
    columns = (
        *(Column("SLOT"), Column("PID"), Column("UP"), Column("BEAT"), Column("SESSIONS"), Column("LOAD")),
        *(Column("CPU", spare=1), Column("MEMORY"), Column("FDS", spare=2), Column("RESTARTS")),
        Column("PAUSED", spare=3),
    )
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
    return table(columns, rows, width)


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of columns as wide as they need to be, if so many characters have room for them. Else
    columns that can be spared go, then the longest words become shorter, to SHORTEST at least."""
    cells = list(zip([column.head for column in columns], *rows, strict=True))
    kept = list(zip(columns, cells, [max(map(len, column)) for column in cells], strict=True))

    def excess(shortest: bool) -> int:
        used = (min(size, SHORTEST) if shortest and column.words else size for column, _, size in kept)
        return 0 if width is None else sum(used) + 2 * (len(kept) - 1) - width

    while excess(shortest=True) > 0 and (most := max(column.spare for column, _, _ in kept)):
        kept = [each for each in kept if each[0].spare != most]
    sizes = [size for _, _, size in kept]
    words = [place for place, (column, _, _) in enumerate(kept) if column.words]
    for _ in range(excess(shortest=False)):
        longest = max(words, key=lambda place: sizes[place], default=None)
        if longest is None or sizes[longest] <= SHORTEST:
            break
        sizes[longest] -= 1
    return [
        "  ".join(
            _cut(cell, size).ljust(size) if place in words else cell.rjust(size)
            for place, (cell, size) in enumerate(zip(line, sizes, strict=True))
        ).rstrip()
        for line in zip(*(column for _, column, _ in kept), strict=True)
    ]


def _cut(text: str, size: int) -> str:
    """The middle goes: addresses and paths differ at both ends."""
    if len(text) <= size:
        return text
    behind = (size - 1) // 2
    return f"{text[: size - 1 - behind]}…{text[-behind:]}"


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
