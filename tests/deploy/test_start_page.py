"""docs/start.md, word for word: every command in the order of the page, each with what the page shows.

In a network of its own, so that the page's ports are free; pip finds there what was fetched before.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tests.deadline import seconds, until
from tests.deploy.pages import DOCS, ROOT, Command, as_shown, commands
from tests.peers import lack, require_peer, require_root
from tests.system.namespaces import Sandbox

PAGE = (DOCS / "start.md").read_text("utf-8")

COMMANDS = list(commands(PAGE))

LOOK = re.compile(r"cat \w|tail |bin/fastfwd --status|curl (-s )?http://127.0.0.1:1(8081|9464)/")
"""Commands that change nothing: a person types the next one later than a machine, which looks again."""

LIMIT = 60
"""Seconds for one command."""


class Shell:
    """A bash with a terminal for what is written, that is given one command after the other."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.mark = f"FASTFWD_TEST_MARK={uuid.uuid4()}"
        self.end = f"end-{uuid.uuid4()}"
        self.screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
        script, self.script = os.pipe()
        python = str(Path(sys.base_prefix, "bin"))
        name, _, value = self.mark.partition("=")
        try:
            self.process = subprocess.Popen(
                [require_peer("bash"), f"/proc/self/fd/{script}"],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                cwd=ROOT,
                env={
                    "HOME": str(home),
                    "PATH": os.pathsep.join([python, "/usr/local/bin", "/usr/bin", "/bin"]),
                    "TERM": "xterm",
                    "LANG": "C.UTF-8",
                    name: value,
                    **environment,
                },
                pass_fds=[script],
                start_new_session=True,
            )
        finally:
            os.close(terminal)
            os.close(script)

    def run(self, command: str) -> tuple[int, str]:
        """Its exit status, and what has come onto the screen meanwhile."""
        os.write(self.script, f"{command}\necho {self.end} $?\n".encode())
        limit = time.monotonic() + seconds(LIMIT)
        screen = b""
        while (found := re.search(rf"{self.end} (\d+)\r\n$", screen.decode(errors="replace"))) is None:
            ready, _, _ = select.select([self.screen], [], [], max(0, limit - time.monotonic()))
            assert ready, f"{command}: no end; so far {screen!r}"
            screen += os.read(self.screen, 1 << 16)
        return int(found[1]), screen.decode().replace("\r\n", "\n").rpartition(self.end)[0]

    def close(self) -> None:
        """End everything that was started with it."""
        os.close(self.script)
        for pid in processes.marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(seconds(10))
        os.close(self.screen)


@dataclass(frozen=True, slots=True)
class Walk:
    """What came of every command of the page, and what was left when the last one had ended."""

    answers: list[tuple[int, str]]
    running: list[int]
    files: list[str]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """The page, from its first command to its last, in a home directory where nothing is."""
    require_root()
    for needed in ("curl", "pgrep"):
        require_peer(needed)
    wheels, home = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("home")
    fetch(wheels)
    with Sandbox(network=True) as sandbox:
        shell = sandbox.call(Shell, home, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)})
        try:
            answers = [answer(shell, command) for command in COMMANDS]
            with suppress(AssertionError):
                until(lambda: processes.marked(shell.mark) == [shell.process.pid])
            running = [pid for pid in processes.marked(shell.mark) if pid != shell.process.pid]
            yield Walk(answers, running, [path.name for path in home.iterdir()])
        finally:
            shell.close()


def fetch(directory: Path) -> None:
    """What `pip install .` will ask for: what builds fastfwd, and what it needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(directory), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds(60))
    if done.returncode != 0:
        lack(f"no packages to be had: {done.stderr.strip()[-200:]}")


def answer(shell: Shell, command: Command) -> tuple[int, str]:
    """Its exit status and what it has said; of a look that of the first one that saw what the page shows,
    or of the last one."""
    said = (0, "")

    def seen() -> bool:
        nonlocal said
        said = shell.run(command.typed)
        return as_shown(command.shown).fullmatch(said[1]) is not None

    if LOOK.match(command.typed):
        with suppress(AssertionError):
            until(seen)
    else:
        seen()
    return said


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[each.typed[:40] for each in COMMANDS])
def test_a_command_does_what_is_shown(walk: Walk, number: int) -> None:
    """Nothing comes where nothing is shown; and one that fails says so, and the page shows it."""
    status, said = walk.answers[number]
    command = COMMANDS[number]
    assert as_shown(command.shown).fullmatch(said), f"{command.typed}: {said!r}, not {command.shown!r}"
    assert status == 0 or said != ""


def test_nothing_stays(walk: Walk) -> None:
    """Neither a process nor a file, but what pip keeps in its cache."""
    assert walk.running == []
    assert [name for name in walk.files if name != ".cache"] == []


def test_the_page_has_them_all() -> None:
    """Install, start, look, change, break and stop: no block of the page was overlooked."""
    typed = " ; ".join(command.typed for command in COMMANDS)
    for word in ("pip install", "-t -c", "-f -c", "curl", "--status", "/metrics", "HUP", "kill -9", "rm -r"):
        assert word in typed
    assert len(COMMANDS) == len(re.findall(r"(?m)^\$ ", PAGE))
