"""deploy/fail2ban on logs that the program has written: who is found, and who must not be."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import deadline
from tests.datagrams import udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.sockets import Listener, connect, finish, read_to_end
from tests.system.namespaces import Sandbox

FILES = Path(__file__).parents[2] / "deploy" / "fail2ban"

DENIED, NOT_ALLOWED, WELCOME, FORGED = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"
DENIED_6 = "2001:db8::7"
"""Clients; the last but one has a name that somebody else writes on datagrams."""

TCP, OTHER, UDP, BEHIND = 25, 26, 53, 8080
TRIES = 3


@contextmanager
def network() -> Iterator[Sandbox]:
    """One with these clients in it."""
    with Sandbox(network=True) as sandbox:
        for client in (DENIED, NOT_ALLOWED, WELCOME, FORGED):
            sandbox.run("ip", "address", "add", f"{client}/32", "dev", "lo")
        sandbox.run("ip", "address", "add", f"{DENIED_6}/128", "dev", "lo", "nodad")
        yield sandbox


@pytest.fixture(
    scope="module", params=["rinetd", "rinetd\nlogduration", "json"], ids=["rinetd", "duration", "json"]
)
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program writes of them all, in one of its forms."""
    directory = tmp_path_factory.mktemp("fail2ban")
    rules = f"allow {DENIED}\nallow {DENIED_6}\nallow {WELCOME}\ndeny {DENIED}\ndeny {DENIED_6}\n"
    config = (
        f"0.0.0.0 {TCP} 127.0.0.1 {BEHIND} [name=mail]\n{rules}"
        f":: {OTHER} 127.0.0.1 {BEHIND} [name=other]\n{rules}"
        f"0.0.0.0 {UDP}/udp 127.0.0.1 {BEHIND}/udp [name=names]\n{rules}"
        f"logformat {request.param}\n"
    )
    with network() as inside, inside.call(Forwarder, directory, config) as running:
        visits(inside)
        running.wait_log((4 + 2 + 1) * TRIES)
        return Path(running.log_path)


def visits(inside: Sandbox) -> None:
    """Each client comes, and is refused or served, as often as the others."""
    with inside.call(Listener, "127.0.0.1", BEHIND) as backend:
        for client, port, host in (
            *((DENIED, TCP, "127.0.0.1"), (NOT_ALLOWED, TCP, "127.0.0.1"), (WELCOME, TCP, "127.0.0.1")),
            *((NOT_ALLOWED, OTHER, "127.0.0.1"), (DENIED_6, OTHER, "::1")),
        ):
            for _ in range(TRIES):
                with inside.call(connect, (host, port), client) as end:
                    if client == WELCOME:
                        backend.accept().close()
                        finish(end)
                    read_to_end(end)
        for _ in range(TRIES):
            inside.call(datagram)


def datagram() -> None:
    """One that is refused."""
    with udp_client(("127.0.0.1", UDP), FORGED) as end:
        end.send(b"not mine")


def found(log: Path, name: str, options: str = "") -> Counter[str]:
    """The addresses that fail2ban finds in the log, and how often."""
    done = subprocess.run(
        [require_peer("fail2ban-regex"), "-o", "ip", log, f"{FILES / 'filter.d' / name}.conf{options}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )
    assert done.returncode in (0, 1), done.stderr  # 1: nothing found
    return Counter(line for line in done.stdout.splitlines() if line)


def filtered(log: Path, ports: str, forwards: str) -> Counter[str]:
    """The same, with the filter that is for this log."""
    if log.read_text().startswith("{"):
        return found(log, "fastfwd-json", f"[forwards={forwards!r}]" if forwards else "")
    return found(log, "fastfwd", f"[ports={ports!r}]" if ports else "")


def test_who_is_refused_is_found(log: Path) -> None:
    """Denied and not allowed, each time, by IPv4, IPv6, and IPv4 on an IPv6 socket; nobody who was let in."""
    assert filtered(log, f"{TCP}|{OTHER}", "") == {
        DENIED: TRIES,
        NOT_ALLOWED: 2 * TRIES,
        DENIED_6: TRIES,
    }


def test_only_on_the_ports_that_are_named(log: Path) -> None:
    """Another forward's refusals are not looked at."""
    assert filtered(log, f"{TCP}", "mail") == {DENIED: TRIES, NOT_ALLOWED: TRIES}


def test_nobody_is_found_unless_a_port_is_named(log: Path) -> None:
    """rinetd's format does not say what was a datagram, whose sender may be forged; JSON does."""
    if log.read_text().startswith("{"):
        assert FORGED not in filtered(log, "", "")
    else:
        assert not filtered(log, "", "")
        assert FORGED in filtered(log, ".*", "")  # which is why


@pytest.mark.parametrize("log", ["rinetd", "json"], indirect=True)
def test_the_jail_bans(log: Path, tmp_path: Path) -> None:
    """fail2ban's server, with the jail as it is but for its switch, has the packet filter keep out who was
    refused often enough."""
    config = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", config, ignore=shutil.ignore_patterns("*.local", "jail.d"))
    for kind in ("filter.d", "jail.d"):
        shutil.copytree(FILES / kind, config / kind, dirs_exist_ok=True)
    (config / "fail2ban.local").write_text("[Definition]\ndbfile = None\n")
    jail = config / "jail.d" / "fastfwd.conf"
    text = jail.read_text()
    for old, new in (
        ("enabled = false", "enabled = true"),
        ("/var/log/rinetd.log", str(log)),
        ('ports="22|3389"', f'ports="{TCP}"'),
        ("maxretry = 20", f"maxretry = {TRIES}"),
    ):
        assert old in text
        text = text.replace(old, new)
    if log.read_text().startswith("{"):
        text = re.sub("(?m)^filter = .*$", "", text).replace("#filter =", "filter =")
    jail.write_text(text)
    mine = ["-c", str(config), "-s", str(tmp_path / "socket"), "-p", str(tmp_path / "pid")]
    with Sandbox(network=True) as inside:
        inside.run("fail2ban-client", "-t", *mine)
        server = inside.call(
            subprocess.Popen,
            [
                require_peer("fail2ban-server"),
                "-f",
                *mine,
                "--loglevel",
                "INFO",
                "--logtarget",
                tmp_path / "said",
            ],
        )
        try:
            until(lambda: {DENIED, NOT_ALLOWED} <= banned(inside), 20, "the bans")
            assert not {WELCOME, FORGED} & banned(inside)
        finally:
            server.terminate()
            server.wait(deadline.seconds(20))


def banned(inside: Sandbox) -> set[str]:
    """Whom the packet filter keeps out."""
    ruleset = inside.run("nft", "list", "ruleset")
    return {client for client in (DENIED, NOT_ALLOWED, WELCOME, FORGED) if client in ruleset}
