"""Every word in both languages: the same model; and what rinetd-uv refuses is refused here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastfwd.config.directives import FILES, LIMITS, SETTINGS, WITHOUT_MEANING
from fastfwd.config.encryption import ACCEPT, BOTH, CONNECT
from fastfwd.config.load import load
from fastfwd.config.options import OPTIONS
from fastfwd.model import Config, ConfigError, Forward, Limits, Origin

HERE = Path(__file__).parent / "same"
CONF, YAML = HERE / "rinetd.conf", HERE / "rinetd-uv.yaml"
NOWHERE = Origin("", 0)


@pytest.fixture(scope="module")
def lines() -> Config:
    """What rinetd's language says."""
    return load(str(CONF))


def bare(config: Config) -> Config:
    """Without where it was written: files, lines, and warnings about them; of a backend, its label."""
    forwards = tuple(
        replace(
            each,
            origin=NOWHERE,
            backends=tuple(
                replace(one, name=one.label if len(each.backends) > 1 else None) for one in each.backends
            ),
        )
        for each in config.forwards
    )
    return replace(config, file="", files=(), origins={}, warnings=(), forwards=forwards)


def test_the_same_in_both_languages(lines: Config) -> None:
    """Word for word."""
    assert bare(load(str(YAML))) == bare(lines)


def test_the_same_warnings(lines: Config) -> None:
    """What has no meaning here has none in either."""
    assert sorted(each.message for each in load(str(YAML)).warnings) == sorted(
        each.message for each in lines.warnings
    )


def test_every_directive_is_there(lines: Config) -> None:
    """The example is whole. `pidfile` goes by rinetd's word; `logcommon` is a `logformat`."""
    assert set(lines.origins) == {*SETTINGS, *LIMITS, *FILES, *WITHOUT_MEANING, "logduration", "metrics"} - {
        "pidfile"
    }


def _said(many: Iterable[object], kind: type, names: Iterable[str]) -> set[str]:
    default = {each.name: each.default for each in fields(kind)}
    return {name for one in many for name in names if getattr(one, name) != default[name]}


def test_every_limit_is_another_than_by_default(lines: Config) -> None:
    """Otherwise a word that did nothing would not be seen."""
    names = {setting.field for setting in LIMITS.values()}
    assert _said([lines.limits], Limits, names) == names


def test_every_setting_is_another_than_by_default(lines: Config) -> None:
    """The same."""
    names = {setting.field for setting in SETTINGS.values()} | {*FILES.values(), "metrics", "logduration"}
    assert _said([lines], Config, names) == names


def test_every_option_is_another_than_by_default(lines: Config) -> None:
    """The same; two of them end in the backends, and a file is its content. (TLS has tests of its own,
    for a key is nothing that could lie here.)"""
    names = {option.field for option in OPTIONS.values()} - {"dns_refresh", "sources", "sorry_file"} | {
        "sorry"
    }
    names -= {*ACCEPT, *CONNECT, *BOTH, "tls_accept", "tls_connect", "handshake_timeout"} | {
        "proxy_from",
        "send_proxy",
        "transparent",
    }
    assert _said(lines.forwards, Forward, names) == names
    dns = next(each for each in lines.forwards if each.label == "dns")
    assert dns.backends[0].dns_refresh == 60
    assert dns.backends[0].sources == (*(f"10.1.1.{each}" for each in range(8, 12)), "10.1.1.99")


# What rinetd-uv documents as an error, in one language or in both.

RULE = {"name": "web", "bind": "127.0.0.1:80", "connect": "192.0.2.1:8080"}


def refused(path: Path, text: str) -> None:
    """Nothing but errors with a file and a line."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert all(each.origin.line for each in caught.value.problems)
    assert all(each.message.startswith("expected ") for each in caught.value.problems)


@pytest.mark.parametrize(
    "text",
    [
        "buffersize 1023",
        "buffersize 1048577",
        "pool-min-free 10001",
        "pool-max-free 0",
        "pool-max-free 100001",
        "pool-trim-delay 99",
        "pool-trim-delay 300001",
        "dns-refresh -1",
        "dns-multi-ip-expand maybe",
        "dns-multi-ip-proto ipv5",
        "connect-timeout -1",
        "listen-backlog 0",
        "listen-backlog 65536",
        "max-udp-connections 0",
        "statusformat xml",
        "statusinterval 0",
        "statsloginterval -1",
        "include rinetd.conf",
        "127.0.0.1 1 192.0.2.1 1/udp",
        "127.0.0.1 1/udp 192.0.2.1 1",
        "127.0.0.1 1 192.0.2.1 1\n127.0.0.1 1 192.0.2.2 1",
        "unix:/run/x 192.0.2.1 1\nunix:/run/x 192.0.2.2 1",
        "unix:run/x 192.0.2.1 1",
        "unix:/run/x 192.0.2.1 1/udp",
        "127.0.0.1 1 192.0.2.1 1 [timeout=-1]",
        "127.0.0.1 1 192.0.2.1 1 [keepalive=maybe]",
        "127.0.0.1 1 192.0.2.1 1 [connect-timeout=soon]",
        "unix:/run/x 192.0.2.1 1 [mode=0999]",
    ],
)
def test_errors_of_its_lines(tmp_path: Path, text: str) -> None:
    """Values out of their range, both protocols on a line, a listener twice, a circle."""
    refused(tmp_path / "rinetd.conf", f"{text}\n")


@pytest.mark.parametrize(
    "change",
    [
        "name:",
        "bind:",
        "connect:",
        "bind: 127.0.0.1:80/udp\n    connect: 192.0.2.1:80/tcp",
        "bind: [127.0.0.1:80, 127.0.0.1:80]",
        "bind: unix:run/x",
        "bind: 127.0.0.1",
        "bind: '::1:80'",
        "connect: [{name: a}]",
        "connect: [{dest: 192.0.2.1:80, weight: 0}]",
        "connect: [{dest: 192.0.2.1:80, weight: 101}]",
        "connect: [{dest: 192.0.2.1:80, name: a}, {dest: 192.0.2.2:80, name: a}]",
        "timeout: -1",
        "keepalive: maybe",
        "connect_timeout: -1",
        "mode: '0999'",
        "access: {allow: [example.org]}",
        "load_balancing: {algorithm: best}",
        "load_balancing: {health_threshold: 0}",
        "load_balancing: {health_threshold: 101}",
        "load_balancing: {recovery_timeout: 0}",
        "load_balancing: {affinity_ttl: -1}",
        "load_balancing: {affinity_max_entries: 99}",
        "load_balancing: {affinity_max_entries: 10000001}",
    ],
)
def test_errors_of_its_yaml(tmp_path: Path, change: str) -> None:
    """A rule with something left out, or with a value out of its range."""
    rule = {key: f"{key}: {value}" for key, value in RULE.items()}
    rule |= {line.strip().partition(":")[0]: line.strip() for line in change.splitlines()}
    text = "".join(f"    {line}\n" for line in rule.values()).replace("    ", "  - ", 1)
    refused(tmp_path / "rinetd.yaml", f"rules:\n{text}")


def test_two_rules_of_one_name(tmp_path: Path) -> None:
    """A name is what figures go by."""
    rule = "  - {{name: web, bind: '127.0.0.1:{0}', connect: '192.0.2.1:80'}}\n"
    refused(tmp_path / "rinetd.yaml", f"rules:\n{rule.format(1)}{rule.format(2)}")
