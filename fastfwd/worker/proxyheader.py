"""The PROXY protocol: the header before a connection's first byte that says whose connection it is.

Pure: bytes to a Header and addresses to bytes, versions 1 (a line) and 2 (binary). The format is that of
HAProxy's proxy-protocol.txt ("the specification" below). Whoever reads a client asks `parse` again with
all bytes so far until it has an answer; whoever dials sends what `v1` or `v2` made. It must never guess:
what is not exactly a header is refused, and nothing of what was refused is repeated in the refusal.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

Endpoint = tuple[str, int]
"""Numeric address, port."""

Tlv = tuple[int, bytes]
"""Type, value: what version 2 may say besides the addresses (2.2, "TLV vectors")."""

LONGEST_LINE: Final = 107
"""Bytes of the longest header of version 1, with its CRLF (2.1)."""

LONGEST: Final = 4096
"""Bytes of the longest header of version 2 that is read or made. The format would allow 65,551; the
specification wants one to fit in a segment of 536, and a certificate's name makes it longer at times."""

PP2_TYPE_ALPN: Final = 0x01
PP2_TYPE_AUTHORITY: Final = 0x02
PP2_TYPE_CRC32C: Final = 0x03
PP2_TYPE_NOOP: Final = 0x04
PP2_TYPE_UNIQUE_ID: Final = 0x05
PP2_TYPE_SSL: Final = 0x20
PP2_SUBTYPE_SSL_VERSION: Final = 0x21
PP2_SUBTYPE_SSL_CN: Final = 0x22
PP2_SUBTYPE_SSL_CIPHER: Final = 0x23
PP2_SUBTYPE_SSL_SIG_ALG: Final = 0x24
PP2_SUBTYPE_SSL_KEY_ALG: Final = 0x25

PP2_CLIENT_SSL: Final = 0x01
PP2_CLIENT_CERT_CONN: Final = 0x02
PP2_CLIENT_CERT_SESS: Final = 0x04

LONGEST_UNIQUE_ID: Final = 128  # bytes (2.2.5)

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY: Final = b"PROXY "

Reason = Literal["signature", "version", "command", "family", "length", "address", "checksum", "too-long"]


class BadHeader(ValueError):  # noqa: N818  # says what is bad, as the log does
    """These bytes are no header, and no more bytes make them one."""

    def __init__(self, reason: Reason) -> None:
        """The `reason` is one of a few words, fit for a log line and a metric's label."""
        super().__init__(reason)
        self.reason: Reason = reason


class Header(NamedTuple):
    """What a header says.

    Where `source` and `destination` are None, the connection's own addresses count: it is the sender's
    own (`local`, a check), or of a kind without addresses that mean anything here (a Unix socket, unknown).
    """

    version: int
    local: bool
    family: socket.AddressFamily | None
    """AF_INET, AF_INET6, AF_UNIX; None if it is local or unknown."""
    datagram: bool
    source: Endpoint | None
    destination: Endpoint | None
    tlvs: tuple[Tlv, ...]
    """In their order, but for the two that speak of this header only: its checksum, which was right, and
    padding. None of a header without addresses, where only the sender knows where they begin."""
    size: int
    """Bytes: the client's own data begin after so many."""


class _Kind(NamedTuple):
    """A sort of header of version 2."""

    family: socket.AddressFamily
    datagram: bool
    size: int
    """Bytes of its addresses."""
    start: bytes
    """Its first 16 bytes, where no TLV follows."""
    layout: struct.Struct | None
    """Of `start`, both addresses, both ports; None if they mean nothing here."""


_INET: Final = struct.Struct("!16s4s4sHH")
_INET6: Final = struct.Struct("!16s16s16sHH")

_KINDS: Final[dict[int, _Kind]] = {
    0x2100 | code: _Kind(family, datagram, size, SIGNATURE + struct.pack("!BBH", 0x21, code, size), layout)
    for family, datagram, code, size, layout in (
        (socket.AF_INET, False, 0x11, 12, _INET),
        (socket.AF_INET, True, 0x12, 12, _INET),
        (socket.AF_INET6, False, 0x21, 36, _INET6),
        (socket.AF_INET6, True, 0x22, 36, _INET6),
        (socket.AF_UNIX, False, 0x31, 216, None),
        (socket.AF_UNIX, True, 0x32, 216, None),
    )
}
"""By bytes 13 and 14."""

_MADE: Final[dict[tuple[int | None, bool], tuple[bytes, struct.Struct]]] = {
    (kind.family, kind.datagram): (kind.start, kind.layout)
    for kind in _KINDS.values()
    if kind.layout is not None
}
"""Start and layout, by family and whether they are datagrams."""

_LOCAL: Final = SIGNATURE + b"\x20\0\0\0"

_START: Final = struct.Struct("!12xHH")
_TLV: Final = struct.Struct("!BH")
_SSL: Final = struct.Struct("!BI")

_TOKENS: Final = (b"TCP4 ", b"TCP6 ", b"UNKNOWN ", b"UNKNOWN\r\n")

_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(
    rb"PROXY TCP(?:4 ([0-9.]+) ([0-9.]+)|6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)) %b %b\r\n" % (_PORT, _PORT)
)

# Reading.


def parse(data: bytes | memoryview) -> Header | None:
    """The header that `data` begins with, or None: it is not complete.

    Addresses are spelled as accept(2) tells them in Python (inet_ntop(3)): a mapped one is
    `::ffff:192.0.2.1`, which access rules rely on, and stays one. Raises BadHeader as soon as it is certain
    that no header will come of these bytes. The addresses are judged when all of the header is there.
    """
    if data[:12] == SIGNATURE:
        return _binary(data)
    if data[:6] == PROXY:
        return _line(data)
    if SIGNATURE.startswith(data[:12]) or PROXY.startswith(data[:6]):
        return None
    raise BadHeader("signature")


def _line(data: bytes | memoryview) -> Header | None:
    """Version 1."""
    found = _LINE.match(data, 0, LONGEST_LINE)
    if found is None:
        return _other_line(bytes(data[:LONGEST_LINE]))
    source4, destination4, source6, destination6, source_port, destination_port = found.groups()
    family, source, destination = (
        (socket.AF_INET, source4, destination4) if source4 else (socket.AF_INET6, source6, destination6)
    )
    ports = int(source_port), int(destination_port)
    if max(ports) > 65_535:
        raise BadHeader("address")
    try:
        # As strict as the specification, but for the dotted end of a mapped address: it does not know it, and
        # who writes the line with inet_ntop(3) sends it.
        first = socket.inet_ntop(family, socket.inet_pton(family, source.decode()))
        second = socket.inet_ntop(family, socket.inet_pton(family, destination.decode()))
    except OSError:
        raise BadHeader("address") from None
    return Header(1, False, family, False, (first, ports[0]), (second, ports[1]), (), found.end())


def _other_line(line: bytes) -> Header | None:
    """Version 1 where there is no line of TCP: none yet, an unknown one, a bad one."""
    rest = line[len(PROXY) :]
    if not any(token.startswith(rest[: len(token)]) for token in _TOKENS):
        raise BadHeader("family")
    text, _, after = line.partition(b"\r")
    if b"\n" in text or (after and not after.startswith(b"\n")):
        raise BadHeader("address")  # "the receiver must not tolerate a single CR or LF"
    if not after:
        if len(line) >= LONGEST_LINE:
            raise BadHeader("too-long")
        return None
    if rest.startswith(b"UNKNOWN"):
        return Header(1, False, None, False, None, None, (), len(text) + 2)
    raise BadHeader("address")


def _binary(data: bytes | memoryview) -> Header | None:
    """Version 2."""
    if len(data) < 16:
        if len(data) > 12:
            _judge(data[12], data[13] if len(data) > 13 else 0)
        return None
    what, length = _START.unpack_from(data)
    kind = _KINDS.get(what)
    if kind is None:
        _judge(what >> 8, what & 255)
    elif length < kind.size:
        raise BadHeader("length")
    end = 16 + length
    if end > LONGEST:
        raise BadHeader("too-long")
    if len(data) < end:
        return None
    if kind is None:
        return Header(2, what >> 8 == 0x20, None, False, None, None, (), end)
    family, datagram, size, _, layout = kind
    tlvs = () if length == size else _tlvs(bytes(data[:end]), 16 + size)
    if layout is None:
        return Header(2, False, family, datagram, None, None, tlvs, end)
    _, source, destination, source_port, destination_port = layout.unpack_from(data)
    ntop = socket.inet_ntop
    return Header(
        2,
        False,
        family,
        datagram,
        (ntop(family, source), source_port),
        (ntop(family, destination), destination_port),
        tlvs,
        end,
    )


def _judge(command: int, family: int) -> None:
    """Refuse what bytes 13 and 14 may not be. The family of a LOCAL header "is ignored"; halves of UNSPEC
    are valid, and so without addresses."""
    if command >> 4 != 2:
        raise BadHeader("version")
    if command & 15 > 1:
        raise BadHeader("command")
    if command & 15 == 1 and (family >> 4 > 3 or family & 15 > 2):
        raise BadHeader("family")


def _tlvs(header: bytes, at: int) -> tuple[Tlv, ...]:
    """What the whole `header` has from `at` on, as Header tells it."""
    found = []
    checksum = None
    for kind, start, end in _vectors(header, at):
        if kind == PP2_TYPE_CRC32C:
            if checksum is not None or end - start != 4:
                raise BadHeader("checksum")
            checksum = start
        elif kind == PP2_TYPE_SSL:
            if end - start < _SSL.size:
                raise BadHeader("length")
            for _ in _vectors(header[start:end], _SSL.size):
                pass  # raises if one overruns
        elif kind == PP2_TYPE_UNIQUE_ID and end - start > LONGEST_UNIQUE_ID:
            raise BadHeader("length")
        if kind not in (PP2_TYPE_CRC32C, PP2_TYPE_NOOP):
            found.append((kind, header[start:end]))
    if checksum is not None:
        zeroed = header[:checksum] + bytes(4) + header[checksum + 4 :]
        if crc32c(zeroed) != int.from_bytes(header[checksum : checksum + 4]):
            raise BadHeader("checksum")
    return tuple(found)


def _vectors(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Type, begin and end of each value from `at` to the end of `data`."""
    end = len(data)
    while at < end:
        start = at + _TLV.size
        if start > end:
            raise BadHeader("length")
        kind, length = _TLV.unpack_from(data, at)
        at = start + length
        if at > end:
            raise BadHeader("length")
        yield kind, start, at


def _remainders() -> Iterator[int]:
    """Of each byte, for `crc32c`."""
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F6_3B78 if remainder & 1 else 0)
        yield remainder


_REMAINDERS: Final = tuple(_remainders())


def crc32c(data: bytes) -> int:
    """The checksum of Castagnoli's polynomial 0x1EDC6F41, bits reflected (RFC 9260, appendix A)."""
    remainder = 0xFFFF_FFFF
    for byte in data:
        remainder = _REMAINDERS[(remainder ^ byte) & 255] ^ remainder >> 8
    return remainder ^ 0xFFFF_FFFF


# Making.


def v1(source: Endpoint | None, destination: Endpoint | None, family: int | None) -> bytes:
    """A line for a TCP connection from `source` to `destination`, both numeric and of the `family`.

    Without them, or of a family that is not IP, it says UNKNOWN. A zone is left out: it means nothing
    elsewhere. Raises OSError if an address is not of the family.
    """
    if source is None or destination is None or (family, False) not in _MADE:
        return b"PROXY UNKNOWN\r\n"
    if family == socket.AF_INET:
        token, first, second = "TCP4", _dotted(source[0]), _dotted(destination[0])
    else:
        token, first, second = "TCP6", _groups(source[0]), _groups(destination[0])
    return f"PROXY {token} {first} {second} {source[1]} {destination[1]}\r\n".encode()


def _dotted(address: str) -> str:
    """An IPv4 address as the line has it: canonical."""
    return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, address))


def _groups(address: str) -> str:
    """An IPv6 address as the line has it: groups only. inet_ntop(3) ends a mapped one in a dotted IPv4
    address, which the specification does not know."""
    packed = _packed6(address)
    text = socket.inet_ntop(socket.AF_INET6, packed)
    return ":".join(f"{group:x}" for group in struct.unpack("!8H", packed)) if "." in text else text


def _packed6(address: str) -> bytes:
    """In 16 bytes, without its zone."""
    return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])


def v2(
    source: Endpoint | None,
    destination: Endpoint | None,
    family: int | None,
    datagram: bool = False,
    tlvs: Sequence[Tlv] = (),
) -> bytes:
    """A binary header for a connection, or datagrams, from `source` to `destination`, both numeric and of
    the `family`.

    Without them, or of a family that is not IP, it says LOCAL, which every receiver must take, as it need
    not take UNSPEC; whether it reads the `tlvs` there is its affair. A zone is left out. Raises OSError if an
    address is not of the family, ValueError if the header would be longer than LONGEST.
    """
    made = _MADE.get((family, datagram))
    if made is None or source is None or destination is None:
        head = _LOCAL
    else:
        start, layout = made
        first, port = source
        second, other_port = destination
        if family == socket.AF_INET:
            pton = socket.inet_pton
            head = layout.pack(start, pton(family, first), pton(family, second), port, other_port)
        else:
            head = layout.pack(start, _packed6(first), _packed6(second), port, other_port)
    if not tlvs:
        return head
    length = len(head) + sum(_TLV.size + len(value) for _, value in tlvs)
    if length > LONGEST:
        raise ValueError(f"a header of {length} bytes, more than {LONGEST}")
    return head[:14] + (length - 16).to_bytes(2) + head[16:] + _joined(tlvs)


def _joined(tlvs: Iterable[Tlv]) -> bytes:
    """As they go over the wire."""
    return b"".join([_TLV.pack(kind, len(value)) + value for kind, value in tlvs])


def tls_facts(
    version: str,
    *,
    cipher: str | None = None,
    client: int = PP2_CLIENT_SSL,
    verified: bool = False,
    common_name: str | None = None,
    signature: str | None = None,
    key: str | None = None,
) -> Tlv:
    """What the client's TLS was like, for `v2` (2.2.6).

    `version` and `cipher` are TLS's names for them ("TLSv1.3"), `client` has PP2_CLIENT_* bits. `verified`
    says that the client presented a certificate that was found good, and `common_name` is that
    certificate's. `signature` and `key` are the algorithms of the certificate that was shown to the client
    ("SHA256", "RSA2048"). What is None is left out. Raises ValueError (UnicodeError) if anything but the
    name is not ASCII.
    """
    facts = (
        (PP2_SUBTYPE_SSL_VERSION, version, "ascii"),
        (PP2_SUBTYPE_SSL_CN, common_name, "utf-8"),
        (PP2_SUBTYPE_SSL_CIPHER, cipher, "ascii"),
        (PP2_SUBTYPE_SSL_SIG_ALG, signature, "ascii"),
        (PP2_SUBTYPE_SSL_KEY_ALG, key, "ascii"),
    )
    inner = _joined((kind, text.encode(coding)) for kind, text, coding in facts if text is not None)
    return PP2_TYPE_SSL, _SSL.pack(client, not verified) + inner
