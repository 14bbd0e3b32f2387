"""The connection log: its three formats line by line, and what may happen to its file.

Whatever the log does, forwarding goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder, columns
from tests.peers import require_root
from tests.ports import free_port
from tests.servers import Apart, goodbye, serve_apart
from tests.sockets import Address, Listener, connect, finish, read_exactly, read_to_end, reset
from tests.system.conftest import Route, StartRoute
from tests.system.namespaces import Sandbox

TIME = r"\d\d/(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/\d{4}:\d\d:\d\d:\d\d"


def hello(here: Route) -> None:
    """A session of 5 bytes up and 9 down that the client closes, seen to its end."""
    with here.pair() as pair:
        pair.client.sendall(b"12345")
        assert read_exactly(pair.backend, 5) == b"12345"
        pair.backend.sendall(b"123456789")
        assert read_exactly(pair.client, 9) == b"123456789"
        pair.client.close()
        assert read_to_end(pair.backend).how == "EOF"


# Lines.


def test_lines_of_the_tab_format(route: StartRoute) -> None:
    """Nine columns: time and a blank, client, the four of the forward, bytes in, bytes out, word."""
    here = route()
    hello(here)
    ends = rf"127\.0\.0\.1\t127\.0\.0\.1\t{here.address[1]}\t127\.0\.0\.1\t{here.listener.port}"
    one, two = here.forwarder.wait_log(2)
    assert re.fullmatch(rf"{TIME} \t{ends}\t0\t0\topened", one)
    assert re.fullmatch(rf"{TIME} \t{ends}\t5\t9\tdone-remote-closed", two)


@pytest.mark.parametrize("directive", ["logcommon", "logformat common"])
def test_lines_of_the_common_format(route: StartRoute, directive: str) -> None:
    """The web server's common log format: bytes out as its size, bytes in as a last field."""
    here = route(f"{directive}\n")
    hello(here)
    request = f"GET /rinetd-services/127.0.0.1/{here.address[1]}/127.0.0.1/{here.listener.port}"
    begin = rf"127\.0\.0\.1 - - \[{TIME}  [+-]\d{{4}}\] "
    one, two = here.forwarder.wait_log(2)
    assert re.fullmatch(begin + re.escape(f'"{request}/opened HTTP/1.0" 200 0 - - - 0'), one)
    assert re.fullmatch(begin + re.escape(f'"{request}/done-remote-closed HTTP/1.0" 200 9 - - - 5'), two)


@pytest.mark.parametrize(("zone", "offset"), [("UTC0", "+0000"), ("IST-5:30", "+0530"), ("NST3:30", "-0330")])
def test_the_zone_of_the_common_format(route: StartRoute, zone: str, offset: str) -> None:
    """The common format names the zone that TZ sets, half hours too."""
    here = route("logcommon\n", env={"TZ": zone})
    hello(here)
    assert f"  {offset}] " in here.forwarder.wait_log(2)[0]


@pytest.mark.parametrize("zone", ["UTC0", "IST-5:30"])
def test_the_time_is_now(route: StartRoute, zone: str) -> None:
    """The time of a line is the local time at which it was written."""
    here = route(env={"TZ": zone})
    before = int(time.time())
    hello(here)
    lines = here.forwarder.wait_log(2)
    after = time.time()
    shift = 0 if zone == "UTC0" else int(5.5 * 3600)
    for line in lines:
        written = (
            datetime.strptime(columns(line)["time"] + "+0000", "%d/%b/%Y:%H:%M:%S %z").timestamp() - shift
        )
        assert before <= written <= after


def test_duration_is_a_tenth_column(route: StartRoute) -> None:
    """With `logduration` the last line of a session ends in its seconds, with three decimals."""
    here = route("logduration\n")
    begin = time.monotonic()
    with here.pair() as pair:
        inside = time.monotonic()
        here.greet(pair)
        here.turn()
        elapsed_inside = time.monotonic() - inside
        finish(pair.client)
        assert read_to_end(pair.backend).how == "EOF"
    lines = [columns(line) for line in here.forwarder.wait_log(4)]
    elapsed = time.monotonic() - begin
    assert all(re.fullmatch(r"\d+\.\d{3}", line["duration"]) for line in lines)
    ended = [line for line in lines if line["outcome"] == "done-remote-closed" and line["bytes_in"] == "4"]
    longest = max(float(line["duration"]) for line in ended)
    assert elapsed_inside - 0.01 <= longest <= elapsed + 0.01


FIELDS = {
    "time": str,
    "session": str,
    "outcome": str,
    "forward": str,
    "proto": str,
    "client": str,
    "client_port": int,
    "via": type(None),
    "listen": str,
    "listen_port": int,
    "connect": str,
    "connect_port": int,
    "backend": str,
    "bytes_in": int,
    "bytes_out": int,
    "duration": float,
    "dial": float,
    "slot": int,
}


def test_fields_of_the_json_format(route: StartRoute) -> None:
    """A session's last JSON line has every field, of its type and with its value."""
    here = route("logformat json\n")
    with here.pair() as pair:
        client_port = pair.client.getsockname()[1]
        here.greet(pair)
        pair.client.close()
        assert read_to_end(pair.backend).how == "EOF"
    last = json.loads(here.forwarder.wait_log(2)[1])
    assert {name: type(value) for name, value in last.items()} == FIELDS
    measured = {name: last.pop(name) for name in ("time", "session", "duration", "dial")}
    assert last == {
        "outcome": "done-remote-closed",
        "forward": f"127.0.0.1:{here.address[1]}/tcp",
        "proto": "tcp",
        "client": "127.0.0.1",
        "client_port": client_port,
        "via": None,
        "listen": "127.0.0.1",
        "listen_port": here.address[1],
        "connect": "127.0.0.1",
        "connect_port": here.listener.port,
        "backend": f"127.0.0.1:{here.listener.port}",
        "bytes_in": 4,
        "bytes_out": 4,
        "slot": 0,
    }
    assert datetime.fromisoformat(measured["time"]).utcoffset() is not None
    assert 0 <= measured["dial"] <= measured["duration"] < 60


def test_json_lines_of_one_session_share_its_name(route: StartRoute) -> None:
    """`session` is the same in both lines of a session and differs between sessions."""
    here = route("logformat json\n", workers=2)
    for _ in range(20):
        hello(here)
    names = Counter(json.loads(line)["session"] for line in here.forwarder.wait_log(40))
    assert sorted(names.values()) == [2] * 20


def test_json_names_the_forward(forwarder: StartForwarder) -> None:
    """`forward` is the forward's `name=` if it has one."""
    port = free_port()
    with Listener() as listener:
        running = forwarder(f"127.0.0.1 {port} {listener.host} {listener.port} [name=web]\nlogformat json\n")
        with connect(("127.0.0.1", port)), listener.accept():
            assert json.loads(running.wait_log(1)[0])["forward"] == "web"


def test_json_of_a_refused_client(forwarder: StartForwarder) -> None:
    """A client that is not let in has no backend and no dial time."""
    port = free_port()
    running = forwarder(f"deny *\n127.0.0.1 {port} 127.0.0.1 {free_port()}\nlogformat json\n")
    with connect(("127.0.0.1", port)) as client:
        read_to_end(client)
    line = json.loads(running.wait_log(1)[0])
    assert (line["outcome"], line["backend"], line["dial"]) == ("denied", None, None)


def test_both_sides_closing_at_once_are_logged(route: StartRoute) -> None:
    """Both FINs within one turn of the loop leave the second line too (C loses it 86 times of 100)."""
    here = route()
    for count in range(1, 51):
        with here.pair() as pair:
            here.greet(pair)
            with here.frozen():
                pair.client.close()
                pair.backend.close()
        here.forwarder.wait_log(count, "\t4\t4\tdone-")


def test_both_sides_resetting_at_once_are_logged(route: StartRoute) -> None:
    """Both resets within one turn of the loop leave exactly one last line."""
    here = route()
    for _ in range(50):
        with here.pair() as pair:
            here.greet(pair)
            with here.frozen():
                reset(pair.client)
                reset(pair.backend)
    here.turn()
    here.forwarder.wait_log(51, "done-")
    assert len(here.forwarder.log_lines()) == 2 * 51


# Many connections.


@contextmanager
def knocking(address: Address, count: int, source: str | None = None) -> Iterator[None]:
    """`count` connections in the background, 4 at a time, that each read to the end of their stream."""

    def knock(_: int) -> None:
        with connect(address, source) as client:
            assert read_to_end(client).how == "EOF"

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(knock, range(count))
        yield
        list(results)


@pytest.fixture
def closer() -> Iterator[Apart]:
    """A backend in its own process that closes every connection at once."""
    with serve_apart("goodbye") as apart:
        yield apart


def start_at(
    forwarder: StartForwarder, closer: Apart, logfile: str | None = None
) -> tuple[Forwarder, Address]:
    """A forwarder in front of `closer`, with two workers and `logfile` instead of its own log."""
    port = free_port()
    config = f"127.0.0.1 {port} {closer.host} {closer.port}\n"
    if logfile is not None:
        config += f"logfile {logfile}\n"
    return forwarder(config), ("127.0.0.1", port)


def test_workers_never_mix_their_lines(forwarder: StartForwarder, closer: Apart) -> None:
    """2,000 connections over two workers leave 4,000 whole lines."""
    running, address = start_at(forwarder, closer)
    with knocking(address, 2000):
        pass
    lines = running.wait_log(4000)
    assert {len(line.split("\t")) for line in lines} == {9}
    outcomes = Counter(columns(line)["outcome"] for line in lines)
    assert outcomes["opened"] == 2000
    assert outcomes["done-local-closed"] + outcomes["done-remote-closed"] == 2000


def test_rename_and_hup_lose_no_line(forwarder: StartForwarder, closer: Apart) -> None:
    """Five rotations by rename and SIGHUP under load: 2,000 connections, 4,000 lines, in six files."""
    running, address = start_at(forwarder, closer)
    old = [running.log_path.with_suffix(f".{number}") for number in range(5)]
    with knocking(address, 2000):
        for number, path in enumerate(old):
            running.wait_log(100)
            running.log_path.rename(path)
            running.hup()
            running.wait_reloaded(number + 1)
            until(running.log_path.exists, what="a new log")

    def lines() -> list[str]:
        return [line for path in (*old, running.log_path) for line in path.read_text().splitlines()]

    assert running.said("reload refused:") == 0
    until(lambda: len(lines()) >= 4000, what="4,000 lines")
    outcomes = Counter(columns(line)["outcome"] for line in lines())
    assert outcomes.pop("opened") == 2000
    assert sum(outcomes.values()) == 2000


def test_hup_leaves_the_renamed_log_alone(route: StartRoute) -> None:
    """Once a reload is finished no line goes to the renamed file any more."""
    here = route(workers=2)
    hello(here)
    here.forwarder.wait_log(2)
    old = here.forwarder.log_path.with_suffix(".1")
    here.forwarder.log_path.rename(old)
    here.forwarder.reload()
    size = old.stat().st_size
    for _ in range(10):
        hello(here)
    here.forwarder.wait_log(20)
    assert old.stat().st_size == size


def test_copytruncate_leaves_no_holes(forwarder: StartForwarder, closer: Apart) -> None:
    """Debian's logrotate truncates the file under the program: what follows starts at its beginning."""
    running, address = start_at(forwarder, closer)
    copies = []
    with knocking(address, 2000):
        for number in range(5):
            running.wait_log(100)
            copies.append(running.log_path.with_suffix(f".{number}"))
            shutil.copyfile(running.log_path, copies[-1])
            os.truncate(running.log_path, 0)
    for path in (*copies, running.log_path):
        text = path.read_bytes()
        assert b"\0" not in text
        assert {len(line.split(b"\t")) for line in text.splitlines()} <= {9}


# Logs that take nothing.


def test_a_full_disk_stops_nothing(forwarder: StartForwarder, closer: Apart) -> None:
    """On /dev/full, where every write fails with ENOSPC, 1,000 connections are served."""
    _, address = start_at(forwarder, closer, "/dev/full")
    with knocking(address, 1000):
        pass


def test_a_fifo_without_a_reader_stops_nothing(
    forwarder: StartForwarder, closer: Apart, tmp_path: Path
) -> None:
    """A FIFO that nobody reads takes 64 KiB; 1,000 connections are served (C stalls after 405)."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    _, address = start_at(forwarder, closer, str(fifo))
    with knocking(address, 1000):
        pass


def test_a_late_reader_of_a_fifo_gets_whole_lines(
    forwarder: StartForwarder, closer: Apart, tmp_path: Path
) -> None:
    """Who opens the FIFO after it was full reads whole lines, and those of new connections."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    _, address = start_at(forwarder, closer, str(fifo))
    with knocking(address, 1000):
        pass
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = bytearray()

    def read() -> bytearray:
        text.extend(drain(reader))
        return text

    try:
        until(lambda: read().count(b"\n") > 500, what="the lines that waited")
        with knocking(address, 50, source="127.0.0.9"):
            pass
        until(lambda: read().count(b"\t127.0.0.9\t") >= 100, what="the new lines")
    finally:
        os.close(reader)
    assert {len(line.split(b"\t")) for line in text.splitlines()} == {9}


def drain(descriptor: int) -> bytes:
    """Everything that waits in a pipe."""
    text = b""
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return text
        if not piece:
            return text
        text += piece


def test_an_unwritable_log_is_a_warning(forwarder: StartForwarder, closer: Apart, tmp_path: Path) -> None:
    """A log file that cannot be opened is named on stderr, and the program serves without a log."""
    path = tmp_path / "no-such-directory" / "log"
    running, address = start_at(forwarder, closer, str(path))
    with knocking(address, 10):
        pass
    assert str(path) in running.stderr()
    assert not path.exists()


def test_an_unwritable_log_at_reload_keeps_the_old_one(route: StartRoute, tmp_path: Path) -> None:
    """A reload to a log file that cannot be opened says so and goes on with the old one."""
    here = route()
    hello(here)
    here.forwarder.wait_log(2)
    path = tmp_path / "no-such-directory" / "log"
    forward = f"127.0.0.1 {here.address[1]} {here.listener.host} {here.listener.port}\n"
    here.forwarder.reload(f"{forward}logfile {path}\n")
    assert str(path) in here.forwarder.stderr()
    hello(here)
    here.forwarder.wait_log(4)


# The file.


def test_the_log_is_for_everybody_to_read(route: StartRoute) -> None:
    """A new log has mode 0644, as rinetd's."""
    here = route()
    hello(here)
    here.forwarder.wait_log(2)
    assert here.forwarder.log_path.stat().st_mode & 0o777 == 0o644


def test_the_log_is_appended_to(route: StartRoute, tmp_path: Path) -> None:
    """Lines of an earlier run stay."""
    path = tmp_path / "kept.log"
    path.write_text("an earlier line\n")
    here = route(f"logfile {path}\n")
    hello(here)
    lines = until(lambda: text if len(text := path.read_text().splitlines()) >= 3 else None) or []
    assert lines[0] == "an earlier line"


def test_unprivileged_workers_log_to_a_private_directory(route: StartRoute) -> None:
    """The workers need no right to the log's directory: the supervisor opens the file for them."""
    require_root()
    here = route(workers=2)
    here.forwarder.directory.chmod(0o700)
    here.forwarder.log_path.rename(here.forwarder.log_path.with_suffix(".1"))
    here.forwarder.reload()
    hello(here)
    here.forwarder.wait_log(2)
    for pid in here.forwarder.workers().values():
        assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_a_session_keeps_its_columns_over_a_reload(route: StartRoute) -> None:
    """The last line of a session that was open during a reload still has its forward (C writes `?` and 0)."""
    here = route()
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.reload()
        finish(pair.client)
        assert read_to_end(pair.backend).how == "EOF"
    line = columns(here.forwarder.wait_log(2)[1])
    line.pop("time")
    assert list(line.values()) == [
        *("127.0.0.1", "127.0.0.1", str(here.address[1]), "127.0.0.1", str(here.listener.port)),
        *("4", "4", "done-remote-closed"),
    ]


def test_a_reload_changes_the_format(route: StartRoute) -> None:
    """A reload may switch `logcommon` on and off again."""
    here = route()
    forward = f"127.0.0.1 {here.address[1]} {here.listener.host} {here.listener.port}\n"
    shapes = []
    for number, extra in enumerate(("logcommon\n", "", "logformat json\n", "")):
        here.forwarder.reload(forward + extra)
        hello(here)
        shapes.append(here.forwarder.wait_log(2 * (number + 1))[-1])
    assert ["HTTP/1.0" in shapes[0], "\t" in shapes[1], shapes[2][0] == "{", "\t" in shapes[3]] == [True] * 4


def test_no_logfile_no_log(forwarder: StartForwarder, backend: StartServer) -> None:
    """Without a `logfile` line connections are served and no file appears."""
    port = free_port()
    server = backend(goodbye)
    running = forwarder(f"127.0.0.1 {port} {server.host} {server.port}\n", log=False)
    before = set(os.listdir(running.directory))
    with connect(("127.0.0.1", port)) as client:
        assert read_to_end(client).how == "EOF"
    assert set(os.listdir(running.directory)) == before


@pytest.mark.parametrize(("interface", "shown"), [("inside", "inside"), ("in\x1bside", "{index}")])
def test_the_zone_of_a_link_local_client(forwarder: StartForwarder, interface: str, shown: str) -> None:
    """A link-local client is shown with its interface: by name, and by number where the name
    would not do on a terminal (a kernel takes nearly any byte)."""
    with Sandbox(network=True) as inside:
        inside.run("ip", "link", "add", "name", interface, "type", "veth", "peer", "name", "outside")
        inside.run("ip", "address", "add", "fe80::1/64", "dev", interface, "nodad")
        inside.run("ip", "link", "set", interface, "up")
        index = inside.call(socket.if_nametoindex, interface)
        running = inside.call(forwarder, ":: 5000 ::1 9\n")
        with inside.call(socket.socket, socket.AF_INET6) as client:
            client.connect(("fe80::1", 5000, 0, index))
            assert read_to_end(client).how == "EOF"
    assert columns(running.wait_log(2)[0])["client"] == f"fe80::1%{shown.format(index=index)}"
