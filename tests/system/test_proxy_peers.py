"""Who else speaks the PROXY protocol: HAProxy and nginx before fastfwd and behind it, and rsync's daemon."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import Address, connect, noise, read_exactly, read_to_end

CLIENT = "127.0.0.21"
"""From where clients come."""

HAPROXY = """\
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen it
    bind 127.0.0.1:{port} {accept}
    server behind 127.0.0.1:{behind} source 127.0.0.3 {send}
listen says
    bind 127.0.0.1:{says} {accept}
    mode http
    http-request return status 200 content-type text/plain lf-string "%[src] %[src_port]\\n"
"""

NGINX = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{
        listen 127.0.0.1:{says} {accept};
        location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port\\n"; }}
    }}
}}
stream {{
    server {{
        listen 127.0.0.1:{port};
        proxy_bind 127.0.0.3;
        proxy_pass 127.0.0.1:{behind};
        proxy_protocol {send};
    }}
}}
"""

Start = Callable[[str, str], Address]
"""Start a peer with that program and that configuration, and wait for it at an address."""


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[list[str], int], None]]:
    """Call it with a command and a port: it runs, and has that port, until the test ends."""
    with ExitStack() as stack:

        def start(command: list[str], port: int) -> None:
            said = stack.enter_context((tmp_path / "peer").open("wb"))
            process = subprocess.Popen(
                [require_peer(command[0]), *command[1:]], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            stack.callback(process.wait, deadline.seconds(10))
            stack.callback(process.terminate)

            def there() -> bool:
                assert process.poll() is None, (tmp_path / "peer").read_text()
                try:
                    connect(("127.0.0.1", port)).close()
                except OSError:
                    return False
                return True

            until(there, what=command[0])

        yield start


Peer = Callable[[list[str], int], None]


def haproxy(peer: Peer, directory: Path, **options: object) -> None:
    """Run it: from `port` to `behind`, and on `says` a server that tells clients who they are."""
    given = {"port": free_port(), "says": free_port(), "behind": 1, "accept": "", "send": ""} | options
    (directory / "haproxy.cfg").write_text(HAPROXY.format(**given))
    peer(["haproxy", "-db", "-f", str(directory / "haproxy.cfg")], int(str(given["port"])))


def nginx(peer: Peer, directory: Path, **options: object) -> None:
    """The same."""
    given = {"port": free_port(), "says": free_port(), "behind": 1, "accept": "", "send": "off"} | options
    modules = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    load = f"load_module {modules};\n" if modules.exists() else ""
    text = load + NGINX.format(directory=directory, **given)
    (directory / "nginx.conf").write_text(text)
    peer(["nginx", "-p", str(directory), "-c", str(directory / "nginx.conf")], int(str(given["port"])))


def announced(running: Forwarder) -> dict[str, object]:
    """The first line of a log in JSON about a client that came from where clients come."""
    found: dict[str, object] = json.loads(running.wait_log(1, f'"client":"{CLIENT}"')[0])
    return found


def carried(address: Address) -> Address:
    """Have a client get an echo of something; its own address."""
    with connect(address, CLIENT) as client:
        own: Address = client.getsockname()
        # No FIN: nginx ends the whole of it then (proxy_half_close, off by default).
        client.sendall(noise(10_000))
        assert read_exactly(client, 10_000) == noise(10_000)
    return own


def asked(address: Address) -> tuple[str, Address]:
    """What an HTTP server there says to a client, and who that was."""
    with connect(address, CLIENT) as client:
        own: Address = client.getsockname()
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_to_end(client).data.decode()
    return answer.partition("\r\n\r\n")[2].strip(), own


# Before fastfwd.


@pytest.mark.parametrize(
    ("program", "send"),
    [(haproxy, "send-proxy"), (haproxy, "send-proxy-v2"), (nginx, "on")],
    ids=["haproxy v1", "haproxy v2", "nginx"],
)
def test_it_announces_clients(
    forwarder: StartForwarder,
    backend: StartServer,
    peer: Peer,
    tmp_path: Path,
    program: Callable[..., None],
    send: str,
) -> None:
    """The log has the client, and whom it came by."""
    behind = backend(echo)
    port, before = free_port(), free_port()
    running = forwarder(
        f"127.0.0.1 {port} {behind.host} {behind.port} [accept-proxy=127.0.0.3]\nlogformat json\n"
    )
    program(peer, tmp_path, port=before, behind=port, send=send)
    own = carried(("127.0.0.1", before))
    found = announced(running)
    assert (found["client"], found["client_port"]) == own
    assert str(found["via"]).startswith("127.0.0.3:")


def test_haproxys_checks(forwarder: StartForwarder, backend: StartServer, peer: Peer, tmp_path: Path) -> None:
    """They come with a LOCAL header: those of HAProxy's own address, and nothing is wrong with them."""
    behind = backend(echo)
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [accept-proxy=127.0.0.3]\n")
    haproxy(peer, tmp_path, behind=port, send="send-proxy-v2 check inter 100ms")
    running.wait_log(3, "done-remote-closed")
    assert "remote-proxy-failed" not in running.log_text()


# Behind it.


@pytest.mark.parametrize(
    ("program", "accept"),
    [(haproxy, "accept-proxy"), (nginx, "proxy_protocol")],
    ids=["haproxy", "nginx"],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_it_knows_the_client(
    forwarder: StartForwarder,
    peer: Peer,
    tmp_path: Path,
    version: str,
    program: Callable[..., None],
    accept: str,
) -> None:
    """It tells the client its own address."""
    says, port = free_port(), free_port()
    program(peer, tmp_path, says=says, accept=accept)
    forwarder(f"127.0.0.1 {port} 127.0.0.1 {says} [send-proxy={version}]\n")
    answer, own = asked(("127.0.0.1", port))
    assert answer == f"{own[0]} {own[1]}"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_rsync_knows_the_client(forwarder: StartForwarder, peer: Peer, tmp_path: Path, version: str) -> None:
    """Its daemon's `hosts allow` is about the client's address, not about fastfwd's."""
    daemon, port = free_port(), free_port()
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "file").write_bytes(noise(10_000))
    (tmp_path / "rsyncd.conf").write_text(
        f"port = {daemon}\naddress = 127.0.0.1\nproxy protocol = true\nuse chroot = no\n"
        "proxy protocol hosts = 127.0.0.1\n"  # rsync 3.5; older ones do not know it and go on
        f"[mine]\npath = {tmp_path}/module\nhosts allow = {CLIENT}\nuid = 0\ngid = 0\n"
    )
    peer(["rsync", "--daemon", "--no-detach", f"--config={tmp_path}/rsyncd.conf"], daemon)
    forwarder(f"127.0.0.1 {port} 127.0.0.1 {daemon} [send-proxy={version}]\n")

    def fetched(source: str) -> bool:
        command = [require_peer("rsync"), "-a", f"--address={source}", f"rsync://127.0.0.1:{port}/mine/file"]
        done = subprocess.run(
            [*command, f"{tmp_path}/from-{source}"],
            check=False,
            capture_output=True,
            timeout=deadline.seconds(30),
        )
        return done.returncode == 0

    assert fetched(CLIENT)
    assert (tmp_path / f"from-{CLIENT}").read_bytes() == noise(10_000)
    assert not fetched("127.0.0.22")
