"""Where measurements happen: a network of its own, backends, free ports.

`bench.__main__` makes one Lab per run; scenarios ask it for a started contender. With
root's rights everything happens in a fresh network namespace: nobody else's traffic,
the kernel's default settings, and rules that end with it.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from bench import clients
from bench.contenders import CONTENDERS, Contender, Setup, Way
from bench.processes import HOST, INSIDE, installed, needed, run, running, wait

SMALL = 100
"""Bytes of the file that requests ask for."""

LARGE = 1 << 20
"""Bytes of another one."""


def enter_namespace(module: str = "bench") -> bool:
    """Continue in a network namespace of our own, if this is root and unshare(1) is here; the
    program starts again for that. Returns whether we are in one."""
    if INSIDE in os.environ:
        run([needed("ip"), "link", "set", "lo", "up"], 1)
        return True
    unshare = shutil.which("unshare")
    if os.geteuid() or unshare is None or installed("ip") is None:
        return False
    os.environ[INSIDE] = "1"
    return os.execv(unshare, [unshare, "--net", "--", sys.executable, "-m", module, *sys.argv[1:]])


def raise_limits() -> None:
    """As many open files as we may have: everything we start inherits that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Lab:
    """The backends, running until `close`: nginx with one process that serves a small file, iperf3, and
    echo, which sends datagrams back. Every contender has a port of nginx for itself: connections
    that one has left behind in TIME_WAIT are not in another's way."""

    def __init__(self) -> None:
        """Start the backends. Raises RuntimeError if a program is missing that every scenario needs."""
        for name in ("wrk", "iperf3", "nginx"):
            needed(name)
        self._stack = ExitStack()
        self._taken: set[int] = set()
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.directory.chmod(0o755)  # nginx's and fastfwd's workers are nobody
        self.web = {name: self.free_port() for name in CONTENDERS}
        """nginx's port for each contender."""
        self.bulk = self.free_port()
        """iperf3's port."""
        self.echo = self.free_port()
        """The port that sends datagrams back."""
        try:
            for name, command, ports in (
                ("nginx", self._nginx(), list(self.web.values())),
                ("iperf3", [needed("iperf3"), "-s", "-B", HOST, "-p", str(self.bulk)], [self.bulk]),
                ("echo", [sys.executable, "-m", "bench.echo", str(self.echo)], [self.echo]),
            ):
                directory = self.directory / name
                directory.mkdir(exist_ok=True)
                self._stack.enter_context(running(command, directory, ports))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the backends and remove every file."""
        self._stack.close()

    def free_port(self) -> int:
        """A port that nobody uses, below the range of outgoing connections."""
        for port in range(12_000, 32_000):
            if port in self._taken:
                continue
            with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    tcp.bind((HOST, port))
                    udp.bind((HOST, port))
                except OSError:
                    continue
            self._taken.add(port)
            return port
        raise RuntimeError("no free port")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for one measurement."""
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.directory) as text:
            directory = Path(text)
            directory.chmod(0o777)  # a log is written by whoever the contender has become
            yield directory

    @contextmanager
    def setup(self, contender: Contender, forwards: int = 2) -> Iterator[Setup]:
        """What `contender` is to do in one measurement: the second of its forwards goes to
        iperf3, the others to the web server."""
        ports = [self.free_port() for _ in range(forwards)]
        web = self.web[contender.name]
        try:
            yield Setup(tuple((port, self.bulk if n == 1 else web) for n, port in enumerate(ports)))
        finally:
            self._taken.difference_update(ports)

    @contextmanager
    def start(self, contender: Contender, *, log: str | None = None, denied: int = 0) -> Iterator[Way]:
        """A fresh process of `contender`, from when it has answered a request: `ports[0]` leads
        to the web server, `ports[1]` to iperf3; see Setup for the rest."""
        with (
            self.setup(contender) as plain,
            self.scratch() as directory,
            contender.start(directory, replace(plain, log=log, denied=denied)) as way,
        ):
            wait(lambda: clients.ask(way.ports[0]).answered, f"{contender.name} forwards")
            yield way

    @contextmanager
    def start_tls(self, contender: Contender) -> Iterator[Way]:
        """The same where clients speak TLS 1.3 with it."""
        with (
            self.setup(contender) as plain,
            self.scratch() as directory,
            contender.start(directory, replace(plain, certificate=self.certificate)) as way,
        ):
            wait(lambda: clients.ask(way.ports[0], tls=True).answered, f"{contender.name} forwards")
            yield way

    @contextmanager
    def start_chain(self, contender: Contender) -> Iterator[Way]:
        """Two of them with TLS 1.3 in between: nothing of it is to be seen at either end."""
        with (
            self.setup(contender) as server,
            self.setup(contender) as client,
            self.scratch() as far,
            self.scratch() as near,
            contender.start(far, replace(server, certificate=self.certificate)) as remote,
        ):
            ports = zip(client.forwards, remote.ports, strict=True)
            forwards = tuple((port, target) for (port, _), target in ports)
            with contender.start(near, Setup(forwards, authority=self.certificate)) as local:
                wait(lambda: clients.ask(local.ports[0]).answered, f"two of {contender.name} forward")
                yield Way(local.ports, [*local.pids, *remote.pids], near)

    @contextmanager
    def start_datagrams(self, contender: Contender) -> Iterator[Way]:
        """The same with one forward, of datagrams, from when one has come back."""
        with (
            self.setup(contender, 1) as plain,
            self.scratch() as directory,
            contender.start(directory, Setup(((plain.forwards[0][0], self.echo),), "udp")) as way,
        ):
            wait(lambda: clients.returns(way.ports[0]), f"{contender.name} forwards", 0)
            yield way

    @cached_property
    def certificate(self) -> Path:
        """A new certificate for HOST, signed by itself, and its key (P-256), in one file. (hitch ends if a
        client asks for a name and the certificate has none.)"""
        path = self.directory / "certificate.pem"
        for file, new in (
            ("key", [*["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "-out"]),
            (
                "chain",
                [
                    *("req", "-x509", "-key", self.directory / "key", "-days", "2", "-subj", "/CN=bench"),
                    *("-addext", f"subjectAltName=IP:{HOST},DNS:localhost", "-out"),
                ],
            ),
        ):
            run([needed("openssl"), *new, self.directory / file], 1)
        path.touch(0o600)
        path.write_text("".join((self.directory / file).read_text() for file in ("chain", "key")))
        return path

    def _nginx(self) -> list[str | Path]:
        directory = self.directory / "nginx"
        directory.mkdir()
        (directory / "small").write_text("x" * SMALL)
        (directory / "large").write_text("x" * LARGE)
        temporary = " ".join(
            f"{name}_temp_path {directory}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        listen = " ".join(f"listen {HOST}:{port} backlog=4096;" for port in self.web.values())
        (directory / "nginx.conf").write_text(f"""
            daemon off; master_process off; pid {directory}/pid; error_log stderr crit;
            worker_rlimit_nofile 19900;
            events {{ worker_connections 19800; }}
            http {{
                access_log off; {temporary}
                keepalive_requests 100000000; keepalive_timeout 1h; client_header_timeout 1h;
                open_file_cache max=10;
                server {{ {listen} root {directory}; }}
            }}""")
        return [needed("nginx"), "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]
