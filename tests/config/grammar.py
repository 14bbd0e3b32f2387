"""Configurations made by hypothesis, as the model, and both languages that say the same.

A strategy makes Forwards and Configs; `conf` and `yaml` spell one as a file. What is parsed from that must be
the model again: that is the whole test, and no second parser is needed for it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from fastfwd.config.value import MOST
from fastfwd.model import (
    AccessRule,
    Backend,
    Balance,
    Config,
    Endpoint,
    Forward,
    Limits,
    LogFormat,
    MetricsAddress,
    Origin,
    Protocol,
    Rate,
)

NOWHERE = Origin("f", 0)
LISTS: Mapping[str, tuple[str, ...]] = {"scanners": ("192.0.2.0/24", "10.66.*"), "us": ("2001:db8::1",)}
"""The files of patterns that there are."""

Draw = Callable[[st.SearchStrategy[Any]], Any]

_host4 = st.builds("10.{}.{}.{}".format, *[st.integers(0, 255)] * 3)
_host6 = st.builds("2001:db8::{:x}".format, st.integers(1, 0xFFFF))
_name = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True)
_label = st.from_regex(r"[A-Za-z0-9_.:-]{1,12}", fullmatch=True)
_path = st.builds("/run/{}".format, st.from_regex(r"[a-zA-Z0-9_.]{1,12}", fullmatch=True))
_abstract = st.builds("@{}".format, st.from_regex(r"[a-z0-9_.]{1,12}", fullmatch=True))
_unix = st.builds("unix:{}".format, st.one_of(_path, _abstract))
_time = st.integers(1, 100_000)
_rate = st.builds(Rate, st.integers(1, 9_999_999), st.sampled_from([1, 60, 3600]))

_patterns = st.one_of(
    st.builds("10.{}.*".format, st.integers(0, 255)),
    st.builds("10.{}.?.{}".format, st.integers(0, 255), st.integers(0, 255)),
    st.builds("10.{}.0.0/{}".format, st.integers(0, 255), st.integers(16, 32)),
    st.builds("2001:db8:{:x}::/{}".format, st.integers(1, 0xFFFF), st.integers(48, 128)),
    _host4,
    _host6,
)
_rules = st.lists(st.builds(AccessRule, st.booleans(), _patterns), max_size=3).map(tuple)


def _maybe(strategy: st.SearchStrategy[Any], default: object = None) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(default), strategy)


@st.composite
def _sources(draw: st.DrawFn, family: int) -> tuple[str, ...]:
    if family == socket.AF_UNIX:
        return ()
    address = _host6 if family == socket.AF_INET6 else _host4
    return tuple(draw(st.lists(address, max_size=3)))


@st.composite
def forwards(draw: st.DrawFn, number: int) -> Forward:
    """One whose ports are those of `number` and no other's; every option may be there."""
    protocol = draw(st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP]))
    tcp = protocol is Protocol.TCP
    first = 10_000 + 100 * number
    span = draw(st.sampled_from([None, None, None, 1, 9]))
    listen = Endpoint(
        draw(st.one_of(_host4, _host6)), first, protocol, None if span is None else first + span
    )
    kind = draw(st.sampled_from(["one", "several", "original" if tcp else "one", "unix" if tcp else "one"]))
    if kind == "unix":
        listen = Endpoint(f"unix:/run/{number}.sock", 0, protocol)
        span = None
    if kind == "original":
        listen, span = replace(listen, last=None), None
    family = draw(st.sampled_from([socket.AF_INET, socket.AF_INET6]))
    hosts = draw(
        st.lists(
            st.one_of(_host6 if family == socket.AF_INET6 else _host4, _name),
            min_size=2 if kind == "several" else 1,
            max_size=4 if kind == "several" else 1,
            unique=True,
        )
    )
    if kind == "unix":
        hosts = [draw(_unix.filter(lambda host: host != listen.host))]
    backends = []
    shared = draw(st.integers(1, 60_000))
    refresh = draw(_maybe(_time))
    sources = draw(_sources(socket.AF_UNIX if kind == "unix" else family))
    for host in hosts:
        port = 0 if kind == "original" or host.startswith("unix:") else shared
        last = None if span is None or not port or draw(st.booleans()) else port + span
        weight = draw(st.integers(1, 100)) if kind == "several" else 1
        backends.append(Backend(Endpoint(host, port, protocol, last), weight, None, sources, refresh))
    options: dict[str, Any] = {
        "timeout": draw(st.integers(1, 2**31 - 1)),
        "name": f"{draw(_label)}-{number}" if draw(st.booleans()) else None,
        "max_connections": draw(_maybe(st.integers(1, MOST))),
        "connection_rate": draw(_maybe(_rate)),
        "client_rate": draw(_maybe(_rate)),
        "connect_timeout": draw(_maybe(_time)),
        "keepalive": draw(st.booleans()),
        "device": draw(_maybe(st.from_regex(r"[a-z]{1,4}[0-9.]{1,4}", fullmatch=True))),
        "mark": draw(_maybe(st.integers(1, 2**32 - 1))),
        "dscp": draw(_maybe(st.integers(0, 63))),
        "freebind": draw(st.booleans()),
        "original_port": kind == "original",
    }
    if tcp:
        options["max_rate"] = draw(_maybe(st.integers(1, 999_999_999)))
    if kind == "unix":
        options["mode"] = draw(st.sampled_from([0o600, 0o660, 0o666, 0o777, 0]))
    if kind == "several":
        options |= {
            "balance": draw(st.sampled_from(list(Balance))),
            "health_threshold": draw(st.integers(1, 100)),
            "recovery_timeout": draw(_time),
            "affinity_ttl": draw(_maybe(st.integers(0, 100_000))),
            "affinity_entries": draw(st.integers(100, 10_000_000)),
            "check_interval": draw(_maybe(_time)) if tcp else None,
        }
    return Forward(listen, tuple(backends), NOWHERE, rules=draw(_rules), **options)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any of the directives, and up to four forwards that are in nobody's way."""
    many = draw(st.integers(0, 4))
    return Config(
        "f",
        forwards=tuple(draw(forwards(number)) for number in range(many)),
        rules=draw(_rules),
        logfile=draw(_maybe(_path)),
        logformat=draw(st.sampled_from(list(LogFormat))),
        logduration=draw(st.booleans()),
        pidfile=draw(_maybe(_path)),
        workers=draw(_maybe(st.integers(1, 1024))),
        user=draw(_maybe(_name)),
        group=draw(_maybe(_name)),
        metrics=draw(
            _maybe(
                st.one_of(
                    st.builds(MetricsAddress, st.one_of(_host4, _host6), st.integers(0, 65535)),
                    _path.map(lambda path: MetricsAddress(path=path)),
                )
            )
        ),
        limits=Limits(
            draw(_maybe(st.integers(1, MOST))),
            draw(_maybe(st.integers(1, MOST))),
            draw(_time),
            draw(_maybe(_time)),
            draw(_maybe(_time)),
            draw(st.integers(1, MOST)),
        ),
        dns_refresh=draw(st.integers(0, 100_000)),
        dns_family=draw(st.sampled_from([None, socket.AF_INET, socket.AF_INET6])),
        dns_expand=draw(st.booleans()),
        backlog=draw(_maybe(st.integers(1, 65535))),
        statusfile=draw(_maybe(_path)),
        status_interval=draw(_time),
        status_text=draw(st.booleans()),
        stats_interval=draw(st.integers(0, 100_000)),
    )


# What both languages have in common: a word and its value.


def _rate_text(rate: Rate) -> str:
    return f"{rate.count}/{ {1: 's', 60: 'm', 3600: 'h'}[rate.seconds] }"


def _on(switch: bool) -> str:
    return "on" if switch else "off"


def options(forward: Forward) -> dict[str, str]:
    """Every option that is not what it is by default, and some that are."""
    first = forward.backends[0]
    found: dict[str, object] = {
        "timeout": forward.timeout,
        "name": forward.name,
        "max-connections": forward.max_connections,
        "connection-rate": forward.connection_rate and _rate_text(forward.connection_rate),
        "client-rate": forward.client_rate and _rate_text(forward.client_rate),
        "max-rate": forward.max_rate,
        "port": "original" if forward.original_port else None,
        "connect-timeout": forward.connect_timeout,
        "dns-refresh": first.dns_refresh,
        "keepalive": _on(forward.keepalive),
        "device": forward.device,
        "mark": forward.mark,
        "dscp": forward.dscp,
        "freebind": "on" if forward.freebind else None,
        "mode": f"{forward.mode:04o}" if forward.listen.unix else None,
        "check": forward.check_interval,
        "src": ";".join(first.sources) or None,
    }
    if len(forward.backends) > 1:
        found |= {
            "balance": forward.balance.value,
            "health-threshold": forward.health_threshold,
            "recovery-timeout": forward.recovery_timeout,
            "affinity-ttl": forward.affinity_ttl,
            "affinity-max-entries": forward.affinity_entries,
        }
    return {key: str(value) for key, value in found.items() if value is not None}


def directives(config: Config) -> dict[str, str]:
    """Every directive with a value."""
    families = {None: "any", socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
    limits = config.limits
    found: dict[str, object] = {
        "logfile": config.logfile,
        "logformat": config.logformat.value,
        "pidfile": config.pidfile,
        "workers": "auto" if config.workers is None else config.workers,
        "user": config.user,
        "group": config.group,
        "metrics": config.metrics,
        "max-connections": limits.connections,
        "max-connections-per-client": limits.connections_per_client,
        "max-udp-connections": limits.udp_connections,
        "connect-timeout": limits.connect_timeout,
        "idle-timeout": limits.idle_timeout,
        "half-close-timeout": limits.half_close_timeout,
        "dns-refresh": config.dns_refresh,
        "dns-multi-ip-proto": families[config.dns_family],
        "dns-multi-ip-expand": _on(config.dns_expand),
        "listen-backlog": config.backlog,
        "statusfile": config.statusfile,
        "statusinterval": config.status_interval,
        "statusformat": "text" if config.status_text else "json",
        "statsloginterval": config.stats_interval,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


# rinetd's language.


def conf(config: Config) -> str:
    """`config` as lines."""
    lines = [_rule(rule) for rule in config.rules]
    lines += [f"{word} {value}" for word, value in directives(config).items()]
    lines += ["logduration"] * config.logduration
    for forward in config.forwards:
        lines += [_line(forward), *(_rule(rule) for rule in forward.rules)]
    return "".join(f"{line}\n" for line in lines)


def _rule(rule: AccessRule) -> str:
    return f"{'allow' if rule.allow else 'deny'} {rule.pattern}"


def _ports(endpoint: Endpoint) -> str:
    last = "" if endpoint.last is None else f"-{endpoint.last}"
    return f"{endpoint.port}{last}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("unix:") else host


def _line(forward: Forward) -> str:
    listen, first, suffix = forward.listen, forward.backends[0].endpoint, ""
    if listen.protocol is Protocol.UDP:
        suffix = "/udp"
    left = listen.host if listen.unix else f"{listen.host} {_ports(listen)}{suffix}"
    if len(forward.backends) == 1:
        right = first.host if first.unix else f"{first.host} {_ports(first)}{suffix}"
    else:
        targets = (
            f"{_bracketed(each.endpoint.host)}:{_ports(each.endpoint)}*{each.weight}"
            for each in forward.backends
        )
        right = f"{','.join(targets)} 1{suffix}"
    inside = ", ".join(f"{key}={value}" for key, value in options(forward).items())
    return f"{left} {right} [{inside}]"


# YAML.


def yaml(config: Config) -> str:
    """`config` as YAML; JSON is a part of that language."""
    renamed = {
        **{"logfile": "log_file", "pidfile": "pid_file", "logformat": "log_format"},
        "statsloginterval": "stats_log_interval",
    }
    words = directives(config)
    status = {"enabled": config.statusfile is not None}
    found: dict[str, Any] = {
        renamed.get(word, word.replace("-", "_")): value
        for word, value in words.items()
        if not word.startswith("status")
    }
    if config.statusfile is not None:
        found["status"] = status | {
            "file": config.statusfile,
            "interval": config.status_interval,
            "format": words["statusformat"],
        }
    found |= {"log_duration": config.logduration, "access": _access(config.rules)}
    return json.dumps({"global": found, "rules": [_rule_of(each) for each in config.forwards]}, indent=1)


def _access(rules: tuple[AccessRule, ...]) -> dict[str, list[str]]:
    return {
        word: [rule.pattern for rule in rules if rule.allow is allow]
        for word, allow in (("allow", True), ("deny", False))
    }


def _rule_of(forward: Forward) -> dict[str, Any]:
    balancing = {
        "balance": "algorithm",
        **{key: key.replace("-", "_") for key in ("health-threshold", "recovery-timeout")},
        **{key: key.replace("-", "_") for key in ("affinity-ttl", "affinity-max-entries")},
    }
    words = options(forward)
    words.pop("name", None)
    rule: dict[str, Any] = {
        word.replace("-", "_"): value for word, value in words.items() if word not in balancing
    }
    rule |= {"name": forward.label, "bind": str(forward.listen), "access": _access(forward.rules)}
    rule["load_balancing"] = {balancing[word]: value for word, value in words.items() if word in balancing}
    if len(forward.backends) == 1:
        rule["connect"] = str(forward.target)
    else:
        rule["connect"] = [
            {"dest": str(each.endpoint), "weight": each.weight, "name": each.label}
            for each in forward.backends
        ]
    return rule
