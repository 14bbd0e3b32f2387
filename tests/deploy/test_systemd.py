"""The units of deploy/systemd as systemd runs them, sandbox and all, on a machine of the test's own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.certificates import Authority
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deadline import until
from tests.deploy.machine import Machine
from tests.deploy.test_apparmor import allows, rules
from tests.deploy.test_units import DEPLOY, SERVICE, UNITS, run, settings
from tests.peers import require_peer
from tests.servers import Server, echo, serve
from tests.sockets import Listener, Sending, connect, noise, read_to_end
from tests.system.test_privileges import status

UNIT = "fastfwd.service"
BEHIND = 8080

NET_BIND_SERVICE = 1 << 10
"""linux/capability.h."""

LOG = "/var/log/rinetd.log"
WEB = f"127.0.0.1 80 127.0.0.1 {BEHIND} [name=web]\nlogfile {LOG}\nworkers 2\n"


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With everything of deploy/ where its first lines say."""
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        for kind in ("sysusers.d", "tmpfiles.d"):
            machine.copy(DEPLOY / kind / "fastfwd.conf", f"/etc/{kind}/fastfwd.conf")
        for unit in UNITS.glob("fastfwd*"):
            machine.copy(unit, f"/etc/systemd/system/{unit.name}")
        machine.copy(DEPLOY / "logrotate" / "fastfwd", "/etc/logrotate.d/fastfwd")
        machine.copy(DEPLOY / "transparent" / "fastfwd-transparent", "/usr/local/sbin/fastfwd-transparent")
        machine.run("systemd-sysusers")
        machine.run("systemd-tmpfiles", "--create", "fastfwd.conf")
        yield machine


@contextmanager
def fresh(booted: Machine) -> Iterator[None]:
    """With nothing started, nothing logged, and the units as they are in deploy/."""
    booted.forget()
    try:
        yield
    finally:
        booted.run("systemctl", "stop", "fastfwd.socket", UNIT, "fastfwd@*.service")
        booted.try_run("systemctl", "reset-failed")
        booted.run("sh", "-c", f"rm -rf /etc/systemd/system/*.d; rm -f {LOG}?*; : >{LOG}")
        booted.run("systemctl", "daemon-reload")


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """For one test."""
    with fresh(booted):
        yield booted


def drop_in(machine: Machine, text: str, unit: str = UNIT) -> None:
    """Have these lines beside the unit's."""
    machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
    machine.run("systemctl", "daemon-reload")


def example(machine: Machine, name: str) -> None:
    """Put a drop-in of deploy/ where it belongs."""
    machine.copy(UNITS / "drop-ins" / f"{name}.conf", f"/etc/systemd/system/{UNIT}.d/{name}.conf")
    machine.run("systemctl", "daemon-reload")


def start(machine: Machine, config: str, unit: str = UNIT, file: str = "/etc/rinetd.conf") -> int:
    """Start it; its main process."""
    machine.write(file, config)
    machine.forget()
    machine.run("systemctl", "start", unit)  # which waits until all workers serve
    return machine.main(unit)


def echoed(machine: Machine, port: int = 80, host: str = "127.0.0.1", size: int = 100_000) -> None:
    """Assert that the forward there carries so many bytes to an echo and back."""
    with machine.call(connect, (host, port)) as client, Sending(client, noise(size)):
        assert read_to_end(client).data == noise(size)


@pytest.fixture
def behind(booted: Machine) -> Iterator[Server]:
    """An echo in the machine's network."""
    with ExitStack() as stack:
        yield booted.call(stack.enter_context, serve(echo, port=BEHIND))


# The service.


@pytest.mark.usefixtures("behind")
def test_it_serves(machine: Machine) -> None:
    """On a port below 1024, and writes rinetd's log."""
    start(machine, WEB)
    echoed(machine)
    log = machine.path(LOG)
    until(lambda: "\tdone-" in log.read_text(), what="the log's line")
    assert stat.S_IMODE(log.stat().st_mode) == 0o640


def test_who_it_is(machine: Machine) -> None:
    """The account is its own, the one right is to bind low ports, which workers have given up, and the
    sandbox is there: no new rights, a filter of system calls, directories that it cannot write to."""
    main = start(machine, WEB)
    user = int(machine.run("id", "-u", "fastfwd"))
    for pid, right in ((main, NET_BIND_SERVICE), *((each.pid, 0) for each in processes.children(main))):
        found = status(pid)
        assert found["Uid"].split() == [str(user)] * 4
        assert [int(found[name], 16) for name in ("CapPrm", "CapAmb")] == [right] * 2
        assert int(found["CapBnd"], 16) == NET_BIND_SERVICE
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert os.statvfs(f"/proc/{main}/root/etc").f_flag & os.ST_RDONLY
    assert not os.statvfs(f"/proc/{main}/root/var/log").f_flag & os.ST_RDONLY
    assert os.listdir(f"/proc/{main}/root/home") == []


def everything(machine: Machine, tmp_path: Path) -> None:
    """Have it do all that a configuration can ask for, once."""
    authority = Authority(tmp_path)
    cert, key = authority.pair("localhost")
    for source, mode in ((cert, 0o644), (key, 0o640)):
        machine.write(f"/etc/fastfwd/{source.name}", source.read_text(), mode)
        machine.run("chgrp", "fastfwd", f"/etc/fastfwd/{source.name}")
    start(
        machine,
        f"""
        127.0.0.1 80 localhost {BEHIND}
        127.0.0.1 443 127.0.0.1 {BEHIND} [tls-accept, cert=fastfwd/{cert.name}, key=fastfwd/{key.name}]
        127.0.0.1 53/udp 127.0.0.1 5353/udp
        unix:/run/fastfwd/web.sock 127.0.0.1 {BEHIND}
        metrics 127.0.0.1:9464
        statusfile /run/fastfwd/status.json
        statusinterval 1
        pidlogfile /run/fastfwd/fastfwd.pid
        max-connections 1000
        logformat json
        logfile {LOG}
        workers 2
        """,
    )
    echoed(machine, size=20 << 20)
    with machine.call(authority.client, ("127.0.0.1", 443), "localhost") as client:
        client.sendall(b"secret")
        assert client.recv(6) == b"secret"
    with machine.call(UdpBackend, port=5353), ExitStack() as stack:
        client = machine.call(stack.enter_context, udp_client(("127.0.0.1", 53)))
        assert ask(client, b"who") == b"who"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(machine.path("/run/fastfwd/web.sock")))
        client.sendall(b"inside")
        assert client.recv(6) == b"inside"
    machine.run("systemctl", "reload", UNIT)
    until(lambda: "reloaded:" in machine.said(UNIT), what="the reload")
    worker = next(each.pid for each in processes.children(machine.main(UNIT)) if each.comm == "fastfwd-w0")
    os.kill(worker, signal.SIGKILL)
    until(lambda: "worker 0" in machine.said(UNIT), what="the worker's end to be noticed")
    echoed(machine)
    until(lambda: all(each["memory_bytes"] and each["open_fds"] for each in workers(machine)), what="figures")
    assert any(each["spliced_bytes"] for each in workers(machine))
    until(lambda: machine.path("/run/fastfwd/status.json").exists(), what="the status file")
    assert machine.path("/run/fastfwd/fastfwd.pid").exists()
    assert '"proto":"udp"' in machine.path(LOG).read_text()


def workers(machine: Machine) -> list[dict[str, int]]:
    """The exporter's figures of them."""
    status = machine.call(urllib.request.urlopen, "http://127.0.0.1:9464/status")
    with status:
        found: list[dict[str, int]] = json.loads(machine.call(status.read))["workers"]
    return found


@pytest.mark.usefixtures("behind")
def test_everything_that_it_does(machine: Machine, tmp_path: Path) -> None:
    """TLS, datagrams, splicing, names, the exporter, Unix sockets, the status and the pid file: the sandbox
    stands in the way of none of them."""
    everything(machine, tmp_path)
    said = machine.said(UNIT)
    assert "Traceback" not in said
    assert "cannot" not in said


CALL = re.compile(r"^(\w+)\(", re.MULTILINE)
"""A line of strace."""


def members(name: str) -> set[str]:
    """The system calls of a set of systemd's (`@file-system`), or the one of that name."""
    if not name.startswith("@"):
        return {name}
    lines = run("systemd-analyze", "syscall-filter", name).stdout.splitlines()[1:]
    words = (line.strip() for line in lines)
    return {call for word in words if word and word[0] != "#" for call in members(word)}


def allowed(unit: Path) -> set[str]:
    """The system calls that a unit allows (systemd.exec(5), SystemCallFilter=)."""
    calls = members("@default")
    for name, value in settings(unit):
        if name == "SystemCallFilter":
            listed = {call for word in value.removeprefix("~").split() for call in members(word)}
            calls = calls - listed if value.startswith("~") else calls | listed
    return calls


@pytest.fixture(scope="module")
def trace(booted: Machine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What strace writes of all that, with every system call allowed."""
    directory = tmp_path_factory.mktemp("traced")
    waiting = "sh -c 'kill -STOP $$$$; exec /usr/local/sbin/fastfwd -f'"
    with fresh(booted), ExitStack() as stack:
        booted.call(stack.enter_context, serve(echo, port=BEHIND))
        drop_in(booted, f"[Service]\nSystemCallFilter=\nExecStart=\nExecStart={waiting}\n")
        attached = stack.enter_context(ThreadPoolExecutor(1)).submit(attach, booted, directory)
        everything(booted, directory)
        booted.run("systemctl", "stop", UNIT)
        attached.result().wait(deadline.seconds(20))
    # A file for each process (-ff): in a common one they would break each other's lines.
    return "".join(path.read_text() for path in directory.glob("trace.*"))


def attach(machine: Machine, directory: Path) -> subprocess.Popen[bytes]:
    """Have root's strace follow the service from its first moment, which waits for that. (One of its own
    account could not read what it says to the kernel: it has its memory closed.)"""
    until(lambda: machine.show(UNIT, "MainPID") != "0", what="the service's process")
    main = machine.main(UNIT)
    until(lambda: (found := processes.stat(main)) and found.state == "T", what="it to wait")
    command = [require_peer("strace"), "-ff", "-qq", "-o", str(directory / "trace"), "-p", str(main)]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: status(main)["TracerPid"] != "0", what="strace")
    os.kill(main, signal.SIGCONT)
    return strace


def test_the_system_calls_that_it_makes(trace: str) -> None:
    """All of them are on the unit's list. (A call that is not fails there, perhaps without a word.)"""
    made = set(CALL.findall(trace))
    assert {"splice", "accept4", "epoll_wait", "clone", "prctl", "recvmsg", "sendto", "setsid"} <= made
    assert made - allowed(SERVICE) == set()


def test_what_it_need_not_call() -> None:
    """The list is shorter than systemd's for services: no look into other processes, no keys, no mounts."""
    calls = allowed(SERVICE)
    assert not calls & {
        "ptrace",
        "process_vm_readv",
        "pidfd_getfd",
        "mount",
        "bpf",
        "add_key",
        "io_uring_setup",
    }
    assert calls < members("@system-service") | members("@default")


OPENED = re.compile(r'openat\(AT_FDCWD, "(/[^"]*)", (\S+?)(?:, \d+)?\) = \d')
CHANGED = re.compile(r'(?:unlink|rename|link)\("(/[^"]*)"(?:, "(/[^"]*)")?\) = 0')


def test_the_files_that_it_opens(trace: str) -> None:
    """All of them are in the profile for AppArmor, and those that it makes and removes."""
    known = rules()
    files = {
        (path + "/" * ("O_DIRECTORY" in flags and path != "/"), access(flags))
        for path, flags in OPENED.findall(trace)
    }
    files |= {(path, "w") for pair in CHANGED.findall(trace) for path in pair if path}
    files = {(path.replace("/proc/self/", "/proc/1/"), wanted) for path, wanted in files}
    # The test's own: a script in the program's place, and the directory that it was started in.
    files -= {("/usr/local/sbin/fastfwd", "r"), ("/", "r")}
    assert {("/etc/rinetd.conf", "r"), (LOG, "w"), ("/run/fastfwd/status.json.new", "w")} <= files
    # /proc/self/fd/3 is whatever that is, here memory (memfd_create(2)), to which no profile applies.
    files = {each for each in files if not re.fullmatch(r"/proc/1/fd/\d+", each[0])}
    outside = sorted(each for each in files if not allows(known, *each))
    assert not outside, outside


def access(flags: str) -> str:
    """What AppArmor calls it."""
    return "rw" if "O_RDWR" in flags else "w" if "O_WRONLY" in flags else "r"


def test_a_reload_that_is_refused_is_seen(machine: Machine) -> None:
    """`systemctl reload` fails, and what runs goes on."""
    main = start(machine, WEB)
    machine.write("/etc/rinetd.conf", "nonsense\n")
    assert machine.try_run("systemctl", "reload", UNIT).returncode != 0
    assert machine.main(UNIT) == main
    assert machine.show(UNIT, "ActiveState") == "active"


def test_a_stop_and_a_drain(machine: Machine) -> None:
    """Both end it for good, and cleanly."""
    for order in ("stop", "drain"):
        main = start(machine, WEB)
        if order == "stop":
            machine.run("systemctl", "stop", UNIT)
        else:
            machine.run("systemctl", "kill", "--signal=USR1", "--kill-whom=main", UNIT)
            until(lambda: machine.show(UNIT, "ActiveState") == "inactive", what="the end of the drain")
        assert machine.show(UNIT, "Result") == "success"
        assert not processes.alive(main)


@pytest.mark.usefixtures("behind")
def test_a_port_that_comes_late(machine: Machine) -> None:
    """A start fails as long as somebody else has the port, and is repeated without end."""
    machine.write("/etc/rinetd.conf", WEB)
    with machine.call(Listener, "127.0.0.1", 80):
        machine.run("systemctl", "start", "--no-block", UNIT)
        until(lambda: int(machine.show(UNIT, "NRestarts")) >= 1, what="the second start")
    until(lambda: machine.show(UNIT, "ActiveState") == "active" and "ready:" in machine.said(UNIT))
    echoed(machine)


@pytest.mark.usefixtures("behind")
def test_a_supervisor_that_dies_is_replaced(machine: Machine) -> None:
    """And nothing of the old one is left."""
    main = start(machine, WEB)
    workers = [each.pid for each in processes.children(main)]
    os.kill(main, signal.SIGKILL)
    until(lambda: machine.show(UNIT, "NRestarts") == "1" and machine.show(UNIT, "MainPID") != "0")
    until(lambda: machine.said(UNIT).count("ready:") >= 2, what="the successor")
    assert not any(processes.alive(pid) for pid in workers)
    echoed(machine)


def test_a_supervisor_that_hangs_is_replaced(machine: Machine) -> None:
    """systemd hears nothing of it, and starts another. (After 3 s here, so as not to wait for 30.)"""
    drop_in(machine, "[Service]\nWatchdogSec=3\n")
    main = start(machine, WEB)
    os.kill(main, signal.SIGSTOP)
    until(lambda: machine.show(UNIT, "NRestarts") == "1", 20, "the watchdog")
    assert "Watchdog timeout" in machine.said(UNIT)


@pytest.mark.usefixtures("behind")
def test_an_upgrade(machine: Machine) -> None:
    """The new program is the main process, in the same sandbox; a session goes on in the old one."""
    main = start(machine, WEB)
    with machine.call(connect, ("127.0.0.1", 80)) as client:
        client.sendall(b"before")
        assert client.recv(6) == b"before"
        machine.run("systemctl", "kill", "--signal=USR2", "--kill-whom=main", UNIT)
        until(lambda: machine.main(UNIT) != main, 20, "another main process")
        client.sendall(b"after")
        assert client.recv(5) == b"after"
    echoed(machine)
    found = status(machine.main(UNIT))
    assert (int(found["CapPrm"], 16), found["Seccomp"]) == (NET_BIND_SERVICE, "2")
    until(lambda: not processes.alive(main), what="the end of the old program")
    assert machine.show(UNIT, "ActiveState") == "active"


# The log.


@pytest.mark.usefixtures("behind")
def test_a_rotation_loses_no_line(machine: Machine) -> None:
    """logrotate, with the file of deploy/, renames the log outside the service's namespace; what comes later
    is in the new one, which is the account's."""
    start(machine, WEB)
    for each in (1, 2):
        echoed(machine)
        until(lambda n=each: whole(machine) == 2 * n, what="the lines")
        inode = machine.path(LOG).stat().st_ino
        machine.run("logrotate", "--force", "/etc/logrotate.d/fastfwd")
        until(lambda n=each: machine.said(UNIT).count("reloaded:") >= n, what="the reload")
        found = machine.path(LOG).stat()
        assert found.st_ino != inode
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (int(machine.run("id", "-u", "fastfwd")), 0o640)
    echoed(machine)
    until(lambda: machine.path(LOG).read_text().count("\n") == 2, what="the lines of the new log")
    assert whole(machine) == 6


def whole(machine: Machine) -> int:
    """How many lines there are, in the log and those before it."""
    return int(machine.run("sh", "-c", f"zcat -f {LOG}* | wc -l"))


def test_it_makes_no_file_beside_the_log(machine: Machine) -> None:
    """The directory can be written to in the sandbox; its permissions still keep the account out."""
    start(machine, WEB.replace(LOG, "/var/log/other.log"))
    assert "/var/log/other.log: Permission denied" in machine.said(UNIT)
    assert not machine.path("/var/log/other.log").exists()


# Drop-ins.


@pytest.mark.usefixtures("behind")
@pytest.mark.parametrize("allowed", [True, False])
def test_mark(machine: Machine, allowed: bool) -> None:
    """The drop-in is what it takes."""
    if allowed:
        example(machine, "mark")
    start(machine, WEB.replace("name=web", "name=web, mark=7"))
    with machine.call(connect, ("127.0.0.1", 80)) as client, Sending(client, b"hello"):
        assert read_to_end(client).data == (b"hello" if allowed else b"")


@pytest.mark.usefixtures("behind")
def test_transparent(machine: Machine) -> None:
    """The drop-in brings the right and the routing; the backend sees the client's address."""
    example(machine, "transparent")
    start(machine, WEB.replace("name=web", "name=web, transparent=on"))
    assert "fastfwd_transparent" in machine.run("nft", "list", "tables")
    machine.run("ip", "address", "add", "192.0.2.7/32", "dev", "lo")
    with machine.call(partial(Listener, port=8081)) as listener:
        machine.write(
            "/etc/rinetd.conf", WEB.replace(str(BEHIND), "8081").replace("name=web", "transparent=on")
        )
        machine.run("systemctl", "restart", UNIT)
        until(lambda: machine.said(UNIT).count("ready:") >= 2)
        with machine.call(connect, ("127.0.0.1", 80), "192.0.2.7") as client, listener.accept() as served:
            assert served.getpeername()[0] == client.getsockname()[0] == "192.0.2.7"
    machine.run("systemctl", "stop", UNIT)
    assert "fastfwd_transparent" not in machine.run("nft", "list", "tables")


# Instances.


@pytest.mark.usefixtures("behind")
def test_instances(machine: Machine) -> None:
    """Two, side by side, each with its configuration and its log; the rotation concerns both."""
    for name, port in (("one", 81), ("two", 82)):
        config = WEB.replace(" 80 ", f" {port} ").replace(LOG, f"/var/log/fastfwd/{name}.log")
        start(machine, config, f"fastfwd@{name}.service", f"/etc/fastfwd/{name}.conf")
        echoed(machine, port)
        log = machine.path(f"/var/log/fastfwd/{name}.log")
        until(lambda log=log: log.read_text().count("\n") == 2, what="the log's lines")
    machine.run("logrotate", "--force", "/etc/logrotate.d/fastfwd")
    for name in ("one", "two"):
        until(lambda unit=name: "reloaded:" in machine.said(f"fastfwd@{unit}.service"), what="the reload")
        assert machine.path(f"/var/log/fastfwd/{name}.log").read_text() == ""


# Sockets that systemd holds.


@pytest.mark.usefixtures("behind")
def test_a_restart_refuses_nobody(machine: Machine) -> None:
    """With fastfwd.socket, who comes while nothing runs waits, and is served."""
    example(machine, "socket")
    backends = f"127.0.0.1 {BEHIND}"
    config = f"0.0.0.0 80 {backends}\n0.0.0.0 443 {backends}\n0.0.0.0 53/udp {backends}/udp\nworkers 2\n"
    first = start(machine, config)
    echoed(machine)
    machine.run("systemctl", "kill", "--signal=KILL", UNIT)
    until(lambda: not processes.alive(first), what="its end")
    for _ in range(4):
        echoed(machine)
    assert machine.main(UNIT) != first
    listening = machine.run("ss", "-Hltn", "sport = :80")
    assert listening.count("0.0.0.0:80") == 2  # systemd's, and nobody else's
