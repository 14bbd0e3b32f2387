"""Who the processes are: root where it is needed, nobody where clients are, and an ordinary
user throughout when started by one."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect, finish, noise, read_to_end
from tests.system.metrics import scrape, total
from tests.system.namespaces import Sandbox

ORDINARY = 54_321
"""A user and group that this machine does not know by name."""


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def children(running: Forwarder) -> list[int]:
    """Its workers and its resolver, which is not waited for when others are ready."""
    resolver = running.resolver()
    assert resolver is not None
    until(lambda: status(resolver)["NoNewPrivs"] == "1", what="the resolver to drop its rights")
    return [*running.workers().values(), resolver]


def echoed(port: int) -> None:
    """Assert that the forward there carries a megabyte to an echo and back."""
    with connect(("127.0.0.1", port)) as client:
        client.sendall(noise(100_000))
        finish(client)
        assert read_to_end(client).data == noise(100_000)


@pytest.fixture
def rooted(forwarder: StartForwarder, backend: StartServer) -> Forwarder:
    """Started by root, with a resolver, in a group that it must not keep, serving an echo."""
    require_root()
    behind = backend(echo)
    groups = [require_peer("setpriv"), "--groups=0,4,27"]
    return forwarder(f"127.0.0.1 {free_port()} localhost {behind.port}\n", command=groups)


# Started by root.


def test_children_are_nobody(rooted: Forwarder) -> None:
    """Workers and resolver run as nobody: real, effective, saved and file system ids."""
    account = pwd.getpwnam("nobody")
    for pid in children(rooted):
        assert status(pid)["Uid"].split() == [str(account.pw_uid)] * 4
        assert status(pid)["Gid"].split() == [str(account.pw_gid)] * 4


def test_children_have_no_other_groups(rooted: Forwarder) -> None:
    """The starter's supplementary groups are gone."""
    assert status(rooted.pid)["Groups"].split() == ["0", "4", "27"]
    assert [status(pid)["Groups"] for pid in children(rooted)] == ["", "", ""]


def test_children_have_no_capabilities(rooted: Forwarder) -> None:
    """Nothing is effective, permitted, inheritable or ambient."""
    for pid in children(rooted):
        found = status(pid)
        sets = [int(found[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
        assert sets == [0, 0, 0, 0]


def test_children_cannot_gain_rights(rooted: Forwarder) -> None:
    """no_new_privs is set: no program they could be made to run gives them any back."""
    assert [status(pid)["NoNewPrivs"] for pid in children(rooted)] == ["1", "1", "1"]


def test_the_supervisor_keeps_its_rights(rooted: Forwarder) -> None:
    """It may have to bind a low port at the next reload."""
    found = status(rooted.pid)
    assert found["Uid"].split() == ["0"] * 4
    assert int(found["CapEff"], 16) != 0


def test_a_replaced_worker_is_nobody_too(rooted: Forwarder) -> None:
    """A successor drops its rights as its predecessor did."""
    old = rooted.worker(0)
    os.kill(old, 9)
    until(lambda: rooted.workers().get(0, old) != old, what="the replacement")
    rooted.reload()  # it has served by then
    found = status(rooted.worker(0))
    assert found["Uid"].split() == [str(pwd.getpwnam("nobody").pw_uid)] * 4
    assert (found["Groups"], int(found["CapEff"], 16), found["NoNewPrivs"]) == ("", 0, "1")


def test_the_log_is_the_supervisor_s(rooted: Forwarder) -> None:
    """The log is root's, and workers append to what they were given."""
    found = rooted.log_path.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode) & 0o022) == (0, 0)


def test_low_ports_come_with_a_reload(forwarder: StartForwarder, backend: StartServer) -> None:
    """A reload may add a port below 1024, although no worker could bind it."""
    with Sandbox(network=True) as inside:
        behind = inside.call(backend, echo)
        running = inside.call(forwarder, "")
        running.reload(f"127.0.0.1 81 {behind.host} {behind.port}\n")
        inside.call(echoed, 81)


def somebody() -> tuple[pwd.struct_passwd, grp.struct_group]:
    """A user other than root and nobody, and a group that is not the user's own."""
    user = next(each for each in pwd.getpwall() if each.pw_uid not in (0, pwd.getpwnam("nobody").pw_uid))
    return user, next(each for each in grp.getgrall() if each.gr_gid not in (0, user.pw_gid))


@pytest.mark.parametrize("directives", [("user",), ("group",), ("user", "group")])
def test_the_account_can_be_chosen(forwarder: StartForwarder, directives: tuple[str, ...]) -> None:
    """`user` and `group` name who the workers are; a user comes with the group of its account."""
    require_root()
    user, group = somebody()
    lines = {"user": f"user {user.pw_name}\n", "group": f"group {group.gr_name}\n"}
    running = forwarder(f"127.0.0.1 {free_port()} 192.0.2.1 1\n" + "".join(map(lines.get, directives)))  # type: ignore[arg-type]
    expected_user = user if "user" in directives else pwd.getpwnam("nobody")
    expected_group = group.gr_gid if "group" in directives else expected_user.pw_gid
    for pid in running.workers().values():
        found = status(pid)
        assert found["Uid"].split() == [str(expected_user.pw_uid)] * 4
        assert found["Gid"].split() == [str(expected_group)] * 4
        assert (found["Groups"], int(found["CapEff"], 16)) == ("", 0)


def test_a_worker_that_cannot_drop_its_rights_does_not_serve(forwarder: StartForwarder) -> None:
    """If root may not change its user (no CAP_SETUID) the start fails instead of serving as root."""
    require_root()
    setpriv = [require_peer("setpriv"), "--bounding-set=-setuid", "--inh-caps=-setuid"]
    running = forwarder(f"127.0.0.1 {free_port()} 192.0.2.1 1\n", command=setpriv, ready=False)
    running.expected_return = {1}
    assert running.wait() == 1
    assert running.said("cannot become uid") >= 1
    assert running.said("ready:") == 0


# Started by an ordinary user.


StartOrdinary = Callable[..., Forwarder]


@pytest.fixture
def own() -> Iterator[Path]:
    """A directory of the ordinary user's, where that user can reach it."""
    require_root()
    with tempfile.TemporaryDirectory(prefix="fastfwd-") as name:
        os.chown(name, ORDINARY, ORDINARY)
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def ordinary(own: Path) -> Iterator[StartOrdinary]:
    """Call it with the arguments of `Forwarder` after the directory: started by an ordinary user."""
    user = f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--inh-caps=-all"
    command = [require_peer("setpriv"), *user]
    with Sandbox() as inside, ExitStack() as started:
        inside.open_way_to_python()

        def start(config: str, **options: object) -> Forwarder:
            running: Forwarder = inside.call(Forwarder, own, config, command=command, log=False, **options)
            started.callback(running.close)
            return running

        yield start


def test_an_ordinary_user_can_run_it(ordinary: StartOrdinary, backend: StartServer, own: Path) -> None:
    """Without root it forwards, logs and keeps a pid file, and every process is that user."""
    port, behind = free_port(), backend(echo)
    log, pid_file = own / "log", own / "pid"
    config = f"127.0.0.1 {port} localhost {behind.port}\nlogfile {log}\npidlogfile {pid_file}\n"
    running = ordinary(config)
    echoed(port)
    until(lambda: "done-remote-closed" in log.read_text(), what="the log line")
    assert pid_file.read_text() == f"{running.pid}\n"
    for pid in (running.pid, *children(running)):
        found = status(pid)
        assert found["Uid"].split() == [str(ORDINARY)] * 4
        assert int(found["CapEff"], 16) == 0
    assert running.stop() == 0
    assert not pid_file.exists()


def test_children_of_an_ordinary_user_cannot_gain_rights(ordinary: StartOrdinary) -> None:
    """no_new_privs is set for workers and resolver here too."""
    running = ordinary(f"127.0.0.1 {free_port()} localhost 1\n")
    assert [status(pid)["NoNewPrivs"] for pid in children(running)] == ["1", "1", "1"]


def test_an_ordinary_user_can_reload(ordinary: StartOrdinary, backend: StartServer) -> None:
    """A reload adds a forward, and a dead worker is replaced, without root."""
    port, behind = free_port(), backend(echo)
    running = ordinary("", workers=1)
    running.reload(f"127.0.0.1 {port} {behind.host} {behind.port}\n")
    echoed(port)
    old = running.worker(0)
    os.kill(old, 9)
    until(lambda: running.workers().get(0, old) != old, what="the replacement")
    echoed(port)


def test_an_ordinary_user_cannot_have_a_low_port(ordinary: StartOrdinary) -> None:
    """A port that the user may not bind is refused with line, address and reason."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("every port may be bound here")
    running = ordinary("127.0.0.1 1 192.0.2.1 1\n", ready=False)
    running.expected_return = {1}
    assert running.wait() == 1
    assert running.said("rinetd.conf:1: cannot listen on 127.0.0.1:1/tcp: Permission denied") == 1


def test_the_account_is_root_s_business(ordinary: StartOrdinary, backend: StartServer) -> None:
    """An ordinary user's `user` directive cannot make anybody else of it, and does not stop it."""
    port, behind = free_port(), backend(echo)
    running = ordinary(f"127.0.0.1 {port} {behind.host} {behind.port}\nuser nobody\n")
    echoed(port)
    assert status(running.worker(0))["Uid"].split() == [str(ORDINARY)] * 4


# Started by an ordinary user with a capability, as systemd does it (AmbientCapabilities=).


@pytest.fixture
def capable(own: Path) -> Iterator[Callable[..., tuple[Sandbox, Forwarder]]]:
    """Call it with a configuration and capabilities (`net_bind_service`): an ordinary user's program that has
    these, in a network of its own."""
    with Sandbox(network=True) as inside, ExitStack() as started:
        inside.open_way_to_python()

        def start(config: str, *names: str) -> tuple[Sandbox, Forwarder]:
            sets = ",".join(f"+{name}" for name in names)
            user = f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"
            command = [require_peer("setpriv"), *user, f"--inh-caps={sets}", f"--ambient-caps={sets}"]
            running: Forwarder = inside.call(Forwarder, own, config, command=command, log=False)
            started.callback(running.close)
            return inside, running

        yield start


StartCapable = Callable[..., tuple[Sandbox, Forwarder]]


def capability_sets(pid: int) -> set[int]:
    """What is in the sets that say what a process can do."""
    found = status(pid)
    return {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}


def test_low_ports_without_root(capable: StartCapable) -> None:
    """The supervisor binds them, at start and at a reload; no other process keeps the right."""
    line = "127.0.0.1 {} localhost 1\n"
    inside, running = capable(line.format(81), "net_bind_service")
    running.reload(line.format(81) + line.format(82))
    inside.call(connect, ("127.0.0.1", 82)).close()
    for pid in children(running):
        assert capability_sets(pid) == {0}
    assert capability_sets(running.pid) == {1 << 10}


def test_memory_is_closed_to_children_with_fewer_rights(capable: StartCapable) -> None:
    """They have the supervisor's account, but not its rights, and must not take them from its memory."""
    _, running = capable("127.0.0.1 81 localhost 1\n", "net_bind_service")
    for pid in (running.pid, *children(running)):
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # not dumpable: proc_pid(5)


def test_open_files_are_counted_all_the_same(capable: StartCapable) -> None:
    """The exporter is given what it may not look at."""
    inside, _ = capable("127.0.0.1 81 192.0.2.1 1\nmetrics 127.0.0.1:9464\n", "net_bind_service")

    def counted() -> float:
        return total(inside.call(scrape, "http://127.0.0.1:9464/"), "worker_open_fds")

    until(lambda: counted() > 0, what="the figure")


def test_a_mark_keeps_its_capability_and_no_other(capable: StartCapable) -> None:
    """Of two that were given, workers have the one that a forward needs."""
    _, running = capable("127.0.0.1 81 192.0.2.1 1 [mark=7]\n", "net_bind_service", "net_admin")
    for pid in running.workers().values():
        assert capability_sets(pid) == {0, 1 << 12}


def test_every_worker_has_pipes(capable: StartCapable) -> None:
    """Without root the kernel counts those of all workers together; none takes the others' share."""
    metrics = "metrics 127.0.0.1:9464\n"
    inside, running = capable(f"127.0.0.1 81 192.0.2.1 1\nworkers 4\n{metrics}", "net_bind_service")

    def idle() -> list[float]:
        found = inside.call(scrape, "http://127.0.0.1:9464/")
        return [total(found, "pipes", slot=f"{slot}", state="idle") for slot in running.workers()]

    until(lambda: min(idle()) >= 16, what="16 pipes of each")
    assert max(idle()) == min(idle())
