"""Namespaces of a test's own: another network, another /etc/hosts, without touching the machine.

    with Sandbox(network=True) as inside:
        inside.run("ip", "address", "add", "192.0.2.1/24", "dev", "lo")
        running = inside.call(forwarder, config)
        client = inside.call(connect, ("192.0.2.1", port))

A namespace belongs to a thread (unshare(2)); what the thread starts is born in it, and the
sockets it makes work everywhere. So the test stays where it is and has things done inside.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import deadline
from tests.peers import require_peer, require_root

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
"""linux/sched.h, linux/mount.h."""


class Sandbox:
    """A thread in a mount namespace of its own and, with `network`, a network of its own, whose
    loopback is up. Needs root."""

    def __init__(self, *, network: bool = False) -> None:
        require_root()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.thread = ThreadPoolExecutor(1)
        try:
            self.call(self._enter, CLONE_NEWNS | (CLONE_NEWNET if network else 0))
            if network:
                self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.thread.shutdown()
            raise

    def call(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do `work(*arguments, **options)` inside, and return its result."""
        return self.thread.submit(work, *arguments, **options).result()

    def run(self, *command: str) -> str:
        """Run a command inside; what it wrote. Fails if the command does."""
        done: subprocess.CompletedProcess[str] = self.call(
            subprocess.run,
            [require_peer(command[0]), *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(20),
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def sysctl(self, name: str, value: str) -> None:
        """Set a variable of the network inside (`net.ipv4...`)."""
        self.call(Path("/proc/sys", *name.split(".")).write_text, value)

    def replace(self, target: Path, by: Path) -> None:
        """Inside, the file or directory `target` is `by`."""
        self.call(self._mount, str(by), str(target), None, MS_BIND)

    def cover(self, directory: Path) -> None:
        """Inside, `directory` is an empty file system that everybody may search."""
        self.call(self._mount, "none", str(directory), "tmpfs", 0, "mode=0755")

    def open_way_to(self, path: Path) -> None:
        """Inside, everybody may search the directories above `path`. (An interpreter may be
        installed in a home directory that other users cannot enter.)"""
        for parent in reversed(path.parents):
            if self.call(os.stat, parent).st_mode & 0o001:
                continue
            child = parent / path.relative_to(parent).parts[0]
            held = self.call(os.open, child, os.O_PATH)
            try:
                self.cover(parent)
                self.call(child.mkdir if self.call(os.path.isdir, f"/proc/self/fd/{held}") else child.touch)
                self.call(self._mount, f"/proc/self/fd/{held}", str(child), None, MS_BIND | MS_REC)
            finally:
                os.close(held)

    def open_way_to_python(self) -> None:
        """Inside, every user may run this interpreter and import the program."""
        for directory in {sys.executable, sys.prefix, sys.base_prefix, os.path.realpath(sys.executable)}:
            self.open_way_to(Path(directory))
        self.open_way_to(Path(__file__))

    def close(self) -> None:
        """Leave; the namespaces end with the last process in them."""
        self.thread.shutdown()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self, flags: int) -> None:
        self._check(self.libc.unshare(flags))
        self._mount("none", "/", None, MS_REC | MS_PRIVATE)  # nothing mounted here is seen outside

    def _mount(self, source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
        self._check(
            self.libc.mount(
                source.encode(), target.encode(), kind and kind.encode(), flags, options.encode() or None
            )
        )

    def _check(self, result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
