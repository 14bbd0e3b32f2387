"""The pid file as such: the lock, the number, and what it must not touch."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from fastfwd.supervisor.pidfile import PidFile, PidFileError
from tests import processes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is to be, in a directory of its own."""
    return tmp_path / "pid"


def test_it_holds_our_number(path: Path) -> None:
    """The pid and a newline, readable for everybody, and nothing else in the directory."""
    before = os.umask(0o022)
    try:
        held = PidFile(str(path))
    finally:
        os.umask(before)
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["pid"]
    held.remove()


def test_it_is_removed(path: Path) -> None:
    """`remove` leaves nothing behind."""
    PidFile(str(path)).remove()
    assert os.listdir(path.parent) == []


def test_a_held_file_is_refused_with_its_holder(path: Path) -> None:
    """While somebody holds the lock nobody else gets it, and hears who it is."""
    held = PidFile(str(path))
    with pytest.raises(PidFileError, match=f"already running as process {os.getpid()}"):
        PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    assert os.listdir(path.parent) == ["pid"]
    held.remove()


@pytest.mark.parametrize("content", ["1\n", "999999999\n", "", "nonsense", "x" * 100_000])
def test_a_stale_file_is_replaced(path: Path, content: str) -> None:
    """A file nobody holds is replaced, whoever's number it has: numbers are reused."""
    path.write_text(content)
    held = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    held.remove()
    assert os.listdir(path.parent) == []


def test_the_lock_ends_with_its_process(path: Path) -> None:
    """A holder that was killed leaves a file that can be taken."""
    pid = os.fork()
    if pid == 0:
        PidFile(str(path))
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    PidFile(str(path)).remove()


@pytest.mark.parametrize("dangling", [True, False])
def test_a_symbolic_link_is_refused(path: Path, dangling: bool) -> None:
    """A link is never followed: what it points to is neither written nor made."""
    victim = path.with_name("victim")
    if not dangling:
        victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(PidFileError, match="symbolic link"):
        PidFile(str(path))
    assert path.is_symlink()
    assert victim.exists() is not dangling
    assert dangling or victim.read_text() == "precious"
    assert len(os.listdir(path.parent)) == 2 - dangling


def test_a_hard_link_is_not_written_through(path: Path) -> None:
    """A stale file is replaced, not overwritten: another name of it keeps its content."""
    victim = path.with_name("victim")
    victim.write_text("precious")
    os.link(victim, path)
    held = PidFile(str(path))
    assert victim.read_text() == "precious"
    held.remove()


def test_another_file_is_not_removed(path: Path) -> None:
    """When somebody has put another file in its place, `remove` leaves it there."""
    held = PidFile(str(path))
    path.unlink()
    path.write_text("1\n")
    held.remove()
    assert path.read_text() == "1\n"


def test_a_missing_file_can_be_removed(path: Path) -> None:
    """Somebody has deleted it: nothing to do."""
    held = PidFile(str(path))
    path.unlink()
    held.remove()


def test_a_child_that_lets_go_does_not_unlock(path: Path) -> None:
    """A forked child drops its copy; the lock stays with the parent."""
    held = PidFile(str(path))
    pid = os.fork()
    if pid == 0:
        held.abandon()
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(PidFileError):
        PidFile(str(path))
    held.remove()


def test_a_fifo_does_not_block(path: Path) -> None:
    """A named pipe in its place is replaced or refused, and nobody waits for a writer."""
    os.mkfifo(path)
    try:
        PidFile(str(path)).remove()
    except (PidFileError, OSError):
        assert stat.S_ISFIFO(path.lstat().st_mode)


@pytest.mark.parametrize("place", ["missing/pid", "."])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """A directory that is not there, or a directory in its place, is an OSError and leaves nothing."""
    with pytest.raises(OSError, match=r"No such file|Is a directory|resource busy|not empty|File exists"):
        PidFile(str(tmp_path / place))
    assert os.listdir(tmp_path) == []


def test_the_descriptor_is_not_inherited(path: Path) -> None:
    """No program that we might start keeps the lock."""
    held = PidFile(str(path))
    (descriptor,) = (
        number
        for number in processes.descriptors(os.getpid())
        if os.path.exists(f"/proc/self/fd/{number}") and os.path.samestat(os.fstat(number), path.stat())
    )
    assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    held.remove()
