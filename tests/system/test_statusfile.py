"""The status file and the statistics that rinetd-uv writes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect, finish, read_exactly, read_to_end


def shown(path: Path) -> dict[str, Any]:
    """The file, once it is there."""
    until(path.exists, what="the status file")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the file belongs."""
    return tmp_path / "status"


def begin(forwarder: StartForwarder, backend: StartServer, extra: str) -> tuple[Forwarder, int]:
    """A program with a forward to an echo, and its port."""
    behind, port = backend(echo), free_port()
    running = forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [name=web]\n{extra}")
    return running, port


def test_it_has_the_figures(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """Those of a session, live and afterwards."""
    _, port = begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\n")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        until(lambda: shown(place)["connections"]["active_tcp"] == 1, what="the session")
        finish(client)
        read_to_end(client)
    until(lambda: shown(place)["connections"]["active"] == 0, what="its end")
    found = shown(place)
    assert found["connections"]["total"] == found["connections"]["total_tcp"] == 1
    assert found["traffic"] == {"bytes_in": 5, "bytes_out": 5}
    assert [(each["name"], each["connections_total"]) for each in found["rules"]] == [("web", 1)]


def test_it_has_the_documented_fields(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """In rinetd-uv's spelling, and no address among them."""
    begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\n")
    found = shown(place)
    assert list(found) == [
        *("timestamp", "version", "uptime_seconds", "config_reloads", "stats_since_reload"),
        *("connections", "traffic", "errors", "buffer_pool", "servers", "rules"),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["timestamp"])
    assert "127.0.0.1" not in place.read_text()


def test_it_is_always_whole(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """Whoever reads meanwhile finds the last one or the next one."""
    begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\n")
    shown(place)
    first = os.stat(place).st_ino

    def replaced() -> bool:
        json.loads(place.read_text())
        return os.stat(place).st_ino != first

    until(replaced, what="the next one")


def test_as_text(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """A line for each figure."""
    begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\nstatusformat text\n")
    until(place.exists)
    assert "connections.active: 0\n" in place.read_text()
    assert "rules[0].name: web\n" in place.read_text()


def test_it_goes_with_the_program(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """And when a reload does not want it any more; with the file that was to be the next one."""
    running, _ = begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\n")
    shown(place)
    assert running.stop() == 0
    assert not place.exists()
    assert not place.with_suffix(".new").exists()


def test_a_reload_moves_it(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """The old one is taken away."""
    behind, port = backend(echo), free_port()
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\nstatusinterval 1\n"
    running = forwarder(f"{config}statusfile {place}\n")
    shown(place)
    running.reload(f"{config}statusfile {place}.other\n")
    shown(Path(f"{place}.other"))
    assert not place.exists()


def test_a_reload_brings_and_takes_it(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """The process that writes it comes and goes."""
    behind, port = backend(echo), free_port()
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\n"
    running = forwarder(config)
    assert running.exporter() is None
    running.reload(f"{config}statusfile {place}\n")
    shown(place)
    running.reload(config)
    until(lambda: running.exporter() is None, what="the end of the exporter")
    assert not place.exists()


def test_a_place_that_cannot_be_had(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """It is said once, and everything else goes on."""
    running, port = begin(forwarder, backend, f"statusfile {place}/none/status\nstatusinterval 1\n")
    running.wait_said("cannot write the status file")
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"


def test_a_link_in_its_place_is_replaced(
    forwarder: StartForwarder, backend: StartServer, place: Path
) -> None:
    """Neither it nor what is written meanwhile follows a link."""
    precious = place.parent / "precious"
    precious.write_text("precious")
    place.symlink_to(precious)
    Path(f"{place}.new").symlink_to(precious)
    begin(forwarder, backend, f"statusfile {place}\nstatusinterval 1\n")
    until(lambda: not place.is_symlink() and place.exists(), what="the file")
    assert precious.read_text() == "precious"


def test_a_line_of_statistics(forwarder: StartForwarder, backend: StartServer) -> None:
    """In the program's own log."""
    running, _ = begin(forwarder, backend, "statsloginterval 1\n")
    running.wait_said("STATS: uptime=")
    (line,) = [each for each in running.stderr().splitlines() if "STATS:" in each][:1]
    assert re.fullmatch(
        r"fastfwd: STATS: uptime=\d+s conns=0/0 tcp=0/0 udp=0/0 unix=0/0 traffic=0/0 errors=0/0/0", line
    )


def test_metrics_may_go_without_it(forwarder: StartForwarder, backend: StartServer, place: Path) -> None:
    """A reload without `metrics` closes their port; the file is written on."""
    behind, port = backend(echo), free_port()
    config = f"127.0.0.1 {port} {behind.host} {behind.port}\nstatusfile {place}\nstatusinterval 1\n"
    asked = free_port()
    running = forwarder(f"{config}metrics 127.0.0.1:{asked}\n")
    shown(place)
    exporter = running.exporter()
    running.reload(config)

    def closed() -> bool:
        try:
            connect(("127.0.0.1", asked)).close()
        except ConnectionRefusedError:
            return True
        return False

    until(closed, what="the end of the port")
    place.unlink()
    shown(place)
    assert running.exporter() == exporter
