"""docs/operations.md: what is seen after an order that costs no session, as its first table has it."""

from __future__ import annotations

import re
import signal

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.deploy.pages import DOCS
from tests.forwarder import Forwarder, run
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect, read_exactly
from tests.system.metrics import answers, metrics_url, scrape, total

PAGE = (DOCS / "operations.md").read_text("utf-8")


def status(running: Forwarder) -> str:
    """What `fastfwd --status` shows."""
    return run("--status", "-c", str(running.config_path)).stdout


def test_a_backend_taken_out(forwarder: StartForwarder, backend: StartServer) -> None:
    """Its session stays, and shows in the metric that the page names."""
    kept, gone, port = backend(echo), backend(echo), free_port()
    line = f"metrics 127.0.0.1:{free_port()}\n127.0.0.1 {port} {{}} 1 [name=web, balance=first]\n"
    places = [f"{each.host}:{each.port}" for each in (gone, kept)]
    running = forwarder(line.format(",".join(places)))
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"one")
        assert read_exactly(client, 3) == b"one"
        running.reload(line.format(f"{places[1]},127.0.0.1:1"))
        client.sendall(b"two")
        assert read_exactly(client, 3) == b"two"
        assert active(running, f"{places[0]}/tcp") == 1
    until(lambda: active(running, f"{places[0]}/tcp") == 0, what="the session to end")
    assert "`fastfwd_backend_connections_active` of it falls to 0" in PAGE


def active(running: Forwarder, label: str) -> float:
    """The connections of a backend."""
    return total(scrape(metrics_url(running)), "backend_connections_active", backend=label)


def test_a_forward_that_is_gone(forwarder: StartForwarder, backend: StartServer) -> None:
    """Its session goes on, and it is called removed while it has one."""
    behind, ports = backend(echo), (free_port(), free_port())
    metrics = f"metrics 127.0.0.1:{free_port()}\n"
    lines = [
        f"127.0.0.1 {port} {behind.host} {behind.port} [name={name}]\n"
        for name, port in zip(("stays", "goes"), ports, strict=True)
    ]
    running = forwarder(metrics + "".join(lines))
    with connect(("127.0.0.1", ports[1])) as client:
        client.sendall(b"one")
        assert read_exactly(client, 3) == b"one"
        running.reload(metrics + lines[0])
        running.wait_said(", 1 removed)")
        assert re.search(r"goes +\(removed\) +1 ", status(running))
        client.sendall(b"two")
        assert read_exactly(client, 3) == b"two"
    until(lambda: "(removed)" not in status(running), what="it to be forgotten")


def test_a_drain(forwarder: StartForwarder, backend: StartServer) -> None:
    """Not ready but alive, with a message; and an end with success."""
    behind, port = backend(echo), free_port()
    running = forwarder(f"metrics 127.0.0.1:{free_port()}\n127.0.0.1 {port} {behind.host} {behind.port}\n")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"one")
        assert read_exactly(client, 3) == b"one"
        running.send(signal.SIGUSR1)
        running.wait_said("draining: no new connections, ")
        until(lambda: answers(metrics_url(running), "/readyz") == 503, what="it to be not ready")
        assert answers(metrics_url(running), "/healthz") == 200
    assert running.wait() == 0


@pytest.mark.parametrize("what", ["reload", "kill -s USR1 --kill-whom=main", "stop"])
def test_the_orders_are_on_the_page(what: str) -> None:
    """Those that are tried here."""
    assert f"`systemctl {what} fastfwd`" in PAGE
