"""Free ports for listeners and backends, never handed out twice.

Ports come from below the ephemeral range: a port inside it can be taken by any
outgoing connection at any moment, and a connect to a closed port there may
connect to itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

LOWEST = 12_000

handed_out: set[int] = set()
"""The ports that this process has."""


def free_port() -> int:
    """A port that is free for TCP and UDP, over IPv4 and IPv6."""
    ceiling = min(32_768, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
    if ceiling <= LOWEST:
        ceiling = 32_768
    candidates = list(range(LOWEST, ceiling))
    random.shuffle(candidates)
    for port in candidates:
        if port not in handed_out and claim(port):
            handed_out.add(port)
            return port
    raise AssertionError("no free port left")


@cache
def register() -> int:
    """The file in which a user's test runs lock the ports that they have, a byte for each, until they end:
    one descriptor for a thousand ports and more."""
    path = Path(tempfile.gettempdir()) / f"fastfwd-tests-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def claim(port: int) -> bool:
    """Reserve `port` for this process; false when it is taken by anybody."""
    try:
        fcntl.lockf(register(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    for family, host in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            if not bindable(family, kind, host, port):
                fcntl.lockf(register(), fcntl.LOCK_UN, 1, port)
                return False
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
