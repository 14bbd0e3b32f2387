"""The facts that operators see, as types: what /status says in JSON, field by field.

observe/observer fills them in; observe/collector makes metrics of them, observe/terminal a
page of text. Seconds and bytes, times since the epoch; None where a fact is not to be had.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram of seconds: `buckets` are (upper bound, how many up to it), without the
    last one, which is `count`."""

    sum: float
    count: int
    buckets: list[tuple[float, int]]


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over the last interval. Datagrams are those from and to clients."""

    connections: float
    received_bytes: float
    sent_bytes: float
    received_datagrams: float = 0.0
    sent_datagrams: float = 0.0


@dataclass(frozen=True, slots=True)
class History:
    """Rates per interval, oldest first."""

    connections: list[float]
    received_bytes: list[float]
    sent_bytes: list[float]


@dataclass(frozen=True, slots=True)
class Queue:
    """A listener's accept queue."""

    slot: int
    length: int
    limit: int


@dataclass(frozen=True, slots=True)
class Datagrams:
    """From clients, to clients, and those that were lost here, by reason."""

    received: int
    sent: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Of TLS with one side: those that succeeded by version, how many of them resumed a session,
    those that failed by reason, and `cut`, the streams that ended without the peer's close_notify."""

    versions: dict[str, int]
    resumed: int
    failures: dict[str, int]
    cut: int


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """One that is shown to that `side`, client or backend; the `file` as in the configuration."""

    side: str
    file: str
    expires: int


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One of several backends. `configured` is False once a reload has taken it out of the list; `up` is
    False while it is left out; `accepted` are the connections that were given to it first or after
    another one."""

    backend: str
    configured: bool
    up: bool
    accepted: int
    active: int
    received_bytes: int
    sent_bytes: int
    connects: int
    connect_failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """One forward. `configured` is False once a reload has taken it away; `datagrams` is None where
    it is one of TCP, `backends` are empty where there is only one. `tls` is off, accept, connect or
    both; `handshakes` are those of the sides, client and backend, that have TLS, or had it;
    `proxy_failures` is None where nobody announces clients."""

    forward: str
    proto: str
    listen: str
    target: str
    tls: str
    configured: bool
    accepted: int
    opened: int
    active: int
    denied: dict[str, int]
    closed: dict[str, int]
    received_bytes: int
    sent_bytes: int
    connects: int
    connect_failures: dict[str, int]
    connect_seconds: Distribution
    duration_seconds: Distribution
    dns_last_success: float | None
    queues: list[Queue]
    balance: str
    backends: list[BackendStatus]
    datagrams: Datagrams | None
    handshakes: dict[str, Handshakes]
    certificates: list[CertificateStatus]
    proxy_failures: dict[str, int] | None
    rates: Rates | None
    history: History | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One slot and the worker in it. `pid` 0: there is none. `tickets_shared`, whether its TLS session
    tickets are good for the other workers, is None where no forward has TLS with clients."""

    slot: int
    pid: int
    running: bool
    started: float
    heartbeat: float
    sessions: int
    open_fds: int | None
    max_fds: int | None
    memory_bytes: int | None
    cpu_seconds: dict[str, float]
    cpu_load: float | None
    restarts: dict[str, int]
    accept_paused_seconds: float
    pipes: dict[str, int]
    pipes_short: int
    spliced_bytes: int
    copied_bytes: int
    tickets_shared: bool | None
    loop_lag_seconds: Distribution


@dataclass(frozen=True, slots=True)
class ConfigStatus:
    """The configuration file and its reloads."""

    file: str
    last_reload_successful: bool
    last_reload: float
    reloads: int
    reload_failures: int


@dataclass(frozen=True, slots=True)
class Upgrades:
    """Hot upgrades: how many led from the first program to this one, how many of this one's have failed,
    and how many sessions the programs that it has replaced still have."""

    done: int
    failures: int
    previous_sessions: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all forwards, also those that are gone."""

    accepted: int
    active: int
    denied: int
    closed: int
    received_bytes: int
    sent_bytes: int
    rates: Rates | None


@dataclass(frozen=True, slots=True)
class Status:
    """Everything, at `time`. `state` is starting, serving, draining or replaced."""

    version: str
    python: str
    pid: int
    time: float
    started: float
    state: str
    config: ConfigStatus
    upgrades: Upgrades
    workers_configured: int
    workers_running: int
    log: dict[str, int]
    dns: dict[str, int]
    accept_errors: dict[str, int]
    interval: float
    totals: Totals
    forwards: list[ForwardStatus]
    workers: list[WorkerStatus]
