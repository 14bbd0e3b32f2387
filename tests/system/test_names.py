"""Names: looked up beside the traffic, tried again, and never followed back to ourselves."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.ports import free_port
from tests.servers import Server, echo
from tests.sockets import Listener, connect, finish, read_to_end
from tests.system.namespaces import Sandbox

HOSTS = Path("/mnt/hosts")


class Place:
    """A network of its own with its own /etc/hosts, and beside that one name server: silent,
    unless there is `none`. What it says at last is after a second (resolv.conf(5))."""

    def __init__(self, inside: Sandbox, *, server: str) -> None:
        self.inside = inside
        inside.cover(Path("/mnt"))
        for name, text in (
            ("hosts", "127.0.0.1 localhost\n"),
            ("nsswitch.conf", f"hosts: files {'dns' if server else ''}\nservices: files\npasswd: files\n"),
            ("resolv.conf", f"nameserver {server or '127.0.0.1'}\noptions timeout:1 attempts:1\n"),
        ):
            inside.call(Path("/mnt", name).write_text, text)
            inside.replace(Path("/etc", name), Path("/mnt", name))

    def hosts(self, *lines: str) -> None:
        """Change /etc/hosts, in one write."""
        self.inside.call(HOSTS.write_text, "".join(f"{line}\n" for line in (*lines, "127.0.0.1 localhost")))

    def silence(self, address: str) -> None:
        """Packets to `address` get no answer at all: a wire whose other end nobody listens on."""
        run = self.inside.run
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        run("ip", "address", "add", "192.0.2.2/24", "dev", "near")
        run("ip", "link", "set", "near", "up")
        run("ip", "link", "set", "far", "up")
        run(
            "ip", "neighbor", "add", address, "lladdr", "02:00:00:00:00:01", "dev", "near", "nud", "permanent"
        )


@pytest.fixture
def files() -> Iterator[Place]:
    """A place where only /etc/hosts knows names."""
    with Sandbox(network=True) as inside:
        yield Place(inside, server="")


@pytest.fixture
def mute() -> Iterator[Place]:
    """A place whose name server never answers."""
    with Sandbox(network=True) as inside:
        place = Place(inside, server="192.0.2.1")
        place.silence("192.0.2.1")
        yield place


@pytest.fixture
def behind(request: pytest.FixtureRequest, backend: StartServer) -> Server:
    """An echo in the place that the test uses."""
    place: Place = request.getfixturevalue("files" if "files" in request.fixturenames else "mute")
    server: Server = place.inside.call(backend, echo)
    return server


def echoes(place: Place, port: int) -> bool:
    """Whether the forward there works at the moment."""
    with place.inside.call(connect, ("127.0.0.1", port)) as client:
        try:
            client.sendall(b"hello")
            finish(client)
        except OSError:
            pass  # refused: what it reads tells
        return read_to_end(client).data == b"hello"


def test_a_name_is_dialled(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """A backend's name in /etc/hosts is looked up and dialled; the log has the name as written."""
    files.hosts("127.0.0.5 Backend.example", "127.0.0.1 backend.example")
    port = free_port()
    running = files.inside.call(forwarder, f"127.0.0.1 {port} backend.example {behind.port}\n")
    assert echoes(files, port)
    assert running.wait_log(1, "\tbackend.example\t")


def test_a_dead_first_address(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """Of several addresses each is tried: a session comes about although the first one, where
    nobody listens, refuses."""
    files.hosts("127.0.0.1 backend", "::1 backend")
    first = files.inside.call(socket.getaddrinfo, "backend", None, type=socket.SOCK_STREAM)[0]
    assert first[4][0] == "::1"  # RFC 6724, 2.1: the loopback has the highest precedence
    port = free_port()
    files.inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\n")
    assert all(echoes(files, port) for _ in range(5))


def test_no_living_address(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """When every address refuses, the client is closed and the log says why, once."""
    files.hosts("127.0.0.8 backend", "127.0.0.9 backend")
    port = free_port()
    running = files.inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\n")
    assert not echoes(files, port)
    running.wait_log(1, "local-connect-failed -")
    assert [line["outcome"] for line in running.log_columns()] == ["opened", "local-connect-failed -"]


def test_a_moved_name_is_followed_at_a_reload(
    files: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """A reload asks again: new sessions go to the new address, and the move is reported."""
    files.hosts("127.0.0.9 backend")
    port = free_port()
    running = files.inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\n")
    assert not echoes(files, port)
    files.hosts("127.0.0.1 backend")
    running.reload()
    assert echoes(files, port)
    assert running.said("backend is now 127.0.0.1") == 1


def test_a_name_that_vanished_keeps_its_address(
    files: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """A reload that cannot find a name any more does not take away the address that worked."""
    files.hosts("127.0.0.1 backend")
    port = free_port()
    running = files.inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\n")
    files.hosts()
    running.reload()
    assert echoes(files, port)


def test_a_moved_name_is_followed_in_time(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """Without a reload, as often as `dns-refresh` says: here nobody dials before the name has moved."""
    files.hosts("127.0.0.9 backend")
    port = free_port()
    running = files.inside.call(forwarder, f"127.0.0.1 {port} backend {behind.port}\ndns-refresh 1\n")
    files.hosts("127.0.0.1 backend")
    running.wait_said("backend is now 127.0.0.1")
    until(lambda: echoes(files, port), what="the new address")  # the workers are told as it is said


def test_a_forward_has_its_own_pace(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """Its `dns-refresh=` holds where the directive asks for none."""
    files.hosts("127.0.0.9 backend")
    port = free_port()
    running = files.inside.call(
        forwarder, f"127.0.0.1 {port} backend {behind.port} [dns-refresh=1]\ndns-refresh 0\n"
    )
    files.hosts("127.0.0.1 backend")
    running.wait_said("backend is now 127.0.0.1")


def test_dials_that_fail_have_the_name_looked_up(
    files: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """After three in a row, also where no answer is ever too old."""
    files.hosts("127.0.0.9 backend")
    port = free_port()
    running = files.inside.call(
        forwarder, f"127.0.0.1 {port} backend {behind.port}\ndns-refresh 0\n", workers=1
    )
    files.hosts("127.0.0.1 backend")
    assert not any(echoes(files, port) for _ in range(3))
    running.wait_said("backend is now 127.0.0.1")
    until(lambda: echoes(files, port), what="the new address")  # the workers are told as it is said


def test_one_family_only(files: Place, behind: Server, forwarder: StartForwarder) -> None:
    """`dns-multi-ip-proto ipv6` leaves the IPv4 address alone, although somebody is there."""
    files.hosts("127.0.0.1 backend", "::1 backend")
    port = free_port()
    config = f"127.0.0.1 {port} backend {behind.port}\n"
    running = files.inside.call(forwarder, f"{config}dns-multi-ip-proto ipv6\n")
    assert not echoes(files, port)
    running.reload(f"{config}dns-multi-ip-proto ipv4\n")
    assert echoes(files, port)


# A silent name server.


def test_a_silent_name_server_does_not_keep_it_from_starting(
    mute: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """It listens and serves its other forwards, warns, and serves this one as soon as the name
    is found, by its own trying again."""
    port, other = free_port(), free_port()
    running = mute.inside.call(
        forwarder, f"127.0.0.1 {port} backend {behind.port}\n127.0.0.1 {other} 127.0.0.1 {behind.port}\n"
    )
    assert running.said("rinetd.conf:1: expected a host that can be resolved, found 'backend': ") == 1
    assert running.said("; trying again") == 1
    assert echoes(mute, other)
    assert not echoes(mute, port)
    assert running.wait_log(1, "\tbackend\t")[0].endswith("\tlocal-connect-failed -")
    mute.hosts("127.0.0.1 backend")
    until(lambda: echoes(mute, port), what="the name to be found")
    assert running.said("backend is now 127.0.0.1") == 1


def test_a_name_to_listen_on_must_be_found(mute: Place, forwarder: StartForwarder) -> None:
    """Without an address there is nothing to listen on: refused, with the line."""
    running = mute.inside.call(
        forwarder, f"outside.example {free_port()} 192.0.2.9 1\n", ready=False, workers=1
    )
    running.expected_return = {1}
    assert running.wait() == 1
    assert running.said("rinetd.conf:1: expected a host that can be resolved, found 'outside.example': ") == 1


def test_a_start_that_waits_for_a_name_can_be_stopped(mute: Place, forwarder: StartForwarder) -> None:
    """TERM ends a start that is waiting for the name server: nothing serves any more, status 0 or 1."""
    running = mute.inside.call(forwarder, f"127.0.0.1 {free_port()} backend 1\n", ready=False)
    until(running.resolver, what="the question to be asked")
    running.expected_return = {0, 1}
    assert running.stop(signal.SIGTERM, 4) in (0, 1)
    assert running.said("ready:") == 0


def test_a_reload_while_it_waits_for_a_name(mute: Place, behind: Server, forwarder: StartForwarder) -> None:
    """HUP during a start that is waiting for the name server leads to the new configuration."""
    port = free_port()
    running = mute.inside.call(forwarder, f"127.0.0.1 {free_port()} backend 1\n", ready=False)
    until(running.resolver, what="the question to be asked")
    running.configure(f"127.0.0.1 {port} 127.0.0.1 {behind.port}\n")
    running.hup()
    running.wait_ready()
    running.wait_reloaded(1)
    assert echoes(mute, port)


def test_a_reload_does_not_wait_for_ever_for_a_name(
    mute: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """A backend's name without an answer does not keep a reload from bringing the others."""
    port, other = free_port(), free_port()
    running = mute.inside.call(forwarder, "")
    running.reload(f"127.0.0.1 {port} backend {behind.port}\n127.0.0.1 {other} 127.0.0.1 {behind.port}\n")
    assert echoes(mute, other)
    assert not echoes(mute, port)
    assert running.said("found 'backend': ") == 1


# Back to ourselves.


def test_a_name_that_leads_back_is_refused(files: Place, forwarder: StartForwarder) -> None:
    """A backend's name that means our own listener is refused at the start, with the line."""
    files.hosts("127.0.0.9 elsewhere", "127.0.0.1 elsewhere")
    port = free_port()
    running = files.inside.call(
        forwarder, f"# comment\n127.0.0.1 {port} elsewhere {port}\n", ready=False, workers=1
    )
    running.expected_return = {1}
    assert running.wait() == 1
    assert running.said("rinetd.conf:2: ") == 1
    assert running.said("itself") == 1


def test_a_name_that_comes_to_lead_back_is_not_dialled(
    mute: Place, behind: Server, forwarder: StartForwarder
) -> None:
    """A name that is found later and means our own listener is reported and not dialled."""
    port = free_port()
    running = mute.inside.call(forwarder, f"0.0.0.0 {port} backend {port}\n")
    mute.hosts("127.0.0.1 backend")
    running.wait_said("itself")
    assert not echoes(mute, port)
    assert running.log_text().count("\topened") == 0


def test_a_connection_to_itself_is_noticed(files: Place, forwarder: StartForwarder) -> None:
    """When the only source port is the backend's own and nobody listens there, the kernel
    connects the socket to itself (RFC 9293, 3.5): that is a failure, not a session."""
    files.inside.sysctl("net.ipv4.ip_local_port_range", "41000 41000")
    running = files.inside.call(forwarder, "127.0.0.1 5000 127.0.0.1 41000\n", workers=1)
    with files.inside.call(connect_from, ("127.0.0.1", 5000), 20_000) as client:
        client.sendall(b"echo?")
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-connect-failed -")


def connect_from(address: tuple[str, int], port: int) -> socket.socket:
    """A client that comes from `port`."""
    return socket.create_connection(address, timeout=20, source_address=("127.0.0.2", port))


def test_a_port_among_the_source_ports_is_served(files: Place, forwarder: StartForwarder) -> None:
    """A backend whose port is one of the kernel's own source ports is dialled like any other."""
    with files.inside.call(Listener, "127.0.0.1", 41_000) as listener:
        running = files.inside.call(forwarder, "127.0.0.1 5000 127.0.0.1 41000\n", workers=1)
        with files.inside.call(connect, ("127.0.0.1", 5000)) as client, listener.accept() as connection:
            connection.sendall(b"hello")
            connection.close()
            assert read_to_end(client).data == b"hello"
        assert running.wait_log(1, "done-local-closed")
