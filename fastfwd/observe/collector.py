"""Status -> Prometheus metrics: the one list of every metric there is.

The exporter renders what it yields; docs/metrics.md, the alerts and the dashboard name
nothing else (a test compares). Pure. A series that is known in advance is there from
the start, as 0; no label ever holds a client's address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from fastfwd.observe.status import (
    BackendStatus,
    Datagrams,
    Distribution,
    ForwardStatus,
    Handshakes,
    Status,
    WorkerStatus,
)

Series = Iterable[tuple[tuple[str, ...], float | Distribution]]
"""(label values in the order of the labels, value) of every sample."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `type` is counter, gauge or histogram; `read` finds its samples."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str
    read: Callable[[Status], Series]

    def family(self, status: Status) -> Family:
        """Its samples in `status`."""
        if self.type == "histogram":
            histogram = HistogramMetricFamily(self.name, self.help, labels=self.labels)
            for values, value in self.read(status):
                assert isinstance(value, Distribution)
                buckets = [(str(float(bound)), count) for bound, count in value.buckets]
                histogram.add_metric(values, [*buckets, ("+Inf", value.count)], value.sum)
            return histogram
        kind = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        family: CounterMetricFamily | GaugeMetricFamily = kind(self.name, self.help, labels=self.labels)
        for values, value in self.read(status):
            assert not isinstance(value, Distribution)
            family.add_metric(values, value)
        return family


def _one(read: Callable[[Status], float]) -> Callable[[Status], Series]:
    return lambda status: [((), read(status))]


def _forwards(read: Callable[[ForwardStatus], float | Distribution]) -> Callable[[Status], Series]:
    return lambda status: (((each.forward, each.proto), read(each)) for each in status.forwards)


def _forwards_by(read: Callable[[ForwardStatus], dict[str, int]]) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward, each.proto, word), count)
        for each in status.forwards
        for word, count in read(each).items()
    )


def _backends(read: Callable[[ForwardStatus], float | Distribution]) -> Callable[[Status], Series]:
    return lambda status: (((each.forward,), read(each)) for each in status.forwards)


def _workers(read: Callable[[WorkerStatus], float | Distribution | None]) -> Callable[[Status], Series]:
    return lambda status: (
        ((str(each.slot),), value) for each in status.workers if (value := read(each)) is not None
    )


def _workers_by(
    read: Callable[[WorkerStatus], dict[str, int] | dict[str, float]],
) -> Callable[[Status], Series]:
    return lambda status: (
        ((str(each.slot), word), value) for each in status.workers for word, value in read(each).items()
    )


def _info(status: Status) -> Series:
    for each in status.forwards:
        if each.configured:
            yield (each.forward, each.proto, each.listen, each.target, each.tls), 1


def _queues(read: str) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward, str(queue.slot)), getattr(queue, read))
        for each in status.forwards
        for queue in each.queues
    )


def _connects(status: Status) -> Series:
    for each in status.forwards:
        if not each.backends:
            yield (each.forward, ""), each.connects
        for backend in each.backends:
            yield (each.forward, backend.backend), backend.connects


def _failures(status: Status) -> Series:
    for each in status.forwards:
        if not each.backends:
            for reason, count in each.connect_failures.items():
                yield (each.forward, "", reason), count
        for backend in each.backends:
            for reason, count in backend.connect_failures.items():
                yield (each.forward, backend.backend, reason), count


def _each_backend(read: Callable[[BackendStatus], int | None]) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward, backend.backend), value)
        for each in status.forwards
        for backend in each.backends
        if (value := read(backend)) is not None
    )


def _datagrams(read: Callable[[Datagrams], int]) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward,), read(each.datagrams)) for each in status.forwards if each.datagrams is not None
    )


def _dropped(status: Status) -> Series:
    for each in status.forwards:
        if each.datagrams is not None:
            for reason, count in each.datagrams.dropped.items():
                yield (each.forward, reason), count


def _sides(read: Callable[[Handshakes], int]) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward, side), read(found))
        for each in status.forwards
        for side, found in each.handshakes.items()
    )


def _sides_by(read: Callable[[Handshakes], dict[str, int]]) -> Callable[[Status], Series]:
    return lambda status: (
        ((each.forward, side, word), count)
        for each in status.forwards
        for side, found in each.handshakes.items()
        for word, count in read(found).items()
    )


def _expiries(status: Status) -> Series:
    for each in status.forwards:
        for certificate in each.certificates:
            yield (each.forward, certificate.side, certificate.file), certificate.expires


def _unannounced(status: Status) -> Series:
    for each in status.forwards:
        for reason, count in (each.proxy_failures or {}).items():
            yield (each.forward, reason), count


def _resolved(status: Status) -> Series:
    for each in status.forwards:
        if each.dns_last_success is not None:
            yield (each.forward,), each.dns_last_success


FORWARD: Final = ("forward", "proto")
BACKEND: Final = ("forward", "backend")
SIDE: Final = ("forward", "side")
SLOT: Final = ("slot",)

METRICS: Final = (
    Metric(
        "fastfwd_build_info",
        "gauge",
        ("version", "python_version"),
        "Always 1; which fastfwd this is.",
        lambda status: [((status.version, status.python), 1)],
    ),
    Metric(
        "fastfwd_start_time_seconds",
        "gauge",
        (),
        "When the supervisor started, since the epoch.",
        _one(lambda status: status.started),
    ),
    Metric(
        "fastfwd_forward_info",
        "gauge",
        ("forward", "proto", "listen", "target", "tls"),
        "Always 1; what a forward of the present configuration is, for joins.",
        _info,
    ),
    Metric(
        "fastfwd_config_last_reload_successful",
        "gauge",
        (),
        "Whether the last start or reload was applied.",
        _one(lambda status: status.config.last_reload_successful),
    ),
    Metric(
        "fastfwd_config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "When a configuration was applied last, since the epoch.",
        _one(lambda status: status.config.last_reload),
    ),
    Metric(
        "fastfwd_config_reloads_total",
        "counter",
        (),
        "Reloads tried.",
        _one(lambda status: status.config.reloads),
    ),
    Metric(
        "fastfwd_config_reload_failures_total",
        "counter",
        (),
        "Reloads refused.",
        _one(lambda status: status.config.reload_failures),
    ),
    Metric(
        "fastfwd_upgrades_total",
        "counter",
        (),
        "Hot upgrades that led from the first program to this one.",
        _one(lambda status: status.upgrades.done),
    ),
    Metric(
        "fastfwd_upgrade_failures_total",
        "counter",
        (),
        "Hot upgrades of this program that have failed.",
        _one(lambda status: status.upgrades.failures),
    ),
    Metric(
        "fastfwd_previous_sessions",
        "gauge",
        (),
        "Sessions open in the programs that this one has replaced.",
        _one(lambda status: status.upgrades.previous_sessions),
    ),
    Metric(
        "fastfwd_connections_accepted_total",
        "counter",
        FORWARD,
        "Connections let in.",
        _forwards(lambda each: each.accepted),
    ),
    Metric(
        "fastfwd_connections_opened_total",
        "counter",
        FORWARD,
        "Connections for which a first dial was begun.",
        _forwards(lambda each: each.opened),
    ),
    Metric(
        "fastfwd_connections_denied_total",
        "counter",
        (*FORWARD, "reason"),
        "Connections refused before a dial.",
        _forwards_by(lambda each: each.denied),
    ),
    Metric(
        "fastfwd_connections_closed_total",
        "counter",
        (*FORWARD, "outcome"),
        "Connections ended, by the word that ends their log line.",
        _forwards_by(lambda each: each.closed),
    ),
    Metric(
        "fastfwd_connections_active",
        "gauge",
        FORWARD,
        "Connections let in and not ended.",
        _forwards(lambda each: each.active),
    ),
    Metric(
        "fastfwd_client_received_bytes_total",
        "counter",
        FORWARD,
        "Bytes received from clients.",
        _forwards(lambda each: each.received_bytes),
    ),
    Metric(
        "fastfwd_client_sent_bytes_total",
        "counter",
        FORWARD,
        "Bytes sent to clients.",
        _forwards(lambda each: each.sent_bytes),
    ),
    Metric(
        "fastfwd_connection_duration_seconds",
        "histogram",
        FORWARD,
        "From accept to close.",
        _forwards(lambda each: each.duration_seconds),
    ),
    Metric(
        "fastfwd_backend_connects_total",
        "counter",
        BACKEND,
        "Dials, one per address tried.",
        _connects,
    ),
    Metric(
        "fastfwd_backend_connect_failures_total",
        "counter",
        (*BACKEND, "reason"),
        "Dials that failed.",
        _failures,
    ),
    Metric(
        "fastfwd_backend_up",
        "gauge",
        BACKEND,
        "Whether one of several backends is in use: 0 after failures, or while a check finds nobody.",
        _each_backend(lambda each: int(each.up) if each.configured else None),
    ),
    Metric(
        "fastfwd_backend_connections_active",
        "gauge",
        BACKEND,
        "Connections that one of several backends has now.",
        _each_backend(lambda each: each.active),
    ),
    Metric(
        "fastfwd_backend_connections_total",
        "counter",
        BACKEND,
        "Connections given to one of several backends, also after another one had failed.",
        _each_backend(lambda each: each.accepted),
    ),
    Metric(
        "fastfwd_backend_connect_duration_seconds",
        "histogram",
        ("forward",),
        "How long the dials that succeeded took.",
        _backends(lambda each: each.connect_seconds),
    ),
    Metric(
        "fastfwd_udp_datagrams_received_total",
        "counter",
        ("forward",),
        "Datagrams received from clients.",
        _datagrams(lambda each: each.received),
    ),
    Metric(
        "fastfwd_udp_datagrams_sent_total",
        "counter",
        ("forward",),
        "Datagrams sent to clients.",
        _datagrams(lambda each: each.sent),
    ),
    Metric(
        "fastfwd_udp_datagrams_dropped_total",
        "counter",
        ("forward", "reason"),
        "Datagrams lost here: no room in the listener's queue, not taken by the socket to that side.",
        _dropped,
    ),
    Metric(
        "fastfwd_tls_handshakes_total",
        "counter",
        (*SIDE, "version"),
        "TLS handshakes that succeeded.",
        _sides_by(lambda each: each.versions),
    ),
    Metric(
        "fastfwd_tls_handshakes_resumed_total",
        "counter",
        SIDE,
        "Those of them that resumed a session.",
        _sides(lambda each: each.resumed),
    ),
    Metric(
        "fastfwd_tls_handshake_failures_total",
        "counter",
        (*SIDE, "reason"),
        "TLS handshakes that failed.",
        _sides_by(lambda each: each.failures),
    ),
    Metric(
        "fastfwd_tls_streams_cut_total",
        "counter",
        SIDE,
        "TLS streams that broke off without the peer's close_notify, or in what is no record.",
        _sides(lambda each: each.cut),
    ),
    Metric(
        "fastfwd_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        (*SIDE, "file"),
        "When a certificate that is shown to that side expires, since the epoch.",
        _expiries,
    ),
    Metric(
        "fastfwd_tls_session_tickets_shared",
        "gauge",
        SLOT,
        "Whether the worker's TLS session tickets are good for the other workers.",
        _workers(lambda each: each.tickets_shared),
    ),
    Metric(
        "fastfwd_tls_in_kernel",
        "gauge",
        (),
        "Whether the kernel does the encryption of TLS (kTLS): 0, records pass through memory.",
        _one(lambda _: 0),
    ),
    Metric(
        "fastfwd_proxy_header_failures_total",
        "counter",
        ("forward", "reason"),
        "Clients that were not announced by the PROXY protocol as they should have been.",
        _unannounced,
    ),
    Metric(
        "fastfwd_dns_lookups_total",
        "counter",
        (),
        "Name look-ups that have ended.",
        _one(lambda status: status.dns["lookups"]),
    ),
    Metric(
        "fastfwd_dns_lookup_failures_total",
        "counter",
        (),
        "Name look-ups that gave no address.",
        _one(lambda status: status.dns["failures"]),
    ),
    Metric(
        "fastfwd_dns_last_success_timestamp_seconds",
        "gauge",
        ("forward",),
        "When the name of a forward's target was last looked up with success, since the epoch; 0: never.",
        _resolved,
    ),
    Metric(
        "fastfwd_accept_errors_total",
        "counter",
        ("reason",),
        "Failures of accept(2).",
        lambda status: (((reason,), count) for reason, count in status.accept_errors.items()),
    ),
    Metric(
        "fastfwd_accept_paused_seconds_total",
        "counter",
        SLOT,
        "Time without accepting for want of descriptors or memory.",
        _workers(lambda each: each.accept_paused_seconds),
    ),
    Metric(
        "fastfwd_listener_queue_length",
        "gauge",
        ("forward", "slot"),
        "Connections waiting to be accepted, within the last second.",
        _queues("length"),
    ),
    Metric(
        "fastfwd_listener_queue_limit", "gauge", ("forward", "slot"), "How many may wait.", _queues("limit")
    ),
    Metric(
        "fastfwd_spliced_bytes_total",
        "counter",
        SLOT,
        "Bytes moved by splice(2), which never left the kernel.",
        _workers(lambda each: each.spliced_bytes),
    ),
    Metric(
        "fastfwd_copied_bytes_total",
        "counter",
        SLOT,
        "Bytes moved through the worker's buffer.",
        _workers(lambda each: each.copied_bytes),
    ),
    Metric(
        "fastfwd_pipes",
        "gauge",
        ("slot", "state"),
        "Pipes for splice(2).",
        _workers_by(lambda each: each.pipes),
    ),
    Metric(
        "fastfwd_pipes_short_total",
        "counter",
        SLOT,
        "Pipes that the kernel refused or gave smaller than asked.",
        _workers(lambda each: each.pipes_short),
    ),
    Metric(
        "fastfwd_workers_configured", "gauge", (), "Slots.", _one(lambda status: status.workers_configured)
    ),
    Metric(
        "fastfwd_workers_running",
        "gauge",
        (),
        "Workers that serve.",
        _one(lambda status: status.workers_running),
    ),
    Metric(
        "fastfwd_worker_restarts_total",
        "counter",
        ("slot", "reason"),
        "Workers that ended unplanned.",
        _workers_by(lambda each: each.restarts),
    ),
    Metric(
        "fastfwd_worker_start_time_seconds",
        "gauge",
        SLOT,
        "When the slot's worker was started, since the epoch.",
        _workers(lambda each: each.started),
    ),
    Metric(
        "fastfwd_worker_heartbeat_timestamp_seconds",
        "gauge",
        SLOT,
        "When the worker last came round its loop, since the epoch.",
        _workers(lambda each: each.heartbeat),
    ),
    Metric(
        "fastfwd_worker_sessions",
        "gauge",
        SLOT,
        "Sessions and dials the worker has open.",
        _workers(lambda each: each.sessions),
    ),
    Metric(
        "fastfwd_worker_open_fds",
        "gauge",
        SLOT,
        "File descriptors the worker has open.",
        _workers(lambda each: each.open_fds),
    ),
    Metric(
        "fastfwd_worker_max_fds",
        "gauge",
        SLOT,
        "File descriptors the worker may have open.",
        _workers(lambda each: each.max_fds),
    ),
    Metric(
        "fastfwd_worker_resident_memory_bytes",
        "gauge",
        SLOT,
        "The worker's resident memory, what it shares included.",
        _workers(lambda each: each.memory_bytes),
    ),
    Metric(
        "fastfwd_worker_cpu_seconds_total",
        "counter",
        ("slot", "mode"),
        "Processor time of the slot's workers, past ones included.",
        _workers_by(lambda each: each.cpu_seconds),
    ),
    Metric(
        "fastfwd_worker_loop_lag_seconds",
        "histogram",
        SLOT,
        "The longest turn of the loop in each 50 ms or longer: what something ready may have waited.",
        _workers(lambda each: each.loop_lag_seconds),
    ),
    Metric(
        "fastfwd_log_lines_total",
        "counter",
        (),
        "Lines written to the connection log.",
        _one(lambda status: status.log["lines"]),
    ),
    Metric(
        "fastfwd_log_lines_dropped_total",
        "counter",
        (),
        "Lines of the connection log lost because it would not take them.",
        _one(lambda status: status.log["dropped"]),
    ),
    # The collector's own: it knows when it is done.
    Metric(
        "fastfwd_scrape_collect_seconds", "gauge", (), "How long collecting took, this time.", lambda _: ()
    ),
)


class StatusCollector(Collector):
    """One scrape's metrics, in METRICS' order."""

    def __init__(self, observe: Callable[[], Status]) -> None:
        """`observe()` gives the Status to show."""
        self._observe = observe

    def collect(self) -> Iterator[Family]:
        """Every family, made one by one."""
        begun = perf_counter()
        status = self._observe()
        *families, own = METRICS
        for metric in families:
            yield metric.family(status)
        yield GaugeMetricFamily(own.name, own.help, value=perf_counter() - begun)
