"""SIGUSR2: another program takes the listening sockets over, and nobody who connects notices.

The new program is the same code unless a test says otherwise; what is tried is that everything goes to it,
that sessions stay where they are, and that one that does not start changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import fastfwd
from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.datagrams import LARGEST, UdpBackend, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.load import Load
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.servers import banner, echo, serve_apart
from tests.sockets import connect, read_exactly
from tests.system.metrics import answers, scrape, status, total
from tests.system.sites import HOST, StartSite, all_greet, greeting, lives, session

FAILED = "upgrade failed:"


def figure(port: int, name: str) -> float:
    """What the exporter says of a metric."""
    return total(scrape(f"http://{HOST}:{port}/"), name)


def sockets(pid: int, port: int) -> set[str]:
    """Inodes of the sockets that listen on `port`, of those that `pid` has open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {row[9] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    return {text[8:-1] for text in processes.descriptors(pid).values() if text[8:-1] in listening}


def ended(pid: int) -> bool:
    """Whether the process is gone, or waits only to be collected."""
    return not processes.alive(pid)


# What the new program has.


def test_new_clients_are_the_new_programs(site: StartSite) -> None:
    """They are served, by workers that are its children."""
    here = site("logformat json\n")
    old = here.forwarder.pid
    new = here.forwarder.upgrade()
    assert new != old
    until(lambda: ended(old), what="the end of the program that has no session")
    assert all_greet(here.address, "one")


def test_the_sockets_are_the_same(site: StartSite) -> None:
    """None is closed and opened again: what waits in one of them waits on."""
    here = site()
    before = sockets(here.forwarder.pid, here.port)
    here.forwarder.upgrade()
    assert sockets(here.forwarder.pid, here.port) == before
    assert len(before) == 2


def test_a_port_of_the_kernels_choice_stays(site: StartSite, backend: StartServer) -> None:
    """A forward on port 0 has the port that it had."""
    one, two = backend(banner, "one"), backend(banner, "two")
    here = site(f"{HOST} 0 {one.host} {one.port}\n{HOST} 0 {two.host} {two.port}\n")

    def ports() -> dict[int, str]:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        own = {text[8:-1] for text in processes.descriptors(here.forwarder.pid).values()}
        found = {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in own}
        return {port: greeting((HOST, port)) for port in found}

    before = ports()
    here.forwarder.upgrade()
    assert ports() == before
    assert sorted(before.values()) == ["one", "one", "two"]


def test_who_waits_in_the_queue_is_served(site: StartSite) -> None:
    """Clients that no worker has accepted, and whose workers are killed, are the new program's."""
    here = site()
    with processes.stopped(*here.forwarder.workers().values()), ExitStack() as stack:
        old = list(here.forwarder.workers().values())
        waiting = [stack.enter_context(connect(here.address)) for _ in range(20)]
        here.forwarder.upgrade()
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        assert [read_exactly(each, 3) for each in waiting] == [b"one"] * 20


def test_the_configuration_is_read_anew(site: StartSite) -> None:
    """Forwards may come, go and lead elsewhere."""
    here = site()
    other = free_port()
    here.forwarder.configure(here.line(here.port, "two") + here.line(other))
    here.forwarder.upgrade()
    assert (greeting(here.address), greeting((HOST, other))) == ("two", "one")


def test_a_removed_forward_refuses(site: StartSite) -> None:
    """Its socket is closed once the old program has let go of it too."""
    here = site()
    other = free_port()
    here.forwarder.configure(here.line(other))
    here.forwarder.upgrade()
    until(lambda: greeting(here.address) == "refused", what="a closed port")


def test_an_address_is_swapped_for_a_wildcard(site: StartSite) -> None:
    """The new program may bind a port whose old socket, elsewhere on the host, it has inherited."""
    here = site()
    here.forwarder.configure(here.line(here.port, "two", "0.0.0.0"))
    here.forwarder.upgrade()
    until(lambda: all_greet(here.address, "two"), what="the new forward alone")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_may_change(site: StartSite, workers: int) -> None:
    """Which a reload cannot do. Everybody is served by fewer, and by more."""
    here = site()
    here.forwarder.configure(here.line(here.port) + f"workers {workers}\n")
    old = here.forwarder.pid
    here.forwarder.upgrade()
    until(lambda: ended(old), what="the end of the old program")
    assert sorted(here.forwarder.workers()) == list(range(workers))
    assert len(sockets(here.forwarder.pid, here.port)) == workers
    assert all_greet(here.address, "one")


def test_a_unix_sockets_file_stays(site: StartSite, tmp_path: Path) -> None:
    """It is the same file, and it goes with the new program, not with the old one."""
    path = tmp_path / "socket"
    here = site()
    here.forwarder.reload(here.line(here.port) + f"unix:{path} {here.one.host} {here.one.port}\n")
    before, old = path.lstat().st_ino, here.forwarder.pid
    here.forwarder.upgrade()
    until(lambda: ended(old), what="the end of the old program")
    assert path.lstat().st_ino == before
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(deadline.seconds(10))
        client.connect(str(path))
        assert read_exactly(client, 3) == b"one"
    here.forwarder.stop()
    assert not path.exists()


def test_the_pid_file_moves(site: StartSite, tmp_path: Path) -> None:
    """It has the new number, is locked by the new program, and is gone with it."""
    path = tmp_path / "pid"
    here = site(f"pidlogfile {path}\n")
    old = here.forwarder.pid
    here.forwarder.upgrade()
    until(lambda: ended(old), what="the end of the old program")
    assert path.read_text() == f"{here.forwarder.pid}\n"
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    here.forwarder.stop()
    assert not path.exists()


def test_the_pid_file_may_move_to_another_place(site: StartSite, tmp_path: Path) -> None:
    """The old one does not stay behind."""
    before, after = tmp_path / "before", tmp_path / "after"
    here = site(f"pidlogfile {before}\n")
    here.forwarder.configure(here.line(here.port) + f"pidlogfile {after}\n")
    here.forwarder.upgrade()
    assert after.read_text() == f"{here.forwarder.pid}\n"
    assert not before.exists()


def test_a_second_copy_is_kept_out_all_the_while(site: StartSite, tmp_path: Path) -> None:
    """Whoever starts the program again after an upgrade is told that it runs."""
    path = tmp_path / "pid"
    here = site(f"pidlogfile {path}\n")
    here.forwarder.upgrade()
    second = run("-f", "-c", str(here.forwarder.config_path))
    assert second.returncode == 1
    assert f"already running as process {here.forwarder.pid}" in second.stderr


def test_metrics_are_the_new_programs(site: StartSite) -> None:
    """On the same port, with the number of upgrades, and nothing counted twice."""
    port = free_port()
    here = site(f"metrics {HOST}:{port}\n")
    assert greeting(here.address) == "one"
    here.forwarder.upgrade()
    until(lambda: figure(port, "upgrades_total") == 1, what="the new exporter alone")
    assert figure(port, "upgrade_failures_total") == 0


def test_it_is_ready_all_the_while(site: StartSite) -> None:
    """Whoever asks /readyz for whether to send clients here is never told that nobody serves."""
    port = free_port()
    here = site(f"metrics {HOST}:{port}\n")
    told: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            told.append(answers(f"http://{HOST}:{port}/", "/readyz"))

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(3):
        here.forwarder.upgrade()
        enough = len(told) + 5
        until(lambda enough=enough: len(told) > enough, what="more answers")  # type: ignore[misc]
    done.set()
    asking.join()
    assert set(told) == {200}


def test_nothing_of_the_old_program_stays_open(site: StartSite, tmp_path: Path) -> None:
    """After five upgrades the new one holds what the first one held."""
    here = site(f"metrics {HOST}:{free_port()}\npidlogfile {tmp_path / 'pid'}\n")
    before = sorted(text.partition(":")[0] for text in processes.descriptors(here.forwarder.pid).values())
    for _ in range(5):
        old = here.forwarder.pid
        here.forwarder.upgrade()
        until(lambda gone=old: ended(gone), what="the end of the old program")  # type: ignore[misc]
    until(
        lambda: len(processes.descriptors(here.forwarder.pid)) <= len(before) + 1,
        what=f"no more than the link beside {before}",
    )


def test_its_children_have_nothing_of_the_upgrade(site: StartSite) -> None:
    """Neither the terminal that the program was started on, nor the old program's pipe."""
    here = site()
    here.forwarder.upgrade()
    here.forwarder.reload()
    stderr = os.stat(here.forwarder.stderr_path)
    for pid in here.forwarder.workers().values():
        for number in processes.descriptors(pid):
            found = os.stat(f"/proc/{pid}/fd/{number}")
            assert (found.st_dev, found.st_ino) != (stderr.st_dev, stderr.st_ino)


# What becomes of sessions.


def test_sessions_go_on(site: StartSite) -> None:
    """In the old program, which ends with the last of them."""
    here = site()
    old = here.forwarder.pid
    with session(here.address) as client:
        here.forwarder.upgrade()
        assert lives(client)
        assert not ended(old)
    until(lambda: ended(old), what="the end of the old program")
    assert here.forwarder.process.wait(deadline.seconds(10)) == 0


def test_what_is_left_is_shown(site: StartSite) -> None:
    """Sessions of the programs before are in a metric of the new one, through two upgrades."""
    port = free_port()
    here = site(f"metrics {HOST}:{port}\n")

    def left() -> float:
        return figure(port, "previous_sessions")

    with session(here.address):
        here.forwarder.upgrade()
        with session(here.address), session(here.address):
            here.forwarder.upgrade()
            until(lambda: left() == 3, what="three sessions")
    until(lambda: left() == 0, what="none")


def test_a_stop_ends_the_old_sessions_too(site: StartSite) -> None:
    """With their lines in the log."""
    here = site()
    with session(here.address):
        old = here.forwarder.pid
        here.forwarder.upgrade()
        here.forwarder.stop()
        assert ended(old)
    assert [line.rpartition("\t")[2] for line in here.forwarder.log_lines()] == [
        "opened",
        "done-local-closed",
    ]


def test_a_drain_waits_for_the_old_sessions_too(site: StartSite) -> None:
    """The program has ended when the last session of all has."""
    here = site()
    with session(here.address) as client:
        here.forwarder.upgrade()
        here.forwarder.send(signal.SIGUSR1)
        until(lambda: greeting(here.address) == "refused", what="a closed port")
        assert lives(client)
        assert here.forwarder.running()
    here.forwarder.wait()


def test_a_rotation_reaches_the_old_sessions(site: StartSite) -> None:
    """Their last lines are in the new log after a HUP to the new program."""
    here = site()
    with session(here.address):
        here.forwarder.upgrade()
        here.forwarder.log_path.rename(here.forwarder.log_path.with_suffix(".1"))
        here.forwarder.reload()
        until(here.forwarder.log_path.exists, what="the new log")
        old = here.forwarder.process.pid
        renamed = str(here.forwarder.log_path.with_suffix(".1"))
        family = [old, *(child.pid for child in processes.children(old))]
        until(
            lambda: not any(renamed in processes.descriptors(pid).values() for pid in family),
            what="nobody with the old log",
        )
    here.forwarder.wait_log(1, "done-remote-closed")


def test_flows_get_late_answers(forwarder: StartForwarder) -> None:
    """What a backend answers to a datagram from before the upgrade arrives; what the client sends
    then is the new program's."""
    told: list[tuple[bytes, tuple[str, int]]] = []
    with UdpBackend(lambda data: [] if data == b"late" else [data]) as behind:
        port = free_port()
        running = forwarder(f"{HOST} {port}/udp {behind.host} {behind.port}/udp [timeout=5]\n")
        old = running.pid
        with udp_client((HOST, port)) as client:
            client.send(b"late")
            until(lambda: behind.seen, what="the datagram")
            told += behind.seen
            running.upgrade()
            behind.socket.sendto(b"answer", told[0][1])
            assert client.recv(LARGEST) == b"answer"
            client.send(b"new")
            assert client.recv(LARGEST) == b"new"
            assert len(behind.senders()) == 2
        until(lambda: ended(old), 20, "the end of the old program, with its flow")


def test_datagrams_are_answered_by_fewer_workers(forwarder: StartForwarder) -> None:
    """No client is led to a socket that the old program has left open and nobody reads."""
    with UdpBackend() as behind:
        port = free_port()
        line = f"{HOST} {port}/udp {behind.host} {behind.port}/udp [timeout=1]\n"
        running = forwarder(line, workers=3)
        old = running.pid
        for _ in range(10):
            with udp_client((HOST, port)) as client:  # a flow on every worker, most likely
                client.send(b"before")
                assert client.recv(LARGEST) == b"before"
        running.configure(line + "workers 1\n")
        running.upgrade()
        until(lambda: ended(old), 20, "the end of the old program")
        for _ in range(20):
            with udp_client((HOST, port)) as client:
                client.send(b"after")
                assert client.recv(LARGEST) == b"after"


# Under load.


def test_nobody_is_lost_by_upgrades(tmp_path: Path) -> None:
    """Of 300 connections per second none is refused, reset or cut short by five upgrades, and streams
    that live through all of them have every byte echoed."""
    port = free_port()
    with ExitStack() as stack:
        behind = stack.enter_context(serve_apart("echo"))
        config = f"{HOST} {port} {behind.host} {behind.port}\n"
        running = stack.enter_context(Forwarder(tmp_path, config, workers=2))
        load = stack.enter_context(Load((HOST, port), 300))
        load.open_streams(4)
        for _ in range(5):
            load.more(100)
            running.upgrade()
        load.more(100)
        load.stop()
    assert len(load.calls) >= 600
    assert load.failed() == []
    assert [each for each in load.streams if each.how != "ok" or each.verified != each.sent] == []


# A new program that does not serve.


@contextmanager
def still_serving(running: Forwarder, port: int, address: tuple[str, int]) -> Iterator[None]:
    """Inside the block an upgrade fails. A session and the old program go on, and it is counted."""
    old = running.pid
    with session(address) as client:
        yield
        running.wait_said(FAILED, seconds=20)
        assert lives(client)
    assert all_greet(address, "one")
    assert running.pid == old
    until(lambda: figure(port, "upgrade_failures_total") == 1, what="the metric")


def test_a_configuration_that_is_wrong(site: StartSite) -> None:
    """The old program says what the new one has said, and with what status it has ended."""
    port = free_port()
    here = site(f"metrics {HOST}:{port}\n")
    with still_serving(here.forwarder, port, here.address):
        here.forwarder.configure(here.line(here.port) + "nonsense\n")
        here.forwarder.send(signal.SIGUSR2)
    said = here.forwarder.stderr()
    assert re.search(r"process \d+: .*rinetd\.conf:2: expected .*found 'nonsense'", said), said
    assert re.search(r"upgrade failed: process \d+ exited with status 1; this program goes on", said), said


def test_a_port_that_is_taken(site: StartSite) -> None:
    """By somebody else: the old program's own are not in the way."""
    port = free_port()
    here = site(f"metrics {HOST}:{port}\n")
    with socket.create_server((HOST, 0)) as other, still_serving(here.forwarder, port, here.address):
        taken = other.getsockname()[1]
        here.forwarder.configure(here.line(here.port) + here.line(taken))
        here.forwarder.send(signal.SIGUSR2)
    assert here.forwarder.said(f"cannot listen on {HOST}:{taken}/tcp: Address already in use") == 1


def test_a_unix_sockets_file_outlives_a_failed_upgrade(site: StartSite, tmp_path: Path) -> None:
    """The new program's end takes nothing with it that is the old one's."""
    path, port = tmp_path / "socket", free_port()
    here = site(f"unix:{path} 127.0.0.1 1\nmetrics {HOST}:{port}\npidlogfile {tmp_path / 'pid'}\n")
    with socket.create_server((HOST, 0)) as other, still_serving(here.forwarder, port, here.address):
        more = f"unix:{path} 127.0.0.1 1\n" + here.line(other.getsockname()[1])
        here.forwarder.configure(here.line(here.port) + more + f"pidlogfile {tmp_path / 'pid'}\n")
        here.forwarder.send(signal.SIGUSR2)
    assert path.is_socket()
    assert (tmp_path / "pid").read_text() == f"{here.forwarder.pid}\n"


def test_a_program_that_is_broken(site: StartSite, tmp_path: Path) -> None:
    """Another version that cannot even be imported: its traceback is in the old one's log."""
    copy, port = tmp_path / "copy" / "fastfwd", free_port()
    shutil.copytree(Path(fastfwd.__file__).parent, copy)
    here = site(f"metrics {HOST}:{port}\n", env={"PYTHONPATH": str(copy.parent)})
    with still_serving(here.forwarder, port, here.address):
        (copy / "__main__.py").write_text("raise SystemExit('no such version')\n")
        here.forwarder.send(signal.SIGUSR2)
    assert here.forwarder.said("no such version") == 1


def test_another_version_takes_over(site: StartSite, tmp_path: Path) -> None:
    """What the command line starts now is what serves."""
    copy, port = tmp_path / "copy" / "fastfwd", free_port()
    shutil.copytree(Path(fastfwd.__file__).parent, copy)
    here = site(f"metrics {HOST}:{port}\n", env={"PYTHONPATH": str(copy.parent)})
    (copy / "__init__.py").write_text('__version__ = "99.1"\n')
    here.forwarder.upgrade()
    until(lambda: status(f"http://{HOST}:{port}/")["version"] == "99.1", what="the new version")


def reader(fifo: Path) -> int:
    """A descriptor to write to whoever reads it, 0 as long as nobody does (fifo(7))."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


Hanging = tuple[Forwarder, tuple[str, int], int]


def environment(path: Path, version: str) -> Path:
    """A directory with a version of the program, and the script that starts it there."""
    shutil.copytree(Path(fastfwd.__file__).parent, path / "fastfwd")
    (path / "fastfwd" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    python = path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n')
    script = path / "start"
    script.write_text(f"#!{python}\nfrom fastfwd.cli import main\nmain()\n")
    for each in (python, script):
        each.chmod(0o755)
    return script


def test_a_link_may_lead_to_another_environment(
    forwarder: StartForwarder, backend: StartServer, tmp_path: Path
) -> None:
    """The script at the same path brings its own interpreter, as two virtual environments have it."""
    one, two = environment(tmp_path / "1", "99.1"), environment(tmp_path / "2", "99.2")
    behind, port, metrics = backend(banner, "one"), free_port(), free_port()
    link = tmp_path / "fastfwd"
    link.symlink_to(one)
    running = forwarder(
        f"{HOST} {port} {behind.host} {behind.port}\nmetrics {HOST}:{metrics}\n", instead=[str(link)]
    )
    link.unlink()
    link.symlink_to(two)
    running.upgrade()
    until(lambda: status(f"http://{HOST}:{metrics}/")["version"] == "99.2", what="the new version")


@pytest.fixture
def hanging(site: StartSite, tmp_path: Path) -> Iterator[Hanging]:
    """A program whose upgrade has begun, with a new one that stands still: it, its address and the new
    process. (An included FIFO that nobody writes to.)"""
    part = tmp_path / "part.conf"
    part.write_text("")
    here = site(f"include {part}\n")
    part.unlink()
    os.mkfifo(part)
    here.forwarder.send(signal.SIGUSR2)
    here.forwarder.wait_said("is to take over")
    writer = until(lambda: reader(part), what="the new program to read it")
    part.unlink()
    part.write_text("")
    new = int(re.findall(r"process (\d+) is to take over", here.forwarder.stderr())[0])
    yield here.forwarder, here.address, new
    os.close(writer)


def test_a_program_that_is_killed(hanging: Hanging) -> None:
    """It may die at any time before it serves."""
    running, address, new = hanging
    os.kill(new, signal.SIGKILL)
    running.wait_said(FAILED)
    assert running.said("killed by signal 9; this program goes on") == 1
    assert greeting(address) == "one"


def test_a_stop_while_the_new_program_starts(hanging: Hanging) -> None:
    """Ends both."""
    running, _, new = hanging
    assert running.stop() == 0
    until(lambda: ended(new), what="the end of the new program")
    assert running.said(f"{FAILED} stopping") == 1


def test_a_reload_while_the_new_program_starts_waits(hanging: Hanging) -> None:
    """It is done once the upgrade has failed, by the program that goes on."""
    running, _, new = hanging
    running.hup()
    os.kill(new, signal.SIGKILL)
    running.wait_said("reload", seconds=20)
    assert running.stderr().index(FAILED) < running.stderr().index("reload")


def test_no_upgrade_while_draining(site: StartSite) -> None:
    """Who is about to end hands nothing on."""
    here = site()
    with session(here.address):
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining:")
        here.forwarder.send(signal.SIGUSR2)
        here.forwarder.wait_said("not upgrading")


def test_clients_of_a_program_that_gives_up_are_served(site: StartSite, tmp_path: Path) -> None:
    """One worker of the new program has begun when another one cannot: its sessions finish, and the old
    program goes on at once."""
    copy = tmp_path / "copy" / "fastfwd"
    shutil.copytree(Path(fastfwd.__file__).parent, copy)
    here = site(env={"PYTHONPATH": str(copy.parent)})
    main = copy / "worker" / "main.py"
    begin = "    worker = Worker(slot, channel, scoreboard, census)\n"
    gate = tmp_path / "gate"
    wait = f"    while slot and not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n"
    broken = f"{wait}    if slot:\n        return CANNOT_START\n"
    main.write_text(main.read_text().replace(begin, begin + broken))
    old = list(here.forwarder.workers().values())
    here.forwarder.send(signal.SIGUSR2)
    here.forwarder.wait_said("is to take over")
    new = int(re.findall(r"process (\d+) is to take over", here.forwarder.stderr())[0])
    until(lambda: [each for each in processes.children(new) if each.comm == "fastfwd-w0"], what="its worker")
    with processes.stopped(*old), ExitStack() as stack:  # so that it is the new one that accepts
        clients = [stack.enter_context(connect(here.address)) for _ in range(20)]
        served = [each for each in clients if select.select([each], [], [], deadline.seconds(0.5))[0]]
        assert served
        gate.touch()
        here.forwarder.wait_said("has given up; this program goes on")
        assert all(read_exactly(each, 3) == b"one" and lives(each) for each in served)
    until(lambda: ended(new), what="the end of the new program with its last session")
    assert all_greet(here.address, "one")


def test_process_1_is_not_replaced(forwarder: StartForwarder, backend: StartServer) -> None:
    """In a container, its end would be that of all."""
    require_root()
    behind, port = backend(echo), free_port()
    apart = [require_peer("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"]
    running = forwarder(f"{HOST} {port} {behind.host} {behind.port}\n", command=apart)
    running.send(signal.SIGUSR2)
    running.wait_said("this is process 1 of a container")


def test_a_stale_handover_is_refused(tmp_path: Path) -> None:
    """A number in the environment that is no handover of the parent's ends the start with a reason."""
    config = tmp_path / "conf"
    config.write_text(f"{HOST} {free_port()} {HOST} 1\n")
    os.environ["FASTFWD_HANDOVER"] = "99"
    try:
        found = run("-f", "-c", str(config))
    finally:
        del os.environ["FASTFWD_HANDOVER"]
    assert found.returncode == 1
    assert "expected a handover in descriptor 99" in found.stderr


# By command.


def test_the_command_waits_for_the_new_program(site: StartSite) -> None:
    """And ends with 0 once it serves."""
    here = site(f"metrics {HOST}:{free_port()}\n")
    old = here.forwarder.pid
    done = run("--upgrade", "-c", str(here.forwarder.config_path))
    assert done.returncode == 0, done.stderr
    here.forwarder.successor = int(re.findall(r"process (\d+), version \S+, has taken over", done.stdout)[0])
    until(lambda: ended(old), what="the end of the old program")
    assert greeting(here.address) == "one"


def test_the_command_tells_of_a_failure(site: StartSite) -> None:
    """And ends with 1."""
    metrics = f"metrics {HOST}:{free_port()}\n"
    here = site(metrics)
    here.forwarder.configure(here.line(here.port) + metrics + "nonsense\n")
    done = run("--upgrade", "-c", str(here.forwarder.config_path))
    assert (done.returncode, "says why" in done.stderr) == (1, True)
    assert greeting(here.address) == "one"


# As a daemon.


def test_a_daemon_upgrades(backend: StartServer, tmp_path: Path) -> None:
    """The new program is one too: its number is in the pid file, and nothing waits for it."""
    behind, port, pid_file = backend(banner, "one"), free_port(), tmp_path / "pid"
    config = tmp_path / "conf"
    config.write_text(f"{HOST} {port} {behind.host} {behind.port}\npidlogfile {pid_file}\nworkers 1\n")
    assert run("-c", str(config)).returncode == 0
    first = int(pid_file.read_text())
    pids = [first]
    try:
        os.kill(first, signal.SIGUSR2)
        until(lambda: pid_file.read_text() not in ("", f"{first}\n"), 20, "another number")
        pids.append(int(pid_file.read_text()))
        until(lambda: ended(first), what="the end of the old program")
        assert greeting((HOST, port)) == "one"
    finally:
        for pid in pids:
            if processes.alive(pid):
                os.kill(pid, signal.SIGTERM)
        until(lambda: all(map(ended, pids)), what="the end")
    assert not pid_file.exists()
