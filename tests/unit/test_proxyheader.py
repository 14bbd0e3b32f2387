"""The PROXY protocol: the specification's examples, what is refused, another implementation beside ours."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import get_args

import crc32c as other_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyprotocol.result import (
    ProxyResult,
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultLocal,
    ProxyResultUnix,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolSSLTLV, ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from fastfwd.worker.proxyheader import (
    LONGEST,
    LONGEST_LINE,
    PP2_CLIENT_CERT_CONN,
    PP2_CLIENT_SSL,
    PP2_TYPE_ALPN,
    PP2_TYPE_AUTHORITY,
    PP2_TYPE_CRC32C,
    PP2_TYPE_NOOP,
    PP2_TYPE_SSL,
    PP2_TYPE_UNIQUE_ID,
    SIGNATURE,
    BadHeader,
    Endpoint,
    Header,
    Reason,
    Tlv,
    crc32c,
    parse,
    tls_facts,
    v1,
    v2,
)

INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
REASONS = set(get_args(Reason))

bounded = settings(derandomize=True, deadline=None, max_examples=150)

ENDPOINTS4 = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65_535))
ENDPOINTS6 = st.tuples(
    st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(INET6, address.packed)), st.integers(0, 65_535)
)
CONNECTIONS = st.tuples(ENDPOINTS4, ENDPOINTS4, st.just(INET)) | st.tuples(
    ENDPOINTS6, ENDPOINTS6, st.just(INET6)
)
TLVS = st.lists(
    st.tuples(st.sampled_from([PP2_TYPE_ALPN, PP2_TYPE_AUTHORITY, 0x30, 0xE0, 0xEF]), st.binary(max_size=60))
    | st.tuples(st.just(PP2_TYPE_UNIQUE_ID), st.binary(max_size=128))
    | st.just(tls_facts("TLSv1.3", cipher="TLS_AES_128_GCM_SHA256")),
    max_size=6,
).map(tuple)

CLIENT, SERVER = ("192.168.0.1", 56324), ("192.168.0.11", 443)
CLIENT6, SERVER6 = ("2001:db8::1", 56324), ("2001:db8::2", 443)


def binary(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    """A header of version 2 as the specification draws it, with a true length or another one."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    """One TLV, with a true length or another one."""
    return struct.pack("!BH", kind, len(value) if length is None else length) + value


def refusal(data: bytes) -> str:
    """The word for what is wrong with `data`."""
    with pytest.raises(BadHeader) as caught:
        parse(data)
    return caught.value.reason


def tcp4(tlvs: bytes) -> bytes:
    """A header for TCP over IPv4 that ends in these `tlvs`."""
    return binary(0x21, 0x11, bytes(12) + tlvs)


def checked(start: bytes, end: bytes = b"") -> bytes:
    """A header with a right checksum between other TLVs, made by another implementation."""
    empty = tcp4(start + tlv(PP2_TYPE_CRC32C, bytes(4)) + end)
    at = 16 + 12 + len(start) + 3
    return empty[:at] + other_crc32c.crc32c(empty).to_bytes(4) + empty[at + 4 :]


# Version 1, read.


def test_the_specifications_line() -> None:
    """Its example, before an HTTP request."""
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert parse(line + b"GET / HTTP/1.1\r\n") == Header(1, False, INET, False, CLIENT, SERVER, (), len(line))


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
    ],
)
def test_the_specifications_longest_lines(line: bytes) -> None:
    """The four whose lengths it gives: 56, 104, 15 and 107."""
    header = parse(line)
    assert header is not None
    assert header.size == len(line)
    assert len(line) in (56, 104, 15, LONGEST_LINE)


@pytest.mark.parametrize("rest", [b"", b" ", b"    ", b" TCP9 \0\xff anything"])
def test_an_unknown_connection_has_no_addresses(rest: bytes) -> None:
    """What follows the word is ignored."""
    line = b"PROXY UNKNOWN" + rest + b"\r\n"
    assert parse(line) == Header(1, False, None, False, None, None, (), len(line))


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::ffff:c000:201", "::ffff:192.0.2.1"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("0:0:0:0:0:0:0:0", "::"),
    ],
)
def test_an_ipv6_address_is_spelled_as_the_kernel_does(sent: str, read: str) -> None:
    """Whatever the sender's way; an access rule for a mapped client finds its dots."""
    header = parse(f"PROXY TCP6 {sent} :: 1 2\r\n".encode())
    assert header is not None
    assert (header.family, header.source) == (INET6, (read, 1))


@pytest.mark.parametrize(
    "rest",
    [
        "TCP4  192.0.2.1 192.0.2.2 1 2",
        "TCP4 192.0.2.1 192.0.2.2 1 2 ",
        "TCP4 192.0.2.1\t192.0.2.2 1 2",
        "TCP4 192.0.2.1 192.0.2.2 1",
        "TCP4 192.0.2.1 192.0.2.2 1 2 3",
        "TCP4 192.0.2.1 192.0.2.2 01 2",
        "TCP4 192.0.2.1 192.0.2.2 1 65536",
        "TCP4 192.0.2.1 192.0.2.2 +1 2",
        "TCP4 192.0.2.1 192.0.2.2 -1 2",
        "TCP4 192.0.2.1 192.0.2.2 1_0 2",
        "TCP4 192.0.2.1 192.0.2.2 \u0661 2",
        "TCP4 192.0.2.01 192.0.2.2 1 2",
        "TCP4 192.0.2.256 192.0.2.2 1 2",
        "TCP4 192.0.2 192.0.2.2 1 2",
        "TCP4 0xc0.0.2.1 192.0.2.2 1 2",
        "TCP4 2001:db8::1 2001:db8::2 1 2",
        "TCP4 192.0.2.1 192.0.2.2 1 2\n",
        "TCP6 192.0.2.1 192.0.2.2 1 2",
        "TCP6 ::1 192.0.2.2 1 2",
        "TCP6 1::2::3 :: 1 2",
        "TCP6 ::00001 :: 1 2",
        "TCP6 1:2:3:4:5:6:7 :: 1 2",
        "TCP6 1:2:3:4:5:6:7:8:9 :: 1 2",
        "TCP6 fe80::1%lo :: 1 2",
        "TCP6 ::ffff:192.0.2.01 :: 1 2",
        "TCP6 localhost :: 1 2",
        "TCP4 ",
    ],
)
def test_a_line_is_read_strictly(rest: str) -> None:
    """One space, canonical decimal numbers, addresses of the family."""
    assert refusal(f"PROXY {rest}\r\n".encode()) == "address"


@pytest.mark.parametrize(
    "rest", [b"TCP5 ", b"tcp4 ", b"UDP4 ", b"UNKNOWNS", b" TCP4", b"\r\n", b"TCP4\r\n", b"UNKNOWN\n"]
)
def test_other_families_are_refused(rest: bytes) -> None:
    """Before the line has ended."""
    assert refusal(b"PROXY " + rest) == "family"


@pytest.mark.parametrize("end", [b"\n", b"\r\r\n", b"\r ", b"\r1\r\n"])
@pytest.mark.parametrize("line", [b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2", b"PROXY UNKNOWN "])
def test_only_crlf_ends_a_line(line: bytes, end: bytes) -> None:
    """A CR or LF alone is refused at once."""
    assert refusal(line + end) == "address"


@pytest.mark.parametrize("start", [b"PROXY UNKNOWN ", b"PROXY TCP6 "])
def test_a_line_that_is_too_long(start: bytes) -> None:
    """107 bytes may be a line only if they end in CRLF."""
    line = start.ljust(LONGEST_LINE - 1, b"1")
    assert parse(line) is None
    assert refusal(line + b"1") == "too-long"
    assert refusal(line + b"\r") == "too-long"
    assert refusal(line + b"\r\n") == "too-long"


def test_a_line_that_is_too_long_and_complete() -> None:
    """Nobody needs 116 bytes, which long dotted addresses make."""
    address = "ffff:" * 6 + "255.255.255.255"
    assert refusal(f"PROXY TCP6 {address} {address} 65535 65535\r\n".encode()) == "too-long"


# Version 2, read.


@pytest.mark.parametrize("datagram", [False, True])
def test_ipv4_in_binary(datagram: bool) -> None:
    """Byte for byte as the specification draws it."""
    data = binary(0x21, 0x12 if datagram else 0x11, bytes([192, 168, 0, 1, 192, 168, 0, 11, 220, 4, 1, 187]))
    assert parse(data + b"data") == Header(2, False, INET, datagram, CLIENT, SERVER, (), 28)


@pytest.mark.parametrize("datagram", [False, True])
def test_ipv6_in_binary(datagram: bool) -> None:
    """A mapped address stays one."""
    packed = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])
    data = binary(0x21, 0x22 if datagram else 0x21, packed + bytes(15) + b"\1" + bytes([0, 1, 255, 255]))
    source, destination = ("::ffff:192.0.2.1", 1), ("::1", 65_535)
    assert parse(data) == Header(2, False, INET6, datagram, source, destination, (), 52)


@pytest.mark.parametrize("datagram", [False, True])
def test_a_unix_socket_has_no_address_here(datagram: bool) -> None:
    """Its paths are another host's; what follows them counts."""
    paths = b"/run/a".ljust(108, b"\0") + b"\xff" * 108
    data = binary(0x21, 0x32 if datagram else 0x31, paths + tlv(PP2_TYPE_ALPN, b"h2"))
    assert parse(data) == Header(2, False, UNIX, datagram, None, None, ((PP2_TYPE_ALPN, b"h2"),), 237)


@pytest.mark.parametrize("family", [0x00, 0x01, 0x11, 0x21, 0x31, 0x42, 0xFF])
@pytest.mark.parametrize("rest", [b"", b"\xff" * 12, tlv(PP2_TYPE_ALPN, b"h2")])
def test_a_local_header_is_skipped(family: int, rest: bytes) -> None:
    """Family, addresses and all."""
    data = binary(0x20, family, rest)
    assert parse(data + b"data") == Header(2, True, None, False, None, None, (), len(data))


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02, 0x10, 0x20, 0x30])
@pytest.mark.parametrize("rest", [b"", b"\xff" * 40])
def test_an_unspecified_family_is_skipped(family: int, rest: bytes) -> None:
    """By its length."""
    data = binary(0x21, family, rest)
    assert parse(data) == Header(2, False, None, False, None, None, (), len(data))


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x11, 0x31, 0xF1])
def test_other_versions_are_refused(byte: int) -> None:
    """With the byte that says so."""
    assert refusal(SIGNATURE + bytes([byte])) == "version"
    assert refusal(binary(byte, 0x11, bytes(12))) == "version"


@pytest.mark.parametrize("byte", [0x22, 0x2F])
def test_other_commands_are_refused(byte: int) -> None:
    """With the byte that says so."""
    assert refusal(SIGNATURE + bytes([byte])) == "command"
    assert refusal(binary(byte, 0x11, bytes(12))) == "command"


@pytest.mark.parametrize("byte", [0x03, 0x13, 0x1F, 0x40, 0x41, 0xF1])
def test_unassigned_families_are_refused(byte: int) -> None:
    """With the byte that says so."""
    assert refusal(SIGNATURE + bytes([0x21, byte])) == "family"
    assert refusal(binary(0x21, byte, bytes(300))) == "family"


@pytest.mark.parametrize(
    ("family", "needed"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)]
)
def test_a_length_below_the_addresses_is_refused(family: int, needed: int) -> None:
    """Before they have come."""
    assert refusal(binary(0x21, family, b"", needed - 1)) == "length"
    assert parse(binary(0x21, family, b"", needed)) is None


@pytest.mark.parametrize(("command", "family"), [(0x20, 0x00), (0x21, 0x00), (0x21, 0x11)])
def test_a_header_that_is_too_long(command: int, family: int) -> None:
    """It is refused as soon as it says its length."""
    assert refusal(binary(command, family, b"", LONGEST - 15)) == "too-long"
    assert refusal(binary(command, family, b"", 65_535)) == "too-long"
    assert parse(binary(command, family, b"", LONGEST - 16)) is None


def test_the_longest_header() -> None:
    """It is read and made."""
    value = bytes(LONGEST - 28 - 3)
    data = v2(CLIENT, SERVER, INET, tlvs=[(0xE0, value)])
    header = parse(data)
    assert header is not None
    assert (len(data), header.size, header.tlvs) == (LONGEST, LONGEST, ((0xE0, value),))


# TLVs.


def test_tlvs_keep_order_and_repetitions() -> None:
    """Also those of types that nobody knows."""
    header = parse(tcp4(tlv(0xE0, b"b") + tlv(0x7F, b"") + tlv(0xE0, b"a")))
    assert header is not None
    assert header.tlvs == ((0xE0, b"b"), (0x7F, b""), (0xE0, b"a"))


@pytest.mark.parametrize(
    "rest",
    [
        b"\xe0",
        b"\xe0\0",
        tlv(0xE0, b"", 1),
        tlv(0xE0, b"ab", 3),
        tlv(0xE0, b"ab", 1),
        tlv(0xE0, b"ab") + b"\0",
        tlv(0xE0, b"ab", 65_535),
        tlv(PP2_TYPE_SSL, b""),
        tlv(PP2_TYPE_SSL, bytes(4)),
        tlv(PP2_TYPE_SSL, bytes(6)),
        tlv(PP2_TYPE_SSL, bytes(5) + tlv(0x21, b"", 3)) + tlv(0xE0, b""),
        tlv(PP2_TYPE_UNIQUE_ID, bytes(129)),
    ],
)
def test_every_length_is_checked(rest: bytes) -> None:
    """Of values, of values in values, of the identity; bytes of the client's beyond do not help."""
    assert refusal(tcp4(rest) + bytes(100)) == "length"


def test_padding_is_left_out() -> None:
    """It says nothing."""
    header = parse(tcp4(tlv(PP2_TYPE_NOOP, b"anything") + tlv(0xE0, b"a") + tlv(PP2_TYPE_NOOP, b"")))
    assert header is not None
    assert header.tlvs == ((0xE0, b"a"),)


def test_the_checksum_of_a_known_text() -> None:
    """The check value that every table of checksums has for CRC-32C."""
    assert crc32c(b"123456789") == 0xE306_9283


@bounded
@given(st.binary(max_size=300))
def test_the_checksum_is_the_other_ones(data: bytes) -> None:
    """Of any bytes."""
    assert crc32c(data) == other_crc32c.crc32c(data)


@pytest.mark.parametrize(("start", "end"), [(b"", b""), (tlv(0xE0, b"a"), b""), (b"", tlv(0xE1, b"b"))])
def test_a_right_checksum_is_left_out(start: bytes, end: bytes) -> None:
    """Wherever it stands; it would be wrong of any other header."""
    header = parse(checked(start, end) + b"data")
    assert header is not None
    assert PP2_TYPE_CRC32C not in dict(header.tlvs)
    assert len(header.tlvs) == bool(start) + bool(end)


@pytest.mark.parametrize("at", [*range(16, 28), 31, *range(35, 39)])
def test_a_changed_byte_is_found_by_the_checksum(at: int) -> None:
    """In addresses, in another TLV's value, in the checksum; types and lengths have refusals of their own."""
    data = bytearray(checked(tlv(0xE0, b"a")))
    data[at] ^= 0x40
    assert refusal(bytes(data)) == "checksum"


def test_what_haproxy_sends() -> None:
    """The bytes of 2.6.12 for a TLS client: ALPN, authority, checksum, identity, facts of TLS."""
    data = (
        b"\r\n\r\n\0\r\nQUIT\n!\x11\0z\x7f\0\0\1\x7f\0\0\1\xeat\x92\xcd\3\0\4\xbc\x9fb\x90\1\0\2h2"
        b"\2\0\x0bexample.com\5\0\x0f127.0.0.1-60020 \0?\1\0\0\0\0!\0\7TLSv1.3%\0\7RSA2048"
        b"$\0\nRSA-SHA256#\0\x16TLS_AES_256_GCM_SHA384"
    )
    header = parse(data)
    assert header is not None
    assert (header.source, header.destination) == (("127.0.0.1", 60020), ("127.0.0.1", 37581))
    assert header.tlvs[:3] == ((1, b"h2"), (2, b"example.com"), (5, b"127.0.0.1-60020"))


@pytest.mark.parametrize(
    "rest",
    [
        tlv(PP2_TYPE_CRC32C, b""),
        tlv(PP2_TYPE_CRC32C, bytes(3)),
        tlv(PP2_TYPE_CRC32C, bytes(5)),
    ],
)
def test_a_checksum_has_four_bytes(rest: bytes) -> None:
    """Anything else is wrong."""
    assert refusal(tcp4(rest)) == "checksum"


def test_a_right_checksum_with_one_byte_more_is_refused() -> None:
    """Its first four bytes do not help it."""
    empty = tcp4(tlv(PP2_TYPE_CRC32C, bytes(5)))
    assert refusal(empty[:31] + other_crc32c.crc32c(empty).to_bytes(4) + empty[35:]) == "checksum"


def test_there_is_one_checksum() -> None:
    """Another one beside it is refused, though this one is right."""
    assert refusal(checked(tlv(PP2_TYPE_CRC32C, bytes(4)))) == "checksum"


# As it comes.


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"GET / HTTP/1.1\r\n",
        b"PROXX",
        b"proxy ",
        b"\r\n\r\n\r",
        b"\x16\x03\x01",
        SIGNATURE[:11] + b"\r",
    ],
)
def test_something_else_is_refused_at_once(data: bytes) -> None:
    """Up to the byte that tells, it may still become a header."""
    assert refusal(data) == "signature"


@pytest.mark.parametrize("signature", [SIGNATURE, b"PROXY "])
def test_each_byte_of_the_signature_counts(signature: bytes) -> None:
    """The first wrong one decides, the right ones before it do not."""
    for at, byte in enumerate(signature):
        assert parse(signature[:at]) is None
        assert refusal(signature[:at] + bytes([byte ^ 1])) == "signature"


@bounded
@given(CONNECTIONS, st.booleans(), TLVS)
def test_the_start_of_a_header_is_incomplete(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily], datagram: bool, tlvs: tuple[Tlv, ...]
) -> None:
    """Every one, in both versions."""
    for data in (v1(*connection), v2(*connection, datagram, tlvs)):
        assert {parse(data[:end]) for end in range(len(data))} == {None}


@bounded
@given(CONNECTIONS, TLVS, st.binary(max_size=20), st.booleans())
def test_what_follows_a_header_is_not_looked_at(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily],
    tlvs: tuple[Tlv, ...],
    data: bytes,
    line: bool,
) -> None:
    """It is the client's."""
    sent = v1(*connection) if line else v2(*connection, tlvs=tlvs)
    header = parse(sent)
    assert header is not None
    assert header.size == len(sent)
    assert parse(sent + data) == parse(memoryview(sent + data)) == header


def judged(data: bytes) -> None:
    """Whatever comes is read, refused or incomplete, and what was decided stays so with more bytes."""
    decided: Header | str | None = None
    for end in range(len(data) + 1):
        try:
            now: Header | str | None = parse(memoryview(data)[:end])
        except BadHeader as error:
            now = error.reason
            assert now in REASONS
        assert decided is None or now == decided
        decided = now


SAMPLES = [
    v1(CLIENT, SERVER, INET),
    v1(CLIENT6, SERVER6, INET6),
    v1(None, None, None),
    v2(CLIENT, SERVER, INET),
    v2(CLIENT6, SERVER6, INET6, True),
    v2(None, None, None),
    v2(CLIENT, SERVER, INET, tlvs=[(PP2_TYPE_ALPN, b"h2"), tls_facts("TLSv1.3", common_name="ä")]),
    checked(tlv(PP2_TYPE_NOOP, b"x"), tlv(PP2_TYPE_UNIQUE_ID, b"y")),
    binary(0x21, 0x31, bytes(216)),
]


@settings(bounded, max_examples=600)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    st.integers(0, 300),
    st.binary(max_size=8),
)
def test_a_damaged_header_is_read_or_refused(
    data: bytes, changes: list[tuple[int, int]], cut: int, inserted: bytes
) -> None:
    """Bytes changed, inserted, at every length: nothing else ever happens."""
    damaged = bytearray(data)
    for at, byte in changes:
        damaged[at % len(damaged)] = byte
    at = cut % (len(damaged) + 1)
    judged(bytes(damaged[:at] + inserted + damaged[at:]))


@bounded
@given(
    st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21\x11\x00", b"PROXY ", b"PROXY TCP6 "]),
    st.binary(max_size=120),
)
def test_anything_is_read_or_refused(start: bytes, rest: bytes) -> None:
    """After every beginning that gets it further."""
    judged(start + rest)


def test_a_refusal_says_nothing_of_the_content() -> None:
    """A log line that has it has nobody's bytes."""
    with pytest.raises(BadHeader) as caught:
        parse(b"PROXY TCP4 \x1b[2J 1 2 3\r\n")
    assert str(caught.value) == "address"
    assert caught.value.__cause__ is None


# Made.


@bounded
@given(CONNECTIONS)
def test_a_line_that_we_make_is_read(connection: tuple[Endpoint, Endpoint, socket.AddressFamily]) -> None:
    """It says what was put in."""
    source, destination, family = connection
    data = v1(source, destination, family)
    assert parse(data) == Header(1, False, family, False, source, destination, (), len(data))


@bounded
@given(CONNECTIONS, st.booleans(), TLVS)
def test_a_binary_header_that_we_make_is_read(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily], datagram: bool, tlvs: tuple[Tlv, ...]
) -> None:
    """It says what was put in."""
    source, destination, family = connection
    data = v2(source, destination, family, datagram, tlvs)
    assert parse(data) == Header(2, False, family, datagram, source, destination, tlvs, len(data))


@pytest.mark.parametrize("family", [None, UNIX, INET, INET6])
def test_without_addresses_a_line_is_unknown(family: int | None) -> None:
    """A check, or a client on a Unix socket."""
    assert v1(None, None, family) == v1(CLIENT, SERVER, None) == b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize("family", [None, UNIX, INET, INET6])
def test_without_addresses_a_binary_header_is_local(family: int | None) -> None:
    """A check, or a client on a Unix socket."""
    assert v2(None, None, family) == v2(CLIENT, SERVER, UNIX) == binary(0x20, 0, b"")


def test_a_local_header_may_have_tlvs() -> None:
    """For who reads them all the same."""
    assert v2(None, None, None, tlvs=[(PP2_TYPE_ALPN, b"h2")]) == binary(0x20, 0, tlv(PP2_TYPE_ALPN, b"h2"))


def test_a_line_has_ipv6_addresses_in_groups_and_without_zone() -> None:
    """The specification knows neither dots nor zones in them."""
    line = b"PROXY TCP6 0:0:0:0:0:ffff:c000:201 fe80::1 1 2\r\n"
    assert v1(("::ffff:192.0.2.1", 1), ("fe80::1%eth0", 2), INET6) == line


def test_a_binary_header_has_no_zone() -> None:
    """There is no place for one."""
    assert v2(("fe80::1%eth0", 1), ("fe80::2", 2), INET6) == v2(("fe80::1", 1), ("fe80::2", 2), INET6)


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(("source", "family"), [("::1", INET), ("192.0.2.1", INET6), ("a\r\nb", INET)])
def test_an_address_of_another_family_is_an_error(make: object, source: str, family: int) -> None:
    """Neither version puts into a header what is not an address of the family."""
    assert callable(make)
    with pytest.raises(OSError, match="illegal IP address"):
        make((source, 1), (source, 2), family)


@pytest.mark.parametrize("value", [bytes(LONGEST - 28 - 2), bytes(70_000)])
def test_a_header_longer_than_we_read_is_not_made(value: bytes) -> None:
    """The next of us would refuse it."""
    with pytest.raises(ValueError, match="more than 4096"):
        v2(CLIENT, SERVER, INET, tlvs=[(0xE0, value)])


# Beside the package proxy-protocol.

OTHER1, OTHER2 = ProxyProtocolV1(), ProxyProtocolV2()


def result(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily], datagram: bool, tlvs: ProxyProtocolTLV
) -> ProxyResult:
    """A connection in its words."""
    (source, source_port), (destination, destination_port), family = connection
    protocol = socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM
    first, second = ip_address(source), ip_address(destination)
    if family == INET:
        assert isinstance(first, IPv4Address)
        assert isinstance(second, IPv4Address)
        return ProxyResultIPv4((first, source_port), (second, destination_port), protocol=protocol, tlv=tlvs)
    assert isinstance(first, IPv6Address)
    assert isinstance(second, IPv6Address)
    return ProxyResultIPv6((first, source_port), (second, destination_port), protocol=protocol, tlv=tlvs)


@bounded
@given(CONNECTIONS)
def test_the_other_one_reads_our_lines(connection: tuple[Endpoint, Endpoint, socket.AddressFamily]) -> None:
    """TCP over both families."""
    told, meant = OTHER1.unpack(v1(*connection)), result(connection, False, ProxyProtocolTLV())
    assert (told.type, told.source, told.dest) == (meant.type, meant.source, meant.dest)


def test_the_other_one_reads_our_unknown_line() -> None:
    """The short one."""
    assert isinstance(OTHER1.unpack(v1(None, None, None)), ProxyResultUnknown)


@bounded
@given(CONNECTIONS)
def test_we_read_the_other_ones_lines(connection: tuple[Endpoint, Endpoint, socket.AddressFamily]) -> None:
    """TCP over both families."""
    data = OTHER1.pack(result(connection, False, ProxyProtocolTLV()))
    source, destination, family = connection
    assert parse(data) == Header(1, False, family, False, source, destination, (), len(data))


def test_we_read_the_other_ones_unknown_line() -> None:
    """The one with spaces."""
    data = OTHER1.pack(ProxyResultUnknown())
    assert parse(data) == Header(1, False, None, False, None, None, (), len(data))


@bounded
@given(CONNECTIONS, st.booleans(), TLVS)
def test_the_other_one_reads_our_binary_headers(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily], datagram: bool, tlvs: tuple[Tlv, ...]
) -> None:
    """TCP and UDP over both families; of TLVs of one type it keeps the last."""
    told = OTHER2.unpack(v2(*connection, datagram, tlvs))
    meant = result(connection, datagram, ProxyProtocolTLV())
    assert (told.type, told.source, told.dest) == (meant.type, meant.source, meant.dest)
    assert told.protocol == meant.protocol
    assert dict(told.tlv) == dict(tlvs)


@bounded
@given(CONNECTIONS, st.booleans(), TLVS)
def test_we_read_the_other_ones_binary_headers(
    connection: tuple[Endpoint, Endpoint, socket.AddressFamily], datagram: bool, tlvs: tuple[Tlv, ...]
) -> None:
    """TCP and UDP over both families, TLVs, and the checksum that it always adds."""
    data = OTHER2.pack(result(connection, datagram, ProxyProtocolTLV(init=dict(tlvs))))
    source, destination, family = connection
    meant = tuple(sorted(dict(tlvs).items()))
    assert bytes([PP2_TYPE_CRC32C, 0, 4]) in data
    assert parse(data) == Header(2, False, family, datagram, source, destination, meant, len(data))


@pytest.mark.parametrize("datagram", [False, True])
def test_we_read_the_other_ones_unix_headers(datagram: bool) -> None:
    """As those of a Unix socket."""
    protocol = socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM
    facts = ProxyProtocolTLV(alpn=b"h2")
    data = OTHER2.pack(ProxyResultUnix("/run/a", "/run/b", protocol=protocol, tlv=facts))
    assert parse(data) == Header(2, False, UNIX, datagram, None, None, ((PP2_TYPE_ALPN, b"h2"),), len(data))


def test_we_read_the_other_ones_local_header() -> None:
    """With a checksum in what is skipped."""
    data = OTHER2.pack(ProxyResultLocal())
    assert parse(data) == Header(2, True, None, False, None, None, (), len(data))


def test_we_read_the_other_ones_unknown_header() -> None:
    """With a checksum in what is skipped."""
    data = OTHER2.pack(ProxyResultUnknown())
    assert parse(data) == Header(2, False, None, False, None, None, (), len(data))


def test_the_other_one_reads_our_local_header() -> None:
    """And its TLVs."""
    told = OTHER2.unpack(v2(None, None, None, tlvs=[(PP2_TYPE_UNIQUE_ID, b"7")]))
    assert isinstance(told, ProxyResultLocal)
    assert told.tlv.unique_id == b"7"


def test_the_other_one_reads_our_facts_of_tls() -> None:
    """All of them."""
    fact = tls_facts(
        "TLSv1.2",
        cipher="ECDHE-RSA-AES128-GCM-SHA256",
        client=PP2_CLIENT_SSL | PP2_CLIENT_CERT_CONN,
        verified=True,
        common_name="exämple.com",
        signature="SHA256",
        key="RSA2048",
    )
    told = OTHER2.unpack(v2(CLIENT, SERVER, INET, tlvs=[fact])).tlv.ssl
    assert (told.has_ssl, told.has_cert_conn, told.has_cert_sess, told.verify) == (True, True, False, 0)
    assert (told.version, told.cipher, told.cn) == ("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", "exämple.com")
    assert (told.sig_alg, told.key_alg) == ("SHA256", "RSA2048")


def test_our_facts_of_tls_are_the_other_ones() -> None:
    """To the byte, where it writes the same order."""
    other = ProxyProtocolSSLTLV(has_ssl=True, verified=False, version="TLSv1.3", cn="a", cipher="b")
    assert tls_facts("TLSv1.3", common_name="a", cipher="b") == (PP2_TYPE_SSL, bytes(other))


def test_a_client_without_certificate_is_not_verified() -> None:
    """The field is 0 only for one that was verified (2.2.6)."""
    assert tls_facts("TLSv1.3")[1] == b"\x01\0\0\0\x01" + tlv(0x21, b"TLSv1.3")
