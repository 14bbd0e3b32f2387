"""`fastfwd --status`, against a running program and against what is none."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.forwarder import program, run
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect, read_to_end

HOST = "127.0.0.1"


@pytest.fixture
def port() -> int:
    """Where the forward listens."""
    return free_port()


@pytest.fixture
def conf(tmp_path: Path, port: int) -> Path:
    """A configuration whose program does not run."""
    path = tmp_path / "rinetd.conf"
    path.write_text(f"{HOST} {port} {HOST} 1\n")
    return path


def add(conf: Path, line: str) -> str:
    """`--status` with one line more, which is to fail: its message."""
    conf.write_text(f"{conf.read_text()}{line}\n")
    done = run("--status", "-c", str(conf))
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize("metrics", ["port", "socket"])
def test_it_shows_what_was_forwarded(
    forwarder: StartForwarder, backend: StartServer, tmp_path: Path, port: int, metrics: str
) -> None:
    """Over TCP and over a Unix socket: a forward's name, its connections and its bytes."""
    server = backend(echo)
    address = f"{HOST}:{free_port()}" if metrics == "port" else f"unix:{tmp_path}/metrics"
    running = forwarder(f"{HOST} {port} {server.host} {server.port} [name=web]\nmetrics {address}\n")
    with connect((HOST, port)) as client:
        client.sendall(b"x" * 2000)
        client.shutdown(1)
        assert len(read_to_end(client).data) == 2000
    running.wait_log(2)
    done = run("--status", "-c", str(running.config_path))
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("web "))
    assert line.split()[1:4] == [f"{HOST}:{server.port}/tcp", "0", "1"]
    assert line.count("2.00 kB") == 2


def test_a_terminal_s_width_is_kept(forwarder: StartForwarder, port: int) -> None:
    """Of a name that is longer the middle goes; a pipe gets it whole."""
    name = "n" * 100
    running = forwarder(f"{HOST} {port} {HOST} 1 [name={name}]\nmetrics {HOST}:{free_port()}\n")
    command = [*program(), "--status", "-c", str(running.config_path)]
    ours, its = pty.openpty()
    try:
        termios.tcsetwinsize(its, (24, 90))
        subprocess.run(command, stdout=its, check=True, timeout=deadline.seconds(20))
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(its)
    assert max(len(line) for line in shown.splitlines() if "nnn" in line or "FORWARD" in line) == 90
    assert name in run(*command[3:]).stdout


def test_an_error_elsewhere_in_the_file_does_not_matter(forwarder: StartForwarder, port: int) -> None:
    """Who has just broken the file wants to see what runs."""
    running = forwarder(f"{HOST} {port} {HOST} 1 [name=web]\nmetrics {HOST}:{free_port()}\n")
    running.config_path.write_text(f"{running.config_path.read_text()}nonsense here and there\n")
    assert "\nweb " in run("--status", "-c", str(running.config_path)).stdout


def test_without_metrics_there_is_nobody_to_ask(conf: Path) -> None:
    """The message says which line is missing."""
    assert "has no line 'metrics ADDRESS:PORT'" in add(conf, "")


def test_nobody_answers(conf: Path) -> None:
    """The message names the address."""
    address = f"{HOST}:{free_port()}"
    assert f"nobody answers on {address}: Connection refused" in add(conf, f"metrics {address}")


def test_no_socket_there(conf: Path, tmp_path: Path) -> None:
    """The message names the path."""
    address = f"unix:{tmp_path}/nothing"
    assert f"nobody answers on {address}: No such file or directory" in add(conf, f"metrics {address}")


def test_a_port_of_the_kernel_s_choice(conf: Path) -> None:
    """Nobody can know it from the file."""
    assert "leaves the metrics port to the kernel" in add(conf, f"metrics {HOST}:0")


class Other(BaseHTTPRequestHandler):
    """Answers everything with JSON that is not ours."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "fine"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing."""


def test_somebody_else_answers(conf: Path) -> None:
    """Another program on that port is told apart."""
    with HTTPServer((HOST, 0), Other) as server:
        Thread(target=server.handle_request, daemon=True).start()
        address = f"{HOST}:{server.server_address[1]}"
        assert f"{address} is not ours" in add(conf, f"metrics {address}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Said as at a start."""
    done = run("--status", "-c", str(tmp_path / "missing"))
    assert (done.returncode, "cannot read it" in done.stderr) == (1, True)
