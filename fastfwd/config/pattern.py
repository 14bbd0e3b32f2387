"""The pattern of an access rule: its characters, its one spelling, whether it can match at all; networks,
and lists of them.

Called by parse and options. It must never widen a pattern: the spelling changes only where
the pattern as written could match no client whatever.
"""

from __future__ import annotations

import re
import socket

_ALLOWED = re.compile(r"[0-9a-fA-F.:*?\[\]]+")
_PREFIX = re.compile(r"0|[1-9][0-9]{0,2}")
_OCTET = re.compile(r"0|[1-9][0-9]{0,2}")
_WILDCARD = re.compile(r"[*?]")

UNIX_CLIENTS = "unix"
"""Who connects to a Unix socket, in a list of networks and addresses."""


def is_pattern(text: str) -> bool:
    """Whether `text` has only the characters of an access rule (rinetd(8), ALLOW AND DENY RULES)."""
    return _ALLOWED.fullmatch(text) is not None


def normalise(pattern: str) -> str:
    """The pattern in the spelling that clients' addresses have, which is inet_ntop(3)'s.

    Enclosing square brackets go and letters become lower case. A pattern without a
    wildcard that is an IPv6 address in another spelling (`0:0:0:0:0:0:0:1`,
    `::FFFF:127.0.0.1`) becomes that address as inet_ntop(3) writes it. In rinetd
    none of these spellings ever matches.
    """
    if pattern.startswith("[") and pattern.endswith("]"):
        pattern = pattern[1:-1]
    pattern = pattern.lower()
    if _WILDCARD.search(pattern) is None:
        try:
            packed = socket.inet_pton(socket.AF_INET6, pattern)
        except OSError:
            return pattern
        return socket.inet_ntop(socket.AF_INET6, packed)
    return pattern


def network(text: str) -> str:
    """A network in CIDR notation (RFC 4632, RFC 4291, 2.3), in the spelling that it has once only.

    Raises ValueError, whose text is what should have stood there.
    """
    address, _, length = text.partition("/")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if _WILDCARD.search(address):
        raise ValueError("a network without wildcards, or a pattern without a prefix length")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address)
    except OSError:
        raise ValueError("an address before the '/'") from None
    bits = 8 * len(packed)
    if _PREFIX.fullmatch(length) is None or int(length) > bits:
        raise ValueError(f"a prefix length from 0 to {bits} after the '/'")
    number = int.from_bytes(packed)
    host_bits = bits - int(length)
    base = number >> host_bits << host_bits
    spelled = f"{socket.inet_ntop(family, base.to_bytes(len(packed)))}/{int(length)}"
    if base != number:
        raise ValueError(f"a network without bits of a host ('{spelled}'), or the address alone")
    return spelled


def networks(text: str) -> tuple[str, ...]:
    """Networks and addresses with `;` between them, each in the spelling that it has once only; 'unix'
    stands for whoever connects to a Unix socket.

    Raises ValueError, whose text is what should have stood there, if only for one of them.
    """
    found = []
    for word in (each.strip(" \t") for each in text.split(";")):
        if "/" in word:
            found.append(network(word))
        elif word == UNIX_CLIENTS or _is_address(spelled := normalise(word)):
            found.append(word if word == UNIX_CLIENTS else spelled)
        else:
            raise ValueError("networks and numeric addresses (with ';' between them)")
    return tuple(dict.fromkeys(found))


def never_matches(pattern: str) -> bool:
    """Whether no address in inet_ntop(3)'s form can match the normalised `pattern`.

    Certain when True. False is no promise for a pattern with a wildcard: of those only
    the numbers before the first wildcard of an IPv4 pattern are looked at (`10.300.*`).
    """
    if "[" in pattern or "]" in pattern or pattern.count(".") > 3:
        return True
    wildcard = _WILDCARD.search(pattern)
    if wildcard is None:
        return not _is_address(pattern)
    before = pattern[: wildcard.start()]
    if ":" in before:
        return ":::" in before or before.count("::") > 1
    *octets, last = before.split(".")
    if not octets:
        return False
    return not all(map(_is_octet, octets)) or not (last.isdigit() or last == "")


def _is_octet(text: str) -> bool:
    return _OCTET.fullmatch(text) is not None and int(text) <= 255


def _is_address(text: str) -> bool:
    if ":" in text:
        try:
            socket.inet_pton(socket.AF_INET6, text)
        except OSError:
            return False
        return True
    octets = text.split(".")
    return len(octets) == 4 and all(map(_is_octet, octets))
