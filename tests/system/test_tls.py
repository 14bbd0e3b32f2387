"""TLS on either side, and on both: what is carried, how it ends, who is let in, and what a reload does.

The far ends are OpenSSL as Python has it; tests/system/test_tls_peers.py has those of other programs.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests import deadline, processes
from tests.certificates import CUT, NAME, VERSIONS, Authority, ending, greeted, over_tls, say_end
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_root
from tests.ports import claim, free_port
from tests.servers import echo, goodbye, sink
from tests.sockets import (
    Address,
    Ending,
    Listener,
    Sending,
    connect,
    finish,
    noise,
    queued,
    read_exactly,
    read_to_end,
    reset,
)
from tests.system.test_privileges import ORDINARY, StartOrdinary, ordinary, own

__all__ = ["ordinary", "own"]

HOST: Final = "127.0.0.1"
BULK: Final = 20_000_000
"""Bytes that go each way."""

WAYS: Final = ("accept", "connect", "both")

End = socket.socket


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, and the files that it has signed."""
    return Authority(tmp_path)


class Forward:
    """A running program with one forward; `options` are put into its brackets."""

    def __init__(
        self, start: StartForwarder, options: str, target: Address | str, extra: str = "", **more: Any
    ) -> None:
        self.options = options
        self.port = free_port()
        self.address = (HOST, self.port)
        self.target = target if isinstance(target, str) else f"{target[0]} {target[1]}"
        self.extra = extra
        self.running: Forwarder = start(self.line(options), **more)

    def line(self, options: str) -> str:
        """The configuration, with those options."""
        return f"{HOST} {self.port} {self.target} [{options}]\n{self.extra}"

    def last_word(self) -> str:
        """Of the log, once a connection has ended."""
        found = until(
            lambda: [each["outcome"] for each in self.running.log_columns() if each["outcome"] != "opened"]
        )
        return found[-1]


Start = Callable[..., Forward]


@pytest.fixture
def start(forwarder: StartForwarder) -> Start:
    """Call it with the options and the target of a forward, and options of the program."""
    return lambda options, target, extra="", **more: Forward(forwarder, options, target, extra, **more)


@contextmanager
def session(
    start: Start, authority: Authority, way: str, version: str | None = None, **more: Any
) -> Iterator[tuple[Forward, End, End]]:
    """A forward of that way, and the two ends of a session through it, which the test plays."""
    cert = authority.server()
    said = {
        "accept": f"tls-accept, cert={cert}",
        "connect": f"tls-connect, server-ca={authority.file}, server-name={NAME}",
    }
    said["both"] = ", ".join(said.values())
    with Listener() as behind, ThreadPoolExecutor(1) as apart:
        forward = start(said[way], behind.address, **more)

        def accepted() -> End:
            connection = behind.accept()
            if way == "accept":
                return connection
            serving = authority.serving(cert, version=version)
            return serving.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False)

        server = apart.submit(accepted)
        if way == "connect":
            client: End = connect(forward.address)
        else:
            client = authority.client(forward.address, version=version)
        with client, server.result() as backend:
            yield forward, client, backend


def end_of(end: End) -> Ending:
    """What comes, up to the end, and how it ends."""
    return ending(end) if isinstance(end, ssl.SSLSocket) else read_to_end(end)


def farewell(end: End) -> None:
    """Nothing more comes from here, but this end goes on reading."""
    if isinstance(end, ssl.SSLSocket):
        say_end(end)
    else:
        finish(end)


def talk(client: End, backend: End) -> None:
    """A word each way."""
    client.sendall(b"ping")
    assert read_exactly(backend, 4) == b"ping"
    backend.sendall(b"pong")
    assert read_exactly(client, 4) == b"pong"


# What is carried, and how it ends.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", WAYS)
def test_bulk_both_ways_is_exact(start: Start, authority: Authority, way: str, version: str) -> None:
    """20 MB each way at once are what was sent, and both ends are clean."""
    with session(start, authority, way, version) as (forward, client, backend):
        found: dict[str, bytes] = {}

        # OpenSSL's sockets are for one thread at a time: two turns instead of two threads of one end.
        def across(one: End, other: End, seed: int) -> None:
            reader = threading.Thread(target=lambda: found.update({str(seed): read_exactly(other, BULK)}))
            reader.start()
            one.sendall(noise(BULK, seed))
            reader.join(deadline.seconds(60))

        across(client, backend, 1)
        across(backend, client, 2)
        assert found["1"] == noise(BULK, 1)
        assert found["2"] == noise(BULK, 2)
        farewell(client)
        assert end_of(backend) == Ending(b"", "EOF")
        farewell(backend)
        assert end_of(client) == Ending(b"", "EOF")
        line = until(lambda: [each for each in forward.running.log_columns() if "done" in each["outcome"]])[0]
        assert (line["bytes_in"], line["bytes_out"]) == (str(BULK), str(BULK))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["client", "backend"])
def test_one_direction_may_end_first(
    start: Start, authority: Authority, way: str, version: str, first: str
) -> None:
    """close_notify is a FIN on the other side, a FIN is close_notify; the way back stays open."""
    with session(start, authority, way, version) as (_, client, backend):
        one, other = (client, backend) if first == "client" else (backend, client)
        one.sendall(b"the last word")
        farewell(one)
        assert end_of(other) == Ending(b"the last word", "EOF")
        other.sendall(noise(1 << 20))
        farewell(other)
        assert end_of(one) == Ending(noise(1 << 20), "EOF")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("way", "cut"), [("accept", "client"), ("connect", "backend"), ("both", "client"), ("both", "backend")]
)
def test_a_fin_without_close_notify_is_a_reset(
    start: Start, authority: Authority, way: str, version: str, cut: str
) -> None:
    """Anybody on the way can make a FIN: the other side must not take it for the end."""
    with session(start, authority, way, version) as (_, client, backend):
        talk(client, backend)
        one, other = (client, backend) if cut == "client" else (backend, client)
        one.sendall(b"half of it")
        assert read_exactly(other, 10) == b"half of it"
        socket.socket.shutdown(one, socket.SHUT_WR)
        assert end_of(other) == Ending(b"", "ECONNRESET")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("broken", ["client", "backend"])
def test_a_reset_is_a_reset(start: Start, authority: Authority, way: str, broken: str) -> None:
    """From either side, whatever is spoken there."""
    with session(start, authority, way) as (_, client, backend):
        talk(client, backend)
        one, other = (client, backend) if broken == "client" else (backend, client)
        reset(one)
        assert end_of(other) == Ending(b"", "ECONNRESET")


def test_a_reset_in_the_midst_of_records_is_a_reset(start: Start, authority: Authority) -> None:
    """A record that has come in part is not passed on, and the end is none."""
    with session(start, authority, "accept") as (_, client, backend):
        talk(client, backend)
        socket.socket.sendall(client, b"\x17\x03\x03\x40\x00" + bytes(100))
        reset(client)
        assert end_of(backend) == Ending(b"", "ECONNRESET")


@pytest.mark.parametrize("way", WAYS)
def test_the_programs_end_is_no_clean_end(start: Start, authority: Authority, way: str) -> None:
    """SIGTERM: who has TLS sees that the stream was cut."""
    with session(start, authority, way) as (forward, client, backend):
        talk(client, backend)
        assert forward.running.stop() == 0
        for end in (client, backend):
            if isinstance(end, ssl.SSLSocket):
                assert end_of(end).how in (CUT, "ECONNRESET")


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_workers_sessions_have_no_clean_end(start: Start, authority: Authority, way: str) -> None:
    """SIGKILL to the worker: who has TLS sees that the stream was cut."""
    with session(start, authority, way, workers=1) as (forward, client, backend):
        talk(client, backend)
        os.kill(forward.running.worker(), signal.SIGKILL)
        for end in (client, backend):
            if isinstance(end, ssl.SSLSocket):
                assert end_of(end).how in (CUT, "ECONNRESET")


def test_a_client_that_reads_nothing_stops_the_backend(start: Start, authority: Authority) -> None:
    """What is encrypted for a client that does not read is bounded; nothing of it is lost."""
    with session(start, authority, "accept") as (_, client, backend), Sending(backend, noise(BULK)):
        until(lambda: queued(client) > 0)
        assert end_of(client) == Ending(noise(BULK), "EOF")


def test_a_cut_after_our_own_end_is_logged_as_the_backends(start: Start, authority: Authority) -> None:
    """A client that has read the end may leave without a word; who ended first is the backend."""
    with session(start, authority, "accept") as (forward, client, backend):
        talk(client, backend)
        farewell(backend)
        assert end_of(client) == Ending(b"", "EOF")
        client.close()
        assert forward.last_word() == "done-local-closed"


# Handshakes that lead nowhere.


def test_plain_http_to_the_tls_port_is_refused(
    start: Start, authority: Authority, backend: StartServer
) -> None:
    """Words that are no TLS: the connection ends, the log says so, the backend never hears of it."""
    behind = backend(echo)
    forward = start(f"tls-accept, cert={authority.server()}", behind.address)
    with connect(forward.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_to_end(client)
    assert forward.last_word() == "remote-tls-failed -"
    assert behind.count == 0


def test_a_client_that_says_nothing_has_its_time(
    start: Start, authority: Authority, listener: Listener
) -> None:
    """After `handshake-timeout` it is closed."""
    forward = start(f"tls-accept, cert={authority.server()}, handshake-timeout=1", listener.address)
    with connect(forward.address) as client:
        assert read_to_end(client) == Ending(b"", "EOF")
    assert forward.last_word() == "remote-tls-failed -"


def test_a_client_that_ends_in_its_greeting_is_not_waited_for(
    start: Start, authority: Authority, listener: Listener
) -> None:
    """Half a greeting and a FIN at once: epoll tells of both in one event, and never again."""
    options = f"tls-accept, cert={authority.server()}, handshake-timeout=60"
    forward = start(options, listener.address, workers=1)
    with connect(forward.address) as client:
        with processes.stopped(*forward.running.serving()):
            client.sendall(hello_with(b"localhost")[:100])
            finish(client)
        assert read_to_end(client).data == b""


def test_a_backend_that_says_nothing_has_its_time(
    start: Start, authority: Authority, listener: Listener
) -> None:
    """After `handshake-timeout` the client is closed."""
    forward = start("tls-connect, verify-server=off, handshake-timeout=1", listener.address)
    with connect(forward.address) as client:
        assert read_to_end(client).data == b""
    assert forward.last_word() == "local-tls-failed -"


def test_the_oldest_handshake_makes_room(start: Start, authority: Authority, backend: StartServer) -> None:
    """There is a most of handshakes at a time: the one that was begun first has to go."""
    forward = start(
        f"tls-accept, cert={authority.server()}, handshake-timeout=60", backend(echo).address, workers=1
    )
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect(forward.address)) for _ in range(1000)]
        with authority.client(forward.address) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
        assert read_to_end(waiting[0]).data == b""
        waiting[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting[1].recv(1)


def test_the_most_of_handshakes_is_that_of_the_worker(
    forwarder: StartForwarder, authority: Authority, backend: StartServer
) -> None:
    """Whatever time they have each, the oldest of all has to go."""
    cert, behind = authority.server(), backend(echo)
    ports = free_port(), free_port()
    forwarder(
        "".join(
            f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={cert}, handshake-timeout={seconds}]\n"
            for port, seconds in zip(ports, (60, 50), strict=True)
        ),
        workers=1,
    )
    with ExitStack() as stack:
        waiting = [stack.enter_context(connect((HOST, ports[number > 600]))) for number in range(1001)]
        assert read_to_end(waiting[0]).data == b""


# Which certificate.


def common_names(client: ssl.SSLSocket) -> set[str]:
    """The names that the server's certificate is for."""
    return {value for _, value in client.getpeercert()["subjectAltName"]}  # type: ignore


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("two.example", "two.example"),
        ("TWO.example", "two.example"),
        ("a.wild.example", "*.wild.example"),
        ("one.example", "one.example"),
        (None, "one.example"),
        ("a.b.wild.example", "one.example"),
        ("else.example", "one.example"),
    ],
)
def test_the_certificate_is_that_of_the_name(
    start: Start, authority: Authority, backend: StartServer, asked: str | None, shown: str, version: str
) -> None:
    """Of several the one that is for the name asked for, a wildcard for one label; else the first."""
    certs = ";".join(str(authority.server(name)) for name in ("one.example", "two.example", "*.wild.example"))
    forward = start(f"tls-accept, cert={certs}", backend(echo).address)
    context = authority.trusting(version=version)
    context.check_hostname = False
    with authority.client(forward.address, asked, context=context) as client:
        assert common_names(client) == {shown}


def hello_with(name: bytes) -> bytes:
    """A ClientHello that asks for the server `name` (RFC 8446, 4.1.2; RFC 6066, 3)."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stands_in = b"x" * len(name)
    greeting = context.wrap_bio(there, back, server_hostname=stands_in.decode())
    with pytest.raises(ssl.SSLWantReadError):
        greeting.do_handshake()
    return back.read().replace(stands_in, name)


@pytest.mark.parametrize("name", [b"\xff\xfe\xfd", b"a\nb\tc", b"\x1b[2J", b"\xc3\xa4\xc3\xa4"])
def test_a_name_that_is_none_is_not_repeated(
    start: Start, authority: Authority, backend: StartServer, name: bytes
) -> None:
    """Bytes in place of a name reach neither the log nor stderr; others go on."""
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address, workers=1)
    with connect(forward.address) as client:
        client.sendall(hello_with(name))
        assert client.recv(1)
    with authority.client(forward.address) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    assert forward.last_word()
    said = forward.running.stderr()
    assert "Exception" not in said
    assert name not in forward.running.stderr_path.read_bytes()
    assert name not in forward.running.log_path.read_bytes()


# Clients with certificates.


def outcome_of_client(forward: Forward, authority: Authority, **options: Any) -> str:
    """What a client with those options meets: `served`, or what it is told."""
    try:
        with authority.client(forward.address, **options) as client:
            client.sendall(b"x")
            return "served" if client.recv(1) == b"x" else "closed"
    except ssl.SSLError as error:
        return error.reason or ""
    except ConnectionError as error:
        return type(error).__name__


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("who", "told"),
    [
        ("known", "served"),
        ("nobody", "REQUIRED"),
        ("stranger", "UNKNOWN_CA"),
        ("expired", "EXPIRED"),
    ],
)
def test_a_client_must_have_a_certificate(
    start: Start,
    authority: Authority,
    backend: StartServer,
    tmp_path: Path,
    who: str,
    told: str,
    version: str,
) -> None:
    """Of the authority in `client-ca`, and of today; others are told why, and never get to the backend."""
    behind = backend(echo)
    forward = start(f"tls-accept, cert={authority.server()}, client-ca={authority.file}", behind.address)
    (tmp_path / "other").mkdir()
    persons = {
        "known": authority.person(),
        "nobody": None,
        "stranger": Authority(tmp_path / "other").person(),
        "expired": authority.expired("alice@example.org"),
    }
    found = outcome_of_client(forward, authority, person=persons[who], version=version)
    if told == "served":
        assert found == told
        return
    if version == "1.2" and who == "nobody":
        told = "HANDSHAKE_FAILURE"
    assert told in found
    assert forward.last_word() == "remote-tls-failed -"
    assert behind.count == 0


@pytest.mark.parametrize(
    ("who", "told"), [("known", "served"), ("nobody", "served"), ("stranger", "UNKNOWN_CA")]
)
def test_a_clients_certificate_may_be_optional(
    start: Start, authority: Authority, backend: StartServer, tmp_path: Path, who: str, told: str
) -> None:
    """Who shows one must show a good one; who shows none is let in."""
    options = f"tls-accept, cert={authority.server()}, client-ca={authority.file}, verify-client=optional"
    forward = start(options, backend(echo).address)
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").person()
    person = {"known": authority.person(), "nobody": None, "stranger": stranger}[who]
    assert told in outcome_of_client(forward, authority, person=person)


# Servers.


def met(forward: Forward) -> str:
    """What a client of a forward with tls-connect meets."""
    with connect(forward.address) as client:
        client.sendall(b"x")
        finish(client)
        found = read_to_end(client).data
    return "served" if found == b"x" else forward.last_word()


FAILED: Final = "local-tls-failed -"


@pytest.mark.parametrize(
    ("names", "options", "host", "expected"),
    [
        (["localhost"], "server-ca={ca}", "localhost", "served"),
        (["localhost"], "server-ca={ca}", HOST, FAILED),
        ([HOST], "server-ca={ca}", HOST, "served"),
        (["other.example"], "server-ca={ca}", "localhost", FAILED),
        (["other.example"], "server-ca={ca}, server-name=other.example", HOST, "served"),
        (["*.wild.example"], "server-ca={ca}, server-name=other.wild.example", HOST, "served"),
        (["localhost"], "server-ca={ca}, server-name=other.example", "localhost", FAILED),
        (["localhost"], "", "localhost", FAILED),
        (["other.example"], "verify-server=off", HOST, "served"),
    ],
    ids=str,
)
def test_a_server_must_be_who_was_meant(
    start: Start,
    authority: Authority,
    backend: StartServer,
    names: list[str],
    options: str,
    host: str,
    expected: str,
) -> None:
    """Its certificate leads to `server-ca`, else to what the host trusts, and is for `server-name`, else for
    the host that is dialled, which may be an address; unless `verify-server=off`."""
    behind = backend(over_tls(echo, authority.serving(authority.server(*names))))
    said = ", ".join(filter(None, ["tls-connect", options.format(ca=authority.file)]))
    forward = start(said, f"{host} {behind.port}")
    assert met(forward) == expected


def test_an_expired_server_is_refused(start: Start, authority: Authority, backend: StartServer) -> None:
    """However good its name."""
    behind = backend(over_tls(echo, authority.serving(authority.expired())))
    forward = start(f"tls-connect, server-ca={authority.file}, server-name={NAME}", behind.address)
    assert met(forward) == FAILED


def test_a_server_that_speaks_plain_text_is_refused(
    start: Start, authority: Authority, backend: StartServer
) -> None:
    """It never hears what the client says."""
    behind = backend(sink)
    forward = start(f"tls-connect, server-ca={authority.file}, handshake-timeout=1", behind.address)
    with connect(forward.address) as client:
        client.sendall(b"secret")
        assert read_to_end(client).data == b""
    assert b"secret" not in behind.visit().received


def test_a_server_that_resets_never_hears_the_client(start: Start, authority: Authority) -> None:
    """A backend that is gone before the handshake fails like one that refuses it."""
    with Listener() as behind:
        forward = start("tls-connect, verify-server=off", behind.address, workers=1)
        with connect(forward.address) as client:
            with processes.stopped(*forward.running.serving()):
                client.sendall(b"secret")
                reset(behind.accept())
            assert read_to_end(client).data == b""
        assert forward.last_word() == FAILED


def test_the_client_certificate_is_shown(start: Start, authority: Authority, backend: StartServer) -> None:
    """To a backend that asks for one."""
    behind = backend(over_tls(echo, authority.serving(authority.server(), asks=True)))
    options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
    assert met(start(f"{options}, client-cert={authority.person()}", behind.address)) == "served"


def test_the_next_backend_is_tried(start: Start, authority: Authority, backend: StartServer) -> None:
    """One that fails the handshake is as one that is not there."""
    cert = authority.server()
    bad = backend(goodbye)
    wrong = backend(over_tls(echo, authority.serving(authority.server("other.example"))))
    good = backend(over_tls(echo, authority.serving(cert)))
    forward = start(
        f"tls-connect, server-ca={authority.file}, server-name={NAME}, balance=first",
        ",".join(f"{HOST}:{each.port}" for each in (bad, wrong, good)) + " 1",
    )
    assert met(forward) == "served"
    assert bad.count == wrong.count == 1


# Versions, ciphers, protocols.


@pytest.mark.parametrize(("least", "spoken", "served"), [("1.2", "1.2", True), ("1.3", "1.2", False)])
def test_the_oldest_version(
    start: Start, authority: Authority, backend: StartServer, least: str, spoken: str, served: bool
) -> None:
    """`tls-min`, for clients."""
    forward = start(f"tls-accept, cert={authority.server()}, tls-min={least}", backend(echo).address)
    found = outcome_of_client(forward, authority, version=spoken)
    assert (found == "served") == served


def test_the_oldest_version_of_a_backend(start: Start, authority: Authority, backend: StartServer) -> None:
    """`tls-min`, for backends."""
    behind = backend(over_tls(echo, authority.serving(authority.server(), version="1.2")))
    assert met(start("tls-connect, verify-server=off, tls-min=1.3", behind.address)) == FAILED


def test_tls_1_1_is_refused(start: Start, authority: Authority, listener: Listener) -> None:
    """RFC 8996."""
    forward = start(f"tls-accept, cert={authority.server()}", listener.address)
    context = authority.trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        authority.client(forward.address, context=context)


def test_the_ciphers(start: Start, authority: Authority, backend: StartServer) -> None:
    """`ciphers` are those of TLS 1.2."""
    only = "ECDHE-ECDSA-CHACHA20-POLY1305"
    forward = start(f"tls-accept, cert={authority.server()}, ciphers={only}", backend(echo).address)
    with authority.client(forward.address, version="1.2") as client:
        assert client.cipher()[0] == only  # type: ignore[index]


def test_the_protocol_is_the_first_of_ours(start: Start, authority: Authority, backend: StartServer) -> None:
    """`alpn` in its order (RFC 7301)."""
    forward = start(f"tls-accept, cert={authority.server()}, alpn=h2;http/1.1", backend(echo).address)
    with authority.client(forward.address, alpn=["http/1.1", "h2"]) as client:
        assert client.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize(
    ("offered", "option", "heard"),
    [(["h2"], "client", "h2"), (["http/1.1"], "client", "http/1.1"), ([], "client", None), ([], "h2", "h2")],
)
def test_the_protocol_of_the_client_is_offered_to_the_backend(
    start: Start, authority: Authority, offered: list[str], option: str, heard: str | None
) -> None:
    """`server-alpn=client` passes on what the client was given, alone."""
    cert = authority.server()
    options = (
        f"tls-accept, cert={cert}, alpn=h2;http/1.1, tls-connect, verify-server=off, server-alpn={option}"
    )
    with Listener() as behind, ThreadPoolExecutor(1) as apart:
        forward = start(options, behind.address)
        serving = authority.serving(cert, alpn=["http/1.1", "h2"])
        server = apart.submit(lambda: serving.wrap_socket(behind.accept(), server_side=True))
        with authority.client(forward.address, alpn=offered), server.result() as found:
            assert found.selected_alpn_protocol() == heard


# Tickets.


def visit(
    authority: Authority, address: Address, context: ssl.SSLContext, before: ssl.SSLSession | None
) -> Any:
    """A session that goes on with `before`: whether it could, and what the next one can go on with."""
    with authority.client(address, context=context, session=before) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"  # in TLS 1.3 tickets come after the handshake
        return client.session_reused, client.session


@pytest.mark.parametrize("version", VERSIONS)
def test_tickets_are_good_for_all_workers(
    start: Start, authority: Authority, backend: StartServer, version: str
) -> None:
    """Whoever gave a ticket out, the next worker takes it."""
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address, workers=4)
    context = authority.trusting(version=version)
    reused, ticket = visit(authority, forward.address, context, None)
    assert not reused
    for _ in range(16):
        reused, ticket = visit(authority, forward.address, context, ticket)
        assert reused


@pytest.mark.parametrize("version", VERSIONS)
def test_tickets_survive_the_worker(
    start: Start, authority: Authority, backend: StartServer, version: str
) -> None:
    """The next one in its place takes those of one that was killed."""
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address, workers=1)
    context = authority.trusting(version=version)
    _, ticket = visit(authority, forward.address, context, None)
    killed = forward.running.worker()
    os.kill(killed, signal.SIGKILL)
    until(lambda: forward.running.workers().get(0) not in (None, killed))
    reused, _ = until(lambda: attempt(lambda: visit(authority, forward.address, context, ticket)))
    assert reused


def attempt(what: Callable[[], Any]) -> Any:
    """What that returns; None where nobody answers yet."""
    try:
        return what()
    except ConnectionError:
        return None


@pytest.mark.parametrize("version", VERSIONS)
def test_tickets_survive_a_reload(
    start: Start, authority: Authority, backend: StartServer, version: str
) -> None:
    """Also one that changes the certificate."""
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address)
    context = authority.trusting(version=version)
    _, ticket = visit(authority, forward.address, context, None)
    forward.running.reload(forward.line(f"tls-accept, cert={authority.server()}"))
    for _ in range(4):
        reused, ticket = visit(authority, forward.address, context, ticket)
        assert reused


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("before", ["", ", client-ca={ca}, verify-client=optional"])
def test_a_ticket_does_not_stand_for_a_certificate(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, version: str, before: str
) -> None:
    """Where clients must have one, the ticket of a forward where they need none lets nobody in."""
    cert, behind = authority.server(), backend(echo)
    open_port, guarded = free_port(), free_port()
    before = before.format(ca=authority.file)
    forwarder(
        f"{HOST} {open_port} {HOST} {behind.port} [tls-accept, cert={cert}{before}]\n"
        f"{HOST} {guarded} {HOST} {behind.port} [tls-accept, cert={cert}, client-ca={authority.file}]\n"
    )
    context = authority.trusting(version=version)
    _, ticket = visit(authority, (HOST, open_port), context, None)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        visit(authority, (HOST, guarded), context, ticket)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_ticket_is_not_good_for_another_name(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, version: str
) -> None:
    """Who resumes a session looks at no certificate: one that was led elsewhere has to."""
    behind = backend(echo)
    ports = free_port(), free_port()
    certs = authority.server(), authority.server(NAME, "other.example.org")
    forwarder(
        "".join(
            f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={cert}]\n"
            for port, cert in zip(ports, certs, strict=True)
        )
    )
    context = authority.trusting(version=version)
    _, ticket = visit(authority, (HOST, ports[0]), context, None)
    reused, _ = visit(authority, (HOST, ports[1]), context, ticket)
    assert not reused


@pytest.mark.parametrize("version", VERSIONS)
def test_a_clients_certificate_is_remembered_with_its_ticket(
    start: Start, authority: Authority, backend: StartServer, version: str
) -> None:
    """Who has shown it once may go on."""
    options = f"tls-accept, cert={authority.server()}, client-ca={authority.file}"
    forward = start(options, backend(echo).address)
    context = authority.trusting(version=version, person=authority.person())
    _, ticket = visit(authority, forward.address, context, None)
    reused, _ = visit(authority, forward.address, context, ticket)
    assert reused


# Reload.


def test_a_reload_changes_the_certificate(start: Start, authority: Authority, backend: StartServer) -> None:
    """The same file with something else in it: new connections see that, sessions go on."""
    cert = authority.server(NAME, "before.example")
    forward = start(f"tls-accept, cert={cert}", backend(echo).address)
    with authority.client(forward.address) as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        cert.write_bytes(authority.server(NAME, "after.example").read_bytes())
        forward.running.reload()
        with authority.client(forward.address) as new:
            assert "after.example" in common_names(new)
        old.sendall(b"y")
        assert old.recv(1) == b"y"


@pytest.mark.parametrize("fault", ["mismatched", "missing", "garbage", "expired"])
def test_a_bad_pair_leaves_the_old_one(
    start: Start, authority: Authority, backend: StartServer, fault: str
) -> None:
    """The reload is refused, with file and line, and the forward goes on with what it had."""
    chain, key = authority.pair()
    forward = start(f"tls-accept, cert={chain}, key={key}", backend(echo).address)
    if fault == "mismatched":
        key.write_bytes(authority.pair()[1].read_bytes())
    elif fault == "missing":
        key.unlink()
    elif fault == "garbage":
        chain.write_bytes(noise(100))
    else:
        expired = authority.expired().read_bytes()
        chain.write_bytes(expired)
        key.write_bytes(expired)
    forward.running.hup()
    forward.running.wait_said("reload refused")
    assert forward.running.said(f"{forward.running.config_path}:1: ") == 1
    assert outcome_of_client(forward, authority) == "served"


# Rights.


def test_as_root_workers_need_no_right_to_the_key(
    start: Start, authority: Authority, backend: StartServer, tmp_path: Path
) -> None:
    """The supervisor reads it; the workers, which are nobody, serve with it."""
    require_root()
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address, "user nobody\n")
    uid = os.stat(f"/proc/{forward.running.worker()}").st_uid
    assert uid == pwd.getpwnam("nobody").pw_uid
    assert outcome_of_client(forward, authority) == "served"


def test_a_worker_that_has_died_leaves_one_that_knows_the_key(
    start: Start, authority: Authority, backend: StartServer
) -> None:
    """Also when the file is gone by then."""
    cert = authority.server()
    forward = start(f"tls-accept, cert={cert}", backend(echo).address, workers=1)
    cert.unlink()
    killed = forward.running.worker()
    os.kill(killed, signal.SIGKILL)
    until(lambda: forward.running.workers().get(0) not in (None, killed))
    until(lambda: outcome_of_client(forward, authority) == "served")


def test_an_ordinary_user_needs_no_more_than_a_key_of_its_own(
    ordinary: StartOrdinary, own: Path, backend: StartServer
) -> None:
    """Another one's, which it may not read, is an error."""
    authority, behind, port = Authority(own), backend(echo), free_port()
    mine, roots = authority.server(), authority.server()
    os.chown(mine, ORDINARY, ORDINARY)
    forward = f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert="
    running = ordinary(f"{forward}{mine}]\n")
    with authority.client((HOST, port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    running.reload(f"{forward}{roots}]\n")
    assert running.said(f"found '{roots}': Permission denied") == 1


# Other sockets.


def test_tls_over_unix_sockets(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, tmp_path: Path
) -> None:
    """On both sides; the name must be said, for a path is none."""
    # Workers that have given up root's rights may not connect to what only root may.
    cert, inner, outer = authority.server(), f"@{tmp_path.name}", tmp_path / "outer"
    behind = backend(echo)
    forwarder(
        f"unix:{outer} unix:{inner} [tls-accept, cert={cert}, "
        f"tls-connect, server-ca={authority.file}, server-name={NAME}]\n"
        f"unix:{inner} {HOST} {behind.port} [tls-accept, cert={cert}]\n"
    )
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(deadline.seconds(10))
        plain.connect(str(outer))
        with greeted(plain, authority.trusting(), NAME) as client:
            client.sendall(noise(100_000))
            assert read_exactly(client, 100_000) == noise(100_000)
            say_end(client)
            assert ending(client) == Ending(b"", "EOF")


def test_a_unix_socket_may_go_unverified(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, tmp_path: Path
) -> None:
    """Nobody is asked for by a path."""
    inner, port = f"@{tmp_path.name}-{'x' * 64}", free_port()
    forwarder(
        f"{HOST} {port} unix:{inner} [tls-connect, verify-server=off]\n"
        f"unix:{inner} {HOST} {backend(echo).port} [tls-accept, cert={authority.server()}]\n"
    )
    with connect((HOST, port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_tls_over_ipv6(forwarder: StartForwarder, authority: Authority, backend: StartServer) -> None:
    """An address is a name, too."""
    cert = authority.server("::1")
    behind = backend(over_tls(echo, authority.serving(cert)), host="::1")
    port = free_port()
    options = f"tls-accept, cert={cert}, tls-connect, server-ca={authority.file}"
    forwarder(f"[::1] {port} [::1] {behind.port} [{options}]\n")
    with authority.client(("::1", port), "::1") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_the_sorry_file_goes_over_tls(start: Start, authority: Authority, tmp_path: Path) -> None:
    """A client that was let in is told so when no backend can be reached, and that this was all."""
    sorry = tmp_path / "sorry"
    sorry.write_bytes(noise(1_000_000))
    options = f"tls-accept, cert={authority.server()}, sorry-file={sorry}"
    forward = start(options, (HOST, free_port()))
    with authority.client(forward.address) as client:
        assert ending(client) == Ending(noise(1_000_000), "EOF")


def test_the_sorry_file_when_the_backend_fails_the_handshake(
    start: Start, authority: Authority, backend: StartServer, tmp_path: Path
) -> None:
    """It is as one that is not there."""
    sorry = tmp_path / "sorry"
    sorry.write_bytes(b"later")
    forward = start(f"tls-connect, sorry-file={sorry}", backend(goodbye).address)
    with connect(forward.address) as client:
        assert read_to_end(client) == Ending(b"later", "EOF")


# What else may happen.


@pytest.mark.parametrize("way", WAYS)
def test_the_last_answer_reaches_a_client_that_is_still_sending(
    start: Start, authority: Authority, way: str
) -> None:
    """A backend that has heard enough answers and goes: the answer is not lost with what it did not hear."""
    with session(start, authority, way) as (_, client, backend):
        client.sendall(noise(100_000))
        assert read_exactly(backend, 10) == noise(100_000)[:10]
        backend.sendall(b"too large")
        farewell(backend)
        until(lambda: queued(client) > 0)
        client.sendall(noise(10_000))
        assert read_exactly(client, 9) == b"too large"
        assert end_of(client) == Ending(b"", "EOF")


@pytest.mark.parametrize("way", ["accept", "both"])
def test_a_clients_end_is_one_although_it_goes_at_once(start: Start, authority: Authority, way: str) -> None:
    """Its close_notify stands before the reset that comes of the bytes that it has not read."""
    with session(start, authority, way) as (_, client, backend):
        talk(client, backend)
        client.sendall(b"the last word")
        backend.sendall(noise(1000))
        until(lambda: queued(client) > 0)
        say_end(client)
        client.close()
        assert read_exactly(backend, 13) == b"the last word"
        assert end_of(backend).data == b""


def test_a_handshake_goes_on_over_a_reload(start: Start, authority: Authority, backend: StartServer) -> None:
    """Also where the forward is gone by then: the client was accepted."""
    forward = start(f"tls-accept, cert={authority.server()}", backend(echo).address)
    with connect(forward.address) as plain:
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        greeting = authority.trusting().wrap_bio(there, back, server_hostname=NAME)
        with pytest.raises(ssl.SSLWantReadError):
            greeting.do_handshake()
        first = back.read()
        plain.sendall(first[:100])
        forward.running.reload(f"{HOST} {free_port()} {HOST} {free_port()}\n")
        plain.sendall(first[100:])
        while True:
            there.write(plain.recv(1 << 16))
            try:
                greeting.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        greeting.write(b"x")
        plain.sendall(back.read())
        assert plain.recv(1 << 16)


def test_handshakes_that_fail_leave_no_connection(
    start: Start, authority: Authority, backend: StartServer
) -> None:
    """A limit counts those that are there."""
    options = f"tls-accept, cert={authority.server()}, max-connections=1"
    forward = start(options, backend(echo).address, workers=1)
    for number in range(20):
        with connect(forward.address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            read_to_end(client)
        forward.running.wait_log(number + 1, "remote-tls-failed")
    assert outcome_of_client(forward, authority) == "served"


@pytest.mark.parametrize("side", ["client", "backend"])
def test_certificates_may_be_large(
    start: Start, authority: Authority, backend: StartServer, side: str
) -> None:
    """More than a record holds, and more than is read at once."""
    large = authority.server(NAME, *(f"{'x' * 40}{number}.example" for number in range(1500)))
    assert large.stat().st_size > 90_000
    if side == "client":
        forward = start(f"tls-accept, cert={large}", backend(echo).address)
        assert outcome_of_client(forward, authority) == "served"
    else:
        behind = backend(over_tls(echo, authority.serving(large)))
        options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
        assert met(start(options, behind.address)) == "served"


def test_a_range_of_ports_has_one_certificate(
    forwarder: StartForwarder, authority: Authority, backend: StartServer
) -> None:
    """Every port of it."""
    behind = backend(echo)
    first = until(lambda: consecutive(3))
    forwarder(f"{HOST} {first}-{first + 2} {HOST} {behind.port} [tls-accept, cert={authority.server()}]\n")
    for port in range(first, first + 3):
        with authority.client((HOST, port)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def consecutive(count: int) -> int:
    """The first of so many free ports in a row; 0 if the next free one is not."""
    first = free_port()
    return first if all(claim(port) for port in range(first + 1, first + count)) else 0
