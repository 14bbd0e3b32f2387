"""The start: what is refused, how it is said, and what a running program has opened."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastfwd import __version__
from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder, program, run
from tests.peers import require_peer, require_root
from tests.ports import bindable, free_port
from tests.servers import echo
from tests.sockets import Listener, connect, finish, read_to_end
from tests.system.namespaces import Sandbox

Attempt = Callable[..., list[str]]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempt]:
    """Call it with a configuration that is refused; gives the lines on stderr, without
    `fastfwd: ` and the file's name. What a refused start must not leave is looked for."""
    mark = f"FASTFWD_TEST_MARK={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    monkeypatch.setenv(name, value)
    path = tmp_path / "rinetd.conf"
    pid_path = tmp_path / "pid"

    def refused(config: str, *arguments: str) -> list[str]:
        path.write_text(config + f"pidlogfile {pid_path}\nworkers 2\n")
        done = run("-f", "-c", str(path), *arguments)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert all(line.startswith("fastfwd: ") for line in lines)
        return [line.removeprefix("fastfwd: ").removeprefix(str(path)) for line in lines]

    yield refused
    assert processes.marked(mark) == [], "left processes behind"
    assert not pid_path.exists(), "left its pid file behind"


def says(line: str, number: int, *parts: str) -> bool:
    """Whether `line` is a message about line `number` that holds all of `parts`."""
    return line.startswith(f":{number}: ") and all(part in line for part in parts)


# Refused: the configuration.


def test_every_error_is_reported(attempt: Attempt) -> None:
    """All bad lines are named at once, in order, each with its place."""
    good = f"127.0.0.1 {free_port()} 127.0.0.1 1\n"
    lines = attempt("nonsense\n" + good + "127.0.0.1 99999 127.0.0.1 1\nallow host.example\nlogformat xml\n")
    wanted = [(1, "nonsense"), (3, "99999"), (4, "host.example"), (5, "xml")]
    assert len(lines) == 4
    assert all(says(line, number, part) for line, (number, part) in zip(lines, wanted, strict=True))


@pytest.mark.parametrize("flag", ["-f", "-t"])
def test_a_missing_file(tmp_path: Path, flag: str) -> None:
    """A file that is not there is named, with the reason."""
    path = tmp_path / "missing.conf"
    done = run(flag, "-c", str(path))
    assert done.returncode == 1
    assert done.stderr == f"fastfwd: {path}: cannot read it: No such file or directory\n"


@pytest.mark.parametrize("flag", ["-f", "-t"])
def test_a_directory(tmp_path: Path, flag: str) -> None:
    """A directory is no configuration (rinetd runs with no forwards)."""
    done = run(flag, "-c", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"fastfwd: {tmp_path}: expected a file, found a directory\n"


@pytest.mark.parametrize("flag", ["-f", "-t"])
def test_an_unreadable_file(tmp_path: Path, flag: str) -> None:
    """A file that its user may not read is named, with the reason."""
    with Sandbox() as inside:
        inside.open_way_to_python()
        path = tmp_path / "secret.conf"
        path.write_text("")
        path.chmod(0)
        inside.open_way_to(path)
        setpriv = [require_peer("setpriv"), "--reuid=54321", "--regid=54321", "--clear-groups"]
        command = [*setpriv, *program(), flag, "-c", str(path)]
        done = inside.call(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"fastfwd: {path}: cannot read it: Permission denied\n"


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("user no-such-user", "expected an account of this host, found 'no-such-user'"),
        ("group no-such-group", "expected a group of this host, found 'no-such-group'"),
    ],
)
def test_an_unknown_account(attempt: Attempt, directive: str, message: str) -> None:
    """A user or group that the host does not have is refused: nothing runs as somebody else."""
    forward = f"127.0.0.1 {free_port()} 127.0.0.1 1\n"
    assert attempt(forward + directive + "\n") == [f":2: {message}"]


# Refused: ports.


@pytest.mark.parametrize(
    ("host", "listen"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::1", "::1"), ("::1", "::")]
)
def test_a_busy_port(attempt: Attempt, host: str, listen: str) -> None:
    """A port that another process has is refused with the line, the address and the reason."""
    with Listener(host) as other:
        (line,) = attempt(f"# comment\n{listen} {other.port} 127.0.0.1 1\n")
        assert says(line, 2, f"{listen}]:" if ":" in listen else f"{listen}:", str(other.port))
        assert line.endswith(": Address already in use")


def test_every_busy_port_is_reported(attempt: Attempt) -> None:
    """Two busy ports are two messages, and the free one between them stays free."""
    free = free_port()
    with Listener() as one, Listener() as two:
        config = [f"127.0.0.1 {port} 127.0.0.1 1\n" for port in (one.port, free, two.port)]
        lines = attempt("".join(config))
    assert [line.split(":")[1] for line in lines] == ["1", "3"]
    assert bindable(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", free)


def test_a_busy_port_with_reuseport(attempt: Attempt) -> None:
    """A process that shares its port (SO_REUSEPORT) does not get to share it with us."""
    port = free_port()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        (line,) = attempt(f"127.0.0.1 {port} 127.0.0.1 1\n")
    assert says(line, 1, "Address already in use")


def test_a_second_copy_is_refused(attempt: Attempt, forwarder: StartForwarder) -> None:
    """Another copy of the program does not get half of the clients of the first."""
    port = free_port()
    forwarder(f"127.0.0.1 {port} 127.0.0.1 1\n")
    (line,) = attempt(f"127.0.0.1 {port} 127.0.0.1 1\n")
    assert says(line, 1, f"127.0.0.1:{port}", "Address already in use")


def test_an_address_of_another_host(attempt: Attempt) -> None:
    """An address that this host does not have is refused (192.0.2.0/24 is nobody's, RFC 5737)."""
    (line,) = attempt(f"192.0.2.1 {free_port()} 127.0.0.1 1\n")
    assert says(line, 1, "192.0.2.1", "Cannot assign requested address")


# Refused: names.


@pytest.fixture
def nameless() -> Iterator[Sandbox]:
    """A place where only /etc/hosts knows names: any other definitely does not exist."""
    with Sandbox() as inside:
        inside.cover(Path("/mnt"))
        inside.call(Path("/mnt/nsswitch.conf").write_text, "hosts: files\nservices: files\npasswd: files\n")
        inside.replace(Path("/etc/nsswitch.conf"), Path("/mnt/nsswitch.conf"))
        yield inside


@pytest.mark.parametrize("config", ["no-such-host {0} 127.0.0.1 1\n", "127.0.0.1 {0} no-such-host 1\n"])
def test_a_name_that_does_not_exist(attempt: Attempt, nameless: Sandbox, config: str) -> None:
    """A host that definitely does not exist is a mistake in the file, on either side."""
    (line,) = nameless.call(attempt, config.format(free_port()))
    assert says(line, 1, "no-such-host", "Name or service not known")


def test_a_source_that_does_not_exist(attempt: Attempt, nameless: Sandbox) -> None:
    """So is a source address that cannot be resolved."""
    (line,) = nameless.call(attempt, f"127.0.0.1 {free_port()} 127.0.0.1 1 [src=no-such-host]\n")
    assert says(line, 1, "no-such-host", "Name or service not known")


# Refused: forwarding to itself.


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("0", "127.0.0.9"),
        ("0.0.0.0", "0.0.0.0"),
        ("127.0.0.1", "0.0.0.0"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_forwarding_to_itself(attempt: Attempt, listen: str, target: str) -> None:
    """A forward that would dial its own listener, through whatever wildcard, is refused."""
    port = free_port()
    (line,) = attempt(f"{listen} {port} {target} {port}\n")
    assert says(line, 1, "itself")


def test_forwarding_in_a_circle(attempt: Attempt) -> None:
    """Two forwards that dial each other are refused, and the message shows the way."""
    one, two = free_port(), free_port()
    (line,) = attempt(f"127.0.0.1 {one} 127.0.0.1 {two}\n0.0.0.0 {two} 127.0.0.1 {one}\n")
    assert says(line, 2, "line 1 -> line 2")


# Not refused.


@pytest.mark.parametrize("logfile", ["/nonexistent/log", "/"])
def test_a_log_that_cannot_be_opened(forwarder: StartForwarder, backend: StartServer, logfile: str) -> None:
    """Like rinetd it says so and runs without a log."""
    port, behind = free_port(), backend(echo)
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\nlogfile {logfile}\n", log=False)
    assert running.said(f"rinetd.conf:2: cannot open the log {logfile}") == 1
    assert running.said("going on without a log") == 1
    echoed(port)


def test_an_empty_configuration(forwarder: StartForwarder, backend: StartServer) -> None:
    """Without a forward it warns, runs, and a reload brings one."""
    running = forwarder("", log=False)
    assert running.said("no forwards") >= 1
    port, behind = free_port(), backend(echo)
    running.reload(f"127.0.0.1 {port} {behind.host} {behind.port}\n")
    echoed(port)


def echoed(port: int, host: str = "127.0.0.1") -> None:
    """Assert that a forward there leads to an echo."""
    with connect((host, port)) as client:
        client.sendall(b"hello")
        finish(client)
        assert read_to_end(client).data == b"hello"


# -t, -v, -h.


def test_checking_a_good_file(tmp_path: Path) -> None:
    """`-t` says that a file is valid, and how many forwards it has."""
    path = tmp_path / "good.conf"
    path.write_text("127.0.0.1 1 192.0.2.1 1\n127.0.0.1 2 192.0.2.1 2\n")
    done = run("-t", "-c", str(path))
    assert done.returncode == 0
    assert done.stderr == f"fastfwd: {path} is valid: 2 forwards\n"


def test_checking_opens_nothing(tmp_path: Path) -> None:
    """`-t` of the configuration of a running service does not mind its ports, and makes no file."""
    path, log, pid = (tmp_path / name for name in ("rinetd.conf", "log", "pid"))
    with Listener() as other:
        path.write_text(f"127.0.0.1 {other.port} 192.0.2.1 1\nlogfile {log}\npidlogfile {pid}\n")
        assert run("-t", "-c", str(path)).returncode == 0
    assert os.listdir(tmp_path) == ["rinetd.conf"]


def test_checking_a_bad_file(tmp_path: Path) -> None:
    """`-t` reports every error and exits with 1."""
    path = tmp_path / "bad.conf"
    path.write_text("nonsense\n127.0.0.1 1 127.0.0.1 1\n")
    done = run("-t", "-c", str(path))
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [f"{path}:1", f"{path}:2"]


def test_the_version() -> None:
    """`-v` prints it and exits."""
    done = run("-v")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastfwd {__version__}\n", "")


def test_help() -> None:
    """`-h` names every flag and exits."""
    done = run("-h")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("-c", "-f", "-t", "-v", "-h", "--lenient"))


@pytest.mark.parametrize("arguments", [["-x"], ["--nonsense"], ["-c"], ["-f", "extra"]])
def test_wrong_usage(arguments: list[str]) -> None:
    """What is no flag of ours is exit 2, with the usage."""
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fastfwd ")


def test_bad_lines_can_be_skipped(forwarder: StartForwarder, backend: StartServer) -> None:
    """With `--lenient` bad forwards are warnings, and the good ones serve."""
    port, behind = free_port(), backend(echo)
    running = forwarder(
        f"nonsense\n127.0.0.1 {port} {behind.host} {behind.port}\n127.0.0.1 x 127.0.0.1 1\n",
        args=["--lenient"],
    )
    assert running.said("rinetd.conf:1: line skipped: ") == 1
    assert running.said("rinetd.conf:3: line skipped: ") == 1
    echoed(port)


def test_a_guard_is_never_skipped(tmp_path: Path) -> None:
    """An access rule that cannot be read stops even a lenient start: it would open what it closes."""
    path = tmp_path / "rinetd.conf"
    path.write_text(f"127.0.0.1 {free_port()} 192.0.2.1 1\ndeny 10.0.0.1/8\n")
    done = run("-f", "--lenient", "-c", str(path))
    assert done.returncode == 1
    assert f"{path}:2: " in done.stderr


# What runs.


def listening(pid: int) -> dict[int, tuple[str, int]]:
    """Inode -> (host, port) of the TCP listeners among the descriptors of `pid` (proc(5), net/tcp)."""
    inodes = {
        int(target[len("socket:[") : -1])
        for target in processes.descriptors(pid).values()
        if target.startswith("socket:[")
    }
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[9]) in inodes:
                packed, port = fields[1].split(":")
                # 32-bit words in the host's byte order, which is that of the machines this runs on.
                words = b"".join(bytes.fromhex(packed[i : i + 8])[::-1] for i in range(0, len(packed), 8))
                family = socket.AF_INET if name == "tcp" else socket.AF_INET6
                found[int(fields[9])] = (socket.inet_ntop(family, words), int(port, 16))
    return found


def test_port_zero_is_any_free_port(forwarder: StartForwarder, backend: StartServer) -> None:
    """Port 0 asks the kernel; all slots share what it gave, and two such forwards are two ports."""
    behind = backend(echo)
    running = forwarder(f"127.0.0.1 0 {behind.host} {behind.port}\n" * 2)
    places = [set(listening(pid).values()) for pid in running.workers().values()]
    assert places[0] == places[1]
    assert len(places[0]) == 2
    for host, port in places[0]:
        assert port != 0
        echoed(port, host)


def test_the_ipv6_wildcard_takes_both(forwarder: StartForwarder, backend: StartServer) -> None:
    """`::` accepts IPv4 clients too, and logs them in their mapped form as rinetd does."""
    port, behind = free_port(), backend(echo)
    running = forwarder(f":: {port} {behind.host} {behind.port}\n")
    echoed(port, "127.0.0.1")
    echoed(port, "::1")
    running.wait_log(2, "done-remote-closed")
    assert {line["client"] for line in running.log_columns()} == {"::ffff:127.0.0.1", "::1"}


def test_a_name_to_listen_on(forwarder: StartForwarder, backend: StartServer) -> None:
    """A bind address may be a name of this host."""
    port, behind = free_port(), backend(echo)
    forwarder(f"localhost {port} {behind.host} {behind.port}\n")
    echoed(port)


def test_processes_have_names(forwarder: StartForwarder) -> None:
    """Each worker is called by its slot, the resolver by its task."""
    running = forwarder(f"127.0.0.1 {free_port()} localhost 1\n", workers=3)
    names = sorted(child.comm for child in processes.children(running.pid))
    assert names == ["fastfwd-dns", "fastfwd-w0", "fastfwd-w1", "fastfwd-w2"]


def test_without_names_there_is_no_resolver(forwarder: StartForwarder) -> None:
    """Only a forward that names a host costs the process."""
    running = forwarder(f"127.0.0.1 {free_port()} 127.0.0.1 1\n")
    assert running.resolver() is None


def test_auto_is_a_worker_per_usable_processor(forwarder: StartForwarder) -> None:
    """`workers auto` counts the processors the process may run on, not those of the machine."""
    config = f"127.0.0.1 {free_port()} 127.0.0.1 1\nworkers auto\n"
    usable = sorted(os.sched_getaffinity(0))
    assert set(forwarder(config).workers()) == set(range(len(usable)))
    config = f"127.0.0.1 {free_port()} 127.0.0.1 1\n"
    pinned = forwarder(config, workers=None, command=[require_peer("taskset"), "-c", str(usable[-1])])
    assert set(pinned.workers()) == {0}


PIPES = 32
"""Pipes a worker opens before it drops its rights (worker/main, FILL)."""


def kinds(pid: int) -> dict[str, int]:
    """How many descriptors of each kind `pid` has: sockets, pipes, epoll, files by name."""
    found: dict[str, int] = {}
    for target in processes.descriptors(pid).values():
        kind = re.sub(r":\[\d+\]$", "", target).removeprefix("anon_inode:")
        found[kind] = found.get(kind, 0) + 1
    return found


def test_a_worker_has_only_its_own(forwarder: StartForwarder, tmp_path: Path) -> None:
    """A worker holds /dev/null, its slot's listeners, its channel, epoll, wake-up, pipes and log: no
    other slot's listener, no pid file, nothing of its siblings."""
    ports = [free_port() for _ in range(3)]
    config = "".join(f"127.0.0.1 {port} 127.0.0.1 1\n" for port in ports)
    running = forwarder(config + f"pidlogfile {tmp_path}/pid\n", workers=3)
    everybody = listening(running.pid)
    assert sorted(place[1] for place in everybody.values()) == sorted(ports * 3)
    seen: set[int] = set()
    for pid in running.workers().values():
        own = listening(pid)
        assert sorted(place[1] for place in own.values()) == sorted(ports)
        assert seen.isdisjoint(own)
        seen |= set(own)
        assert kinds(pid) == {
            "/dev/null": 3,  # and not its starter's terminal
            "/memfd:fastfwd-limits (deleted)": 1,  # two locks
            "/memfd:fastfwd-recall (deleted)": 1,
            "socket": 3 + 1,
            "[eventpoll]": 1,
            "pipe": 2 + 2 * PIPES,
            str(running.log_path): 1,
        }
    assert seen == set(everybody)


def test_a_replaced_worker_has_only_its_own(forwarder: StartForwarder) -> None:
    """So does one that was started while its siblings were running."""
    ports = [free_port() for _ in range(2)]
    running = forwarder("".join(f"127.0.0.1 {port} 127.0.0.1 1\n" for port in ports))
    before = kinds(running.worker(0))
    old = running.worker(0)
    os.kill(old, 9)
    until(lambda: running.workers().get(0, old) != old, what="the replacement")
    new = running.worker(0)
    until(lambda: kinds(new) == before, what="the same descriptors")
    assert set(listening(new)).isdisjoint(listening(running.worker(1)))


def test_a_resolver_has_almost_nothing(forwarder: StartForwarder) -> None:
    """The resolver holds /dev/null and its channel: no listener, no log."""
    running = forwarder(f"127.0.0.1 {free_port()} localhost 1\n")
    resolver = running.resolver()
    assert resolver is not None
    found = kinds(resolver)
    assert found.pop("socket") == 1
    assert set(found) == {"/dev/null"}


def test_the_file_limit_is_raised(forwarder: StartForwarder) -> None:
    """The soft limit of open files becomes the hard one, for every process."""
    prlimit = [require_peer("prlimit"), "--nofile=200:3000"]
    running = forwarder(f"127.0.0.1 {free_port()} 127.0.0.1 1\n", command=prlimit)
    for pid in (running.pid, *running.workers().values()):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"^Max open files +3000 +3000 ", limits, re.MULTILINE)


def test_the_first_client_is_served_as_soon_as_it_says_ready(
    forwarder: StartForwarder, backend: StartServer
) -> None:
    """`ready` means that every worker serves: what the start said first is true."""
    port, behind = free_port(), backend(echo)
    running: Forwarder = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port}\n", workers=4)
    assert running.said("ready: 1 forward, 4 workers, process ") == 1
    for _ in range(8):
        echoed(port)


def test_low_ports(forwarder: StartForwarder, backend: StartServer) -> None:
    """As root it listens on a port below 1024, which its workers could not bind."""
    require_root()
    with Sandbox(network=True) as inside:
        behind = inside.call(backend, echo)
        inside.call(forwarder, f"127.0.0.1 80 {behind.host} {behind.port}\n")
        with inside.call(connect, ("127.0.0.1", 80)) as client:
            client.sendall(b"hello")
            finish(client)
            assert read_to_end(client).data == b"hello"


def test_a_killed_start_leaves_no_worker(tmp_path: Path) -> None:
    """A supervisor that is killed while it starts takes its workers with it, soon."""
    port = free_port()
    running = Forwarder(tmp_path, f"127.0.0.1 {port} 127.0.0.1 1\n", workers=8, ready=False)
    try:
        until(lambda: running.workers() or not running.running(), what="the first worker")
        os.kill(running.pid, 9)
        running.process.wait()
        until(lambda: not running.pids(), what="the workers to leave")
    finally:
        running.kill()


def test_stdio_may_be_closed(tmp_path: Path) -> None:
    """Started without stdin, stdout and stderr (by a bare init) it serves, and no message of
    its own gets into a client's stream."""
    port = free_port()
    path = tmp_path / "rinetd.conf"
    with Listener() as behind, Listener() as other:
        path.write_text(f"127.0.0.1 {port} {behind.host} {behind.port}\nworkers 1\n")
        command = [
            require_peer("sh"),
            "-c",
            'exec "$@" <&- >&- 2>&-',
            "sh",
            *program(),
            "-f",
            "-c",
            str(path),
        ]
        running = subprocess.Popen(command)
        try:
            client = until(lambda: try_to_connect(port), what="the listener")
            assert client is not None
            with client, behind.accept() as connection:
                path.write_text(f"127.0.0.1 {other.port} {behind.host} {behind.port}\n")
                running.send_signal(signal.SIGHUP)  # refused, which it says to whoever listens
                os.kill(processes.children(running.pid)[0].pid, signal.SIGHUP)  # ignored
                with connect(("127.0.0.1", port)) as next_client, behind.accept() as next_connection:
                    next_connection.sendall(b"hello")
                    next_connection.close()
                    assert read_to_end(next_client).data == b"hello"
                connection.sendall(b"hello")
                connection.close()
                assert read_to_end(client).data == b"hello"
        finally:
            running.terminate()
            assert running.wait(deadline.seconds(20)) == 0


def try_to_connect(port: int) -> socket.socket | None:
    """A client, if somebody listens."""
    try:
        return connect(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None


# Without -c.


@pytest.fixture
def etc() -> Iterator[Sandbox]:
    """Inside, /etc is empty."""
    with Sandbox() as inside:
        inside.cover(Path("/etc"))
        yield inside


def put(inside: Sandbox, *names: str) -> None:
    """Inside, there are these files in /etc, with a forward each."""
    for name in names:
        inside.call(Path("/etc", name).write_text, "127.0.0.1 7 127.0.0.1 1\n")


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (("rinetd.conf",), "/etc/rinetd.conf"),
        (("fastfwd.conf",), "/etc/fastfwd.conf"),
        (("rinetd.conf", "fastfwd.conf"), "/etc/fastfwd.conf"),
    ],
    ids=["rinetd's", "its own", "both"],
)
def test_the_file_that_is_read_by_default(etc: Sandbox, there: tuple[str, ...], read: str) -> None:
    """Its own if there is one, else rinetd's."""
    put(etc, *there)
    done = etc.call(run, "-t")
    assert done.stderr.startswith(f"fastfwd: {read} is valid"), done.stderr


def test_who_calls_it_rinetd_gets_rinetds_file(etc: Sandbox, tmp_path: Path) -> None:
    """Whatever else there is: a script that starts rinetd means that one."""
    put(etc, "rinetd.conf", "fastfwd.conf")
    script = tmp_path / "rinetd"
    script.write_text("from fastfwd.cli import main\nmain()\n")
    command = [sys.executable, str(script), "-t"]
    done = etc.call(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("fastfwd: /etc/rinetd.conf is valid"), done.stderr
