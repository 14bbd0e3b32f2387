"""One forward line -> Forward: `bindaddress bindport connectaddress connectport [options]`.

Called by parse with the line's text, its comment already cut off. It knows one
line only: what several lines mean together is check's business. It must never
ask DNS (a host may stay a name) and never stop at the first error of a line.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

from fastfwd.config.number import AMOUNT, NO_TIME, amount, seconds
from fastfwd.config.resolve import numeric
from fastfwd.config.wording import expected, quote
from fastfwd.model import Endpoint, Forward, Origin, Protocol

DEFAULT_TIMEOUT = 72  # seconds, rinetd(8); timeout=0 means it too
LONGEST_TIMEOUT = 2**31 - 1  # seconds: 68 years, and still a C int
LONGEST_NAME = 253  # characters of a host name, RFC 1123 with RFC 1035 section 2.3.4

_FIELDS = re.compile(r"([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t\[]+)[ \t]*(.*)", re.DOTALL)
_PORT = re.compile(r"(?:([0-9]+)(?:-([0-9]+))?|([A-Za-z0-9_+.-]+))(?:/(tcp|udp))?")
_OPTION = re.compile(r"[ \t]*([^ \t=]*)[ \t]*=[ \t]*(.*?)[ \t]*", re.DOTALL)
_TWO_LISTS = re.compile(r"\][ \t]*\[")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")
# Last label of something that getaddrinfo(3) would take for a number (127.1, 0x7f000001).
_NUMBER_AT_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)")

Say = Callable[[str], None]
Service = Callable[[str, str], int]


def parse_forward(text: str, origin: Origin, *, service: Service, wrong: Say, warn: Say) -> Forward | None:
    """The forward that `text` describes, without access rules.

    Args:
        text: the line without its comment and without blanks around it.
        origin: where the line stands.
        service: port number of a service name and a protocol ("tcp", "udp"); raises
            OSError for an unknown one (getservbyname(3)).
        wrong: called with every error's message; then the result is None.
        warn: called with every warning's message.
    """
    errors: list[str] = []
    fields = _FIELDS.fullmatch(text)
    if fields is None:
        errors.append(f"expected 'bindaddress bindport connectaddress connectport', found {_shape(text)}")
        forward = None
    else:
        bind_host, bind_port, target_host, target_port, rest = fields.groups()
        say = errors.append
        listen = _endpoint(bind_host, bind_port, service, say, warn)
        target = _endpoint(target_host, target_port, service, say, warn)
        options = _options(rest, say, warn)
        forward = Forward(
            listen,
            target,
            origin,
            source=options.source,
            timeout=options.timeout,
            name=options.name,
            max_connections=options.max_connections,
            original_port=options.original_port,
            dns_refresh=options.dns_refresh,
        )
        _wrong_together(forward, say)
    for message in errors:
        wrong(message)
    return None if errors else forward


def _wrong_together(forward: Forward, wrong: Say) -> None:
    listen, target = forward.listen, forward.target
    if forward.original_port:
        if listen.protocol is Protocol.UDP:
            wrong("expected 'port=original' with TCP only: of a redirected datagram nobody tells the port")
        if listen.last is not None or target.last is not None or target.port != 0:
            wrong("expected one port to listen on, and 0 for the port to dial, with 'port=original'")
    elif target.last is not None and len(target.ports) != len(listen.ports):
        wrong(
            f"expected as many ports to dial as to listen on ({len(listen.ports)}), or one, "
            f"found {len(target.ports)}"
        )


def _shape(text: str) -> str:
    fields = re.findall(r"[^ \t]+", text)
    return f"{len(fields)} of the 4 fields" if len(fields) < 4 else f"{quote(fields[3])} for the connect port"


def _endpoint(host: str, port: str, service: Service, wrong: Say, warn: Say) -> Endpoint:
    host = _host(host, wrong, warn)
    return Endpoint(host, *_port(port, service, wrong))


def _host(text: str, wrong: Say, warn: Say) -> str:
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


def _port(text: str, service: Service, wrong: Say) -> tuple[int, Protocol, int | None]:
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


@dataclass(slots=True)
class _Options:
    source: str | None = None
    timeout: int = DEFAULT_TIMEOUT
    name: str | None = None
    max_connections: int | None = None
    original_port: bool = False
    dns_refresh: int | None = None


def _options(rest: str, wrong: Say, warn: Say) -> _Options:
    found = _Options()
    seen: set[str] = set()
    for key, value in _pairs(rest, wrong):
        if key in seen:
            warn(f"option {key!r} is repeated, the last one counts")
        seen.add(key)
        if key == "timeout":
            found.timeout = _timeout(value, wrong)
        elif key == "src":
            found.source = _host(value, wrong, warn)
        elif key == "name":
            if not _NAME.fullmatch(value):
                wrong(expected("a name of letters, digits and '_.:-'", value))
            found.name = value
        elif key == "max-connections":
            found.max_connections = amount(value)
            if found.max_connections is None:
                wrong(expected(AMOUNT, value))
        elif key == "port":
            found.original_port = value == "original"
            if not found.original_port:
                wrong(expected("'original'", value))
        elif key == "dns-refresh":
            found.dns_refresh = seconds(value, or_none=True)
            if found.dns_refresh is None:
                wrong(expected(NO_TIME, value))
        else:
            what = "'timeout', 'src', 'name', 'max-connections', 'port', 'dns-refresh'"
            wrong(expected(f"one of the options {what}", key))
    return found


def _pairs(rest: str, wrong: Say) -> list[tuple[str, str]]:
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
    pairs = []
    for option in inside.split(","):
        match = _OPTION.fullmatch(option)
        if match is None:
            wrong(expected("an option 'key=value'", option.strip(" \t")))
        elif "=" in match[2]:
            wrong(expected("',' between options", option.strip(" \t")))
        else:
            pairs.append((match[1], match[2]))
    return pairs


def _timeout(value: str, wrong: Say) -> int:
    if re.fullmatch("[0-9]+", value) is None:
        wrong(expected("a timeout in whole seconds", value))
        return DEFAULT_TIMEOUT
    digits = value.lstrip("0")
    if len(digits) > len(str(LONGEST_TIMEOUT)):
        return LONGEST_TIMEOUT
    return min(int(digits or "0"), LONGEST_TIMEOUT) or DEFAULT_TIMEOUT
