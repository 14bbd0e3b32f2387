"""A Debian of the test's own, installed from its packages and booted: apt, dpkg and systemd are real.

    base = debootstrap(directory)                       # a minute
    with Debian(base, tmp_path) as debian:              # half a second
        debian.run("apt-get", "install", "-y", "/root/fastfwd.deb")

It is a set of namespaces on this host, with a network, processes and a control group of its own; its
files lie over those of `base`, which stays as it is. Everything of it ends with its process 1.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import deadline, processes
from tests.deadline import until
from tests.peers import SYSTEM_PATH, lack, require_peer, require_root
from tests.system.namespaces import CLONE_NEWNET

PACKAGES = ("python3", "systemd", "rinetd", "logrotate", "man-db")
"""What the packages depend on, replace, and are read with."""

BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 none "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o "lowerdir=$2,upperdir=upper,workdir=work" none root
root=$PWD/root
mount -t proc none "$root/proc"
# The kernel is this host's: its settings and modules are not to be touched.
mount --bind -o ro "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
ln -s /dev/null "$root/etc/systemd/system/systemd-modules-load.service"
mount -t sysfs -o ro none "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
for each in run tmp dev; do mount -t tmpfs -o mode=0755 none "$root/$each"; done
chmod 1777 "$root/tmp"
for each in null zero full random urandom tty; do
    touch "$root/dev/$each"
    mount --bind "/dev/$each" "$root/dev/$each"
done
mkdir -m 1777 "$root/dev/shm"
mkdir "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 none "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
: >"$root/etc/machine-id"
cd "$root"
exec chroot . env -i container=other PATH="$PATH" /lib/systemd/systemd --system --show-status=0
"""


def debootstrap(directory: Path) -> Path:
    """The files of a minimal Debian of this host's release with `PACKAGES`, from this host's archive."""
    require_root()
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    ).get("VERSION_CODENAME")
    targets = subprocess.run(
        [
            *(require_peer("apt-get"), "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)"),
            *("Created-By: Packages", "Label: Debian"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mirrors = [line.split()[2] for line in targets.splitlines() if line.split()[:2] == [release, "main"]]
    if not mirrors:
        lack(f"apt knows no archive of Debian {release}; after apt-get update it may")
    root = directory / "root"
    done = subprocess.run(
        [
            *(require_peer("debootstrap"), "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(str(release), str(root), mirrors[0]),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(600),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


class Debian:
    """Booted when it is made. Needs root, and a hierarchy of control groups (version 2) to make one in."""

    def __init__(self, base: Path, directory: Path) -> None:
        require_root()
        self.group = control_group()
        self.console = directory / "console"
        place = directory / "debian"
        place.mkdir()
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(self.group)),
                    *(require_peer("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--cgroup"),
                    *("--uts", "--ipc", "--net", "sh", "-c", BOOT, "sh", str(place), str(base)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "PATH": SYSTEM_PATH},
            )
        self.thread = ThreadPoolExecutor(1)
        try:
            self.init: int = until(self._booted, 30, "systemd is up")
            self.root = Path(f"/proc/{self.init}/root")
            self.call(self._enter_network)
            self.call(subprocess.run, [require_peer("ip"), "link", "set", "lo", "up"], check=True)
        except BaseException:
            self.close()
            raise

    def _booted(self) -> int:
        """The first process inside, once everything that is enabled has been started."""
        assert self.process.poll() is None, self.console.read_text()
        for child in processes.children(self.process.pid):
            if child.comm != "systemd":
                continue
            self.init = child.pid
            if self.try_run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"}:
                return child.pid
        return 0

    def _enter_network(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.init}/ns/net", "rb") as network:
            if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def call(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do `work(*arguments, **options)` in its network, and return the result."""
        return self.thread.submit(work, *arguments, **options).result()

    def try_run(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, to its end."""
        return subprocess.run(
            [*("nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(seconds),
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )

    def run(self, *command: str) -> str:
        """What a command wrote to standard output. Fails if the command does."""
        done = self.try_run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.said()}"
        return done.stdout

    def install(self, *packages: Path) -> str:
        """Have apt install package files of this host, without a question."""
        for each in packages:
            shutil.copy(each, self.path("/root"))
        return self.run("apt-get", "install", "-y", "-q", *(f"/root/{each.name}" for each in packages))

    def path(self, inside: str) -> Path:
        """A file of its own, as seen from here."""
        return self.root / inside.lstrip("/")

    def active(self, unit: str) -> bool:
        """Whether a unit runs."""
        return self.try_run("systemctl", "is-active", "--quiet", unit).returncode == 0

    def commands(self, unit: str) -> list[list[str]]:
        """The command line of each process of a unit, the main one's first; [] if there is none."""
        main = self.run("systemctl", "show", "--value", "--property=MainPID", unit).strip()
        group = self.run("systemctl", "show", "--value", "--property=ControlGroup", unit).strip()
        if not group:
            return []
        inside = self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()
        lines = [
            self.path(f"/proc/{number}/cmdline").read_text()
            for number in sorted(inside, key=lambda each: each != main)
        ]
        return [line.rstrip("\0").split("\0") for line in lines]

    def said(self) -> str:
        """What the journal has."""
        return self.try_run("journalctl", "--no-pager", "-q", "-o", "cat").stdout

    def close(self) -> None:
        """Everything in it is killed; what it wrote is gone."""
        self.thread.shutdown()
        for child in processes.children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child.pid, 9)  # process 1 takes all others along (pid_namespaces(7))
        self.process.wait(deadline.seconds(20))
        for each in sorted((path for path in self.group.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                each.rmdir()
        with suppress(OSError):
            self.group.rmdir()

    def __enter__(self) -> Debian:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def control_group() -> Path:
    """A new control group, beside whatever this host has; without the right to that the test is skipped."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            made = Path(where) / f"fastfwd-test-{uuid.uuid4()}"
            try:
                made.mkdir()
            except OSError:
                continue
            return made
    return lack("needs a hierarchy of control groups, version 2, that may be written to")
