"""A machine of the test's own that systemd has booted: units run as an operator's would, for real.

    with Machine(tmp_path) as machine:
        machine.write("/etc/rinetd.conf", "...")
        machine.run("systemctl", "start", "fastfwd.service")

It is a set of namespaces on this host: systemd is process 1 of its own, with a network and a control group of
its own, and sees this host's files through an overlay: what is written there stays there. Only what a unit
asks for is started, so it is up within a second. Everything of it ends with its process 1.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fastfwd
from tests import deadline, processes
from tests.deadline import until
from tests.peers import SYSTEM_PATH, lack, require_peer, require_root
from tests.system.namespaces import CLONE_NEWNET

TREE = Path(fastfwd.__file__).parents[1]

BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 none "$1"
cd "$1"
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root
root=$PWD/root
mount -t proc none "$root/proc"
mount -t sysfs none "$root/sys"
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
# The program, wherever it is on this host: no home directory, and readable for everybody.
mkdir -p "$root/opt/fastfwd/tree" "$root/opt/fastfwd/python" "$root/opt/fastfwd/site"
mount --bind "$2" "$root/opt/fastfwd/tree"
mount --bind "$3" "$root/opt/fastfwd/python"
mount --bind "$4" "$root/opt/fastfwd/site"
# None of the units that this host has enabled, and of the early ones none at all.
rm -rf "$root/etc/systemd/system" "$root"/lib/systemd/system/*.wants "$root/lib/systemd/system-generators"
mkdir -p "$root/etc/systemd/system"
for each in sysinit basic network-online empty; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"$root/etc/systemd/system/$each.target"
done
printf '[Unit]\\nDefaultDependencies=no\\nWants=systemd-journald.service\\n' \\
    >"$root/etc/systemd/system/up.target"
: >"$root/etc/machine-id"
cd "$root"
exec chroot . env -i container=test PATH="$PATH" /lib/systemd/systemd --system --unit=up.target \\
    --show-status=0
"""

COMMAND = """\
#!/bin/sh
export PYTHONPATH=/opt/fastfwd/tree:/opt/fastfwd/site PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/fastfwd/python/lib
exec /opt/fastfwd/python/bin/{python} -m {module} "$@"
"""


class Machine:
    """Up when it is made. Needs root, and a hierarchy of control groups (version 2) to make one in."""

    def __init__(self, directory: Path) -> None:
        require_root()
        for each in ("unshare", "nsenter", "mount", "systemctl"):
            require_peer(each)
        self.group = control_group()
        self.cursor = ""
        self.console = directory / "console"
        place = directory / "machine"
        place.mkdir()
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(self.group)),
                    *(require_peer("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--cgroup"),
                    *("--uts", "--ipc", "--net", "sh", "-c", BOOT, "sh", str(place)),
                    *(str(TREE), sys.base_prefix, sysconfig.get_path("purelib")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "PATH": SYSTEM_PATH},
            )
        self.thread = ThreadPoolExecutor(1)
        try:
            self.init: int = until(self._booted, 20, "systemd is up")
            self.root = Path(f"/proc/{self.init}/root")
            self.call(self._enter_network)
            self.run("ip", "link", "set", "lo", "up")
            self._install()
        except BaseException:
            self.close()
            raise

    def _booted(self) -> int:
        """The process that is the machine's first, once systemd answers there."""
        assert self.process.poll() is None, self.console.read_text()
        for child in processes.children(self.process.pid):
            if child.comm != "systemd":
                continue
            self.init = child.pid
            if self.try_run("systemctl", "is-active", "--quiet", "up.target").returncode == 0:
                return child.pid
        return 0

    def _enter_network(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.init}/ns/net", "rb") as network:
            if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def _install(self) -> None:
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.write("/usr/local/sbin/fastfwd", COMMAND.format(python=python, module="fastfwd"), 0o755)

    # Inside

    def call(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do `work(*arguments, **options)` in the machine's network, and return its result."""
        return self.thread.submit(work, *arguments, **options).result()

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end."""
        return subprocess.run(
            [*("nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(30),
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"},
        )

    def run(self, *command: str) -> str:
        """What a command wrote. Fails if the command does."""
        done = self.try_run(*command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.said()}"
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file there."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
        target.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """Put a copy of a file of the tree there, as install(1) does."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)

    def path(self, inside: str) -> Path:
        """A file of the machine's, as seen from here."""
        return self.root / inside.lstrip("/")

    # Units

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={what}", unit).strip()

    def main(self, unit: str) -> int:
        """The unit's main process, by its number on this host."""
        inside = self.show(unit, "MainPID")
        for found in processes.all_stats():
            with suppress(OSError):
                lines = Path(f"/proc/{found.pid}/status").read_text().splitlines()
                numbers = next(line.split()[1:] for line in lines if line.startswith("NSpid:"))
                if len(numbers) > 1 and numbers[-1] == inside and self._is_mine(found.pid):
                    return found.pid
        raise AssertionError(f"{unit} has no process {inside}")

    def _is_mine(self, pid: int) -> bool:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.init}/ns/pid")

    def said(self, unit: str | None = None) -> str:
        """What the journal has, of a unit or of all, since it was forgotten last."""
        which = [] if unit is None else ["-u", unit]
        since = [f"--after-cursor={self.cursor}"] if self.cursor else []
        return self.try_run("journalctl", "--no-pager", "-q", "-o", "cat", *which, *since).stdout

    def forget(self) -> None:
        """Leave out what the journal has had so far."""
        self.run("journalctl", "--sync")
        shown = self.run("journalctl", "--no-pager", "-q", "-n", "0", "--show-cursor")
        self.cursor = shown.partition("cursor: ")[2].strip()

    # The end

    def close(self) -> None:
        """Everything in it is killed; what it wrote is gone."""
        self.thread.shutdown()
        for child in processes.children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child.pid, 9)  # process 1 takes all others along (pid_namespaces(7))
        self.process.wait(deadline.seconds(20))
        for each in sorted(self.group.rglob("*"), reverse=True):
            if each.is_dir():
                with suppress(OSError):
                    each.rmdir()
        with suppress(OSError):
            self.group.rmdir()

    def __enter__(self) -> Machine:
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
