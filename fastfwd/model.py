"""The words of the program as types: configuration, outcomes, problems.

Everything here is frozen and knows nothing: no file, no socket, no clock. Every
package may import this module; it imports nothing of ours and never will.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

UNIX = "unix:"
"""How the address of a Unix socket begins."""


class Protocol(enum.Enum):
    """Transport of one side of a forward, spelled as in the configuration."""

    TCP = "tcp"
    UDP = "udp"


class LogFormat(enum.Enum):
    """Shape of a line in the connection log (directives `logcommon`, `logformat`)."""

    RINETD = "rinetd"
    COMMON = "common"
    JSON = "json"


class Outcome(enum.Enum):
    """What became of a connection, in rinetd's own words (rinetd(8), LOGGING).

    The value is the exact text of the log line's last column; the trailing ` -`
    of the failures belongs to it. "local" is the backend's side, "remote" the
    client's: rinetd sees the world from inside the firewall.
    """

    OPENED = "opened"
    DONE_LOCAL_CLOSED = "done-local-closed"
    DONE_REMOTE_CLOSED = "done-remote-closed"
    ACCEPT_FAILED = "accept-failed -"
    LOCAL_SOCKET_FAILED = "local-socket-failed -"
    LOCAL_BIND_FAILED = "local-bind-failed -"
    LOCAL_CONNECT_FAILED = "local-connect-failed -"
    NOT_ALLOWED = "not-allowed"
    DENIED = "denied"
    # What rinetd lacks, and so has no word for.
    OVER_LIMIT = "over-limit"
    OVER_CLIENT_LIMIT = "over-client-limit"
    IDLE_TIMEOUT = "idle-timeout"
    HALF_CLOSE_TIMEOUT = "half-close-timeout"
    EVICTED = "evicted"
    OVER_RATE = "over-rate"
    OVER_CLIENT_RATE = "over-client-rate"
    REMOTE_TLS_FAILED = "remote-tls-failed -"
    LOCAL_TLS_FAILED = "local-tls-failed -"
    REMOTE_PROXY_FAILED = "remote-proxy-failed -"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written: the file's name as given, and the line from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One allow or deny pattern: a network (`10.0.0.0/8`), or a glob over the client's numeric address.

    In a glob `*` is any run of characters, `?` exactly one; the whole address must match.
    Where a rule was written is no part of what it is.
    """

    allow: bool
    pattern: str
    origin: Origin | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[type[AccessRule], tuple[bool, str]]:
        """Workers get no origins: there may be a hundred thousand rules, and one of theirs says nothing
        about where it was written."""
        return AccessRule, (self.allow, self.pattern)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where, what was expected, what was found.

    `origin.line` 0 means the file as a whole (missing, unreadable, a directory).
    """

    origin: Origin
    message: str

    def __str__(self) -> str:
        where = str(self.origin) if self.origin.line else self.origin.file
        return f"{where}: {self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` holds every reason, in file order."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A numeric address: `family` is AF_INET or AF_INET6, `text` the form that inet_ntop(3) writes. Or
    a Unix socket: AF_UNIX and its path, `@name` in the abstract namespace."""

    family: int
    text: str

    def __str__(self) -> str:
        return self.text

    def at(self, port: int) -> str:
        """`address:port`, IPv6 addresses in brackets (RFC 3986, 3.2.2); `unix:path`."""
        if self.family == socket.AF_UNIX:
            return f"{UNIX}{self.text}"
        return f"[{self.text}]:{port}" if ":" in self.text else f"{self.text}:{port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One side of a forward as written: the host (square brackets taken off), the
    port as a number 0..65535 (a service name is looked up while parsing; 0 asks the
    kernel for any free port), the transport, and the last port where it is a range. A
    Unix socket has the host `unix:PATH`, port 0, and what TCP has."""

    host: str
    port: int
    protocol: Protocol
    last: int | None = None

    @property
    def unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.host.startswith(UNIX)

    @property
    def ports(self) -> range:
        """All of its ports."""
        return range(self.port, (self.port if self.last is None else self.last) + 1)

    def at(self, port: int) -> Endpoint:
        """The same with this port alone."""
        return replace(self, port=port, last=None)

    def __str__(self) -> str:
        if self.unix:
            return self.host
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = self.port if self.last is None else f"{self.port}-{self.last}"
        return f"{host}:{ports}/{self.protocol.value}"


class Balance(enum.Enum):
    """How a forward with several backends chooses one (option `balance=`)."""

    FIRST = "first"
    ROUNDROBIN = "roundrobin"
    LEASTCONN = "leastconn"
    RANDOM = "random"
    IPHASH = "iphash"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in so many `seconds`, all of them at once if need be."""

    count: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its chain, and its key, each in PEM as the `file` and the `key_file` have
    them (they may be one). `names` are those that it is for, in lower case, `*.` for a label;
    it `expires` in seconds since the epoch. Until the files are read, all but their names are empty."""

    file: str
    key_file: str
    chain: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    names: tuple[str, ...] = ()
    expires: int = 0


@dataclass(frozen=True, slots=True)
class TlsAccept:
    """TLS towards the clients. Of several `certificates` the one is shown that is for the name a client
    asks for, else the first. With a `client_ca` (the file, and its certificates in PEM) clients are
    asked for one of their own, which they must have if it is `client_required`. `minimum` is
    the lowest version, "1.2" or "1.3"; `ciphers` is OpenSSL's list for 1.2, None for its default;
    `alpn` are protocols, the most wanted first (RFC 7301)."""

    certificates: tuple[Certificate, ...]
    client_ca_file: str | None = None
    client_ca: bytes | None = None
    client_required: bool = True
    minimum: str = "1.2"
    ciphers: str | None = None
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsConnect:
    """TLS towards the backends. Unless `verify` is False each must have a certificate that leads to the
    `ca` (the file, and its certificates in PEM; None: what this host trusts) and is for `name`
    (None: the host that is dialled). `certificate` is shown to those that ask. With `alpn_of_client`
    the protocol that the client was given is offered, otherwise `alpn`."""

    verify: bool = True
    ca_file: str | None = None
    ca: bytes | None = None
    name: str | None = None
    certificate: Certificate | None = None
    minimum: str = "1.2"
    ciphers: str | None = None
    alpn: tuple[str, ...] = ()
    alpn_of_client: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """One of the places that a forward dials. `weight` is its share among the others; `name` what
    metrics call it, its endpoint if None; `sources` are the local addresses to dial from, any if
    there are none; `dns_refresh` is the configuration's, for its host alone."""

    endpoint: Endpoint
    weight: int = 1
    name: str | None = None
    sources: tuple[str, ...] = ()
    dns_refresh: int | None = None

    @property
    def label(self) -> str:
        """What operators call it."""
        return self.name or str(self.endpoint)


@dataclass(frozen=True, slots=True)
class Forward:
    """One `bindaddress bindport connectaddress connectport` line with its options.

    Times are in seconds. `timeout` concerns UDP only (rinetd's default is 72); `rules` are the
    access rules that follow the line in the file; `max_connections` is its own limit, None
    for none. With `original_port` it dials the port that the client asked for before the packet
    filter redirected it here; the backend's own is not used.

    Of several `backends` one is chosen by `balance`. One that has failed `health_threshold`
    dials in a row is left out for `recovery_timeout`; with a `check_interval` it is also
    dialled that often to see whether it is there. For `affinity_ttl` a client stays with
    its backend, up to `affinity_entries` of them. `sorry` is what a client is sent if none can be
    reached.

    `mode` are the rights of the file of a Unix socket that it listens on.

    `tls_accept` is TLS with its clients, `tls_connect` TLS with its backends; a handshake has
    `handshake_timeout`. `proxy_from` are the networks of those who announce clients by the PROXY
    protocol, which is then spoken by everybody; `send_proxy` is the version in which backends are
    told of the client, 0 for none, 3 for version 2 with what its TLS says; `transparent`: they see its
    address as the connection's own.
    """

    listen: Endpoint
    backends: tuple[Backend, ...]
    origin: Origin
    timeout: int = 72
    name: str | None = None
    rules: tuple[AccessRule, ...] = ()
    max_connections: int | None = None
    original_port: bool = False
    balance: Balance = Balance.ROUNDROBIN
    health_threshold: int = 3
    recovery_timeout: int = 30
    check_interval: int | None = None
    affinity_ttl: int | None = None
    affinity_entries: int = 10_000
    connect_timeout: int | None = None
    keepalive: bool = True
    device: str | None = None
    mark: int | None = None
    dscp: int | None = None
    freebind: bool = False
    max_rate: int | None = None
    connection_rate: Rate | None = None
    client_rate: Rate | None = None
    sorry: bytes = b""
    mode: int = 0o660
    tls_accept: TlsAccept | None = None
    tls_connect: TlsConnect | None = None
    handshake_timeout: int = 10
    proxy_from: tuple[str, ...] = ()
    send_proxy: int = 0
    transparent: bool = False

    @property
    def target(self) -> Endpoint:
        """Where it leads: its only backend's endpoint, or its first one's."""
        return self.backends[0].endpoint

    @property
    def hosts(self) -> set[str]:
        """Every host that it dials, or dials from."""
        return {host for each in self.backends for host in (each.endpoint.host, *each.sources)}

    def at(self, listen: int, targets: Sequence[int]) -> Forward:
        """This forward with one port to listen on, and for each backend the one to dial: a part of it,
        which goes by the same label."""
        moved = (
            replace(each, endpoint=each.endpoint.at(port), name=each.label)
            for each, port in zip(self.backends, targets, strict=True)
        )
        return replace(self, listen=self.listen.at(listen), backends=tuple(moved), name=self.label)

    def to(self, backend: Backend) -> Forward:
        """This forward with one of its backends alone: what a session of that is logged with."""
        return replace(self, backends=(backend,), name=self.label)

    def parts(self) -> tuple[Forward, ...]:
        """A forward for each of the ports that this one listens on."""
        if self.listen.last is None:
            return (self,)
        ranges = [each.endpoint.ports for each in self.backends]
        return tuple(
            self.at(port, [ports[place if len(ports) > 1 else 0] for ports in ranges])
            for place, port in enumerate(self.listen.ports)
        )

    @property
    def label(self) -> str:
        """What operators call it: its `name=`, else the address it listens on."""
        return self.name or str(self.listen)


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where the exporter listens: a numeric `host` and a `port` (0: any free one), or the
    `path` of a Unix socket, then without the others."""

    host: str = ""
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What protects a forwarder from its clients and its backends. Connections count from
    accept to close, over all workers; times are in seconds. None: no limit. `udp_connections` is the
    most flows of each forward."""

    connections: int | None = None
    connections_per_client: int | None = None
    connect_timeout: int = 10
    idle_timeout: int | None = None
    half_close_timeout: int | None = None
    udp_connections: int = 5000


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, valid by itself (what the host says of it comes later).

    `workers` None means one per usable processor; `user` and `group` None mean the
    default account; `logfile` None means no connection log, `metrics` None no exporter;
    `dns_refresh` is how many seconds an answer of the name service holds (0: until the
    next reload), `dns_family` the only family of addresses to dial, None for both,
    `dns_expand` whether connections are spread over all addresses of a name; `backlog` is
    the longest accept queue, None for what the kernel allows; `files` are all that were read;
    `statusfile` is written every `status_interval` seconds, in JSON unless `status_text`, and a
    line of statistics every `stats_interval` (0: never);
    `warnings` are for the operator and stop nothing.
    """

    file: str
    forwards: tuple[Forward, ...] = ()
    rules: tuple[AccessRule, ...] = ()
    logfile: str | None = None
    logformat: LogFormat = LogFormat.RINETD
    logduration: bool = False
    pidfile: str | None = None
    workers: int | None = None
    user: str | None = None
    group: str | None = None
    metrics: MetricsAddress | None = None
    limits: Limits = Limits()
    dns_refresh: int = 600
    dns_family: int | None = None
    dns_expand: bool = False
    backlog: int | None = None
    statusfile: str | None = None
    status_interval: int = 30
    status_text: bool = False
    stats_interval: int = 0
    files: tuple[str, ...] = ()
    origins: dict[str, Origin] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    def origin(self, directive: str) -> Origin:
        """Where `directive` was written, or the file as a whole when it was not."""
        return self.origins.get(directive, Origin(self.file, 0))
