"""Row 39: what a process of ours, or another account of this machine, finds when it wants more than
it was given. docs/security.md says what that adds up to."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfwd.config.parse import parse
from fastfwd.model import Forward, Outcome
from fastfwd.observe.eventlog import Event, Line, common_line, json_line, rinetd_line
from tests import processes
from tests.config.test_grammar import mutated_file, text_file, valid_file
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.faults.row import Row
from tests.faults.test_supervisor import PIDFD_GETFD, whole
from tests.forwarder import Forwarder
from tests.peers import require_root
from tests.ports import free_port
from tests.servers import echo, goodbye
from tests.sockets import Listener, connect, read_to_end
from tests.system.test_pidfile import refused
from tests.system.test_privileges import ORDINARY, status

WORKERS = 2

NOBODY = pwd.getpwnam("nobody").pw_uid
"""The account of the children: whoever takes one over has it."""


# The attempts.


def as_account(uid: int, attempt: Callable[[], object]) -> str:
    """What comes of `attempt` in a process of that account, without other groups: `done`, or the
    errno's name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            attempt()
            os.write(writer, b"done")
        except OSError as error:
            os.write(writer, errno.errorcode[error.errno or 0].encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        word = answer.read().decode()
    os.waitpid(pid, 0)
    return word


def join(host: str, port: int) -> None:
    """Try to get a share of the clients of `port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        thief.bind((host, port))
        thief.listen()


def take_descriptor(pid: int, number: int = 1) -> None:
    """Try to get a duplicate of another process's descriptor (pidfd_getfd(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(PIDFD_GETFD, os.pidfd_open(pid), number, 0) < 0:
        raise OSError(ctypes.get_errno(), "")


def attempts(running: Forwarder, port: int, metrics: int) -> dict[str, tuple[Callable[[], object], str]]:
    """What another process may try -> how, and what must come of it."""
    pids = {
        "the supervisor": running.pid,
        "the exporter": running.exporter(),
        "the resolver": running.resolver(),
    }
    pids |= {f"worker {slot}": pid for slot, pid in running.workers().items()}
    found: dict[str, tuple[Callable[[], object], str]] = {}
    for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::"):
        found[f"join port {port} on {host}"] = partial(join, host, port), "EADDRINUSE"
    found["join the exporter's port"] = partial(join, "127.0.0.1", metrics), "EADDRINUSE"
    for name, pid in pids.items():
        assert pid is not None
        found[f"read the memory of {name}"] = partial(os.open, f"/proc/{pid}/mem", os.O_RDONLY), "EACCES"
        found[f"write to the memory of {name}"] = partial(os.open, f"/proc/{pid}/mem", os.O_RDWR), "EACCES"
        found[f"see the open files of {name}"] = partial(os.listdir, f"/proc/{pid}/fd"), "EACCES"
        found[f"take a descriptor of {name}"] = partial(take_descriptor, pid), "EPERM"
    found["send a signal to the supervisor"] = partial(os.kill, running.pid, 0), "EPERM"
    return found


# What a process is and has.


def rights(pid: int) -> list[str]:
    """What a child has that it should not have."""
    found = status(pid)
    wrong = [name for name in ("CapEff", "CapPrm", "CapInh", "CapAmb") if int(found[name], 16)]
    wrong += [name for name in ("Uid", "Gid") if found[name].split() != [str(NOBODY)] * 4]
    wrong += [name for name, value in (("Groups", ""), ("NoNewPrivs", "1")) if found[name] != value]
    return wrong


def shared_memory(pid: int) -> list[str]:
    """The rights on the mappings that a process shares with others (proc_pid_maps(5))."""
    lines = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [
        rights for _, rights, *rest in lines if rights[3] == "s" and rest[-2:] == ["/dev/zero", "(deleted)"]
    ]


def listening(pid: int) -> set[str]:
    """The listening TCP sockets that a process has."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    inodes = {line.split()[9] for line in lines if line.split()[3] == "0A"}
    return {what for what in processes.descriptors(pid).values() if what[8:-1] in inodes}


def flags(pid: int, path: Path) -> list[int]:
    """How a process has opened a file (proc_pid_fdinfo(5))."""
    numbers = [number for number, what in processes.descriptors(pid).items() if what == str(path)]
    texts = [Path(f"/proc/{pid}/fdinfo/{number}").read_text() for number in numbers]
    return [int(found[1], 8) for text in texts if (found := re.search(r"flags:\s+(\d+)", text))]


@pytest.mark.row(
    39,
    "a child taken over; another account of the machine; a symbolic link",
    "no rights, nothing of another process, no share of a port, no file but its own",
)
def test_what_an_attacker_finds(
    row: Row, forwarder: StartForwarder, backend: StartServer, tmp_path: Path
) -> None:
    """Each kind of child and its successor is looked at, and each attempt made as the children's own
    account and as another one."""
    require_root()
    port, metrics, behind = free_port(), free_port(), backend(echo)
    config = f"0.0.0.0 {port} localhost {behind.port}\nmetrics 127.0.0.1:{metrics}\n"
    running = forwarder(config, workers=WORKERS)
    for life in ("first", "second"):
        until(lambda: whole(running, WORKERS), 15, "all children")
        workers = running.workers()
        children = {f"worker {slot}": pid for slot, pid in workers.items()}
        children |= {"resolver": running.resolver() or 0, "exporter": running.exporter() or 0}
        for name, pid in children.items():
            wrong = rights(pid)
            row.held(not wrong, f"the {life} {name} has {wrong}")
            memory, allowed = shared_memory(pid), {"rw-s"} if pid in workers.values() else {"r--s"}
            row.held(set(memory) <= allowed, f"the {life} {name} has shared memory {memory}")
            stdio = {processes.descriptors(pid)[number] for number in range(3)}
            row.held(
                stdio == {"/dev/null"}, f"the {life} {name} has the supervisor's {stdio - {'/dev/null'}}"
            )
            # Whoever has a terminal can type on it (ioctl_tty(2), TIOCSTI), and /dev/tty opens it.
            apart = os.getsid(pid) != os.getsid(running.pid)
            row.held(apart, f"the {life} {name} is in the session of the supervisor, and has its terminal")
        held = {name: listening(pid) for name, pid in children.items()}
        for name, others in ((f"worker {slot}", 1 - slot) for slot in workers):
            alone = not held[name] & held[f"worker {others}"] and len(held[name]) == 1
            row.held(alone, f"the {life} {name} has listeners {held[name]}")
        row.held(not held["resolver"], "the resolver has a listener")
        row.held(len(held["exporter"]) == 1, f"the exporter has listeners {held['exporter']}")
        for pid in workers.values():
            modes = flags(pid, running.log_path)
            appends = [mode & (os.O_ACCMODE | os.O_APPEND) == os.O_WRONLY | os.O_APPEND for mode in modes]
            row.held(appends == [True], f"a worker has the log open with {modes}")
        if life == "first":
            for pid in children.values():
                os.kill(pid, 9)
            until(lambda: not any(map(processes.alive, children.values())), what="their end")  # noqa: B023
    for uid in (NOBODY, ORDINARY):
        for what, (attempt, wanted_word) in attempts(running, port, metrics).items():
            word = as_account(uid, attempt)
            row.held(word == wanted_word, f"uid {uid}: {what}: {word}")
        log = as_account(uid, partial(os.open, running.log_path, os.O_WRONLY))
        row.held(log == "EACCES", f"uid {uid}: open the log: {log}")
    word = as_account(ORDINARY, partial(os.kill, running.worker(), 0))
    row.held(word == "EPERM", f"uid {ORDINARY}: send a signal to a worker: {word}")
    link, victim = tmp_path / "link.pid", tmp_path / "victim"
    victim.write_text("precious")
    link.symlink_to(victim)
    row.held("symbolic link" in refused(link, tmp_path), "a pid file is written through a symbolic link")
    row.held(victim.read_text() == "precious", "what a pid file's link leads to was changed")


# What is not prevented, and said so.


def test_the_log_follows_a_link(forwarder: StartForwarder, tmp_path: Path) -> None:
    """A symbolic link in the log's place is followed, as rinetd does and as /dev/stdout needs: whoever
    can put one there chooses the file that root appends to."""
    target, link = tmp_path / "elsewhere", tmp_path / "link.log"
    target.write_text("what was there\n")
    link.symlink_to(target)
    with Listener() as behind:
        port = free_port()
        forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\nlogfile {link}\n")
        with connect(("127.0.0.1", port)) as client:
            behind.accept().close()
            read_to_end(client)
        until(lambda: "done-local-closed" in target.read_text(), what="the line behind the link")
    assert target.read_text().startswith("what was there\n")
    assert link.is_symlink()


def test_children_of_one_account_can_end_each_other(forwarder: StartForwarder) -> None:
    """They have the same account, and so has every other process of it: that is why it should be one
    of their own. What they end is replaced."""
    require_root()
    running = forwarder(f"127.0.0.1 {free_port()} 192.0.2.1 1\n", workers=1)
    until(lambda: status(running.worker())["NoNewPrivs"] == "1", what="the worker's account")
    victim = running.worker()
    assert as_account(NOBODY, partial(os.kill, victim, 9)) == "done"
    until(lambda: running.workers().get(0, victim) != victim, what="the successor")


# Log lines.

CLIENTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.ip_addresses(v=4).map("::ffff:{}".format),
    st.builds("fe80::{:x}%{}".format, st.integers(1, 0xFFFF), st.sampled_from(["eth0", "br-lan.7", "3"])),
)

COUNTS = st.integers(0, 2**63)

COMMON = re.compile(
    r'[0-9a-f.:]+(?:%\S+)? - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d  [+-]\d{4}\] "GET /rinetd-services/'
    r'[^\s"/]+/\d+/[^\s"/]+/\d+/[a-z-]+(?: -)? HTTP/1\.0" 200 \d+ - - - \d+\n'
)

LINES: dict[str, Line] = {
    "rinetd": rinetd_line(duration=False),
    "duration": rinetd_line(duration=True),
    "common": common_line(),
    "json": json_line(0, "0-0"),
}


def whole_line(name: str, line: bytes, forward: Forward, event: Event) -> bool:
    """Whether a line of the format `name` is one, and every column in its place."""
    text = line.decode()
    if text.count("\n") != 1 or not text.endswith("\n") or not text[:-1].replace("\t", "").isprintable():
        return False
    if name == "common":
        return COMMON.fullmatch(text) is not None
    if name == "json":
        fields: dict[str, Any] = orjson.loads(line)
        return (fields["client"], fields["listen"], fields["connect"], fields["outcome"]) == (
            *(event.client, forward.listen.host, forward.target.host, event.outcome.value),
        )
    fields_wanted = [event.client, forward.listen.host, str(forward.listen.port), forward.target.host]
    fields_wanted += [
        str(forward.target.port),
        str(event.bytes_in),
        str(event.bytes_out),
        event.outcome.value,
    ]
    columns = text[:-1].split("\t")
    return columns[1:9] == fields_wanted and len(columns) == (10 if name == "duration" else 9)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=list(HealthCheck),
)
@given(
    data=st.one_of(valid_file, mutated_file(), text_file),
    client=CLIENTS,
    outcome=st.sampled_from(Outcome),
    counts=st.tuples(COUNTS, COUNTS),
    now=st.floats(0, 4e9),
)
def test_no_configuration_and_no_client_forges_a_log_line(
    data: bytes, client: str, outcome: Outcome, counts: tuple[int, int], now: float
) -> None:
    """Whatever the file says and whoever comes: a line has its columns, and is one line."""
    config, _ = parse(data, "f")
    for forward in config.forwards:
        event = Event(forward, outcome, client, 1, *counts)
        for name, line in LINES.items():
            assert whole_line(name, line(event, now), forward, event)


def test_what_a_client_says_is_in_no_log(forwarder: StartForwarder, backend: StartServer) -> None:
    """Not a byte of a session comes into the log."""
    port, behind = free_port(), backend(goodbye)
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"a\nforged\tline\n")
        read_to_end(client)
    lines = running.wait_log(2)
    assert [line.count("\t") for line in lines] == [8, 8]
    assert "forged" not in running.log_text() + running.stderr()
