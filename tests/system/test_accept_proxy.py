"""Clients that a proxy in front announces: who may do it, what counts for whom, what a header may be."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.announcing import ASKED, ASKED6, CLIENT, CLIENT6, header
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import banner, echo
from tests.sockets import Address, Listener, connect, finish, noise, read_exactly, read_to_end, reset
from tests.system.metrics import by, metrics_url, scrape, series

TRUSTED = "accept-proxy=127.0.0.1"

V1, V2 = header("v1"), header("v2")
LOCAL = V2[:12] + b"\x20\0\0\0"
UNKNOWN = b"PROXY UNKNOWN\r\n"


class Here:
    """A forward with those options to a backend that the test plays."""

    def __init__(
        self, start: StartForwarder, behind: Listener, options: str = TRUSTED, more: str = ""
    ) -> None:
        self.listener = behind
        self.address: Address = "127.0.0.1", free_port()
        self.line = f"127.0.0.1 {self.address[1]} {behind.host} {behind.port}"
        text = f"{self.line} [{options}]\nlogformat json\n{more}"
        self.running: Forwarder = start(text, workers=1)

    @contextmanager
    def announced(self, said: bytes = V1) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A session whose client has said that: its ends."""
        with connect(self.address) as client:
            client.sendall(said)
            with self.listener.accept() as served:
                yield client, served
                client.close()
                read_to_end(served)

    def lines(self, outcome: str, count: int = 1) -> list[dict[str, Any]]:
        """So many of the log's lines with that outcome, at least."""
        return [json.loads(each) for each in self.running.wait_log(count, f'"outcome":"{outcome}')]

    def turned_away(self, said: bytes = b"", source: str | None = None) -> None:
        """Say that, and be closed without a word."""
        with connect(self.address, source) as client:
            try:
                client.sendall(said)
            except OSError:  # it is so fast
                return
            assert read_to_end(client).data == b""


@pytest.fixture
def here(forwarder: StartForwarder, listener: Listener) -> Here:
    """Only 127.0.0.1 is believed."""
    return Here(forwarder, listener)


# What a header says.


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("client", "asked"), [(CLIENT, ASKED), (CLIENT6, ASKED6)])
def test_the_log_has_both_addresses(here: Here, version: str, client: Address, asked: Address) -> None:
    """The announced one is the client, and the connection's own is what it came by."""
    with here.announced(header(version, client, asked)) as (end, _):
        own = end.getsockname()
    for outcome in ("opened", "done-remote-closed"):
        (line,) = here.lines(outcome)
        assert (line["client"], line["client_port"]) == client
        assert line["via"] == f"{own[0]}:{own[1]}"


@pytest.mark.parametrize("said", [LOCAL, UNKNOWN], ids=["local", "unknown"])
def test_a_proxy_of_its_own_account(here: Here, said: bytes) -> None:
    """A header without addresses: the connection's own count."""
    with here.announced(said) as (client, served):
        client.sendall(b"ping")
        assert read_exactly(served, 4) == b"ping"
        own = client.getsockname()
    (line,) = here.lines("opened")
    assert (line["client"], line["client_port"], line["via"]) == (*own, None)


@pytest.mark.parametrize("said", [V1, V2], ids=["v1", "v2"])
def test_a_header_in_the_smallest_pieces(here: Here, said: bytes) -> None:
    """Byte by byte, and the first data behind it: not one of them is lost or taken for another."""
    with connect(here.address) as client:
        for byte in said + b"PROXY":
            client.sendall(bytes([byte]))
        with here.listener.accept() as served:
            assert read_exactly(served, 5) == b"PROXY"
            client.sendall(V1)
            assert read_exactly(served, len(V1)) == V1


@pytest.mark.parametrize("said", [V1, V2], ids=["v1", "v2"])
def test_a_header_with_the_first_data_behind_it(here: Here, said: bytes) -> None:
    """All in one segment, and the client's FIN: the session has every byte after the header."""
    with connect(here.address) as client:
        client.sendall(said + noise(5000))
        finish(client)
        with here.listener.accept() as served:
            assert read_to_end(served).data == noise(5000)
            served.sendall(b"answer")
            served.close()
        assert read_to_end(client).data == b"answer"
    assert here.lines("done-remote-closed")[0]["bytes_in"] == 5000


def test_a_backend_that_speaks_first(forwarder: StartForwarder, backend: StartServer) -> None:
    """It does not wait for the client."""
    behind = backend(banner)
    port = free_port()
    forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [{TRUSTED}]\n")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(V2)
        assert read_exactly(client, 14) == b"SSH-2.0-test\r\n"


# Who is not believed.


def test_a_stranger(here: Here) -> None:
    """Whatever it says: nobody is dialled for it."""
    for said in (V1, V2, b"GET / HTTP/1.0\r\n\r\n", b""):
        here.turned_away(said, "127.0.0.2")
    with here.announced():
        pass
    lines = here.lines("remote-proxy-failed -", 4)
    assert {(each["client"], each["backend"], each["via"]) for each in lines} == {("127.0.0.2", None, None)}


def test_many_strangers(here: Here) -> None:
    """The log tells of ten of them in a second."""
    with processes.stopped(*here.running.serving()):
        clients = [connect(here.address, "127.0.0.2") for _ in range(40)]
    for client in clients:
        read_to_end(client)
        client.close()
    with here.announced():
        here.lines("opened")
    assert 10 <= len(here.lines("remote-proxy-failed")) <= 20


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 41000\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 41000 443\n",
        b"PROXY TCP4 " + b"1" * 200,
        V2[:12] + b"\x31" + V2[13:],
        V2[:14] + b"\xff\xff" + V2[16:],
        noise(4000),
    ],
)
def test_what_is_no_header(here: Here, said: bytes) -> None:
    """It is closed at once, although more might come, with one line."""
    here.turned_away(said)
    (line,) = here.lines("remote-proxy-failed -")
    assert (line["client"], line["bytes_in"]) == ("127.0.0.1", 0)
    with here.announced():
        pass


@pytest.mark.parametrize("said", [b"", V1[:20], V2[:20]], ids=["nothing", "v1", "v2"])
def test_a_header_that_does_not_come(forwarder: StartForwarder, listener: Listener, said: bytes) -> None:
    """It has the `handshake-timeout`."""
    here = Here(forwarder, listener, f"{TRUSTED}, handshake-timeout=1")
    with connect(here.address) as client:
        client.sendall(said)
        assert read_to_end(client).data == b""
    assert here.lines("remote-proxy-failed -")[0]["duration"] >= 0.9


@pytest.mark.parametrize("said", [b"", V1[:20], V2[:20]], ids=["nothing", "v1", "v2"])
@pytest.mark.parametrize("how", ["reset", "end"])
def test_who_leaves_before_the_end_of_it(here: Here, said: bytes, how: str) -> None:
    """One line, and nobody is dialled."""
    client = connect(here.address)
    client.sendall(said)
    if how == "reset":
        reset(client)
    else:
        client.close()
    here.lines("remote-proxy-failed -")
    assert processes.descriptors(here.running.worker())


def test_a_header_and_then_a_reset(here: Here) -> None:
    """That is the session's: the backend sees it as a reset, whichever side the worker hears first."""
    with here.announced() as (client, served):
        client.sendall(b"ping")
        assert read_exactly(served, 4) == b"ping"
        with processes.stopped(*here.running.serving()):
            served.sendall(b"pong")
            reset(client)
        assert read_to_end(served).how == "ECONNRESET"


# What counts for whom.


def test_rules_are_for_the_announced_address(forwarder: StartForwarder, listener: Listener) -> None:
    """Not for the proxy's own."""
    here = Here(forwarder, listener, more="allow 203.0.113.0/24\ndeny 203.0.113.9\n")
    with here.announced():
        pass
    for denied, outcome in (("203.0.113.9", "denied"), ("198.51.100.9", "not-allowed")):
        here.turned_away(header("v2", (denied, 1)))
        (line,) = here.lines(outcome)
        assert line["client"] == denied
        assert line["via"].startswith("127.0.0.1:")
    here.turned_away(LOCAL)
    here.lines("not-allowed", 2)


def test_limits_are_for_the_announced_client(forwarder: StartForwarder, listener: Listener) -> None:
    """One session for each; who has not said whose it is counts for nobody."""
    here = Here(forwarder, listener, more="max-connections-per-client 1\n")
    with connect(here.address), here.announced(), here.announced(header("v1", ("203.0.113.8", 1))):
        here.turned_away(V2)
        (line,) = here.lines("over-client-limit")
        assert line["client"] == CLIENT[0]
    here.lines("done-remote-closed", 2)
    with here.announced():
        pass


def test_a_limit_that_a_reload_brings(forwarder: StartForwarder, listener: Listener) -> None:
    """Those who are here count for whom they were announced as."""
    here = Here(forwarder, listener)
    with here.announced(), connect(here.address) as waiting:
        here.running.reload(f"{here.line} [{TRUSTED}]\nlogformat json\nmax-connections-per-client 1\n")
        here.turned_away(V1)
        waiting.sendall(header("v2", ("203.0.113.8", 1)) + b"ping")
        with here.listener.accept() as served:
            assert read_exactly(served, 4) == b"ping"
    assert len(here.lines("over-client-limit")) == 1


def test_rates_are_for_the_announced_client(forwarder: StartForwarder, listener: Listener) -> None:
    """Two an hour for each."""
    here = Here(forwarder, listener, f"{TRUSTED}, client-rate=2/h")
    for client in (CLIENT, ("203.0.113.8", 1)):
        for _ in range(2):
            with here.announced(header("v2", client)):
                pass
        here.turned_away(header("v2", client))
    assert len(here.lines("over-client-rate", 2)) == 2


def test_the_announced_client_has_its_backend(forwarder: StartForwarder, backend: StartServer) -> None:
    """`balance=iphash`: of twenty announced clients each has one, and not all the same."""
    servers = [backend(echo) for _ in range(2)]
    port = free_port()
    where = ",".join(f"{each.host}:{each.port}" for each in servers)
    forwarder(f"127.0.0.1 {port} {where} 1 [{TRUSTED}, balance=iphash]\n")

    def chosen(client: str) -> int:
        before = [each.count for each in servers]
        with connect(("127.0.0.1", port)) as one:
            one.sendall(header("v1", (client, 1)) + b"x")
            assert read_exactly(one, 1) == b"x"
        return next(place for place, each in enumerate(servers) if each.count > before[place])

    found = {client: chosen(client) for client in (f"203.0.113.{number}" for number in range(20))}
    assert set(found.values()) == {0, 1}
    assert all(chosen(client) == place for client, place in found.items())


def test_what_is_counted(forwarder: StartForwarder, listener: Listener) -> None:
    """Each reason; and what was let in is what has ended or is open, those who were not announced too."""
    options = f"{TRUSTED}, name=web, handshake-timeout=1"
    here = Here(forwarder, listener, options, more="metrics 127.0.0.1:0\n")
    url = metrics_url(here.running)
    here.turned_away(b"GET")
    here.turned_away(V1, "127.0.0.2")
    connect(here.address).close()
    with connect(here.address) as silent:
        assert read_to_end(silent).data == b""
    with here.announced(), connect(here.address):
        until(lambda: scrape(url)[series("connections_active", forward="web", proto="tcp")] == 1)
        found = scrape(url)
    assert by(found, "proxy_header_failures_total", "reason") == {
        "malformed": 1,
        "stranger": 1,
        "closed": 1,
        "timeout": 1,
    }
    assert found[series("connections_accepted_total", forward="web", proto="tcp")] == 5
    assert by(found, "connections_closed_total", "outcome") == {"remote-proxy-failed": 4}


# The life of the program.


def test_a_reload_meanwhile(here: Here) -> None:
    """Who is about to say it goes on with the forward that it came to."""
    with connect(here.address) as client:
        client.sendall(V1[:9])
        here.running.reload(f"127.0.0.1 {free_port()} {here.listener.host} {here.listener.port}\n")
        client.sendall(V1[9:] + b"ping")
        with here.listener.accept() as served:
            assert read_exactly(served, 4) == b"ping"


def test_a_drain_meanwhile(here: Here) -> None:
    """It waits for who is about to say it, and for that session's end."""
    with connect(here.address) as client:
        client.sendall(V1[:9])
        here.running.send(signal.SIGUSR1)
        until(lambda: not listening(here.address), what="the listener to be closed")
        client.sendall(V1[9:] + b"ping")
        with here.listener.accept() as served:
            assert read_exactly(served, 4) == b"ping"
    assert here.running.wait() == 0


def listening(address: Address) -> bool:
    """Whether somebody accepts there."""
    try:
        connect(address).close()
    except OSError:
        return False
    return True


def test_a_stop_meanwhile(here: Here) -> None:
    """It does not wait, and who was about to say it has a line."""
    with connect(here.address) as client:
        client.sendall(V1[:9])
        with here.announced():
            here.running.stop()
        assert read_to_end(client).data == b""
    assert [each["client"] for each in here.lines("done-local-closed", 2)].count("127.0.0.1") == 1


def test_a_death_meanwhile(here: Here) -> None:
    """Who was about to say it to the dead worker is closed; the next one says it to its successor."""
    with connect(here.address) as client:
        client.sendall(V1[:9])
        with here.announced():
            os.kill(here.running.worker(), signal.SIGKILL)
            assert read_to_end(client).data == b""
    with here.announced() as (client, served):
        client.sendall(b"ping")
        assert read_exactly(served, 4) == b"ping"


# With what else there is.


def test_tls_comes_after_it(forwarder: StartForwarder, listener: Listener, certificate: Path) -> None:
    """Header and ClientHello in one segment."""
    here = Here(forwarder, listener, f"{TRUSTED}, tls-accept, cert={certificate}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context.wrap_bio(there, back)
    with connect(here.address) as client:
        with pytest.raises(ssl.SSLWantReadError):
            hello.do_handshake()
        client.sendall(V2 + back.read())
        while True:
            there.write(client.recv(1 << 16))
            try:
                hello.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        hello.write(b"ping")
        client.sendall(back.read())
        with here.listener.accept() as served:
            assert read_exactly(served, 4) == b"ping"
    assert here.lines("opened")[0]["client"] == CLIENT[0]


def test_a_unix_socket(forwarder: StartForwarder, listener: Listener, tmp_path: Path) -> None:
    """Who may connect to it is believed; rules are for what is announced, and not for who announces."""
    path = tmp_path / "s"
    running = forwarder(
        f"unix:{path} {listener.host} {listener.port} [accept-proxy=unix]\ndeny 203.0.113.9\n"
        "logformat json\n",
        workers=1,
    )
    for said in (V1, LOCAL, header("v2", ("203.0.113.9", 1))):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(said + b"ping")
            if said in (V1, LOCAL):
                with listener.accept() as served:
                    assert read_exactly(served, 4) == b"ping"
            else:
                assert read_to_end(client).data == b""
    found = [json.loads(each) for each in running.wait_log(5)]
    told = {(each["outcome"], each["client"], each["via"]) for each in found}
    assert {each for each in told if "done" not in each[0]} == {
        ("opened", CLIENT[0], "unix"),
        ("opened", "unix", None),
        ("denied", "203.0.113.9", "unix"),
    }
