"""A Debian of the test's own, installed from its packages and booted: apt, dpkg and systemd are real.

    base = debootstrap(directory)                       # a minute
    with Debian(base, tmp_path) as debian:              # half a second
        debian.run("apt-get", "install", "-y", "/root/fastfwd.deb")

It boots as machine.py does it; its files lie over those of `base`, which stays as it is.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import deadline
from tests.deploy.machine import Booted
from tests.peers import lack, require_peer, require_root

PACKAGES = ("python3", "systemd", "rinetd", "logrotate", "man-db")
"""What the packages depend on, replace, and are read with."""


def debootstrap(directory: Path, release: str = "", packages: Sequence[str] = PACKAGES) -> Path:
    """The files of a minimal Debian with `packages`, of this host's release unless another is named, from the
    archive that this host's apt knows."""
    require_root()
    ours = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    ).get("VERSION_CODENAME", "")
    targets = subprocess.run(
        [
            *(require_peer("apt-get"), "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)"),
            *("Created-By: Packages", "Label: Debian"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mirrors = [line.split()[2] for line in targets.splitlines() if line.split()[:2] == [ours, "main"]]
    if not mirrors:
        lack(f"apt knows no archive of Debian {ours}; after apt-get update it may")
    root = directory / "root"
    done = subprocess.run(
        [
            *(require_peer("debootstrap"), "--variant=minbase"),
            *([f"--include={','.join(packages)}"] if packages else []),
            *(release or ours, str(root), mirrors[0]),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(600),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


class Debian(Booted):
    """Booted when it is made."""

    own = 'ln -s /dev/null "$root/etc/systemd/system/systemd-modules-load.service"'

    def install(self, *packages: Path) -> str:
        """Have apt install package files of this host, without a question."""
        for each in packages:
            shutil.copy(each, self.path("/root"))
        return self.run("apt-get", "install", "-y", "-q", *(f"/root/{each.name}" for each in packages))

    def active(self, unit: str) -> bool:
        """Whether a unit runs."""
        return self.try_run("systemctl", "is-active", "--quiet", unit).returncode == 0

    def commands(self, unit: str) -> list[list[str]]:
        """The command line of each process of a unit, the main one's first; [] if there is none."""
        main = self.show(unit, "MainPID")
        group = self.show(unit, "ControlGroup")
        if not group:
            return []
        inside = self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()
        lines = [
            self.path(f"/proc/{number}/cmdline").read_text()
            for number in sorted(inside, key=lambda each: each != main)
        ]
        return [line.rstrip("\0").split("\0") for line in lines]
