"""Real programs speak TLS with it, as clients and as backends: openssl, curl, HAProxy, nginx, stunnel.

Each is a process of its own on a free port, configured in the test's directory.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests import deadline
from tests.certificates import NAME, Authority
from tests.conftest import StartForwarder, StartServer
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo, sink
from tests.sockets import Ending, connect, finish, noise, read_exactly, read_to_end
from tests.system.test_peers import daemon, run

HOST: Final = "127.0.0.1"
MIB: Final = 1 << 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, and the files that it has signed."""
    return Authority(tmp_path)


@pytest.fixture
def accepting(forwarder: StartForwarder, authority: Authority, backend: StartServer) -> Callable[..., int]:
    """Call it for the port of a running forward with tls-accept, behind which there is an echo."""

    def start(options: str = "") -> int:
        port, behind = free_port(), backend(echo)
        forwarder(f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={authority.server()}{options}]\n")
        return port

    return start


# openssl s_client.


class Openssl:
    """`openssl s_client`, which says on its standard output what the server says, and more."""

    def __init__(self, port: int, *arguments: str | Path) -> None:
        command = [require_peer("openssl"), "s_client", "-connect", f"{HOST}:{port}", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def say(self, line: bytes) -> None:
        """A line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def hear(self, wanted: bytes) -> bytes:
        """What it says up to `wanted`."""
        assert self.process.stdout is not None
        said = b""
        while wanted not in said:
            piece = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
            assert piece, said
            said += piece
        return said

    def end(self) -> bytes:
        """End its input; what it still says."""
        said, _ = self.process.communicate(timeout=deadline.seconds(20))
        return said

    def __enter__(self) -> Openssl:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass


@pytest.mark.parametrize(("flag", "version"), [("-tls1_2", b"TLSv1.2"), ("-tls1_3", b"TLSv1.3")])
def test_openssl_verifies_and_talks(
    accepting: Callable[..., int], authority: Authority, flag: str, version: bytes
) -> None:
    """Its chain and its name are verified; what it says comes back."""
    arguments = ("-CAfile", authority.file, "-verify_return_error", "-verify_hostname", NAME)
    with Openssl(accepting(), flag, "-servername", NAME, *arguments) as client:
        client.say(b"hello there")
        said = client.hear(b"\nhello there\n")
    assert b"Verify return code: 0 (ok)" in said
    assert version in said


def test_renegotiation_is_refused(accepting: Callable[..., int]) -> None:
    """`R` of s_client: no new handshake inside of one (CVE-2009-3555)."""
    with Openssl(accepting(), "-tls1_2") as client:
        client.say(b"hello there")
        client.hear(b"\nhello there\n")
        client.say(b"R")
        assert b"no renegotiation" in client.hear(b"no renegotiation")


def test_keys_are_updated(accepting: Callable[..., int]) -> None:
    """`K` of s_client: both sides take new keys (RFC 8446, 4.6.3), and the stream goes on."""
    with Openssl(accepting(), "-tls1_3") as client:
        for number in range(3):
            client.say(b"before %d" % number)
            client.hear(b"before %d\n" % number)
            client.say(b"K")
            client.hear(b"KEYUPDATE\n")
            client.say(b"after %d" % number)
            client.hear(b"after %d\n" % number)


def test_early_data_are_not_taken(accepting: Callable[..., int], tmp_path: Path) -> None:
    """They could be said twice (RFC 8446, 8): tickets allow none."""
    port, ticket = accepting(), tmp_path / "ticket"
    with Openssl(port, "-tls1_3", "-sess_out", ticket) as client:
        client.say(b"hello")
        client.hear(b"\nhello\n")
    found = run(require_peer("openssl"), "sess_id", "-in", ticket, "-noout", "-text")
    assert b"Max Early Data: 0" in found


@pytest.mark.parametrize("flag", ["-tls1_2", "-tls1_3"])
def test_openssl_is_the_backend(
    forwarder: StartForwarder, authority: Authority, room: Path, flag: str
) -> None:
    """`openssl s_server -rev`, which says every line backwards."""
    server, port, cert = free_port(), free_port(), authority.server()
    accept = ["-accept", f"{HOST}:{server}", "-cert", cert, "-key", cert]
    with daemon(room, server, [require_peer("openssl"), "s_server", "-rev", flag, *accept]):
        options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
        forwarder(f"{HOST} {port} {HOST} {server} [{options}]\n")
        with connect((HOST, port)) as client:
            client.sendall(b"stressed\n")
            assert read_exactly(client, 9) == b"desserts\n"


# curl and web servers.


def website(directory: Path, authority: Authority, *, tls: bool, version: str = "TLSv1.2 TLSv1.3") -> str:
    """nginx's configuration with one file of a mebibyte."""
    (directory / "file").write_bytes(noise(MIB))
    temporary = "\n".join(
        f"{name}_temp_path {directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    cert = authority.server()
    secured = f"ssl_certificate {cert}; ssl_certificate_key {cert}; ssl_protocols {version};" if tls else ""
    return f"""
        daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors;
        events {{ worker_connections 64; }}
        http {{
            access_log off; {temporary}
            server {{ listen {HOST}:PORT{" ssl" if tls else ""}; root {directory}; {secured} }}
        }}"""


@contextmanager
def nginx(directory: Path, config: str) -> Iterator[int]:
    """nginx with that configuration, on the port that it gives."""
    found = require_peer("nginx")
    port = free_port()
    path = directory / "nginx.conf"
    path.write_text(config.replace("PORT", str(port)))
    with daemon(directory, port, [found, "-p", directory, "-e", "stderr", "-c", path]):
        yield port


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory for a program."""
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


@pytest.mark.parametrize("flags", [["--tlsv1.2", "--tls-max", "1.2"], ["--tlsv1.3"]], ids=["1.2", "1.3"])
@pytest.mark.parametrize("behind", ["plain", "tls"])
def test_curl_fetches_from_nginx(
    forwarder: StartForwarder, authority: Authority, room: Path, flags: list[str], behind: str
) -> None:
    """With TLS in front, and behind too: the file is the file."""
    port, curl = free_port(), require_peer("curl")
    with nginx(room, website(room, authority, tls=behind == "tls")) as web:
        options = f"tls-accept, cert={authority.server()}"
        if behind == "tls":
            options += f", tls-connect, server-ca={authority.file}, server-name={NAME}"
        forwarder(f"{HOST} {port} {HOST} {web} [{options}]\n")
        resolve = f"{NAME}:{port}:{HOST}"
        url = f"https://{NAME}:{port}/file"
        got = run(
            curl, "-sSf", "--noproxy", "*", "--resolve", resolve, "--cacert", authority.file, *flags, url
        )
    assert got == noise(MIB)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_plain_curl_fetches_from_nginx_with_tls(
    forwarder: StartForwarder, authority: Authority, room: Path, version: str
) -> None:
    """tls-connect alone: a client that knows nothing of TLS."""
    port, curl = free_port(), require_peer("curl")
    with nginx(room, website(room, authority, tls=True, version=version)) as web:
        forwarder(
            f"{HOST} {port} {HOST} {web} [tls-connect, server-ca={authority.file}, server-name={NAME}]\n"
        )
        assert run(curl, "-sSf", "--noproxy", "*", f"http://{HOST}:{port}/file") == noise(MIB)


def test_curl_shows_its_certificate(accepting: Callable[..., int], authority: Authority) -> None:
    """And without one it is refused (56: the alert comes after its own part of the handshake)."""
    port, curl, alice = accepting(f", client-ca={authority.file}"), require_peer("curl"), authority.person()
    url = ["-sS", "--noproxy", "*", "--http0.9", "--cacert", authority.file]
    url += ["--resolve", f"{NAME}:{port}:{HOST}", f"https://{NAME}:{port}/", "--max-time", "2"]
    assert b"GET / " in run(curl, *url, "--cert", alice, status=28)  # an echo has no end
    run(curl, *url, status=56)


# Other terminators, on either side.

PROGRAMS: Final = ("haproxy", "nginx", "stunnel4")


@contextmanager
def terminator(program: str, directory: Path, authority: Authority, side: str, target: int) -> Iterator[int]:
    """`program` with TLS on that side, `server` or `client`, before what listens on `target`; its port."""
    command = require_peer(program)
    cert, port, path = authority.server(), free_port(), directory / "config"
    server = side == "server"
    if program == "haproxy":
        bind = f"ssl crt {cert}" if server else ""
        to = (
            ""
            if server
            else f"ssl verify required ca-file {authority.file} verifyhost {NAME} sni str({NAME})"
        )
        text = f"""
            defaults
                mode tcp
                timeout connect 5s
                timeout client 30s
                timeout server 30s
            listen it
                bind {HOST}:{port} {bind}
                server behind {HOST}:{target} {to}\n"""
        arguments: list[str | Path] = ["-db", "-f", path]
    elif program == "nginx":
        into = f"ssl_certificate {cert}; ssl_certificate_key {cert};" if server else ""
        out = f"""proxy_ssl on; proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority.file};
                  proxy_ssl_name {NAME}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"""
        text = f"""
            load_module /usr/lib/nginx/modules/ngx_stream_module.so;
            daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors;
            events {{ worker_connections 64; }}
            stream {{ server {{ listen {HOST}:{port}{" ssl" if server else ""}; {into}
                                proxy_pass {HOST}:{target}; {"" if server else out} }} }}"""
        arguments = ["-p", directory, "-e", "stderr", "-c", path]
    else:
        rest = f"cert = {cert}" if server else f"client = yes\nverifyChain = yes\nCAfile = {authority.file}"
        text = f"foreground = yes\npid =\n[it]\naccept = {HOST}:{port}\nconnect = {HOST}:{target}\n{rest}\n"
        arguments = [path]
    path.write_text(text)
    with daemon(directory, port, [command, *arguments]):
        yield port


def exchange(end: socket.socket) -> None:
    """A mebibyte there and back."""
    with end:
        end.sendall(noise(MIB))
        assert read_exactly(end, MIB) == noise(MIB)


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_is_the_client_of(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, room: Path, program: str
) -> None:
    """A client, fastfwd with tls-connect, the program with TLS in front, an echo."""
    port = free_port()
    with terminator(program, room, authority, "server", backend(echo).port) as server:
        options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
        forwarder(f"{HOST} {port} {HOST} {server} [{options}]\n")
        exchange(connect((HOST, port)))


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_is_the_server_of(
    accepting: Callable[..., int], authority: Authority, room: Path, program: str
) -> None:
    """A client, the program as a client of TLS, fastfwd with tls-accept, an echo."""
    with terminator(program, room, authority, "client", accepting()) as client:
        exchange(connect((HOST, client)))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_end_comes_through_as_a_client_of(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, room: Path, program: str
) -> None:
    """What the backend says to its end is all there, and its end is clean."""
    behind = backend(lambda connection, visit: connection.sendall(noise(MIB)))
    port = free_port()
    with terminator(program, room, authority, "server", behind.port) as server:
        options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
        forwarder(f"{HOST} {port} {HOST} {server} [{options}]\n")
        with connect((HOST, port)) as client:
            assert read_to_end(client) == Ending(noise(MIB), "EOF")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_end_comes_through_as_the_server_of(
    forwarder: StartForwarder, authority: Authority, backend: StartServer, room: Path, program: str
) -> None:
    """What the client says to its end is all there, and its end is clean."""
    behind, port = backend(sink), free_port()
    forwarder(f"{HOST} {port} {HOST} {behind.port} [tls-accept, cert={authority.server()}]\n")
    with terminator(program, room, authority, "client", port) as before, connect((HOST, before)) as client:
        client.sendall(noise(MIB))
        finish(client)
        visit = behind.visit()
        assert visit.ended.wait(deadline.seconds(20))
        assert visit.how == "EOF"
        assert visit.received == noise(MIB)
