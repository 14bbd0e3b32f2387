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
import fcntl
import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import localtime, strftime, time
from typing import Final, NamedTuple

from fastfwd.model import Address, Forward, LogFormat, Outcome
from fastfwd.observe.scoreboard import Cell, SharedCell
from fastfwd.observe.tlsfields import Tls
from fastfwd.observe.tlsfields import fields as tls_fields

QUEUE_BYTES: Final = 1 << 20
"""What a worker keeps for a log that takes nothing (a full disk, a stalled reader)."""

ATOMIC: Final = 4096
"""PIPE_BUF: the longest write to a pipe that other workers' writes cannot cut (pipe(7))."""


class Event(NamedTuple):
    """One thing to log about one connection.

    Byte counts are the log's: `bytes_in` from the client, `bytes_out` to it. Times are
    in seconds; `dial` is how long the backend took to accept, None if it did not.
    `serial` is the connection's number in its worker; `backend` the address dialled last; `via`
    the connection's own address and port, where another one was announced as the client's; `tls` is
    there where a handshake was begun. Most become text only where a format shows them. (A tuple costs
    a quarter of a dataclass, and a third less with its fields by position.)
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
    via: str | None = None
    tls: Tls | None = None


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
    formats lack: durations, the client's port, the backend's address, slot, session; and TLS,
    where there is some."""
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
            "via": event.via,
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
        if event.tls is not None:
            fields["tls"] = tls_fields(event.tls)
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


class Allowance:
    """So many lines of a kind in a second, so that a flood of clients does not become one of lines."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._since = 0.0
        self._told = 0

    def one_more(self, now: float) -> bool:
        """Whether another line may be logged at `now` (monotonic seconds)."""
        if now >= self._since + 1.0:
            self._since, self._told = now, 0
        self._told += 1
        return self._told <= self._most


class EventLog:
    """A worker's end of the log."""

    def __init__(self, descriptor: int, line: Line, row: memoryview, shared: memoryview) -> None:
        """Log to `descriptor`, which is the log's from now on; counts go to the worker's
        scoreboard `row`, and to `shared` what all workers have to know of the log."""
        self._line = line
        self._row = row
        self._shared = shared
        self._lines: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._attach(descriptor)

    def _attach(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._inode = status.st_ino
        self._pieces = stat.S_ISFIFO(status.st_mode)

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
        if self._waiting or self._pieces:
            self._keep(self._lines)
            self._lines.clear()
            # A log that takes nothing costs one small write a turn, however much waits for it.
            while self._waiting:
                if left := self._write(self._oldest()):
                    self._put_back(left)
                    break
        elif self._lines:
            lines, self._lines = self._lines, []
            if left := self._write(lines):
                self._keep(left)

    def close(self) -> None:
        """Write what there is and close. What cannot be written now is dropped and counted."""
        self.flush()
        self._row[Cell.LOG_DROPPED] += len(self._waiting)
        self._waiting.clear()
        os.close(self._descriptor)

    def _write(self, lines: list[bytes]) -> list[bytes]:
        """Write `lines`; returns those that are left to be written later."""
        if self._shared[SharedCell.LOG_CUT] == self._inode and not self._end_half_a_line():
            return lines
        data = b"".join(lines)
        try:
            written = os.write(self._descriptor, data)
        except OSError:  # EAGAIN, ENOSPC, EIO, EDQUOT: tried again at the next flush
            return lines
        if written == len(data):
            self._row[Cell.LOG_LINES] += len(lines)
            return []
        whole = data.count(b"\n", 0, written)
        cut = not data.endswith(b"\n", 0, written)
        self._row[Cell.LOG_LINES] += whole
        if cut:
            self._row[Cell.LOG_DROPPED] += 1
            self._shared[SharedCell.LOG_CUT] = self._inode
        return lines[whole + cut :]

    def _end_half_a_line(self) -> bool:
        """End the line that a short write has cut, mine or another worker's. Returns False when the
        log does not take even that, or somebody else is at it: one newline is wanted, not two."""
        try:
            # A record lock: the workers share one open file, and would share a flock(2).
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # ENOLCK: a file system without locks; at worst there is an empty line
            pass
        try:
            if self._shared[SharedCell.LOG_CUT] == self._inode:
                if os.fstat(self._descriptor).st_size:  # it may have been truncated since (logrotate)
                    os.write(self._descriptor, b"\n")
                self._shared[SharedCell.LOG_CUT] = 0
        except OSError:
            return False
        finally:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return True

    def _oldest(self) -> list[bytes]:
        """Take as many of the waiting lines as a pipe takes in one piece; at least one."""
        taken = [self._waiting.popleft()]
        size = len(taken[0])
        while self._waiting and size + len(self._waiting[0]) <= ATOMIC:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        self._waiting_bytes -= size
        return taken

    def _put_back(self, lines: list[bytes]) -> None:
        self._waiting.extendleft(reversed(lines))
        self._waiting_bytes += sum(map(len, lines))

    def _keep(self, lines: list[bytes]) -> None:
        for line in lines:
            if self._waiting_bytes + len(line) > QUEUE_BYTES:
                self._row[Cell.LOG_DROPPED] += 1
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
