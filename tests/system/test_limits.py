"""Limits on connections, on silence, on dialling: what protects a forwarder from its clients."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder, columns
from tests.ports import free_port
from tests.servers import banner, serve_apart
from tests.sockets import Listener, Sending, connect, noise, read_exactly, read_to_end
from tests.system.metrics import metrics_url, scrape, series
from tests.system.namespaces import Sandbox

PORT = 5000
"""Of the forward in a network of its own."""


def let_in(client: socket.socket) -> bool:
    """Whether the backend's greeting comes, and not the end."""
    return client.recv(1) != b""


def outcomes(forwarder: Forwarder) -> list[str]:
    """The last word of every log line so far."""
    return [columns(line)["outcome"] for line in forwarder.log_lines()]


class Crowd:
    """Clients of a forward whose backend greets them."""

    def __init__(self, start: StartForwarder, server: StartServer, config: str, option: str = "") -> None:
        self.port = free_port()
        behind = server(banner)
        self.line = f"127.0.0.1 {self.port} {behind.host} {behind.port} {option}\n"
        self.running = start(self.line + config, workers=2)
        self.stack = ExitStack()

    def come(self, count: int, source: str | None = None) -> list[socket.socket]:
        """So many clients more, all there before the first one is looked at."""
        return [
            self.stack.enter_context(connect(("127.0.0.1", self.port), source=source)) for _ in range(count)
        ]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


# Connections.


@pytest.mark.parametrize(("config", "option"), [("max-connections 10\n", ""), ("", "[max-connections=10]")])
def test_exactly_so_many_connections(
    forwarder: StartForwarder, backend: StartServer, config: str, option: str
) -> None:
    """Of 40 that come at once, over all workers, 10 are served and 30 closed."""
    with Crowd(forwarder, backend, config, option) as crowd:
        assert [let_in(client) for client in crowd.come(40)].count(True) == 10


def test_exactly_so_many_of_one_client(forwarder: StartForwarder, backend: StartServer) -> None:
    """Its own limit is its own: another client has as many."""
    with Crowd(forwarder, backend, "max-connections-per-client 5\n") as crowd:
        one, other = crowd.come(20), crowd.come(20, source="127.0.0.2")
        assert [let_in(client) for client in one].count(True) == 5
        assert [let_in(client) for client in other].count(True) == 5


def test_hosts_of_one_ipv6_network_are_one_client(forwarder: StartForwarder) -> None:
    """By /64, which one host may use as it likes."""
    with Sandbox(network=True) as inside, ExitStack() as stack:
        for address in ("2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:2::1"):
            inside.run("ip", "address", "add", f"{address}/64", "dev", "lo", "nodad")
        behind = stack.enter_context(inside.call(Listener))
        config = f":: {PORT} {behind.host} {behind.port}\nmax-connections-per-client 1\n"
        inside.call(forwarder, config, workers=2)

        def come(source: str) -> socket.socket:
            client = stack.enter_context(socket.socket(socket.AF_INET6))
            client.bind((source, 0))
            client.connect(("2001:db8:0:1::1", PORT))
            return client

        inside.call(come, "2001:db8:0:1::1")
        stack.enter_context(behind.accept())
        assert read_to_end(inside.call(come, "2001:db8:0:1::2")).how == "EOF"
        inside.call(come, "2001:db8:0:2::1")
        stack.enter_context(behind.accept())


def test_who_leaves_makes_room(forwarder: StartForwarder, backend: StartServer) -> None:
    """One goes, one more may come."""
    with Crowd(forwarder, backend, "max-connections 3\n") as crowd:
        first, *_ = inside = crowd.come(3)
        assert all(map(let_in, inside))
        first.close()
        crowd.running.wait_log(4)
        assert let_in(*crowd.come(1))
        assert not let_in(*crowd.come(1))


def test_a_failed_dial_makes_room(forwarder: StartForwarder) -> None:
    """A connection whose backend is not there counts no longer than it lasts."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {free_port()}\nmax-connections 1\n")
    for number in range(5):
        with connect(("127.0.0.1", port)) as client:
            assert read_to_end(client).how == "EOF"
        running.wait_log(number + 1, "local-connect-failed -")


def test_a_dead_workers_connections_make_room(forwarder: StartForwarder, backend: StartServer) -> None:
    """They have ended with it."""
    with Crowd(forwarder, backend, "max-connections 4\nmax-connections-per-client 4\n") as crowd:
        inside = crowd.come(4)
        assert all(map(let_in, inside))
        for worker in crowd.running.workers().values():
            os.kill(worker, signal.SIGKILL)
        crowd.running.wait_said("starting another", 2)
        until(lambda: let_in(*crowd.come(1)), what="there is room")


def test_a_reload_brings_a_limit_to_those_who_are_there(
    forwarder: StartForwarder, backend: StartServer
) -> None:
    """They stay, and they count."""
    with Crowd(forwarder, backend, "") as crowd:
        assert all(map(let_in, crowd.come(6)))
        crowd.running.reload(crowd.line + "max-connections-per-client 6\n")
        assert not let_in(*crowd.come(1))
        crowd.running.reload(crowd.line)
        assert let_in(*crowd.come(1))


def test_a_limit_that_was_away_counts_nobody_who_has_left(
    forwarder: StartForwarder, backend: StartServer
) -> None:
    """Who has left while there was none is not counted when it is back."""
    every, own = "max-connections 100\n", "max-connections-per-client 2\n"
    with Crowd(forwarder, backend, every + own) as crowd:
        old = crowd.come(2)
        assert all(map(let_in, old))
        crowd.running.reload(crowd.line + every)
        for client in old:
            client.close()
        crowd.running.wait_log(2, "done-remote-closed")
        crowd.running.reload(crowd.line + every + own)
        assert all(map(let_in, crowd.come(2)))
        assert not let_in(*crowd.come(1))


def test_refused_clients_are_counted(forwarder: StartForwarder, backend: StartServer) -> None:
    """In metrics, each reason for itself, and not as accepted."""
    config = "max-connections 3\nmax-connections-per-client 2\nmetrics 127.0.0.1:0\n"
    with Crowd(forwarder, backend, config) as crowd:
        for client in crowd.come(5):
            let_in(client)
        for client in crowd.come(2, source="127.0.0.2"):
            let_in(client)
        found = scrape(metrics_url(crowd.running))
        label = {"forward": f"127.0.0.1:{crowd.port}/tcp", "proto": "tcp"}
        reasons = {
            reason: found[series("connections_denied_total", **label, reason=reason)]
            for reason in ("limit", "client_limit")
        }
        assert reasons == {"client_limit": 3, "limit": 1}
        assert found[series("connections_accepted_total", **label)] == 3


def test_a_flood_over_the_limit_is_not_one_of_the_log(
    forwarder: StartForwarder, backend: StartServer
) -> None:
    """Of 200 that are refused within moments, each worker tells of 10 a second."""
    with Crowd(forwarder, backend, "max-connections 1\n") as crowd:
        began = time.monotonic()
        for client in crowd.come(200):
            let_in(client)
        seconds = time.monotonic() - began
        told = outcomes(crowd.running).count("over-limit")
        assert 10 <= told <= 2 * 10 * (seconds + 2)


# Silence.


def session(start: StartForwarder, config: str) -> tuple[Forwarder, socket.socket, socket.socket, Listener]:
    """A session with both far ends in the test's hand."""
    listener = Listener()
    port = free_port()
    running = start(f"127.0.0.1 {port} {listener.host} {listener.port}\n{config}")
    client = connect(("127.0.0.1", port))
    return running, client, listener.accept(), listener


@pytest.mark.parametrize("config", ["idle-timeout 1\n", "idle-timeout 1h\nhalf-close-timeout 1s\n"])
def test_a_silent_session_ends(forwarder: StartForwarder, config: str) -> None:
    """Both sides get the end; the log names the reason. With the half-close limit, one side has
    finished."""
    running, client, backend, listener = session(forwarder, config)
    with client, backend, listener:
        client.sendall(b"x")
        assert read_exactly(backend, 1) == b"x"
        word = "idle-timeout"
        if "half" in config:
            client.shutdown(socket.SHUT_WR)
            word = "half-close-timeout"
        assert read_to_end(backend).how == "EOF"
        assert read_to_end(client).how == "EOF"
    assert running.wait_log(1, word)[0].split("\t")[-3:] == ["1", "0", word]


def test_a_session_that_speaks_does_not_end(forwarder: StartForwarder) -> None:
    """Bytes in either direction are enough, for longer than the limit."""
    running, client, backend, listener = session(forwarder, "idle-timeout 2\n")
    with client, backend, listener:
        until_then = time.monotonic() + 5
        while time.monotonic() < until_then:
            backend.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(10)
        assert outcomes(running) == ["opened"]


def test_whoever_would_miss_bytes_is_reset(forwarder: StartForwarder) -> None:
    """A client that has stopped reading has not got everything, and does not see a clean end."""
    running, client, backend, listener = session(forwarder, "idle-timeout 1\n")
    with client, backend, listener:
        with Sending(backend, noise(64 << 20), finish=False):
            running.wait_log(1, "idle-timeout")
        assert read_to_end(client).how != "EOF"


def test_a_reload_brings_a_timeout_to_those_who_are_there(forwarder: StartForwarder) -> None:
    """Sessions that began without a limit end by the new one."""
    running, client, backend, listener = session(forwarder, "")
    with client, backend, listener:
        running.wait_log(1)
        running.reload(running.config_path.read_text() + "idle-timeout 1\n")
        assert read_to_end(client).how == "EOF"
        running.wait_log(1, "idle-timeout")


# Dialling.


def test_the_connect_timeout_ends_a_dial(forwarder: StartForwarder) -> None:
    """Of a backend that never answers: its packets are lost."""
    with Sandbox(network=True) as inside:
        inside.run("ip", "address", "add", "192.0.2.1/24", "dev", "lo")
        inside.run("nft", "add", "table", "ip", "lost")
        inside.run("nft", "add", "chain", "ip", "lost", "out", "{ type filter hook output priority 0; }")
        inside.run("nft", "add", "rule", "ip", "lost", "out", "tcp", "dport", "9", "drop")
        running = inside.call(forwarder, f"127.0.0.1 {PORT} 192.0.2.1 9\nconnect-timeout 1\n")
        began = time.monotonic()
        with inside.call(connect, ("127.0.0.1", PORT)) as client:
            assert read_to_end(client).how == "EOF"
        assert time.monotonic() - began < 8  # the default is 10
        running.wait_log(1, "local-connect-failed -")


def test_what_goes_on_is_not_disturbed(forwarder: StartForwarder) -> None:
    """With every limit set and not reached, bytes pass as ever."""
    port = free_port()
    with serve_apart("echo") as behind:
        forwarder(
            f"127.0.0.1 {port} {behind.host} {behind.port} [max-connections=100]\n"
            "max-connections 100\nmax-connections-per-client 100\nidle-timeout 60\nhalf-close-timeout 60\n"
        )
        for number in range(300):
            with connect(("127.0.0.1", port)) as client:
                client.sendall(noise(1000, number))
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client).data == noise(1000, number)
