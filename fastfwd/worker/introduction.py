"""Who the client is, as a backend is told by the PROXY protocol.

worker/dial, worker/udp and worker/check send what is made here before anything else. Pure, but for what a
TLS stream says of itself. It must never tell a backend anything that neither the kernel, nor a header that
was accepted, nor TLS has said.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from fastfwd.worker import proxyheader
from fastfwd.worker.access import MAPPED
from fastfwd.worker.proxyheader import PP2_CLIENT_CERT_CONN, PP2_CLIENT_CERT_SESS, PP2_CLIENT_SSL

if TYPE_CHECKING:
    import ssl

    from fastfwd.worker.proxyheader import Endpoint, Tlv

WITH_TLS: Final = 3

LONGEST_NAME: Final = 1024
"""Bytes of the longest common name that is passed on; all else that is said is shorter (RFC 5280 has 64)."""


def introduction(
    version: int,
    source: Endpoint | None,
    destination: Endpoint | None,
    tls: ssl.SSLObject | None = None,
    *,
    datagram: bool = False,
) -> bytes:
    """The header in that `version`, 1, 2 or 3, of a client at `source` that went to `destination`, both
    of one family; without them, of nobody in particular. 3 is version 2 with what the client's `tls` says,
    which not everybody takes: rsync's daemon does not.

    A client that is IPv4 on an IPv6 socket is told of as what it is.
    """
    if source is not None and destination is not None and _mapped(source) and _mapped(destination):
        source = source[0][len(MAPPED) :], source[1]
        destination = destination[0][len(MAPPED) :], destination[1]
    family = None if source is None else socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    if version == 1:
        return proxyheader.v1(source, destination, family)
    facts = _facts(tls) if version == WITH_TLS and tls is not None else ()
    return proxyheader.v2(source, destination, family, datagram, facts)


def _mapped(end: Endpoint) -> bool:
    return end[0].startswith(MAPPED) and "." in end[0]


def _facts(tls: ssl.SSLObject) -> list[Tlv]:
    """What the TLVs about a client's TLS say, of a connection whose handshake is over."""
    found: list[Tlv] = []
    protocol = tls.selected_alpn_protocol()
    if protocol is not None:
        found.append((proxyheader.PP2_TYPE_ALPN, protocol.encode()))
    asked: str | None = getattr(tls, "asked", None)  # fastfwd.tls notes it there
    if asked is not None:
        found.append((proxyheader.PP2_TYPE_AUTHORITY, asked.encode()))
    # Not empty where there is one that was found good; others do not get through a handshake.
    certificate: dict[str, Any] = tls.getpeercert() or {}
    client = PP2_CLIENT_SSL
    if certificate:
        client |= PP2_CLIENT_CERT_SESS | (0 if tls.session_reused else PP2_CLIENT_CERT_CONN)
    cipher = tls.cipher()
    found.append(
        proxyheader.tls_facts(
            tls.version() or "",
            cipher=None if cipher is None else cipher[0],
            client=client,
            verified=bool(certificate),
            common_name=_common_name(certificate),
        )
    )
    return found


def _common_name(certificate: dict[str, Any]) -> str | None:
    """The first one of its subject, as ssl.SSLSocket.getpeercert has it."""
    names = (value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName")
    name = next(names, None)
    return name if name is not None and len(name.encode()) <= LONGEST_NAME else None
