"""Hosts and ports as a configuration writes them -> Endpoint.

Called by forward and options. Pure but for the service names that it looks up. It must never ask
DNS: a host may stay a name.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from typing import Final

from fastfwd.config.resolve import numeric
from fastfwd.config.wording import expected
from fastfwd.model import UNIX, Endpoint, Protocol

LONGEST_PATH: Final = 107
"""Bytes of sun_path without its NUL, unix(7)."""

LONGEST_NAME: Final = 253
"""Characters of a host name, RFC 1123 with RFC 1035 section 2.3.4."""

_PORT = re.compile(r"(?:([0-9]+)(?:-([0-9]+))?|([A-Za-z0-9_+.-]+))(?:/(tcp|udp))?")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
# Last label of something that getaddrinfo(3) would take for a number (127.1, 0x7f000001).
_NUMBER_AT_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)")

Say = Callable[[str], None]
Service = Callable[[str, str], int]


def endpoint(host: str, port: str, service: Service, wrong: Say, warn: Say) -> Endpoint:
    """A host and a port, or a range of ports, with its `/tcp` or `/udp`. Errors are told to `wrong`."""
    return Endpoint(host_of(host, wrong, warn), *ports(port, service, wrong))


def unix(text: str, wrong: Say) -> Endpoint:
    """`unix:/path` or `unix:@name`. Errors are told to `wrong`."""
    path = text.removeprefix(UNIX)
    if len(path) < 2 or path[0] not in "/@":
        wrong(expected("'unix:/absolute/path' or 'unix:@name'", text))
    elif len(os.fsencode(path)) > LONGEST_PATH:
        wrong(expected(f"a path of at most {LONGEST_PATH} bytes (unix(7))", path))
    return Endpoint(text, 0, Protocol.TCP)


def host_of(text: str, wrong: Say, warn: Say) -> str:
    """A numeric address or a host name, without square brackets. Errors are told to `wrong`."""
    host = text
    if text.startswith("[") and text.endswith("]"):
        host = text[1:-1]
        if ":" not in host:
            wrong(expected("an IPv6 address inside the square brackets", text))
            return host
    what = _wrong_with(host)
    if what is not None:
        wrong(expected(what, text))
        return host
    address = numeric(host)
    if address is not None and address.family == socket.AF_INET and host not in (address.text, "0"):
        warn(f"{host!r} is read as {address.text}: a number with a leading 0 is octal")
    return host


def _wrong_with(host: str) -> str | None:
    """What should have stood in the place of `host`, or None when it is right."""
    if ":" in host:
        return _wrong_with_ipv6(host)
    if "*" in host or "?" in host:
        return "an address without wildcards ('0.0.0.0' is every IPv4 address, '::' every address)"
    if host == "0":
        return None
    if _NUMBER_AT_END.fullmatch(host):
        return None if numeric(host) else "an IPv4 address of four numbers from 0 to 255"
    if _HOST.fullmatch(host) and len(host) <= LONGEST_NAME:
        return None
    if host.endswith(".") and _HOST.fullmatch(host[:-1]):
        return "a host name without a dot at its end"
    if not host.isascii():
        return "a host name in ASCII (an international name starts with 'xn--')"
    return "a numeric address or a host name"


def _wrong_with_ipv6(host: str) -> str | None:
    if "%" in host:
        return "an IPv6 address without a zone"
    address = numeric(host)
    if address is None:
        if re.fullmatch(r"[^:]+:[0-9]+", host):
            return "an address alone (the port is a field of its own)"
        return "an IPv6 address"
    if "." in host:
        packed = socket.inet_pton(socket.AF_INET6, host)
        tail = f"{int.from_bytes(packed[12:14]):x}:{int.from_bytes(packed[14:]):x}"
        return f"an IPv6 address in hexadecimal only ('{host[: host.rindex(':') + 1]}{tail}')"
    return None


def ports(text: str, service: Service, wrong: Say) -> tuple[int, Protocol, int | None]:
    """(port, protocol, last port of a range). Errors are told to `wrong`."""
    match = _PORT.fullmatch(text)
    if match is None:
        before, slash, after = text.partition("/")
        if slash and _PORT.fullmatch(before):
            wrong(expected("'/tcp', '/udp' or nothing after the port", slash + after))
        else:
            wrong(expected("a port number or service name", text))
        return 0, Protocol.TCP, None
    digits, end, name, suffix = match.groups()
    protocol = Protocol(suffix or "tcp")
    if digits is not None:
        first, last = _number(digits, wrong), None if end is None else _number(end, wrong)
        if first is None or (end is not None and last is None):
            return 0, protocol, None
        if last is not None and not 0 < first < last:
            wrong(expected("a range of ports from a lower to a higher one", f"{digits}-{end}"))
        return first, protocol, last
    number = _service(name, protocol.value, service)
    if number is None:
        hint = _hint(name, protocol, service)
        wrong(expected(f"a port number or the name of a {protocol.value} service{hint}", name))
        return 0, protocol, None
    return number, protocol, None


def _number(digits: str, wrong: Say) -> int | None:
    digits = digits.lstrip("0") or "0"
    if len(digits) > 5 or int(digits) > 65535:
        wrong(expected("a port from 0 to 65535", digits))
        return None
    return int(digits)


def _service(name: str, protocol: str, service: Service) -> int | None:
    try:
        return service(name, protocol)
    except OSError:
        return None


def _hint(name: str, protocol: Protocol, service: Service) -> str:
    other = "udp" if protocol is Protocol.TCP else "tcp"
    if _service(name, other, service) is not None:
        return f" (this one is known for {other} only)"
    if name != name.lower() and _service(name.lower(), protocol.value, service) is not None:
        return f" (upper and lower case differ: did you mean {name.lower()!r}?)"
    return ""
