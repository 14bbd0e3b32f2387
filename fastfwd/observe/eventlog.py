"""The connection log: rinetd's two formats byte for byte, and one with everything.

worker/ calls `event` when a connection is opened, refused or ended; the lines of a
turn leave in one write(2) at its end. Several workers append to one file, so only
whole lines are written, with O_APPEND. It must never wait: what the log will not
take is kept up to a bound, then dropped and counted.

The formats are those of rinetd 0.73, established by running it: a space before the
first tab, two spaces before the zone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from time import localtime, strftime, time
from typing import Final, NamedTuple

from fastfwd.model import Address, Forward, LogFormat, Outcome
from fastfwd.observe.scoreboard import Cell

QUEUE_BYTES: Final = 1 << 20
"""What a worker keeps for a log that takes nothing (a full disk, a stalled reader)."""

ATOMIC: Final = 4096
"""PIPE_BUF: the longest write to a pipe that other workers' writes cannot cut (pipe(7))."""


class Event(NamedTuple):
    """One thing to log about one connection.

    Byte counts are the log's: `bytes_in` from the client, `bytes_out` to it. Times are
    in seconds; `dial` is how long the backend took to accept, None if it did not.
    `serial` is the connection's number in its worker; `backend` the address dialled last.
    Both become text only where a format shows them. (A tuple costs a quarter of a
    dataclass, and a third less with its fields by position.)
    """

    forward: Forward
    outcome: Outcome
    client: str
    client_port: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    duration: float = 0.0
    serial: int = 0
    backend: Address | None = None
    dial: float | None = None


Line = Callable[[Event, float], bytes]
"""(event, seconds since the epoch) -> one line with its newline, in UTF-8."""


class _Stamp:
    """Formats a time once per second. The zone is the process's (TZ, /etc/localtime)."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._second = -1
        self._text = ""

    def __call__(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._text = strftime(self._form, localtime(second))
        return self._text


def rinetd_line(*, duration: bool) -> Line:
    """rinetd's tab format; with `duration` a tenth column, seconds with three decimals."""
    stamp = _Stamp("%d/%b/%Y:%H:%M:%S ")

    def line(event: Event, now: float) -> bytes:
        listen, target = event.forward.listen, event.forward.target
        tail = f"\t{event.duration:.3f}\n" if duration else "\n"
        return (
            f"{stamp(now)}\t{event.client}\t{listen.host}\t{listen.port}\t{target.host}\t{target.port}"
            f"\t{event.bytes_in}\t{event.bytes_out}\t{event.outcome._value_}{tail}"  # .value: 0.1 µs more
        ).encode()

    return line


def common_line() -> Line:
    """The web server's common log format, as rinetd's `logcommon` writes it."""
    stamp = _Stamp("%d/%b/%Y:%H:%M:%S  %z")

    def line(event: Event, now: float) -> bytes:
        listen, target = event.forward.listen, event.forward.target
        return (
            f'{event.client} - - [{stamp(now)}] "GET /rinetd-services/{listen.host}/{listen.port}/'
            f'{target.host}/{target.port}/{event.outcome.value} HTTP/1.0" 200 {event.bytes_out} - - - '
            f"{event.bytes_in}\n"
        ).encode()

    return line


def json_line(slot: int, born: str) -> Line:
    """One JSON object per line (RFC 8259; `time` as in RFC 3339, UTC), with what rinetd's
    formats lack: durations, the client's port, the backend's address, slot, session."""
    from datetime import UTC, datetime

    from orjson import OPT_APPEND_NEWLINE, OPT_UTC_Z, dumps

    def line(event: Event, now: float) -> bytes:
        forward = event.forward
        fields = {
            "time": datetime.fromtimestamp(round(now, 3), UTC),
            "session": f"{born}-{event.serial:x}",
            "outcome": event.outcome.value,
            "forward": forward.label,
            "proto": forward.listen.protocol.value,
            "client": event.client,
            "client_port": event.client_port,
            "listen": forward.listen.host,
            "listen_port": forward.listen.port,
            "connect": forward.target.host,
            "connect_port": forward.target.port,
            "backend": event.backend and event.backend.at(forward.target.port),
            "bytes_in": event.bytes_in,
            "bytes_out": event.bytes_out,
            "duration": round(event.duration, 6),
            "dial": None if event.dial is None else round(event.dial, 6),
            "slot": slot,
        }
        return dumps(fields, option=OPT_APPEND_NEWLINE | OPT_UTC_Z)

    return line


def line_format(logformat: LogFormat, *, duration: bool, slot: int, born: str) -> Line:
    """The line formatter for a configuration's `logformat` and `logduration`. A session's
    name is `born`, which tells this process from all others, and its serial."""
    if logformat is LogFormat.JSON:
        return json_line(slot, born)
    if logformat is LogFormat.COMMON:
        return common_line()
    return rinetd_line(duration=duration)


def open_log(path: str) -> int:
    """Open the log for appending, mode 0644 as rinetd, and return the descriptor, which
    never blocks. A FIFO is opened for both directions: without a reader the open for
    writing alone fails (fifo(7)), and a reader may come later. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class EventLog:
    """A worker's end of the log."""

    def __init__(self, descriptor: int, line: Line, row: memoryview) -> None:
        """Log to `descriptor`, which is the log's from now on; counts go to the worker's
        scoreboard `row`."""
        self._line = line
        self._row = row
        self._lines: list[bytes] = []
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._attach(descriptor)

    def _attach(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._cut = False
        self._pieces = stat.S_ISFIFO(os.fstat(descriptor).st_mode)

    def reopen(self, descriptor: int) -> None:
        """Go on in `descriptor`, the same log opened again after a rotation. What the old
        one did not take goes to the new one."""
        self.flush()
        os.close(self._descriptor)
        self._attach(descriptor)

    def event(self, event: Event) -> None:
        """Log `event` at the end of this turn."""
        self._lines.append(self._line(event, time()))

    def flush(self) -> None:
        """Write what there is, in whole lines; called at the end of every turn."""
        if not self._lines and not self._waiting:
            return
        lines, self._lines = self._lines, []
        if self._waiting:
            self._keep(lines)
            lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for batch in self._batches(lines):
            if not self._write(batch):
                self._keep(batch)

    def close(self) -> None:
        """Write what there is and close. What cannot be written now is dropped and counted."""
        self.flush()
        self._row[Cell.LOG_DROPPED] += len(self._waiting)
        self._waiting.clear()
        os.close(self._descriptor)

    def _batches(self, lines: list[bytes]) -> list[list[bytes]]:
        if not self._pieces:
            return [lines]
        batches: list[list[bytes]] = []
        room = 0
        for line in lines:
            if len(line) > room:
                batches.append([])
                room = ATOMIC
            batches[-1].append(line)
            room -= len(line)
        return batches

    def _write(self, batch: list[bytes]) -> bool:
        """Write `batch`; True when nothing of it is left to be written later."""
        if self._waiting:  # an earlier batch of this flush was refused; keep the order
            return False
        # After a short write the log ends in half a line; end it before the next one.
        data = b"\n" + b"".join(batch) if self._cut else b"".join(batch)
        try:
            written = os.write(self._descriptor, data)
        except OSError:  # EAGAIN, ENOSPC, EIO, EDQUOT: tried again at the next flush
            return False
        self._row[Cell.LOG_LINES] += len(batch)
        if written < len(data):
            whole = data[:written].count(b"\n") - self._cut
            self._row[Cell.LOG_LINES] -= len(batch) - whole
            self._cut = not data[:written].endswith(b"\n")
            self._row[Cell.LOG_DROPPED] += self._cut
            self._keep(batch[whole + self._cut :])
            return True
        self._cut = False
        return True

    def _keep(self, lines: list[bytes]) -> None:
        for line in lines:
            if self._waiting_bytes + len(line) > QUEUE_BYTES:
                self._row[Cell.LOG_DROPPED] += 1
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
