"""Who puts load on a way: wrk, iperf3, and connections that do nothing.

Each function is one run of a client and answers with what it measured, in the units
of the scenarios' figures.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import orjson

from bench.processes import ESTABLISHED, HOST, PATIENCE, needed, run, sockets

MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk measured: `rate` in requests per second, percentiles of the latency in
    milliseconds, and how many requests there were."""

    count: int
    rate: float
    p50: float
    p99: float


def requests(port: int, connections: int, seconds: float, *, close: bool = False) -> Requests:
    """Ask for the small file over `connections` connections for about `seconds` (whole ones);
    with `close`, over a new connection each time."""
    command = [needed("wrk"), "--latency", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    if close:
        command += ["-H", "Connection: close"]
    said = run([*command, f"http://{HOST}:{port}/small"], seconds)
    if errors := re.findall(r"Socket errors.*|Non-2xx.*", said):
        print(f"\nwrk on port {port}: {'; '.join(errors)}", file=sys.stderr)
    found = re.search(r"(\d+) requests in ([0-9.]+)(us|ms|s|m)", said)
    assert found is not None, said
    count = int(found[1])
    if not count:
        raise RuntimeError(f"no answer within {seconds} s: {said}")
    percentiles = {
        share: float(number) * MILLISECONDS[unit]
        for share, number, unit in re.findall(r"^ +(50|99)% +([0-9.]+)(us|ms|s|m)$", said, re.MULTILINE)
    }
    took = float(found[2]) * MILLISECONDS[found[3]] / 1000
    return Requests(count, count / took, percentiles["50"], percentiles["99"])


@dataclass(frozen=True, slots=True)
class Bulk:
    """What iperf3's receiver measured: bytes, and bits per second over its time."""

    received: int
    rate: float


class Flows:
    """iperf3 from client to backend, under way since it was made; `finish` waits for its end."""

    def __init__(self, port: int, flows: int, seconds: float) -> None:
        """Send over `flows` connections for `seconds` (whole ones)."""
        command = [needed("iperf3"), "-J", "-c", HOST, "-p", str(port), "-P", str(flows), "-t", f"{max(1, round(seconds))}"]
        self._seconds = seconds
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def finish(self) -> Bulk:
        """What was measured. Raises RuntimeError if it failed."""
        output, _ = self._process.communicate(timeout=self._seconds + PATIENCE)
        if self._process.returncode:
            raise RuntimeError(f"iperf3: {output[-500:].decode()}")
        received = orjson.loads(output)["end"]["sum_received"]
        return Bulk(int(received["bytes"]), float(received["bits_per_second"]))

    def cancel(self) -> None:
        """End it, whatever it has measured."""
        self._process.kill()
        self._process.communicate()


def bulk(port: int, flows: int, seconds: float) -> Bulk:
    """Send over `flows` connections for `seconds`."""
    return Flows(port, flows, seconds).finish()


@contextmanager
def idle(port: int, backend: int, count: int) -> Iterator[float]:
    """`count` connections to `port` that say nothing, from when all of them have reached the
    backend's port `backend`. Gives the seconds that took."""
    before = sockets(backend, ESTABLISHED)
    with ExitStack() as stack:
        begun = time.monotonic()
        for _ in range(count):
            stack.enter_context(socket.create_connection((HOST, port), PATIENCE))
        end = time.monotonic() + 2 * PATIENCE
        while sockets(backend, ESTABLISHED) < before + count:
            if time.monotonic() > end:
                raise RuntimeError(f"{count} connections through port {port} did not reach the backend")
            time.sleep(0.02)
        yield time.monotonic() - begun
