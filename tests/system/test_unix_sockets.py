"""Unix sockets on either side, and on both."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import Listener, Sending, connect, finish, noise, read_exactly, read_to_end, reset
from tests.system.metrics import by, metrics_url, scrape


def name(path: str) -> str:
    """What the kernel calls a socket that is written like this."""
    return f"\0{path[1:]}" if path.startswith("@") else path


@contextmanager
def unix_client(path: str) -> Iterator[socket.socket]:
    """A client of a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(deadline.seconds(20))
        client.connect(name(path))
        yield client


@contextmanager
def unix_backend(path: str) -> Iterator[socket.socket]:
    """A backend at a Unix socket, that the test plays itself."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(deadline.seconds(20))
        listener.bind(name(path))
        listener.listen(64)
        yield listener


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody reaches, with a short name."""
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(0o755)
    tmp_path.chmod(0o777)
    return tmp_path


def both_ways(client: socket.socket, backend: socket.socket, size: int) -> None:
    """So many bytes in each direction, whole, each with its end."""
    up, down = noise(size, 1), noise(size, 2)
    with Sending(client, up):
        assert read_to_end(backend).data == up
    with Sending(backend, down):
        assert read_to_end(client).data == down


@pytest.mark.parametrize("path", ["{}/in", "@fastfwd-test-{}"])
def test_from_unix_to_tcp(forwarder: StartForwarder, place: Path, listener: Listener, path: str) -> None:
    """A file, or a name without one, in front of a port."""
    where = path.format(place if path.startswith("{") else os.getpid())
    running = forwarder(f"unix:{where} {listener.host} {listener.port}\n")
    with unix_client(where) as client, listener.accept() as backend:
        both_ways(client, backend, 2 << 20)
    lines = [(line["client"], line["listen"], line["bytes_in"]) for line in map(dict, running.log_columns())]
    until(lambda: len(running.log_lines()) == 2)
    assert lines[0][:2] == ("unix", f"unix:{where}")


@pytest.mark.parametrize("path", ["{}/out", "@fastfwd-test-out-{}"])
def test_from_tcp_to_unix(forwarder: StartForwarder, place: Path, path: str) -> None:
    """A port in front of a file, or of a name."""
    where, port = path.format(place if path.startswith("{") else os.getpid()), free_port()
    with unix_backend(where) as listener:
        if not where.startswith("@"):
            os.chmod(where, 0o777)
        forwarder(f"127.0.0.1 {port} unix:{where}\n")
        with connect(("127.0.0.1", port)) as client:
            backend, _ = listener.accept()
            with backend:
                backend.settimeout(deadline.seconds(20))
                both_ways(client, backend, 2 << 20)


def test_from_unix_to_unix(forwarder: StartForwarder, place: Path) -> None:
    """No port at all."""
    with unix_backend(f"{place}/out") as listener:
        os.chmod(f"{place}/out", 0o777)
        forwarder(f"unix:{place}/in unix:{place}/out\n")
        with unix_client(f"{place}/in") as client:
            backend, _ = listener.accept()
            with backend:
                backend.settimeout(deadline.seconds(20))
                both_ways(client, backend, 2 << 20)


def test_the_mode_of_the_file(forwarder: StartForwarder, place: Path) -> None:
    """0660 unless `mode=` says something else."""
    forwarder(f"unix:{place}/one 127.0.0.1 1\nunix:{place}/two 127.0.0.1 1 [mode=0600]\n")
    assert stat.S_IMODE(os.stat(f"{place}/one").st_mode) == 0o660
    assert stat.S_IMODE(os.stat(f"{place}/two").st_mode) == 0o600


def test_the_file_goes_with_the_program(forwarder: StartForwarder, place: Path) -> None:
    """At its end, and when a reload takes the forward away; not before."""
    running = forwarder(f"unix:{place}/one 127.0.0.1 1\nunix:{place}/two 127.0.0.1 1\n")
    running.reload(f"unix:{place}/one 127.0.0.1 1\n")
    assert ((place / "one").exists(), (place / "two").exists()) == (True, False)
    running.stop()
    assert not (place / "one").exists()


def test_one_that_was_left_behind_is_replaced(
    forwarder: StartForwarder, place: Path, listener: Listener
) -> None:
    """Nobody listens there any more."""
    with unix_backend(f"{place}/in"):
        pass
    forwarder(f"unix:{place}/in {listener.host} {listener.port}\n")
    with unix_client(f"{place}/in"):
        listener.accept().close()


@pytest.mark.parametrize("what", ["a file", "another program"])
def test_what_is_somebody_elses_stays(forwarder: StartForwarder, place: Path, what: str) -> None:
    """An error with the line, and nothing is touched."""
    with unix_backend(f"{place}/other"):
        (place / "file").write_text("precious")
        path = place / ("file" if what == "a file" else "other")
        running = forwarder(f"unix:{path} 127.0.0.1 1\n", ready=False)
        running.expected_return = {1}
        assert running.wait() == 1
        assert f"rinetd.conf:1: cannot listen on unix:{path}: " in running.stderr()
        assert (place / "file").read_text() == "precious"
        with unix_client(f"{place}/other"):
            pass


def test_a_backend_that_is_not_there(forwarder: StartForwarder, place: Path) -> None:
    """The client is closed, the log says so."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} unix:{place}/none\n")
    with connect(("127.0.0.1", port)) as client:
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-connect-failed")


def test_clients_in_the_queue_survive_a_worker(
    forwarder: StartForwarder, place: Path, listener: Listener
) -> None:
    """The queue is everybody's: whichever worker lives serves it."""
    running = forwarder(f"unix:{place}/in {listener.host} {listener.port}\n")
    os.kill(running.worker(0), 9)
    for _ in range(20):
        with unix_client(f"{place}/in") as client, listener.accept() as backend:
            client.sendall(b"x")
            assert read_exactly(backend, 1) == b"x"


def test_a_reload_keeps_the_socket(forwarder: StartForwarder, place: Path, listener: Listener) -> None:
    """A session and the file go on."""
    config = f"unix:{place}/in {listener.host} {listener.port}\n"
    running = forwarder(config)
    with unix_client(f"{place}/in") as client, listener.accept() as backend:
        running.reload(config)
        client.sendall(b"still")
        assert read_exactly(backend, 5) == b"still"
    with unix_client(f"{place}/in"):
        listener.accept().close()


def test_a_tcp_client_that_resets(forwarder: StartForwarder, place: Path) -> None:
    """The backend at the Unix socket hears an end, the session is over."""
    port = free_port()
    with unix_backend(f"{place}/out") as listener:
        os.chmod(f"{place}/out", 0o777)
        running = forwarder(f"127.0.0.1 {port} unix:{place}/out\n")
        client = connect(("127.0.0.1", port))
        backend, _ = listener.accept()
        with backend:
            backend.settimeout(deadline.seconds(20))
            client.sendall(b"x")
            assert read_exactly(backend, 1) == b"x"
            reset(client)
            read_to_end(backend)
        running.wait_log(1, "done-")


def test_limits_and_figures(forwarder: StartForwarder, place: Path, backend: StartServer) -> None:
    """Clients of a Unix socket are one client."""
    behind = backend(echo)
    config = f"unix:{place}/in {behind.host} {behind.port}\nmax-connections-per-client 1\n"
    running = forwarder(f"{config}metrics 127.0.0.1:{free_port()}\n")
    with unix_client(f"{place}/in") as one, unix_client(f"{place}/in") as two:
        outcomes = set()
        for client in (one, two):
            try:
                client.sendall(b"x")
                outcomes.add(client.recv(1))
            except OSError:
                outcomes.add(b"")
        assert outcomes == {b"x", b""}
        finish(one)
    found = scrape(metrics_url(running))
    assert by(found, "connections_denied_total", "reason")["client_limit"] == 1
