"""A flood of datagrams from addresses where nobody is: raw frames, from a process of its own.

    inside.call(start, "tests.faults.strangers", "far", MAC, "192.0.2.1", 5300, 100_000, 8000)

It puts them on one end of a pair of veth interfaces, inside of a network of the test's own, at `rate`
per second (0: as fast as it can), each from another address and port of NETWORK; then it says in how
many seconds.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from typing import Final

from tests.apart import say

NETWORK: Final = "10.9.0.0/16"

WORDS: Final = b"let me in"

BATCH: Final = 32
"""Frames between two looks at the clock."""


def frame(head: bytes, target: bytes, port: int, number: int) -> bytes:
    """The datagram of stranger `number`, up to 2^16 times 2^15 of them, after the Ethernet header `head`
    (RFC 791; RFC 768: a checksum of 0 is none)."""
    source = bytes((10, 9, number >> 8 & 255, number & 255))
    length = 8 + len(WORDS)
    start = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0x4000, 64, 17, 0, source, target)
    total = sum(struct.unpack("!10H", start))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    checked = start[:10] + struct.pack("!H", ~total & 0xFFFF) + start[12:]
    return head + checked + struct.pack("!HHHH", 1024 + (number >> 16), port, length, 0) + WORDS


def flood(interface: str, mac: str, target: str, port: int, count: int, rate: int) -> None:
    """That process."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:
        line.bind((interface, 0))
        head = bytes.fromhex(mac.replace(":", "")) + line.getsockname()[4] + b"\x08\x00"
        there = socket.inet_aton(target)
        began = time.monotonic()
        for start in range(0, count, BATCH):
            # It is the load itself that waits here: the pace is what it is for.
            time.sleep(max(0.0, began + start / rate - time.monotonic()) if rate else 0)
            for number in range(start, min(start + BATCH, count)):
                line.send(frame(head, there, port, number))
    say(time.monotonic() - began)


if __name__ == "__main__":
    flood(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
