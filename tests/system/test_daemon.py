"""In the background: what the shell sees, what the daemon keeps of it, and how it is reached."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartServer
from tests.deadline import until
from tests.forwarder import program
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import Listener, connect, finish, read_to_end
from tests.system.namespaces import Sandbox


class Daemon:
    """A program started without `-f` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.mark = f"FASTFWD_TEST_MARK={os.urandom(8).hex()}"
        self.directory = directory
        self.config_path = directory / "rinetd.conf"
        self.pid_path = directory / "pid"

    def configure(self, config: str) -> None:
        """Write the configuration; a pid file and the number of workers are added."""
        self.config_path.write_text(f"{config}pidlogfile {self.pid_path}\nworkers 2\n")

    def start(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Start it as a shell would, and wait for what the shell waits for: the end of the
        command, and of everything it writes to."""
        name, _, value = self.mark.partition("=")
        return subprocess.run(
            [*before, *program(), *(arguments or ("-c", str(self.config_path)))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env={**os.environ, name: value},
            timeout=deadline.seconds(20),
        )

    @property
    def pid(self) -> int:
        """The number in the pid file."""
        return int(self.pid_path.read_text())

    def pids(self) -> list[int]:
        """Every process of it."""
        return processes.marked(self.mark)

    def stop(self) -> None:
        """Stop it through its pid file."""
        os.kill(self.pid, signal.SIGTERM)
        until(lambda: not self.pids(), what="the daemon's end")

    def kill(self) -> None:
        """End what is left of it."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet; whatever lives at the end is killed."""
    made = Daemon(tmp_path)
    yield made
    made.kill()


Serve = Callable[..., int]


@pytest.fixture
def serve(daemon: Daemon, backend: StartServer) -> Serve:
    """Call it to have the daemon serve an echo; gives the port."""

    def start(extra: str = "", **options: tuple[str, ...]) -> int:
        port, behind = free_port(), backend(echo)
        daemon.configure(f"127.0.0.1 {port} {behind.host} {behind.port}\n{extra}")
        done = daemon.start(**options)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return port

    return start


def echoed(port: int) -> None:
    """Assert that the forward there works."""
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        finish(client)
        assert read_to_end(client).data == b"hello"


# The shell.


def test_the_shell_waits_until_it_serves(serve: Serve) -> None:
    """Status 0 means that it serves: the next command may be a client."""
    echoed(serve())


def test_the_shell_hears_nothing_more(daemon: Daemon, serve: Serve) -> None:
    """It says nothing of itself on the shell's stderr, and lets go of it: this start was read to its end."""
    serve()
    assert len(daemon.pids()) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("nonsense\n", ":1: expected"),
        ("127.0.0.1 1 127.0.0.1 1\n", "itself"),
        ("user no-such-user\n", ":1: "),
    ],
)
def test_a_bad_configuration(daemon: Daemon, config: str, message: str) -> None:
    """The shell sees the message and 1 (rinetd's shell sees 0), and nothing stays behind."""
    daemon.configure(config)
    done = daemon.start()
    assert done.returncode == 1
    assert message in done.stderr
    assert daemon.pids() == []
    assert not daemon.pid_path.exists()


def test_a_busy_port(daemon: Daemon) -> None:
    """So it does when a port is taken."""
    with Listener() as other:
        daemon.configure(f"127.0.0.1 {other.port} 192.0.2.1 1\n")
        done = daemon.start()
    assert done.returncode == 1
    assert (
        f"rinetd.conf:1: cannot listen on 127.0.0.1:{other.port}/tcp: Address already in use" in done.stderr
    )
    assert daemon.pids() == []


def test_a_warning_reaches_the_shell(daemon: Daemon) -> None:
    """What it warns of before it serves is still said to who started it."""
    daemon.configure("logfile /nonexistent/log\n")
    done = daemon.start()
    assert done.returncode == 0
    assert "cannot open the log /nonexistent/log" in done.stderr


# What it keeps.


def test_it_leaves_the_shell_s_session(daemon: Daemon, serve: Serve) -> None:
    """All its processes are in a session of its own: the terminal's end does not concern them."""
    serve()
    assert {os.getsid(pid) for pid in daemon.pids()} == {daemon.pid}


def test_no_process_keeps_the_shell_s_files(daemon: Daemon, serve: Serve) -> None:
    """Stdin, stdout and stderr of every process are /dev/null."""
    serve(f"localhost {free_port()} localhost 1\n")
    assert len(daemon.pids()) == 4
    for pid in daemon.pids():
        held = processes.descriptors(pid)
        assert [held[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_no_process_keeps_a_directory_busy(daemon: Daemon, serve: Serve) -> None:
    """The working directory of every process is the root."""
    serve()
    assert {os.readlink(f"/proc/{pid}/cwd") for pid in daemon.pids()} == {"/"}


def test_relative_names_keep_their_meaning(daemon: Daemon, backend: StartServer) -> None:
    """Names relative to where it was started still mean that after it has left, reloads too."""
    port, behind = free_port(), backend(echo)
    log = daemon.directory / f"connections-{os.getpid()}.log"
    daemon.configure(f"127.0.0.1 {port} {behind.host} {behind.port}\nlogfile {log.name}\n")
    assert daemon.start("-c", "rinetd.conf").returncode == 0
    try:
        echoed(port)
        until(lambda: len(log.read_text().splitlines()) == 2, what="two lines")
        log.rename(daemon.directory / "rotated")
        os.kill(daemon.pid, signal.SIGHUP)
        until(log.exists, what="a new log")

        def logged() -> bool:
            echoed(port)
            return log.stat().st_size > 0

        until(logged, what="a line in the new log")
    finally:
        Path("/", log.name).unlink(missing_ok=True)


def test_it_may_be_started_without_stdio(serve: Serve) -> None:
    """Started with stdin, stdout and stderr closed, it does not mistake a socket for them."""
    sh = require_peer("sh")
    port = serve(before=(sh, "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    for _ in range(5):
        echoed(port)


# The pid file.


def test_the_pid_file_has_the_daemon_s_number(daemon: Daemon, serve: Serve) -> None:
    """The number is that of the process which gets the signals: the workers' parent."""
    serve()
    parents = {found.ppid for pid in daemon.pids() if (found := processes.stat(pid)) and pid != daemon.pid}
    assert parents == {daemon.pid}


def test_a_reload_through_the_pid_file(daemon: Daemon, serve: Serve, backend: StartServer) -> None:
    """SIGHUP to the number in the file reloads."""
    serve()
    port, behind = free_port(), backend(echo)
    daemon.configure(f"127.0.0.1 {port} {behind.host} {behind.port}\n")
    os.kill(daemon.pid, signal.SIGHUP)

    def serves() -> bool:
        try:
            echoed(port)
        except ConnectionRefusedError:
            return False
        return True

    until(serves, what="the new forward")


def test_a_stop_through_the_pid_file(daemon: Daemon, serve: Serve) -> None:
    """SIGTERM to the number in the file ends every process, and removes the file."""
    port = serve()
    daemon.stop()
    assert not daemon.pid_path.exists()
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port))


def test_a_second_daemon_is_refused(daemon: Daemon, serve: Serve) -> None:
    """While one runs, another with its pid file is refused, with the number of the one."""
    port = serve()
    daemon.config_path.write_text(f"pidlogfile {daemon.pid_path}\n")
    done = daemon.start()
    assert done.returncode == 1
    assert f"already running as process {daemon.pid}" in done.stderr
    echoed(port)


def test_rinetd_s_pid_file_is_the_default(daemon: Daemon) -> None:
    """Without `pidlogfile` a daemon leaves its number where rinetd does, and takes it away."""
    with Sandbox() as inside:
        inside.cover(Path("/run"))
        inside.call(Path("/run/run").mkdir)
        inside.call(Path("/run/run").rmdir)
        default = Path("/var/run/rinetd.pid")
        if not inside.call(default.parent.samefile, "/run"):
            inside.cover(default.parent)
        daemon.config_path.write_text("workers 1\n")
        assert inside.call(daemon.start).returncode == 0
        number = int(inside.call(default.read_text))
        assert number in daemon.pids()
        os.kill(number, signal.SIGTERM)
        until(lambda: not daemon.pids(), what="the daemon's end")
        assert not inside.call(default.exists)


# The system log.


@pytest.fixture
def system_log() -> Iterator[tuple[Sandbox, socket.socket]]:
    """A place with a system log, and the socket that gets its messages (syslog(3))."""
    with Sandbox() as inside, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        inside.cover(Path("/dev"))
        inside.call(os.mknod, "/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        inside.call(log.bind, "/dev/log")
        log.settimeout(deadline.seconds(10))
        yield inside, log


LINE = re.compile(r"<(?P<priority>\d+)>.{15} fastfwd\[(?P<pid>\d+)\]: (?P<text>.*?)\0?", re.DOTALL)
DAEMON, ERROR, INFO = 3 << 3, 3, 6
"""Facility and severities, syslog(3)."""


def next_message(log: socket.socket, text: str) -> dict[str, str]:
    """The next message that holds `text`, in its parts."""
    while True:
        found = LINE.fullmatch(log.recv(8192).decode())
        assert found is not None
        if text in found["text"]:
            return found.groupdict()


def test_messages_go_to_the_system_log(daemon: Daemon, system_log: tuple[Sandbox, socket.socket]) -> None:
    """Once it is in the background its messages go to syslog: facility daemon, with the pid."""
    inside, log = system_log
    daemon.configure("")
    assert inside.call(daemon.start).returncode == 0
    ready = next_message(log, "ready: 0 forwards, 2 workers")
    assert ready["pid"] == str(daemon.pid)
    assert int(ready["priority"]) == DAEMON | INFO


def test_errors_in_the_system_log(daemon: Daemon, system_log: tuple[Sandbox, socket.socket]) -> None:
    """A refused reload is an error there, with file and line."""
    inside, log = system_log
    daemon.configure("")
    assert inside.call(daemon.start).returncode == 0
    daemon.configure("nonsense\n")
    os.kill(daemon.pid, signal.SIGHUP)
    found = next_message(log, "nonsense")
    assert f"{daemon.config_path}:1: " in found["text"]
    assert int(found["priority"]) == DAEMON | ERROR


def test_a_worker_s_message_reaches_the_system_log(
    daemon: Daemon, system_log: tuple[Sandbox, socket.socket]
) -> None:
    """The death of a worker is reported there by the supervisor."""
    inside, log = system_log
    daemon.configure("")
    assert inside.call(daemon.start).returncode == 0
    worker = next(child.pid for child in processes.children(daemon.pid) if child.comm == "fastfwd-w1")
    os.kill(worker, signal.SIGKILL)
    found = next_message(log, "killed by signal 9")
    assert "worker 1" in found["text"]
    assert found["pid"] == str(daemon.pid)
