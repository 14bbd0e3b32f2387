"""Real programs talk through it and notice nothing: curl, wrk, nginx, iperf3, ssh, rsync.

Each server is a process of its own on a free port, configured in the test's directory.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.peers import lack, require_peer
from tests.ports import free_port
from tests.servers import banner, echo
from tests.sockets import connect, finish, noise, read_exactly, read_to_end

MIB = 1 << 20
LARGE = 200_000_000
"""Bytes of the file that goes up and down."""

HOST = "127.0.0.1"
ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name


def listening(port: int) -> bool:
    """Whether somebody listens on `port` (proc(5), net/tcp): to connect could end a server of one client."""
    tables = (Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))
    lines = (line.split() for table in tables if table.exists() for line in table.read_text().splitlines())
    return any(line[3] == "0A" and int(line[1][-4:], 16) == port for line in lines if line[0] != "sl")


@contextmanager
def daemon(directory: Path, port: int, command: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, which stays in the foreground, from when it listens on `port` to the end of the block."""
    said = directory / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    with process:
        try:
            until(lambda: process.poll() is not None or listening(port), what=f"{command[0]} to listen")
            assert process.poll() is None, said.read_text(errors="replace")
            yield process
        finally:
            process.terminate()


def run(*command: str | Path, data: bytes = b"", status: int = 0) -> bytes:
    """Run a client to its end and return what it wrote to stdout."""
    done = subprocess.run(command, input=data, capture_output=True, timeout=deadline.seconds(60), check=False)
    assert done.returncode == status, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def through(forwarder: StartForwarder, target: int) -> int:
    """The port of a running forward to `target` on this machine."""
    port = free_port()
    forwarder(f"{HOST} {port} {HOST} {target}\n")
    return port


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path) -> dict[str, str]:
    """Path below `directory` -> SHA-256, for every file."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): digest(path) for path in files}


# HTTP.


@dataclass(frozen=True, slots=True)
class Web:
    """A web server: files of `root` can be fetched, and those below root/up written."""

    port: int
    root: Path


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """nginx, one process, with a file of LARGE bytes and a small one."""
    nginx = require_peer("nginx")
    directory = tmp_path_factory.mktemp("nginx")
    root = directory / "root"
    (root / "up").mkdir(parents=True)
    (root / "small").write_text("small\n")
    with (root / "large").open("wb") as file:
        part = noise(10_000_000)
        for number in range(LARGE // len(part)):
            file.write(part[number:] + part[:number])
    port = free_port()
    temporary = "\n".join(
        f"{name}_temp_path {directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; {temporary} client_max_body_size 0; sendfile on;
            server {{
                listen {HOST}:{port} backlog=4096;
                root {root};
                location /up/ {{ dav_methods PUT; }}
            }}
        }}""")
    with daemon(directory, port, [nginx, "-p", directory, "-e", "stderr", "-c", directory / "nginx.conf"]):
        yield Web(port, root)
    shutil.rmtree(root)  # pytest keeps the directory


def test_curl_downloads(forwarder: StartForwarder, web: Web, tmp_path: Path) -> None:
    """200 MB fetched by curl are the file, bit for bit."""
    port = through(forwarder, web.port)
    run(require_peer("curl"), "-sSf", "-o", tmp_path / "got", f"http://{HOST}:{port}/large")
    try:
        assert digest(tmp_path / "got") == digest(web.root / "large")
    finally:
        (tmp_path / "got").unlink()


def test_curl_uploads(forwarder: StartForwarder, web: Web) -> None:
    """200 MB sent by curl are the file, bit for bit."""
    port = through(forwarder, web.port)
    run(require_peer("curl"), "-sSf", "-T", web.root / "large", f"http://{HOST}:{port}/up/copy")
    assert digest(web.root / "up" / "copy") == digest(web.root / "large")


@pytest.mark.parametrize("header", ["Connection: keep-alive", "Connection: close"])
def test_wrk_sees_no_error(forwarder: StartForwarder, web: Web, header: str) -> None:
    """64 connections of wrk for 2 s: no socket error and no answer but 200."""
    port = through(forwarder, web.port)
    wrk = require_peer("wrk")
    said = run(wrk, "-t1", "-c64", "-d2s", "-H", header, f"http://{HOST}:{port}/small").decode()
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    assert int(found[1]) > 64


# iperf3.


@pytest.mark.parametrize("reverse", [[], ["-R"]], ids=["up", "down"])
def test_iperf3(forwarder: StartForwarder, tmp_path: Path, reverse: list[str]) -> None:
    """Four parallel streams of iperf3, beside its control connection, run to the end and count bytes."""
    iperf3 = require_peer("iperf3")
    target = free_port()
    with daemon(tmp_path, target, [iperf3, "-s", "-1", "-B", HOST, "-p", str(target)]):
        port = through(forwarder, target)
        said = json.loads(run(iperf3, "-J", "-c", HOST, "-p", str(port), "-t", "2", "-P", "4", *reverse))
    assert len(said["end"]["streams"]) == 4
    assert all(stream["receiver"]["bytes"] > 0 for stream in said["end"]["streams"])


# Who speaks first.


def test_a_server_that_speaks_first(forwarder: StartForwarder, backend: StartServer) -> None:
    """A client that waits for the server's greeting gets it without a byte of its own."""
    port = through(forwarder, backend(banner, "220 ready\r\n").port)
    with connect((HOST, port)) as client:
        assert read_exactly(client, 11) == b"220 ready\r\n"


def test_a_client_that_speaks_first(forwarder: StartForwarder, backend: StartServer) -> None:
    """A server that waits for the client's words gets them, and its answer comes back."""
    port = through(forwarder, backend(echo).port)
    with connect((HOST, port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        finish(client)
        assert read_to_end(client).data == b"GET / HTTP/1.0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running sshd that lets the tests' own account in with `key`."""

    port: int
    key: Path
    host_key: Path


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """sshd with keys of its own."""
    program, keygen = require_peer("sshd"), require_peer("ssh-keygen")
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        run(keygen, "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    port = free_port()
    (directory / "sshd_config").write_text(f"""
Port {port}
ListenAddress {HOST}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
""")
    command: list[str | Path] = [program, "-D", "-e", "-f", directory / "sshd_config"]
    separation = Path("/run/sshd")
    if os.geteuid() == 0 and not separation.exists():
        # sshd insists on this directory, which its service makes; here it is made for this sshd alone.
        script = f'mount -t tmpfs none {separation.parent} && mkdir {separation} && exec "$@"'
        command = [require_peer("unshare"), "-m", "sh", "-c", script, "sh", *command]
        if subprocess.run([*command[:2], "true"], capture_output=True, check=False).returncode:
            lack("sshd needs a directory of its own, and this machine gives no mount namespace")
    with daemon(directory, port, command):
        yield Sshd(port, directory / "user", directory / "host.pub")


def ssh(server: Sshd, port: int, *command: str, data: bytes = b"", status: int = 0) -> bytes:
    """Run `command` there through `port`; returns its output."""
    options = (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
    )
    flags = [flag for option in options for flag in ("-o", option)]
    where = ("-q", "-F", "none", "-i", str(server.key), "-p", str(port), f"{ACCOUNT}@{HOST}")
    return run(require_peer("ssh"), *flags, *where, *command, data=data, status=status)


def test_ssh_runs_a_command(forwarder: StartForwarder, sshd: Sshd) -> None:
    """20 MiB go in, through a remote cat, and out again unchanged."""
    port = through(forwarder, sshd.port)
    assert ssh(sshd, port, "cat", data=noise(20 * MIB)) == noise(20 * MIB)


def test_ssh_brings_the_exit_status(forwarder: StartForwarder, sshd: Sshd) -> None:
    """The status of the remote command is ssh's own."""
    assert ssh(sshd, through(forwarder, sshd.port), "exit 7", status=7) == b""


def test_ssh_keyscan_sees_the_servers_key(forwarder: StartForwarder, sshd: Sshd) -> None:
    """The host key that comes through is the server's."""
    port = through(forwarder, sshd.port)
    found = run(require_peer("ssh-keyscan"), "-t", "ed25519", "-p", str(port), HOST).split()
    assert found[1:] == sshd.host_key.read_bytes().split()[:2]


# rsync.


@dataclass(frozen=True, slots=True)
class Rsync:
    """A running rsync daemon with two modules, their directories, and a forward to it."""

    url: str
    tree: Path
    inbox: Path


@pytest.fixture
def rsync(forwarder: StartForwarder, tmp_path: Path) -> Iterator[Rsync]:
    """The daemon, with a tree of 200 files of all sizes in its module `tree`, and an empty `inbox`."""
    program = require_peer("rsync")
    tree, inbox = tmp_path / "tree", tmp_path / "inbox"
    grow(tree)
    inbox.mkdir()
    port = free_port()
    group = grp.getgrgid(os.getegid()).gr_name
    (tmp_path / "rsyncd.conf").write_text(f"""
use chroot = no
uid = {ACCOUNT}
gid = {group}
[tree]
    comment = what there is
    path = {tree}
[inbox]
    path = {inbox}
    read only = no
""")
    command = [program, "--daemon", "--no-detach", f"--address={HOST}", f"--port={port}"]
    with daemon(tmp_path, port, [*command, f"--config={tmp_path}/rsyncd.conf"]):
        yield Rsync(f"rsync://{HOST}:{through(forwarder, port)}/", tree, inbox)


def grow(tree: Path) -> None:
    """200 files of 0 to 5 MB in nested directories."""
    for number in range(200):
        path = tree / f"d{number % 7}" / f"e{number % 3}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(5_000_000)[number : number + number**3 * 5_000_000 // 200**3])


def test_rsync_lists_modules(rsync: Rsync) -> None:
    """The daemon's list of modules, which it sends without a word from the client's side but its version."""
    said = run(require_peer("rsync"), rsync.url).decode()
    assert [line.split() for line in said.splitlines()] == [["tree", "what", "there", "is"], ["inbox"]]


def test_rsync_downloads_a_tree(rsync: Rsync, tmp_path: Path) -> None:
    """Every file of the tree arrives with its checksum."""
    run(require_peer("rsync"), "-a", f"{rsync.url}tree/", tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(rsync.tree)


def test_rsync_uploads_a_tree(rsync: Rsync) -> None:
    """Every file arrives at the daemon with its checksum."""
    run(require_peer("rsync"), "-a", f"{rsync.tree}/", f"{rsync.url}inbox/")
    assert digests(rsync.inbox) == digests(rsync.tree)
