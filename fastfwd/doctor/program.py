"""Which process runs with a configuration, if one does: its supervisor, its workers, what they hold.

doctor/command calls `find`. The pid file and the exporter are asked first; failing them, the command lines
of every supervisor. Nothing is sent to any process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from fastfwd.model import Config
from fastfwd.observe.terminal import fetch
from fastfwd.supervisor.main import DEFAULT_PIDFILE

WORKER: Final = re.compile(r"fastfwd-w\d+")
"""What workers call themselves (worker/main)."""

WITHOUT: Final = ("/etc/fastfwd.conf", "/etc/rinetd.conf")
"""What a program reads whose command line names no file."""


@dataclass(frozen=True, slots=True)
class Program:
    """`pid` is the supervisor's. `files` are the descriptors of all workers together, `sockets` how many
    of them are sockets; None where nobody may look."""

    pid: int
    workers: tuple[int, ...]
    files: int | None = None
    sockets: int | None = None


def find(config: Config) -> Program | None:
    """The program that runs with `config`."""
    running = supervisors()
    for pid in _candidates(config, running):
        if pid in running:
            return Program(pid, running[pid], *_held(running[pid]))
    return None


def supervisors() -> dict[int, tuple[int, ...]]:
    """Every process that has workers -> these."""
    found: dict[int, tuple[int, ...]] = {}
    for process in psutil.process_iter(["name", "ppid"]):
        parent = process.info["ppid"]
        if WORKER.fullmatch(process.info["name"] or ""):
            found[parent] = (*found.get(parent, ()), process.pid)
    # Process 1 inherits the workers of a supervisor that died; in a container it may be one.
    if 1 in found and not any("fastfwd" in each or "rinetd" in each for each in _arguments(1)):
        del found[1]
    return found


def _candidates(config: Config, running: Mapping[int, object]) -> Iterable[int]:
    with suppress(OSError, ValueError), open(config.pidfile or DEFAULT_PIDFILE, encoding="ascii") as file:
        yield int(file.read(32))
    if config.metrics is not None and (config.metrics.path or config.metrics.port):
        with suppress(OSError, ValueError, KeyError):
            yield int(fetch(config.metrics)["pid"])
    for pid in running:
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if _reads(process.cmdline(), process.cwd, config.file):
                yield pid


def _arguments(pid: int) -> list[str]:
    with suppress(psutil.Error, OSError):
        return psutil.Process(pid).cmdline()
    return []


def _reads(arguments: list[str], directory: object, file: str) -> bool:
    """Whether a program with these arguments reads `file`. `directory()` is where it was started."""
    named = None
    for place, argument in enumerate(arguments):
        if argument in ("-c", "--conf-file"):
            named = arguments[place + 1] if place + 1 < len(arguments) else None
        elif argument.startswith("--conf-file="):
            named = argument.partition("=")[2]
        elif re.fullmatch(r"-[fh]*c.+", argument):
            named = argument[argument.index("c") + 1 :]
    if named is None:
        return file in WITHOUT
    if not os.path.isabs(named) and callable(directory):
        named = os.path.join(directory(), named)
    return os.path.normpath(named) == os.path.normpath(file)


def _held(workers: Iterable[int]) -> tuple[int | None, int | None]:
    """How many descriptors the workers have, and how many of those are sockets."""
    files = sockets = 0
    for pid in workers:
        directory = f"/proc/{pid}/fd"
        try:
            for name in os.listdir(directory):
                with suppress(FileNotFoundError):  # closed meanwhile
                    sockets += os.readlink(f"{directory}/{name}").startswith("socket:")
                    files += 1
        except OSError:
            return None, None
    return files, sockets
