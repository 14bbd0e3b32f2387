"""The soak: mixed load and faults at random moments, for as long as one likes.

    python -m tests.faults.soak [MINUTES [SEED]]        # SOAK minutes, or 20, unless told otherwise

Clients of every kind (tests.faults.crowd) talk through the real program while workers are killed and
stopped, configurations, good and bad, are read again, the log is rotated and a backend comes and
goes. A line a minute says how it is; at the end memory and descriptors must not have grown with the
connections, every session must be complete but those whose worker was killed, and SIGTERM must be
a clean end. The same seed makes the same faults in the same order.

The worker in slot 0 is never killed: what it might leak adds up.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests import processes
from tests.apart import apart, said
from tests.deadline import until
from tests.faults.aftermath import Aftermath
from tests.faults.crowd import DENIED, HOST, Crowd
from tests.faults.row import Row
from tests.forwarder import Forwarder
from tests.load import Call, Stream, successor
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo, serve
from tests.sockets import Listener
from tests.system import test_many_sessions
from tests.system.metrics import metrics_url, status

MINUTES: Final = float(os.environ.get("SOAK", "20"))

NUMBER: Final = 40
FAULT: Final = "the soak: mixed load, and every fault at random moments"
PROMISE: Final = (
    "no wrong byte; every session complete but a killed worker's; memory and descriptors do not grow"
    " with the connections; SIGTERM ends it with 0"
)

SAMPLES: Final = 240
"""Looks at memory and descriptors, at most one a second."""

JUDGED: Final = 50_000
"""Connections below which a slope says nothing."""

MEMORY_SLOPE: Final = 1 << 20
"""Bytes per 100,000 connections by which a process may grow."""

DESCRIPTOR_SLOPE: Final = 20.0
"""Descriptors per 100,000 connections: so much are the sessions of the moment good for."""

KILLED: Final = 1
"""The slot whose worker is killed."""

WATCHDOG: Final = 15
"""Seconds within which a worker that stands still must have been replaced."""

ECHO_OF_A_DEATH: Final = 25.0
"""Seconds after a worker's death in which its last clients hear of it: some are silent for 20."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How it was after so many `connections`: by process, and of all together."""

    connections: int
    memory: dict[str, int]
    descriptors: dict[str, int]
    sockets: int
    pipes: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that stood still from `stopped` on and was dead at `over`, and its clients' ports."""

    stopped: float
    over: float
    ports: frozenset[int]

    def took_call(self, call: Call) -> bool:
        """Whether the worker may have had it: it had begun and not ended."""
        return call.began <= self.stopped <= call.ended

    def took_stream(self, ended: float, stream: Stream) -> bool:
        """Whether the worker had it, and this is how its client heard of the end."""
        return stream.port in self.ports and self.stopped <= ended <= self.over + ECHO_OF_A_DEATH


def carried(pid: int, port: int) -> frozenset[int]:
    """The ports of those clients of `port` whose connections `pid` has (ss(8): /proc/net/tcp would
    take seconds, for all that is in TIME_WAIT)."""
    held = set(processes.descriptors(pid).values())
    ss = [require_peer("ss"), "-Htne", "state", "connected", "exclude", "time-wait", f"sport = :{port}"]
    found = set()
    for line in subprocess.run(ss, capture_output=True, text=True, check=True).stdout.splitlines():
        _, _, _, _, remote, *_ = line.split()
        inode = re.search(r"\bino:(\d+)", line)
        if inode and f"socket:[{inode[1]}]" in held:
            found.add(int(remote.rpartition(":")[2]))
    return frozenset(found)


def kill(pid: int) -> None:
    """kill -9, unless the watchdog was quicker."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def slope(points: list[tuple[int, int]]) -> float:
    """Least squares: growth per 100,000 connections."""
    connections, figures = zip(*points, strict=True)
    return statistics.linear_regression(connections, figures).slope * 100_000


@dataclass(slots=True)
class Soak:
    """One run, of `seconds`; what is found goes into `row`, lines for people to `say`."""

    seconds: float
    seed: int
    directory: Path
    row: Row
    say: Callable[[str], None]
    rng: random.Random = field(init=False)
    stack: ExitStack = field(default_factory=ExitStack, init=False)
    running: Forwarder = field(init=False)
    crowd: Crowd = field(init=False)
    config: str = field(init=False)
    fickle: ExitStack = field(init=False)
    fickle_behind: int = field(default_factory=free_port, init=False)
    port: int = field(default_factory=free_port, init=False)
    fickle_port: int = field(default_factory=free_port, init=False)
    others: list[int] = field(init=False)
    faults: Counter[str] = field(default_factory=Counter, init=False)
    losses: list[Loss] = field(default_factory=list, init=False)
    samples: list[Sample] = field(default_factory=list, init=False)
    began: float = field(default_factory=time.monotonic, init=False)
    minutes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.others = [free_port() for _ in range(3)]

    def run(self) -> None:
        """All of it."""
        with self.stack:
            aftermath = self.start()
            self.began = time.monotonic()
            while time.monotonic() < self.began + self.seconds:
                for name in self.rng.sample(list(FAULTS), len(FAULTS)):
                    self.pause(0.2, min(4.0, self.seconds / 20))
                    if time.monotonic() >= self.began + self.seconds:
                        break
                    self.faults[name] += 1
                    FAULTS[name](self)
            self.finish(aftermath)
        self.judge()

    def start(self) -> Aftermath:
        """The backends, the program and its clients."""
        behind = int(said(self.stack.enter_context(apart(test_many_sessions.__name__, "echo"))))
        self.fickle = self.stack.enter_context(ExitStack())
        self.config = (
            f"deny {DENIED}\n"
            f"{HOST} {self.port} {HOST} {behind}\n"
            f"{HOST} {self.fickle_port} {HOST} {self.fickle_behind}\n"
            f"metrics {HOST}:{free_port()}\n"
            f"pidlogfile {self.directory / 'fastfwd.pid'}\n"
            "max-connections 10000\nmax-connections-per-client 9000\n"
            "idle-timeout 1h\nhalf-close-timeout 10m\n"
        )
        self.backend_comes()
        self.running = self.stack.enter_context(Forwarder(self.directory, self.config, workers=2))
        aftermath = Aftermath(self.running)
        aftermath.sessions_lost = True
        self.crowd = self.stack.enter_context(
            Crowd((HOST, self.port), (HOST, self.fickle_port), self.rng.randrange(1 << 30))
        )
        self.crowd.busy(100)
        return aftermath

    def hold(self, holds: bool, what: str) -> None:
        """One try, said at once if it fails."""
        self.row.held(holds, what)
        if not holds:
            self.say(f"{time.monotonic() - self.began:.0f} s: {what}")

    # Time.

    def pause(self, shortest: float, longest: float) -> None:
        """Let it run for some seconds, and look at it when a look is due."""
        over = time.monotonic() + self.rng.uniform(shortest, longest)
        while (left := over - time.monotonic()) > 0:
            self.look()
            self.crowd.reader.join(min(left, 0.2))
            assert self.crowd.reader.is_alive(), "the crowd has died"

    def look(self) -> None:
        """A sample, and a line, if it is time for them."""
        elapsed = time.monotonic() - self.began
        if elapsed >= len(self.samples) * max(1.0, self.seconds / SAMPLES):
            self.samples.append(self.sample())
        if elapsed >= (self.minutes + 1) * 60:
            self.minutes += 1
            self.say(self.line())

    def sample(self) -> Sample:
        """Look now. A process that is just ending is left out."""
        pids = {"supervisor": self.running.pid, "exporter": self.running.exporter()}
        pids |= {f"worker {slot}": pid for slot, pid in self.running.workers().items()}
        memory, descriptors, kinds = {}, {}, Counter[str]()
        for title, pid in pids.items():
            try:
                names = processes.descriptors(pid or 0).values()
                memory[title] = processes.rss(pid or 0)
            except OSError:
                continue
            descriptors[title] = len(names)
            kinds.update(name.partition(":")[0] for name in names)
        accepted = status(metrics_url(self.running))["totals"]["accepted"]
        return Sample(accepted, memory, descriptors, kinds["socket"], kinds["pipe"])

    def line(self) -> str:
        """How it is: for people."""
        now = self.samples[-1]
        memory = ", ".join(f"{title} {size / (1 << 20):.1f}" for title, size in sorted(now.memory.items()))
        return (
            f"{self.minutes:3} min: {now.connections:,} connections,"
            f" {self.crowd.verified / 1e9:.2f} GB verified, {len(self.crowd.wrong)} times wrong,"
            f" {sum(self.faults.values())} faults,"
            f" {now.sockets} sockets, {now.pipes} pipe ends, MiB: {memory}"
        )

    # Faults.

    def standing(self, slot: int) -> int | None:
        """The worker in `slot`, stopped; None if there is none just now."""
        pid = self.running.workers().get(slot)
        if pid is not None:
            processes.stop(pid)
        return pid

    def lose(self, pid: int, end: Callable[[], object]) -> None:
        """Have `end` take the stopped worker `pid`, and note whom it takes with it."""
        stopped, ports = time.monotonic(), carried(pid, self.port)
        end()
        until(lambda: not processes.alive(pid), WATCHDOG, "the worker to die")
        self.losses.append(Loss(stopped, time.monotonic(), ports))

    def kill_worker(self) -> None:
        """kill -9."""
        if (pid := self.standing(KILLED)) is not None:
            self.lose(pid, partial(kill, pid))

    def stop_worker(self) -> None:
        """SIGSTOP, until the watchdog sees it."""
        if (pid := self.standing(KILLED)) is not None:
            self.lose(pid, lambda: successor(self.running, KILLED, pid, WATCHDOG))

    def stop_worker_for_a_moment(self) -> None:
        """SIGSTOP, and SIGCONT before it is missed: any worker."""
        slot = self.rng.randrange(2)
        if (pid := self.standing(slot)) is not None:
            self.pause(0.3, 1.5)
            os.kill(pid, signal.SIGCONT)

    def other_config(self) -> str:
        """Some other forwards, and another limit."""
        target = self.config.split("\n")[1].split(" ", 2)[2]
        added = self.others[: self.rng.randrange(4)]
        limit = self.rng.choice((8_000, 9_000))
        text = self.config.replace("max-connections 10000", f"max-connections {limit}")
        return text + "".join(f"{HOST} {port} {target}\n" for port in added)

    def reload(self, config: str, *, good: bool, meanwhile: Callable[[], None] | None = None) -> None:
        """SIGHUP with that file; it must be taken or refused."""
        word = "reloaded:" if good else "reload refused:"
        before, told = self.running.reloads(), self.running.said(word)
        self.running.configure(config)
        self.running.hup()
        if meanwhile is not None:
            meanwhile()
        self.running.wait_reloaded(before + 1, 20)
        self.hold(self.running.said(word) == told + 1, f"no {word!r} for a {'good' if good else 'bad'} file")

    def reload_good(self) -> None:
        """A good file."""
        self.reload(self.other_config(), good=True)

    def reload_bad(self) -> None:
        """A bad file."""
        self.reload(self.config + f"{HOST} 80 nowhere\n", good=False)

    def reload_taken(self) -> None:
        """A port that another process has."""
        with Listener() as taken:
            self.reload(self.config + f"{HOST} {taken.port} {HOST} 1\n", good=False)

    def reload_and_kill(self) -> None:
        """A good file, and kill -9 before it is in force."""
        self.reload(self.other_config(), good=True, meanwhile=self.kill_worker)

    def rotate(self) -> None:
        """rename and SIGHUP; the old log must have whole lines only."""
        old = self.running.log_path.with_suffix(".1")
        self.running.log_path.rename(old)
        self.reload(self.config, good=True)
        text = old.read_text()
        crooked = [line for line in text.splitlines() if line.count("\t") != 8]
        self.hold(not crooked and "\0" not in text, f"lines of the old log: {crooked[:3]}")
        self.hold(self.running.log_path.exists(), "no new log")

    def backend_comes(self) -> None:
        """The backend of the fickle forward, at its port."""
        self.fickle.enter_context(serve(echo, host=HOST, port=self.fickle_behind))

    def backend_goes(self) -> None:
        """It is gone for a moment."""
        self.fickle.close()
        self.pause(0.3, 2)
        self.backend_comes()

    # The end.

    def finish(self, aftermath: Aftermath) -> None:
        """Everybody goes, everything is back, it ends."""
        self.samples.append(self.sample())
        self.crowd.stop()
        self.reload(self.config, good=True)
        url = metrics_url(self.running)
        try:
            until(lambda: status(url)["totals"]["active"] == 0, 20, "every accepted connection is closed")
            aftermath.judge()
            self.hold(True, "")
        except AssertionError as error:
            self.hold(False, str(error).partition("\n")[0])
        pidfile = self.directory / "fastfwd.pid"
        self.hold(pidfile.read_text().strip() == str(self.running.pid), "the pid file names somebody else")
        told = time.monotonic()
        code = self.running.stop()
        self.row.figure("to stop", (time.monotonic() - told) * 1e3, "ms")
        self.hold(code == 0, f"SIGTERM ended it with {code}")
        self.hold(not pidfile.exists(), "the pid file is still there")

    def judge(self) -> None:
        """The verdict on bytes, sessions and slopes."""
        crowd, row = self.crowd, self.row
        row.tried(len(crowd.wrong), crowd.wrong)
        cut = [each for ended, each in crowd.streams if not self.lost_stream(ended, each)]
        calls = [each for each in crowd.calls if not any(loss.took_call(each) for loss in self.losses)]
        row.tried(crowd.counts["stream"], [f"a session was cut: {each}" for each in cut])
        row.tried(crowd.counts["call"], [f"a call failed: {each}" for each in calls])
        for kind in ("stream", "call", "other", "denied"):
            self.hold(crowd.counts[kind] > 0, f"there was no {kind}")
        for name, count in self.faults.items():
            self.say(f"{count} x {name}")
        lost = len(crowd.streams) - len(cut) + len(crowd.calls) - len(calls)
        row.figure("minutes", self.seconds / 60)
        row.figure("connections", self.samples[-1].connections)
        row.figure("verified", crowd.verified / 1e9, "GB")
        row.figure("faults", sum(self.faults.values()))
        row.figure("workers killed", len(self.losses))
        row.figure("sessions lost with them", lost)
        self.judge_slopes()

    def lost_stream(self, ended: float, stream: Stream) -> bool:
        """Whether it was lost with a worker."""
        return any(loss.took_stream(ended, stream) for loss in self.losses)

    def judge_slopes(self) -> None:
        """Of the processes that live all the time, over the last two thirds."""
        settled = self.samples[len(self.samples) // 3 :]
        enough = settled[-1].connections - settled[0].connections >= JUDGED
        for title in ("supervisor", "worker 0", "exporter"):
            seen = [each for each in settled if title in each.memory]
            memory = slope([(each.connections, each.memory[title]) for each in seen])
            held = slope([(each.connections, each.descriptors[title]) for each in seen])
            text = f"{title}: {memory / 1024:+.0f} KiB, {held:+.1f} descriptors per 100,000 connections"
            self.say(text if enough else f"{text}; too few to judge")
            if enough:
                self.hold(memory <= MEMORY_SLOPE and held <= DESCRIPTOR_SLOPE, f"it grows: {text}")
                self.row.figure(f"{title} grows by", memory / 1024, "KiB per 100,000 connections")


FAULTS: Final[dict[str, Callable[[Soak], None]]] = {
    "kill -9 of a worker": Soak.kill_worker,
    "a worker stopped until it is replaced": Soak.stop_worker,
    "a worker stopped for a moment": Soak.stop_worker_for_a_moment,
    "reload": Soak.reload_good,
    "reload, a bad file": Soak.reload_bad,
    "reload, a port that is taken": Soak.reload_taken,
    "reload, and kill -9 of a worker in it": Soak.reload_and_kill,
    "log rotation": Soak.rotate,
    "a backend gone and back": Soak.backend_goes,
}
"""Each comes once, in random order, then each again."""


def say(text: str) -> None:
    """At once, whoever reads."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """`[MINUTES [SEED]]`; exit status 1 if anything did not hold."""
    arguments = sys.argv[1:]
    minutes = float(arguments[0]) if arguments else MINUTES
    seed = int(arguments[1]) if arguments[1:] else random.randrange(1 << 30)
    say(f"{minutes:g} minutes, seed {seed}")
    row = Row(NUMBER, FAULT, PROMISE, "fastfwd", "tests/faults/soak.py")
    with tempfile.TemporaryDirectory(prefix="fastfwd-soak-") as name:
        Soak(minutes * 60, seed, Path(name), row, say).run()
    row.write()
    for figure, value in row.figures.items():
        say(f"{figure}: {value}")
    for what in row.broken[:20]:
        say(what)
    say(f"{len(row.broken)} of {row.tries:,} tries did not hold: {'FAILED' if row.broken else 'passed'}")
    sys.exit(bool(row.broken))


if __name__ == "__main__":
    main()
