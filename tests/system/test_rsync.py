"""Real rsync through TLS: {fastfwd, stunnel} beside the client, {fastfwd, stunnel} beside the daemon.

    rsync -> client end =TLS=> server end =PROXY=> rsync --daemon

The daemon is that of deploy/examples/rsync-tls, which only this machine reaches; the client end dials from
an address of its choice, which is then the client's.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import deadline
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import lack, require_peer
from tests.ports import free_port
from tests.sockets import connect, noise, read_to_end
from tests.system.test_peers import daemon, digests

RECIPE = Path(__file__).parents[2] / "deploy" / "examples" / "rsync-tls"

HOST = "127.0.0.1"
FRIEND, STRANGER = "127.0.0.5", "127.0.0.6"
"""Two clients' addresses; the first is the one that `incoming` allows."""

ENDS = ("fastfwd", "stunnel4")
PAIRINGS = list(itertools.product(ENDS, ENDS))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe's own script makes, for `localhost` and a client."""
    require_peer("openssl")
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        [RECIPE / "certificates.sh", directory, "localhost", "client"], check=True, capture_output=True
    )
    return directory


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of 0 to 1 MB in nested directories, 10 MB together."""
    tree = tmp_path_factory.mktemp("tree") / "public"
    for number in range(40):
        path = tree / f"d{number % 3}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(1_000_000)[number : number + number**3 * 1_000_000 // 40**3])
    return tree


class Site:
    """rsyncd with the recipe's configuration, but for places, ports and accounts; and ends of TLS for it.
    All of them run until the end of the `with` block."""

    def __init__(self, directory: Path, public: Path, certificates: Path) -> None:
        self.directory = directory
        self.public, self.incoming = public, directory / "incoming"
        self.certificates = certificates
        self.log = directory / "log"
        self.port = free_port()
        self.incoming.mkdir()
        text = (RECIPE / "rsyncd.conf").read_text()
        for ours, here in (
            ("port = 873", f"port = {self.port}\nlog file = {self.log}\nlock file = {directory}/lock"),
            ("use chroot = yes", "use chroot = no"),
            ("uid = nobody", "uid = 0" if os.geteuid() == 0 else ""),
            ("gid = nogroup", "gid = 0" if os.geteuid() == 0 else ""),
            ("/srv/rsync/public", str(public)),
            ("/srv/rsync/incoming", str(self.incoming)),
            ("192.0.2.0/24 2001:db8:7::/48", FRIEND),
        ):
            assert ours in text
            text = text.replace(ours, here)
        (directory / "rsyncd.conf").write_text(text)
        command = [require_peer("rsync"), "--daemon", "--no-detach", f"--config={directory}/rsyncd.conf"]
        self.stack = ExitStack()
        self.stack.enter_context(daemon(directory, self.port, command))

    def server_end(self, which: str) -> int:
        """`fastfwd`, `stunnel4`, or fastfwd with a `translation` of its configuration, before the daemon: its
        port of TLS."""
        files = self.certificates / "server.pem", self.certificates / "server.key"
        if which == "fastfwd":
            return self.forward(self.port, f"tls-accept, cert={files[0]}, key={files[1]}, send-proxy=v2")
        return self.stunnel(which, self.port, f"cert = {files[0]}\nkey = {files[1]}\nprotocol = proxy\n")

    def client_end(self, which: str, target: int, source: str = FRIEND) -> int:
        """The same beside the client, which dials the port `target` from the address `source`:
        the port on which it is spoken to in the clear."""
        authority = self.certificates / "ca.pem"
        if which == "fastfwd":
            options = f"tls-connect, server-ca={authority}, server-name=localhost, src={source}"
            return self.forward(target, options)
        text = f"client = yes\nlocal = {source}\nverifyChain = yes\nCAfile = {authority}\n"
        return self.stunnel(which, target, f"{text}checkHost = localhost\n")

    def forward(self, target: int, options: str) -> int:
        """The port of a running forward to that port, with those options."""
        port = free_port()
        self.stack.enter_context(Forwarder(self.directory, f"{HOST} {port} {HOST} {target} [{options}]\n"))
        return port

    def stunnel(self, which: str, target: int, text: str) -> int:
        """The port of a running stunnel with one such service, or of its translation."""
        port = free_port()
        directory = self.directory / f"stunnel-{port}"
        directory.mkdir()
        file = directory / "stunnel.conf"
        service = f"[rsync]\naccept = {HOST}:{port}\nconnect = {HOST}:{target}\n{text}"
        file.write_text(f"foreground = yes\nsyslog = no\npid =\n{service}")
        if which == "translation":
            command = Path(sys.executable).with_name("fastfwd-stunnel2conf")
            made = subprocess.run([command, file], stdout=subprocess.PIPE, text=True, check=True).stdout
            self.stack.enter_context(Forwarder(directory, made))
        else:
            self.stack.enter_context(daemon(directory, port, [require_peer("stunnel4"), file]))
        return port

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *what: Any) -> None:
        self.stack.__exit__(*what)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tree: Path, certificates: Path) -> Iterator[Site]:
    """The site of all tests."""
    with Site(tmp_path_factory.mktemp("site"), tree, certificates) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """The site, to which nobody has brought anything."""
    yield running
    shutil.rmtree(running.incoming)
    running.incoming.mkdir()


@pytest.fixture(scope="module", params=PAIRINGS, ids=lambda each: f"{each[0]}-to-{each[1]}")
def url(request: pytest.FixtureRequest, running: Site) -> str:
    """Where rsync finds the daemon through each of the pairings."""
    near, far = request.param
    return f"rsync://{HOST}:{running.client_end(near, running.server_end(far))}/"


def rsync(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run rsync to its end."""
    command = [require_peer("rsync"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=deadline.seconds(60), check=False)


def done(*arguments: str | Path) -> str:
    """What rsync wrote; it must succeed."""
    it = rsync(*arguments)
    assert it.returncode == 0, it.stderr
    return it.stdout


def refused(words: str, *arguments: str | Path) -> None:
    """rsync fails, and says those words."""
    it = rsync(*arguments)
    assert it.returncode != 0
    assert words in it.stdout + it.stderr


def test_the_modules_are_listed(url: str) -> None:
    """Both, with their comments."""
    assert [line.split("\t") for line in done(url).splitlines()] == [
        ["public         ", "to take"],
        ["incoming       ", "to bring"],
    ]


def test_a_tree_comes_down(url: str, site: Site, tmp_path: Path) -> None:
    """Every file with its checksum."""
    done("-a", f"{url}public/", tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(site.public)


def test_a_tree_goes_up(url: str, site: Site) -> None:
    """Every file with its checksum."""
    done("-a", f"{site.public}/", f"{url}incoming/")
    assert digests(site.incoming) == digests(site.public)


def test_incoming_cannot_be_read(url: str, site: Site, tmp_path: Path) -> None:
    """Neither its list nor a file of it."""
    (site.incoming / "secret").write_text("secret\n")
    refused("module is write only", f"{url}incoming/")
    refused("module is write only", f"{url}incoming/secret", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_public_cannot_be_written(url: str, site: Site) -> None:
    """Not even by whom `incoming` allows."""
    before = digests(site.public)
    refused("module is read only", RECIPE / "README.md", f"{url}public/")
    assert digests(site.public) == before


@pytest.mark.parametrize("near", ENDS)
@pytest.mark.parametrize("far", ENDS)
def test_hosts_allow_means_the_client(near: str, far: str, site: Site) -> None:
    """Who comes from the allowed address may bring, another one may not, through the same server's end."""
    target = site.server_end(far)
    friend, stranger = site.client_end(near, target), site.client_end(near, target, STRANGER)
    file = site.public / "d1" / "file 19"
    refused("access denied", file, f"rsync://{HOST}:{stranger}/incoming/")
    assert not list(site.incoming.iterdir())
    done(file, f"rsync://{HOST}:{friend}/incoming/")
    assert (site.incoming / "file 19").read_bytes() == file.read_bytes()
    done(f"rsync://{HOST}:{stranger}/public/")


@pytest.mark.parametrize("far", ENDS)
def test_the_log_has_the_client(far: str, site: Site) -> None:
    """rsyncd writes down the address that the client's end came from."""
    source = {"fastfwd": "127.0.0.8", "stunnel4": "127.0.0.9"}[far]
    done(f"rsync://{HOST}:{site.client_end('fastfwd', site.server_end(far), source)}/public/")
    until(lambda: source in site.log.read_text(), what="the client in rsyncd's log")


def test_the_translation_does_the_same(site: Site) -> None:
    """fastfwd with what fastfwd-stunnel2conf makes of both ends: a list, a file up, a stranger refused."""
    target = site.server_end("translation")
    friend, stranger = (site.client_end("translation", target, each) for each in (FRIEND, STRANGER))
    assert "incoming" in done(f"rsync://{HOST}:{friend}/")
    done(site.public / "d1" / "file 19", f"rsync://{HOST}:{friend}/incoming/")
    refused("access denied", f"rsync://{HOST}:{stranger}/incoming/")


@pytest.mark.parametrize("address", ["127.0.0.2", "::1"])
def test_the_daemon_is_on_this_machine_only(site: Site, address: str) -> None:
    """At another address nobody listens on its port."""
    with pytest.raises(ConnectionRefusedError):
        connect((address, site.port))


def test_another_network_does_not_reach_the_daemon(site: Site) -> None:
    """Nor from this machine's address on a network: the socket is bound to loopback alone."""
    own = outward()
    if own is None:
        pytest.skip("this machine has no other address")
    with pytest.raises(ConnectionRefusedError):
        connect((own, site.port))


def outward() -> str | None:
    """This machine's address towards others, by its routes; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def test_who_comes_without_the_forwarder_gets_no_word(site: Site) -> None:
    """A connection without the PROXY protocol's header is closed."""
    refused("rsync error", "--timeout=10", f"rsync://{HOST}:{site.port}/")


def test_nobody_else_announces_clients(site: Site) -> None:
    """Of a connection from an address that `proxy protocol hosts` has not got the header is not believed."""
    if b"proxy protocol hosts" not in Path(require_peer("rsync")).read_bytes():
        lack("this rsync has no 'proxy protocol hosts'")
    with connect((HOST, site.port), "127.0.0.2") as client:
        client.sendall(f"PROXY TCP4 {FRIEND} {HOST} 40000 874\r\n".encode())
        assert read_to_end(client).data == b""


def test_what_tls_says_is_too_much(site: Site) -> None:
    """rsyncd reads version 2 with addresses alone: of `v2-tls` it makes a reset."""
    files = site.certificates
    own = f"tls-accept, cert={files}/server.pem, key={files}/server.key, send-proxy=v2-tls"
    port = site.client_end("fastfwd", site.forward(site.port, own))
    refused("rsync error", f"rsync://{HOST}:{port}/")


def test_a_client_without_a_certificate(site: Site) -> None:
    """With client-ca= who shows none does not come near rsyncd, and who does gets its list."""
    files = site.certificates
    own = f"tls-accept, cert={files}/server.pem, key={files}/server.key, client-ca={files}/ca.pem"
    there = f"tls-connect, server-ca={files}/ca.pem, server-name=localhost"
    target = site.forward(site.port, f"{own}, send-proxy=v2")
    refused("rsync error", f"rsync://{HOST}:{site.forward(target, there)}/")
    shown = f"client-cert={files}/client.pem, client-key={files}/client.key"
    assert "public" in done(f"rsync://{HOST}:{site.forward(target, f'{there}, {shown}')}/")


def test_the_recipe_runs(tmp_path: Path) -> None:
    """Its one command, end to end; it leaves nothing behind."""
    require_peer("rsync")
    require_peer("openssl")
    ports = " ".join(str(free_port()) for _ in range(3))
    it = subprocess.run(
        [RECIPE / "try.sh"],
        env={
            **os.environ,
            "FASTFWD": f"{sys.executable} -m fastfwd",
            "PORTS": ports,
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=deadline.seconds(60),
        check=False,
    )
    assert it.returncode == 0, it.stdout + it.stderr
    assert it.stdout.count(" ok\n") == len(it.stdout.splitlines()) >= 11
    assert not list(tmp_path.iterdir())
