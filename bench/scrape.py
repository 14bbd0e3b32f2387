"""What being watched costs: `.venv/bin/python bench/scrape.py [--rounds N] [--seconds S] [--forwards N]`.

One fastfwd with many forwards, two workers and `metrics`, nginx behind it. First single
scrapes with nothing else going on; then, in interleaved rounds, wrk's latencies with a
scrape every second and without, once as fast as wrk can (the processors are full) and
once on so few connections that they are not. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import http.client
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import HOST, client, free_port, installed, nginx, running

ACCEPT = {
    "OpenMetrics": "application/openmetrics-text;version=1.0.0",
    "text": "text/plain;version=0.0.4",
}
"""As Prometheus asks."""

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def scrape(port: int, accept: str) -> tuple[float, int]:
    """Seconds that one scrape takes, connecting included, and the bytes that came."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", "/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"})
    body = connection.getresponse().read()
    connection.close()
    return time.perf_counter() - begun, len(body)


@contextmanager
def scraping(port: int, wanted: bool, took: list[float]) -> Iterator[None]:
    """A scrape every second meanwhile, if `wanted`; its times go to `took`."""
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            took.append(scrape(port, ACCEPT["OpenMetrics"])[0])
            stop.wait(1.0)

    thread = threading.Thread(target=go_on)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if wanted:
            thread.join()


def latencies(port: int, connections: int, seconds: float) -> dict[str, float]:
    """wrk's requests per second, and percentiles in milliseconds."""
    program = installed("wrk")
    if program is None:
        raise SystemExit("bench: needs wrk")
    command = [
        program,
        "--latency",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:.0f}s",
        f"http://{HOST}:{port}/small",
    ]
    said = client(command, seconds)
    figures = {
        f"p{share}": float(number) * UNITS[unit]
        for share, number, unit in re.findall(r"^ +(50|99)% +([0-9.]+)(us|ms|s)$", said, re.MULTILINE)
    }
    found = re.search(r"Requests/sec: +([0-9.]+)", said)
    assert found is not None, said
    return {"requests": float(found[1]), **figures}


def exporter_of(pid: int) -> int:
    """The exporter among the children of the supervisor `pid`."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "fastfwd-metrics":
            return int(child)
    raise RuntimeError("no exporter")


def proportional_memory(pid: int) -> float:
    """PSS in MiB (proc(5), smaps_rollup)."""
    found = re.search(r"^Pss: +([0-9]+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What being watched costs.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--forwards", type=int, default=200)
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastfwd-bench-")))
        directory.chmod(0o755)  # nginx's worker is nobody
        web, metrics = free_port(), free_port()
        ports = [free_port() for _ in range(options.forwards)]
        config = directory / "fastfwd.conf"
        config.write_text(
            "".join(f"{HOST} {port} {HOST} {web}\n" for port in ports)
            + f"workers 2\nmetrics {HOST}:{metrics}\n"
        )
        stack.enter_context(running(nginx(directory, web), directory, [web]))
        command = [sys.executable, "-m", "fastfwd", "-f", "-c", config]
        pid = stack.enter_context(running(command, directory, [*ports, metrics]))
        scrape(metrics, ACCEPT["text"])
        for name, accept in ACCEPT.items():
            taken = [scrape(metrics, accept) for _ in range(20)]
            times = [seconds for seconds, _ in taken]
            print(
                f"{options.forwards} forwards, {name}: median {statistics.median(times) * 1e3:.0f} ms,"
                f" longest {max(times) * 1e3:.0f} ms, {taken[0][1] / 1e3:.0f} kB"
            )
        for connections in (64, 2):
            found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            took: list[float] = []
            for _ in range(options.rounds):
                for wanted, rounds in found.items():
                    with scraping(metrics, wanted, took):
                        rounds.append(latencies(ports[0], connections, options.seconds))
            for wanted, rounds in found.items():
                medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
                how = "a scrape every second" if wanted else "no scrapes"
                print(
                    f"{connections:2} connections, {how:21}: {medians['requests']:8,.0f} requests/s,"
                    f" p50 {medians['p50']:.3f} ms, p99 {medians['p99']:.3f} ms"
                )
            print(f"   those scrapes: median {statistics.median(took) * 1e3:.0f} ms")
        print(f"the exporter: {proportional_memory(exporter_of(pid)):.1f} MiB PSS")


if __name__ == "__main__":
    main()
