"""The options of a forward, `[key=value, ...]` -> fields of Forward.

Called by forward with what follows the connect port, and by structured, which has them from YAML.
Pure. Every option has its place in GROUPS: its name, the field it sets, the kind of its value, and what
the documents say of it (docs/reference.py writes their tables).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from fastfwd.config.endpoint import Say, host_of
from fastfwd.config.pattern import network, networks
from fastfwd.config.value import (
    AMOUNT,
    CONNECT_TIME,
    FILE,
    LONGEST,
    NO_TIME,
    RATE,
    SIZE,
    SWITCH,
    TIME,
    Value,
    listed,
    name,
    number,
    one_of,
)
from fastfwd.config.wording import expected, meant
from fastfwd.model import Balance

DEFAULT_TIMEOUT: Final = 72  # seconds, rinetd(8); timeout=0 means it too

MOST_SOURCES: Final = 256
"""Addresses of a pool: seven million connections to one backend."""

_OPTION = re.compile(r"[ \t]*([^ \t=]*)[ \t]*=[ \t]*(.*?)[ \t]*", re.DOTALL)
_TWO_LISTS = re.compile(r"\][ \t]*\[")
_HOST_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?"
_DEVICE = r"(?!\.\.?$)[^\s/:\x00-\x1f]{1,15}"  # IFNAMSIZ without its NUL, netdevice(7)


class Option(NamedTuple):
    """The `field` of Forward that an option sets, and what its `value` may be.

    The rest is for the documents, in Markdown: the `effect`, with `{bounds}` for those of the value,
    or that of each word the value may be; and what is so by `default` where the model has no value.
    """

    field: str
    value: Value
    effect: str | dict[str, str]
    default: str = ""


def options(pairs: Iterable[tuple[str, str]], wrong: Say, warn: Say) -> dict[str, Any]:
    """Fields of Forward, and `sources` and `dns_refresh`, which are its backends'. Errors are told
    to `wrong`, warnings to `warn`."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for key, value in pairs:
        if key in seen:
            warn(f"option {key!r} is repeated, the last one counts")
        seen.add(key)
        if key in OPTIONS:
            found |= read(key, value, f"{key}=", wrong, warn)
        else:
            wrong(expected("one of the options that fastfwd.conf(5) lists", key) + meant(key, OPTIONS))
    return found


def read(key: str, value: str, written: str, wrong: Say, warn: Say) -> dict[str, Any]:
    """The field that one option sets; none when its value is wrong. `written` is what stands before
    the value in the file."""

    def say(message: str) -> None:
        wrong(message.replace("expected", f"expected after {written!r}", 1))

    field, kind, *_ = OPTIONS[key]
    if key == "src":  # of which there may be warnings
        return {field: _sources(value, say, warn)}
    try:
        return {field: kind.read(value)}
    except ValueError as error:
        say(expected(str(error), value) if error.args else kind.wrong(value))
        return {}


def pairs(rest: str, wrong: Say) -> list[tuple[str, str]]:
    """What stands in the square brackets, as (key, value)."""
    if not rest:
        return []
    if not rest.startswith("["):
        wrong(expected("'[options]', a comment or nothing after the connect port", rest))
        return []
    inside, bracket, after = rest[1:].rpartition("]")
    if not bracket:
        wrong(expected("']' at the end of the options", rest))
        return []
    if after.strip(" \t"):
        wrong(expected("a comment or nothing after the options", after.strip(" \t")))
        return []
    if _TWO_LISTS.search(inside):
        wrong(expected("one list of options ('[timeout=5, src=10.0.0.1]')", rest))
        return []
    if not inside.strip(" \t"):
        wrong(expected("at least one option between the square brackets", rest))
        return []
    found = []
    for option in inside.split(","):
        match = _OPTION.fullmatch(option)
        if option.strip(" \t") in FLAGS:
            found.append((option.strip(" \t"), "on"))
        elif match is None:
            wrong(expected("an option 'key=value'", option.strip(" \t")))
        elif "=" in match[2] and match[1] != "ciphers":  # @SECLEVEL=1
            wrong(expected("',' between options", option.strip(" \t")))
        else:
            found.append((match[1], match[2]))
    return found


def _timeout(value: str) -> int:
    if re.fullmatch("[0-9]+", value) is None:
        raise ValueError
    digits = value.lstrip("0") or "0"
    return LONGEST if len(digits) > len(str(LONGEST)) else min(int(digits), LONGEST) or DEFAULT_TIMEOUT


def _sources(value: str, wrong: Say, warn: Say) -> tuple[str, ...]:
    """`ADDRESS`, `NETWORK/BITS` or several of them with `;` between."""
    found: list[str] = []
    for each in value.split(";"):
        word = each.strip(" \t")
        if "/" not in word:
            found.append(host_of(word, wrong, warn))
            continue
        try:
            pool = ip_network(network(word))
        except ValueError as error:
            wrong(expected(str(error), word))
            continue
        if pool.num_addresses > MOST_SOURCES:
            wrong(expected(f"a pool of at most {MOST_SOURCES} addresses", word))
            continue
        found += map(str, pool)
    if len(found) > MOST_SOURCES:
        wrong(expected(f"at most {MOST_SOURCES} addresses", value))
    return tuple(found)


def _mode(value: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError
    return int(value, 8)


_FILES: Final = listed("the names of files", ".+", form="FILE;FILE")
_PROTOCOLS: Final = r"[!-~]{1,255}"

GROUPS: Final = {
    "forward": {
        "name": Option(
            "name",
            name("a name of letters, digits and '_.:-'", "[A-Za-z0-9_.:-]+"),
            "what metrics, the status page and the JSON log call this forward: letters, digits and `_.:-`, "
            "each name once",
            "the listening address",
        ),
        "timeout": Option(
            "timeout",
            Value("a timeout in whole seconds", _timeout, form="SECONDS"),
            "UDP: a flow ends after so long without a datagram from either side. Without effect on TCP",
        ),
        "connect-timeout": Option(
            "connect_timeout",
            CONNECT_TIME,
            "how long an address of a backend has to accept; `0`: as long as the kernel tries",
            "the [directive's](#limits)",
        ),
        "freebind": Option(
            "freebind",
            SWITCH,
            "whether the `bindaddress`, and `src=`, may be addresses that are not here yet: of a "
            "[pair](pair.md), the one that waits",
        ),
        "keepalive": Option(
            "keepalive", SWITCH, "keepalive probes on both sides, the first after 60 s of silence"
        ),
        "max-connections": Option(
            "max_connections",
            AMOUNT,
            "this forward's own limit, {bounds}, beside the global one: see [limits](#limits)",
            "none",
        ),
        "connection-rate": Option(
            "connection_rate",
            RATE,
            "so many new connections a second (`/m` a minute, `/h` an hour), over all workers; N at once",
            "none",
        ),
        "client-rate": Option(
            "client_rate",
            RATE,
            "the same for each client: an IPv4 address, or the /64 of an IPv6 one; "
            "`/m` and `/h` as with `connection-rate`",
            "none",
        ),
        "max-rate": Option(
            "max_rate",
            SIZE,
            "the most bytes per second of a session, in each direction (`500k`, `10M`); the kernel paces "
            "them. TCP only",
            "none",
        ),
        "sorry-file": Option(
            "sorry_file",
            FILE,
            "what a client is sent if no backend can be reached, before it is closed: an HTTP 503, an SMTP "
            "421. TCP only, up to 1 MiB, beside the file that names it",
            "none",
        ),
    },
    "dialling": {
        "src": Option(
            "sources",
            name("addresses to dial from", form="ADDRESS"),
            "connect to the backend from this local address. If it is not local, the connection fails; it "
            "never goes out from another one. `NETWORK/BITS`, or several with `;` between: a pool of them, "
            f"at most {MOST_SOURCES}, each in its turn: every address has some 28,000 ports for one backend, "
            "and as many for all UDP flows together",
            "the kernel's choice",
        ),
        "device": Option(
            "device",
            name("the name of a network interface", _DEVICE, form="INTERFACE"),
            "dial through this interface only",
            "by the routes",
        ),
        "mark": Option(
            "mark",
            number(1, 2**32 - 1, hexadecimal=True),
            "the packets' mark, {bounds}, for `ip rule` and nftables. Workers keep CAP_NET_ADMIN for it, so "
            "a reload cannot bring the first one",
            "none",
        ),
        "dscp": Option(
            "dscp",
            number(0, 63, hexadecimal=True),
            "the code point of what goes to the backend, {bounds}",
            "none",
        ),
        "dns-refresh": Option(
            "dns_refresh",
            NO_TIME,
            "how long the addresses of the backend's name hold; `0`: until the next reload",
            "the [directive's](#names)",
        ),
    },
    "redirected": {
        "port": Option(
            "original_port",
            one_of({"original": True}),
            "dial the port that the client asked for before the packet filter redirected it here; the line "
            "then has one backend, with port 0. TCP only",
            "the one in the line",
        ),
    },
    "backends": {
        "balance": Option(
            "balance",
            one_of({each.value: each for each in Balance}),
            {
                "first": "the first in the list that works; the others are spares",
                "roundrobin": "in turns, by weight",
                "leastconn": "the one with the fewest connections for its weight, over all workers",
                "random": "at random, by weight",
                "iphash": "the same one for the same client; when one fails only its clients move",
            },
        ),
        "health-threshold": Option(
            "health_threshold",
            number(1, 100),
            "after so many failed dials in a row (in one worker), {bounds}, a backend is left out by all "
            "workers",
        ),
        "recovery-timeout": Option(
            "recovery_timeout", TIME, "how long it is left out. If all are left out, all are tried"
        ),
        "check": Option(
            "check_interval",
            TIME,
            "connect to every backend that often, and leave out who is not there. TCP only",
            "none",
        ),
        "affinity-ttl": Option(
            "affinity_ttl",
            NO_TIME,
            "a client stays with its backend until it has not come for that long; `0`: it does not",
            "none",
        ),
        "affinity-max-entries": Option(
            "affinity_entries",
            number(100, 10_000_000),
            "about so many clients, {bounds}, are remembered; then the oldest go",
        ),
    },
    "unix": {
        "mode": Option(
            "mode",
            Value("a file's mode in octal, such as 0660", _mode, form="MODE"),
            "the rights of the Unix socket's file that is listened on, in octal: who may connect",
        ),
    },
    "tls": {
        "tls-accept": Option("tls_accept", SWITCH, "TLS with the clients; it needs `cert`", "off"),
        "cert": Option(
            "cert",
            _FILES,
            "the certificate, in PEM, with those that lead to an authority after it. Of several, the one "
            "that is for the name a client asks for (SNI; `*.example.org` is for one label), else the first",
            "none",
        ),
        "key": Option(
            "key",
            _FILES,
            "the key of the `cert`; as many as there are certificates. Not encrypted, and nobody else may "
            "read it",
            "in the `cert`",
        ),
        "client-ca": Option(
            "client_ca", FILE, "ask clients for a certificate that leads to one of these", "none"
        ),
        "verify-client": Option(
            "verify_client",
            one_of({"require": True, "optional": False}),
            "whether clients must have a certificate",
        ),
        "alpn": Option(
            "alpn",
            listed("names of protocols", _PROTOCOLS),
            "the protocols that are spoken (ALPN), the most wanted first: `h2;http/1.1`",
            "none",
        ),
        "tls-connect": Option("tls_connect", SWITCH, "TLS with the backends", "off"),
        "server-ca": Option(
            "server_ca",
            FILE,
            "the certificates of backends must lead to one of these",
            "what this host trusts",
        ),
        "server-name": Option(
            "server_name",
            name("a host name", _HOST_NAME),
            "whom the certificates of backends must be for, and who is asked for (SNI)",
            "the host in the line",
        ),
        "verify-server": Option(
            "verify_server",
            SWITCH,
            "whether the certificates of backends are verified. `off`: anybody may be the backend. For tests",
        ),
        "client-cert": Option(
            "client_cert", FILE, "what a backend is shown that asks for a certificate", "none"
        ),
        "client-key": Option("client_key", FILE, "the key of the `client-cert`", "in the `client-cert`"),
        "server-alpn": Option(
            "server_alpn",
            listed("names of protocols, or 'client'", _PROTOCOLS),
            "the protocols that backends are offered; `client`: the one that was agreed on with the client",
            "none",
        ),
        "tls-min": Option(
            "tls_min", one_of({"1.2": "1.2", "1.3": "1.3"}), "the oldest version, on both sides"
        ),
        "ciphers": Option(
            "ciphers",
            name("a list of ciphers as in openssl-ciphers(1)", r"[!-~]+", form="LIST"),
            "the ciphers of TLS 1.2 as in openssl-ciphers(1), on both sides. Those of 1.3 are OpenSSL's",
            "OpenSSL's",
        ),
        "handshake-timeout": Option(
            "handshake_timeout", TIME, "how long a handshake, or a PROXY header, may take"
        ),
    },
    "client": {
        "send-proxy": Option(
            "send_proxy",
            one_of({"v1": 1, "v2": 2, "v2-tls": 3}),
            "tell backends of the client: its address and port, and where it had connected to. `v2-tls` also "
            "tells of its TLS, in TLVs, which not every program takes (rsync's daemon does not)",
            "none",
        ),
        "accept-proxy": Option(
            "proxy_from",
            Value("networks and addresses", networks, form="NETWORK;ADDRESS"),
            "clients are announced by these, and by nobody else: every connection must come from one of "
            "them, and begin with a header of version 1 or 2. `unix` for whoever connects to a Unix socket. "
            "TCP only",
            "none",
        ),
        "transparent": Option(
            "transparent",
            SWITCH,
            "dial from the client's own address. Not with `src=`, nor towards a Unix socket",
        ),
    },
}
"""Every option there is, by what it is about."""

OPTIONS: Final = {name: each for group in GROUPS.values() for name, each in group.items()}
"""The same by their names alone."""

FLAGS: Final = ("tls-accept", "tls-connect")
"""Options that need no value: to be named is enough."""
