"""What systemd's own tools say of the files for it, without running them (test_systemd.py does)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import deadline
from tests.peers import require_peer, require_root

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = DEPLOY / "systemd"
SERVICE = UNITS / "fastfwd.service"
TEMPLATE = UNITS / "fastfwd@.service"

THRESHOLD = 20
"""The exposure that is tolerated, in tenths: rinetd's own unit has 96."""

STUBS = ("sysinit", "basic", "shutdown", "network-online", "multi-user", "sockets")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run(
        [require_peer(str(command[0])), *map(str, command[1:])],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )


def settings(unit: Path) -> list[tuple[str, str]]:
    """The lines of a unit's section Service, in order."""
    _, _, text = unit.read_text().partition("[Service]\n")
    lines = text.partition("\n[")[0].splitlines()
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#;")
    return [(name, value) for name, _, value in pairs]


def installed(root: Path) -> None:
    """All units below `root`, with what they name: commands, and targets of systemd's own."""
    units, commands, local = (root / each for each in ("etc/systemd/system", "usr/sbin", "usr/local/sbin"))
    for directory in (units, commands, local):
        directory.mkdir(parents=True)
    for unit in UNITS.glob("fastfwd*"):
        shutil.copy(unit, units)
    for each in STUBS:
        (units / f"{each}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for command in (commands / "fastfwd", commands / "kill", local / "fastfwd-transparent"):
        command.touch(0o755)


@pytest.mark.parametrize("unit", ["fastfwd.service", "fastfwd@web.service", "fastfwd.socket"])
def test_units_are_understood(unit: str, tmp_path: Path) -> None:
    """Every line of them; the commands are found by their bare names."""
    installed(tmp_path)
    done = run("systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_drop_ins_are_understood(tmp_path: Path) -> None:
    """All of them together."""
    installed(tmp_path)
    shutil.copytree(UNITS / "drop-ins", tmp_path / "etc/systemd/system/fastfwd.service.d")
    done = run("systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", "fastfwd.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_line_that_systemd_does_not_know_is_found(tmp_path: Path) -> None:
    """The check above can fail."""
    installed(tmp_path)
    unit = tmp_path / "etc/systemd/system/fastfwd.service"
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    done = run("systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", "fastfwd.service")
    assert "ProtectHomes" in done.stderr


def rated(unit: Path) -> subprocess.CompletedProcess[str]:
    """systemd's judgement of what a unit may do; fails above the threshold."""
    return run(
        *("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={THRESHOLD}"), unit
    )


@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE])
def test_the_exposure(unit: Path) -> None:
    """systemd rates what the unit may do: at most 2.0 of 10."""
    done = run(
        "systemd-analyze", "security", "--offline=true", f"--threshold={THRESHOLD}", "--no-pager", unit
    )
    assert done.returncode == 0, done.stdout


def test_rinetd_s_own_unit_is_rated_above_that(tmp_path: Path) -> None:
    """The same threshold is not for everybody."""
    unit = tmp_path / "plain.service"
    unit.write_text("[Service]\nType=forking\nExecStart=/usr/sbin/rinetd\n")
    done = run(
        "systemd-analyze", "security", "--offline=true", f"--threshold={THRESHOLD}", "--no-pager", unit
    )
    assert done.returncode != 0


def test_instances_have_the_same_sandbox() -> None:
    """The template's section Service is the service's, but for the configuration's name."""
    given = [(name, value.replace(" -c /etc/fastfwd/%i.conf", "")) for name, value in settings(TEMPLATE)]
    assert given == settings(SERVICE)


def test_every_line_has_its_reason() -> None:
    """docs/hosts.md has an entry for each line of the sandbox."""
    page = (DEPLOY.parent / "docs" / "hosts.md").read_text()
    names = {name for name, _ in settings(SERVICE)}
    missing = {name for name in names if not re.search(rf"`{name}=", page)}
    assert not missing


# Accounts and files.


def test_the_account(tmp_path: Path) -> None:
    """systemd-sysusers makes user and group, without a shell, a password or a home."""
    require_root()
    (tmp_path / "etc").mkdir()
    definition = DEPLOY / "sysusers.d" / "fastfwd.conf"
    shown = run("systemd-sysusers", "--dry-run", f"--root={tmp_path}", definition)
    assert (shown.returncode, list((tmp_path / "etc").iterdir())) == (0, [])
    done = run("systemd-sysusers", f"--root={tmp_path}", definition)
    assert done.returncode == 0, done.stderr
    user = (tmp_path / "etc/passwd").read_text().splitlines()[-1].split(":")
    group = (tmp_path / "etc/group").read_text().splitlines()[-1].split(":")
    assert (user[0], user[5:], group[0], group[2]) == (
        "fastfwd",
        ["/", "/usr/sbin/nologin"],
        "fastfwd",
        user[3],
    )
    assert 0 < int(user[2]) < 1000
    password = (tmp_path / "etc/shadow").read_text().splitlines()[-1].split(":")[1]
    assert password.startswith("!")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root directory that has the account, and a log of rinetd's."""
    require_root()
    for directory in ("etc", "run", "var/log"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nfastfwd:x:901:902::/:/bin/false\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nadm:x:4:\nfastfwd:x:902:\n")
    return tmp_path


def create(root: Path) -> None:
    """As at boot."""
    done = run("systemd-tmpfiles", "--create", f"--root={root}", DEPLOY / "tmpfiles.d" / "fastfwd.conf")
    assert (done.returncode, done.stderr) == (0, "")


def owned(path: Path) -> tuple[int, int, int]:
    """User, group, permissions."""
    found = path.stat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def test_the_files(host: Path) -> None:
    """systemd-tmpfiles makes what the account may write to, and no more."""
    create(host)
    assert {
        each: owned(host / each) for each in ("var/log/rinetd.log", "var/log/fastfwd", "run/fastfwd")
    } == {
        "var/log/rinetd.log": (901, 4, 0o640),
        "var/log/fastfwd": (901, 4, 0o750),
        "run/fastfwd": (901, 902, 0o755),
    }
    assert owned(host / "etc/fastfwd") == owned(host / "var/log") == (0, 0, 0o755)


def test_rinetd_s_log_changes_hands(host: Path) -> None:
    """It keeps its lines."""
    log = host / "var/log/rinetd.log"
    log.write_text("a line\n")
    create(host)
    assert (log.read_text(), owned(log)) == ("a line\n", (901, 4, 0o640))
