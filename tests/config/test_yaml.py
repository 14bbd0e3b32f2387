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
            "3: expected a key of a rule (fastfwd(8) lists them), found 'bnd' (did you mean 'bind'?)",
        ),
        (WEB.replace('"127.0.0.1:80"', '"127.0.0.1"'), "3: expected 'host:port'"),
        (WEB.replace('"127.0.0.1:80"', '"::1:80"'), "3: expected 'host:port'"),
        (WEB.replace("8080", "80800"), "4: expected a port from 0 to 65535, found '80800'"),
        (WEB + "    timeout: soon\n", "5: expected a timeout in whole seconds, found 'soon'"),
        (WEB + "    keepalive: maybe\n", "5: expected true or false, found 'maybe'"),
        (WEB + "    load_balancing: {algorithm: best}\n", "5: expected one of 'first', "),
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


def test_an_unknown_word_is_an_error_that_is_not_skipped(tmp_path: Path) -> None:
    """It may be a misspelt `deny`."""
    path = tmp_path / "x.yaml"
    path.write_text(WEB + '    acess: {deny: ["*"]}\n')
    with pytest.raises(ConfigError):
        load(str(path), lenient=True)
