"""Text to Config: the golden pairs, the acceptance table, and facts that need bytes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastfwd.config.check import check
from fastfwd.config.parse import GuardProblem, parse
from fastfwd.config.pattern import never_matches, normalise
from fastfwd.model import AccessRule, LogFormat, MetricsAddress, Origin
from tests.config import golden
from tests.config.acceptance import ACCEPTED, ONE, OWN, REJECTED


def stem(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("conf", golden.VALID, ids=stem)
def test_valid_file_means_what_is_written_beside_it(conf: Path) -> None:
    """Each file of valid/ parses to its expectation."""
    assert golden.meaning(conf.read_bytes()) == golden.expectation(conf).read_text("utf-8")


@pytest.mark.parametrize("conf", golden.INVALID, ids=stem)
def test_invalid_file_has_the_errors_written_beside_it(conf: Path) -> None:
    """Each file of invalid/ has exactly the errors of its expectation, in file order."""
    assert golden.errors(conf.read_bytes()) == golden.expectation(conf).read_text("utf-8")


def test_there_are_golden_pairs() -> None:
    """The two directories were found: an empty parametrisation would pass unseen."""
    assert golden.VALID
    assert golden.INVALID


@pytest.mark.parametrize("data", [*ACCEPTED.values(), *OWN.values()], ids=[*ACCEPTED, *OWN])
def test_accepted_row(data: bytes) -> None:
    """What rinetd loads loads here, and so do our own words."""
    config, problems = parse(data, "file", service=golden.service)
    assert problems + check(config, addresses={}, is_local=golden.loopback) == []


@pytest.mark.parametrize("data", REJECTED.values(), ids=REJECTED)
def test_rejected_row(data: bytes) -> None:
    """What must be refused is refused with an error that has a line and says what was expected."""
    config, problems = parse(data, "file", service=golden.service)
    problems += check(config, addresses={}, is_local=golden.loopback)
    assert problems
    for problem in problems:
        assert 1 <= problem.origin.line <= data.count(b"\n") + 1
        assert problem.message.startswith("expected ")
        assert ", found " in problem.message


def test_installed_default_configuration_loads() -> None:
    """The distribution's own /etc/rinetd.conf loads without an error."""
    default = Path("/etc/rinetd.conf")
    if not default.exists():
        pytest.skip("there is none")
    assert parse(default.read_bytes(), str(default))[1] == []


def test_services_are_the_systems_by_default() -> None:
    """Without `service`, names are looked up as getservbyname(3) does."""
    config, problems = parse(b"127.0.0.1 2001 127.0.0.1 http\n", "file")
    assert problems == []
    assert config.forwards[0].target.port == 80


def test_origin_of_a_forward() -> None:
    """A forward knows its file and line."""
    config, _ = parse(b"\n\n" + ONE + b"\n", "some.conf")
    assert config.forwards[0].origin == Origin("some.conf", 3)


def test_origin_of_a_directive() -> None:
    """A directive's origin is found by its word."""
    config, _ = parse(b"\nworkers 3\n", "some.conf")
    assert config.origin("workers") == Origin("some.conf", 2)


def test_logcommon_and_logformat_share_an_origin() -> None:
    """`logcommon` is `logformat common`."""
    config, _ = parse(b"\nlogcommon\n", "file")
    assert config.logformat is LogFormat.COMMON
    assert config.origin("logformat") == Origin("file", 2)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:9464", MetricsAddress("127.0.0.1", 9464)),
        ("127.0.0.1:0", MetricsAddress("127.0.0.1", 0)),
        ("127.0.0.1:009464", MetricsAddress("127.0.0.1", 9464)),
        ("0:9464", MetricsAddress("0.0.0.0", 9464)),
        ("[0:0::1]:9464", MetricsAddress("::1", 9464)),
        ("[::]:65535", MetricsAddress("::", 65535)),
        ("unix:/run/x", MetricsAddress(path="/run/x")),
        ("unix:x", MetricsAddress(path="x")),
        ('unix:"/run/a b"', MetricsAddress(path="/run/a b")),
        ("unix:/run/unix:x", MetricsAddress(path="/run/unix:x")),
        ("unix:/" + "x" * 106, MetricsAddress(path="/" + "x" * 106)),
    ],
)
def test_spelling_of_the_metrics_address(written: str, address: MetricsAddress) -> None:
    """Every way to write where the exporter listens."""
    config, problems = parse(f"metrics {written}\n".encode(), "file")
    assert problems == []
    assert config.metrics == address


@pytest.mark.parametrize("written", ["127.0.0.1:9464", "[::1]:9464", "unix:/run/x"])
def test_metrics_address_is_shown_as_it_is_written(written: str) -> None:
    """What messages call the exporter's address could stand in the file."""
    config, _ = parse(f"metrics {written}\n".encode(), "file")
    assert str(config.metrics) == written


def test_path_of_the_metrics_socket_that_is_not_utf8() -> None:
    """The path keeps its bytes, as os.fsencode gives them back."""
    config, _ = parse(b"metrics unix:/run/\xff\n", "file")
    assert config.metrics is not None
    assert os.fsencode(config.metrics.path or "") == b"/run/\xff"


def test_length_of_the_metrics_path_counts_bytes() -> None:
    """unix(7) limits bytes, not letters."""
    _, problems = parse(b"metrics unix:/" + "\u00fc".encode() * 54 + b"\n", "file")
    assert [problem.message[:41] for problem in problems] == ["expected a path of at most 107 bytes (uni"]


def test_bad_metrics_line_leaves_the_good_one_before_it() -> None:
    """An error does not undo an earlier line."""
    config, problems = parse(b"metrics 127.0.0.1:1\nmetrics nonsense\n", "file")
    assert len(problems) == 1
    assert config.metrics == MetricsAddress("127.0.0.1", 1)
    assert config.origin("metrics").line == 1


def test_bad_metrics_line_guards_nothing() -> None:
    """A lenient start may skip it: without an exporter nothing is open that should be closed."""
    _, problems = parse(b"metrics nonsense\n", "file")
    assert not isinstance(problems[0], GuardProblem)


def test_metrics_leaves_the_rules_where_they_are() -> None:
    """A directive between a forward and its rules is not a forward."""
    config, _ = parse(ONE + b"\nmetrics 127.0.0.1:9464\ndeny *\n", "file")
    assert config.forwards[0].rules == (AccessRule(False, "*"),)


@pytest.mark.parametrize("directive", ["metrics 127.0.0.1:", "metrics [::1]:", "workers "])
def test_number_with_thousands_of_zeros(directive: str) -> None:
    """Zeros before a number are judged like any others, without an exception."""
    config, problems = parse(f"{directive}{'0' * 5000}1\n".encode(), "file")
    assert problems or config.origins


def test_crlf() -> None:
    """A file with CRLF line ends means the same as with LF."""
    text = b"logfile log\n127.0.0.1 2001 127.0.0.1 3001 [timeout=5]\nallow 10.*\n"
    assert parse(text.replace(b"\n", b"\r\n"), "file") == parse(text, "file")


def test_unterminated_last_line_counts() -> None:
    """The last line needs no newline: rinetd ignores it, and would let everybody in here."""
    config, _ = parse(ONE + b"\ndeny *", "file")
    assert config.forwards[0].rules == (AccessRule(False, "*"),)


def test_nul_ends_a_line() -> None:
    """NUL ends a line, as in rinetd."""
    config, problems = parse(ONE + b"\0deny *\0", "file")
    assert problems == []
    assert config.forwards[0].rules == (AccessRule(False, "*"),)


def test_nul_does_not_count_as_a_line() -> None:
    """Line numbers are an editor's, which shows NUL within a line."""
    _, problems = parse(b"logcommon\0logcommon\0\ngarbage\n", "file")
    assert [problem.origin.line for problem in problems] == [2]


def test_file_name_that_is_not_utf8() -> None:
    """A file name keeps its bytes, as os.fsencode gives them back."""
    config, _ = parse(b"logfile \xff\xfe.log\n", "file")
    assert config.logfile is not None
    assert config.logfile.encode("utf-8", "surrogateescape") == b"\xff\xfe.log"


def test_byte_order_mark_hides_nothing() -> None:
    """Behind a byte order mark the first line is still read."""
    config, problems = parse(b"\xef\xbb\xbf" + ONE + b"\n", "file")
    assert len(problems) == 1
    assert len(config.forwards) == 1


def test_message_shows_no_control_characters() -> None:
    """Whatever the file holds, a message is one line of printable text."""
    _, problems = parse(b"\x1b[2Jgarbage\xff\x07 2001 \xc2\x9b 80\n", "file")
    assert all(problem.message.isprintable() for problem in problems)


def test_message_of_a_long_line_is_short() -> None:
    """A line of a megabyte does not fill the operator's screen."""
    _, problems = parse(b"x" * 2**20 + b"\n", "file")
    assert len(problems[0].message) < 300


def test_number_of_a_million_digits() -> None:
    """Numbers of any length are judged, not converted."""
    digits = b"9" * 10**6
    line = b"127.0.0.1 " + digits + b" 127.0.0.1 3001 [timeout=" + digits + b"]\n"
    _, problems = parse(line + b"workers " + digits, "file")
    assert [problem.origin.line for problem in problems] == [1, 2]


def test_rules_of_a_bad_forward_are_nobody_elses() -> None:
    """Rules that follow a bad forward fall with it: they were not meant for the one before."""
    config, problems = parse(ONE + b"\n127.0.0.1 nosuch 127.0.0.1 80\nallow *\n", "file")
    assert len(problems) == 1
    assert config.forwards[0].rules == ()


def test_rules_of_a_bad_first_forward_are_not_global() -> None:
    """Rules that follow a bad first forward do not become everybody's."""
    config, _ = parse(b"127.0.0.1 nosuch 127.0.0.1 80\nallow 10.*\n" + ONE, "file")
    assert config.rules == ()


def test_rules_after_a_line_that_is_no_forward() -> None:
    """A line that is no forward at all leaves the forward above it current."""
    config, _ = parse(ONE + b"\n; comment\ndeny *\n", "file")
    assert config.forwards[0].rules == (AccessRule(False, "*"),)


@pytest.mark.parametrize(
    "line", ["allow x", "deny", "Allow 10.*", "denny 10.*", "allow10.*", "user", "group a b"]
)
def test_bad_guarding_line_is_marked(line: str) -> None:
    """An error in a line that keeps somebody out can be told from others."""
    _, problems = parse(line.encode(), "file")
    assert [type(problem) for problem in problems] == [GuardProblem]


@pytest.mark.parametrize(
    ("pattern", "spelling"),
    [
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:0DB8::0001", "2001:db8::1"),
        ("::FFFF:127.0.0.1", "::ffff:127.0.0.1"),
        ("::ffff:7f00:1", "::ffff:127.0.0.1"),
        ("FE80:*", "fe80:*"),
        ("10.*", "10.*"),
        ("*", "*"),
        ("010.0.0.1", "010.0.0.1"),
    ],
)
def test_pattern_is_spelled_like_clients_addresses(pattern: str, spelling: str) -> None:
    """Patterns are compared with inet_ntop(3)'s text, so that is their spelling."""
    assert normalise(pattern) == spelling


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "?",
        "10.*",
        "*.1",
        "127*0.1",
        "**",
        "10.0.0.1",
        "255.255.255.?",
        "::1",
        "fe80:*",
        "*:*",
        "1*",
        "::ffff:10.*",
    ],
)
def test_pattern_that_can_match(pattern: str) -> None:
    """No false alarm: these match some address."""
    assert not never_matches(pattern)
