"""What a real Prometheus learns from a real program: exact figures, valid pages, counters that never fall."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from fastfwd.observe.collector import METRICS
from tests import deadline
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.load import Load, successor
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import answer_at_end, echo, goodbye, serve, serve_apart
from tests.sockets import Address, connect, finish, noise, read_exactly, read_to_end
from tests.system.metrics import metrics_url, request
from tests.system.prometheus import Prometheus

REFERENCE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

ANSWER = 300_007
"""Bytes that the backend of the forward `bytes` sends at the end."""


# Exact figures.


@dataclass(frozen=True, slots=True)
class Observed:
    """A program that Prometheus scrapes, with a forward per test; `metrics` is its exporter's URL."""

    forwarder: Forwarder
    prometheus: Prometheus
    metrics: str
    addresses: dict[str, Address]

    def echoes(self, forward: str, source: str | None = None) -> bool:
        """Whether a session through the forward echoes; it is over afterwards."""
        with connect(self.addresses[forward], source) as client:
            try:
                client.sendall(b"hello")
                finish(client)
            except OSError:
                pass  # closed already: what it reads tells
            return read_to_end(client).data == b"hello"


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """The program, its backends and a Prometheus that has scraped it at least once."""
    require_peer("prometheus")
    directory = tmp_path_factory.mktemp("observed")
    with ExitStack() as stack:
        echoing = stack.enter_context(serve(echo)).port
        leaving = stack.enter_context(serve(goodbye)).port
        answering = stack.enter_context(serve(answer_at_end, ANSWER)).port
        forwards = {
            "bytes": (f"127.0.0.1 {answering}", ""),
            "living": (f"127.0.0.1 {echoing}", ""),
            "client-first": (f"127.0.0.1 {echoing}", ""),
            "backend-first": (f"127.0.0.1 {leaving}", ""),
            "held": (f"127.0.0.1 {echoing}", ""),
            "denying": (f"127.0.0.1 {echoing}", "deny 127.0.0.2"),
            "allowing": (f"127.0.0.1 {echoing}", "allow 127.0.0.3"),
            "refusing": (f"127.0.0.1 {free_port()}", ""),
            "named": (f"localhost {echoing}", ""),
        }
        addresses = {name: ("127.0.0.1", free_port()) for name in forwards}
        lines = [
            f"127.0.0.1 {addresses[name][1]} {target} [name={name}]\n{rules}\n"
            for name, (target, rules) in forwards.items()
        ]
        config = "".join(lines) + "logformat json\nmetrics 127.0.0.1:0\n"
        forwarder = stack.enter_context(Forwarder(directory, config, workers=2))
        metrics = metrics_url(forwarder)
        prometheus = stack.enter_context(Prometheus(directory, metrics))
        prometheus.wait("up", 1)
        yield Observed(forwarder, prometheus, metrics, addresses)


def test_the_target_is_up(observed: Observed) -> None:
    """Scrapes succeed, one after the other."""
    observed.prometheus.wait('min_over_time(up{job="fastfwd"}[5s])', 1)


def test_bytes_of_ended_sessions(observed: Observed) -> None:
    """Bytes in both directions are those that were sent, to the byte, copied or spliced."""
    sizes = (1, 100_000, 5_000_001)
    for size in sizes:
        with connect(observed.addresses["bytes"]) as client:
            client.sendall(noise(size))
            finish(client)
            assert len(read_to_end(client).data) == ANSWER
    prometheus = observed.prometheus
    prometheus.wait('sum(fastfwd_connections_closed_total{forward="bytes"})', len(sizes))
    assert prometheus.value('fastfwd_client_received_bytes_total{forward="bytes"}') == sum(sizes)
    assert prometheus.value('fastfwd_client_sent_bytes_total{forward="bytes"}') == len(sizes) * ANSWER


def test_bytes_of_a_living_session(observed: Observed) -> None:
    """They are counted while the session lives."""
    with connect(observed.addresses["living"]) as client:
        for size, total in ((1000, 1000), (1500, 2500)):
            client.sendall(bytes(size))
            assert len(read_exactly(client, size)) == size
            observed.prometheus.wait('fastfwd_client_received_bytes_total{forward="living"}', total)
            observed.prometheus.wait('fastfwd_client_sent_bytes_total{forward="living"}', total)
        assert observed.prometheus.value('fastfwd_connections_active{forward="living"}') == 1


@pytest.mark.parametrize(
    ("forward", "outcome"),
    [("client-first", "done-remote-closed"), ("backend-first", "done-local-closed")],
)
def test_ended_sessions(observed: Observed, forward: str, outcome: str) -> None:
    """Every session is counted as accepted, opened and closed, with its outcome and no other."""
    count = 17
    for _ in range(count):
        with connect(observed.addresses[forward]) as client:
            if forward == "client-first":
                finish(client)
            assert read_to_end(client).how == "EOF"
    prometheus = observed.prometheus
    # The last thing that is counted of a connection.
    prometheus.wait(f'fastfwd_connection_duration_seconds_count{{forward="{forward}"}}', count)
    closed = f'fastfwd_connections_closed_total{{forward="{forward}"'
    assert prometheus.value(f'{closed}, outcome="{outcome}"}}') == count
    assert prometheus.value(f"sum({closed}}})") == count
    assert prometheus.value(f'fastfwd_connections_accepted_total{{forward="{forward}"}}') == count
    assert prometheus.value(f'fastfwd_connections_opened_total{{forward="{forward}"}}') == count
    assert prometheus.value(f'fastfwd_backend_connect_duration_seconds_count{{forward="{forward}"}}') == count


def test_sessions_held_open(observed: Observed) -> None:
    """The active ones are those that are open, and none once they have ended."""
    active = 'fastfwd_connections_active{forward="held"}'
    with ExitStack() as stack:
        for _ in range(9):
            client = stack.enter_context(connect(observed.addresses["held"]))
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
        observed.prometheus.wait(active, 9)
    observed.prometheus.wait(active, 0)


@pytest.mark.parametrize(("forward", "reason"), [("denying", "denied"), ("allowing", "not_allowed")])
def test_denied_clients(observed: Observed, forward: str, reason: str) -> None:
    """They are counted with the reason, and not among the accepted."""
    for _ in range(5):
        assert not observed.echoes(forward, "127.0.0.2")
    for _ in range(2):
        assert observed.echoes(forward, "127.0.0.3")
    prometheus = observed.prometheus
    prometheus.wait(f'fastfwd_connections_denied_total{{forward="{forward}", reason="{reason}"}}', 5)
    assert prometheus.value(f'sum(fastfwd_connections_denied_total{{forward="{forward}"}})') == 5
    prometheus.wait(f'sum(fastfwd_connections_closed_total{{forward="{forward}"}})', 2)
    assert prometheus.value(f'fastfwd_connections_accepted_total{{forward="{forward}"}}') == 2


def test_refused_dials(observed: Observed) -> None:
    """They are counted as dials that failed, and their sessions as failed."""
    for _ in range(6):
        assert not observed.echoes("refusing")
    prometheus = observed.prometheus
    closed = 'fastfwd_connections_closed_total{forward="refusing", outcome="local-connect-failed"}'
    prometheus.wait(closed, 6)
    failures = 'fastfwd_backend_connect_failures_total{forward="refusing"'
    assert prometheus.value(f'{failures}, reason="refused"}}') == 6
    assert prometheus.value(f"sum({failures}}})") == 6
    assert prometheus.value('fastfwd_backend_connects_total{forward="refusing"}') == 6
    assert prometheus.value('fastfwd_backend_connect_duration_seconds_count{forward="refusing"}') == 0


# Valid pages.


def page(url: str, accept: str = "text/plain") -> str:
    """/metrics of the exporter at `url`."""
    return request(url, "/metrics", headers={"Accept": accept}).body.decode()


def families(text: str) -> dict[str, Metric]:
    """A page in the text format, by family."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_promtool_finds_nothing_to_say(observed: Observed) -> None:
    """`promtool check metrics` is content with the page."""
    checked = subprocess.run(
        [require_peer("promtool"), "check", "metrics"],
        input=page(observed.metrics),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(20),
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_page_is_the_list(observed: Observed) -> None:
    """The families, their types, help texts and label names are those of METRICS, in its order."""
    found = families(page(observed.metrics))
    wanted = [(metric.name.removesuffix("_total"), metric.type, metric.help) for metric in METRICS]
    assert [(family.name, family.type, family.documentation) for family in found.values()] == wanted
    for metric in METRICS:
        for sample in found[metric.name.removesuffix("_total")].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_both_formats_have_the_same_series(observed: Observed) -> None:
    """OpenMetrics is valid, and has what the text format has."""
    strict = page(observed.metrics, "application/openmetrics-text; version=1.0.0")
    assert strict.endswith("# EOF\n")
    series = [
        {(sample.name, tuple(sorted(sample.labels.items()))) for family in found for sample in family.samples}
        for found in (
            openmetrics.text_string_to_metric_families(strict),
            families(page(observed.metrics)).values(),
        )
    ]
    assert series[0] == series[1] != set()


def test_the_reference_has_every_word(observed: Observed) -> None:
    """docs/metrics.md names every reason, outcome, state and mode, and every bucket."""
    rows = dict(re.findall(r"^\| `(fastfwd_\w+)` \|(.*)$", REFERENCE, re.MULTILINE))
    for metric in METRICS:
        samples = families(page(observed.metrics))[metric.name.removesuffix("_total")].samples
        for label in {"reason", "state", "mode"} & set(metric.labels):
            assert {f"`{sample.labels[label]}`" for sample in samples} <= set(
                re.findall(r"`\w+`", rows[metric.name])
            )
        if metric.type == "histogram":
            bounds = {float(sample.labels["le"]) for sample in samples if "le" in sample.labels}
            written = re.findall(r"[\d.]+", rows[metric.name].rpartition(". ")[2])
            assert {float(number) for number in written} == bounds - {math.inf}
    closed = families(page(observed.metrics))["fastfwd_connections_closed"]
    outcomes = {sample.labels["outcome"] for sample in closed.samples}
    assert all(f'outcome="{outcome}"' in REFERENCE for outcome in outcomes)


def test_the_number_of_series(observed: Observed) -> None:
    """It is what the formula of docs/metrics.md gives."""
    count = len(observed.addresses)
    figures = {"F": count, "T": count, "U": 0, "N": 1, "W": 2}
    found = re.search(r"^    (\d+ F \+ .*)$", REFERENCE, re.MULTILINE)
    assert found
    wanted = sum(
        math.prod(figures[each] if each in figures else int(each) for each in term.split())
        for term in found[1].split("+")
    )
    lines = page(observed.metrics).splitlines()
    assert sum(not line.startswith("#") for line in lines) == wanted


# Counters that never fall.

SLOTS = 8
RATE = 60
"""Short connections per second, beside the streams."""

RESPAWNS = 50


@dataclass(frozen=True, slots=True)
class Fall:
    """A counter's series that fell, or vanished (`after` None), and what was going on."""

    phase: str
    series: str
    before: float
    after: float | None


def counters(text: str) -> dict[str, float]:
    """Every series of a page that must never fall: of counters and histograms."""
    found = {}
    kind = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            kind = line.rpartition(" ")[2]
        elif kind in ("counter", "histogram") and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found


class Watch:
    """Takes /metrics again and again in a thread, and compares each with the one before."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.phase = "start"
        self.scrapes: Counter[str] = Counter()
        self.falls: list[Fall] = []
        self.last: dict[str, float] = {}
        self.error: OSError | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)

    def look(self) -> None:
        """Thread: until told to stop, or until a scrape fails."""
        while not self.over.wait(0.02):
            phase = self.phase
            try:
                found = counters(page(self.url))
            except OSError as error:
                self.error = error
                return
            for series, before in self.last.items():
                after = found.get(series)
                if after is None or after < before:
                    self.falls.append(Fall(phase, series, before, after))
            self.last = found
            self.scrapes[phase] += 1

    def total(self, name: str) -> float:
        """A counter's sum over all its series, at the last look."""
        return sum(value for series, value in self.last.items() if series.startswith(name + "{"))

    def scraped(self, count: int) -> None:
        """Wait for `count` more looks."""
        wanted = self.scrapes.total() + count
        until(lambda: self.scrapes.total() >= wanted or self.error, 20, "scrapes")

    def __enter__(self) -> Watch:
        self.thread.start()
        self.scraped(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(deadline.seconds(20))


@dataclass(frozen=True, slots=True)
class Ordeal:
    """What a program went through, and those who watched."""

    watch: Watch
    prometheus: Prometheus
    kept: float
    """Connections counted for the forward that was taken away and brought back."""


def respawn(forwarder: Forwarder, count: int) -> None:
    """Kill `count` workers, each as soon as it is there. A slot whose workers die young has to
    wait longer for the next one each time; with eight slots the waits stay short."""
    killed: dict[int, int] = {}
    done = 0

    def kill() -> bool:
        nonlocal done
        for slot, pid in forwarder.workers().items():
            if done < count and killed.get(slot) != pid:
                os.kill(pid, signal.SIGKILL)
                killed[slot] = pid
                done += 1
        return done == count

    until(kill, 40, f"{count} workers to kill")


@pytest.fixture(scope="module")
def ordeal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ordeal]:
    """Eight workers under load: one is killed, forwards come and go, fifty workers are killed."""
    require_peer("prometheus")
    directory = tmp_path_factory.mktemp("ordeal")
    busy, other, late = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        target = f"{backend.host} {backend.port}"
        quiet = [free_port() for _ in range(3)]
        common = (
            f"127.0.0.1 {busy} {target} [name=busy]\nlogformat json\nmetrics 127.0.0.1:0\n"
            f"127.0.0.1 {quiet[0]}/udp 127.0.0.1 {quiet[1]}/udp [name=datagrams]\n"
            f"127.0.0.1 {quiet[2]} 127.0.0.1,127.0.0.2 {quiet[1]} [name=several]\n"
        )
        with_other = common + f"127.0.0.1 {other} {target} [name=other]\n"
        with_late = common + f"127.0.0.1 {late} {target} [name=late]\n"
        forwarder = stack.enter_context(Forwarder(directory, with_other, workers=SLOTS))
        metrics = metrics_url(forwarder)
        prometheus = stack.enter_context(Prometheus(directory, metrics))
        watch = stack.enter_context(Watch(metrics))
        load = stack.enter_context(Load(("127.0.0.1", busy), RATE))
        load.open_streams(2 * SLOTS)

        watch.phase = "a killed worker"
        victim = forwarder.worker(0)
        os.kill(victim, signal.SIGKILL)
        successor(forwarder, 0, victim)
        load.more(RATE)
        watch.scraped(10)

        watch.phase = "reloads"
        for _ in range(3):
            with connect(("127.0.0.1", other)) as client:
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"
        forwarder.reload(with_late)
        load.more(RATE // 2)
        forwarder.reload(with_other)
        load.more(RATE // 2)
        watch.scraped(10)
        kept = watch.last['fastfwd_connections_accepted_total{forward="other",proto="tcp"}']

        watch.phase = "respawns"
        respawn(forwarder, RESPAWNS)
        prometheus.wait("fastfwd_workers_running", SLOTS, 20)
        load.stop()
        prometheus.wait("sum(fastfwd_connections_active)", 0)
        watch.scraped(10)
        yield Ordeal(watch, prometheus, kept)


@pytest.mark.parametrize("phase", ["a killed worker", "reloads", "respawns"])
def test_no_counter_falls(ordeal: Ordeal, phase: str) -> None:
    """No series of a counter or histogram falls or vanishes, at any of many looks."""
    assert ordeal.watch.error is None
    assert ordeal.watch.scrapes[phase] >= 10
    assert [fall for fall in ordeal.watch.falls if fall.phase == phase] == []


def test_a_forward_that_comes_back_goes_on_counting(ordeal: Ordeal) -> None:
    """What it had counted before it was taken away is still there."""
    assert ordeal.kept == 3


def test_every_death_is_counted(ordeal: Ordeal) -> None:
    """One restart for each killed worker, all by signal."""
    restarts = "fastfwd_worker_restarts_total"
    assert ordeal.prometheus.value(f'sum({restarts}{{reason="signal"}})') == 1 + RESPAWNS
    assert ordeal.prometheus.value(f"sum({restarts})") == 1 + RESPAWNS


def test_sessions_of_dead_workers_are_closed(ordeal: Ordeal) -> None:
    """They are counted as such, and in the end every accepted connection is closed, once."""
    assert ordeal.prometheus.value('sum(fastfwd_connections_closed_total{outcome="worker-died"})') != 0
    accepted = ordeal.watch.total("fastfwd_connections_accepted_total")
    assert ordeal.watch.total("fastfwd_connections_closed_total") == accepted > RATE


def test_prometheus_sees_no_reset(ordeal: Ordeal) -> None:
    """resets() of every series of every counter and histogram is 0 over the whole time. (Of TLS, and of
    announced clients, there are none here.)"""
    seen: dict[str, set[float]] = {}
    for metric in METRICS:
        suffixes = {"counter": ("",), "histogram": ("_bucket", "_count", "_sum")}.get(metric.type, ())
        for suffix in suffixes:
            found = ordeal.prometheus.query(f"resets({metric.name}{suffix}[10m])")
            seen[metric.name + suffix] = {sample.value for sample in found}
    missing = {name for name, values in seen.items() if not values}
    assert missing == {name for name in seen if name.startswith(("fastfwd_tls_", "fastfwd_proxy_"))}
    assert set().union(*seen.values()) == {0.0}
