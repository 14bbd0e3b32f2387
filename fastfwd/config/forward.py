"""One forward line -> Forward: `bindaddress bindport connectaddress connectport [options]`.

Called by parse with the line's text, its comment already cut off. It knows one
line only: what several lines mean together is check's business. It must never
ask DNS (a host may stay a name) and never stop at the first error of a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from fastfwd.config import encryption
from fastfwd.config.endpoint import Say, Service, endpoint, unix
from fastfwd.config.options import OPTIONS, options, pairs
from fastfwd.config.pattern import UNIX_CLIENTS
from fastfwd.config.value import number
from fastfwd.config.wording import expected, quote
from fastfwd.model import UNIX, Backend, Endpoint, Forward, Origin, Protocol

Sorry = Callable[[str], bytes]

MOST_BACKENDS = 256

WEIGHT: Final = number(1, 100, noun="weight")
"""A backend's share among the others, as in rinetd-uv."""

NO_PORT: Final = "-"
"""What stands in the place of a Unix socket's port."""

_FIELDS = re.compile(r"([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t]+)[ \t]+([^ \t\[]+)[ \t]*(.*)", re.DOTALL)
# Fields that are Unix sockets and nothing else, which have no port.
_UNIX_SOCKETS = re.compile(r"((?:^|(?<=[ \t]))unix:[^ \t,\[]*(?:,unix:[^ \t,\[]*)*)(?=[ \t\[]|$)")
_PORT_ALONE = re.compile(r"[0-9]+(?:/tcp|/udp)?")
# One of several backends: a host, perhaps with a port of its own, perhaps with a weight.
_BACKEND = re.compile(r"(unix:[^*]*|\[[^\]]*\]|[^*:]*|[^*]*:[^*]*:[^*]*?)(?::([^*:]+))?(?:\*([0-9]+))?")

BALANCING: Final = (
    *("balance", "check", "health-threshold", "recovery-timeout", "affinity-ttl", "affinity-max-entries"),
)
"""Options that mean nothing to a forward with one backend."""

TCP_ONLY: Final = {
    "original_port": "'port=original' with TCP only: of a redirected datagram nobody tells the port",
    "max_rate": "'max-rate' with TCP only: what paces a stream would lose datagrams",
    "sorry_file": "'sorry-file' with TCP only: a datagram has no answer to wait for",
    "tls_accept": "'tls-accept' with TCP only: nobody here speaks DTLS",
    "tls_connect": "'tls-connect' with TCP only: nobody here speaks DTLS",
    "check_interval": "'check' with TCP only: a datagram is not answered by anybody who is just there",
    "proxy_from": "'accept-proxy' with TCP only: who has sent a datagram proves nothing",
}
"""Fields that a UDP forward cannot have, each with why."""


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
        if (slip := _slip(bind_port, targets, target_port, rest)) is not None:
            wrong(slip)
            return None
        if bind_host.startswith(UNIX):
            listen = unix(bind_host, say)
        else:
            listen = endpoint(bind_host, bind_port, service, say, warn)
        ends = _backends(targets, target_port, service, say, warn)
        found = options(pairs(rest, say), say, warn)
        forward = assembled(listen, ends, origin, found, sorry=sorry, wrong=say, warn=warn)
    for message in errors:
        wrong(message)
    return None if errors else forward


def assembled(
    listen: Endpoint,
    backends: list[Backend],
    origin: Origin,
    found: dict[str, Any],
    *,
    sorry: Sorry,
    wrong: Say,
    warn: Say,
) -> Forward:
    """A forward with what `options` has `found`; what does not fit together is told."""
    fields = dict(found)
    shared = {key: fields.pop(key) for key in ("sources", "dns_refresh") if key in fields}
    if (file := fields.pop("sorry_file", None)) is not None:
        try:
            fields["sorry"] = sorry(file)
        except ValueError as error:
            wrong(expected(str(error), file))
    fields |= encryption.assembled(fields, wrong)
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
    _wrong_together(forward, found, wrong)
    for name, partner in _without_partner(forward, found):
        warn(f"option {name!r} means nothing {partner}")
    return forward


def _without_partner(forward: Forward, found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The options that say nothing here, each with what it lacks."""
    if len(forward.backends) == 1:
        yield from ((name, "with one backend") for name in BALANCING if OPTIONS[name].field in found)
    elif "affinity_entries" in found and not forward.affinity_ttl:
        yield "affinity-max-entries", "without 'affinity-ttl'"
    if (
        forward.freebind
        and not any(each.sources for each in forward.backends)
        and _everywhere(forward.listen)
    ):
        yield "freebind", "without 'src' or an address to listen on"
    if all(each.endpoint.unix for each in forward.backends):
        yield from ((name, "towards a Unix socket") for name in ("device", "mark", "dscp") if name in found)


def _everywhere(listen: Endpoint) -> bool:
    """Whether it is listened on no address that could be missing."""
    return listen.unix or listen.host in {"0", "0.0.0.0", "::"}


def _wrong_together(forward: Forward, found: dict[str, Any], wrong: Say) -> None:
    listen = forward.listen
    if "mode" in found and not listen.unix:
        wrong("expected 'mode' with a Unix socket to listen on only")
    if listen.protocol is Protocol.UDP:
        for field, why in TCP_ONLY.items():
            if field in found:
                wrong(f"expected {why}")
    _wrong_about_the_client(forward, wrong)
    if forward.original_port:
        if listen.last is not None or any(each.endpoint.ports != range(1) for each in forward.backends):
            wrong("expected one port to listen on, and 0 for the port to dial, with 'port=original'")
        if len(forward.backends) > 1:
            wrong("expected one backend with 'port=original'")
        return
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


def _wrong_about_the_client(forward: Forward, wrong: Say) -> None:
    """What does not fit together of the options that say who the client is."""
    listen = forward.listen
    if forward.proxy_from and listen.unix and forward.proxy_from != (UNIX_CLIENTS,):
        wrong(f"expected {UNIX_CLIENTS!r} alone in 'accept-proxy' where a Unix socket is listened on")
    elif UNIX_CLIENTS in forward.proxy_from and not listen.unix:
        wrong(f"expected {UNIX_CLIENTS!r} in 'accept-proxy' with a Unix socket to listen on only")
    if forward.send_proxy == 1 and listen.protocol is Protocol.UDP:
        wrong("expected 'send-proxy=v2' with UDP: version 1 knows no datagrams")
    if not forward.transparent:
        return
    if any(each.sources for each in forward.backends):
        wrong("expected no 'src' with 'transparent': backends are dialled from the client's address")
    if any(each.endpoint.unix for each in forward.backends):
        wrong("expected no Unix socket to dial with 'transparent': it has no addresses")
    if listen.unix and not forward.proxy_from:
        wrong(
            "expected 'accept-proxy' with 'transparent' where a Unix socket is listened on: "
            "else its clients have no addresses"
        )


def _spaced(text: str) -> str:
    """A line with a Unix socket, which has no port, as one with four fields."""
    return _UNIX_SOCKETS.sub(rf"\1 {NO_PORT}", text) if UNIX in text else text


def _slip(bind_port: str, targets: str, target_port: str, rest: str) -> str | None:
    """What is wrong with fields in the wrong place, which would make errors of all that follow."""
    if bind_port == NO_PORT and _PORT_ALONE.fullmatch(targets):
        return expected("no port after a Unix socket", targets)
    if target_port == NO_PORT and (port := _PORT_ALONE.match(rest)):
        return expected("no port after a Unix socket", port[0])
    if targets.endswith(","):
        return expected("several backends without blanks between them", f"{targets} {target_port}")
    return None


def _backends(text: str, port: str, service: Service, wrong: Say, warn: Say) -> list[Backend]:
    if "," not in text and "*" not in text and not text.startswith(UNIX):
        return [Backend(endpoint(text, port, service, wrong, warn))]
    found = []
    for word in text.split(","):
        match = _BACKEND.fullmatch(word)
        if match is None or not match[1]:
            wrong(expected("a backend 'host', 'host:port' or 'host*weight'", word))
            continue
        host, own_port, weight = match.groups()
        try:
            share = WEIGHT.read(weight or "1")
        except ValueError:
            wrong(expected(f"{WEIGHT.what} after the '*'", word))
            continue
        if host.startswith(UNIX):
            found.append(Backend(unix(host, wrong), share))
            continue
        suffix = port.partition("/")[2]
        whole = port if own_port is None else f"{own_port}/{suffix}" if suffix else own_port
        found.append(Backend(endpoint(host, whole, service, wrong, warn), share))
    if len(found) > MOST_BACKENDS:
        wrong(f"expected at most {MOST_BACKENDS} backends, found {len(found)}")
    return found


def _shape(text: str) -> str:
    fields = re.findall(r"[^ \t]+", text)
    return f"{len(fields)} of the 4 fields" if len(fields) < 4 else f"{quote(fields[3])} for the connect port"
