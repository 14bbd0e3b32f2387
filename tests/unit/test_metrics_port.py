"""The exporter's listening socket: had before anything changes, kept while it is wanted."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastfwd import observe
from fastfwd.model import Config, ConfigError, MetricsAddress, Origin
from fastfwd.supervisor import metrics
from fastfwd.supervisor.inherited import Inherited
from fastfwd.supervisor.metrics import MetricsPort, Opened, discard
from tests.ports import free_port
from tests.sockets import connect, read_to_end

NOT_LOCAL = "192.0.2.1"  # TEST-NET-1, RFC 5737


def config(address: MetricsAddress | None) -> Config:
    """A configuration that asks for an exporter there."""
    return Config("rinetd.conf", metrics=address, origins={"metrics": Origin("rinetd.conf", 7)})


def tcp(port: int, host: str = "127.0.0.1") -> MetricsAddress:
    return MetricsAddress(host, port)


def unix(path: Path) -> MetricsAddress:
    return MetricsAddress(path=str(path))


@pytest.fixture
def port() -> Iterator[MetricsPort]:
    """A port that holds nothing yet."""
    made = MetricsPort(Inherited())
    yield made
    made.close()


def serve(port: MetricsPort, address: MetricsAddress | None) -> bool:
    """Open and commit, as a reload does."""
    return port.commit(port.open(config(address)))


def refused(port: MetricsPort, address: MetricsAddress) -> str:
    """What `open` complains of."""
    with pytest.raises(ConfigError) as caught:
        port.open(config(address))
    [problem] = caught.value.problems
    assert problem.origin == Origin("rinetd.conf", 7)
    return problem.message


def answers(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    if not isinstance(address, str):
        try:
            connect(address).close()
        except ConnectionRefusedError:
            return False
        return True
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address) == 0


def descriptors() -> set[str]:
    """What this process has open."""
    return set(os.listdir("/proc/self/fd"))


# TCP.


def test_nothing_is_wanted(port: MetricsPort) -> None:
    """Without `metrics` there is nothing to open, and no address."""
    assert port.open(config(None)) is None
    assert not port.commit(None)
    assert (port.sock, port.url) == (None, "")


def test_an_open_port_listens(port: MetricsPort) -> None:
    """From the commit on at the latest; the supervisor says where."""
    number = free_port()
    assert serve(port, tcp(number))
    assert answers(("127.0.0.1", number))
    assert port.url == f"http://127.0.0.1:{number}/"


def test_port_0_is_any_port(port: MetricsPort) -> None:
    """The URL has the one the kernel gave."""
    serve(port, tcp(0))
    assert port.sock is not None
    number = port.sock.getsockname()[1]
    assert number != 0
    assert port.url == f"http://127.0.0.1:{number}/"


def test_ipv6_stands_in_square_brackets(port: MetricsPort) -> None:
    """As URLs have it."""
    number = free_port()
    serve(port, tcp(number, "::1"))
    assert port.url == f"http://[::1]:{number}/"
    assert answers(("::1", number))


def test_every_address_is_also_an_ipv4_one(port: MetricsPort) -> None:
    """`[::]` takes both families, like a forward's `::`."""
    number = free_port()
    serve(port, tcp(number, "::"))
    assert answers(("127.0.0.1", number))


def test_the_socket_does_not_block(port: MetricsPort) -> None:
    """Neither the supervisor nor the exporter ever waits for it."""
    serve(port, tcp(0))
    assert port.sock is not None
    assert not port.sock.getblocking()


def test_a_busy_port_is_refused(port: MetricsPort) -> None:
    """The message names the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        found = refused(port, tcp(number))
    assert found == f"cannot serve metrics on 127.0.0.1:{number}: Address already in use"


def test_a_port_is_not_shared_with_another_program(port: MetricsPort) -> None:
    """Not even with one that would: SO_REUSEPORT would give each of them half of the scrapes."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "Address already in use" in refused(port, tcp(other.getsockname()[1]))


def test_an_address_that_is_not_local_is_refused(port: MetricsPort) -> None:
    """In the system's words."""
    found = refused(port, tcp(0, NOT_LOCAL))
    assert found == f"cannot serve metrics on {NOT_LOCAL}:0: Cannot assign requested address"


def test_a_refused_port_leaves_nothing_open(port: MetricsPort) -> None:
    """No descriptor is lost by a reload that fails."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        before = descriptors()
        refused(port, tcp(other.getsockname()[1]))
        assert descriptors() == before


def test_a_refused_port_leaves_the_held_one(port: MetricsPort) -> None:
    """What serves goes on."""
    number = free_port()
    serve(port, tcp(number))
    refused(port, tcp(0, NOT_LOCAL))
    assert answers(("127.0.0.1", number))


def test_close_closes(port: MetricsPort) -> None:
    """Nobody listens any more."""
    number = free_port()
    serve(port, tcp(number))
    port.close()
    assert not answers(("127.0.0.1", number))
    assert (port.sock, port.url) == (None, "")


# Reloads.


def test_the_same_address_keeps_the_socket(port: MetricsPort) -> None:
    """Whoever waits in its queue is not reset."""
    serve(port, tcp(0))
    before, url = port.sock, port.url
    assert not serve(port, tcp(0))
    assert port.sock is before
    assert port.url == url


def test_the_same_address_keeps_who_waits(port: MetricsPort) -> None:
    """A client of before the reload is accepted after it."""
    number = free_port()
    serve(port, tcp(number))
    with connect(("127.0.0.1", number)) as client:
        serve(port, tcp(number))
        assert port.sock is not None
        accepted, _ = port.sock.accept()
        with accepted:
            accepted.sendall(b"served")
        assert read_to_end(client).data == b"served"


def test_another_address_replaces_the_socket(port: MetricsPort) -> None:
    """The old port is free again."""
    one, other = free_port(), free_port()
    serve(port, tcp(one))
    assert serve(port, tcp(other))
    assert (answers(("127.0.0.1", one)), answers(("127.0.0.1", other))) == (False, True)


def test_open_alone_changes_nothing(port: MetricsPort) -> None:
    """Until the commit the old address is the one."""
    number = free_port()
    serve(port, tcp(number))
    url = port.url
    opened = port.open(config(tcp(0)))
    assert port.url == url
    assert answers(("127.0.0.1", number))
    discard(opened)


def test_a_directive_that_goes_takes_the_socket_with_it(port: MetricsPort) -> None:
    """A reload without `metrics` ends the exporter."""
    number = free_port()
    serve(port, tcp(number))
    assert serve(port, None)
    assert port.url == ""
    assert not answers(("127.0.0.1", number))


@pytest.mark.parametrize(
    ("before", "after"),
    [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::"), ("::", "0.0.0.0")],
)
def test_an_address_within_another_on_the_same_port(port: MetricsPort, before: str, after: str) -> None:
    """A reload meets its own socket there, which is nobody else's."""
    number = free_port()
    serve(port, tcp(number, before))
    assert serve(port, tcp(number, after))
    assert answers(("127.0.0.1", number))


def test_the_port_that_the_kernel_gave_can_be_asked_for(port: MetricsPort) -> None:
    """Who has tried port 0 may write down what came of it, widened to every address."""
    serve(port, tcp(0))
    assert port.sock is not None
    number = port.sock.getsockname()[1]
    assert serve(port, tcp(number, "0.0.0.0"))
    assert answers(("127.0.0.1", number))


def test_a_port_held_by_another_program_stays_refused_at_a_reload(port: MetricsPort) -> None:
    """Holding one port does not let into others."""
    serve(port, tcp(free_port()))
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "Address already in use" in refused(port, tcp(other.getsockname()[1]))


def test_what_is_opened_and_not_wanted_is_closed(port: MetricsPort) -> None:
    """A reload that is refused later leaves nothing."""
    number = free_port()
    before = descriptors()
    discard(port.open(config(tcp(number))))
    assert not answers(("127.0.0.1", number))
    assert descriptors() == before
    discard(None)


def test_discarding_the_same_address_leaves_the_held_socket(port: MetricsPort) -> None:
    """It was never opened anew."""
    number = free_port()
    serve(port, tcp(number))
    discard(port.open(config(tcp(number))))
    assert answers(("127.0.0.1", number))


def test_a_child_lets_go_without_closing_for_all(port: MetricsPort, tmp_path: Path) -> None:
    """`abandon` leaves the path to the supervisor, whose socket it is."""
    serve(port, unix(tmp_path / "x"))
    assert port.sock is not None
    kept = port.sock.dup()
    port.abandon()
    assert port.sock is None
    assert answers(str(tmp_path / "x"))
    kept.close()


# The page.


def test_the_page_comes_with_the_socket(port: MetricsPort) -> None:
    """The exporter, which may not open files, gets it from here."""
    serve(port, tcp(0))
    assert port.page == Path(observe.PAGE).read_bytes()


def test_a_reload_reads_the_page_again(
    port: MetricsPort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upgrade may have brought another; the socket stays."""
    page = tmp_path / "page.html"
    monkeypatch.setattr(metrics, "PAGE", str(page))
    for text in (b"old", b"new"):
        page.write_bytes(text)
        serve(port, tcp(0))
        assert port.page == text


def test_a_page_that_cannot_be_read_is_refused(
    port: MetricsPort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken installation is said, with the file's name, and opens nothing."""
    missing = str(tmp_path / "none")
    monkeypatch.setattr(metrics, "PAGE", missing)
    before = descriptors()
    found = refused(port, tcp(0))
    assert found == f"cannot read the status page {missing}: No such file or directory"
    assert descriptors() == before


def test_without_metrics_the_page_is_not_read(port: MetricsPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants no exporter needs no page."""
    monkeypatch.setattr(metrics, "PAGE", "/nonexistent")
    assert port.open(config(None)) is None


# Unix sockets.


def test_a_unix_socket_listens(port: MetricsPort, tmp_path: Path) -> None:
    """At its path, which is its address."""
    path = tmp_path / "metrics"
    assert serve(port, unix(path))
    assert answers(str(path))
    assert port.url == f"unix:{path}"


def test_everybody_may_connect_to_a_unix_socket(port: MetricsPort, tmp_path: Path) -> None:
    """Whoever reaches the directory, whatever the umask is."""
    before = os.umask(0o077)
    try:
        serve(port, unix(tmp_path / "x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "x").st_mode) == 0o666


def test_close_removes_a_unix_socket(port: MetricsPort, tmp_path: Path) -> None:
    """Nothing is left in the file system."""
    serve(port, unix(tmp_path / "x"))
    port.close()
    assert list(tmp_path.iterdir()) == []


def test_close_leaves_what_somebody_else_has_put_there(port: MetricsPort, tmp_path: Path) -> None:
    """A second program has taken the path over: it keeps it."""
    path = tmp_path / "x"
    serve(port, unix(path))
    path.rename(tmp_path / "aside")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        port.close()
        assert answers(str(path))


def test_close_of_a_unix_socket_that_is_gone(port: MetricsPort, tmp_path: Path) -> None:
    """Somebody has removed it: nothing to do."""
    serve(port, unix(tmp_path / "x"))
    os.unlink(tmp_path / "x")
    port.close()
    assert list(tmp_path.iterdir()) == []


def test_a_regular_file_is_kept(port: MetricsPort, tmp_path: Path) -> None:
    """A slip of the pen must not cost a file."""
    path = tmp_path / "precious"
    path.write_text("data")
    found = refused(port, unix(path))
    assert found == f"cannot serve metrics on unix:{path}: there is something else than a socket"
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    "make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)], ids=["directory", "fifo", "link"]
)
def test_anything_else_than_a_socket_is_kept(
    port: MetricsPort, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Directories, pipes and links stay what they are."""
    path = tmp_path / "x"
    make(path)
    before = os.lstat(path)
    assert "something else than a socket" in refused(port, unix(path))
    assert os.lstat(path).st_ino == before.st_ino


def test_a_dead_socket_is_replaced(port: MetricsPort, tmp_path: Path) -> None:
    """What a killed program has left is in nobody's way."""
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert not answers(str(path))
    serve(port, unix(path))
    assert answers(str(path))


def test_a_live_socket_is_refused(port: MetricsPort, tmp_path: Path) -> None:
    """Somebody serves there: he keeps it."""
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        found = refused(port, unix(path))
        assert answers(str(path))
    assert found == f"cannot serve metrics on unix:{path}: Address already in use"


def test_a_live_socket_whose_queue_is_full_is_refused(port: MetricsPort, tmp_path: Path) -> None:
    """Busy is not dead."""
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(str(path))
        other.listen(0)
        first.connect(str(path))
        with socket.socket(socket.AF_UNIX) as second:
            second.setblocking(False)
            assert second.connect_ex(str(path)) == errno.EAGAIN
        assert "Address already in use" in refused(port, unix(path))
        assert path.exists()


def test_a_path_that_is_too_long_is_refused(port: MetricsPort, tmp_path: Path) -> None:
    """A relative one may have become so when it was made absolute."""
    found = refused(port, unix(tmp_path / ("x" * 108)))
    assert found.endswith(": AF_UNIX path too long")


def test_a_path_in_a_directory_that_is_missing_is_refused(port: MetricsPort, tmp_path: Path) -> None:
    """In the system's words."""
    assert refused(port, unix(tmp_path / "none/x")).endswith(": No such file or directory")


def test_a_refused_unix_socket_leaves_nothing_open(port: MetricsPort, tmp_path: Path) -> None:
    """No descriptor, no file."""
    before = descriptors()
    refused(port, unix(tmp_path / "none/x"))
    refused(port, unix(tmp_path / ("x" * 108)))
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_that_is_not_wanted_leaves_nothing(port: MetricsPort, tmp_path: Path) -> None:
    """A reload that is refused after opening it removes it again."""
    before = descriptors()
    discard(port.open(config(unix(tmp_path / "x"))))
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_the_same_path_keeps_the_socket(port: MetricsPort, tmp_path: Path) -> None:
    """A reload does not refuse itself, and close still knows what is its own."""
    path = tmp_path / "x"
    serve(port, unix(path))
    before = port.sock
    assert not serve(port, unix(path))
    assert port.sock is before
    assert answers(str(path))
    port.close()
    assert not path.exists()


def test_discarding_the_same_path_leaves_it(port: MetricsPort, tmp_path: Path) -> None:
    """A reload that is refused for another reason."""
    path = tmp_path / "x"
    serve(port, unix(path))
    discard(port.open(config(unix(path))))
    assert answers(str(path))


def test_a_path_that_changes_is_removed(port: MetricsPort, tmp_path: Path) -> None:
    """From one path to another, and to TCP."""
    serve(port, unix(tmp_path / "one"))
    assert serve(port, unix(tmp_path / "other"))
    assert [each.name for each in tmp_path.iterdir()] == ["other"]
    assert serve(port, tcp(0))
    assert list(tmp_path.iterdir()) == []
    assert port.url.startswith("http://")


def test_what_is_opened_says_what_is_new(port: MetricsPort, tmp_path: Path) -> None:
    """The first time a socket and its inode, the second time no socket."""
    opened = port.open(config(unix(tmp_path / "x")))
    assert isinstance(opened, Opened)
    assert opened.sock is not None
    found = os.lstat(tmp_path / "x")
    assert opened.unix is not None
    assert opened.unix.inode == (found.st_dev, found.st_ino)
    port.commit(opened)
    again = port.open(config(unix(tmp_path / "x")))
    assert again is not None
    assert (again.sock, again.unix) == (None, opened.unix)
