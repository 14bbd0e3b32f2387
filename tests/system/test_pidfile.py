"""The pid file of a running program: one instance, nobody else's file, gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartForwarder
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.peers import require_peer
from tests.ports import free_port


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the pid file is to be, in a directory of its own."""
    directory = tmp_path / "run"
    directory.mkdir()
    return directory / "fastfwd.pid"


def configuration(path: Path) -> str:
    """A forward and the pid file."""
    return f"127.0.0.1 {free_port()} 192.0.2.1 1\npidlogfile {path}\n"


def refused(path: Path, tmp_path: Path) -> str:
    """What a start that is refused says."""
    config = tmp_path / "refused.conf"
    config.write_text(configuration(path))
    done = run("-f", "-c", str(config))
    assert done.returncode == 1
    return done.stderr


def test_it_holds_the_supervisor_s_number(forwarder: StartForwarder, path: Path) -> None:
    """The number is that of the process which takes the signals."""
    running = forwarder(configuration(path))
    assert path.read_text() == f"{running.pid}\n"


def test_without_the_directive_there_is_none(forwarder: StartForwarder) -> None:
    """In the foreground a pid file is made only on request."""
    running = forwarder("127.0.0.1 0 192.0.2.1 1\n")
    held = Path("/var/run/rinetd.pid")
    assert not held.exists() or held.read_text() != f"{running.pid}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_it_is_removed_at_the_end(forwarder: StartForwarder, path: Path, number: signal.Signals) -> None:
    """However it is told to end, the file goes."""
    running = forwarder(configuration(path))
    assert running.stop(number) == 0
    assert os.listdir(path.parent) == []


def test_a_second_instance_is_refused(forwarder: StartForwarder, path: Path, tmp_path: Path) -> None:
    """With the file of a living instance a start is refused, naming the line and the process."""
    running = forwarder(configuration(path))
    said = refused(path, tmp_path)
    assert (
        said
        == f"fastfwd: {tmp_path}/refused.conf:2: pid file {path}: already running as process {running.pid}\n"
    )
    assert path.read_text() == f"{running.pid}\n"


def test_a_stale_file_is_replaced(forwarder: StartForwarder, path: Path) -> None:
    """The file of a program that is not running any more does not stop a start, even if its
    number now belongs to somebody else: here to this test."""
    path.write_text(f"{os.getpid()}\n")
    running = forwarder(configuration(path))
    assert path.read_text() == f"{running.pid}\n"


def test_a_killed_instance_can_be_followed(forwarder: StartForwarder, path: Path) -> None:
    """After kill -9 the file stays, and the next start takes it."""
    killed = forwarder(configuration(path))
    killed.expected_return = {-signal.SIGKILL}
    killed.stop(signal.SIGKILL)
    assert path.read_text() == f"{killed.pid}\n"
    running = forwarder(configuration(path))
    assert path.read_text() == f"{running.pid}\n"


def test_the_lock_is_the_supervisor_s_alone(forwarder: StartForwarder, path: Path) -> None:
    """A worker that outlives a killed supervisor does not hold its lock."""
    killed = forwarder(configuration(path))
    killed.expected_return = {-signal.SIGKILL}
    workers = list(killed.workers().values())
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    killed.stop(signal.SIGKILL)
    forwarder(configuration(path))


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    """A link is not followed, and what it points to is not touched (rinetd overwrites it)."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    assert f"pid file {path}: it is a symbolic link" in refused(path, tmp_path)
    assert victim.read_text() == "precious"
    assert path.is_symlink()


def test_it_stays_over_reloads(forwarder: StartForwarder, path: Path) -> None:
    """Ten reloads do not touch it: the same file, the same number."""
    running = forwarder(configuration(path))
    inode = path.stat().st_ino
    for _ in range(10):
        running.reload()
    assert path.stat().st_ino == inode
    assert path.read_text() == f"{running.pid}\n"


def test_a_reload_does_not_move_it(forwarder: StartForwarder, path: Path) -> None:
    """A changed `pidlogfile` takes effect at the next start, and the reload says so."""
    running = forwarder(configuration(path))
    running.reload(configuration(path.with_name("other.pid")))
    assert running.said("pidlogfile takes effect at the next start") == 1
    assert os.listdir(path.parent) == ["fastfwd.pid"]
    assert running.stop() == 0
    assert os.listdir(path.parent) == []


def test_another_process_s_file_is_not_removed(forwarder: StartForwarder, path: Path) -> None:
    """If somebody has put another file in its place, that one stays."""
    running = forwarder(configuration(path))
    path.unlink()
    path.write_text("1\n")
    assert running.stop() == 0
    assert path.read_text() == "1\n"


def test_a_deleted_file_does_not_matter(forwarder: StartForwarder, path: Path) -> None:
    """If somebody has deleted it, the end is still clean."""
    running = forwarder(configuration(path))
    path.unlink()
    assert running.stop() == 0


def test_a_place_that_cannot_be_written(forwarder: StartForwarder, path: Path) -> None:
    """A pid file that cannot be written is a warning: forwarding is more important."""
    missing = path.parent / "missing" / "pid"
    running = forwarder(configuration(missing))
    assert running.said(f"cannot write the pid file {missing}: No such file or directory") == 1


def test_a_refused_start_leaves_none(path: Path, tmp_path: Path) -> None:
    """A start that fails after the file was written takes it away again."""
    config = tmp_path / "refused.conf"
    config.write_text(f"192.0.2.1 {free_port()} 192.0.2.2 1\npidlogfile {path}\n")
    assert run("-f", "-c", str(config)).returncode == 1
    assert os.listdir(path.parent) == []


def test_two_starts_at_once_are_one(path: Path, tmp_path: Path) -> None:
    """Of two instances started together with a stale file in place exactly one runs."""
    path.write_text("1\n")
    both = [Forwarder(tmp_path, configuration(path), ready=False) for _ in range(2)]
    try:

        def ended() -> list[Forwarder]:
            assert not all(each.said("ready:") for each in both)
            return [each for each in both if not each.running()]

        (loser,) = until(ended, what="one to give up")
        assert loser.process.returncode == 1
        assert loser.said("already running") + loser.said("has just taken it") == 1
        (winner,) = (each for each in both if each is not loser)
        winner.wait_ready()
        assert path.read_text() == f"{winner.pid}\n"
        assert winner.stop() == 0
    finally:
        for each in both:
            each.kill()


def test_a_start_that_was_overtaken_gives_up(forwarder: StartForwarder, path: Path, tmp_path: Path) -> None:
    """A start that finds a stale file, and before it can lock it is overtaken by another, does
    not take the other's file for the stale one."""
    path.write_text("1\n")
    trace = tmp_path / "trace"
    slow = [require_peer("strace"), "-o", str(trace), "-e", "trace=openat,flock"]
    delay = ["-e", "inject=flock:delay_enter=1500000:when=1"]
    late = Forwarder(tmp_path, configuration(path), command=[*slow, *delay], ready=False)
    try:
        until(
            lambda: trace.exists() and f'"{path}", O_RDONLY' in trace.read_text(),
            what="the file to be opened",
        )
        running = forwarder(configuration(path))
        until(lambda: late.said("ready:") or not late.running(), what="the late one's decision")
        assert path.read_text() == f"{running.pid}\n"
        assert late.wait(1) == 1
    finally:
        late.kill()


def test_the_number_is_there_when_it_is_ready(tmp_path: Path, path: Path) -> None:
    """A reader never finds the file empty or half written."""
    running = Forwarder(tmp_path, configuration(path), ready=False)
    try:
        found: list[str] = []
        while not running.said("ready:"):
            assert running.running()
            try:
                found.append(path.read_text())
            except FileNotFoundError:
                continue
        assert set(found) == {f"{running.pid}\n"}
    finally:
        running.close()


def test_it_is_not_inherited(forwarder: StartForwarder, path: Path) -> None:
    """No worker has it open."""
    running = forwarder(configuration(path))
    for pid in running.workers().values():
        done = subprocess.run(["ls", "-l", f"/proc/{pid}/fd"], capture_output=True, text=True, check=True)
        assert str(path) not in done.stdout
