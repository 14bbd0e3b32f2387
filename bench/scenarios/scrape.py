"""What being watched by Prometheus costs."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from bench import clients
from bench.contenders import Contender
from bench.lab import Lab
from bench.processes import HOST, PATIENCE, family, proportional_memory, wait
from bench.results import Case, Figure
from bench.scenario import Scenario, small

FORWARDS = 200
SCRAPES = 10
EXPORTER = "fastfwd-metrics"

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
TEXT = "text/plain;version=0.0.4"
"""As Prometheus asks."""

FIGURES = (
    Figure("scrape", "time of a scrape", "ms", ".1f", less=True),
    Figure("text_scrape", "time of a scrape in the text format", "ms", ".1f", less=True),
    Figure("size", "bytes of a scrape, compressed", "kB", ".1f", less=True),
    Figure("memory", "memory of the exporter", "MiB", ".1f", less=True),
    Figure("rate", "requests per second", "1/s"),
    Figure("p50", "latency of a request, median", "ms", ".3f", less=True),
    Figure("p99", "latency of a request, 99th percentile", "ms", ".2f", less=True),
    Figure("cpu", "CPU per request, the exporter's included", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Single scrapes if the case has no connections; else requests over as many as it says,
    with or without a scrape every second."""
    with lab.setup(contender, FORWARDS + 1) as plain, lab.scratch() as directory:
        *forwards, (port, _) = plain.forwards
        setup = replace(plain, forwards=tuple(forwards), metrics=port)
        with contender.start(directory, setup) as way:
            wait(lambda: clients.ask(way.ports[0]).answered, f"{contender.name} forwards")
            # The exporter imports what it needs before its first answer.
            scrape(port, OPENMETRICS)
            if not case.value:
                return alone(port, way.pids[0])
            if case.without is None:
                return small(way, int(case.value), seconds)
            with scraping(port) as took:
                figures = small(way, int(case.value), seconds)
            return {**figures, "scrape": statistics.median(took)}


def alone(port: int, pid: int) -> dict[str, float]:
    """What scrapes take while nothing else goes on, and what the exporter has grown to."""
    taken = [scrape(port, OPENMETRICS) for _ in range(SCRAPES)]
    texts = [scrape(port, TEXT) for _ in range(SCRAPES)]
    (exporter,) = (each.pid for each in family(pid) if each.name() == EXPORTER)
    return {
        "scrape": statistics.median(took for took, _ in taken),
        "text_scrape": statistics.median(took for took, _ in texts),
        "size": taken[-1][1] / 1000,
        "memory": proportional_memory(exporter) / 2**20,
    }


def scrape(port: int, accept: str) -> tuple[float, int]:
    """Milliseconds that one scrape takes, connecting included, and the bytes that came."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    connection.request("GET", "/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != http.client.OK:
        raise RuntimeError(f"a scrape was answered with {answer.status}")
    return (time.perf_counter() - begun) * 1000, len(body)


@contextmanager
def scraping(port: int) -> Iterator[list[float]]:
    """A scrape every second meanwhile; gives the list that their times go to."""
    took: list[float] = []
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            took.append(scrape(port, OPENMETRICS)[0])
            ended.wait(1.0)

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield took
        finally:
            ended.set()
        # A scrape that failed is a measurement that failed.
        repeating.result()


SCENARIO = Scenario(
    "scrape",
    "Being watched",
    f"fastfwd with {FORWARDS} forwards and `metrics`. First single scrapes as OpenMetrics and in the text"
    " format, while nothing else goes on; then wrk asks for a file of 100 bytes, over 64 connections (the"
    " processors are full) and over 2 (they are not), without scrapes and with one every second.",
    "",
    FIGURES,
    (
        Case("scrapes alone"),
        Case("64 connections", 64),
        Case("64 connections, scraped", 64, "64 connections"),
        Case("2 connections", 2),
        Case("2 connections, scraped", 2, "2 connections"),
    ),
    ("fastfwd-2",),
    measure,
    quick=("scrapes alone",),
)
