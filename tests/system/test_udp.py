"""UDP: datagrams stay what they are, flows belong to one client each, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from tests import processes
from tests.conftest import StartForwarder
from tests.datagrams import LARGEST, UdpBackend, ask, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_root
from tests.ports import free_port
from tests.sockets import noise
from tests.system.metrics import by, metrics_url, scrape, total
from tests.system.namespaces import Sandbox
from tests.system.test_names import Place

SIZES = [0, 1, 512, 1472, 1473, 16_384, 16_385, 65_507]


@pytest.fixture
def answering() -> Iterator[UdpBackend]:
    """A backend that echoes."""
    with UdpBackend() as backend:
        yield backend


def udp_sockets(pid: int) -> int:
    """How many UDP sockets a process has."""
    held = set(processes.descriptors(pid).values())
    inodes = set()
    for name in ("udp", "udp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            inodes |= {f"socket:[{line.split()[9]}]" for line in list(table)[1:]}
    return len(held & inodes)


def flows(running: Forwarder) -> int:
    """How many flows its workers have: every UDP socket that is not the forward's own."""
    return sum(udp_sockets(pid) - 1 for pid in running.workers().values())


def words(running: Forwarder) -> list[str]:
    """The last column of every log line."""
    return [line["outcome"] for line in running.log_columns()]


@pytest.mark.parametrize(
    ("bound", "asked", "behind"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.5", "127.0.0.1"),
        ("::1", "::1", "::1"),
        ("::", "::1", "127.0.0.1"),
        ("::", "127.0.0.5", "::1"),
    ],
)
def test_datagrams_stay_whole(forwarder: StartForwarder, bound: str, asked: str, behind: str) -> None:
    """Of every size, in both directions, over both families; answers come from the address that was
    asked (the client is connected to it, and hears nobody else)."""
    port = free_port()
    with UdpBackend(host=behind) as backend:
        forwarder(f"{bound} {port}/udp {behind} {backend.port}/udp\n")
        with udp_client((asked, port)) as client:
            for size in SIZES:
                assert ask(client, noise(size)) == noise(size)
        assert [len(data) for data, _ in backend.seen] == SIZES
        assert len(backend.senders()) == 1


def test_every_client_has_its_own_flow(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Two hundred clients at once: each hears its own datagrams, each is one sender to the backend."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(("127.0.0.1", port))) for _ in range(200)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d.%d" % (number, turn))
            heard = [client.recv(LARGEST) for client in clients]
            assert heard == [b"%d.%d" % (number, turn) for number in range(200)]
    assert len(answering.senders()) == 200
    assert flows(running) == 200


def test_one_datagram_and_many_answers(forwarder: StartForwarder) -> None:
    """A flow is no question with an answer: whatever the backend says goes to the client."""
    port = free_port()
    with UdpBackend(lambda data: [b"%d" % number for number in range(20)]) as backend:
        forwarder(f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp\n")
        with udp_client(("127.0.0.1", port)) as client:
            client.send(b"all")
            assert [client.recv(LARGEST) for _ in range(20)] == [b"%d" % number for number in range(20)]


def test_log_lines(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """One line with the first datagram's bytes, as rinetd has it, and one at the end with all."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp [timeout=1]\n")
    with udp_client(("127.0.0.1", port)) as client:
        assert ask(client, b"hello") == b"hello"
        assert ask(client, b"you") == b"you"
    running.wait_log(2)
    found = [(line["bytes_in"], line["bytes_out"], line["outcome"]) for line in running.log_columns()]
    assert found == [("5", "0", "opened"), ("8", "8", "idle-timeout")]


def test_a_silent_flow_ends(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """After the forward's timeout its socket is back."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp [timeout=1]\n")
    with udp_client(("127.0.0.1", port)) as client:
        ask(client, b"x")
        assert flows(running) == 1
        until(lambda: flows(running) == 0, what="the end of the flow")


@pytest.mark.parametrize("speaker", ["client", "backend"])
def test_both_sides_keep_a_flow_alive(forwarder: StartForwarder, speaker: str) -> None:
    """A server that streams to a silent client is not cut off after the timeout, nor is a client that
    nobody answers: C rinetd counts the client's datagrams only."""
    port = free_port()
    with UdpBackend(lambda data: []) as backend:
        running = forwarder(f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp [timeout=1]\n")
        with udp_client(("127.0.0.1", port)) as client:
            client.send(b"begin")
            until(lambda: backend.seen, what="the first datagram")
            sender = backend.senders()[0]
            client.settimeout(0.2)
            for _ in range(12):  # more than twice the timeout
                if speaker == "client":
                    client.send(b"more")
                    with suppress(TimeoutError):
                        client.recv(LARGEST)
                else:
                    backend.socket.sendto(b"more", sender)
                    assert client.recv(LARGEST) == b"more"
                    with suppress(TimeoutError):
                        client.recv(LARGEST)
            assert flows(running) == 1
        assert backend.senders() == [sender]


def test_the_most_flows(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Over `max-udp-connections` the one that has been silent longest goes, and is counted."""
    port = free_port()
    forward = f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n"
    running = forwarder(f"{forward}max-udp-connections 3\nmetrics 127.0.0.1:{free_port()}\n", workers=1)
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(("127.0.0.1", port))) for _ in range(4)]
        for client in (*clients[:3], clients[0], clients[3]):
            ask(client, b"x")
        evicted = running.wait_log(1, "evicted")
        assert len(evicted) == 1
        assert flows(running) == 3
        ask(clients[0], b"x")  # it was heard of after the others
        assert len(answering.senders()) == 4
    found = scrape(metrics_url(running))
    assert by(found, "connections_closed_total", "outcome")["evicted"] == 1


def test_a_limit_that_a_reload_lowers(forwarder: StartForwarder) -> None:
    """Each newcomer ends more than one flow until there are as few as the limit says."""
    port = free_port()
    with UdpBackend(lambda data: []) as backend, ExitStack() as stack:
        config = f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp\nmetrics 127.0.0.1:{free_port()}\n"
        running = forwarder(f"{config}max-udp-connections 50\n", workers=1)

        def come(count: int) -> None:
            heard = len(backend.seen)
            for _ in range(count):
                stack.enter_context(udp_client(("127.0.0.1", port))).send(b"x")
            until(lambda: len(backend.seen) == heard + count)

        come(50)
        running.reload(f"{config}max-udp-connections 10\n")
        come(5)
        assert total(scrape(metrics_url(running)), "connections_active", proto="udp") == 10


def test_a_flood_does_not_evict_who_was_answered(forwarder: StartForwarder) -> None:
    """Anybody can send datagrams in anybody's name: a flow that was never answered goes first."""
    port = free_port()
    with UdpBackend(lambda data: [data] if data == b"true" else []) as backend:
        forward = f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp\n"
        running = forwarder(f"{forward}max-udp-connections 10\n", workers=1)
        with ExitStack() as stack:
            clients = [stack.enter_context(udp_client(("127.0.0.1", port))) for _ in range(3)]
            for client in clients:
                assert ask(client, b"true") == b"true"
            before = backend.senders()
            for number in range(200):
                stack.enter_context(udp_client(("127.0.0.1", port))).send(b"%d" % number)
            running.wait_log(193, "evicted")
            for client in clients:
                assert ask(client, b"true") == b"true"
            assert {sender for data, sender in backend.seen if data == b"true"} == set(before)


def test_a_backend_that_refuses(forwarder: StartForwarder) -> None:
    """Nothing is leaked, however often the client tries; once somebody is there, the flow works."""
    port, behind = free_port(), free_port()
    running = forwarder(f"127.0.0.1 {port}/udp 127.0.0.1 {behind}/udp\n")
    with udp_client(("127.0.0.1", port)) as client:
        for _ in range(20):
            client.send(b"x")
        running.wait_log(1, "opened")
        assert flows(running) == 1
        with UdpBackend(port=behind) as backend:
            client.settimeout(0.1)

            def served() -> bool:
                with suppress(TimeoutError):
                    return ask(client, b"now") == b"now"
                return False

            until(served, what="an answer")
            assert len(backend.senders()) == 1


def test_a_backend_that_never_was_there(forwarder: StartForwarder) -> None:
    """The flow's last line says so."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp 127.0.0.1 {free_port()}/udp [timeout=1]\n")
    with udp_client(("127.0.0.1", port)) as client:
        client.send(b"x")
        assert len(running.wait_log(1, "local-connect-failed")) == 1


def test_another_address_of_the_name(forwarder: StartForwarder) -> None:
    """Where nobody is at the first address, the next datagram goes to the second one."""
    require_root()
    port, behind = free_port(), free_port()
    with Sandbox(network=True) as inside:
        place = Place(inside, server="")
        place.hosts("127.0.0.1 backend", "::1 backend")
        inside.call(forwarder, f"127.0.0.1 {port}/udp backend {behind}/udp\n")
        with inside.call(partial(UdpBackend, host="::1", port=behind)), ExitStack() as stack:
            client = inside.call(stack.enter_context, udp_client(("127.0.0.1", port)))
            client.settimeout(0.2)

            def served() -> bool:
                with suppress(TimeoutError):
                    return ask(client, b"x") == b"x"
                return False

            until(served, what="an answer")


def test_flows_survive_a_reload(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Sockets and all; and a forward whose target changes keeps them where they are."""
    port = free_port()
    forward = f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n"
    running = forwarder(forward)
    with udp_client(("127.0.0.1", port)) as client, UdpBackend(lambda data: [b"other"]) as other:
        assert ask(client, b"x") == b"x"
        running.reload(forward)
        assert ask(client, b"y") == b"y"
        running.reload(f"127.0.0.1 {port}/udp {other.host} {other.port}/udp\n")
        assert ask(client, b"z") == b"z"
        assert len(answering.senders()) == 1
        with udp_client(("127.0.0.1", port)) as late:
            assert ask(late, b"x") == b"other"


def test_a_forward_that_is_taken_away_ends_its_flows(
    forwarder: StartForwarder, answering: UdpBackend
) -> None:
    """Its port is free again, and the line is written."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    with udp_client(("127.0.0.1", port)) as client:
        ask(client, b"x")
        running.reload(f"127.0.0.1 {free_port()} 127.0.0.1 1\n")
        running.wait_log(1, "done-local-closed")
    with UdpBackend(port=port):
        pass


def test_a_neighbours_death(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Flows of other workers go on; those of the dead one's begin anew, at its successor."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(("127.0.0.1", port))) for _ in range(40)]
        for client in clients:
            ask(client, b"x")
        there = {slot: udp_sockets(pid) - 1 for slot, pid in running.workers().items()}
        assert all(there.values()), f"all flows with one worker: {there}"
        victim = running.worker(0)
        os.kill(victim, signal.SIGKILL)
        until(lambda: running.workers().get(0) not in (None, victim), what="a successor")
        for number, client in enumerate(clients):
            assert ask(client, b"%d" % number) == b"%d" % number
        assert len(answering.senders()) == 40 + there[0]


def test_whoever_is_denied(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Nothing of theirs arrives, nothing is answered, and there is a line."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\ndeny 127.0.0.9\n")
    with udp_client(("127.0.0.1", port), "127.0.0.9") as denied, udp_client(("127.0.0.1", port)) as other:
        denied.send(b"in")
        running.wait_log(1, "denied")
        assert ask(other, b"x") == b"x"
    assert [data for data, _ in answering.seen] == [b"x"]


def test_limits_count_flows(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """A flow is a connection of its client."""
    port = free_port()
    forward = f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp [timeout=1]\n"
    running = forwarder(f"{forward}max-connections-per-client 2\n")
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(("127.0.0.1", port))) for _ in range(3)]
        for client in clients[:2]:
            ask(client, b"x")
        clients[2].send(b"no")
        running.wait_log(1, "over-client-limit")
        running.wait_log(2, "idle-timeout")
        assert ask(clients[2], b"yes") == b"yes"


def test_a_port_that_somebody_else_has(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """It is refused, also to another copy of the program: C rinetd lets any number of processes in."""
    port = free_port()
    config = f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n"
    forwarder(config)
    second = forwarder(config, ready=False)
    second.expected_return = {1}
    assert second.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}/udp: Address already in use" in second.stderr()


def test_no_other_account_shares_the_port(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """SO_REUSEADDR and SO_REUSEPORT of a process with another account do not help it."""
    require_root()
    port = free_port()
    forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                thief.bind(("127.0.0.1", port))
        except OSError:
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_tcp_and_udp_on_one_port(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """They are two forwards."""
    port = free_port()
    forwarder(
        f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n127.0.0.1 {port}/tcp 127.0.0.1 1/tcp\n"
    )
    with udp_client(("127.0.0.1", port)) as client:
        assert ask(client, b"x") == b"x"


def test_figures(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Flows are connections, datagrams and bytes are counted."""
    port = free_port()
    forward = f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n"
    running = forwarder(f"{forward}metrics 127.0.0.1:{free_port()}\n")
    with udp_client(("127.0.0.1", port)) as client:
        for data in (b"", b"one", b"three"):
            ask(client, data)
        found = scrape(metrics_url(running))
        assert total(found, "connections_active", proto="udp") == 1
        assert total(found, "udp_datagrams_received_total") == 3
        assert total(found, "udp_datagrams_sent_total") == 3
        assert total(found, "client_received_bytes_total", proto="udp") == 8
        assert total(found, "client_sent_bytes_total", proto="udp") == 8


def test_datagrams_that_found_no_room(forwarder: StartForwarder) -> None:
    """What a worker that stands still cannot take is counted by the kernel, and shown."""
    port = free_port()
    with UdpBackend(lambda data: []) as backend:
        forward = f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp\n"
        running = forwarder(f"{forward}metrics 127.0.0.1:{free_port()}\n", workers=1)
        os.kill(running.worker(), signal.SIGSTOP)
        with udp_client(("127.0.0.1", port)) as client:
            for _ in range(400):
                client.send(noise(60_000))
        os.kill(running.worker(), signal.SIGCONT)
        until(
            lambda: by(scrape(metrics_url(running)), "udp_datagrams_dropped_total", "reason").get("queue"),
            what="the count",
        )


def test_answers_that_found_no_room(forwarder: StartForwarder) -> None:
    """What a flow's own socket could not take is counted when the flow ends."""
    port = free_port()
    with UdpBackend() as backend, udp_client(("127.0.0.1", port)) as client:
        config = f"127.0.0.1 {port}/udp {backend.host} {backend.port}/udp [timeout=1]\n"
        running = forwarder(f"{config}metrics 127.0.0.1:{free_port()}\n", workers=1)
        ask(client, b"x")
        (flow,) = backend.senders()
        with processes.stopped(running.worker()):
            for _ in range(1000):
                backend.socket.sendto(b"answer", flow)
        running.wait_log(1, "\tidle-timeout")
        found = scrape(metrics_url(running))
        sent = total(found, "udp_datagrams_sent_total")
        assert by(found, "udp_datagrams_dropped_total", "reason")["client"] == 1001 - sent > 0


def test_stopping_ends_flows(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """Each with its line."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    with udp_client(("127.0.0.1", port)) as client:
        ask(client, b"x")
        assert running.stop() == 0
    assert words(running) == ["opened", "done-local-closed"]


def test_draining_ends_flows(forwarder: StartForwarder, answering: UdpBackend) -> None:
    """The port must be free for another instance, and a flow needs its port: it ends."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port}/udp {answering.host} {answering.port}/udp\n")
    with udp_client(("127.0.0.1", port)) as client:
        ask(client, b"x")
        assert running.stop(signal.SIGUSR1) == 0
    assert words(running) == ["opened", "done-local-closed"]
