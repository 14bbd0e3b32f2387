"""Rows 41 to 43: the supervisor outlives what its children say, what signals it gets, and every child.

To speak in a child's place a test takes a duplicate of the child's end of the channel
(pidfd_getfd(2)): the supervisor cannot tell one from the other, as with a child taken over.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import re
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import pytest

from fastfwd.channel import HEADER, LIMIT_UP
from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWatched
from tests.faults.row import Row, scaled
from tests.forwarder import Forwarder, Kind
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.servers import Server, echo
from tests.sockets import Address, connect, queued, read_exactly, read_to_end, unsent
from tests.system.metrics import metrics_url, scrape
from tests.system.test_privileges import status

PIDFD_GETFD: Final = 438
"""The system call's number, on every architecture."""

WORKERS: Final = 8

BACK: Final = 20.0
"""Seconds until a child that has died again and again is back: its pause is at most 10."""


# A program with every kind of child.


def whole(running: Forwarder, workers: int) -> bool:
    """Whether all its children are there and have given up their rights."""
    found = [*running.workers().values(), running.resolver(), running.exporter()]
    try:
        dropped = [pid is not None and status(pid)["NoNewPrivs"] == "1" for pid in found]
    except OSError:  # one that has just ended
        return False
    return len(found) == workers + 2 and all(dropped)


@dataclass(slots=True)
class Full:
    """A program with workers, resolver and exporter before an echo, and how it was once all served."""

    running: Forwarder
    address: Address
    workers: int
    aftermath: Aftermath = field(init=False)
    held: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self.settle()
        self.aftermath = Aftermath(self.running)
        self.aftermath.sessions_lost = True
        self.held = self.descriptors()

    def settle(self) -> None:
        """Wait until everybody is there and answers; at once, if the supervisor is not."""
        until(lambda: not self.running.running() or whole(self.running, self.workers), BACK, "all children")
        assert self.running.running(), last_words(self.running)
        assert answers(self.address)
        scrape(metrics_url(self.running))

    def descriptors(self) -> Counter[str]:
        """What the supervisor holds, by kind."""
        found = processes.descriptors(self.running.pid).values()
        return Counter(re.sub(r"\d+", "N", each) for each in found)

    def judge(self) -> None:
        """Everything is back: the children, and what the supervisor holds."""
        self.settle()
        until(lambda: self.descriptors() == self.held, what=f"{self.held}, not {self.descriptors()}")
        self.aftermath.judge()


@pytest.fixture
def start_full(forwarder: StartForwarder, backend: StartServer) -> Callable[[int], Full]:
    """Call it with a number of workers for a running `Full`."""
    require_root()
    behind: Server = backend(echo)

    def start(workers: int) -> Full:
        port = free_port()
        config = f"127.0.0.1 {port} localhost {behind.port}\nmetrics 127.0.0.1:{free_port()}\n"
        return Full(forwarder(config, workers=workers), ("127.0.0.1", port), workers)

    return start


def answers(address: Address, seconds: float = 20) -> bool:
    """Whether a new session echoes."""
    return called(address, seconds) == "ok"


def called(address: Address, seconds: float = 20) -> str:
    """What became of a session that echoes five bytes: `ok`, or the word for what went wrong."""
    try:
        with connect(address) as client:
            client.settimeout(deadline.seconds(seconds))
            client.sendall(b"hello")
            return "ok" if read_exactly(client, 5) == b"hello" else "EOF"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def last_words(running: Forwarder) -> str:
    """The end of what a program has said, which is why it died."""
    return (running.stderr().splitlines() or [""])[-1]


def forged(running: Forwarder) -> list[str]:
    """Lines of its stderr that it has not begun itself."""
    return [line for line in running.stderr().splitlines() if not line.startswith("fastfwd: ")]


# In a child's place.


class Mouth:
    """A child's end of its channel in the test's hand."""

    def __init__(self, pid: int, supervisor: int) -> None:
        """Raises OSError when the child has just ended."""
        self.process = os.pidfd_open(pid)
        try:
            self.sock = self._channel(pid, supervisor)
        except BaseException:
            os.close(self.process)
            raise

    def _channel(self, pid: int, supervisor: int) -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        for number, what in processes.descriptors(pid).items():
            if not what.startswith("socket:"):
                continue
            taken = libc.syscall(PIDFD_GETFD, self.process, number, 0)
            if taken < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            found = socket.socket(fileno=taken)
            # Of a pair the peer is who made it (unix(7), SO_PEERCRED).
            if found.family == socket.AF_UNIX:
                credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if struct.unpack("3i", credentials)[0] == supervisor:
                    return found
            found.close()
        raise OSError(errno.ESRCH, "no channel")

    def say(self, data: bytes) -> None:
        """Send `data`. Raises OSError when nobody listens any more."""
        rest = memoryview(data)
        limit = time.monotonic() + deadline.seconds(10)
        while rest and time.monotonic() < limit:
            if select.select([], [self.sock], [], 1)[1]:
                with suppress(BlockingIOError):
                    rest = rest[self.sock.send(rest) :]

    def heard(self) -> None:
        """Wait until somebody has read it all."""
        until(lambda: unsent(self.sock) == 0, what="somebody to listen")

    def die(self) -> None:
        """The child is killed, if it lives."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.process, signal.SIGKILL)

    def close(self) -> None:
        self.sock.close()
        os.close(self.process)


@contextmanager
def in_place_of(pid: int, supervisor: int) -> Iterator[Mouth]:
    """Speak for the child `pid`."""
    mouth = Mouth(pid, supervisor)
    try:
        yield mouth
    finally:
        mouth.close()


def frame(payload: bytes) -> bytes:
    """A message as it goes over the channel."""
    return HEADER.pack(len(payload), 0) + payload


DEEP: Final = "[" * 1000 + "]" * 1000
"""As deep as JSON gets through; deeper than Python goes to show it."""

HARD: Final = {
    "deep operation": f'{{"op":{DEEP}}}',
    "deep text": f'{{"op":"say","level":30,"text":{DEEP}}}',
    "deep host": f'{{"op":"found","host":{DEEP},"addresses":[]}}',
    "deep error": f'{{"op":"prepared","generation":1,"error":{DEEP}}}',
    "two lines": '{"op":"prepared","generation":1,"error":"no\\nroom"}',
    "serving": '{"op":"serving","generation":1}',
    "prepared": '{"op":"prepared","generation":1,"error":null}',
    "level": '{"op":"say","level":1e308,"text":"loud"}',
    "digits": f'{{"op":"serving","generation":"{"9" * 5000}"}}',
    "beat": '{"op":"beat"}',
    "long": f'{{"op":"say","level":30,"text":"{"x" * (LIMIT_UP - 100)}"}}',
    "nothing": "{}",
}
"""Whole messages that a child might send, each from every kind of child."""

BROKEN: Final = {
    "too long": HEADER.pack(LIMIT_UP + 1, 0),
    "much too long": HEADER.pack(2**32 - 1, 2**32 - 1),
    "no JSON": frame(b"\xff\xfe"),
    "no object": frame(b"[]"),
    "too deep": frame(b"[" * 2000 + b"]" * 2000),
    "infinite": frame(b'{"op":1e999}'),
    "half a header": b"\0\0",
    "half a message": frame(b'{"op":"beat"}')[:-1],
    "more than it says": frame(b'{"op":"beat"}') + b"beat",
}
"""Frames after which the child that sent them is of no use any more."""


HALF: Final = ("half a header", "half a message", "more than it says")
"""Those that may still become a message: only the end of the child ends the waiting for it."""


@pytest.mark.parametrize("speaker", ["worker", "resolver", "exporter"])
def test_no_message_ends_the_supervisor(start_full: Callable[[int], Full], speaker: str) -> None:
    """Whatever a child says, and whichever child says it: the supervisor lives and speaks for itself,
    and the child works or has a successor."""
    broken: list[str] = []
    full = start_full(1)
    for name, text in HARD.items():
        running = full.running
        pid = {"worker": running.worker, "resolver": running.resolver, "exporter": running.exporter}[
            speaker
        ]()
        assert pid is not None
        with in_place_of(pid, running.pid) as mouth:
            mouth.say(frame(text.encode()))
            mouth.heard()
        if trouble := wrong(full):
            broken.append(f"{name}: {trouble}")
            running.kill()
            full = start_full(1)
    full.judge()
    assert broken == []


def test_no_broken_frame_ends_the_supervisor(start_full: Callable[[int], Full]) -> None:
    """A child that sends what is no message is killed and replaced, and so is one that dies in the
    middle of one."""
    broken: list[str] = []
    full = start_full(len(BROKEN))
    for slot, (name, data) in enumerate(BROKEN.items()):
        running = full.running
        pid = running.worker(slot)
        with in_place_of(pid, running.pid) as mouth:
            mouth.say(data)
            mouth.heard()
            if name in HALF:
                mouth.die()
            until(lambda: not processes.alive(pid) or not running.running(), what="its end")  # noqa: B023
        if trouble := wrong(full):
            broken.append(f"{name}: {trouble}")
            running.kill()
            full = start_full(len(BROKEN))
    full.judge()
    assert broken == []


def wrong(full: Full) -> str:
    """What has become of the program, "" if it is well."""
    try:
        full.settle()
    except (AssertionError, OSError):
        until(lambda: not full.running.running(), 2, "its end, if it does not serve")
        return last_words(full.running)
    lines = forged(full.running)
    return f"a line of the child's own, {lines[0][:60]!r}" if lines else ""


# Row 41.

SAID: Final[list[dict[str, str]]] = [
    {"op": '"prepared"', "generation": "7", "error": "null"},
    {"op": '"serving"', "generation": "7"},
    {"op": '"say"', "level": "30", "text": '"slot 0: words"'},
    {"op": '"beat"'},
    {"op": '"found"', "host": '"localhost"', "addresses": '[[2,"127.0.0.1"]]'},
    {"op": '"failed"', "host": '"localhost"', "reason": '"none"', "definitive": "true"},
]
"""What children say: names, and values in JSON."""

VALUES: Final = [
    *("null", "true", "-1", "0", "1", "2", "1e308", "18446744073709551616", "2.5"),
    *('""', '"\\u0000"', '"two\\nlines"', '"\\ud83d\\ude00"', f'"{"9" * 5000}"', f'"{"x" * 3000}"'),
    *("[]", "{}", "[[]]", '[[2,"127.0.0.1%x\\ny"]]', '[[10,"::1"],null]'),
    *(each["op"] for each in SAID),
]


def wrong_words(rng: random.Random) -> bytes:
    """A frame with a message of which up to three things are not as they should be."""
    message = dict(rng.choice(SAID))
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*message, "generation", "extra"])
        if rng.random() < 0.2:
            message.pop(name, None)
        else:
            message[name] = rng.choice(VALUES)
    return frame(("{" + ",".join(f'"{name}":{value}' for name, value in message.items()) + "}").encode())


def damaged(rng: random.Random) -> bytes:
    """A frame of which a byte or the length is not as it should be, or no frame at all."""
    data = bytearray(wrong_words(rng))
    place = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            data[place] ^= 1 << rng.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place:place] = rng.randbytes(rng.randint(1, 9))
        case 3:
            lengths = [0, len(data) - HEADER.size + rng.choice([-1, 1]), LIMIT_UP, LIMIT_UP + 1, 2**32 - 1]
            data[: HEADER.size] = HEADER.pack(rng.choice(lengths), rng.choice([0, 1, 2**32 - 1]))
        case 4:
            data = bytearray(rng.randbytes(rng.randint(1, 100)))
        case _:
            data = bytearray(rng.choice([*BROKEN.values(), frame(HARD["deep operation"].encode())]))
    return bytes(data)


SENTENCES: Final = 20
"""Messages of one child before another one speaks."""

DEATHS: Final = 20
"""Deaths of the supervisor after which the row has seen enough."""


@pytest.mark.timeout(deadline.seconds(400))
@pytest.mark.row(
    41,
    "wrong messages from its children (workers, resolver, exporter), and damaged ones",
    "the supervisor lives, says so, replaces the child where it must, and all serve",
)
def test_wrong_messages(row: Row, start_full: Callable[[int], Full]) -> None:
    """Mutated messages, a fifth of the children damaging the channel itself at the end."""
    rng = random.Random(41)
    wanted, deaths, spent = scaled(500, 10_000), 0, 0
    full, sent = start_full(WORKERS), [b""]
    while row.tries < wanted and deaths < DEATHS:
        running, before = full.running, len(sent)
        found = [*running.workers().values(), running.resolver(), running.exporter()]
        try:
            with in_place_of(rng.choice([pid for pid in found if pid is not None]), running.pid) as mouth:
                for _ in range(SENTENCES):
                    sent.append(wrong_words(rng))
                    mouth.say(sent[-1])
                if rng.random() < 0.2:
                    sent.append(damaged(rng))
                    mouth.say(sent[-1])
                    mouth.heard()
                    mouth.die()
                    spent += 1
                mouth.heard()
        except (OSError, IndexError):  # it has just ended, or nobody is there for the moment
            until(lambda: running.workers() or not running.running(), BACK)  # noqa: B023
        lives = running.running()
        row.tried(len(sent) - before, [] if lives else [f"{last_words(running)} after {sent[-1][:80]!r}"])
        if not lives:
            deaths += 1
            running.kill()
            full = start_full(WORKERS)
    full.judge()
    row.tried(0, [f"a forged line {line[:60]!r}" for line in forged(full.running)])
    row.held(full.running.said("sent something unexpected") > 0, "it said nothing")
    full.running.reload()
    row.held(full.running.said("reloaded:") == 1, f"no reload: {last_words(full.running)}")
    row.figure("children lost", spent)


LIES: Final = {
    "found, a zone with NUL": '"op":"found","addresses":[[2,"192.0.2.1%\\u0000"]]',
    "found, a zone that is a name": '"op":"found","addresses":[[2,"192.0.2.1%example.invalid"]]',
    "found, a zone of two lines": '"op":"found","addresses":[[10,"fe80::1%a\\nforged"]]',
    "found, nothing": '"op":"found","addresses":[]',
    "found, no addresses": '"op":"found","addresses":[[2,"::1"],[10,"x"],[3,"y"]]',
    "found, deep": f'"op":"found","addresses":[[2,{DEEP}]]',
    "failed, two lines": '"op":"failed","definitive":false,"reason":"a\\nforged"',
    "failed, NUL": '"op":"failed","definitive":false,"reason":"a\\u0000b"',
    "failed, deep": f'"op":"failed","definitive":true,"reason":{DEEP}',
}
"""Answers to a question that was asked."""


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_resolver_ends_nobody(start_full: Callable[[int], Full], lie: str) -> None:
    """An answer that no name service gives is refused: no process dies of it, and it writes no line."""
    full = start_full(1)
    running, resolver = full.running, full.running.resolver()
    assert resolver is not None
    port = free_port()
    running.configure(f"0.0.0.0 {port} asked.invalid {port}\n")
    with in_place_of(resolver, running.pid) as mouth:
        os.kill(resolver, signal.SIGSTOP)
        for reloads in (1, 2):  # in the second one, what was believed is judged once more
            if not processes.alive(resolver):  # killed for what it said
                break
            running.hup()
            until(lambda: queued(mouth.sock) > 0, what="the question")
            mouth.sock.recv(1 << 16)
            mouth.say(frame(f'{{"host":"asked.invalid",{LIES[lie]}}}'.encode()))
            until(lambda: running.reloads() == reloads or not running.running(), what="the reload")  # noqa: B023
            assert running.running(), last_words(running)
        with suppress(ConnectionRefusedError), connect(("127.0.0.1", port)) as client:
            read_to_end(client)  # a worker has dialled
        mouth.die()
    assert forged(running) == []


FLOOD: Final = {
    "nonsense": frame(b"{}"),
    "words": frame(b'{"op":"say","level":40,"text":"again"}'),
}
"""What a child could say without end."""


@pytest.mark.parametrize("what", FLOOD)
@pytest.mark.parametrize("speaker", ["worker", "resolver", "exporter"])
def test_a_child_that_never_stops_talking_fills_no_log(
    start_full: Callable[[int], Full], speaker: str, what: str
) -> None:
    """Of a hundred thousand messages some are shown and the others counted; meanwhile a reload works."""
    full = start_full(1)
    running = full.running
    pid = {"worker": running.worker, "resolver": running.resolver, "exporter": running.exporter}[speaker]()
    assert pid is not None
    lines = len(running.stderr().splitlines())
    with in_place_of(pid, running.pid) as mouth:
        for _ in range(10):
            mouth.say(FLOOD[what] * 5_000)
        running.reload()
        for _ in range(10):
            mouth.say(FLOOD[what] * 5_000)
        mouth.heard()
    until(lambda: running.said("more messages are not shown") > 0, what="the count")
    full.judge()
    assert len(running.stderr().splitlines()) - lines < 1000


# Row 42.

HARMLESS: Final = (
    *(signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE),
    *(signal.SIGWINCH, signal.SIGURG, signal.SIGCONT),
)
"""Signals that no program of this kind ends of: what it handles or ignores, and what the kernel does."""

SIGNALS_PER_SECOND: Final = 1000


@dataclass(slots=True)
class Calls:
    """A thread that makes one short session after the other: `outcomes` are `ok` or a word each."""

    address: Address
    patience: float
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Thread: until `ended`."""
        while not self.ended.wait(0.01):
            began = time.monotonic()
            self.outcomes[called(self.address, self.patience)] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def failed(self) -> list[str]:
        """The words of those that went wrong."""
        return [word for word in self.outcomes.elements() if word != "ok"]


@contextmanager
def calls(address: Address, patience: float = 20) -> Iterator[Calls]:
    """Call all the while."""
    made = Calls(address, patience)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.ended.set()
        thread.join(deadline.seconds(60))


@pytest.mark.row(
    42,
    "1,000 signals a second: HUP, CHLD, PIPE, WINCH, URG, CONT",
    "no session fails, and the next reload works",
)
@pytest.mark.parametrize("kind", ["fastfwd", "rinetd"], indirect=True)
def test_a_storm_of_signals(row: Row, kind: Kind, watched: StartWatched, backend: StartServer) -> None:
    """Sessions all the while; afterwards the forward moves to another port."""
    if kind == "rinetd":
        require_peer("rinetd")
    behind, ports = backend(echo), (free_port(), free_port())
    lines = [f"127.0.0.1 {port} {behind.host} {behind.port}\n" for port in ports]
    running = watched(lines[0], kind=kind).running
    rng, pid, sent = random.Random(42), running.pid, 0
    seconds = scaled(2, 10)
    with calls(("127.0.0.1", ports[0]), 5) as made:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            if sent < passed * SIGNALS_PER_SECOND:
                os.kill(pid, rng.choice(HARMLESS))
                sent += 1
            else:
                select.select([], [], [], 0.001)
    row.tried(made.outcomes.total(), made.failed())
    row.figure("signals", sent)
    if kind == "fastfwd":
        row.figure("reloads", running.reloads())
    if not running.running():
        row.held(False, f"it died: {running.process.returncode}")
        return
    row.figure("slowest session", made.slowest * 1000, "ms")
    running.configure(lines[1])
    running.hup()
    try:
        until(lambda: answers(("127.0.0.1", ports[1]), 1), 10, "the forward in its new place")
        row.held(True, "")
    except AssertionError as error:
        row.held(False, str(error))


# Row 43.


@pytest.mark.timeout(deadline.seconds(240))
@pytest.mark.row(
    43,
    "children killed at random: workers, resolver, exporter",
    "no client is refused, all are replaced, and the supervisor holds what it held",
)
def test_children_killed_at_random(row: Row, start_full: Callable[[int], Full]) -> None:
    """Several kills a second, of whoever lives."""
    rng, killed = random.Random(43), set[int]()
    full = start_full(WORKERS)
    seconds = scaled(2, 50)
    with calls(full.address) as made:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            victims = processes.children(full.running.pid)
            if victims:
                victim = rng.choice(victims).pid
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)
            select.select([], [], [], rng.uniform(0, scaled(1, 4) / 10))
        fallen = time.monotonic()
        full.settle()
        back = time.monotonic() - fallen
    row.tried(len(killed), [] if full.running.running() else [last_words(full.running)])
    row.tried(made.outcomes.total(), ["a client was refused"] * made.outcomes["ECONNREFUSED"])
    full.judge()
    row.held(full.running.said("starting another") >= len(killed), "a death was not noticed")
    row.figure("kills", len(killed))
    row.figure("sessions lost with their worker", len(made.failed()))
    row.figure("all back after", back, "s")
    row.figure("slowest session", made.slowest, "s")
