"""All scripts of deploy/ by shellcheck, all of its YAML by yamllint: whoever adds one has it checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import deadline
from tests.peers import require_peer

DEPLOY = Path(__file__).parents[2] / "deploy"

SHELLS = {"sh": "sh", "dash": "dash", "bash": "bash", "ash": "sh"}
"""The interpreter of a first line, and the dialect that shellcheck calls it."""


def dialect(path: Path) -> str | None:
    """The shell that a file's first line asks for; None if it is no script of a shell."""
    with path.open("rb") as file:
        words = file.readline(200).decode(errors="replace").removeprefix("#!").split()
    if path.read_bytes()[:2] != b"#!" or not words:
        return None
    if os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    return SHELLS.get(os.path.basename(words[0]))


FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
SCRIPTS = {path: shell for path in FILES if (shell := dialect(path))}
YAML = [path for path in FILES if path.suffix in (".yml", ".yaml")]


def name(path: Path) -> str:
    """Where it is below deploy/."""
    return str(path.relative_to(DEPLOY))


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts(path: Path) -> None:
    """shellcheck has nothing to say, and who calls it may."""
    done = subprocess.run(
        [require_peer("shellcheck"), "-x", "-s", SCRIPTS[path], path],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        timeout=deadline.seconds(30),
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", YAML, ids=name)
def test_yaml(path: Path) -> None:
    """yamllint has nothing to say, by deploy/.yamllint."""
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "-f", "parsable", "-c", DEPLOY / ".yamllint", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(60),
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_they_are_found() -> None:
    """A script without an ending, and one with; a file of each kind of YAML."""
    assert {"transparent/fastfwd-transparent", "ppp/ip-up.d/fastfwd"} <= set(map(name, SCRIPTS))
    assert any(path.suffix == ".sh" for path in SCRIPTS)
    assert YAML
