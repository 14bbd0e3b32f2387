"""Runs the program under test, or C rinetd or HAProxy with the same interface, on a configuration.

    with Forwarder(tmp_path, f"127.0.0.1 {port} {backend.host} {backend.port}\n") as forwarder:
        client = connect(("127.0.0.1", port))
        ...
        assert forwarder.wait_log(1)[0].endswith("opened")

Leaving the block stops the program and fails the test if it did not stop cleanly,
wrote a traceback or left a process behind. Tests use the `forwarder` fixture
(conftest.py), which does the same for any number of them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tests import deadline, haproxy, processes
from tests.deadline import until
from tests.peers import require_peer

Kind = Literal["fastfwd", "rinetd", "haproxy"]

READY = {"fastfwd": "ready:", "rinetd": "rinetd: starting redirections...", "haproxy": "Loading success."}
"""What each kind writes to stderr once it serves."""

RELOADED = {"fastfwd": "reloaded:", "haproxy": "Loading success."}
REFUSED = {"fastfwd": "reload refused:", "haproxy": "Loading failure!"}
"""What they write when a reload is done, or refused. C rinetd says neither."""

UPGRADED = "has taken over"
"""What the old program says in a hot upgrade."""

WORKER = re.compile(r"fastfwd-w(\d+)")
RESOLVER = "fastfwd-dns"
EXPORTER = "fastfwd-metrics"

COLUMNS = (
    *("time", "client", "listen", "listen_port", "connect", "connect_port"),
    *("bytes_in", "bytes_out", "outcome", "duration"),
)
"""The columns of rinetd's log; `duration` only with `logduration`."""


def program(kind: Kind = "fastfwd") -> list[str]:
    """The command, without arguments."""
    return [sys.executable, "-m", "fastfwd"] if kind == "fastfwd" else [require_peer(kind)]


def version(kind: Kind) -> str:
    """What it says of itself, to two numbers: `2.6`."""
    said = subprocess.run([*program(kind), "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+", said)
    assert found, said
    return found[0]


def run(*args: str, cwd: Path | None = None, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """Run `fastfwd` with these arguments to its end (`-t`, `-h`, `-v`, a configuration that it refuses)."""
    return subprocess.run(
        [*program(), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=deadline.seconds(seconds),
    )


def columns(line: str) -> dict[str, str]:
    """A line of rinetd's format as column name -> text."""
    return dict(zip(COLUMNS, line.split("\t"), strict=False))


class Forwarder:
    """One running program in a directory of its own below `directory`.

    `config` is a configuration text, dedented; `logfile` and `workers` lines are
    appended unless it has its own (or `log=False`, `workers=None`); for HAProxy it is
    translated (tests/haproxy.py). `command` is put before the program (`["strace", ...]`,
    `["ip", "netns", "exec", ...]`), `env` is added to the environment, and it inherits
    the descriptors `inherit`. `instead` is another way to start it.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        kind: Kind = "fastfwd",
        args: Sequence[str] = (),
        log: bool = True,
        workers: int | None = 2,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        inherit: Sequence[int] = (),
        instead: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.mark = f"FASTFWD_TEST_MARK={uuid.uuid4()}"
        self.directory = directory / f"{kind}-{self.mark[-8:]}"
        self.directory.mkdir()
        self.config_path = self.directory / ("haproxy.cfg" if kind == "haproxy" else "rinetd.conf")
        self.log_path = self.directory / ("stdout" if kind == "haproxy" else "connections.log")
        self.stderr_path = self.directory / "stderr"
        self.log = log
        self.worker_count = workers
        self.closed = False
        self.expected_return = {0}
        self.successor: int | None = None
        """The program that has taken over in a hot upgrade: it is not our child."""
        self.configure(config)
        # HAProxy has a master, which reloads, and a worker, which serves.
        start = ["-W", "-f"] if kind == "haproxy" else ["-f", "-c"]
        name, _, value = self.mark.partition("=")
        with self.stderr_path.open("wb") as stderr, (self.directory / "stdout").open("wb") as stdout:
            self.process = subprocess.Popen(
                [*command, *(instead or program(kind)), *start, str(self.config_path), *args],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.directory,
                env={**os.environ, **(env or {}), name: value},
                start_new_session=True,
                pass_fds=inherit,
            )
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    # Configuration

    def configure(self, config: str) -> None:
        """Put a configuration in place; a running program sees it at its next reload, and one
        that is reading just now sees the old one whole."""
        text = textwrap.dedent(config)
        directives = {line.split()[0] for line in text.splitlines() if line.split()}
        if text and not text.endswith("\n"):
            text += "\n"
        if self.kind == "haproxy":
            text = haproxy.translated(text, threads=self.worker_count or 1, log=self.log)
        elif self.log and "logfile" not in directives:
            text += f"logfile {self.log_path}\n"
        if self.kind == "fastfwd" and self.worker_count is not None and "workers" not in directives:
            text += f"workers {self.worker_count}\n"
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.config_path)

    # Processes

    @property
    def pid(self) -> int:
        """The supervisor's process (HAProxy's master, the only one of C rinetd); the one that serves, after
        an upgrade."""
        if self.successor is not None:
            return self.successor
        # Another command before it may have become it (ip netns exec) or have it as a child (strace).
        for found in (self.process.pid, *(child.pid for child in processes.children(self.process.pid))):
            if processes.arguments(found)[:1] == program(self.kind)[:1]:
                return found
        return self.process.pid

    def workers(self) -> dict[int, int]:
        """Slot -> pid of the workers that live now. Of HAProxy the one that serves is in slot 0, and
        those that still have sessions from before a reload follow, the latest first."""
        if self.kind == "haproxy":
            born = sorted(processes.children(self.pid), key=lambda each: (each.start, each.pid))
            return {slot: each.pid for slot, each in enumerate(reversed(born))}
        found = {}
        for child in processes.children(self.pid):
            if match := WORKER.fullmatch(child.comm):
                found[int(match[1])] = child.pid
        return found

    def worker(self, slot: int = 0) -> int:
        """The pid of the worker in `slot` (of C rinetd: of the only process)."""
        return self.pid if self.kind == "rinetd" else self.workers()[slot]

    def serving(self) -> list[int]:
        """The processes that take new connections: its workers; HAProxy's present one; C rinetd itself."""
        return list(self.workers().values()) if self.kind == "fastfwd" else [self.worker()]

    def resolver(self) -> int | None:
        """The pid of the resolver, if there is one."""
        return self.child(RESOLVER)

    def exporter(self) -> int | None:
        """The pid of the exporter, if there is one."""
        return self.child(EXPORTER)

    def child(self, comm: str) -> int | None:
        """The pid of the child with that name."""
        found = [child.pid for child in processes.children(self.pid) if child.comm == comm]
        return found[0] if found else None

    def pids(self) -> list[int]:
        """Every living process that stems from this program, orphans too."""
        return processes.marked(self.mark)

    def descriptors(self) -> int:
        """How many descriptors all of its processes hold together."""
        return sum(len(processes.descriptors(pid)) for pid in self.pids())

    def running(self) -> bool:
        """Whether the program has not ended."""
        ended = self.process.poll() is not None
        return not ended if self.successor is None else processes.alive(self.successor)

    # What it says

    def stderr(self) -> str:
        """Everything it has said on stderr so far."""
        return self.stderr_path.read_text(errors="replace")

    def said(self, text: str) -> int:
        """How many lines of its stderr hold `text`."""
        return sum(text in line for line in self.stderr().splitlines())

    def wait_said(self, text: str, count: int = 1, seconds: float = 10) -> None:
        """Wait until `count` lines of stderr hold `text`; fail at once if the program dies."""

        def look() -> bool:
            dead = not self.running()  # before reading: what it said while dying counts
            found = self.said(text) >= count
            assert found or not dead, f"{self.kind} died: {self.process.returncode}\n{self.stderr()}"
            return found

        until(look, seconds, f"{text!r} x {count} on the stderr of {self.kind}")

    def wait_ready(self, seconds: float = 15) -> None:
        """Wait until it serves."""
        self.wait_said(READY[self.kind], seconds=seconds)
        self.wait_obedient()

    def wait_obedient(self) -> None:
        """Wait until an order has an effect."""
        if self.kind == "haproxy":
            until(lambda: haproxy.obeys(self.pid), what="HAProxy to heed signals")

    def log_text(self) -> str:
        """The connection log so far; "" before it exists."""
        try:
            return self.log_path.read_text()
        except FileNotFoundError:
            return ""

    def log_lines(self) -> list[str]:
        """The complete lines of the connection log so far, without their line ends."""
        return [line.removesuffix("\n") for line in self.log_text().splitlines(True) if line.endswith("\n")]

    def log_columns(self) -> list[dict[str, str]]:
        """The lines of a log in rinetd's format as column name -> text."""
        return [columns(line) for line in self.log_lines()]

    def wait_log(self, count: int, containing: str = "", seconds: float = 10) -> list[str]:
        """Wait until the log has `count` lines with `containing`; return all lines with it."""

        def look() -> list[str] | None:
            found = [line for line in self.log_lines() if containing in line]
            return found if len(found) >= count else None

        return until(look, seconds, f"{count} log lines with {containing!r}") or []

    # Orders

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        os.kill(self.pid, number)

    def hup(self) -> None:
        """Ask for a reload; `wait_reloaded` says when it is done."""
        self.send(signal.SIGUSR2 if self.kind == "haproxy" else signal.SIGHUP)

    def reloaded(self) -> int:
        """How many reloads it has carried out."""
        # HAProxy's start is the first.
        return self.said(RELOADED[self.kind]) - (self.kind == "haproxy")

    def reloads(self) -> int:
        """How many reloads it has finished or refused."""
        return self.reloaded() + self.said(REFUSED[self.kind])

    def wait_reloaded(self, count: int, seconds: float = 10) -> None:
        """Wait until it has finished or refused `count` reloads since its start."""
        until(lambda: self.reloads() >= count, seconds, f"{count} reloads\n{self.stderr()}")
        self.wait_obedient()

    def reload(self, config: str | None = None) -> None:
        """Change the configuration if one is given, reload, and wait for the end of it."""
        if config is not None:
            self.configure(config)
        before = self.reloads()
        self.hup()
        self.wait_reloaded(before + 1)

    def upgrade(self, seconds: float = 20) -> int:
        """Have it start anew and hand over; the process that serves from then on. Sessions may still
        be in those before."""
        before = self.said(UPGRADED)
        ready = self.said(READY["fastfwd"])
        self.send(signal.SIGUSR2)
        self.wait_said(UPGRADED, before + 1, seconds)
        self.wait_said(READY["fastfwd"], ready + 1, seconds)
        said = [line for line in self.stderr().splitlines() if UPGRADED in line]
        self.successor = int(re.findall(r"process (\d+)", said[-1])[0])
        return self.successor

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 15) -> int:
        """Send `number`, wait for the end, return the exit status (negative: died by that signal)."""
        if self.running():
            self.send(number)
        return self.wait(seconds)

    def wait(self, seconds: float = 15) -> int:
        """Wait for its end; return the exit status, after an upgrade that of the first program."""
        if self.successor is not None:
            until(lambda: not self.running(), seconds, "the end of the program")
        return self.process.wait(deadline.seconds(seconds))

    # The end

    def kill(self) -> None:
        """End every process of it at once, for a test that has failed already."""
        self.closed = True
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(deadline.seconds(10))

    def close(self) -> None:
        """Stop it if it runs, and assert that it ended well: status, processes, no traceback.

        A test that ends it by other means puts the statuses it allows into
        `expected_return`; C rinetd and HAProxy are not judged.
        """
        if self.closed:
            return
        faults = []
        try:
            for pid in self.pids():  # a test may have stopped a worker
                with suppress(ProcessLookupError):  # or it is ending already
                    os.kill(pid, signal.SIGCONT)
            self.stop()
        except (subprocess.TimeoutExpired, ProcessLookupError) as error:
            faults.append(f"did not stop: {error}")
        try:
            until(lambda: not self.pids(), 5, "its processes are gone")
        except AssertionError:
            left = [processes.stat(pid) for pid in self.pids()]
            faults.append(f"left processes behind: {left}")
        self.kill()
        said = self.stderr()
        if self.kind == "fastfwd":
            if self.process.returncode not in self.expected_return:
                faults.append(f"exit status {self.process.returncode}")
            if "Traceback" in said:
                faults.append("wrote a traceback")
        assert not faults, f"{self.kind}: {'; '.join(faults)}\n{said}"

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()
