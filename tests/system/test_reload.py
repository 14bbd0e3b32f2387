"""SIGHUP: the configuration changes, the service does not notice.

Nothing that is open is touched, nothing that waits is lost, and a configuration that
cannot be had leaves the one that serves alone.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.load import Load, stream_on_every_worker, successor
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import Address, Listener, connect, read_exactly, read_to_end
from tests.system.sites import ENOUGH, HOST, Site, StartSite, all_greet, greeting, lives, session


def descriptors(forwarder: Forwarder) -> dict[str, int]:
    """How many descriptors the supervisor and each worker hold."""
    held = {"supervisor": len(processes.descriptors(forwarder.pid))}
    for slot, pid in sorted(forwarder.workers().items()):
        held[f"worker {slot}"] = len(processes.descriptors(pid))
    return held


# Under load.


@dataclass(frozen=True, slots=True)
class Reloading:
    """What became of a load through 20 reloads, and what the program said of them."""

    load: Load
    reloaded: int


@pytest.fixture(scope="module")
def reloading(tmp_path_factory: pytest.TempPathFactory) -> Reloading:
    """300 connections per second and long streams while 20 reloads add and remove other forwards."""
    port, *others = (free_port() for _ in range(4))
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        target = f"{backend.host} {backend.port}\n"
        kept = f"logformat json\n{HOST} {port} {target}"
        forwarder = stack.enter_context(Forwarder(tmp_path_factory.mktemp("reloading"), kept, workers=2))
        load = stack.enter_context(Load((HOST, port), 300))
        stream_on_every_worker(load, forwarder)
        for number in range(20):
            load.more(30)
            added = "".join(f"{HOST} {each} {target}" for each in others[: number % 4])
            forwarder.reload(added + kept if number % 2 else kept + added)
        load.more(30)
        load.stop()
        return Reloading(load, forwarder.said("reloaded:"))
    raise AssertionError("unreachable")


def test_reloads_under_load_happen(reloading: Reloading) -> None:
    """All 20 are carried out."""
    assert reloading.reloaded == 20


def test_no_connection_is_lost_by_reloads(reloading: Reloading) -> None:
    """Of 300 connections per second none is refused, reset or cut short by a reload."""
    assert len(reloading.load.calls) >= 20 * 30
    assert reloading.load.failed() == []


def test_no_byte_is_lost_by_reloads(reloading: Reloading) -> None:
    """Every stream that lived through 20 reloads has all its bytes echoed, in order."""
    streams = reloading.load.streams
    assert [each for each in streams if each.how != "ok" or each.verified != each.sent] == []


# What a reload changes, and what it does not.


def test_an_added_forward_answers(site: StartSite) -> None:
    """A forward that a reload brings takes connections, on every worker."""
    here = site()
    port = free_port()
    here.forwarder.reload(here.line(here.port) + here.line(port, "two"))
    assert all_greet((HOST, port), "two")


def test_sessions_of_a_removed_forward_live_on(site: StartSite) -> None:
    """A session whose forward is gone still echoes."""
    here = site()
    with ExitStack() as stack:
        clients = [stack.enter_context(session(here.address)) for _ in range(8)]
        here.forwarder.reload(here.line(free_port()))
        until(lambda: greeting(here.address) == "refused")
        assert all(map(lives, clients))


def test_a_removed_forward_refuses(site: StartSite) -> None:
    """Nobody listens any more where a forward was removed."""
    here = site()
    here.forwarder.reload(here.line(free_port()))
    until(lambda: all_greet(here.address, "refused"), what="refused connections")


def test_clients_queued_at_a_removed_forward_are_served(site: StartSite) -> None:
    """Who was in the queue when the forward was removed is not reset."""
    here = site()
    workers = here.forwarder.workers().values()
    with ExitStack() as stack:
        processes.stop(*workers)
        # Many more than a worker accepts before it hears of the reload.
        clients = [stack.enter_context(connect(here.address)) for _ in range(10 * ENOUGH)]
        here.forwarder.configure(here.line(free_port()))
        here.forwarder.hup()
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        here.forwarder.wait_reloaded(1)
        assert {read_exactly(client, 3) for client in clients} == {b"one"}


def test_a_removed_forward_comes_back(site: StartSite) -> None:
    """A forward that was removed can be added again, while its old sessions live."""
    here = site()
    with session(here.address) as client:
        here.forwarder.reload(here.line(free_port()))
        until(lambda: greeting(here.address) == "refused")
        here.forwarder.reload(here.line(here.port, "two"))
        assert all_greet(here.address, "two")
        assert lives(client)


def test_a_changed_target_is_for_new_sessions(site: StartSite) -> None:
    """After the reload every new session reaches the new backend."""
    here = site()
    here.forwarder.reload(here.line(here.port, "two"))
    until(lambda: all_greet(here.address, "two"), what="the new backend")


def test_a_changed_target_leaves_sessions_alone(site: StartSite) -> None:
    """A session stays with the backend it began with."""
    here = site()
    with session(here.address) as client:
        here.forwarder.reload(here.line(here.port, "two"))
        until(lambda: all_greet(here.address, "two"), what="the new backend")
        assert lives(client)
    assert here.one.visit(0).ended.wait(10)


def test_a_new_rule_is_for_new_connections(site: StartSite) -> None:
    """After the reload a new `deny` turns clients away."""
    here = site()
    here.forwarder.reload(here.line(here.port) + f"deny {HOST}\n")
    until(lambda: all_greet(here.address, ""), what="denied clients")


def test_a_new_rule_leaves_sessions_alone(site: StartSite) -> None:
    """A session that a new `deny` would not have let in goes on."""
    here = site()
    with session(here.address) as client:
        here.forwarder.reload(f"deny {HOST}\n" + here.line(here.port))
        until(lambda: all_greet(here.address, ""), what="denied clients")
        assert lives(client)


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_the_last_line_of_a_session_names_its_own_forward(site: StartSite, change: str) -> None:
    """A session that outlives its forward is logged with the fields it began with."""
    here = site()
    with session(here.address):
        port = here.port if change == "changed" else free_port()
        here.forwarder.reload(here.line(port, "two"))
        until(lambda: greeting((HOST, port)) == "two")
    here.forwarder.wait_log(2, f"\t{here.one.port}\t")
    opened, done = (
        line for line in here.forwarder.log_columns() if line["connect_port"] == str(here.one.port)
    )
    ends = ("client", "listen", "listen_port", "connect", "connect_port")
    assert done["outcome"] == "done-remote-closed"
    assert [done[name] for name in ends] == [opened[name] for name in ends]


@pytest.mark.parametrize(("old", "new"), [(HOST, "0.0.0.0"), ("0.0.0.0", HOST)])
def test_an_address_is_swapped_for_a_wildcard(site: StartSite, old: str, new: str) -> None:
    """127.0.0.1 and 0.0.0.0 on the same port replace each other."""
    here = site()
    port = free_port()
    here.forwarder.reload(here.line(port, host=old))
    here.forwarder.reload(here.line(port, "two", host=new))
    until(lambda: all_greet((HOST, port), "two"), what="the new forward")
    assert greeting(("127.0.0.2", port)) == ("two" if new == "0.0.0.0" else "refused")


@pytest.mark.parametrize("directive", ["workers 3", "user daemon", "group daemon", "pidlogfile other.pid"])
def test_what_only_a_start_can_change_is_said(site: StartSite, directive: str) -> None:
    """A reload that changes `workers`, `user`, `group` or `pidlogfile` warns with file and line."""
    here = site()
    here.forwarder.reload(here.line(here.port) + f"{directive}\n")
    name = directive.split(maxsplit=1)[0]
    assert here.forwarder.said(f"{here.forwarder.config_path}:2: {name} takes effect at the next start") == 1


def test_changed_workers_change_nothing_now(site: StartSite) -> None:
    """The worker processes stay those of the start."""
    here = site()
    before = here.forwarder.workers()
    here.forwarder.reload(here.line(here.port) + "workers 4\n")
    assert all_greet(here.address, "one")
    assert here.forwarder.workers() == before


# Configurations that cannot be had.


def syntax(here: Site, stack: ExitStack) -> str:
    """Not a line of rinetd's."""
    here.forwarder.configure(here.line(here.port, "two") + f"{HOST} 80 nowhere\n")
    return ":2: "


def missing(here: Site, stack: ExitStack) -> str:
    """No file at all."""
    here.forwarder.config_path.unlink()
    return ": cannot read it: No such file"


def taken(here: Site, stack: ExitStack) -> str:
    """A good forward, a changed one, and a port that another process has."""
    other = stack.enter_context(Listener())
    lines = here.line(free_port()), here.line(here.port, "two"), here.line(other.port)
    here.forwarder.configure("".join(lines))
    return f":3: cannot listen on {HOST}:{other.port}/tcp: Address already in use"


def unresolvable(here: Site, stack: ExitStack) -> str:
    """A name that nobody can resolve (RFC 6761, 6.4)."""
    here.forwarder.configure(
        here.line(here.port, "two") + here.line(free_port(), host="no-such-host.invalid")
    )
    return ":2: expected "


def directory(here: Site, stack: ExitStack) -> str:
    """A directory in the file's place."""
    here.forwarder.config_path.unlink()
    here.forwarder.config_path.mkdir()
    return ": expected a file, found a directory"


def unreadable(here: Site, stack: ExitStack) -> str:
    """A file that opens but cannot be read, even by root: a process' memory at address 0."""
    here.forwarder.config_path.unlink()
    here.forwarder.config_path.symlink_to("/proc/self/mem")
    return ": cannot read it: Input/output error"


BAD = pytest.mark.parametrize("spoil", [syntax, missing, taken, unresolvable, directory, unreadable])
Spoil = Callable[[Site, ExitStack], str]


@BAD
def test_a_refused_reload_leaves_the_old_configuration_serving(site: StartSite, spoil: Spoil) -> None:
    """New clients still reach what they reached before, on every worker."""
    here = site()
    with ExitStack() as stack:
        spoil(here, stack)
        here.forwarder.reload()
        assert all_greet(here.address, "one")


@BAD
def test_a_refused_reload_leaves_sessions_alone(site: StartSite, spoil: Spoil) -> None:
    """Open sessions still echo."""
    here = site()
    with ExitStack() as stack:
        clients = [stack.enter_context(session(here.address)) for _ in range(8)]
        spoil(here, stack)
        here.forwarder.reload()
        assert all(map(lives, clients))


@BAD
def test_a_refused_reload_says_why(site: StartSite, spoil: Spoil) -> None:
    """The error is reported with file and line, and that the old configuration goes on."""
    here = site()
    with ExitStack() as stack:
        expected = spoil(here, stack)
        here.forwarder.reload()
        assert here.forwarder.said(f"{here.forwarder.config_path}{expected}") == 1
        assert here.forwarder.said("reload refused: 1 problem; the old configuration goes on") == 1


@BAD
def test_a_refused_reload_holds_nothing(site: StartSite, spoil: Spoil) -> None:
    """No descriptor of the refused configuration stays open."""
    here = site()
    # The resolver, which the first name calls into being, stays.
    here.forwarder.reload(here.line(here.port) + here.line(free_port(), host="localhost"))
    here.forwarder.reload(here.line(here.port))
    before = descriptors(here.forwarder)
    with ExitStack() as stack:
        spoil(here, stack)
        here.forwarder.reload()
        until(lambda: descriptors(here.forwarder) == before, what=f"{before}")


@BAD
def test_a_good_reload_after_a_refused_one(site: StartSite, spoil: Spoil) -> None:
    """The next good configuration is taken."""
    here = site()
    with ExitStack() as stack:
        spoil(here, stack)
        here.forwarder.reload()
        clear(here.forwarder.config_path)
        here.forwarder.reload(here.line(here.port, "two"))
        until(lambda: all_greet(here.address, "two"), what="the new backend")


def clear(path: Path) -> None:
    """Remove whatever is at `path`."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def test_refused_reloads_in_quick_succession_kill_nobody(site: StartSite) -> None:
    """The workers of the start survive 30 bad configurations in a row, and so do their sessions."""
    here = site(log=False)  # a log is reopened, which would wake them
    before = here.forwarder.workers()
    with session(here.address) as client:
        for _ in range(30):
            here.forwarder.reload("nonsense\n")
        assert here.forwarder.workers() == before
        assert lives(client)


def test_a_removal_that_is_refused_can_be_taken_back(site: StartSite) -> None:
    """A forward whose removal was refused by one worker obeys the next reload on all of them."""
    # The limit of a process of another account could not be set without CAP_SYS_RESOURCE.
    here = site(f"user {pwd.getpwuid(os.geteuid()).pw_name}\n")
    worker = here.forwarder.worker(0)
    limit = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (1, limit[1]))  # it cannot take the new log
    try:
        here.forwarder.reload("\n")
    finally:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limit)
    assert here.forwarder.said("reload refused:") == 1
    here.forwarder.reload(here.line(here.port, "two"))
    until(lambda: all_greet(here.address, "two"), what="the new backend")


# Many, and at bad moments.


def test_a_storm_of_signals_settles(site: StartSite) -> None:
    """After 100 SIGHUPs at once the program serves the new configuration and takes another one."""
    here = site()
    port = free_port()
    with session(here.address) as client:
        here.forwarder.configure(here.line(here.port, "two") + here.line(port))
        for _ in range(100):
            here.forwarder.hup()
        until(lambda: greeting((HOST, port)) == "one", what="the added forward")
        until(lambda: all_greet(here.address, "two"), what="the new backend")
        here.forwarder.reload(here.line(here.port))
        until(lambda: all_greet(here.address, "one"), what="the old backend")
        until(lambda: all_greet((HOST, port), "refused"), what="the removed forward")
        assert lives(client)


def test_descriptors_after_50_reloads(site: StartSite) -> None:
    """Supervisor and workers hold as many descriptors after 50 changes as before."""
    here = site()
    ports = [free_port() for _ in range(5)]
    before = descriptors(here.forwarder)
    for number in range(50):
        kept = here.line(here.port, "two" if number % 3 else "one")
        here.forwarder.reload(kept + "".join(map(here.line, ports[: number % 6])))
    here.forwarder.reload(here.line(here.port))
    until(lambda: descriptors(here.forwarder) == before, what=f"{before}")


def test_workers_killed_during_reloads_serve_the_last_configuration(site: StartSite) -> None:
    """Every forward answers, on every worker, after 16 workers were killed amid as many reloads."""
    here = site(workers=8)
    ports = [free_port() for _ in range(4)]
    for number, (slot, victim) in enumerate(list(here.forwarder.workers().items()) * 2):
        here.forwarder.configure("".join(map(here.line, ports[: number % 5])) + here.line(here.port))
        here.forwarder.hup()
        pid = here.forwarder.worker(slot) if number >= 8 else victim
        os.kill(pid, signal.SIGKILL)
        successor(here.forwarder, slot, pid)
    here.forwarder.reload("".join(here.line(port, "two") for port in ports) + here.line(here.port))
    for port in ports:
        until(lambda: all_greet((HOST, port), "two"), what="the last configuration")  # noqa: B023


def stopped_reload(here: Site, config: str, listening: int) -> tuple[int, int]:
    """Ask for a reload to `config` while worker 1 is stopped, so that it waits for that one.

    Returns the pids of workers 0 and 1 once `listening`, a port of `config`, is open.
    """
    answering, waiting = here.forwarder.worker(0), here.forwarder.worker(1)
    processes.stop(waiting)
    here.forwarder.configure(config)
    here.forwarder.hup()
    until(lambda: listens((HOST, listening)), what=f"port {listening}")
    return answering, waiting


def listens(address: Address) -> bool:
    """Whether somebody listens at `address`; the connection is given up again."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_worker_born_during_a_reload_serves_it(site: StartSite) -> None:
    """A worker whose predecessor died between the two phases of a reload takes part in it."""
    here = site()
    port = free_port()
    config = here.line(here.port, "two") + here.line(port)
    answering, waiting = stopped_reload(here, config, port)
    os.kill(answering, signal.SIGKILL)
    successor(here.forwarder, 0, answering)
    os.kill(waiting, signal.SIGCONT)
    here.forwarder.wait_reloaded(1)
    until(lambda: all_greet(here.address, "two"), what="the changed forward")
    assert all_greet((HOST, port), "one")


def test_a_worker_born_during_a_reload_holds_nothing_else(site: StartSite) -> None:
    """It has as many descriptors as a worker that lived through the reload."""
    here = site()
    port = free_port()
    answering, waiting = stopped_reload(here, here.line(here.port) + here.line(port), port)
    os.kill(answering, signal.SIGKILL)
    successor(here.forwarder, 0, answering)
    os.kill(waiting, signal.SIGCONT)
    here.forwarder.wait_reloaded(1)
    assert all_greet((HOST, port), "one")
    until(lambda: (held := descriptors(here.forwarder))["worker 0"] == held["worker 1"])


def test_a_worker_born_during_a_reload_leaves_no_listener_behind(site: StartSite) -> None:
    """A forward that came with the reload it was born in can be removed: nobody listens then."""
    here = site()
    port = free_port()
    answering, waiting = stopped_reload(here, here.line(here.port) + here.line(port), port)
    os.kill(answering, signal.SIGKILL)
    successor(here.forwarder, 0, answering)
    os.kill(waiting, signal.SIGCONT)
    here.forwarder.wait_reloaded(1)
    assert all_greet((HOST, port), "one")
    here.forwarder.reload(here.line(here.port))
    until(lambda: not listens((HOST, port)), what="the removed port to be free")


def test_a_reload_brings_back_what_the_one_before_removed(site: StartSite) -> None:
    """A reload that was asked for while another one removes a forward may add it again."""
    here = site()
    other = free_port()
    _, waiting = stopped_reload(here, here.line(other), other)
    here.forwarder.configure(here.line(here.port))
    here.forwarder.hup()
    os.kill(waiting, signal.SIGCONT)
    here.forwarder.wait_reloaded(2)
    assert here.forwarder.said("reload refused:") == 0, here.forwarder.stderr()
    until(lambda: all_greet(here.address, "one"), what="the forward that came back")


def order_together(forwarder: Forwarder, *orders: signal.Signals) -> None:
    """Send all of `orders` so that the program finds them at once."""
    with processes.stopped(forwarder.pid):
        for order in orders:
            forwarder.send(order)


def test_a_reload_together_with_a_drain_leaves_sessions_alone(site: StartSite) -> None:
    """A SIGHUP that comes together with the order to drain does not end a session."""
    here = site()
    with ExitStack() as stack:
        clients = [stack.enter_context(session(here.address)) for _ in range(8)]
        workers = here.forwarder.workers()
        here.forwarder.configure(here.line(here.port, "two"))
        order_together(here.forwarder, signal.SIGHUP, signal.SIGUSR1)
        until(lambda: greeting(here.address) == "refused")
        # Two more, which a draining program only answers: by then the first one is over.
        for count in (1, 2):
            here.forwarder.hup()
            here.forwarder.wait_said("but not reloading", count)
        assert all(map(lives, clients))
        assert here.forwarder.workers() == workers
    assert here.forwarder.wait() == 0


def test_a_reload_together_with_a_stop(site: StartSite) -> None:
    """A SIGHUP that comes together with the order to stop does not delay or disturb it."""
    here = site()
    here.forwarder.configure(here.line(here.port, "two"))
    order_together(here.forwarder, signal.SIGHUP, signal.SIGTERM)
    assert here.forwarder.wait() == 0
    assert not re.search("failed|Traceback", here.forwarder.stderr()), here.forwarder.stderr()


def test_ends_are_read(site: StartSite) -> None:
    """A session that a reload left alone still ends as its client ends it."""
    here = site()
    with session(here.address) as client:
        here.forwarder.reload(here.line(free_port()))
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client).data == b"last words"
