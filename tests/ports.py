"""Free ports for listeners and backends, never handed out twice.

Ports come from below the ephemeral range: a port inside it can be taken by any
outgoing connection at any moment, and a connect to a closed port there may
connect to itself.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

LOWEST = 12_000

claims: dict[int, socket.socket] = {}
"""Port -> abstract unix socket that claims it until this process ends, against test runs beside this one."""


def free_port() -> int:
    """A port that is free for TCP and UDP, over IPv4 and IPv6."""
    ceiling = min(32_768, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    if ceiling <= LOWEST:
        ceiling = 32_768
    candidates = list(range(LOWEST, ceiling))
    random.shuffle(candidates)
    for port in candidates:
        if port not in claims and claim(port):
            return port
    raise AssertionError("no free port left")


def claim(port: int) -> bool:
    """Reserve `port` for this process; false when it is taken by anybody."""
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claimed.bind(f"\0fastfwd-tests-port-{port}")
    except OSError:
        claimed.close()
        return False
    for family, host in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            if not bindable(family, kind, host, port):
                claimed.close()
                return False
    claims[port] = claimed
    return True


def bindable(family: int, kind: int, host: str, port: int) -> bool:
    """Whether a socket can be bound now; a family that this machine lacks does not count against it."""
    try:
        probe = socket.socket(family, kind)
    except OSError:
        return True
    with probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
    return True
