"""Files to Config: what can be read, what is refused, what lenient lets through."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fastfwd.config.load import LARGEST, load, metrics_address
from fastfwd.model import Config, ConfigError, MetricsAddress
from tests.config.acceptance import ONE


def written(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "rinetd.conf"
    path.write_bytes(data)
    return str(path)


def errors(path: str, *, lenient: bool = False) -> list[str]:
    """What `load` complains of, each without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(path, lenient=lenient)
    return [f"{problem.origin.line}: {problem.message}" for problem in caught.value.problems]


def warnings(config: Config) -> list[str]:
    return [f"{problem.origin.line}: {problem.message}" for problem in config.warnings]


def test_good_file(tmp_path: Path) -> None:
    """A good file becomes a Config that knows its name."""
    path = written(tmp_path, ONE + b"\n")
    config = load(path)
    assert config.file == path
    assert len(config.forwards) == 1


def test_empty_file(tmp_path: Path) -> None:
    """An empty file loads, with a warning about the file as a whole."""
    assert warnings(load(written(tmp_path, b""))) == ["0: no forwards: there is nothing to do"]


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is a problem of the whole file."""
    assert errors(str(tmp_path / "none")) == ["0: cannot read it: No such file or directory"]


def test_message_of_a_missing_file_names_it(tmp_path: Path) -> None:
    """The text of the error begins with the file's name."""
    path = str(tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: cannot read it: No such file or directory"


def test_directory(tmp_path: Path) -> None:
    """A directory is refused; rinetd takes it for an empty file."""
    assert errors(str(tmp_path)) == ["0: expected a file, found a directory"]


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that may not be read is a problem of the whole file."""
    path = written(tmp_path, ONE)
    os.chmod(path, 0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert errors(path) == ["0: cannot read it: Permission denied"]


def test_path_through_a_file(tmp_path: Path) -> None:
    """Any other reason why the path cannot be opened is told in the system's words."""
    assert errors(written(tmp_path, ONE) + "/x") == ["0: cannot read it: Not a directory"]


def test_fifo(tmp_path: Path) -> None:
    """A FIFO is read to its end."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(ONE,))
    writer.start()
    assert len(load(str(path)).forwards) == 1
    writer.join()


def test_endless_file() -> None:
    """A file without an end is refused, not read until memory ends."""
    assert errors("/dev/zero") == [f"0: expected at most {LARGEST} bytes, found more"]


def test_every_problem_in_file_order(tmp_path: Path) -> None:
    """Problems of parsing, of accounts and between lines come together, by line."""
    data = (
        b"127.0.0.1 2001 127.0.0.1 2001\n"
        b"garbage\n"
        b"user nosuchuser\n"
        b"127.0.0.1 2001 127.0.0.1 80\n"
        b"group nosuchgroup\n"
    )
    found = errors(written(tmp_path, data))
    assert [message[:2] for message in found] == ["1:", "2:", "3:", "4:", "5:"]


def test_unknown_user(tmp_path: Path) -> None:
    """A user that the host does not know is an error where it stands."""
    data = b"\nuser nosuchuser\n"
    assert errors(written(tmp_path, data)) == ["2: expected an account of this host, found 'nosuchuser'"]


def test_unknown_group(tmp_path: Path) -> None:
    """A group that the host does not know is an error where it stands."""
    data = b"\ngroup nosuchgroup\n"
    assert errors(written(tmp_path, data)) == ["2: expected a group of this host, found 'nosuchgroup'"]


def test_known_user_and_group(tmp_path: Path) -> None:
    """root is always there."""
    config = load(written(tmp_path, b"user root\ngroup root\n"))
    assert (config.user, config.group) == ("root", "root")


def test_workers_that_keep_all_rights(tmp_path: Path) -> None:
    """Any account with the number 0 earns a warning; another one does not."""
    config = load(written(tmp_path, b"user root\n127.0.0.1 2001 127.0.0.1 3001\n"))
    assert warnings(config) == ["1: 'root' may do everything, and so could who takes over a worker"]
    assert warnings(load(written(tmp_path, b"user nobody\n127.0.0.1 2001 127.0.0.1 3001\n"))) == []


def test_relative_names_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log and pid files are relative to where the program was started, not to where it ends up."""
    monkeypatch.chdir(tmp_path)
    config = load(written(tmp_path, b"logfile log/x\npidlogfile pid\n"))
    assert (config.logfile, config.pidfile) == (str(tmp_path / "log/x"), str(tmp_path / "pid"))


def test_relative_names_of_a_daemon(tmp_path: Path) -> None:
    """Who has left the directory he was started in says which it was."""
    config = load(written(tmp_path, b"logfile log\npidlogfile /run/pid\n"), directory="/srv")
    assert (config.logfile, config.pidfile) == ("/srv/log", "/run/pid")


def test_absolute_names_stay(tmp_path: Path) -> None:
    """An absolute name is taken as written."""
    assert load(written(tmp_path, b"logfile /var/log/x\n")).logfile == "/var/log/x"


def test_relative_path_of_the_metrics_socket_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts from where the program was started, like every file's name."""
    monkeypatch.chdir(tmp_path)
    config = load(written(tmp_path, b"metrics unix:run/x\n"))
    assert config.metrics == MetricsAddress(path=str(tmp_path / "run/x"))


def test_relative_path_of_a_daemons_metrics_socket(tmp_path: Path) -> None:
    """Who has left the directory he was started in says which it was."""
    config = load(written(tmp_path, b"metrics unix:x\n"), directory="/srv")
    assert config.metrics == MetricsAddress(path="/srv/x")


@pytest.mark.parametrize("line", [b"metrics unix:/run/x", b"metrics [::1]:9464"])
def test_other_metrics_addresses_stay(tmp_path: Path, line: bytes) -> None:
    """An absolute path and an address are taken as written."""
    config = load(written(tmp_path, line), directory="/srv")
    assert f"metrics {config.metrics}".encode() == line


def test_no_exporter_stays_none(tmp_path: Path) -> None:
    """Without the directive there is no exporter."""
    assert load(written(tmp_path, ONE)).metrics is None


def test_metrics_port_of_a_forward_is_refused(tmp_path: Path) -> None:
    """The conflict is an error of the file."""
    [message] = errors(written(tmp_path, ONE + b"\nmetrics 127.0.0.1:2001\n"))
    assert message.startswith("2: expected a metrics port of its own, ")


def test_where_the_exporter_listens_is_told_in_spite_of_errors(tmp_path: Path) -> None:
    """Whoever asks a running program may find its file half edited."""
    path = written(tmp_path, b"garbage\nmetrics 127.0.0.1:9464\nuser nosuchuser\n")
    assert metrics_address(path) == MetricsAddress("127.0.0.1", 9464)


def test_where_the_exporter_listens_without_one(tmp_path: Path) -> None:
    """A file without `metrics` says so."""
    assert metrics_address(written(tmp_path, ONE)) is None


def test_where_the_exporter_listens_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path starts from the current directory."""
    monkeypatch.chdir(tmp_path)
    assert metrics_address(written(tmp_path, b"metrics unix:x\n")) == MetricsAddress(path=str(tmp_path / "x"))


def test_no_log_stays_none(tmp_path: Path) -> None:
    """Without the directives there are no files."""
    config = load(written(tmp_path, ONE))
    assert (config.logfile, config.pidfile) == (None, None)


def test_forward_to_itself_through_a_wildcard(tmp_path: Path) -> None:
    """The host's own addresses are known: a wildcard forward to one of them is refused."""
    assert len(errors(written(tmp_path, b"0.0.0.0 2001 127.0.0.3 2001\n"))) == 1


def test_names_are_not_resolved(tmp_path: Path) -> None:
    """A name is nobody's business yet."""
    assert len(load(written(tmp_path, b"nosuch.invalid 2001 nosuch.invalid 2001\n")).forwards) == 1


def test_lenient_skips_a_bad_line(tmp_path: Path) -> None:
    """As in rinetd 0.5 to 0.62 a bad line is skipped, with a warning that says why."""
    config = load(written(tmp_path, b"garbage\n" + ONE + b"\n"), lenient=True)
    assert len(config.forwards) == 1
    [warning] = warnings(config)
    assert warning.startswith("1: line skipped: expected a forward ")


def test_lenient_skips_a_conflict(tmp_path: Path) -> None:
    """Of two listeners in each other's way the first stays."""
    data = b"127.0.0.1 2001 127.0.0.1 80\n127.0.0.1 2001 127.0.0.1 81\n"
    config = load(written(tmp_path, data), lenient=True)
    assert [forward.target.port for forward in config.forwards] == [80]


def test_lenient_leaves_no_loop(tmp_path: Path) -> None:
    """Loops are cut until none is left."""
    data = b"127.0.0.1 2001 127.0.0.1 2002\n127.0.0.1 2002 127.0.0.1 2001\n127.0.0.1 2003 127.0.0.1 2003\n"
    config = load(written(tmp_path, data), lenient=True)
    assert [forward.listen.port for forward in config.forwards] == [2001]


def test_lenient_skips_a_metrics_port_in_the_way(tmp_path: Path) -> None:
    """Of a forward and a metrics port in each other's way the forward stays, with one warning
    per forward."""
    config = load(written(tmp_path, b"metrics 0.0.0.0:2001\n" + ONE + b"\n"), lenient=True)
    assert (config.metrics, len(config.forwards)) == (None, 1)
    [warning] = warnings(config)
    assert warning.startswith("1: line skipped: expected a metrics port of its own, ")


def test_lenient_skips_a_metrics_port_and_a_forward(tmp_path: Path) -> None:
    """Two conflicts of two kinds are both got rid of."""
    data = b"127.0.0.1 2001 127.0.0.1 80\n127.0.0.1 2001 127.0.0.1 81\nmetrics 127.0.0.1:2001\n"
    config = load(written(tmp_path, data), lenient=True)
    assert (config.metrics, [forward.target.port for forward in config.forwards]) == (None, [80])
    assert [warning[:16] for warning in warnings(config)][:1] == ["2: line skipped:"]


def test_lenient_skips_a_bad_metrics_line(tmp_path: Path) -> None:
    """A metrics line that cannot be understood is no reason not to forward."""
    config = load(written(tmp_path, b"metrics 9464\n" + ONE + b"\n"), lenient=True)
    assert (config.metrics, len(config.forwards)) == (None, 1)
    [warning] = warnings(config)
    assert warning.startswith("1: line skipped: expected 'ADDRESS:PORT' ")


@pytest.mark.parametrize(
    "line", [b"deny 10.0.0.1/8", b"deny @nosuchfile", b"Deny 10.*", b"allow", b"user nosuchuser", b"user"]
)
def test_lenient_does_not_open_doors(tmp_path: Path, line: bytes) -> None:
    """A line that keeps somebody out is never skipped."""
    assert len(errors(written(tmp_path, ONE + b"\n" + line + b"\ngarbage\n"), lenient=True)) == 1


def test_lenient_missing_file(tmp_path: Path) -> None:
    """A problem of the file as a whole stays an error."""
    assert len(errors(str(tmp_path / "none"), lenient=True)) == 1


def test_warnings_are_in_file_order(tmp_path: Path) -> None:
    """Warnings of parsing and skipped lines come together, by line."""
    config = load(written(tmp_path, b"allow abc\ngarbage\ndeny abc\nmore garbage\n" + ONE), lenient=True)
    assert [warning[:2] for warning in warnings(config)] == ["1:", "2:", "3:", "4:"]


# Lists of patterns.


def listing(tmp_path: Path, name: str, data: bytes, line: bytes | None = None) -> str:
    """A configuration that denies who is on a list, beside that list."""
    (tmp_path / name).write_bytes(data)
    return written(tmp_path, ONE + b"\n" + (line or b"deny @" + name.encode()) + b"\n")


def test_a_list_of_patterns(tmp_path: Path) -> None:
    """A pattern a line, with comments and blanks; its rules know where they were written."""
    path = listing(tmp_path, "bad", b"# scanners\n192.0.2.0/24  # a net\n\n\t10.1.*\r\n2001:DB8::1")
    [forward] = load(path).forwards
    assert [(rule.allow, rule.pattern) for rule in forward.rules] == [
        (False, "192.0.2.0/24"),
        (False, "10.1.*"),
        (False, "2001:db8::1"),
    ]
    assert [rule.origin and rule.origin.line for rule in forward.rules] == [2, 4, 5]
    assert {rule.origin and rule.origin.file for rule in forward.rules} == {str(tmp_path / "bad")}


def test_a_list_is_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program was started."""
    path = listing(tmp_path, "bad", b"10.*\n")
    monkeypatch.chdir("/")
    assert len(load(path).forwards[0].rules) == 1


def test_a_list_with_a_blank_in_its_name(tmp_path: Path) -> None:
    """Double quotes, as for every file."""
    path = listing(tmp_path, "bad guys", b"10.*\n", b'deny @"bad guys"')
    assert len(load(path).forwards[0].rules) == 1


def test_errors_in_a_list_are_where_they_are(tmp_path: Path) -> None:
    """With the list's name and line."""
    path = listing(tmp_path, "bad", b"10.*\n10.0.0.1/8\n10.* 11.*\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [str(problem).partition(": ")[0] for problem in caught.value.problems] == [
        f"{tmp_path}/bad:2",
        f"{tmp_path}/bad:3",
    ]


def test_an_empty_list_is_an_error(tmp_path: Path) -> None:
    """`allow` with nobody on its list would keep everybody out, `deny` nobody."""
    [error] = errors(listing(tmp_path, "bad", b"# nobody\n"))
    assert error == f"2: expected a pattern in the list '{tmp_path}/bad', found none"


def test_a_missing_list_is_an_error(tmp_path: Path) -> None:
    """At the line that names it."""
    [error] = errors(written(tmp_path, ONE + b"\nallow @none\n"))
    assert error == f"2: expected a list of patterns, found '{tmp_path}/none': No such file or directory"


@pytest.mark.parametrize("data", [b"", b"\n\n", b" # nobody\n\t\r\n"])
@pytest.mark.parametrize("directive", [b"allow", b"deny"])
def test_a_list_without_patterns_is_an_error(tmp_path: Path, directive: bytes, data: bytes) -> None:
    """However it is empty, and for both directives; a lenient start does not skip it."""
    path = listing(tmp_path, "list", data, directive + b" @list")
    [error] = errors(path, lenient=True)
    assert error == f"2: expected a pattern in the list '{tmp_path}/list', found none"


def test_a_list_that_may_not_be_read(tmp_path: Path) -> None:
    """An error at the line that names it."""
    path = listing(tmp_path, "list", b"10.*\n")
    (tmp_path / "list").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    [error] = errors(path)
    assert error == f"2: expected a list of patterns, found '{tmp_path}/list': Permission denied"


def test_a_directory_as_a_list(tmp_path: Path) -> None:
    """It is no file."""
    [error] = errors(written(tmp_path, ONE + b"\ndeny @.\n"))
    assert error == f"2: expected a list of patterns, found '{tmp_path}/.': Is a directory"


def test_a_list_without_a_name(tmp_path: Path) -> None:
    """`@` alone is no pattern."""
    [error] = errors(written(tmp_path, ONE + b"\ndeny @\n"))
    assert error == "2: expected the name of a file, found nothing"


def test_a_list_without_an_end(tmp_path: Path) -> None:
    """It is refused, not cut off: what was left out could be who is to be kept out."""
    [error] = errors(written(tmp_path, ONE + b"\ndeny @/dev/zero\n"))
    assert error == f"2: expected a list of patterns, found '/dev/zero': more than {LARGEST} bytes"


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("10.0.0.1/8", "a network without bits of a host ('10.0.0.0/8'), or the address alone"),
        ("2001:db8::1/32", "a network without bits of a host ('2001:db8::/32'), or the address alone"),
        ("[2001:db8::1]/64", "a network without bits of a host ('2001:db8::/64'), or the address alone"),
        ("10.0.0.0/33", "a prefix length from 0 to 32 after the '/'"),
        ("2001:db8::/129", "a prefix length from 0 to 128 after the '/'"),
        ("10.0.0.0/08", "a prefix length from 0 to 32 after the '/'"),
        ("10.0.0.0/", "a prefix length from 0 to 32 after the '/'"),
        ("10.0.0.0/255.0.0.0", "a prefix length from 0 to 32 after the '/'"),
        ("10/8", "an address before the '/'"),
    ],
)
def test_a_network_that_is_none(tmp_path: Path, pattern: str, what: str) -> None:
    """In a rule and in a list alike, at its own line."""
    path = listing(tmp_path, "list", f"{pattern}\n".encode(), f"allow {pattern}\ndeny @list".encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [str(each) for each in caught.value.problems] == [
        f"{path}:2: expected {what}, found {pattern!r}",
        f"{tmp_path}/list:1: expected {what}, found {pattern!r}",
    ]


# Files of what clients are told.


def test_a_sorry_file_is_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the program was started."""
    path = listing(
        tmp_path, "sorry", b"421 later\r\n", ONE.replace(b"2001", b"2002") + b" [sorry-file=sorry]"
    )
    monkeypatch.chdir("/")
    assert load(path).forwards[1].sorry == b"421 later\r\n"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("empty", "a file of 1 to 1048576 bytes"),
        ("large", "a file of 1 to 1048576 bytes"),
        ("missing", "a file that can be read (No such file or directory)"),
        (".", "a file that can be read (Is a directory)"),
    ],
)
def test_a_sorry_file_that_cannot_be_had(tmp_path: Path, name: str, what: str) -> None:
    """An error at the line that names it."""
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    path = written(tmp_path, ONE + f" [sorry-file={name}]\n".encode())
    assert errors(path) == [f"1: expected {what}, found {name!r}"]


def test_a_list_of_anything_but_patterns(tmp_path: Path) -> None:
    """A thousand errors are told as twenty, and one that says so."""
    found = errors(listing(tmp_path, "bad", b"no pattern\n" * 1000))
    assert len(found) == 22
    assert found[-1].endswith("so many errors in one list are enough: the rest was not read")
