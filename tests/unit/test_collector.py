"""Status to metrics, and the texts that Prometheus reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from prometheus_client import parser
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics

from fastfwd.observe.collector import METRICS, Metric, StatusCollector
from fastfwd.observe.status import (
    BackendStatus,
    CertificateStatus,
    ConfigStatus,
    Datagrams,
    Distribution,
    ForwardStatus,
    Handshakes,
    Queue,
    Status,
    Totals,
    Upgrades,
    WorkerStatus,
)

LABELS = {
    *("forward", "proto", "listen", "target", "tls", "reason", "outcome"),
    *("slot", "state", "mode", "version", "python_version", "backend", "side", "file"),
}
"""Every label there may be. A client's address is in none of them."""

OUTCOMES = [
    *("done-local-closed", "done-remote-closed", "local-socket-failed"),
    *("local-bind-failed", "local-connect-failed", "worker-died"),
    *("remote-tls-failed", "local-tls-failed", "remote-proxy-failed"),
]

Parse = Callable[[str], Iterable[Family]]

PARSERS: dict[str, Parse] = {
    "text/plain": parser.text_string_to_metric_families,
    "application/openmetrics-text; version=1.0.0": openmetrics.text_string_to_metric_families,
}
"""What a client accepts -> the reference parser of it."""


def forward(label: str, *, configured: bool = True, **changes: object) -> ForwardStatus:
    """A forward; every figure of it is another one."""
    made = ForwardStatus(
        forward=label,
        proto="tcp",
        listen="127.0.0.1:2001/tcp",
        target="db.example.org:5432/tcp",
        tls="off",
        configured=configured,
        accepted=21,
        opened=20,
        active=2,
        denied={"not_allowed": 3, "denied": 4},
        closed={outcome: 100 + place for place, outcome in enumerate(OUTCOMES)},
        received_bytes=2**40 + 1,
        sent_bytes=2**41 + 1,
        connects=22,
        connect_failures={
            **{"refused": 5, "timeout": 6, "unreachable": 7},
            **{"reset": 8, "resolve": 9, "local": 10, "tls": 11},
        },
        connect_seconds=Distribution(0.75, 7, [(0.0005, 1), (1, 4), (10, 6)]),
        duration_seconds=Distribution(12.5, 9, [(0.01, 0), (43200, 9)]),
        dns_last_success=None,
        queues=[Queue(0, 11, 4096), Queue(1, 12, 4095)],
        balance="",
        backends=[],
        datagrams=None,
        handshakes={},
        certificates=[],
        proxy_failures=None,
        rates=None,
        history=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def worker(slot: int, **changes: object) -> WorkerStatus:
    """A worker that runs."""
    made = WorkerStatus(
        slot=slot,
        pid=4711,
        running=True,
        started=1789990000.5,
        heartbeat=1789999999.25,
        sessions=2,
        open_fds=90,
        max_fds=20000,
        memory_bytes=23_000_000,
        cpu_seconds={"user": 1.5, "system": 3.5},
        cpu_load=0.42,
        restarts={"exit": 1, "signal": 2, "watchdog": 3},
        accept_paused_seconds=0.25,
        pipes={"lent": 4, "idle": 32},
        pipes_short=5,
        spliced_bytes=6,
        copied_bytes=7,
        tickets_shared=True,
        loop_lag_seconds=Distribution(0.2, 100, [(0.0005, 97), (2.5, 100)]),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def status(*forwards: ForwardStatus, workers: tuple[WorkerStatus, ...] = (), **changes: object) -> Status:
    """A program with these forwards and workers."""
    made = Status(
        version="0.2.0",
        python="3.11.7",
        pid=4710,
        time=1790000000.0,
        started=1789990000.25,
        state="serving",
        config=ConfigStatus("/etc/rinetd.conf", True, 1789990001.5, 3, 1),
        upgrades=Upgrades(6, 7, 8),
        workers_configured=len(workers),
        workers_running=sum(each.running for each in workers),
        log={"lines": 12, "dropped": 1},
        dns={"lookups": 4, "failures": 2},
        accept_errors={"emfile": 1, "enfile": 2, "enobufs": 3, "aborted": 4, "other": 5},
        interval=2.0,
        totals=Totals(0, 0, 0, 0, 0, 0, None),
        forwards=list(forwards),
        workers=list(workers),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


BEHIND = [
    BackendStatus("one", True, True, 41, 42, 43, 44, 45, {"refused": 46}),
    BackendStatus("two", True, False, 51, 52, 53, 54, 55, {"refused": 56}),
]

GREETED = {
    "client": Handshakes({"TLSv1.2": 61, "TLSv1.3": 62}, 63, {"timeout": 64, "not_tls": 65}, 66),
    "backend": Handshakes({"TLSv1.2": 71, "TLSv1.3": 72}, 73, {"certificate": 74}, 75),
}
SHOWN = [
    CertificateStatus("client", "/etc/web.pem", 1790500000),
    CertificateStatus("client", "/etc/old.pem", 1789000000),
]

BUSY = status(
    forward("db", dns_last_success=1789991234.5),
    forward("127.0.0.1:2001/tcp", backends=BEHIND),
    forward(
        *("safe",),
        tls="both",
        handshakes=GREETED,
        certificates=SHOWN,
        proxy_failures={"malformed": 80, "stranger": 81, "timeout": 82, "closed": 83},
    ),
    forward(
        "dns", proto="udp", queues=[], datagrams=Datagrams(30, 31, {"queue": 32, "backend": 33, "client": 34})
    ),
    forward("gone", configured=False, listen="", target="", queues=[]),
    workers=(worker(0), worker(1, open_fds=None, max_fds=None, memory_bytes=None)),
)


def collected(shown: Status) -> dict[str, Family]:
    """The families of one scrape, by name."""
    return {family.name: family for family in StatusCollector(lambda: shown).collect()}


def samples(
    families: Iterable[Family],
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value. No two samples have the same."""
    found = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(shown: Status, name: str, **labels: str) -> float:
    """One sample."""
    return samples(list(collected(shown).values()))[name, tuple(sorted(labels.items()))]


def exposed(shown: Status, accept: str) -> str:
    """The text of one scrape."""
    encode, _ = choose_encoder(accept)
    return str(encode(StatusCollector(lambda: shown)).decode())


def by_name(metric: Metric) -> str:
    return metric.name


# The list.


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_a_metric_yields_its_family_without_any_forward(metric: Metric) -> None:
    """Name and help are there before the first forward and the first worker."""
    assert metric.name.removesuffix("_total") in collected(status())


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_a_metric_has_samples_once_something_happens(metric: Metric) -> None:
    """None is forgotten."""
    assert collected(BUSY)[metric.name.removesuffix("_total")].samples


def test_families_come_in_the_order_of_the_list() -> None:
    """A scrape looks the same each time."""
    assert list(collected(BUSY)) == [metric.name.removesuffix("_total") for metric in METRICS]


def test_every_name_is_there_once() -> None:
    """Two metrics of one name would be one to Prometheus."""
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_a_name_follows_the_rules(metric: Metric) -> None:
    """One prefix; `_total` last on counters and nowhere else."""
    assert re.fullmatch("fastfwd_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.type == "counter")


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_a_metric_has_a_help(metric: Metric) -> None:
    """A sentence on one line."""
    assert re.fullmatch(r"[A-Z][^\n]+\.", metric.help)


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_no_label_is_a_clients_address(metric: Metric) -> None:
    """Label names are a closed set, so nobody who connects makes a series."""
    assert set(metric.labels) <= LABELS
    for sample in collected(BUSY)[metric.name.removesuffix("_total")].samples:
        assert set(sample.labels) - {"le"} == set(metric.labels)


# The two formats.


@pytest.mark.parametrize("accept", PARSERS)
@pytest.mark.parametrize("shown", [BUSY, status()], ids=["busy", "empty"])
def test_the_reference_parser_reads_what_was_meant(accept: str, shown: Status) -> None:
    """Every sample comes back with its name, its labels and its value."""
    meant = samples(list(collected(shown).values()))
    read = samples(PARSERS[accept](exposed(shown, accept)))
    own = ("fastfwd_scrape_collect_seconds", ())
    assert meant.pop(own) > 0
    assert read.pop(own) > 0
    assert read == meant


@pytest.mark.parametrize("accept", PARSERS)
def test_the_reference_parser_reads_types_and_helps(accept: str) -> None:
    """TYPE and HELP of every metric are in the text."""
    read = {family.name: family for family in PARSERS[accept](exposed(BUSY, accept))}
    for metric in METRICS:
        family = read[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.type, metric.help)


@pytest.mark.parametrize("accept", PARSERS)
@pytest.mark.parametrize("label", ['"', "\\", "\n", '\\"', "\\n", 'a\\\\"b\nc', "{}", 'x="y",', "ä€", " "])
def test_any_label_survives(accept: str, label: str) -> None:
    """Backslash, quote and line end are escaped; nothing else needs to be."""
    shown = status(forward(label))
    read = samples(PARSERS[accept](exposed(shown, accept)))
    assert read["fastfwd_connections_active", (("forward", label), ("proto", "tcp"))] == 2


def test_openmetrics_has_its_end() -> None:
    """A text that was cut off can be told from a whole one."""
    assert exposed(BUSY, "application/openmetrics-text; version=1.0.0").endswith("# EOF\n")


# What is there, and what is not.


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_has_its_series(outcome: str) -> None:
    """Each is exported under its own word."""
    labels = {"forward": "db", "proto": "tcp", "outcome": outcome}
    shown = value(BUSY, "fastfwd_connections_closed_total", **labels)
    assert shown == 100 + OUTCOMES.index(outcome)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("fastfwd_connections_accepted_total", {"forward": "db", "proto": "tcp"}),
        ("fastfwd_connections_denied_total", {"forward": "db", "proto": "tcp", "reason": "not_allowed"}),
        ("fastfwd_connections_closed_total", {"forward": "db", "proto": "tcp", "outcome": "worker-died"}),
        ("fastfwd_backend_connect_failures_total", {"forward": "db", "backend": "", "reason": "resolve"}),
        ("fastfwd_accept_errors_total", {"reason": "other"}),
        ("fastfwd_listener_queue_length", {"forward": "db", "slot": "0"}),
        ("fastfwd_worker_restarts_total", {"slot": "0", "reason": "watchdog"}),
        ("fastfwd_dns_last_success_timestamp_seconds", {"forward": "db"}),
        ("fastfwd_connection_duration_seconds_count", {"forward": "db", "proto": "tcp"}),
        ("fastfwd_config_last_reload_successful", {}),
    ],
)
def test_a_series_that_is_known_in_advance_is_0(name: str, labels: dict[str, str]) -> None:
    """A rate over a series that appears with its first event would miss that event."""
    idle = status(
        forward(
            "db",
            accepted=0,
            denied={"not_allowed": 0, "denied": 0},
            closed=dict.fromkeys(OUTCOMES, 0),
            connect_failures={"resolve": 0},
            duration_seconds=Distribution(0.0, 0, [(0.01, 0)]),
            dns_last_success=0.0,
            queues=[Queue(0, 0, 0)],
        ),
        workers=(worker(0, restarts={"exit": 0, "signal": 0, "watchdog": 0}),),
        accept_errors={"other": 0},
        config=ConfigStatus("f", False, 0.0, 0, 0),
        upgrades=Upgrades(0, 0, 0),
    )
    assert value(idle, name, **labels) == 0


@pytest.mark.parametrize(
    "name", ["fastfwd_worker_open_fds", "fastfwd_worker_max_fds", "fastfwd_worker_resident_memory_bytes"]
)
def test_what_is_not_to_be_had_is_left_out(name: str) -> None:
    """A worker that has just gone has no sample, and certainly not 0."""
    assert [sample.labels for sample in collected(BUSY)[name].samples] == [{"slot": "0"}]


def test_only_names_have_a_last_look_up() -> None:
    """A forward to a numeric address has nothing to look up."""
    shown = collected(BUSY)["fastfwd_dns_last_success_timestamp_seconds"].samples
    assert [(sample.labels["forward"], sample.value) for sample in shown] == [("db", 1789991234.5)]


def test_a_removed_forward_has_no_info() -> None:
    """Joins show what is configured now."""
    shown = collected(BUSY)["fastfwd_forward_info"].samples
    assert [sample.labels["forward"] for sample in shown] == ["db", "127.0.0.1:2001/tcp", "safe", "dns"]


def test_a_removed_forward_keeps_its_counters() -> None:
    """Nothing falls."""
    assert value(BUSY, "fastfwd_connections_accepted_total", forward="gone", proto="tcp") == 21


def test_info_tells_what_a_forward_is() -> None:
    """Its value is 1, its labels are the facts."""
    labels = {"listen": "127.0.0.1:2001/tcp", "target": "db.example.org:5432/tcp", "tls": "off"}
    assert value(BUSY, "fastfwd_forward_info", forward="db", proto="tcp", **labels) == 1


def test_queues_are_by_slot() -> None:
    """Length and limit of every slot's listener."""
    for slot, (length, limit) in enumerate([(11, 4096), (12, 4095)]):
        assert value(BUSY, "fastfwd_listener_queue_length", forward="db", slot=str(slot)) == length
        assert value(BUSY, "fastfwd_listener_queue_limit", forward="db", slot=str(slot)) == limit


# TLS.

TLS_METRICS = [
    metric.name for metric in METRICS if metric.name.startswith(("fastfwd_tls_", "fastfwd_proxy_"))
]


@pytest.mark.parametrize(
    ("name", "labels", "figure"),
    [
        ("fastfwd_tls_handshakes_total", {"side": "client", "version": "TLSv1.3"}, 62),
        ("fastfwd_tls_handshakes_total", {"side": "backend", "version": "TLSv1.2"}, 71),
        ("fastfwd_tls_handshakes_resumed_total", {"side": "backend"}, 73),
        ("fastfwd_tls_handshake_failures_total", {"side": "client", "reason": "not_tls"}, 65),
        ("fastfwd_tls_handshake_failures_total", {"side": "backend", "reason": "certificate"}, 74),
        ("fastfwd_tls_streams_cut_total", {"side": "client"}, 66),
        (
            "fastfwd_tls_certificate_expiry_timestamp_seconds",
            {"side": "client", "file": "/etc/web.pem"},
            1790500000,
        ),
        ("fastfwd_proxy_header_failures_total", {"reason": "stranger"}, 81),
    ],
)
def test_tls_of_a_forward(name: str, labels: dict[str, str], figure: int) -> None:
    """Each figure of each side is where its labels say."""
    assert value(BUSY, name, forward="safe", **labels) == figure


@pytest.mark.parametrize("name", TLS_METRICS)
def test_tls_only_where_it_is(name: str) -> None:
    """A forward without TLS, and without the PROXY protocol, has no series of them."""
    shown = collected(BUSY)[name.removesuffix("_total")].samples
    assert {sample.labels.get("forward", "safe") for sample in shown} == {"safe"}


def test_dials_that_failed_for_tls() -> None:
    """The reason of a backend that cannot be trusted."""
    assert value(BUSY, "fastfwd_backend_connect_failures_total", forward="db", backend="", reason="tls") == 11


def test_tickets_without_tls() -> None:
    """Where no client comes by TLS nobody gives tickets, and nothing is said of them."""
    shown = status(workers=(worker(0, tickets_shared=None), worker(1, tickets_shared=False)))
    samples_of = collected(shown)["fastfwd_tls_session_tickets_shared"].samples
    assert [(sample.labels["slot"], sample.value) for sample in samples_of] == [("1", 0)]


# Histograms.

HISTOGRAMS = [metric.name for metric in METRICS if metric.type == "histogram"]


def buckets(family: Family) -> dict[tuple[tuple[str, str], ...], list[tuple[float, float]]]:
    """Labels -> (bound, count) in the order of the text."""
    found: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for sample in family.samples:
        if sample.name.endswith("_bucket"):
            labels = tuple((name, text) for name, text in sample.labels.items() if name != "le")
            found.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
    return found


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_buckets_are_cumulative(name: str) -> None:
    """Bounds rise up to infinity, and no count falls on the way."""
    for series in buckets(collected(BUSY)[name]).values():
        bounds, counts = zip(*series, strict=True)
        assert list(bounds) == sorted(set(bounds))
        assert bounds[-1] == math.inf
        assert list(counts) == sorted(counts)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_the_count_is_the_last_bucket(name: str) -> None:
    """As the format demands."""
    family = collected(BUSY)[name]
    count = {
        tuple(sample.labels.items()): sample.value
        for sample in family.samples
        if sample.name.endswith("_count")
    }
    assert {labels: series[-1][1] for labels, series in buckets(family).items()} == count


def test_a_histogram_shows_its_distribution() -> None:
    """Buckets as they are, sum and count beside them."""
    labels = (("forward", "db"),)
    name = "fastfwd_backend_connect_duration_seconds"
    assert buckets(collected(BUSY)[name])[labels] == [(0.0005, 1), (1, 4), (10, 6), (math.inf, 7)]
    assert (value(BUSY, f"{name}_sum", forward="db"), value(BUSY, f"{name}_count", forward="db")) == (0.75, 7)


# The collector.


def test_every_scrape_looks_anew() -> None:
    """Nothing of an earlier Status is kept."""
    shown = iter([status(forward("a", accepted=1)), status(forward("a", accepted=2))])
    collector = StatusCollector(lambda: next(shown))
    for accepted in (1, 2):
        found = samples(list(collector.collect()))
        assert found["fastfwd_connections_accepted_total", (("forward", "a"), ("proto", "tcp"))] == accepted
