"""`fastfwd --doctor` against what happens: sessions are opened until there is no room, and counted."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.datagrams import LARGEST, UdpBackend
from tests.deadline import until
from tests.forwarder import program, run
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import Listener, connect, read_exactly
from tests.system.namespaces import Sandbox

HOST = "127.0.0.1"
PORTS = 20
"""Source ports that the namespace has."""

RANGE = f"30000 {30000 + PORTS - 1}"
FRONT = 12_000
"""Where forwards listen inside; clients have ports of their own choice, outside the range."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the doctor has said: the verdict's number and limit, and the sessions of every row."""

    text: str
    code: int

    @property
    def verdict(self) -> tuple[int, str]:
        sentence = " ".join(self.text.split("\n\n")[0].split())
        found = re.search(r"holds about ([\d,]+) sessions .*; the first limit is ([^.]+)\.", sentence)
        assert found, self.text
        return int(found[1].replace(",", "")), found[2]

    @property
    def rows(self) -> dict[str, int | None]:
        (table,) = (each for each in self.text.split("\n\n") if each.startswith("LIMIT"))
        cells = [re.split(r"  +", line) for line in table.splitlines()[1:] if not line.startswith(" ")]
        return {row[0]: None if row[2] == "-" else int(row[2].replace(",", "")) for row in cells}

    @property
    def sysctls(self) -> list[str]:
        return re.findall(r"^[a-z_0-9.]+ = .+$", self.text, re.MULTILINE)


def ask(*args: str, call: Callable[..., subprocess.CompletedProcess[str]] | None = None) -> Told:
    """What it says with these arguments; `call` does it elsewhere."""
    done = run("--doctor", *args) if call is None else call(run, "--doctor", *args)
    assert done.stderr == ""
    return Told(done.stdout, done.returncode)


@pytest.fixture
def inside() -> Iterator[Sandbox]:
    """A network with few source ports."""
    with Sandbox(network=True) as sandbox:
        sandbox.sysctl("net.ipv4.ip_local_port_range", RANGE)
        yield sandbox


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test has opened."""
    with ExitStack() as held:
        yield held


def crowd(
    inside: Sandbox, stack: ExitStack, count: int, kind: int = socket.SOCK_STREAM
) -> list[socket.socket]:
    """Clients of FRONT, each with a port that no dial could have."""

    def client(number: int) -> socket.socket:
        sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
        sock.settimeout(deadline.seconds(5))
        sock.bind((HOST, 40_000 + number))
        sock.connect((HOST, FRONT))
        sock.send(b"%04d" % number)
        return sock

    return [inside.call(client, number) for number in range(count)]


def served(clients: list[socket.socket]) -> int:
    """How many of them have an answer, the others having been closed."""
    found = 0
    for number, client in enumerate(clients):
        try:
            found += read_exactly(client, 4) == b"%04d" % number
        except OSError:
            pass
    return found


# Source ports.


@pytest.mark.parametrize(
    ("forward", "sysctl", "sessions"),
    [
        ("127.0.0.1 9000", "", PORTS),
        ("127.0.0.1,127.0.0.2 9000", "", 2 * PORTS),
        ("127.0.0.1 9000 [src=127.0.0.5;127.0.0.6;127.0.0.7]", "", 3 * PORTS),
        ("127.0.0.1 9000", "30000-30006", PORTS - 7),
        ("127.0.0.1 9000\n127.0.0.1 30003 127.0.0.1 9000", "", PORTS - 1),
        ("127.0.0.1 9000\n127.0.0.1 12001 127.0.0.1 9000", "", PORTS),
        ("127.0.0.1,127.0.0.2 9000 [max-connections=7]", "", 7),
    ],
    ids=["one", "two backends", "three sources", "reserved", "a listener among them", "shared", "own limit"],
)
def test_source_ports(
    inside: Sandbox,
    forwarder: StartForwarder,
    backend: StartServer,
    stack: ExitStack,
    forward: str,
    sysctl: str,
    sessions: int,
) -> None:
    """It says to the session how many there can be."""
    inside.sysctl("net.ipv4.ip_local_reserved_ports", sysctl)
    for host in (HOST, "127.0.0.2"):
        inside.call(backend, echo, host=host, port=9000)
    running = inside.call(forwarder, f"{HOST} {FRONT} {forward}\n", workers=1)
    told = ask("-c", str(running.config_path), call=inside.call)
    name = "the configuration's own limits of forwards" if "max-c" in forward else "source ports"
    assert told.verdict == (sessions, name)
    assert served(crowd(inside, stack, sessions + 10)) == sessions


def test_source_ports_of_datagrams(inside: Sandbox, forwarder: StartForwarder, stack: ExitStack) -> None:
    """A flow's port serves for no other backend: two backends have as many as one."""
    for host in (HOST, "127.0.0.2"):
        stack.callback(inside.call(UdpBackend, host=host, port=9000).close)
    config = f"{HOST} {FRONT}/udp 127.0.0.1,127.0.0.2 9000/udp\n"
    running = inside.call(forwarder, config, workers=1)
    told = ask("-c", str(running.config_path), call=inside.call)
    assert told.verdict == (PORTS, "source ports")
    clients = crowd(inside, stack, PORTS + 10, socket.SOCK_DGRAM)
    running.wait_log(10, "local-connect-failed")
    answered = 0
    for client in clients:
        client.settimeout(0.2 if answered >= PORTS else deadline.seconds(5))
        try:
            answered += bool(client.recv(LARGEST))
        except OSError:
            pass
    assert answered == PORTS


def test_its_lines_move_the_limit(inside: Sandbox, forwarder: StartForwarder, backend: StartServer) -> None:
    """What it prints, sysctl takes, and afterwards something else comes first."""
    inside.call(backend, echo, port=9000)
    running = inside.call(forwarder, f"{HOST} {FRONT} {HOST} 9000\n", workers=1)
    arguments = ("-c", str(running.config_path), "--sessions", "5000")
    before = ask(*arguments, call=inside.call)
    assert (before.verdict, before.code) == ((PORTS, "source ports"), 1)
    assert before.sysctls
    assert all(line.startswith("net.ipv4.ip_local_") for line in before.sysctls)  # the namespace's own
    inside.call(
        subprocess.run,
        [require_peer("sysctl"), "-p", "-"],
        input="\n".join(before.sysctls),
        text=True,
        capture_output=True,
        check=True,
    )
    after = ask(*arguments, call=inside.call)
    assert after.verdict[0] >= 5000
    assert after.verdict[1] != "source ports"
    assert after.code == 0
    # The port that is listened on is kept from being a source.
    reserved = inside.call(Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text)
    assert reserved == f"{FRONT}\n"


# Descriptors.


@pytest.mark.parametrize("files", [64, 65, 150, 300])
def test_descriptors(forwarder: StartForwarder, backend: StartServer, stack: ExitStack, files: int) -> None:
    """With one worker it says to the session how many there can be, as long as none splices."""
    port, behind = free_port(), backend(echo)
    limit = [require_peer("prlimit"), f"--nofile={files}:{files}"]
    running = forwarder(f"{HOST} {port} {behind.host} {behind.port}\n", command=limit, workers=1)
    told = ask("-c", str(running.config_path))
    sessions, name = told.verdict
    assert name == "descriptors per worker"
    for _ in range(sessions):
        client = stack.enter_context(connect((HOST, port)))
        client.sendall(b"in")
        assert read_exactly(client, 2) == b"in"
    for _ in range(2):  # one is accepted, when their number is odd, but not dialled for
        stack.enter_context(connect((HOST, port))).sendall(b"out")
    running.wait_said("not accepting for now: Too many open files")
    assert behind.count == sessions


def test_descriptors_of_several_workers(
    forwarder: StartForwarder, backend: StartServer, stack: ExitStack
) -> None:
    """The fullest of two workers is full when there are about as many sessions as it says: never fewer by
    more than a quarter, and never more than there are descriptors for."""
    port, behind = free_port(), backend(echo)
    limit = [require_peer("prlimit"), "--nofile=250:250"]
    running = forwarder(f"{HOST} {port} {behind.host} {behind.port}\n", command=limit, workers=2)
    sessions, name = ask("-c", str(running.config_path)).verdict
    assert name == "descriptors per worker"
    count = 0
    while not running.said("not accepting for now"):
        client = stack.enter_context(connect((HOST, port)))
        client.sendall(b"in")
        client.settimeout(0.5)
        try:
            count += read_exactly(client, 2) == b"in"
        except TimeoutError:
            break
    assert 0.75 * sessions <= count <= 1.4 * sessions


def test_what_a_worker_holds_without_sessions(forwarder: StartForwarder) -> None:
    """Its formula counts every one: of nine pipes, two listeners, the log and the rest."""
    limit = [require_peer("prlimit"), "--nofile=150:150"]
    config = "".join(f"{HOST} {free_port()} {HOST} 1\n" for _ in range(2))
    running = forwarder(config, command=limit, workers=1)
    held = len(processes.descriptors(running.worker()))
    told = ask("-c", str(running.config_path))
    assert told.rows["descriptors per worker"] == (150 - held) // 2


def test_the_supervisor_s_descriptors(forwarder: StartForwarder) -> None:
    """With as many as it says are needed, a program with sixty listeners starts; it holds hardly fewer."""
    config = "".join(f"{HOST} {free_port()} {HOST} 1\n" for _ in range(30))
    first = forwarder(config)
    (line,) = (line for line in ask("-c", str(first.config_path)).text.splitlines() if "supervisor's" in line)
    needed = int(re.split(r"  +", line)[1].split()[0])
    first.stop()
    limit = [require_peer("prlimit"), f"--nofile={needed}:{needed}"]
    running = forwarder(config, command=limit)
    held = len(processes.descriptors(running.pid))
    assert needed - 12 <= held <= needed


def test_too_few_descriptors_for_the_listeners(tmp_path: Path) -> None:
    """It says that nothing will run."""
    path = tmp_path / "conf"
    path.write_text("".join(f"{HOST} {20000 + n} {HOST} 1\n" for n in range(100)) + "workers 2\n")
    done = subprocess.run(
        [require_peer("prlimit"), "--nofile=120:120", *program(), "--doctor", "-c", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(20),
    )
    assert Told(done.stdout, 0).verdict[0] == 0
    assert Told(done.stdout, 0).rows["supervisor's files"] == 0


# The kernel's tables.


def test_epoll_watches(forwarder: StartForwarder, backend: StartServer, stack: ExitStack) -> None:
    """Two for each session, as its formula has it: /proc tells."""
    port, behind = free_port(), backend(echo)
    running = forwarder(f"{HOST} {port} {behind.host} {behind.port}\n", workers=1)
    idle = watched(running.worker())
    for _ in range(10):
        client = stack.enter_context(connect((HOST, port)))
        client.sendall(b"in")
        assert read_exactly(client, 2) == b"in"
    assert watched(running.worker()) - idle == 20
    most = int(Path("/proc/sys/fs/epoll/max_user_watches").read_text())
    assert ask("-c", str(running.config_path)).rows["epoll watches"] == (most - 4) // 2
    assert idle <= 4


def watched(pid: int) -> int:
    """Descriptors that the epoll of a worker watches."""
    (epoll,) = (number for number, what in processes.descriptors(pid).items() if "eventpoll" in what)
    return Path(f"/proc/{pid}/fdinfo/{epoll}").read_text().count("tfd:")


def test_conntrack(
    inside: Sandbox, forwarder: StartForwarder, backend: StartServer, stack: ExitStack
) -> None:
    """Where connections are tracked a session has two entries; where they are not, there is no such limit."""
    inside.call(backend, echo, port=9000)
    running = inside.call(forwarder, f"{HOST} {FRONT} {HOST} 9000\n", workers=1)
    arguments = ("-c", str(running.config_path))
    directory = Path("/proc/sys/net/netfilter")
    if not inside.call(directory.joinpath("nf_conntrack_max").exists):
        pytest.skip("this kernel has no conntrack")
    assert ask(*arguments, call=inside.call).rows["conntrack entries"] is None
    for command in (
        "add table ip seen",
        "add chain ip seen in { type filter hook input priority 0; }",
        "add rule ip seen in ct state new accept",
    ):
        inside.run("nft", command)
    count = directory / "nf_conntrack_count"
    assert served(crowd(inside, stack, 10)) == 10
    assert int(inside.call(count.read_text)) == 20
    most = int(inside.call(directory.joinpath("nf_conntrack_max").read_text))
    # The ten sessions are the program's own, so their entries are not taken by others.
    assert ask(*arguments, call=inside.call).rows["conntrack entries"] == most // 2


# Which program.


@pytest.mark.parametrize("known", ["its pid file", "its exporter", "its command line"])
def test_the_limits_are_those_of_the_program_that_runs(
    forwarder: StartForwarder, tmp_path: Path, known: str
) -> None:
    """Not those of the shell."""
    line = {"its pid file": f"pidlogfile {tmp_path}/pid\n", "its exporter": f"metrics {HOST}:{free_port()}\n"}
    limit = [require_peer("prlimit"), "--nofile=777:888"]
    config = f"{HOST} {free_port()} {HOST} 1\n{line.get(known, '')}"
    running = forwarder(config, command=limit, workers=1)
    told = ask("-c", str(running.config_path))
    assert f"process {running.worker()}, a worker of {running.pid}," in " ".join(told.text.split())
    assert re.search(rf"^descriptors per worker +888 .* /proc/{running.worker()}/limits$", told.text, re.M)


def test_without_a_program_they_are_the_shell_s(tmp_path: Path) -> None:
    """The hard limit, to which the program raises the soft one."""
    path = tmp_path / "conf"
    path.write_text(f"{HOST} 8080 {HOST} 1\n")
    done = subprocess.run(
        [require_peer("prlimit"), "--nofile=100:777", *program(), "--doctor", "-c", str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline.seconds(20),
    )
    assert "Nothing runs with it" in done.stdout
    assert re.search(r"^descriptors per worker +777 .* ulimit -Hn$", done.stdout, re.M)


def test_an_ordinary_user_may_ask(forwarder: StartForwarder) -> None:
    """Not everything can be read, and nothing of that is an error."""
    running = forwarder(f"{HOST} {free_port()} {HOST} 1\n", workers=1)
    with Sandbox() as sandbox:
        sandbox.open_way_to_python()
        sandbox.open_way_to(running.config_path)
        done = sandbox.call(
            subprocess.run,
            [*program(), "--doctor", "-c", str(running.config_path)],
            **{"user": 65_534, "group": 65_534, "extra_groups": []},
            **{"capture_output": True, "text": True, "check": False},
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {running.worker()}, a worker of {running.pid}, which runs with it." in " ".join(
        done.stdout.split()
    )
    assert re.search(r"^descriptors per worker +[\d,]+ ", done.stdout, re.M)


def test_how_many_sessions_it_has_now(
    forwarder: StartForwarder, listener: Listener, stack: ExitStack
) -> None:
    """Counted by the descriptors of the workers."""
    port = free_port()
    running = forwarder(f"{HOST} {port} {listener.host} {listener.port}\n")
    for _ in range(7):
        stack.enter_context(connect((HOST, port)))
        stack.enter_context(listener.accept())
    said = lambda: " ".join(ask("-c", str(running.config_path)).text.split())  # noqa: E731
    until(lambda: "has about 7 sessions." in said(), what="seven sessions")


# The command.


def test_the_configuration_s_own_limit(tmp_path: Path) -> None:
    """That is no fault of the machine: nothing is advised."""
    path = tmp_path / "conf"
    path.write_text(f"{HOST} 8080 {HOST} 1\nmax-connections 50\nworkers 1\n")
    told = ask("-c", str(path))
    assert told.verdict == (50, "the configuration's own max-connections")
    assert "sysctl.d" not in told.text
    assert told.code == 0
    assert re.search(rf"^max-connections +50 +50  {path}:2$|^    {path}:2$", told.text, re.M)


@pytest.mark.parametrize(("sessions", "code"), [("50", 0), ("51", 1)])
def test_the_exit_status_tells_whether_they_are_held(tmp_path: Path, sessions: str, code: int) -> None:
    """For scripts."""
    path = tmp_path / "conf"
    path.write_text(f"{HOST} 8080 {HOST} 1\nmax-connections 50\nworkers 1\n")
    assert ask("-c", str(path), "--sessions", sessions).code == code


@pytest.mark.parametrize("config", ["127.0.0.1 80 nowhere\nworkers many\n", None])
def test_a_configuration_in_error(tmp_path: Path, config: str | None) -> None:
    """Its errors are those of -t, on stderr, and the machine is judged for one forward."""
    path = tmp_path / "conf"
    if config is not None:
        path.write_text(config)
    done = run("--doctor", "-c", str(path))
    assert done.returncode == 1
    assert done.stderr == run("-t", "-c", str(path)).stderr != ""
    assert "with one forward to one backend" in " ".join(done.stdout.split())
    assert Told(done.stdout, 1).rows["descriptors per worker"]


def test_conflicts_are_told_too(tmp_path: Path) -> None:
    """What only a look at all lines together finds."""
    path = tmp_path / "conf"
    path.write_text("127.0.0.1 80 localhost 80\n")
    done = run("--doctor", "-c", str(path))
    assert done.returncode == 1
    assert done.stderr == run("-t", "-c", str(path)).stderr != ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--doctor", "-t"),
        ("--doctor", "--status"),
        ("--doctor", "-t", "--explain", "192.0.2.1"),
        ("--sessions", "5"),
        ("--doctor", "--sessions", "0"),
        ("--doctor", "--sessions", "many"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Status 2, and what was expected."""
    done = run(*arguments)
    assert done.returncode == 2
    assert "expected" in done.stderr
