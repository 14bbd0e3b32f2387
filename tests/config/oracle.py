"""C rinetd as a judge: does it load a configuration, and what does it listen on then?

Tests use `Oracle`. It starts this same file as a program inside a network
namespace of its own, where rinetd may bind every port and meets nobody; that
program runs one rinetd after another and kills each as soon as it has spoken.
As root it becomes nobody first: a fuzzed `logfile` may name any file.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

DEADLINE = 10.0
"""Seconds until a rinetd that neither starts nor ends counts as hung; it usually takes 3 ms."""

NOBODY = 65534
STARTED = b"rinetd: starting redirections...\n"

Listener = tuple[str, str, int]
"""Protocol ("tcp", "udp"), numeric address, port."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rinetd made of a configuration: `error` is its last word, empty when it started."""

    error: str
    listeners: tuple[Listener, ...]

    @property
    def accepted(self) -> bool:
        return not self.error

    @property
    def line(self) -> int | None:
        """The line of a syntax error, as rinetd counts."""
        match = re.search(r"invalid syntax at line (\d+):", self.error)
        return int(match[1]) if match else None


class NamespaceError(Exception):
    """This machine does not let the tests have a network namespace."""


class Oracle:
    """A running judge; close it when done."""

    def __init__(self, rinetd: str) -> None:
        """
        Args:
            rinetd: path of the program.

        Raises:
            NamespaceError: with what the machine said.
        """
        unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
        pipe = subprocess.PIPE
        command = [*unshare, sys.executable, __file__, rinetd]
        self._judge = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._judge.stdin is not None
        assert self._judge.stdout is not None
        self._ask = self._judge.stdin
        self._hear = self._judge.stdout
        if self._hear.readline() != b"ready\n":
            raise NamespaceError(self._judge.communicate()[1].decode())

    def judge(self, data: bytes) -> Verdict:
        """Have rinetd load `data`."""
        self._ask.write(base64.b64encode(data) + b"\n")
        self._ask.flush()
        answer = self._hear.readline()
        if not answer:
            raise AssertionError(f"no verdict for {data!r}: {self._judge.communicate()[1].decode()}")
        error, listeners = json.loads(answer)
        return Verdict(error, tuple((kind, address, port) for kind, address, port in listeners))

    def close(self) -> None:
        """End the judge and wait for it."""
        self._judge.communicate()


def main(rinetd: str) -> None:
    """The program inside the namespace: a configuration per line in, a verdict per line out."""
    _raise_loopback()
    _become_nobody()
    with tempfile.TemporaryDirectory(prefix="oracle-") as directory:
        os.chdir(directory)  # relative names of log and pid files land here
        print("ready", flush=True)  # noqa: T201
        for request in sys.stdin.buffer:
            with open("rinetd.conf", "wb") as file:
                file.write(base64.b64decode(request))
            print(json.dumps(_judge(rinetd)), flush=True)  # noqa: T201


def _raise_loopback() -> None:
    siocsifflags, iff_up = 0x8914, 1  # linux/sockios.h, linux/if.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh14x", b"lo", iff_up))
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w", encoding="ascii") as sysctl:
        sysctl.write("0")


def _become_nobody() -> None:
    # In a user namespace of our own there is no nobody, and root there is nobody special here.
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _judge(rinetd: str) -> tuple[str, list[Listener]]:
    command = [rinetd, "-f", "-c", "rinetd.conf"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            said = _first_words(process)
            if STARTED in said:
                return "", _listeners(process.pid)
        finally:
            process.kill()
    return said.decode("latin-1").strip() or f"exit status {process.returncode}", []


def _first_words(process: subprocess.Popen[bytes]) -> bytes:
    """What it wrote until it started or ended."""
    assert process.stderr is not None
    said = b""
    end = time.monotonic() + DEADLINE
    while STARTED not in said:
        if not select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))[0]:
            return said + b"(hung)"
        piece = os.read(process.stderr.fileno(), 65536)
        if not piece:
            break
        said += piece
    return said


def _listeners(pid: int) -> list[Listener]:
    """Its sockets, as proc(5) tells: `sl local_address rem_address st ...`, addresses in hexadecimal."""
    found = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            for line in list(table)[1:]:
                address, port = line.split()[1].split(":")
                found.append((name[:3], _address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words))


if __name__ == "__main__":
    main(sys.argv[1])
