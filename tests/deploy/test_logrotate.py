"""deploy/logrotate on a host without systemd. (test_systemd.py has it with systemd, and with instances.)"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect
from tests.system.namespaces import Sandbox

FILE = Path(__file__).parents[2] / "deploy" / "logrotate" / "fastfwd"

USER, ADM = 901, 4


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Sandbox]:
    """Empty /run and /var/log, and the account."""
    require_peer("logrotate")
    with Sandbox() as sandbox:
        for name, entry in (
            ("passwd", f"fastfwd:x:{USER}:{USER}::/:/bin/false\n"),
            ("group", f"fastfwd:x:{USER}:\n"),
        ):
            known = Path("/etc", name).read_text()
            lines = [line for line in known.splitlines(keepends=True) if not line.startswith("fastfwd:")]
            (tmp_path / name).write_text("".join(lines) + entry)
            sandbox.replace(Path("/etc", name), tmp_path / name)
        sandbox.cover(Path("/run"))
        sandbox.cover(Path("/var/log"))
        yield sandbox


def logrotate(inside: Sandbox, tmp_path: Path, *options: str) -> None:
    """Run it, on a copy as it is in /etc: root's, and writable for nobody else."""
    copy = tmp_path / "fastfwd"
    copy.write_text(FILE.read_text())
    copy.chmod(0o644)
    inside.run("logrotate", "-s", str(tmp_path / "state"), *options, str(copy))


def test_logrotate_takes_it(inside: Sandbox, tmp_path: Path) -> None:
    """As a rehearsal, with no log at all: every line is understood."""
    logrotate(inside, tmp_path, "-d")


def test_the_pid_file(
    inside: Sandbox, tmp_path: Path, forwarder: StartForwarder, backend: StartServer
) -> None:
    """A program that root has started, as rinetd is, is found by its pid file and goes on in the new log;
    what was logged before is in the old one."""
    port, behind = free_port(), backend(echo)
    log = "/var/log/rinetd.log"
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\nlogfile {log}\npidlogfile /run/rinetd.pid\n"
    running = inside.call(forwarder, config)

    def lines(path: str) -> int:
        return int(inside.call(Path(path).read_text).count("\n"))

    for number in (1, 2):
        with connect(("127.0.0.1", port)):
            pass
        until(lambda: lines(log) == 2, what="the lines")
        logrotate(inside, tmp_path, "--force")
        running.wait_reloaded(number)
        found = inside.call(Path(log).stat)
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (USER, ADM, 0o640)
        assert (lines(log), lines(f"{log}.1")) == (0, 2)
