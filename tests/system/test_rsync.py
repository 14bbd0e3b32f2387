"""Real rsync through TLS: {fastfwd, stunnel} beside the client, {fastfwd, stunnel} beside the daemon.

    rsync -> client end =TLS=> server end =PROXY=> rsync --daemon

The daemon is that of deploy/examples/rsync-tls, which only this machine reaches; the client end dials from
an address of its choice, which is then the client's.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.peers import require_peer
from tests.ports import free_port
from tests.sockets import connect, noise
from tests.system.test_peers import daemon, digests

RECIPE = Path(__file__).parents[2] / "deploy" / "examples" / "rsync-tls"

HOST = "127.0.0.1"
FRIEND, STRANGER = "127.0.0.5", "127.0.0.6"
"""Two clients' addresses; the first is the one that `incoming` allows."""

ENDS = ("fastfwd", "stunnel4")
PAIRINGS = list(itertools.product(ENDS, ENDS))


@dataclass(frozen=True, slots=True)
class Site:
    """A running rsyncd, with its modules' directories, and the certificates before it."""

    port: int
    public: Path
    incoming: Path
    certificates: Path
    log: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe's own script makes, for `localhost` and a client."""
    require_peer("openssl")
    directory = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        [RECIPE / "certificates.sh", directory, "localhost", "client"], check=True, capture_output=True
    )
    return directory


@pytest.fixture
def site(tmp_path: Path, certificates: Path) -> Iterator[Site]:
    """rsyncd with the recipe's configuration, but for places, ports and accounts."""
    program, port = require_peer("rsync"), free_port()
    public, incoming = tmp_path / "public", tmp_path / "incoming"
    grow(public)
    incoming.mkdir()
    text = (RECIPE / "rsyncd.conf").read_text()
    for ours, here in (
        ("port = 873", f"port = {port}\nlog file = {tmp_path}/log\nlock file = {tmp_path}/lock"),
        ("use chroot = yes", "use chroot = no"),
        ("uid = nobody", "uid = 0" if os.geteuid() == 0 else ""),
        ("gid = nogroup", "gid = 0" if os.geteuid() == 0 else ""),
        ("/srv/rsync", str(tmp_path)),
        ("192.0.2.0/24 2001:db8:7::/48", FRIEND),
    ):
        assert ours in text
        text = text.replace(ours, here)
    (tmp_path / "rsyncd.conf").write_text(text)
    command = [program, "--daemon", "--no-detach", f"--config={tmp_path}/rsyncd.conf"]
    with daemon(tmp_path, port, command):
        yield Site(port, public, incoming, certificates, tmp_path / "log")


def grow(tree: Path) -> None:
    """40 files of 0 to 1 MB in nested directories."""
    for number in range(40):
        path = tree / f"d{number % 3}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(1_000_000)[number : number + number**3 * 1_000_000 // 40**3])


StartEnd = Callable[..., int]
"""Called with who it is, the site, and for a client's end where it dials and from which address; the port."""


@pytest.fixture
def server_end(forwarder: StartForwarder, tmp_path: Path) -> Iterator[StartEnd]:
    """Call it with `fastfwd` or `stunnel4` and a site: the port of TLS before its daemon."""
    with ExitStack() as stack:

        def start(which: str, site: Site) -> int:
            port = free_port()
            files = site.certificates / "server.pem", site.certificates / "server.key"
            if which == "fastfwd":
                options = f"tls-accept, cert={files[0]}, key={files[1]}, send-proxy=v1"
                forwarder(f"{HOST} {port} {HOST} {site.port} [{options}]\n")
            else:
                text = f"cert = {files[0]}\nkey = {files[1]}\nprotocol = proxy\n"
                stunnel(stack, tmp_path / "server-end", port, f"{HOST}:{site.port}", text)
            return port

        yield start


@pytest.fixture
def client_end(forwarder: StartForwarder, tmp_path: Path) -> Iterator[StartEnd]:
    """Call it with `fastfwd` or `stunnel4`, a site, a port of TLS, and an address to come from: the port
    that is spoken to in the clear."""
    with ExitStack() as stack:

        def start(which: str, site: Site, target: int, source: str = FRIEND) -> int:
            port, authority = free_port(), site.certificates / "ca.pem"
            if which == "fastfwd":
                options = f"tls-connect, server-ca={authority}, server-name=localhost, src={source}"
                forwarder(f"{HOST} {port} {HOST} {target} [{options}]\n")
            else:
                text = f"client = yes\nlocal = {source}\nverifyChain = yes\nCAfile = {authority}\n"
                text += "checkHost = localhost\n"
                stunnel(stack, tmp_path / f"client-end-{port}", port, f"{HOST}:{target}", text)
            return port

        yield start


def stunnel(stack: ExitStack, directory: Path, port: int, target: str, text: str) -> None:
    """A running stunnel with that service, until the end of `stack`."""
    directory.mkdir()
    file = directory / "stunnel.conf"
    file.write_text(
        f"foreground = yes\nsyslog = no\npid =\n[rsync]\naccept = {HOST}:{port}\nconnect = {target}\n{text}"
    )
    stack.enter_context(daemon(directory, port, [require_peer("stunnel4"), file]))


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


@pytest.fixture(params=PAIRINGS, ids=lambda each: f"{each[0]}-to-{each[1]}")
def url(request: pytest.FixtureRequest, site: Site, server_end: StartEnd, client_end: StartEnd) -> str:
    """Where rsync finds the daemon through each of the pairings."""
    near, far = request.param
    return f"rsync://{HOST}:{client_end(near, site, server_end(far, site))}/"


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
def test_hosts_allow_means_the_client(
    near: str, far: str, site: Site, server_end: StartEnd, client_end: StartEnd
) -> None:
    """Who comes from the allowed address may bring, another one may not, through the same server's end."""
    target = server_end(far, site)
    friend, stranger = client_end(near, site, target), client_end(near, site, target, STRANGER)
    file = site.public / "d1" / "file 19"
    refused("access denied", file, f"rsync://{HOST}:{stranger}/incoming/")
    assert not list(site.incoming.iterdir())
    done(file, f"rsync://{HOST}:{friend}/incoming/")
    assert (site.incoming / "file 19").read_bytes() == file.read_bytes()
    done(f"rsync://{HOST}:{stranger}/public/")


@pytest.mark.parametrize("far", ENDS)
def test_the_log_has_the_client(far: str, site: Site, server_end: StartEnd, client_end: StartEnd) -> None:
    """rsyncd writes down the address that the client end came from."""
    port = client_end("fastfwd", site, server_end(far, site))
    done(f"rsync://{HOST}:{port}/public/")
    until(lambda: FRIEND in site.log.read_text(), what="the client in rsyncd's log")


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


def test_a_client_without_a_certificate(site: Site, forwarder: StartForwarder) -> None:
    """With client-ca= who shows none does not come near rsyncd, and who does gets its list."""
    port, one, other = free_port(), free_port(), free_port()
    files = site.certificates
    own = f"tls-accept, cert={files}/server.pem, key={files}/server.key, client-ca={files}/ca.pem"
    there = f"tls-connect, server-ca={files}/ca.pem"
    forwarder(f"{HOST} {port} {HOST} {site.port} [{own}, send-proxy=v1]\n")
    forwarder(
        f"{HOST} {one} localhost {port} [{there}]\n"
        f"{HOST} {other} localhost {port} "
        f"[{there}, client-cert={files}/client.pem, client-key={files}/client.key]\n"
    )
    refused("rsync error", f"rsync://{HOST}:{one}/")
    assert "public" in done(f"rsync://{HOST}:{other}/")


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
