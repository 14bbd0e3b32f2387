"""A module of the tests in a process of its own: with its own descriptors, and its own interpreter.

with apart(__name__, "echo", 5) as process:
    assert said(process) == "ready"
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Run `module` with `arguments`; talk to it through its stdin and stdout, line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


@contextmanager
def apart(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The same, ended with the block."""
    with start(module, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that it writes."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
