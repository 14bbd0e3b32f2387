"""The Grafana dashboard as code: prints dashboard.json, which Grafana 9 and newer import.

    python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json

Change this file, not the JSON; a test compares the two and runs every query. It needs no recording
rule, only what /metrics has, and the standard library. It must print the same text every time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

WIDTH: Final = 24  # columns of Grafana's grid

SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}

HOST: Final = 'job=~"$job", instance=~"$instance"'
FORWARD: Final = HOST + ', forward=~"$forward"'

FAILED: Final = FORWARD + ', outcome=~"local-.+-failed"'
"""Sessions that never reached a backend."""

EVICTED: Final = FORWARD + ', proto="udp", outcome="evicted"'

BACKEND: Final = "{{instance}} {{forward}} {{backend}}"

GREEN, ORANGE, RED = "green", "orange", "red"


def rate(metric: str, labels: str = HOST) -> str:
    """The metric's increase per second, over an interval that suits the graph's resolution."""
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def quantile(q: float, metric: str, labels: str, by: str) -> str:
    """A quantile of the histogram, over everything with the same labels `by`."""
    by_labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({by_labels}) ({rate(metric + '_bucket', labels)}))"


@dataclass(frozen=True)
class Query:
    """One expression and what its series are called."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Steps:
    """Thresholds: a value is coloured from `warn` on, and from `alarm` on."""

    warn: float | None = None
    alarm: float | None = None

    def json(self) -> Json:
        """Grafana's form: rising values, the first colour without one."""
        colors = ((GREEN, None), (ORANGE, self.warn), (RED, self.alarm))
        steps = [
            {"color": color, "value": value} for color, value in colors if color == GREEN or value is not None
        ]
        return {"mode": "absolute", "steps": steps}


@dataclass(frozen=True)
class Panel:
    """One panel. `width` and `height` are grid units; `unit` is one of Grafana's unit ids."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int = 8
    height: int = 8
    steps: Steps = field(default_factory=Steps)
    stacked: bool = False
    highest: float | None = None

    kind = "timeseries"

    def json(self, number: int, x: int, y: int) -> Json:
        """The panel with that id, its upper left corner at column `x` and line `y`."""
        defaults: Json = {"unit": self.unit, "thresholds": self.steps.json(), "mappings": [], **self.look()}
        if self.highest is not None:
            defaults["max"] = self.highest
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                self.target(letter, query) for letter, query in zip("ABCDEFGHIJ", self.queries, strict=False)
            ],
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": self.options(),
            "transformations": [],
        }

    def target(self, letter: str, query: Query) -> Json:
        """One query."""
        return {
            "refId": letter,
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend,
            "range": True,
        }

    def look(self) -> Json:
        """The part of the field's defaults that belongs to this kind of panel."""
        return {
            "min": 0,
            "color": {"mode": "palette-classic"},
            "custom": {
                "drawStyle": "line",
                "lineInterpolation": "linear",
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 10,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if self.steps != Steps() else "off"},
            },
        }

    def options(self) -> Json:
        """The panel's own options."""
        return {
            "legend": {
                "showLegend": True,
                "displayMode": "table",
                "placement": "bottom",
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


@dataclass(frozen=True)
class Stat(Panel):
    """One number, now."""

    width: int = 3
    height: int = 4

    kind = "stat"

    def target(self, letter: str, query: Query) -> Json:
        return {**super().target(letter, query), "range": False, "instant": True}

    def look(self) -> Json:
        return {"color": {"mode": "thresholds"}, "noValue": "none"}

    def options(self) -> Json:
        return {
            "colorMode": "value" if self.steps == Steps() else "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }


@dataclass(frozen=True)
class Soonest(Stat):
    """Times that are left, now: red below zero, orange below 14 days."""

    def look(self) -> Json:
        steps = [(RED, None), (ORANGE, 0), (GREEN, 14 * 86400)]
        return {
            **super().look(),
            "thresholds": {
                "mode": "absolute",
                "steps": [{"color": color, "value": value} for color, value in steps],
            },
        }

    def options(self) -> Json:
        return {**super().options(), "colorMode": "value"}


@dataclass(frozen=True)
class Table(Panel):
    """One row per forward; each query is a column, called by its legend, in the unit `units` gives it."""

    width: int = WIDTH
    height: int = 9
    units: Sequence[str] = ()

    kind = "table"

    HIDDEN = ("Time", "__name__", "job", "proto", "tls")

    def target(self, letter: str, query: Query) -> Json:
        return {**super().target(letter, query), "range": False, "instant": True, "format": "table"}

    def look(self) -> Json:
        return {"color": {"mode": "thresholds"}, "custom": {"align": "auto", "filterable": True}}

    def options(self) -> Json:
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}

    def json(self, number: int, x: int, y: int) -> Json:
        panel = super().json(number, x, y)
        letters = "ABCDEFGHIJ"
        names = {
            f"Value #{letter}": query.legend for letter, query in zip(letters, self.queries, strict=False)
        }
        panel["transformations"] = [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(self.HIDDEN, True),
                    "indexByName": {},
                    "renameByName": names,
                },
            },
        ]
        panel["fieldConfig"]["overrides"] = [
            {
                "matcher": {"id": "byName", "options": query.legend},
                "properties": [{"id": "unit", "value": unit}],
            }
            for query, unit in zip(self.queries, self.units, strict=True)
        ]
        return panel


def by_forward(metric: str, *, legend: str = "{{instance}} {{forward}}") -> Query:
    """A counter's rate per forward."""
    return Query(f"sum by (instance, forward) ({rate(metric, FORWARD)})", legend)


def by_slot(expr: str, what: str = "") -> Query:
    """An expression with a series per slot."""
    return Query(expr, f"{{{{instance}}}} slot {{{{slot}}}}{what}")


OVERVIEW: Final = [
    Stat(
        "Workers missing",
        "Slots without a running worker. Clients whom the kernel sends there wait.",
        "none",
        [Query(f"sum(fastfwd_workers_configured{{{HOST}}} - fastfwd_workers_running{{{HOST}}})")],
        steps=Steps(alarm=1),
    ),
    Stat(
        "Active sessions",
        "Connections that are open now, dials included.",
        "short",
        [Query(f"sum(fastfwd_connections_active{{{FORWARD}}})")],
    ),
    Stat(
        "Connections",
        "Connections let in per second.",
        "cps",
        [Query(f"sum({rate('fastfwd_connections_accepted_total', FORWARD)})")],
    ),
    Stat(
        "From clients",
        "Bytes per second.",
        "Bps",
        [Query(f"sum({rate('fastfwd_client_received_bytes_total', FORWARD)})")],
    ),
    Stat(
        "To clients",
        "Bytes per second.",
        "Bps",
        [Query(f"sum({rate('fastfwd_client_sent_bytes_total', FORWARD)})")],
    ),
    Stat(
        "Sessions failed",
        "Share of the ended sessions that never reached a backend, in the last 5 minutes.",
        "percentunit",
        [
            Query(
                f"sum(rate(fastfwd_connections_closed_total{{{FAILED}}}[5m]))"
                f" / (sum(rate(fastfwd_connections_closed_total{{{FORWARD}}}[5m])) > 0) or vector(0)"
            )
        ],
        steps=Steps(warn=0.01, alarm=0.05),
    ),
    Stat(
        "Reload refused",
        "Programs that do not run what their file says, because the last reload was refused.",
        "none",
        [Query(f"sum(1 - fastfwd_config_last_reload_successful{{{HOST}}})")],
        steps=Steps(alarm=1),
    ),
    Stat(
        "Log lines lost, 24 h",
        "Lines the connection log would not take, in the last 24 hours.",
        "short",
        [Query(f"sum(increase(fastfwd_log_lines_dropped_total{{{HOST}}}[24h]))")],
        steps=Steps(alarm=1),
    ),
    Table(
        "Forwards",
        "Every forward of the configuration in force. Removed ones are not here.",
        "short",
        [
            Query(
                f"sum by (instance, forward, listen, target) (fastfwd_connections_active{{{FORWARD}}}"
                " * on (job, instance, forward, proto) group_left (listen, target)"
                f" fastfwd_forward_info{{{FORWARD}}})",
                "active",
            ),
            by_forward("fastfwd_connections_accepted_total", legend="connections/s"),
            by_forward("fastfwd_client_received_bytes_total", legend="from clients"),
            by_forward("fastfwd_client_sent_bytes_total", legend="to clients"),
            by_forward("fastfwd_connections_denied_total", legend="denied/s"),
            by_forward("fastfwd_backend_connect_failures_total", legend="dials failed/s"),
        ],
        units=["short", "cps", "Bps", "Bps", "cps", "cps"],
    ),
    Panel(
        "Programs",
        "Version and Python of every program.",
        "short",
        [
            Query(
                f"count by (version, python_version) (fastfwd_build_info{{{HOST}}})",
                "{{version}}, Python {{python_version}}",
            )
        ],
        width=12,
        height=6,
        stacked=True,
    ),
    Panel(
        "Uptime",
        "Time since the supervisor's start. It should only fall when somebody wants it to.",
        "s",
        [Query(f"time() - fastfwd_start_time_seconds{{{HOST}}}", "{{instance}}")],
        width=12,
        height=6,
    ),
]

TRAFFIC: Final = [
    Panel(
        "From clients",
        "Bytes received from clients, counted as they pass.",
        "Bps",
        [by_forward("fastfwd_client_received_bytes_total")],
        width=12,
        stacked=True,
    ),
    Panel(
        "To clients",
        "Bytes sent to clients, counted as they pass.",
        "Bps",
        [by_forward("fastfwd_client_sent_bytes_total")],
        width=12,
        stacked=True,
    ),
]

SESSIONS: Final = [
    Panel(
        "Active sessions",
        "Connections that are open, dials included.",
        "short",
        [
            Query(
                f"sum by (instance, forward) (fastfwd_connections_active{{{FORWARD}}})",
                "{{instance}} {{forward}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Connections let in",
        "Connections per second that the access rules let in.",
        "cps",
        [by_forward("fastfwd_connections_accepted_total")],
        stacked=True,
    ),
    Panel(
        "Begun and ended",
        "Let in, dialled for and ended, per second. Let in and not opened: nothing could be dialled. Let in "
        "and not closed: the active sessions grow.",
        "cps",
        [
            Query(f"sum({rate('fastfwd_connections_accepted_total', FORWARD)})", "let in"),
            Query(f"sum({rate('fastfwd_connections_opened_total', FORWARD)})", "opened"),
            Query(f"sum({rate('fastfwd_connections_closed_total', FORWARD)})", "closed"),
        ],
    ),
    Panel(
        "Session duration",
        "From accept to close, of the sessions that ended. The buckets are coarse: read orders of magnitude.",
        "s",
        [
            Query(quantile(q, "fastfwd_connection_duration_seconds", FORWARD, ""), f"p{q * 100:.0f}")
            for q in (0.5, 0.95, 0.99)
        ],
        width=12,
    ),
    Panel(
        "Median session duration by forward",
        "From accept to close, of the sessions that ended.",
        "s",
        [
            Query(
                quantile(0.5, "fastfwd_connection_duration_seconds", FORWARD, "instance, forward"),
                "{{instance}} {{forward}}",
            )
        ],
        width=12,
    ),
]

OUTCOMES: Final = [
    Panel(
        "Outcomes",
        "Ended sessions by the last word of their log line. worker-died has no line: its worker was killed.",
        "cps",
        [Query(f"sum by (outcome) ({rate('fastfwd_connections_closed_total', FORWARD)})", "{{outcome}}")],
        stacked=True,
    ),
    Panel(
        "Sessions failed",
        "Share of the ended sessions that never reached a backend.",
        "percentunit",
        [
            Query(
                f"sum by (instance, forward) ({rate('fastfwd_connections_closed_total', FAILED)})"
                f" / sum by (instance, forward) ({rate('fastfwd_connections_closed_total', FORWARD)})",
                "{{instance}} {{forward}}",
            )
        ],
        steps=Steps(warn=0.01, alarm=0.05),
        highest=1,
    ),
    Panel(
        "Denied",
        "Clients refused by the access rules. not_allowed: no allow rule matched; denied: a deny rule did.",
        "cps",
        [
            Query(
                f"sum by (instance, forward, reason) ({rate('fastfwd_connections_denied_total', FORWARD)})",
                "{{instance}} {{forward}} {{reason}}",
            )
        ],
        stacked=True,
    ),
]

DIALS: Final = [
    Panel(
        "Dial latency",
        "From connect to the backend's answer, of the dials that succeeded. 1, 3 and 7 s are lost SYNs.",
        "s",
        [
            Query(quantile(q, "fastfwd_backend_connect_duration_seconds", FORWARD, ""), f"p{q * 100:.0f}")
            for q in (0.5, 0.95, 0.99)
        ],
    ),
    Panel(
        "Dial latency by forward, p95",
        "From connect to the backend's answer.",
        "s",
        [
            Query(
                quantile(0.95, "fastfwd_backend_connect_duration_seconds", FORWARD, "instance, forward"),
                "{{instance}} {{forward}}",
            )
        ],
        steps=Steps(alarm=1),
    ),
    Panel(
        "Dials",
        "Addresses tried per second. More than connections let in: of several addresses the first ones fail.",
        "cps",
        [by_forward("fastfwd_backend_connects_total")],
        stacked=True,
    ),
    Panel(
        "Failed dials by reason",
        "refused: nobody listens. timeout: no answer in 10 s. unreachable: no route, or a router said no. "
        "resolve: the backend's name has no address. local: no socket, or the src= address cannot be used.",
        "cps",
        [Query(f"sum by (reason) ({rate('fastfwd_backend_connect_failures_total', FORWARD)})", "{{reason}}")],
        width=12,
        stacked=True,
    ),
    Panel(
        "Failed dials by forward",
        "Dials per second that failed.",
        "cps",
        [by_forward("fastfwd_backend_connect_failures_total")],
        width=12,
        stacked=True,
    ),
]

BACKENDS: Final = [
    Stat(
        "Left out",
        "Backends, of several, that are not dialled now: after failures, or because a check finds nobody.",
        "none",
        [Query(f"count(fastfwd_backend_up{{{FORWARD}}} == 0) or vector(0)")],
        height=8,
        steps=Steps(warn=1),
    ),
    Stat(
        "Forwards without a backend",
        "Forwards of whose several backends all are left out. All of them are tried all the same.",
        "none",
        [
            Query(
                f"count(max by (job, instance, forward) (fastfwd_backend_up{{{FORWARD}}}) == 0) or vector(0)"
            )
        ],
        height=8,
        steps=Steps(alarm=1),
    ),
    Panel(
        "Backends up",
        "Share of the time in which a backend was not left out. One that nobody dials or checks is up.",
        "percentunit",
        [Query(f"avg_over_time(fastfwd_backend_up{{{FORWARD}}}[$__rate_interval])", BACKEND)],
        width=18,
        highest=1,
    ),
    Panel(
        "Connections by backend",
        "Connections that each of several backends has now.",
        "short",
        [Query(f"fastfwd_backend_connections_active{{{FORWARD}}}", BACKEND)],
        stacked=True,
    ),
    Panel(
        "New connections by backend",
        "Connections per second given to each of several backends, also after another one had failed.",
        "cps",
        [Query(rate("fastfwd_backend_connections_total", FORWARD), BACKEND)],
        stacked=True,
    ),
    Panel(
        "Share of new connections",
        "Of its forward's, by backend: what the weights and the way of balancing make of it.",
        "percentunit",
        [
            Query(
                f"{rate('fastfwd_backend_connections_total', FORWARD)}"
                " / on (job, instance, forward) group_left ()"
                " sum by (job, instance, forward)"
                f" ({rate('fastfwd_backend_connections_total', FORWARD)})",
                BACKEND,
            )
        ],
        highest=1,
    ),
]

DATAGRAMS: Final = [
    Panel(
        "Datagrams from clients",
        "Datagrams per second, whatever becomes of them.",
        "pps",
        [by_forward("fastfwd_udp_datagrams_received_total")],
        stacked=True,
    ),
    Panel(
        "Datagrams to clients",
        "Datagrams per second.",
        "pps",
        [by_forward("fastfwd_udp_datagrams_sent_total")],
        stacked=True,
    ),
    Panel(
        "Datagrams lost",
        "Datagrams per second that were lost here. queue: the listener's receive buffer was full. backend, "
        "client: the socket to that side did not take it.",
        "pps",
        [
            Query(
                "sum by (instance, forward, reason)"
                f" ({rate('fastfwd_udp_datagrams_dropped_total', FORWARD)})",
                "{{instance}} {{forward}} {{reason}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Flows",
        "Clients that have sent something of late, and have a socket to a backend each.",
        "short",
        [
            Query(
                f'fastfwd_connections_active{{{FORWARD}, proto="udp"}}',
                "{{instance}} {{forward}}",
            )
        ],
        width=12,
        stacked=True,
    ),
    Panel(
        "Flows evicted",
        "Flows per second that were ended because another one needed their place (max-udp-connections).",
        "cps",
        [
            Query(
                f"sum by (instance, forward) ({rate('fastfwd_connections_closed_total', EVICTED)})",
                "{{instance}} {{forward}}",
            )
        ],
        width=12,
        steps=Steps(warn=1),
    ),
]

TLS: Final = [
    Panel(
        "Handshakes",
        "TLS handshakes per second that succeeded, with clients and with backends.",
        "cps",
        [
            Query(
                f"sum by (side, version) ({rate('fastfwd_tls_handshakes_total', FORWARD)})",
                "{{side}} {{version}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Handshakes failed",
        "TLS handshakes per second that failed, by why. With clients not_tls and closed are mostly scanners.",
        "cps",
        [
            Query(
                f"sum by (side, reason) ({rate('fastfwd_tls_handshake_failures_total', FORWARD)})",
                "{{side}} {{reason}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Sessions resumed",
        "Share of the handshakes that resumed a session, which costs a fraction of a new one.",
        "percentunit",
        [
            Query(
                f"sum by (instance, forward, side) ({rate('fastfwd_tls_handshakes_resumed_total', FORWARD)})"
                f" / sum by (instance, forward, side) ({rate('fastfwd_tls_handshakes_total', FORWARD)})",
                "{{instance}} {{forward}} {{side}}",
            )
        ],
        highest=1,
    ),
    Panel(
        "Streams cut",
        "Streams per second that broke off without a farewell: what came may not be everything.",
        "cps",
        [
            Query(
                f"sum by (instance, forward, side) ({rate('fastfwd_tls_streams_cut_total', FORWARD)})",
                "{{instance}} {{forward}} {{side}}",
            )
        ],
    ),
    Panel(
        "No PROXY header",
        "Connections per second that were ended because the client was not announced as it should have been.",
        "cps",
        [
            Query(
                "sum by (instance, forward, reason)"
                f" ({rate('fastfwd_proxy_header_failures_total', FORWARD)})",
                "{{instance}} {{forward}} {{reason}}",
            )
        ],
        stacked=True,
    ),
    Stat(
        "Tickets not shared",
        "Workers whose session tickets are worth nothing to the others: clients resume by luck.",
        "none",
        [Query(f"count(fastfwd_tls_session_tickets_shared{{{HOST}}} == 0) or vector(0)")],
        width=4,
        height=8,
        steps=Steps(warn=1),
    ),
    Stat(
        "TLS in the kernel",
        "Programs whose kernel does the encryption. None does: records pass through memory.",
        "none",
        [Query(f"sum(fastfwd_tls_in_kernel{{{HOST}}})")],
        width=4,
        height=8,
    ),
    Soonest(
        "Certificates",
        "Time until certificates expire, of those that were last read. They are read at a reload.",
        "s",
        [
            Query(
                "sort(min by (instance, forward, side, file)"
                f" (fastfwd_tls_certificate_expiry_timestamp_seconds{{{FORWARD}}}) - time())",
                "{{instance}} {{forward}} {{side}} {{file}}",
            )
        ],
        width=WIDTH,
        height=6,
    ),
]

WORKERS: Final = [
    Panel(
        "Processor time",
        "Seconds per second: 1 is one processor, the most a worker can use.",
        "percentunit",
        [by_slot(f"sum by (instance, slot) ({rate('fastfwd_worker_cpu_seconds_total')})")],
        steps=Steps(warn=0.7, alarm=0.9),
    ),
    Panel(
        "Processor time by mode",
        "A forwarder's work is the kernel's: much more user than system time is unusual.",
        "percentunit",
        [
            Query(
                f"sum by (instance, mode) ({rate('fastfwd_worker_cpu_seconds_total')})",
                "{{instance}} {{mode}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Loop lag, p99",
        "The longest turn of a worker's loop, looked at every 50 ms: what a session that is ready may wait.",
        "s",
        [by_slot(quantile(0.99, "fastfwd_worker_loop_lag_seconds", HOST, "instance, slot"))],
        steps=Steps(warn=0.1, alarm=0.25),
    ),
    Panel(
        "Sessions",
        "Sessions and dials open per worker. The kernel spreads connections by a hash, not by load.",
        "short",
        [by_slot(f"fastfwd_worker_sessions{{{HOST}}}")],
    ),
    Panel(
        "Memory",
        "Resident memory per worker.",
        "bytes",
        [by_slot(f"fastfwd_worker_resident_memory_bytes{{{HOST}}}")],
        steps=Steps(alarm=2**29),
    ),
    Panel(
        "Descriptors",
        "Open descriptors per worker: two per session, two per pipe, one per forward.",
        "short",
        [by_slot(f"fastfwd_worker_open_fds{{{HOST}}}")],
    ),
    Panel(
        "Restarts",
        "Workers that ended without an order, by slot and reason. watchdog: no heartbeat for 5 s.",
        "short",
        [by_slot(f"increase(fastfwd_worker_restarts_total{{{HOST}}}[$__rate_interval])", " {{reason}}")],
        stacked=True,
        steps=Steps(alarm=1),
    ),
    Panel(
        "Heartbeat age",
        "Time since a worker last came round its loop, by Prometheus' clock: a constant offset is a "
        "difference of clocks. An idle worker beats once a second; one silent for 5 s is replaced.",
        "s",
        [by_slot(f"time() - fastfwd_worker_heartbeat_timestamp_seconds{{{HOST}}}")],
        steps=Steps(warn=30, alarm=60),
        width=12,
    ),
    Panel(
        "Workers' age",
        "Time since the birth of the worker in the slot.",
        "s",
        [by_slot(f"time() - fastfwd_worker_start_time_seconds{{{HOST}}}")],
        width=12,
    ),
]

SATURATION: Final = [
    Panel(
        "Accept queue",
        "How full the fullest accept queue of a forward is. When it is full, the kernel drops SYNs.",
        "percentunit",
        [
            Query(
                f"max by (instance, forward) (fastfwd_listener_queue_length{{{FORWARD}}}"
                f" / fastfwd_listener_queue_limit{{{FORWARD}}})",
                "{{instance}} {{forward}}",
            )
        ],
        steps=Steps(warn=0.5, alarm=0.8),
        highest=1,
    ),
    Panel(
        "Accepting paused",
        "Share of the time a worker does not accept, because descriptors or memory have run out.",
        "percentunit",
        [by_slot(rate("fastfwd_accept_paused_seconds_total"))],
        steps=Steps(alarm=0.01),
    ),
    Panel(
        "Accept errors",
        "What accept(2) said. emfile: the process' descriptors, enfile: the system's, enobufs: memory; "
        "aborted: the client was gone again.",
        "cps",
        [
            Query(
                f"sum by (instance, reason) ({rate('fastfwd_accept_errors_total')})",
                "{{instance}} {{reason}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Descriptors in use",
        "Share of the limit (LimitNOFILE) per worker. At 100 % it stops accepting.",
        "percentunit",
        [by_slot(f"fastfwd_worker_open_fds{{{HOST}}} / fastfwd_worker_max_fds{{{HOST}}}")],
        steps=Steps(warn=0.8, alarm=0.95),
        highest=1,
    ),
    Panel(
        "Spliced and copied",
        "Bytes per second by how they were moved. Bulk data should be spliced: it never enters the process.",
        "Bps",
        [
            Query(f"sum by (instance) ({rate('fastfwd_spliced_bytes_total')})", "{{instance}} spliced"),
            Query(f"sum by (instance) ({rate('fastfwd_copied_bytes_total')})", "{{instance}} copied"),
        ],
        stacked=True,
    ),
    Panel(
        "Spliced share",
        "Share of the bytes that were spliced. Low is right for small messages, wrong for bulk data.",
        "percentunit",
        [
            by_slot(
                f"{rate('fastfwd_spliced_bytes_total')}"
                f" / ({rate('fastfwd_spliced_bytes_total')} + {rate('fastfwd_copied_bytes_total')})"
            )
        ],
        highest=1,
    ),
    Panel(
        "Pipes",
        "Pipes for splice(2): lent to a session that is moving bytes, or idle in the pool.",
        "short",
        [by_slot(f"fastfwd_pipes{{{HOST}}}", " {{state}}")],
        width=12,
        stacked=True,
    ),
    Panel(
        "Pipes short",
        "Pipes the kernel refused or made smaller than asked (fs.pipe-user-pages-soft): their bytes are "
        "copied, or spliced in smaller pieces.",
        "short",
        [by_slot(f"increase(fastfwd_pipes_short_total{{{HOST}}}[$__rate_interval])")],
        width=12,
        steps=Steps(warn=1),
    ),
]

NAMES: Final = [
    Panel(
        "Look-ups",
        "Look-ups of backends' names per second: every 600 s each, and again after a failure.",
        "ops",
        [
            Query(f"sum by (instance) ({rate('fastfwd_dns_lookups_total')})", "{{instance}} look-ups"),
            Query(f"sum by (instance) ({rate('fastfwd_dns_lookup_failures_total')})", "{{instance}} failed"),
        ],
        width=12,
    ),
    Panel(
        "Age of the last answer",
        "Time since a forward's name was last looked up with success. It falls every 600 s. A name that was "
        "never found is in the next panel.",
        "s",
        [
            Query(
                f"time() - (fastfwd_dns_last_success_timestamp_seconds{{{FORWARD}}} > 0)",
                "{{instance}} {{forward}}",
            )
        ],
        width=9,
        steps=Steps(alarm=1800),
    ),
    Stat(
        "Names never found",
        "Forwards whose backend's name has no address yet: their clients are turned away.",
        "none",
        [Query(f"count(fastfwd_dns_last_success_timestamp_seconds{{{FORWARD}}} == 0) or vector(0)")],
        height=8,
        steps=Steps(alarm=1),
    ),
]

LOG: Final = [
    Panel(
        "Log lines",
        "Lines written to the connection log, and lines it would not take.",
        "short",
        [
            Query(f"sum by (instance) ({rate('fastfwd_log_lines_total')})", "{{instance}} written/s"),
            Query(f"sum by (instance) ({rate('fastfwd_log_lines_dropped_total')})", "{{instance}} dropped/s"),
        ],
    ),
    Panel(
        "Reloads",
        "Reloads, and those that were refused: the configuration from before stayed in force.",
        "short",
        [
            Query(
                f"sum by (instance) (increase(fastfwd_config_reloads_total{{{HOST}}}[$__rate_interval]))",
                "{{instance}}",
            ),
            Query(
                "sum by (instance) "
                f"(increase(fastfwd_config_reload_failures_total{{{HOST}}}[$__rate_interval]))",
                "{{instance}} refused",
            ),
        ],
    ),
    Panel(
        "Age of the configuration",
        "Time since a configuration was last put in force.",
        "s",
        [Query(f"time() - fastfwd_config_last_reload_success_timestamp_seconds{{{HOST}}}", "{{instance}}")],
    ),
    Panel(
        "Collecting a scrape",
        "What /metrics itself took.",
        "s",
        [Query(f"fastfwd_scrape_collect_seconds{{{HOST}}}", "{{instance}}")],
        width=24,
        height=6,
    ),
]

ROWS: Final = {
    "Overview": OVERVIEW,
    "Traffic": TRAFFIC,
    "Sessions": SESSIONS,
    "Outcomes and denials": OUTCOMES,
    "Dials": DIALS,
    "Several backends": BACKENDS,
    "Datagrams": DATAGRAMS,
    "TLS": TLS,
    "Workers": WORKERS,
    "Saturation": SATURATION,
    "Names": NAMES,
    "Log and reloads": LOG,
}


def layout() -> Iterator[Json]:
    """All panels, each row's from left to right in lines of equal height."""
    number = y = 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            "panels": [],
        }
        y += 1
        x = height = 0
        for panel in panels:
            if x + panel.width > WIDTH:
                y += height
                x = 0
            number += 1
            height = panel.height
            yield panel.json(number, x, y)
            x += panel.width
        y += height


def variable(name: str, label: str, query: str) -> Json:
    """A choice of label values; all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "regex": "",
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def annotation(name: str, color: str, expr: str, text: str) -> Json:
    """A mark on every graph where `expr` has a value."""
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expr,
        "step": "60s",
        "titleFormat": name,
        "textFormat": text,
        "useValueForTime": False,
    }


def dashboard() -> Json:
    """The whole of it."""
    return {
        "uid": "fastfwd",
        "title": "fastfwd",
        "description": "Forwarding with fastfwd: traffic, sessions, backends, TLS, workers.",
        "tags": ["fastfwd", "network"],
        "schemaVersion": 37,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "links": [],
        "annotations": {
            "list": [
                annotation(
                    "Reload",
                    "blue",
                    f"changes(fastfwd_config_last_reload_success_timestamp_seconds{{{HOST}}}[1m]) > 0",
                    "{{instance}}",
                ),
                annotation(
                    "Worker died",
                    RED,
                    f"sum by (instance, slot) (increase(fastfwd_worker_restarts_total{{{HOST}}}[1m])) > 0",
                    "{{instance}} slot {{slot}}",
                ),
            ]
        },
        "templating": {
            "list": [
                {
                    "type": "datasource",
                    "name": "datasource",
                    "label": "Data source",
                    "query": "prometheus",
                    "regex": "",
                    "refresh": 1,
                    "multi": False,
                    "includeAll": False,
                    "current": {},
                    "options": [],
                    "hide": 0,
                    "skipUrlSync": False,
                },
                variable("job", "Job", "label_values(fastfwd_build_info, job)"),
                variable("instance", "Instance", 'label_values(fastfwd_build_info{job=~"$job"}, instance)'),
                variable(
                    "forward",
                    "Forward",
                    f"label_values(fastfwd_connections_accepted_total{{{HOST}}}, forward)",
                ),
            ]
        },
        "panels": list(layout()),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2, ensure_ascii=False)
    print()
