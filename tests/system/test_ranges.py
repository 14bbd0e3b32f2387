"""Ranges of ports: one forward, many listeners; and the way beyond them, a redirect of the packet filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests import processes
from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask, udp_client
from tests.forwarder import Forwarder
from tests.peers import require_root
from tests.sockets import Address, Listener, connect, read_to_end
from tests.system.metrics import metrics_url, scrape, total
from tests.system.namespaces import Sandbox

FIRST, BEHIND = 21_000, 22_000
"""Ports in a network of the test's own."""


@pytest.fixture
def inside() -> Iterator[Sandbox]:
    """A network of its own: all ports are free."""
    require_root()
    with Sandbox(network=True) as sandbox:
        yield sandbox


def reaches(sandbox: Sandbox, address: Address, backend: Listener) -> bool:
    """Whether a client of that address is led to that backend."""
    with sandbox.call(connect, address) as client, backend.accept() as served:
        client.sendall(b"hello")
        return served.recv(5) == b"hello"


def columns(running: Forwarder, word: str) -> list[tuple[str, str]]:
    """Of the log's lines with that last word, the port listened on and the port connected to."""
    return [
        (line["listen_port"], line["connect_port"])
        for line in running.log_columns()
        if line["outcome"] == word
    ]


def test_each_port_has_its_own(inside: Sandbox, forwarder: StartForwarder) -> None:
    """The third port listened on leads to the third port connected to, and the log has both."""
    with ExitStack() as stack:
        backends = [
            stack.enter_context(inside.call(partial(Listener, port=BEHIND + each))) for each in range(3)
        ]
        config = f"127.0.0.1 {FIRST}-{FIRST + 2} 127.0.0.1 {BEHIND}-{BEHIND + 2}\n"
        running = inside.call(forwarder, config)
        for each in range(3):
            assert reaches(inside, ("127.0.0.1", FIRST + each), backends[each])
        running.wait_log(6)
        assert columns(running, "opened") == [(str(FIRST + each), str(BEHIND + each)) for each in range(3)]


def test_all_ports_to_one(inside: Sandbox, forwarder: StartForwarder) -> None:
    """A single port to connect to serves them all."""
    with inside.call(partial(Listener, port=BEHIND)) as backend:
        inside.call(forwarder, f"127.0.0.1 {FIRST}-{FIRST + 2} 127.0.0.1 {BEHIND}\n")
        for each in range(3):
            assert reaches(inside, ("127.0.0.1", FIRST + each), backend)


def test_rules_are_there_once(inside: Sandbox, forwarder: StartForwarder, tmp_path: Path) -> None:
    """A hundred ports with twenty thousand networks have hardly more memory than one port with them."""
    listed = tmp_path / "blocked"
    listed.write_text("".join(f"10.{number >> 8}.{number & 255}.0/24\n" for number in range(20_000)))
    memory = []
    for ports in (f"{FIRST}", f"{FIRST + 100}-{FIRST + 199}"):
        config = f"127.0.0.1 {ports} 127.0.0.1 {BEHIND}\ndeny @{listed}\n"
        memory.append(processes.rss(inside.call(forwarder, config, workers=1).worker()))
    assert memory[1] < memory[0] + (16 << 20)  # the networks alone take some 10 MiB


def test_a_range_of_datagrams(inside: Sandbox, forwarder: StartForwarder) -> None:
    """UDP has ranges, too."""
    with ExitStack() as stack:
        for each in range(3):
            answer = f"{each}".encode()
            stack.enter_context(inside.call(UdpBackend, lambda data, a=answer: [a], port=BEHIND + each))
        config = f"127.0.0.1 {FIRST}-{FIRST + 2}/udp 127.0.0.1 {BEHIND}-{BEHIND + 2}/udp\n"
        inside.call(forwarder, config)
        for each in range(3):
            client = inside.call(stack.enter_context, udp_client(("127.0.0.1", FIRST + each)))
            assert ask(client, b"who") == f"{each}".encode()


def test_a_range_is_one_forward(inside: Sandbox, forwarder: StartForwarder) -> None:
    """Its figures are those of all ports, under the range's name."""
    with inside.call(partial(Listener, port=BEHIND)) as backend:
        config = f"127.0.0.1 {FIRST}-{FIRST + 9} 127.0.0.1 {BEHIND}\nmetrics unix:metrics.sock\n"
        running = inside.call(forwarder, config)
        for each in range(10):
            assert reaches(inside, ("127.0.0.1", FIRST + each), backend)
        running.wait_log(10, "done-")
        found = scrape(metrics_url(running))
        assert total(found, "connections_closed_total", forward=f"127.0.0.1:{FIRST}-{FIRST + 9}/tcp") == 10


def test_a_thousand_ports(inside: Sandbox, forwarder: StartForwarder) -> None:
    """All of them listen as soon as the program is ready."""
    with inside.call(partial(Listener, port=BEHIND)) as backend:
        running = inside.call(forwarder, f"127.0.0.1 {FIRST}-{FIRST + 999} 127.0.0.1 {BEHIND}\n")
        assert "ready: 1 forward," in running.stderr()
        for port in (FIRST, FIRST + 500, FIRST + 999):
            assert reaches(inside, ("127.0.0.1", port), backend)


def test_a_range_that_grows_keeps_its_listeners(inside: Sandbox, forwarder: StartForwarder) -> None:
    """A client in the queue of a port that stays is served after the reload."""
    with inside.call(partial(Listener, port=BEHIND)) as backend:
        running = inside.call(forwarder, f"127.0.0.1 {FIRST}-{FIRST + 2} 127.0.0.1 {BEHIND}\n", workers=1)
        with inside.call(connect, ("127.0.0.1", FIRST)) as client, backend.accept() as served:
            running.reload(f"127.0.0.1 {FIRST}-{FIRST + 5} 127.0.0.1 {BEHIND}\n")
            client.sendall(b"still")
            assert served.recv(5) == b"still"
        assert reaches(inside, ("127.0.0.1", FIRST + 5), backend)


# Beyond ranges: the packet filter redirects, the forward dials the port that was asked for.


GATEWAYS = {"ip": "127.0.0.9", "ip6": "fd00::9"}
"""What clients ask for. (The clients are on this host, and so is the forwarder: what it dials must not be
redirected.)"""


def redirect(sandbox: Sandbox, family: str, ports: str, to: int) -> str:
    """Have what comes for `ports` of an address arrive at the port `to`; that address."""
    gateway = GATEWAYS[family]
    if family == "ip6":
        sandbox.run("ip", "address", "add", f"{gateway}/128", "dev", "lo", "nodad")
    sandbox.run("nft", f"add table {family} ranges")
    sandbox.run("nft", f"add chain {family} ranges out {{ type nat hook output priority -100 ; }}")
    sandbox.run(
        "nft", f"add rule {family} ranges out {family} daddr {gateway} tcp dport {ports} redirect to :{to}"
    )
    return gateway


@pytest.mark.parametrize(
    ("family", "bound", "behind"),
    [("ip", "0.0.0.0", "127.0.0.1"), ("ip6", "::1", "::1"), ("ip", "::", "127.0.0.1"), ("ip6", "::", "::1")],
)
def test_the_port_that_was_asked_for(
    inside: Sandbox, forwarder: StartForwarder, family: str, bound: str, behind: str
) -> None:
    """Forty thousand ports, one listener: each client gets to the backend's port of the same number."""
    gateway = redirect(inside, family, "20000-60000", 7000)
    with ExitStack() as stack:
        backends = {
            port: stack.enter_context(inside.call(Listener, behind, port))
            for port in (20_000, 33_333, 60_000)
        }
        running = inside.call(forwarder, f"{bound} 7000 {behind} 0 [port=original]\n")
        for port, backend in backends.items():
            assert reaches(inside, (gateway, port), backend)
        running.wait_log(3, "opened")
        assert columns(running, "opened") == [(str(port), str(port)) for port in backends]


def test_whom_nobody_has_redirected(inside: Sandbox, forwarder: StartForwarder) -> None:
    """A client that connects to the listener's own port has asked for no other: it is closed."""
    running = inside.call(forwarder, "127.0.0.1 7000 127.0.0.2 0 [port=original]\n")
    with inside.call(connect, ("127.0.0.1", 7000)) as client:
        assert read_to_end(client).data == b""
    running.wait_log(1, "local-connect-failed")
