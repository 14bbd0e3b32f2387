"""Configurations in YAML, as rinetd-uv documents them, mean what the same words mean elsewhere."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from fastfwd.config.load import load
from fastfwd.model import Balance, Config, ConfigError


def loaded(directory: Path, text: str) -> Config:
    """The configuration that a file with that text is."""
    path = directory / "rinetd-uv.yaml"
    path.write_text(textwrap.dedent(text))
    return load(str(path))


def errors(directory: Path, text: str) -> list[str]:
    """What is wrong with it: line, then message."""
    with pytest.raises(ConfigError) as caught:
        loaded(directory, text)
    return [f"{problem.origin.line}: {problem.message}" for problem in caught.value.problems]


WEB = """\
rules:
  - name: web
    bind: "127.0.0.1:80"
    connect: "192.0.2.1:8080"
"""


NOWHERE = ["1: expected at least one address to listen on, found none"]


def test_the_least_there_is(tmp_path: Path) -> None:
    """One rule."""
    [forward] = loaded(tmp_path, WEB).forwards
    assert (forward.label, str(forward.listen), str(forward.target)) == (
        "web",
        "127.0.0.1:80/tcp",
        "192.0.2.1:8080/tcp",
    )


def test_everything(tmp_path: Path) -> None:
    """Every word that it documents."""
    config = loaded(
        tmp_path,
        """
        global:
          log_file: /var/log/r.log
          log_common: true
          pid_file: /run/r.pid
          buffer_size: 65536
          pool_min_free: 64
          pool_max_free: 1024
          pool_trim_delay: 60000
          dns_refresh: 300
          dns_multi_ip_expand: false
          dns_multi_ip_proto: ipv4
          connect_timeout: 7
          listen_backlog: 200
          max_udp_connections: 900
          status: {enabled: true, file: /run/r.status, interval: 10, format: text}
          stats_log_interval: 60
          access:
            allow: ["10.*", "192.0.2.0/24"]
            deny: ["10.1.2.3"]
        rules:
          - name: web
            bind: ["0.0.0.0:80/tcp", "[::1]:80"]
            connect:
              - {dest: "10.0.0.1:8080", name: one, weight: 3, dns_refresh: 5, src: 10.0.0.9}
              - dest: "10.0.0.2:8080"
            timeout: 20
            keepalive: false
            connect_timeout: 3
            access: {allow: ["10.5.*"], deny: ["10.5.1.*"]}
            load_balancing:
              algorithm: leastconn
              health_threshold: 5
              recovery_timeout: 60
              affinity_ttl: 3600
              affinity_max_entries: 500
          - name: local
            bind: "unix:/run/r.sock"
            connect: "unix:@backend"
            mode: "0600"
        """,
    )
    assert (config.logfile, config.logformat.value, config.pidfile) == (
        "/var/log/r.log",
        "common",
        "/run/r.pid",
    )
    assert (config.dns_refresh, config.dns_expand, config.backlog) == (300, False, 200)
    assert (config.limits.connect_timeout, config.limits.udp_connections) == (7, 900)
    assert (config.statusfile, config.status_interval, config.status_text, config.stats_interval) == (
        "/run/r.status",
        10,
        True,
        60,
    )
    assert [(rule.allow, rule.pattern) for rule in config.rules] == [
        (True, "10.*"),
        (True, "192.0.2.0/24"),
        (False, "10.1.2.3"),
    ]
    first, second, local = config.forwards
    assert [str(each.listen) for each in (first, second, local)] == [
        "0.0.0.0:80/tcp",
        "[::1]:80/tcp",
        "unix:/run/r.sock",
    ]
    assert [(each.label, each.weight, each.dns_refresh, each.sources) for each in first.backends] == [
        ("one", 3, 5, ("10.0.0.9",)),
        ("web-backend-2", 1, None, ()),
    ]
    assert first.backends == second.backends
    assert (first.timeout, first.keepalive, first.connect_timeout) == (20, False, 3)
    assert (first.balance, first.health_threshold, first.recovery_timeout) == (Balance.LEASTCONN, 5, 60)
    assert (first.affinity_ttl, first.affinity_entries) == (3600, 500)
    assert [(rule.allow, rule.pattern) for rule in first.rules] == [(True, "10.5.*"), (False, "10.5.1.*")]
    assert (local.mode, str(local.target)) == (0o600, "unix:@backend")


def test_its_own_default(tmp_path: Path) -> None:
    """Addresses of a name are spread over unless the file says no: in YAML only."""
    assert loaded(tmp_path, WEB).dns_expand


def test_our_own_words(tmp_path: Path) -> None:
    """Directives and options that rinetd-uv lacks, with `_` for `-`."""
    config = loaded(
        tmp_path,
        """
        global: {workers: 3, idle_timeout: 2h, metrics: "127.0.0.1:9464", log_duration: true}
        rules:
          - {name: web, bind: "127.0.0.1:80", connect: "192.0.2.1:80", max_connections: 7, max_rate: 10M}
        """,
    )
    assert (config.workers, config.limits.idle_timeout, str(config.metrics)) == (3, 7200, "127.0.0.1:9464")
    assert config.logduration
    assert (config.forwards[0].max_connections, config.forwards[0].max_rate) == (7, 10 << 20)


def test_datagrams(tmp_path: Path) -> None:
    """`connect` is of the protocol of `bind` unless it says otherwise."""
    config = loaded(
        tmp_path, 'rules: [{name: dns, bind: "127.0.0.1:53/udp", connect: "192.0.2.1:53", timeout: 10}]'
    )
    assert str(config.forwards[0].target) == "192.0.2.1:53/udp"


def test_status_that_is_not_enabled(tmp_path: Path) -> None:
    """Its file is not written."""
    assert loaded(tmp_path, f"global: {{status: {{enabled: false, file: /run/x}}}}\n{WEB}").statusfile is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("rules: [\n", "2: expected YAML: "),
        (
            "rulez: []\n",
            "1: expected a key of a configuration (global, rules), found 'rulez' (did you mean 'rules'?)",
        ),
        ("global: {log_fil: x}\n", "(did you mean 'log_file'?)"),
        ("rules: {}\n", "1: expected a list"),
        ("rules: [x]\n", "1: expected a mapping"),
        (
            WEB.replace("bind", "bnd"),
            "3: expected a key of a rule (fastfwd.conf(5) lists them), found 'bnd' (did you mean 'bind'?)",
        ),
        (WEB.replace('"127.0.0.1:80"', '"127.0.0.1"'), "3: expected 'host:port'"),
        (WEB.replace('"127.0.0.1:80"', '"::1:80"'), "3: expected 'host:port'"),
        (WEB.replace("8080", "80800"), "4: expected a port from 0 to 65535, found '80800'"),
        (
            WEB + "    timeout: soon\n",
            "5: expected after 'timeout:' a timeout in whole seconds, found 'soon'",
        ),
        (WEB + "    keepalive: maybe\n", "5: expected true or false, found 'maybe'"),
        (WEB + "    load_balancing: {algorithm: best}\n", "5: expected after 'algorithm:' one of 'first', "),
        (WEB + '    access: {deny: ["10.0.0.1/8"]}\n', "5: expected a network without bits of a host"),
        (WEB + WEB.removeprefix("rules:\n"), "5: expected a name of its own, found 'web' of line 2"),
        ("global: {connect_timeout: [1, 2]}\n", "1: expected a single value"),
        ("rules: [{name: x, bind: 'a:1', connect: [{weight: 2}]}]\n", "1: expected a backend with 'dest'"),
        (
            "rules: [{name: x, bind: 'a:1', connect: [{dest: 'b:1', weight: 200}]}]\n",
            "1: expected a weight from 1 to 100, found '200'",
        ),
    ],
)
def test_errors(tmp_path: Path, text: str, error: str) -> None:
    """Each where it is, with what was expected."""
    assert any(error in each for each in errors(tmp_path, text)), errors(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- rules\n", ["1: expected a mapping with the keys of a configuration, found a list"]),
        ("rules\n", ["1: expected a mapping with the keys of a configuration, found 'rules'"]),
        (f"global:\n{WEB}", ["1: expected a mapping with the keys of 'global', found nothing"]),
        ("rules:\n  web: {bind: x}\n", ["2: expected a list of rules, found a mapping"]),
        ("rules: [[a]]\n", ["1: expected a mapping with the keys of a rule, found a list"]),
        (f"{WEB}{WEB}", ["5: expected each key once, found 'rules'"]),
        (f'{WEB}    bind: "127.0.0.1:81"\n', ["5: expected each key once, found 'bind'"]),
        ("? [a, b]\n: c\n", ["1: expected a key of a configuration (global, rules), found 'a list'"]),
        (
            f"global: {{status: {{file: /run/x, fromat: text}}}}\n{WEB}",
            [
                "1: expected a key of 'status' (enabled, file, format, interval), found 'fromat' "
                "(did you mean 'format'?)"
            ],
        ),
        (f"global: {{status: {{enabled: true}}}}\n{WEB}", ["1: expected 'status' with 'file', found none"]),
        (
            f'{WEB}    access: {{dney: ["*"]}}\n',
            ["5: expected a key of 'access' (allow, deny), found 'dney' (did you mean 'deny'?)"],
        ),
        (
            f"{WEB}    load_balancing: {{algoritm: random}}\n",
            [
                "5: expected a key of 'load_balancing' (affinity_max_entries, affinity_ttl, algorithm, "
                "health_threshold, recovery_timeout), found 'algoritm' (did you mean 'algorithm'?)"
            ],
        ),
        (
            f"{WEB}    conect_timeout: 5\n",
            [
                "5: expected a key of a rule (fastfwd.conf(5) lists them), found 'conect_timeout' "
                "(did you mean 'connect_timeout'?)"
            ],
        ),
        (
            f"global: {{workrs: 5}}\n{WEB}",
            [
                "1: expected a key of 'global' (fastfwd.conf(5) lists them), found 'workrs' "
                "(did you mean 'workers'?)"
            ],
        ),
        (f"{WEB}    max_connections: [5]\n", ["5: expected a single value, found a list"]),
        (f"{WEB}    max_connections: {{a: 5}}\n", ["5: expected a single value, found a mapping"]),
        (f"{WEB}    max_connections:\n", ["5: expected a single value, found nothing"]),
        (f"{WEB}    max_connections: ~\n", ["5: expected a single value, found '~'"]),
        (
            f"{WEB}    timeout: true\n",
            ["5: expected after 'timeout:' a timeout in whole seconds, found 'true'"],
        ),
        (f"{WEB}    access: 10.*\n", ["5: expected a mapping with the keys of 'access', found '10.*'"]),
        (f"{WEB}    access: {{allow: }}\n", ["5: expected a single value, found nothing"]),
        (
            f"{WEB}    mode: 0660\n",
            ["2: expected 'mode' with a Unix socket to listen on only"],
        ),
        ("rules: [{name: a, bind: [], connect: 'b:1'}]\n", NOWHERE),
        (
            "rules: [{name: a, bind: '127.0.0.1:1', connect: []}]\n",
            ["1: expected at least one backend, found none"],
        ),
        ("rules: [{bind: '127.0.0.1:1', connect: 'b:1'}]\n", ["1: expected a rule with 'name', found none"]),
        ("rules: [{name: a, connect: 'b:1'}]\n", ["1: expected a rule with 'bind', found none"]),
        ("rules: [{name: a, bind: '127.0.0.1:1'}]\n", ["1: expected a rule with 'connect', found none"]),
        (
            "rules: [{name: a b, bind: '127.0.0.1:1', connect: 'b:1'}]\n",
            ["1: expected after 'name:' a name of letters, digits and '_.:-', found 'a b'"],
        ),
        (
            "rules: [{name: a, bind: '127.0.0.1:1/udp', connect: 'b:1/tcp'}]\n",
            ["1: expected '/udp' on both sides, found 'b:1/tcp'"],
        ),
        (
            'global: {log_file: "/var/log/a\\0b"}\nrules: []\n',
            ["1: expected a value of printable text, found '/var/log/a\\x00b'"],
        ),
        (
            f"{WEB}    sorry_file: missing\n",
            ["2: expected a file that can be read (No such file or directory), found 'missing'"],
        ),
        ("a: 1\n---\nb: 2\n", ["2: expected YAML: but found another document"]),
        ("rules: *x\n", ["1: expected YAML: found undefined alias 'x'"]),
        ("[" * 5000, ["0: expected YAML: it is nested too deeply"]),
        (
            "rules: !!python/object:os.system [x]\n",
            ["1: expected a mapping with the keys of a rule, found 'x'"],
        ),
    ],
)
def test_an_error_is_told_where_it_stands(tmp_path: Path, text: str, found: list[str]) -> None:
    """Every one with its line and what was expected, and none of them with a traceback."""
    assert errors(tmp_path, text) == found


@pytest.mark.parametrize("data", [b"rules: [\xff\xfe]\n", b"\x00", b"rules: \xef\xbf\xbe\n"])
def test_a_file_that_is_no_text(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no UTF-8, or no characters, are an error of the file."""
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(caught.value.problems[0].message).startswith("expected YAML: ")


def test_what_is_wrong_for_every_address_is_told_once(tmp_path: Path) -> None:
    """A rule may listen on several, and with both protocols."""
    text = "rules: [{name: a, bind: ['127.0.0.1:1', '127.0.0.1:1/udp'], connect: '192.0.2.300:1'}]\n"
    assert errors(tmp_path, text) == [
        "1: expected an IPv4 address of four numbers from 0 to 255, found '192.0.2.300'"
    ]


def test_a_warning_for_every_address_is_told_once(tmp_path: Path) -> None:
    """The same."""
    text = "rules: [{name: a, bind: ['127.0.0.1:1', '127.0.0.1:2'], connect: '192.0.2.3:1', check: 5}]\n"
    assert [each.message for each in loaded(tmp_path, text).warnings] == [
        "option 'check' means nothing with one backend"
    ]


def test_a_sorry_file(tmp_path: Path) -> None:
    """It is read, as in the other language."""
    (tmp_path / "sorry").write_bytes(b"421 later\r\n")
    assert loaded(tmp_path, f"{WEB}    sorry_file: sorry\n").forwards[0].sorry == b"421 later\r\n"


def test_a_value_may_hold_what_begins_a_comment_elsewhere(tmp_path: Path) -> None:
    """YAML has quotes for that."""
    config = loaded(tmp_path, f'global: {{log_file: "/var/log/a #b", pid_file: "/run/#c"}}\n{WEB}')
    assert (config.logfile, config.pidfile) == ("/var/log/a #b", "/run/#c")


def test_a_word_is_not_cut_where_a_comment_would_begin(tmp_path: Path) -> None:
    """`4#5` is no number."""
    [error] = errors(tmp_path, f'global: {{workers: "4#5"}}\n{WEB}')
    assert error == "1: expected 'auto' or a number from 1 to 1024, found '4#5'"


def test_an_unknown_word_is_an_error_that_is_not_skipped(tmp_path: Path) -> None:
    """It may be a misspelt `deny`."""
    path = tmp_path / "x.yaml"
    path.write_text(WEB + '    acess: {deny: ["*"]}\n')
    with pytest.raises(ConfigError):
        load(str(path), lenient=True)
