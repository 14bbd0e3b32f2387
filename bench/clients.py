"""Who puts load on a way: wrk, iperf3, datagrams, and connections that do nothing.

Each function is one run of a client and answers with what it measured, in the units
of the scenarios' figures.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import orjson

from bench.mmsg import LENGTH, Batch, opened
from bench.processes import ESTABLISHED, HOST, PATIENCE, needed, queued, run, sockets, wait

BATCH = 64
"""Connections that are made without looking whether they are taken: C rinetd's queue has 128
places, and who finds it full waits a second before he tries again."""

STAMP = struct.Struct("=d")
"""What a datagram begins with: when it was sent, as time.perf_counter() tells it."""

STAMPED = struct.Struct(f"=d{LENGTH - STAMP.size}x")
"""A datagram: its stamp, and nothing."""

UNVERIFIED = ssl._create_unverified_context()
"""Of the clients that speak TLS: whom they speak with is known."""

MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk measured: `rate` in requests per second, percentiles of the latency in
    milliseconds, and how many requests there were."""

    count: int
    rate: float
    p50: float
    p99: float


def requests(
    port: int, connections: int, seconds: float, *, close: bool = False, tls: bool = False
) -> Requests:
    """Ask for the small file over `connections` connections for about `seconds` (whole ones);
    with `close`, over a new connection each time; with `tls`, in TLS."""
    command = [needed("wrk"), "--latency", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    if close:
        command += ["-H", "Connection: close"]
    said = run([*command, f"http{'s' * tls}://{HOST}:{port}/small"], seconds)
    if errors := re.findall(r"Socket errors.*|Non-2xx.*", said):
        print(f"\nwrk on port {port}: {'; '.join(errors)}", file=sys.stderr)
    found = re.search(r"(\d+) requests in ([0-9.]+)(us|ms|s|m)", said)
    percentiles = {
        share: float(number) * MILLISECONDS[unit]
        for share, number, unit in re.findall(r"^ +(50|99)% +([0-9.]+)(us|ms|s|m)$", said, re.MULTILINE)
    }
    if found is None or found[1] == "0" or len(percentiles) < 2:
        raise RuntimeError(f"no answers in what wrk says: {said}")
    count, took = int(found[1]), float(found[2]) * MILLISECONDS[found[3]] / 1000
    return Requests(count, count / took, percentiles["50"], percentiles["99"])


@dataclass(frozen=True, slots=True)
class Bulk:
    """What iperf3's receiver measured: bytes, and bits per second over its time."""

    received: int
    rate: float


class Flows:
    """iperf3 from client to backend, under way since it was made until the block ends;
    `finish` waits for what it has measured."""

    def __init__(self, port: int, flows: int, seconds: float) -> None:
        """Send over `flows` connections for `seconds` (whole ones)."""
        duration = str(max(1, round(seconds)))
        self._limit = seconds + PATIENCE
        self._process = subprocess.Popen(
            [needed("iperf3"), "-J", "-c", HOST, "-p", str(port), "-P", str(flows), "-t", duration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Flows:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self) -> Bulk:
        """What was measured. Raises RuntimeError if it failed."""
        output, _ = self._process.communicate(timeout=self._limit)
        if self._process.returncode:
            raise RuntimeError(f"iperf3: {output[-500:].decode()}")
        received = orjson.loads(output)["end"]["sum_received"]
        return Bulk(int(received["bytes"]), float(received["bits_per_second"]))


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """How many datagrams came back, `rate` per second, percentiles of their way there and back in
    milliseconds, and how many had to be sent again because they did not come back."""

    count: int
    rate: float
    p50: float
    p99: float
    lost: int


class Datagrams:
    """UDP clients with an address each, all of the same port: one socket sends and receives for all of
    them, so that they cost less than whoever is between them and the backend. For each
    datagram that comes back, the client whose turn it is sends one."""

    UNDER_WAY = 64
    """Datagrams that are under way at a time. Every receive buffer has room for them: a small datagram
    counts as nearly 1 KiB of the 208 KiB that a socket has (socket(7), rmem_default)."""

    SILENCE = 1.0
    """Seconds after the last answer, from which on what is under way counts as lost."""

    FIRST = int.from_bytes(socket.inet_aton("127.2.0.1"), "big")
    """The first client's address: all of 127.0.0.0/8 is ours (RFC 1122, 3.2.1.3)."""

    def __init__(self, port: int, flows: int) -> None:
        """Be `flows` clients; when the block begins, each has a flow through `port`. (It does not begin,
        but raises RuntimeError, if nothing comes back.)"""
        self._sock = opened()
        self._sock.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_RCVTIMEO,
            struct.pack("@ll", *divmod(round(self.SILENCE * 1e6), 10**6)),  # struct timeval
        )
        clients = [socket.inet_ntoa((self.FIRST + n).to_bytes(4, "big")) for n in range(flows)]
        self._out = Batch.to((HOST, port), clients)
        self._back = Batch(self.UNDER_WAY)
        self._flows, self._turn = flows, 0

    def __enter__(self) -> Datagrams:
        try:
            self._exchange(0, self._flows)
        except BaseException:
            self._sock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def run(self, seconds: float) -> RoundTrips:
        """Exchange datagrams for `seconds`. Raises RuntimeError if nothing comes back."""
        waits, took, lost = self._exchange(seconds, 1)
        waits.sort()
        p50, p99 = (waits[int(len(waits) * share)] * 1000 for share in (0.5, 0.99))
        return RoundTrips(len(waits), len(waits) / took, p50, p99, lost)

    def _exchange(self, seconds: float, least: int) -> tuple[list[float], float, int]:
        """Exchange datagrams for `seconds`, and `least` at any rate: how long each took, how long it
        was to the last one's return, and how many were lost. None is under way before and
        after."""
        waits: list[float] = []
        begun = now = time.perf_counter()
        away = self._send(self.UNDER_WAY)
        lost = 0
        while away:
            try:
                got = self._back.receive(self._sock)
            except BlockingIOError:
                lost += away
                if time.perf_counter() > begun + seconds + PATIENCE:
                    raise RuntimeError(f"{len(waits)} datagrams came back, {lost} did not") from None
                got = away
            else:
                now = time.perf_counter()
                stamps = STAMPED.iter_unpack(self._back.data[: got * LENGTH])
                waits += [now - sent for (sent,) in stamps]
            away -= got
            if now < begun + seconds or len(waits) < least:
                away += self._send(got)
        return waits, now - begun, lost

    def _send(self, count: int) -> int:
        """Let the next `count` clients send; how many there were."""
        STAMP.pack_into(self._out.data, 0, time.perf_counter())
        left = count
        while left:
            some = min(left, self._flows - self._turn)
            self._out.send(self._sock, self._turn, some)
            self._turn = (self._turn + some) % self._flows
            left -= some
        return count


def returns(port: int) -> bool:
    """Whether a datagram to `port` comes back."""
    with opened() as sock:
        sock.settimeout(0.1)
        sock.sendto(bytes(LENGTH), (HOST, port))
        try:
            sock.recv(LENGTH)
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Connections with one request each: how many, and `rate` per second."""

    count: int
    rate: float


def handshakes(port: int, clients: int, seconds: float, *, resume: bool) -> Handshakes:
    """Make connections with TLS, ask for the small file on each, and close it, for `seconds` (whole
    ones) and up to one more, by `clients` processes that do so one after the other; with `resume`
    each takes up its own first session again. (wrk cannot: whether it resumes one depends on how
    the server has closed.)"""
    how, duration = ("-reuse" if resume else "-new"), str(max(1, round(seconds)))
    command = [needed("openssl"), "s_time", "-connect", f"{HOST}:{port}", how, "-time", duration]
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        done = [pool.submit(run, [*command, "-www", "/small"], seconds) for _ in range(clients)]
    took = time.perf_counter() - begun
    said = [each.result() for each in done]
    counts = [int(number) for text in said for number in re.findall(r"(\d+) connections in .* real", text)]
    if len(counts) != clients or not all(counts):
        raise RuntimeError(f"no connections in what s_time says: {said[0]}")
    return Handshakes(sum(counts), sum(counts) / took)


@contextmanager
def idle(port: int, backend: int, count: int, *, tls: bool = False, after: str = "") -> Iterator[None]:
    """`count` connections to `port` that say nothing, from when all of them, and no others,
    are at the backend's port `backend`; with `tls` they have done a handshake, and have asked for
    and got the file `after`, if there is one. Raises RuntimeError if they are not all there when
    the block ends."""

    def arrived() -> int:
        return sockets(ESTABLISHED).count(backend)

    wait(lambda: not arrived(), f"nobody is connected to port {backend}")
    with ExitStack() as stack:
        for number in range(count):
            connection = socket.create_connection((HOST, port), PATIENCE)
            if tls:
                connection = encrypted(connection)
            stack.enter_context(connection)
            if after:
                fetch(connection, after)
            if number % BATCH == BATCH - 1:
                wait(lambda: not queued(port), f"somebody takes connections to port {port}", 0.001)
        wait(lambda: arrived() == count, f"{count} connections through port {port} reach the backend", 0.1)
        yield
        if (left := arrived()) < count:
            raise RuntimeError(f"of {count} idle connections {left} are left")


def encrypted(connection: socket.socket) -> ssl.SSLSocket:
    """TLS on a connection, which it takes over, whoever the server is. Raises OSError."""
    try:
        return UNVERIFIED.wrap_socket(connection)
    except BaseException:
        connection.close()
        raise


def fetch(connection: socket.socket, file: str) -> None:
    """Ask for a file and read it to its last byte; the connection stays open."""
    connection.sendall(f"GET /{file} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    with connection.makefile("rb") as answer:
        headers = "".join(line.decode() for line in iter(answer.readline, b"\r\n"))
        length = re.search(r"^Content-Length: (\d+)", headers, re.MULTILINE)
        if " 200 " not in headers or length is None or len(answer.read(int(length[1]))) < int(length[1]):
            raise RuntimeError(f"no file in the answer: {headers}")


@dataclass(frozen=True, slots=True)
class Asked:
    """One connection with one request: whether the whole answer came, the seconds until the
    connection was there (0 if it failed), and those until the end."""

    answered: bool
    connected: float
    took: float


def ask(port: int, source: str = HOST, seconds: float = 5, *, tls: bool = False) -> Asked:
    """Connect from the address `source`, with TLS if `tls`, ask for the small file, and read to the
    end; each step may take `seconds`."""
    begun = time.perf_counter()
    answer = b""
    connected = 0.0
    try:
        plain = socket.create_connection((HOST, port), seconds, (source, 0))
        with encrypted(plain) if tls else plain as connection:
            connected = time.perf_counter() - begun
            connection.sendall(b"GET /small HTTP/1.0\r\n\r\n")
            while data := connection.recv(4096):
                answer += data
        answered = answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"x")
    except OSError:
        answered = False
    return Asked(answered, connected, time.perf_counter() - begun)


class Trickle:
    """New connections at a steady pace while the block lasts, each with one request, whether or
    not those before have been answered."""

    INTERVAL = 0.005
    """Seconds between two."""

    def __init__(self, port: int) -> None:
        """Connect to `port`."""
        self._port = port
        self._ended = threading.Event()
        self._asked: list[Future[Asked]] = []
        self._pace = threading.Thread(target=self._run)

    def _run(self) -> None:
        with ThreadPoolExecutor(64) as pool:
            while not self._ended.wait(self.INTERVAL):
                self._asked.append(pool.submit(ask, self._port))

    def __enter__(self) -> Trickle:
        self._pace.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pace.join()

    def asked(self) -> int:
        """How many connections there were so far."""
        return len(self._asked)

    def results(self) -> list[Asked]:
        """What became of each, in order; the block must have ended."""
        return [each.result() for each in self._asked]
