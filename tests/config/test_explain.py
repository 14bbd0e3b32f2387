"""`fastfwd -t --explain ADDRESS [FORWARD]`, as the program that is started says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forwarder import run

CONF = """\
allow 10.*
allow 2001:db8::/32
deny 10.9.0.0/16
deny @blocklist

192.0.2.1 80 127.0.0.1 3001 [name=web]
allow 10.1.*
deny 10.1.0.?

192.0.2.1 81-83 127.0.0.1 3001
"""
BLOCKLIST = """\
# who has knocked too often

10.66.0.0/16
2001:db8:bad::/48   # a network
10.1.2.3
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A configuration with a forward that has rules of its own, one that has not, and a list."""
    (tmp_path / "blocklist").write_text(BLOCKLIST)
    path = tmp_path / "rinetd.conf"
    path.write_text(CONF)
    return path


def explained(conf: Path, *arguments: str) -> list[str]:
    """What is said, without the directory of the files."""
    done = run("-t", "-c", str(conf), "--explain", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.replace(f"{conf.parent}/", "").splitlines()


def refused(conf: Path, *arguments: str) -> tuple[int, str]:
    """Its exit status and its last words."""
    done = run("-t", "-c", str(conf), "--explain", *arguments)
    assert done.stdout == ""
    return done.returncode, done.stderr.replace(f"{conf.parent}/", "")


@pytest.mark.parametrize(
    ("client", "verdict"),
    [
        ("10.1.5.5", "let in by rinetd.conf:1: allow 10.*, rinetd.conf:7: allow 10.1.*"),
        ("10.1.0.5", "denied by rinetd.conf:8: deny 10.1.0.?"),
        ("10.1.0.55", "let in by rinetd.conf:1: allow 10.*, rinetd.conf:7: allow 10.1.*"),
        ("10.9.1.1", "denied by rinetd.conf:3: deny 10.9.0.0/16"),
        ("10.66.1.1", "denied by blocklist:3: deny 10.66.0.0/16"),
        ("10.1.2.3", "denied by blocklist:5: deny 10.1.2.3"),
        ("10.2.0.1", "not allowed: none of rinetd.conf:7: allow 10.1.*"),
        ("192.0.2.9", "not allowed: none of rinetd.conf:1: allow 10.*, rinetd.conf:2: allow 2001:db8::/32"),
        ("2001:db8:bad::1", "denied by blocklist:4: deny 2001:db8:bad::/48"),
        ("2001:DB8:BAD:0::1", "denied by blocklist:4: deny 2001:db8:bad::/48"),
        ("2001:db8::1", "not allowed: none of rinetd.conf:7: allow 10.1.*"),
        ("::ffff:10.1.5.5", "let in by rinetd.conf:1: allow 10.*, rinetd.conf:7: allow 10.1.*"),
        ("::ffff:a01:505", "let in by rinetd.conf:1: allow 10.*, rinetd.conf:7: allow 10.1.*"),
        ("::ffff:10.9.1.1", "denied by rinetd.conf:3: deny 10.9.0.0/16"),
    ],
)
def test_which_line_decides(conf: Path, client: str, verdict: str) -> None:
    """The file and line of the rules, of a list's too, and what they say."""
    assert explained(conf, client, "web") == [f"web: {verdict}"]


def test_every_forward_without_one_named(conf: Path) -> None:
    """A line for each, in the file's order."""
    assert explained(conf, "10.2.0.1") == [
        "web: not allowed: none of rinetd.conf:7: allow 10.1.*",
        "192.0.2.1:81-83/tcp: let in by rinetd.conf:1: allow 10.*",
    ]


@pytest.mark.parametrize("which", ["81", "82", "83", "192.0.2.1:81-83/tcp"])
def test_a_forward_by_where_it_listens(conf: Path, which: str) -> None:
    """By any of its ports, or by all of it."""
    assert [line.partition(": ")[0] for line in explained(conf, "10.2.0.1", which)] == ["192.0.2.1:81-83/tcp"]


def test_a_forward_with_a_name_by_its_port(conf: Path) -> None:
    """The name is not the only way to call it."""
    assert explained(conf, "10.9.0.1", "80") == ["web: denied by rinetd.conf:3: deny 10.9.0.0/16"]


def test_no_rules(conf: Path) -> None:
    """Everybody gets in, and no line has decided it."""
    conf.write_text("192.0.2.1 80 127.0.0.1 3001\n")
    assert explained(conf, "192.0.2.9") == ["192.0.2.1:80/tcp: let in: no rule keeps it out"]


def test_only_deny_rules(conf: Path) -> None:
    """Who is not denied gets in."""
    conf.write_text("deny 10.*\n192.0.2.1 80 127.0.0.1 3001\n")
    assert explained(conf, "192.0.2.9") == ["192.0.2.1:80/tcp: let in: no rule keeps it out"]


def test_a_rule_in_a_file_that_is_included(conf: Path) -> None:
    """It is named with that file."""
    (conf.parent / "own").write_text("# mine\ndeny 10.*\n")
    conf.write_text("192.0.2.1 80 127.0.0.1 3001\ninclude own\n")
    assert explained(conf, "10.0.0.1") == ["192.0.2.1:80/tcp: denied by own:2: deny 10.*"]


def test_many_allow_rules(conf: Path) -> None:
    """Three of those that do not match are enough."""
    rules = "".join(f"allow 10.{each}.*\n" for each in range(5))
    conf.write_text(f"192.0.2.1 80 127.0.0.1 3001\n{rules}")
    [line] = explained(conf, "192.0.2.9")
    assert line.endswith("rinetd.conf:4: allow 10.2.*, and 2 more")


def test_a_link_local_client(conf: Path) -> None:
    """It has its zone in the log, and may be asked for with it."""
    conf.write_text("deny fe80::/10\n:: 80 127.0.0.1 3001\n")
    assert explained(conf, "fe80::1%eth0") == ["[::]:80/tcp: denied by rinetd.conf:1: deny fe80::/10"]


def test_a_unix_socket(conf: Path) -> None:
    """Its clients have no address that a rule could match."""
    conf.write_text("deny *\nunix:/run/x 127.0.0.1 3001\n")
    assert explained(conf, "10.0.0.1", "unix:/run/x") == [
        "unix:/run/x: let in: access rules do not concern a Unix socket's clients"
    ]


@pytest.mark.parametrize(
    "client",
    [
        "localhost",
        "10.0.0",
        "10.0.0.300",
        "010.0.0.1",
        "10.0.0.0/8",
        "10.*",
        "0",
        "unix:/run/x",
        "",
        "::g",
        "[::1]",
    ],
)
def test_what_is_no_address(conf: Path, client: str) -> None:
    """Names are not looked up, and nothing is guessed."""
    assert refused(conf, client) == (
        2,
        f"fastfwd: expected a numeric address after --explain, found {client!r}\n",
    )


@pytest.mark.parametrize("which", ["nosuch", "84", "8", "192.0.2.1", "WEB", ""])
def test_an_unknown_forward(conf: Path, which: str) -> None:
    """The configuration has no such thing."""
    assert refused(conf, "10.0.0.1", which) == (
        1,
        f"fastfwd: rinetd.conf: expected the name or the port of a forward, found {which!r}\n",
    )


def test_a_file_without_forwards(conf: Path) -> None:
    """There is nobody to let in."""
    conf.write_text("allow 10.*\n")
    assert refused(conf, "10.0.0.1") == (1, "fastfwd: rinetd.conf: expected a forward, found none\n")


def test_a_file_with_an_error(conf: Path) -> None:
    """It is told as without the question, and nothing is explained."""
    conf.write_text("nonsense\n192.0.2.1 80 127.0.0.1 3001\n")
    status, said = refused(conf, "10.0.0.1")
    assert (status, said.partition(", found")[0]) == (
        1,
        "fastfwd: rinetd.conf:1: expected a forward ('bindaddress bindport connectaddress connectport') "
        "or a directive",
    )


def test_a_file_with_an_error_for_a_lenient_start(conf: Path) -> None:
    """Without the bad line the rest can be explained."""
    conf.write_text("nonsense\ndeny 10.*\n192.0.2.1 80 127.0.0.1 3001\n")
    assert explained(conf, "10.0.0.1", "80", "--lenient") == [
        "192.0.2.1:80/tcp: denied by rinetd.conf:2: deny 10.*"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--explain", "10.0.0.1"],
        ["-t", "--explain"],
        ["-t", "--explain", "10.0.0.1", "web", "more"],
        ["-t", "--status", "--explain", "10.0.0.1"],
    ],
)
def test_wrong_usage(conf: Path, arguments: list[str]) -> None:
    """Exit status 2, as for any flag."""
    done = run("-c", str(conf), *arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_configuration_in_yaml(conf: Path) -> None:
    """The line of a pattern is its own, not its rule's."""
    path = conf.with_suffix(".yaml")
    path.write_text(
        "global:\n  access:\n    deny:\n      - 10.1.*\n      - 10.2.*\n"
        "rules:\n  - name: web\n    bind: '192.0.2.1:80'\n    connect: '127.0.0.1:3001'\n"
        "    access: {allow: ['@blocklist']}\n"
    )
    assert explained(path, "10.2.0.1") == ["web: denied by rinetd.yaml:5: deny 10.2.*"]
    assert explained(path, "10.66.0.1") == ["web: let in by blocklist:3: allow 10.66.0.0/16"]
