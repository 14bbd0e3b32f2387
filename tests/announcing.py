"""PROXY headers for tests: what a sender writes, and what a receiver that is not ours makes of ours.

The package proxy-protocol (PyPI) reads and writes them here, so that no mistake of ours is on both sides.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxyprotocol import ProxyProtocol
from proxyprotocol.result import ProxyResult, ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from tests.sockets import Address, read_exactly

VERSIONS: dict[str, ProxyProtocol] = {"v1": ProxyProtocolV1(), "v2": ProxyProtocolV2()}

CLIENT, ASKED = ("203.0.113.7", 41000), ("198.51.100.1", 443)
CLIENT6, ASKED6 = ("2001:db8:7::7", 41000), ("2001:db8::1", 443)


def header(version: str, client: Address = CLIENT, asked: Address = ASKED) -> bytes:
    """What a proxy sends in front of a connection of `client` to `asked`."""
    (one, port), (other, other_port) = (ip_address(client[0]), client[1]), (ip_address(asked[0]), asked[1])
    result: ProxyResult
    if isinstance(one, IPv4Address) and isinstance(other, IPv4Address):
        result = ProxyResultIPv4((one, port), (other, other_port), protocol=socket.SOCK_STREAM)
    else:
        assert isinstance(one, IPv6Address)
        assert isinstance(other, IPv6Address)
        result = ProxyResultIPv6((one, port), (other, other_port), protocol=socket.SOCK_STREAM)
    return bytes(VERSIONS[version].pack(result))


def received(connection: socket.socket, version: str) -> ProxyResult:
    """The header that a connection begins with, whose bytes are read and no others."""
    if version == "v1":
        data = b""
        while not data.endswith(b"\r\n"):
            piece = read_exactly(connection, 1)
            assert piece, f"the end after {data!r}"
            data += piece
    else:
        data = read_exactly(connection, 16)
        data += read_exactly(connection, int.from_bytes(data[14:16]))
    return unpacked(data, version)


def unpacked(data: bytes, version: str) -> ProxyResult:
    """What `data`, a header and nothing else, says."""
    return VERSIONS[version].unpack(data)


def addresses(result: ProxyResult) -> tuple[Address, Address]:
    """Client and destination, as (text, port)."""
    assert isinstance(result, ProxyResultIPv4 | ProxyResultIPv6), result
    (source, port), (destination, other) = result.source, result.dest
    return (str(source), port), (str(destination), other)
