"""The files in deploy/keepalived: the configuration by keepalived itself, the scripts by what they say."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.deploy.pair import DEPLOY, PLACE
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo, sink
from tests.sockets import connect
from tests.system.metrics import metrics_url, port_of
from tests.system.namespaces import Sandbox

CHECK = DEPLOY / "check-fastfwd"
NOTIFY = DEPLOY / "fastfwd-notify"
HANDOVER = DEPLOY / "fastfwd-handover"
DOCUMENT = DEPLOY.parents[1] / "docs" / "pair.md"


def ran(*command: object) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    return subprocess.run(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(20),
        start_new_session=True,
    )


@pytest.mark.parametrize("script", [NOTIFY, HANDOVER], ids=lambda path: path.name)
def test_shell_scripts(script: Path) -> None:
    """shellcheck has nothing to say."""
    done = ran(require_peer("shellcheck"), script)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def host() -> Iterator[Sandbox]:
    """A host as the configuration expects it, with the scripts in their place."""
    with Sandbox(network=True) as inside:
        for place in (PLACE, Path("/run")):
            inside.cover(place)
        for each in DEPLOY.iterdir():
            inside.call(shutil.copy, each, PLACE)
        inside.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
        inside.run("ip", "link", "set", "eth0", "up")
        yield inside


@pytest.mark.parametrize("name", ["fw1", "fw2"])
def test_the_configuration(host: Sandbox, name: str) -> None:
    """keepalived has nothing to say against it, on either host."""
    done = host.call(
        ran, require_peer("keepalived"), "--config-test", "-i", name, "-f", PLACE / "keepalived.conf"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_configuration_without_its_scripts(host: Sandbox) -> None:
    """It says so: the test above can fail."""
    host.call((PLACE / "check-fastfwd").unlink)
    done = host.call(
        ran, require_peer("keepalived"), "--config-test", "-i", "fw1", "-f", PLACE / "keepalived.conf"
    )
    assert done.returncode != 0
    assert "fastfwd" in done.stderr


def test_its_document_has_the_files() -> None:
    """Each by its name."""
    text = DOCUMENT.read_text()
    assert [each.name for each in DEPLOY.iterdir() if each.name not in text] == []


# check-fastfwd


def test_it_serves(forwarder: StartForwarder) -> None:
    """The exporter says 200."""
    running = forwarder("127.0.0.1 0 127.0.0.1 9\nmetrics 127.0.0.1:0\n")
    done = ran(CHECK, f"127.0.0.1:{port_of(metrics_url(running))}")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_serves_at_a_unix_socket(forwarder: StartForwarder, tmp_path: Path) -> None:
    """Where `metrics unix:` is."""
    forwarder(f"127.0.0.1 0 127.0.0.1 9\nmetrics unix:{tmp_path}/metrics\n")
    assert ran(CHECK, f"unix:{tmp_path}/metrics").returncode == 0


def test_it_serves_over_ipv6(forwarder: StartForwarder) -> None:
    """In brackets."""
    running = forwarder("127.0.0.1 0 127.0.0.1 9\nmetrics [::1]:0\n")
    assert ran(CHECK, f"[::1]:{port_of(metrics_url(running))}").returncode == 0


def test_it_drains(forwarder: StartForwarder, backend: StartServer) -> None:
    """It serves, but takes nobody: 503."""
    behind = backend(echo)
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} 127.0.0.1 {behind.port}\nmetrics 127.0.0.1:0\n")
    at = f"127.0.0.1:{port_of(metrics_url(running))}"
    with connect(("127.0.0.1", port)):
        behind.visit()
        running.send(signal.SIGUSR1)
        until(lambda: ran(CHECK, at).returncode == 1, what="the check to fail")
        assert "503" in ran(CHECK, at).stderr


def test_nobody_is_there() -> None:
    """A closed port."""
    done = ran(CHECK, f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_somebody_who_does_not_answer(backend: StartServer) -> None:
    """Is given up in time."""
    done = ran(CHECK, f"127.0.0.1:{backend(sink).port}", "0.2")
    assert done.returncode == 1
    assert "timed out" in done.stderr


def test_somebody_who_says_something_else(backend: StartServer) -> None:
    """Another program at that port is not ours."""
    done = ran(CHECK, f"127.0.0.1:{backend(echo).port}")
    assert done.returncode == 1
    assert "says GET /readyz" in done.stderr


def test_a_wrong_word() -> None:
    """Fails, and does not serve."""
    assert ran(CHECK, "nonsense").returncode == 1
    assert ran(CHECK, "a", "b", "c").returncode == 2


# fastfwd-handover


ARP = Path("/proc/sys/net/ipv4/conf/all")


def state(host: Sandbox) -> tuple[str, ...]:
    """What it may change: addresses, rules, whom neighbours are told of."""
    return (
        host.run("ip", "-o", "address", "show", "dev", "lo"),
        host.run("nft", "list", "ruleset"),
        *(host.call((ARP / name).read_text) for name in ("arp_ignore", "arp_announce")),
    )


@pytest.mark.parametrize(("address", "other"), [("192.0.2.10", "192.0.2.2"), ("2001:db8::10", "2001:db8::2")])
def test_an_end_leaves_nothing(host: Sandbox, address: str, other: str) -> None:
    """Of what was set up, each step of it twice."""
    before = state(host)
    for _ in range(2):
        host.run("sh", str(HANDOVER), "keep", address)
        host.run("sh", str(HANDOVER), "take", address, other, "eth0")
    during = state(host)
    for _ in range(2):
        host.run("sh", str(HANDOVER), "end", address)
    assert all(old != new for old, new in zip(before, during, strict=True))
    assert state(host) == before


def test_conntrack_that_is_strict(host: Sandbox) -> None:
    """It would take all packets of old sessions for invalid: refused, and nothing left."""
    before = state(host)
    host.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")
    done = host.call(ran, "sh", HANDOVER, "take", "192.0.2.10", "192.0.2.2", "eth0")
    assert done.returncode == 1
    assert "nf_conntrack_tcp_loose" in done.stderr
    assert state(host) == before


@pytest.mark.parametrize("words", ["", "keep", "take 192.0.2.10", "end eth0;true", "nonsense ::1"])
def test_wrong_words(words: str) -> None:
    """Say how it is meant."""
    done = ran("sh", HANDOVER, *words.split())
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
