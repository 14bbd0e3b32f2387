"""What a JSON log line says of TLS: versions, ciphers, and what peers call themselves.

observe/eventlog asks for it line by line. Names are the peer's, who may be anybody: nothing of
them may leave here that is not printable, or longer than MOST.
"""

from __future__ import annotations

import ssl
from typing import Any, Final, NamedTuple

MOST: Final = 256
"""Characters of a name; a host's has 253 at most (RFC 1035, 2.3.4)."""

SHORT: Final = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}
"""What the ssl module calls attributes -> what RFC 4514, 3 does; any other keeps OpenSSL's name."""

SPECIAL: Final = str.maketrans({each: f"\\{each}" for each in '\\,+"<>;='})


class Tls(NamedTuple):
    """TLS of one connection: of its client and its backend, None where there is none or no more.
    `trouble` is why a handshake failed, in words; `cut` are the sides whose stream ended too soon."""

    client: ssl.SSLObject | None
    backend: ssl.SSLObject | None
    trouble: str | None = None
    cut: tuple[str, ...] = ()


def fields(tls: Tls) -> dict[str, Any]:
    """The object that stands in a line."""
    client, backend = _side(tls.client), _side(tls.backend)
    if tls.client is not None and client is not None:
        asked = getattr(tls.client, "asked", None)
        client["sni"] = None if asked is None else printable(asked)
        client["subject"] = _subject(tls.client)
    for name, side in (("client", client), ("backend", backend)):
        if side is not None:
            side["cut"] = name in tls.cut
    return {
        "client": client,
        "backend": backend,
        "trouble": None if tls.trouble is None else printable(tls.trouble),
    }


def _side(tls: ssl.SSLObject | None) -> dict[str, Any] | None:
    """What both sides have. Of a handshake that has failed there is nothing."""
    if tls is None:
        return None
    version = tls.version()
    cipher = None if version is None else tls.cipher()
    alpn = None if version is None else tls.selected_alpn_protocol()
    return {
        "version": version,
        "cipher": cipher and cipher[0],
        "alpn": None if alpn is None else printable(alpn),
        "resumed": version is not None and bool(tls.session_reused),
    }


def _subject(tls: ssl.SSLObject) -> str | None:
    """Whom the client's certificate is for (RFC 4514), if it has shown one and it was verified."""
    try:
        found = tls.getpeercert()
    except ValueError:  # the handshake has failed; or a name whose bytes are no text
        return None
    except ssl.SSLError:  # so is that
        return None
    return name(found["subject"]) if found and "subject" in found else None


def name(subject: Any) -> str:
    """A distinguished name as ssl.SSLSocket.getpeercert has it, in the form of RFC 4514."""
    parts = (
        "+".join(f"{SHORT.get(kind, kind)}={value.translate(SPECIAL)}" for kind, value in part)
        for part in reversed(subject)
    )
    return printable(",".join(parts))


def printable(text: str) -> str:
    """`text` fit for a terminal: "?" for what is not printable, and of a long one the beginning."""
    if len(text) > MOST:
        text = f"{text[: MOST - 1]}…"
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)
