"""The exporter as a process: where it listens, what it may, how it dies, and that nobody misses it.

What it says of connections is test_counters.py's business.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.sockets import Listener, connect, read_to_end
from tests.system.conftest import Pair, Route, StartRoute
from tests.system.metrics import (
    answers,
    by,
    metrics_url,
    port_of,
    request,
    scrape,
    series,
    sessions,
    status,
    total,
)

pytestmark = pytest.mark.alone

HOST = "127.0.0.1"

ANYWHERE = f"metrics {HOST}:0\n"

PATIENCE = 15
"""Seconds until the watchdog has noticed: five ticks of one second, on a machine that is busy."""

MIB = 1 << 20


@pytest.fixture
def here(route: StartRoute) -> Route:
    """Two workers, a backend that the test plays, and an exporter."""
    return route(ANYWHERE, workers=2)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """A program to which nothing happens, for tests that only ask."""
    config = f"{HOST} 0 {HOST} 1\n{ANYWHERE}"
    with Forwarder(tmp_path_factory.mktemp("calm"), config, workers=2) as running:
        yield running


def exporter_of(running: Forwarder) -> int:
    """The exporter's pid, once it serves: the program is ready without waiting for it."""
    answers(metrics_url(running))
    pid = running.exporter()
    assert pid is not None
    return pid


def successor(running: Forwarder, dead: int, seconds: float = 10) -> int:
    """The exporter that has replaced the one with the pid `dead`, once it serves."""
    until(lambda: running.exporter() not in (None, dead), seconds, "its successor")
    return exporter_of(running)


def free(port: int) -> bool:
    """Whether the next program can listen on a port of the loopback."""
    try:
        Listener(HOST, port).close()
    except OSError:
        return False
    return True


def refuses(port: int) -> bool:
    """Whether nobody listens on a port of the loopback."""
    try:
        connect((HOST, port)).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


# What it answers.


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/metrics", "text/plain; version="),
        ("/status", "application/json"),
        ("/status?history", "application/json"),
        ("/readyz", "text/plain"),
        ("/", "text/html"),
    ],
)
def test_what_it_serves(calm: Forwarder, path: str, kind: str) -> None:
    """Every path of it answers with 200 and its own type."""
    answer = request(metrics_url(calm), path)
    assert (answer.status, answer.headers["content-type"][: len(kind)]) == (200, kind)


def test_healthy_from_the_start(forwarder: StartForwarder) -> None:
    """Whoever waits for `ready:` finds good health at once."""
    assert answers(metrics_url(forwarder(ANYWHERE)), "/healthz") == 200


def test_what_it_does_not_serve(calm: Forwarder) -> None:
    """An unknown path is 404, another method 405."""
    url = metrics_url(calm)
    assert (answers(url, "/nothing"), request(url, "/metrics", "POST").status) == (404, 405)


@pytest.mark.parametrize(
    "garbage", [b"\r\n\r\nhello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_request(calm: Forwarder, garbage: bytes) -> None:
    """What is not HTTP is 400 and a closed connection; nothing is said of it, and the next
    scrape is answered."""
    url = metrics_url(calm)
    said = calm.stderr()
    with connect((HOST, port_of(url))) as client:
        client.sendall(garbage)
        assert read_to_end(client).data.startswith(b"HTTP/1.1 400 ")
    assert scrape(url)
    assert calm.stderr() == said


def test_it_says_where_it_is_before_it_is_ready(calm: Forwarder) -> None:
    """Whoever waits for `ready:` knows the port by then."""
    said = [line.split(": ")[1] for line in calm.stderr().splitlines()]
    assert said.index("metrics") < said.index("ready")


def test_facts_of_the_program(calm: Forwarder) -> None:
    """The status tells the supervisor's process, the workers' and the configuration file."""
    found = status(metrics_url(calm))
    assert (found["pid"], found["state"]) == (calm.pid, "serving")
    assert {worker["slot"]: worker["pid"] for worker in found["workers"]} == calm.workers()
    assert found["config"]["file"] == str(calm.config_path)


def test_without_the_directive_there_is_none(route: StartRoute) -> None:
    """No `metrics`, no exporter: neither the process nor the line."""
    running = route(workers=1).forwarder
    assert (running.exporter(), running.said("metrics")) == (None, 0)


# Addresses that cannot be had.


def busy(stack: ExitStack, directory: Path, forwarded: int) -> str:
    return f"{HOST}:{stack.enter_context(Listener()).port}"


def elsewhere(stack: ExitStack, directory: Path, forwarded: int) -> str:
    return f"192.0.2.1:{free_port()}"  # nobody's (RFC 5737)


def forwarded_too(stack: ExitStack, directory: Path, forwarded: int) -> str:
    return f"{HOST}:{forwarded}"


def taken_in(stack: ExitStack, directory: Path, forwarded: int) -> str:
    return f"0.0.0.0:{forwarded}"


def no_socket(stack: ExitStack, directory: Path, forwarded: int) -> str:
    path = directory / "occupied"
    path.write_text("something")
    stack.callback(lambda: path.read_text() == "something" or pytest.fail(f"{path} was touched"))
    return f"unix:{path}"


def another_s_socket(stack: ExitStack, directory: Path, forwarded: int) -> str:
    path = directory / "taken"
    other = stack.enter_context(socket.socket(socket.AF_UNIX))
    other.bind(str(path))
    other.listen()
    return f"unix:{path}"


def no_directory(stack: ExitStack, directory: Path, forwarded: int) -> str:
    return f"unix:{directory}/nowhere/socket"


Trouble = Callable[[ExitStack, Path, int], str]

TROUBLES = pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (busy, "Address already in use"),
        (elsewhere, "Cannot assign requested address"),
        (forwarded_too, "expected a metrics port of its own"),
        (taken_in, "expected a metrics port of its own"),
        (no_socket, "there is something else than a socket"),
        (another_s_socket, "Address already in use"),
        (no_directory, "No such file or directory"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)


@TROUBLES
def test_an_address_that_cannot_be_had_at_start(tmp_path: Path, trouble: Trouble, reason: str) -> None:
    """The start is refused with file, line, address and reason, and exit status 1."""
    path, port = tmp_path / "rinetd.conf", free_port()
    with ExitStack() as stack:
        address = trouble(stack, tmp_path, port)
        path.write_text(f"{HOST} {port} {HOST} 1\nmetrics {address}\nworkers 1\n")
        done = run("-f", "-c", str(path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fastfwd: {path}:2: ")
    assert address in line
    assert reason in line


def test_every_address_that_cannot_be_had_at_start(tmp_path: Path) -> None:
    """A busy forward and a busy exporter are told together, in the file's order."""
    path = tmp_path / "rinetd.conf"
    with Listener() as first, Listener() as second:
        path.write_text(f"metrics {HOST}:{first.port}\n{HOST} {second.port} {HOST} 1\nworkers 1\n")
        done = run("-f", "-c", str(path))
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [f"{path}:1", f"{path}:2"]


@TROUBLES
def test_an_address_that_cannot_be_had_at_a_reload(
    here: Route, tmp_path: Path, trouble: Trouble, reason: str
) -> None:
    """The reload is refused with file and line; exporter, address, forwards and session stay."""
    running, port = here.forwarder, here.address[1]
    url, pid = metrics_url(running), exporter_of(running)
    line = running.config_path.read_text().splitlines()[0]
    with ExitStack() as stack, here.pair() as pair:
        running.reload(f"{line}\nmetrics {trouble(stack, tmp_path, port)}\n")
        here.greet(pair)
        here.turn()
    assert running.said("reload refused: ") == 1
    assert any(
        f"{running.config_path}:2: " in each and reason in each for each in running.stderr().splitlines()
    )
    assert (metrics_url(running), exporter_of(running), answers(url)) == (url, pid, 200)


# Addresses that change.


def reloaded(here: Route, directive: str) -> None:
    """Reload with the same forward and `directive`."""
    line = here.forwarder.config_path.read_text().splitlines()[0]
    here.forwarder.reload(f"{line}\n{directive}")
    assert here.forwarder.said("reload refused") == 0


def test_a_reload_moves_it(here: Route) -> None:
    """It answers on the new port at once, the old one refuses, and it is the same process."""
    running = here.forwarder
    old, pid, port = metrics_url(running), exporter_of(running), free_port()
    reloaded(here, f"metrics {HOST}:{port}\n")
    assert metrics_url(running) == f"http://{HOST}:{port}/"
    assert answers(metrics_url(running)) == 200
    until(lambda: refuses(port_of(old)), what="the old port to be closed")
    assert exporter_of(running) == pid


def test_a_reload_widens_its_address(here: Route) -> None:
    """From one address to every one, on the same port, although the port is in use: by itself."""
    port = free_port()
    reloaded(here, f"metrics {HOST}:{port}\n")
    reloaded(here, f"metrics 0.0.0.0:{port}\n")
    assert answers(f"http://127.0.0.7:{port}/") == 200


def test_a_reload_leaves_its_port_alone(here: Route) -> None:
    """One that changes nothing of it changes nothing, the port the kernel chose included."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    reloaded(here, ANYWHERE)
    assert (running.said("metrics: "), exporter_of(running), answers(url)) == (1, pid, 200)


def test_a_reload_adds_it(route: StartRoute) -> None:
    """It knows everything that has been counted before it was born."""
    here = route(workers=2)
    here.turn()
    here.forwarder.wait_log(1, "done-")
    reloaded(here, ANYWHERE)
    url = metrics_url(here.forwarder)
    assert by(scrape(url), "connections_closed_total", "outcome") == {"done-local-closed": 1}


def test_a_reload_removes_it(here: Route) -> None:
    """The process ends, its port is free, and nobody complains."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    reloaded(here, "")
    until(lambda: not processes.alive(pid) and free(port_of(url)), what="its end")
    assert (running.exporter(), running.said("exporter (process")) == (None, 0)


def test_a_reload_brings_it_back(here: Route) -> None:
    """Removed and added again, there is one, at once."""
    pid = exporter_of(here.forwarder)
    reloaded(here, "")
    reloaded(here, ANYWHERE)
    assert successor(here.forwarder, pid)
    assert answers(metrics_url(here.forwarder)) == 200


# The Unix socket.


def test_a_unix_socket(route: StartRoute, tmp_path: Path) -> None:
    """curl finds it there, whoever's it is; at the end it is gone."""
    path = tmp_path / "metrics.sock"
    running = route(f"metrics unix:{path}\n").forwarder
    assert metrics_url(running) == f"unix:{path}"
    command = [require_peer("curl"), "-sS", "--unix-socket", str(path), "http://localhost/metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=deadline.seconds(10))
    assert "\nfastfwd_workers_running 1.0\n" in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert running.stop() == 0
    assert not path.exists()


def test_a_unix_socket_that_somebody_left_behind(route: StartRoute, tmp_path: Path) -> None:
    """A socket on which nobody listens any more does not keep it from starting."""
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    route(f"metrics unix:{path}\n")
    assert answers(f"unix:{path}") == 200


def test_a_reload_moves_the_unix_socket(route: StartRoute, tmp_path: Path) -> None:
    """From one path to another and to a port: what is left behind is removed."""
    one, two = tmp_path / "one.sock", tmp_path / "two.sock"
    here = route(f"metrics unix:{one}\n")
    reloaded(here, f"metrics unix:{two}\n")
    assert (answers(f"unix:{two}"), one.exists()) == (200, False)
    reloaded(here, ANYWHERE)
    assert (answers(metrics_url(here.forwarder)), two.exists()) == (200, False)


# Death.


def test_a_killed_exporter_is_replaced(here: Route) -> None:
    """Its successor answers on the same port with the same counters; sessions notice nothing."""
    running = here.forwarder
    url, pid, workers = metrics_url(running), exporter_of(running), running.workers()
    with here.pair() as pair:
        here.greet(pair)
        # The worker counts after it has sent.
        until(lambda: total(scrape(url), "client_sent_bytes_total") == 4)
        before = scrape(url)
        os.kill(pid, signal.SIGKILL)
        successor(running, pid)
        after = scrape(url)  # at once: whoever comes in between waits in the queue
        here.greet(pair)
    for name in ("connections_accepted_total", "connections_active", "client_received_bytes_total"):
        assert total(before, name) == total(after, name) > 0
    assert running.workers() == workers
    assert running.said(f"exporter (process {pid}) killed by signal 9; starting another") == 1


def test_a_successor_sees_everything(here: Route) -> None:
    """What the supervisor had told the first one it tells the second one: forwards, processes and
    their open files."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    os.kill(pid, signal.SIGKILL)
    successor(running, pid)
    found = scrape(url)
    assert total(found, "forward_info") == 1
    for slot, worker in running.workers().items():
        assert found[series("worker_open_fds", slot=str(slot))] == len(processes.descriptors(worker))


def test_a_stopped_exporter_is_replaced(here: Route) -> None:
    """One that does not come round its loop is killed by the watchdog; who asked it meanwhile is
    answered by its successor."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    with processes.stopped(pid), connect((HOST, port_of(url))) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        successor(running, pid, PATIENCE)
        assert read_to_end(client).data.endswith(b"\r\n\r\nok\n")
    assert running.said("exporter has not come round its loop for 5 s; killing it") == 1


def test_it_does_not_outlive_the_supervisor(here: Route) -> None:
    """Killed with -9 the supervisor has no exporter left: the next one can have the port at once,
    although sessions go on."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    running.expected_return = {-signal.SIGKILL}
    with here.pair() as pair:
        here.greet(pair)
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: not processes.alive(pid) and free(port_of(url)), 2, "its end")
        here.greet(pair)


def test_a_stop_ends_it(here: Route) -> None:
    """TERM is the end of it too, without a word, and the port is free."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    assert running.stop() == 0
    assert (processes.alive(pid), free(port_of(url)), running.said("killed by")) == (False, True, 0)


# What it may.


def test_it_has_no_rights(here: Route) -> None:
    """Started by root it is nobody, in nobody's group and no other, without capabilities, for good
    (proc_pid_status(5))."""
    require_root()
    lines = Path(f"/proc/{exporter_of(here.forwarder)}/status").read_text().splitlines()
    found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    account = pwd.getpwnam("nobody")
    assert found["Uid"] == [str(account.pw_uid)] * 4
    assert found["Gid"] == [str(grp.getgrgid(account.pw_gid).gr_gid)] * 4
    assert found["Groups"] == []
    sets = [int(found[name][0], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
    assert sets == [0, 0, 0, 0]
    assert found["NoNewPrivs"] == ["1"]


def local_ports(pid: int) -> list[int]:
    """The local ports of the TCP sockets that `pid` holds, of each (proc_pid_net(5))."""
    held = set(processes.descriptors(pid).values())
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, _, _, _, _, _, inode, *_ = line.split()
        if f"socket:[{inode}]" in held:
            found.append(int(local.partition(":")[2], 16))
    return found


def test_it_holds_nothing_of_a_forward(here: Route) -> None:
    """Neither a listener nor a session, nor the log, not even one that was born while there were
    some: its only TCP socket is its own, and the only files are the lists of open files."""
    running = here.forwarder
    with here.pair() as pair:
        here.greet(pair)
        pid = exporter_of(running)
        os.kill(pid, signal.SIGKILL)
        pid = successor(running, pid)
        until(lambda: local_ports(pid) == [port_of(metrics_url(running))], what="nothing but its own")
        files = {each for each in processes.descriptors(pid).values() if each.startswith("/")}
        assert files <= {"/dev/null", str(running.stderr_path), str(running.directory / "stdout")} | {
            f"/proc/{worker}/fd" for worker in running.workers().values()
        }


def test_descriptors_after_reloads(here: Route) -> None:
    """Ten reloads, each with another port, leave it and the supervisor with as many descriptors
    as before."""
    running = here.forwarder
    reloaded(here, f"metrics {HOST}:{free_port()}\n")
    pids = (running.pid, exporter_of(running))
    before = [len(processes.descriptors(pid)) for pid in pids]
    for _ in range(10):
        reloaded(here, f"metrics {HOST}:{free_port()}\n")
    until(lambda: [len(processes.descriptors(pid)) for pid in pids] == before, what=f"{before} descriptors")


# Health.


def test_ready_is_when_every_slot_serves(here: Route) -> None:
    """While a worker is missing /readyz is 503 and says how many serve; then 200 again."""
    running = here.forwarder
    url = metrics_url(running)

    def missing() -> bool:
        # The third death in a row is not followed by a birth at once.
        if victim := running.workers().get(0):
            os.kill(victim, signal.SIGKILL)
        answer = request(url, "/readyz")
        return (answer.status, answer.body) == (503, b"1 of 2 workers serve\n")

    until(missing, what="a missing worker to be seen")
    until(lambda: answers(url, "/readyz") == 200, PATIENCE, "the successor")


def test_healthy_is_a_beating_worker_and_a_beating_supervisor(here: Route) -> None:
    """/healthz is 503 when nothing has beaten for 5 s, and still when the supervisor does again
    but no worker; it is 200 as soon as workers do."""
    running = here.forwarder
    url = metrics_url(running)
    until(lambda: answers(url, "/healthz") == 200, what="good health")
    with ExitStack() as stack:
        with processes.stopped(*running.workers().values()):
            with processes.stopped(running.pid):
                stack.enter_context(connect(here.address))  # queues: its length is the supervisor's to tell
                until(lambda: answers(url, "/healthz") == 503, PATIENCE, "the silence to be noticed")
            until(lambda: total(scrape(url), "listener_queue_length") == 1, what="the supervisor's next tick")
            # It beats again; the workers' last beat may have been a second after its own.
            until(lambda: answers(url, "/healthz") == 503, what="the workers' silence to be noticed")
        until(lambda: answers(url, "/healthz") == 200, what="the workers to beat")
        assert running.said("killing it") == 0


# Drain.


@pytest.fixture
def draining(here: Route) -> Iterator[Pair]:
    """Draining, with one session that is open still."""
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining")
        yield pair


def test_a_drain_is_told(here: Route, draining: Pair) -> None:
    """/status says so, with the session that it waits for; /readyz is 503 and /healthz 200."""
    url = metrics_url(here.forwarder)
    until(lambda: sessions(url) == 1, what="the worker's own count")
    found = status(url)
    assert (found["state"], found["totals"]["active"]) == ("draining", 1)
    assert (answers(url, "/readyz"), request(url, "/readyz").body) == (503, b"draining\n")


def test_a_drain_is_healthy(here: Route, draining: Pair) -> None:
    """What serves its last sessions is alive: nobody should restart it."""
    url = metrics_url(here.forwarder)
    until(lambda: answers(url, "/healthz") == 200, what="good health")


def test_a_drain_ends_with_the_last_session(here: Route, draining: Pair) -> None:
    """The exporter lives as long as a session does, and no longer."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    here.greet(draining)
    assert answers(url) == 200
    draining.client.close()
    draining.backend.close()
    assert running.wait() == 0
    assert (processes.alive(pid), free(port_of(url))) == (False, True)


def test_an_exporter_that_dies_in_a_drain_is_replaced(here: Route, draining: Pair) -> None:
    """An operator who waits for the last session goes on seeing it."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    os.kill(pid, signal.SIGKILL)
    successor(running, pid)
    assert (status(url)["state"], status(url)["totals"]["active"]) == ("draining", 1)
    here.greet(draining)
    draining.client.close()
    draining.backend.close()
    assert running.wait() == 0


# What it costs.


def proportional(pid: int) -> int:
    """The memory that is its own, and its share of what it shares, in bytes (PSS, proc_pid_smaps(5))."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_memory_with_200_forwards(forwarder: StartForwarder) -> None:
    """After 20 scrapes of everything it has 40 MiB at most."""
    require_root()  # another user's memory
    lines = "".join(f"{HOST} 0 {HOST} 1 [name=forward-{number}]\n" for number in range(200))
    running = forwarder(lines + ANYWHERE)
    url, pid = metrics_url(running), exporter_of(running)
    for _ in range(20):
        answer = request(url, "/metrics", headers={"Accept-Encoding": "gzip"})
        status(url, "?history")
    size = proportional(pid)
    print(f"{size / MIB:.1f} MiB after 20 scrapes of {len(answer.body)} bytes gzipped")  # noqa: T201
    assert size <= 40 * MIB


def test_half_open_requests_shut_nobody_out(here: Route) -> None:
    """Beside 500 clients that never end their request, a scrape is answered within a second; when
    they leave, nothing of them is left."""
    running = here.forwarder
    url, pid = metrics_url(running), exporter_of(running)
    until(lambda: local_ports(pid) == [port_of(url)], what="its clients to be gone")
    before = len(processes.descriptors(pid))
    with ExitStack() as stack:
        for _ in range(500):
            client = stack.enter_context(connect((HOST, port_of(url))))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert scrape(url, seconds=1)
        assert json.loads(request(url, "/status", seconds=1).body)["state"] == "serving"
        here.turn()
    until(lambda: len(processes.descriptors(pid)) == before, what=f"{before} descriptors")
    assert scrape(url, seconds=1)
    assert exporter_of(running) == pid
