"""How it ends: at once, when its sessions are over, or one process after the other."""

from __future__ import annotations

import os
import select
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests import processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import columns
from tests.ports import bindable, free_port
from tests.servers import echo
from tests.sockets import Listener, Sending, connect, finish, noise, read_exactly, read_to_end
from tests.system.conftest import StartRoute

MIB = 1 << 20

STOPS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        connect(("127.0.0.1", port)).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


# Stop.


@STOPS
def test_a_stop_is_exit_0(route: StartRoute, number: signal.Signals) -> None:
    """TERM and INT end every process; the status is 0 and the port free."""
    here = route("# localhost, for a resolver\n127.0.0.1 0 localhost 1\n", workers=2)
    children = [child.pid for child in processes.children(here.forwarder.pid)]
    assert len(children) == 3
    assert here.forwarder.stop(number) == 0
    assert not any(map(processes.alive, children))
    assert bindable(socket.AF_INET, socket.SOCK_STREAM, *here.address)


@STOPS
def test_a_stop_ends_open_sessions(route: StartRoute, number: signal.Signals) -> None:
    """Both sides of every session see its end."""
    here = route()
    with here.pair() as one, here.pair() as two:
        here.greet(one)
        here.greet(two)
        assert here.forwarder.stop(number) == 0
        for end in (one.client, one.backend, two.client, two.backend):
            assert read_to_end(end).data == b""


def test_a_stop_logs_open_sessions(route: StartRoute) -> None:
    """Every session has its last line, with its bytes (rinetd writes none)."""
    here = route(workers=2)
    with ExitStack() as stack:
        for _ in range(10):
            here.greet(stack.enter_context(here.pair()))
        assert here.forwarder.stop() == 0
        ended = [line for line in map(columns, here.forwarder.log_lines()) if line["outcome"] != "opened"]
        assert [(line["bytes_in"], line["bytes_out"]) for line in ended] == [("4", "4")] * 10


def test_a_stop_does_not_wait_for_a_stalled_session(route: StartRoute) -> None:
    """A session in which nobody reads does not hold up the end."""
    here = route()
    with here.pair() as pair, Sending(pair.client, noise(16 * MIB)):
        until(lambda: not here.forwarder.stop(), what="the end")
        assert read_to_end(pair.backend).how in ("ECONNRESET", "EOF")


def test_bytes_held_at_a_stop_are_not_missed_in_silence(route: StartRoute) -> None:
    """A side that would miss bytes which the forwarder has taken sees a reset, not a clean end."""
    here = route()
    data = noise(MIB) * 64
    with here.pair() as pair:
        pair.client.setblocking(False)
        sent = 0
        room = select.poll()
        room.register(pair.client, select.POLLOUT)
        while room.poll(100):  # until the whole way is full
            assert sent < len(data)
            sent += pair.client.send(data[sent : sent + MIB])
        assert here.forwarder.stop() == 0
        ending = read_to_end(pair.backend)
        assert ending.how == "ECONNRESET"
        assert data.startswith(ending.data)


def test_a_second_stop_is_at_once(route: StartRoute) -> None:
    """A second TERM does not wait for a worker that does not answer."""
    here = route()
    os.kill(here.forwarder.worker(0), signal.SIGSTOP)
    held = len(processes.descriptors(here.forwarder.pid))
    here.forwarder.send(signal.SIGTERM)
    until(lambda: len(processes.descriptors(here.forwarder.pid)) < held, what="its listeners to close")
    here.forwarder.send(signal.SIGTERM)
    assert here.forwarder.wait(4) == 0  # less than the 5 s that workers have otherwise
    assert here.forwarder.said("stopping at once") == 1


def test_many_stops_are_one(route: StartRoute) -> None:
    """A burst of TERM and INT ends like one."""
    here = route(workers=2)
    for _ in range(20):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                here.forwarder.send(number)
            except ProcessLookupError:
                break
    assert here.forwarder.wait() == 0


def test_a_terminal_s_interrupt_reaches_all(route: StartRoute) -> None:
    """Ctrl-C goes to every process of the group: the end is as clean as by one signal."""
    here = route("127.0.0.1 0 localhost 1\n", workers=2)
    with here.pair() as pair:
        here.greet(pair)
        os.killpg(here.forwarder.pid, signal.SIGINT)
        assert here.forwarder.wait() == 0
    assert here.forwarder.said("killed by signal") == 0
    assert len(here.forwarder.wait_log(1, "done-")) == 1


# Drain.


def test_a_drain_refuses_newcomers(route: StartRoute) -> None:
    """After USR1 nobody new gets in, while an open session goes on."""
    here = route(workers=2)
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        until(lambda: refuses(here.address[1]), what="the listeners to close")
        here.greet(pair)
        assert here.forwarder.running()


def test_a_drain_ends_with_the_last_session(route: StartRoute) -> None:
    """When the last session is over the program ends, with 0, by itself."""
    here = route(workers=2)
    with here.pair() as one, here.pair() as two:
        here.greet(one)
        here.greet(two)
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining: no new connections")
        one.client.close()
        assert read_to_end(one.backend).how == "EOF"
        one.backend.close()
        here.greet(two)
        assert here.forwarder.running()
    assert here.forwarder.wait() == 0
    assert here.forwarder.said("stopped") == 1


def test_sessions_of_a_drain_are_exact(route: StartRoute) -> None:
    """A transfer in both directions that a drain meets halfway is complete."""
    here = route()
    up, down = noise(8 * MIB, 1), noise(8 * MIB, 2)
    with here.pair() as pair, ThreadPoolExecutor(2) as readers:
        with Sending(pair.client, up), Sending(pair.backend, down):
            first = read_exactly(pair.backend, MIB)
            here.forwarder.send(signal.SIGUSR1)
            here.forwarder.wait_said("draining")
            backend, client = readers.map(read_to_end, (pair.backend, pair.client))
        assert first + backend.data == up
        assert client.data == down
        assert (backend.how, client.how) == ("EOF", "EOF")
    assert here.forwarder.wait() == 0


def test_a_drain_serves_who_is_queued(route: StartRoute) -> None:
    """Clients who were connected when the drain began, but not accepted yet, are served."""
    here = route(workers=2)
    with ExitStack() as stack:
        with here.frozen():
            clients = [stack.enter_context(connect(here.address)) for _ in range(40)]
            here.forwarder.send(signal.SIGUSR1)
            here.forwarder.wait_said("draining")
        for number, client in enumerate(clients):
            client.sendall(b"%02d" % number)
        backends = [stack.enter_context(here.listener.accept()) for _ in clients]
        assert sorted(read_exactly(backend, 2) for backend in backends) == [b"%02d" % n for n in range(40)]
    assert here.forwarder.wait() == 0


def test_a_drain_without_sessions_is_an_end(route: StartRoute) -> None:
    """With nothing to finish it ends at once, resolver included."""
    here = route("127.0.0.1 0 localhost 1\n", workers=2)
    assert here.forwarder.stop(signal.SIGUSR1) == 0


def test_a_stop_ends_a_drain(route: StartRoute) -> None:
    """TERM ends the wait for the last session, which is logged."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining")
        assert here.forwarder.stop() == 0
        assert len(here.forwarder.wait_log(1, "done-")) == 1


def test_a_second_drain_changes_nothing(route: StartRoute) -> None:
    """USR1 again, and HUP, do no harm: nothing is reloaded, and what listens stays closed."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining")
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.hup()
        here.forwarder.wait_said("not reloading")
        here.greet(pair)
    assert here.forwarder.wait() == 0
    assert here.forwarder.said("draining: ") == 1


def test_a_worker_that_dies_in_a_drain_is_not_replaced(route: StartRoute) -> None:
    """There is nothing for a successor to do: the end comes without one."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining")
        os.kill(here.forwarder.worker(0), signal.SIGKILL)
        assert here.forwarder.wait() == 0


# One process alone.


def test_a_worker_that_is_told_to_stop_is_replaced(route: StartRoute) -> None:
    """TERM to a worker ends its sessions, with their lines, and a successor serves the next client."""
    here = route()
    old = here.forwarder.worker(0)
    with here.pair() as pair:
        here.greet(pair)
        os.kill(old, signal.SIGTERM)
        assert read_to_end(pair.client).data == b""
    until(lambda: here.forwarder.workers().get(0, old) != old, what="the successor")
    here.turn()
    assert here.forwarder.wait_log(1, "\t4\t4\tdone-")
    assert here.forwarder.said("worker 0 (process ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE])
def test_a_worker_ignores_what_is_not_for_it(route: StartRoute, number: signal.Signals) -> None:
    """Signals that a terminal sends to all processes do not concern a worker."""
    here = route()
    old = here.forwarder.worker(0)
    with here.pair() as pair:
        os.kill(old, number)
        here.greet(pair)
    assert here.forwarder.worker(0) == old


def test_a_resolver_that_dies_is_replaced(route: StartRoute) -> None:
    """The resolver is restarted, and nobody's session is concerned."""
    here = route("127.0.0.1 0 localhost 1\n")
    old = here.forwarder.resolver()
    assert old is not None
    with here.pair() as pair:
        os.kill(old, signal.SIGKILL)
        until(lambda: here.forwarder.resolver() not in (None, old), what="another resolver")
        here.greet(pair)


# The supervisor is killed.


def test_without_its_supervisor_a_worker_lets_its_sessions_finish(route: StartRoute) -> None:
    """After kill -9 of the supervisor open sessions go on, byte-exact, are logged, and the
    workers leave with the last one."""
    here = route(workers=2)
    here.forwarder.expected_return = {-signal.SIGKILL}
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.stop(signal.SIGKILL)
        with Sending(pair.client, noise(4 * MIB)):
            assert read_to_end(pair.backend).data == noise(4 * MIB)
        pair.backend.sendall(b"answer")
        finish(pair.backend)
        assert read_to_end(pair.client).data == b"answer"
    until(lambda: not here.forwarder.pids(), what="the workers to leave")
    assert here.forwarder.wait_log(1, f"\t{4 * MIB + 4}\t10\tdone-")


def test_without_its_supervisor_a_worker_listens_no_more(
    route: StartRoute, forwarder: StartForwarder, backend: StartServer
) -> None:
    """A new instance can have the ports while old sessions are still open."""
    here = route(workers=2)
    here.forwarder.expected_return = {-signal.SIGKILL}
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.stop(signal.SIGKILL)
        until(lambda: refuses(here.address[1]), what="the listeners to close")
        behind = backend(echo)
        forwarder(f"127.0.0.1 {here.address[1]} {behind.host} {behind.port}\n")
        with connect(here.address) as client:
            client.sendall(b"new")
            finish(client)
            assert read_to_end(client).data == b"new"
        here.greet(pair)


def test_without_its_supervisor_the_rest_leaves(route: StartRoute) -> None:
    """Idle workers and the resolver leave at once."""
    here = route("127.0.0.1 0 localhost 1\n", workers=3)
    here.forwarder.expected_return = {-signal.SIGKILL}
    here.forwarder.stop(signal.SIGKILL)
    until(lambda: not here.forwarder.pids(), what="everybody to leave")


def test_who_is_queued_when_the_supervisor_dies_is_served(route: StartRoute) -> None:
    """Clients who were connected but not accepted when the supervisor was killed are served."""
    here = route()
    here.forwarder.expected_return = {-signal.SIGKILL}
    with ExitStack() as stack:
        with here.frozen():
            clients = [stack.enter_context(connect(here.address)) for _ in range(20)]
            here.forwarder.stop(signal.SIGKILL)
        for client in clients:
            client.sendall(b"x")
        for _ in clients:
            assert stack.enter_context(here.listener.accept()).recv(1) == b"x"


# Restart.


def test_it_can_be_started_again_at_once(forwarder: StartForwarder) -> None:
    """Connections in TIME_WAIT do not keep the port from the next instance."""
    port = free_port()
    with Listener() as behind:
        config = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
        for _ in range(3):
            running = forwarder(config, workers=1)
            with connect(("127.0.0.1", port)) as client, behind.accept() as backend:
                backend.close()  # the server's side closes first: the forwarder keeps TIME_WAIT
                assert read_to_end(client).how == "EOF"
            assert running.stop() == 0
