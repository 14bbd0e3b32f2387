"""A machine of the test's own that systemd has booted: units run as an operator's would, for real.

    with Machine(tmp_path) as machine:
        machine.write("/etc/rinetd.conf", "...")
        machine.run("systemctl", "start", "fastfwd.service")

It is a set of namespaces on this host: systemd is process 1 of its own, with a network and a control group of
its own, and sees this host's files through an overlay: what is written there stays there. Only what a unit
asks for is started, so it is up within a second. Everything of it ends with its process 1.

debian.py has one with the files of another system.
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
from typing import Any, Self

import fastfwd
from tests import deadline, processes
from tests.deadline import until
from tests.peers import SYSTEM_PATH, lack, require_peer, require_root
from tests.system.namespaces import CLONE_NEWNET

TREE = Path(fastfwd.__file__).parents[1]

FILES = """
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
"""

BOOT = """
cd "$root"
exec chroot . env -i container=other PATH="$PATH" /lib/systemd/systemd --system --show-status=0
"""

OWN = """
# The program, wherever it is on this host: no home directory, and readable for everybody.
mkdir -p "$root/opt/fastfwd/tree" "$root/opt/fastfwd/python" "$root/opt/fastfwd/site"
mount --bind "$3" "$root/opt/fastfwd/tree"
mount --bind "$4" "$root/opt/fastfwd/python"
mount --bind "$5" "$root/opt/fastfwd/site"
# None of the units that this host has enabled, and of the early ones none at all.
rm -rf "$root/etc/systemd/system" "$root"/lib/systemd/system/*.wants "$root/lib/systemd/system-generators"
mkdir -p "$root/etc/systemd/system"
for each in sysinit basic network-online empty; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >"$root/etc/systemd/system/$each.target"
done
printf '[Unit]\\nDefaultDependencies=no\\nWants=systemd-journald.service\\n' \\
    >"$root/etc/systemd/system/default.target"
"""

COMMAND = """\
#!/bin/sh
export PYTHONPATH=/opt/fastfwd/tree:/opt/fastfwd/site PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/fastfwd/python/lib
exec /opt/fastfwd/python/bin/{python} -m {module} "$@"
"""


class Booted:
    """A system of the files in `base`: up when it is made. Needs root, and a hierarchy of control groups
    (version 2) to make one in."""

    own: str
    """Shell: what is done to its files, in `$root`, before it boots. `given` are `$3` and on."""

    given: tuple[str, ...] = ()

    cursor = ""
    """Where in its journal `said` begins."""

    def __init__(self, base: Path, directory: Path) -> None:
        require_root()
        for each in ("nsenter", "mount", "systemctl"):
            require_peer(each)
        self.group = control_group()
        self.console = directory / "console"
        place = directory / "machine"
        place.mkdir()
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "sh", str(self.group)),
                    *(require_peer("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--cgroup"),
                    *("--uts", "--ipc", "--net", "sh", "-c", FILES + self.own + BOOT, "sh"),
                    *(str(place), str(base), *self.given),
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

    # Inside

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

    def path(self, inside: str) -> Path:
        """A file of its own, as seen from here."""
        return self.root / inside.lstrip("/")

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={what}", unit).strip()

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
        for each in sorted((path for path in self.group.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                each.rmdir()
        with suppress(OSError):
            self.group.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Machine(Booted):
    """This host's files, and the program of this tree."""

    own = OWN
    given = (str(TREE), sys.base_prefix, sysconfig.get_path("purelib"))

    def __init__(self, directory: Path) -> None:
        super().__init__(Path("/"), directory)
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.write("/usr/local/sbin/fastfwd", COMMAND.format(python=python, module="fastfwd"), 0o755)

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

    # Units

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
