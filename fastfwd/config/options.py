"""The options of a forward, `[key=value, ...]` -> fields of Forward.

Called by forward with what follows the connect port, and by structured, which has them from YAML.
Pure. Every option but `src` is a line of OPTIONS: its name, the field it sets, and the kind of its value.
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
    """The `field` of Forward that an option sets, and what its value may be."""

    field: str
    value: Value


def options(pairs: Iterable[tuple[str, str]], wrong: Say, warn: Say) -> dict[str, Any]:
    """Fields of Forward, and `sources` and `dns_refresh`, which are its backends'. Errors are told
    to `wrong`, warnings to `warn`."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for key, value in pairs:
        if key in seen:
            warn(f"option {key!r} is repeated, the last one counts")
        seen.add(key)
        if key in OPTIONS or key == "src":
            found |= read(key, value, f"{key}=", wrong, warn)
        else:
            wrong(expected("one of the options that fastfwd(8) lists", key) + meant(key, ("src", *OPTIONS)))
    return found


def read(key: str, value: str, written: str, wrong: Say, warn: Say) -> dict[str, Any]:
    """The field that one option sets; none when its value is wrong. `written` is what stands before
    the value in the file."""

    def say(message: str) -> None:
        wrong(message.replace("expected", f"expected after {written!r}", 1))

    if key == "src":
        return {"sources": _sources(value, say, warn)}
    field, kind = OPTIONS[key]
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


FILE: Final = name("the name of a file")

OPTIONS: Final = {
    "timeout": Option("timeout", Value("a timeout in whole seconds", _timeout)),
    "name": Option("name", name("a name of letters, digits and '_.:-'", "[A-Za-z0-9_.:-]+")),
    "max-connections": Option("max_connections", AMOUNT),
    "connection-rate": Option("connection_rate", RATE),
    "client-rate": Option("client_rate", RATE),
    "max-rate": Option("max_rate", SIZE),
    "port": Option("original_port", one_of({"original": True})),
    "balance": Option("balance", one_of({each.value: each for each in Balance})),
    "health-threshold": Option("health_threshold", number(1, 100)),
    "recovery-timeout": Option("recovery_timeout", TIME),
    "check": Option("check_interval", TIME),
    "affinity-ttl": Option("affinity_ttl", NO_TIME),
    "affinity-max-entries": Option("affinity_entries", number(100, 10_000_000)),
    "connect-timeout": Option("connect_timeout", CONNECT_TIME),
    "dns-refresh": Option("dns_refresh", NO_TIME),
    "keepalive": Option("keepalive", SWITCH),
    "device": Option("device", name("the name of a network interface", _DEVICE)),
    "mark": Option("mark", number(1, 2**32 - 1, hexadecimal=True)),
    "dscp": Option("dscp", number(0, 63, hexadecimal=True)),
    "freebind": Option("freebind", SWITCH),
    "mode": Option("mode", Value("a file's mode in octal, such as 0660", _mode)),
    "sorry-file": Option("sorry_file", FILE),
    "tls-accept": Option("tls_accept", SWITCH),
    "cert": Option("cert", listed("the names of files", ".+")),
    "key": Option("key", listed("the names of files", ".+")),
    "client-ca": Option("client_ca", FILE),
    "verify-client": Option("verify_client", one_of({"require": True, "optional": False})),
    "tls-connect": Option("tls_connect", SWITCH),
    "server-ca": Option("server_ca", FILE),
    "server-name": Option("server_name", name("a host name", _HOST_NAME)),
    "verify-server": Option("verify_server", SWITCH),
    "client-cert": Option("client_cert", FILE),
    "client-key": Option("client_key", FILE),
    "tls-min": Option("tls_min", one_of({"1.2": "1.2", "1.3": "1.3"})),
    "ciphers": Option("ciphers", name("a list of ciphers as in openssl-ciphers(1)", r"[!-~]+")),
    "alpn": Option("alpn", listed("names of protocols", r"[!-~]{1,255}")),
    "server-alpn": Option("server_alpn", listed("names of protocols, or 'client'", r"[!-~]{1,255}")),
    "handshake-timeout": Option("handshake_timeout", TIME),
    "accept-proxy": Option("proxy_from", Value("networks and addresses", networks)),
    "send-proxy": Option("send_proxy", one_of({"v1": 1, "v2": 2, "v2-tls": 3})),
    "transparent": Option("transparent", SWITCH),
}

FLAGS: Final = ("tls-accept", "tls-connect")
"""Options that need no value: to be named is enough."""
