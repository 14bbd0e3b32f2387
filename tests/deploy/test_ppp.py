"""The hook of deploy/ppp, run as pppd's run-parts does: whom it has read the configuration again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.peers import require_peer
from tests.ports import free_port

HOOKS = Path(__file__).parents[2] / "deploy" / "ppp" / "ip-up.d"

ARGUMENTS = ("ppp0", "/dev/ttyS0", "0", "192.0.2.1", "192.0.2.2")
"""What pppd(8) gives: interface, device, speed, our address, the other end's."""

SYSTEMCTL = """\
#!/bin/sh
# systemctl with these units active; it notes what it is asked to do.
case $1 in
list-units) printf '%s loaded active running x\\n' fastfwd.service fastfwd@web.service ;;
*) echo "$@" >>"$(dirname "$0")/asked" ;;
esac
"""


def up(runtime: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The link is up."""
    first = [] if path is None else [str(path)]
    return subprocess.run(
        [require_peer("run-parts"), *(f"--arg={each}" for each in ARGUMENTS), HOOKS],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": ":".join([*first, "/usr/bin", "/bin"]), "FASTFWD_RUNTIME": str(runtime)},
        timeout=deadline.seconds(20),
    )


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """What systemctl, first on the PATH, has been asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    return tmp_path / "bin" / "asked"


def test_systemd_reloads_what_is_active(asked: Path, tmp_path: Path) -> None:
    """The service and each instance, without waiting for it."""
    (tmp_path / "systemd/system").mkdir(parents=True)
    done = up(tmp_path, asked.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.read_text().splitlines() == [
        "--no-block reload fastfwd.service",
        "--no-block reload fastfwd@web.service",
    ]


def test_a_daemon_is_found_by_its_pid_file(tmp_path: Path, forwarder: StartForwarder) -> None:
    """Where systemd does not run, it gets the HUP."""
    pid_file = tmp_path / "rinetd.pid"
    running = forwarder(f"127.0.0.1 {free_port()} 192.0.2.1 1\npidlogfile {pid_file}\n")
    assert pid_file.exists()
    done = up(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    running.wait_reloaded(1)


@pytest.mark.parametrize("content", [None, "", "4194304\n"], ids=["no file", "empty", "stale"])
def test_nobody_is_no_error(tmp_path: Path, content: str | None) -> None:
    """pppd is not told of a program that does not run. (The number is above the highest of a process.)"""
    if content is not None:
        (tmp_path / "rinetd.pid").write_text(content)
    done = up(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
