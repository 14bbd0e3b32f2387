"""One forward line -> Forward: `bindaddress bindport connectaddress connectport [options]`.

Called by parse with the line's text, its comment already cut off. It knows one
line only: what several lines mean together is check's business. It must never
ask DNS (a host may stay a name) and never stop at the first error of a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastfwd.config.endpoint import Say, Service, endpoint, unix
from fastfwd.config.options import options, pairs
from fastfwd.config.wording import expected, quote
from fastfwd.model import UNIX, Backend, Endpoint, Forward, Origin, Protocol

Sorry = Callable[[str], bytes]

MOST_BACKENDS = 256
HEAVIEST = 100

_FIELDS = re.compile(r"([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t\[]+)[ \t]*(.*)", re.DOTALL)
_NO_PORT = re.compile(r"((?:^|(?<=[ \t]))unix:[^ \t]+)")
# One of several backends: a host, perhaps with a port of its own, perhaps with a weight.
_BACKEND = re.compile(r"(\[[^\]]*\]|[^*:]*|[^*]*:[^*]*:[^*]*?)(?::([^*:]+))?(?:\*([0-9]+))?")

BALANCING = ("balance", "health_threshold", "recovery_timeout", "check_interval", "affinity_ttl")
"""Fields that mean nothing to a forward with one backend."""


def parse_forward(
    text: str, origin: Origin, *, service: Service, sorry: Sorry, wrong: Say, warn: Say
) -> Forward | None:
    """The forward that `text` describes, without access rules.

    Args:
        text: the line without its comment and without blanks around it.
        origin: where the line stands.
        service: port number of a service name and a protocol ("tcp", "udp"); raises
            OSError for an unknown one (getservbyname(3)).
        sorry: content of a `sorry-file=`; raises ValueError with what should have stood there.
        wrong: called with every error's message; then the result is None.
        warn: called with every warning's message.
    """
    errors: list[str] = []
    fields = _FIELDS.fullmatch(_spaced(text))
    if fields is None:
        errors.append(f"expected 'bindaddress bindport connectaddress connectport', found {_shape(text)}")
        forward = None
    else:
        bind_host, bind_port, targets, target_port, rest = fields.groups()
        say = errors.append
        if bind_host.startswith(UNIX):
            listen = unix(bind_host, say)
        else:
            listen = endpoint(bind_host, bind_port, service, say, warn)
        ends = _backends(targets, target_port, service, say, warn)
        found = options(pairs(rest, say), say, warn)
        forward = assembled(listen, ends, origin, found, say, warn)
        if "sorry_file" in found:
            try:
                forward = replace(forward, sorry=sorry(found["sorry_file"]))
            except ValueError as error:
                say(expected(str(error), found["sorry_file"]))
    for message in errors:
        wrong(message)
    return None if errors else forward


def assembled(
    listen: Endpoint,
    backends: list[Backend],
    origin: Origin,
    found: dict[str, Any],
    wrong: Say,
    warn: Say,
) -> Forward:
    """A forward with what `options` has `found`; what does not fit together is told."""
    fields = {key: value for key, value in found.items() if key != "sorry_file"}  # parse reads it
    shared = {key: fields.pop(key) for key in ("sources", "dns_refresh") if key in fields}
    made = tuple(
        Backend(
            each.endpoint,
            each.weight,
            each.name,
            each.sources or shared.get("sources", ()),
            shared.get("dns_refresh") if each.dns_refresh is None else each.dns_refresh,
        )
        for each in backends
    )
    forward = Forward(listen, made, origin, **fields)
    idle = [name for name in BALANCING if name in fields]
    if len(made) == 1 and idle:
        warn(f"option {idle[0].replace('_', '-')!r} means nothing with one backend")
    _wrong_together(forward, found, wrong)
    return forward


def _wrong_together(forward: Forward, found: dict[str, Any], wrong: Say) -> None:
    listen = forward.listen
    if "mode" in found and not listen.unix:
        wrong("expected 'mode' with a Unix socket to listen on")
    if listen.unix and forward.rules:
        wrong("expected no rules for a Unix socket: its file's mode says who may connect")
    if forward.original_port:
        if listen.protocol is Protocol.UDP:
            wrong("expected 'port=original' with TCP only: of a redirected datagram nobody tells the port")
        if listen.last is not None or any(each.endpoint.ports != range(1) for each in forward.backends):
            wrong("expected one port to listen on, and 0 for the port to dial, with 'port=original'")
        return
    if listen.protocol is Protocol.UDP and forward.max_rate is not None:
        wrong("expected 'max-rate' with TCP only: what paces a stream would lose datagrams")
    if listen.protocol is Protocol.UDP and "sorry_file" in found:
        wrong("expected 'sorry-file' with TCP only: a datagram has no answer to wait for")
    if listen.protocol is Protocol.UDP and forward.check_interval is not None:
        wrong("expected 'check' with TCP only: a datagram is not answered by anybody who is just there")
    if forward.original_port and len(forward.backends) > 1:
        wrong("expected one backend with 'port=original'")
    for each in forward.backends:
        count = len(each.endpoint.ports)
        if each.endpoint.last is not None and count != len(listen.ports):
            wrong(
                f"expected as many ports to dial as to listen on ({len(listen.ports)}), or one, found {count}"
            )
            return
    labels = [each.label for each in forward.backends]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        wrong(expected("each backend once (a weight says how often: 'host*3')", twice))


def _spaced(text: str) -> str:
    """A line with a Unix socket, which has no port, as one with four fields."""
    return _NO_PORT.sub(r"\1 -", text) if UNIX in text else text


def _backends(text: str, port: str, service: Service, wrong: Say, warn: Say) -> list[Backend]:
    if text.startswith(UNIX) and "," not in text:
        return [Backend(unix(text, wrong))]
    if "," not in text and "*" not in text:
        return [Backend(endpoint(text, port, service, wrong, warn))]
    found = []
    for word in text.split(","):
        if word.startswith(UNIX):
            found.append(Backend(unix(word, wrong)))
            continue
        match = _BACKEND.fullmatch(word)
        if match is None or not match[1]:
            wrong(expected("a backend 'host', 'host:port' or 'host*weight'", word))
            continue
        host, own_port, weight = match.groups()
        if weight is not None and not 1 <= int(weight[:9]) <= HEAVIEST:
            wrong(expected(f"a weight from 1 to {HEAVIEST} after the '*'", word))
            continue
        suffix = port.partition("/")[2]
        whole = port if own_port is None else f"{own_port}/{suffix}" if suffix else own_port
        found.append(Backend(endpoint(host, whole, service, wrong, warn), int(weight or 1)))
    if len(found) > MOST_BACKENDS:
        wrong(f"expected at most {MOST_BACKENDS} backends, found {len(found)}")
    return found


def _shape(text: str) -> str:
    fields = re.findall(r"[^ \t]+", text)
    return f"{len(fields)} of the 4 fields" if len(fields) < 4 else f"{quote(fields[3])} for the connect port"
