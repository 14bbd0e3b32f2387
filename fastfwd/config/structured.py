"""The same configuration in YAML, as rinetd-uv has it -> Config.

Called by load for a file that ends in `.yaml` or `.yml`. The words are the directives' and the
options', with `_` for `-`, and they are read by the same functions: what is right or wrong in one
language is so in the other. Needs PyYAML (`fastfwd[yaml]`).
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from fastfwd.config.endpoint import Service, endpoint, unix
from fastfwd.config.forward import assembled
from fastfwd.config.options import OPTIONS, options
from fastfwd.config.parse import Matching, Reader, ReadFile
from fastfwd.config.wording import expected
from fastfwd.model import UNIX, Backend, Config, ConfigError, Endpoint, Origin, Problem, Protocol

RENAMED: Final = {
    "log_file": "logfile",
    "pid_file": "pidfile",
    "log_format": "logformat",
    "buffer_size": "buffersize",
    "stats_log_interval": "statsloginterval",
}
"""Words of `global` that are not a directive with `_` for `-`."""

SWITCHES: Final = {"log_common": "logcommon", "log_duration": "logduration"}
"""Those that are on or off, and a directive without a value."""

BALANCING: Final = {
    "algorithm": "balance",
    "health_threshold": "health-threshold",
    "recovery_timeout": "recovery-timeout",
    "affinity_ttl": "affinity-ttl",
    "affinity_max_entries": "affinity-max-entries",
}
"""Words of `load_balancing` -> options."""

Node = Any
"""yaml.nodes.Node"""


def parse_yaml(
    data: bytes,
    file: str,
    *,
    read_file: ReadFile,
    matching: Matching,
    service: Service = socket.getservbyname,
) -> tuple[Config, list[Problem]]:
    """Read a configuration in YAML; see config/parse for arguments and results. Raises ConfigError when
    it is no YAML at all, or PyYAML is missing."""
    try:
        import yaml  # noqa: PLC0415  # an extra: whoever has no such file needs no parser of it
    except ImportError:
        text = "a configuration in YAML needs PyYAML: install fastfwd[yaml]"
        raise ConfigError([Problem(Origin(file, 0), text)]) from None
    try:
        root = yaml.compose(data, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = Origin(file, mark.line + 1 if mark else 0)
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError([Problem(where, f"expected YAML: {what}")]) from None
    reader = Reader(file, service, read_file, matching)
    reader.files.append(file)
    reader.settings = replace(reader.settings, dns_expand=True)  # rinetd-uv's default in YAML
    if root is not None:
        _Document(reader).read(root)
    return reader.config(), reader.problems


class _Document:
    """One pass over the nodes. Each value is read as the text that stands in the file."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def read(self, root: Node) -> None:
        for key, value in self.pairs(root, ("global", "rules")):
            if key == "global":
                self.settings(value)
            else:
                for rule in self.items(value):
                    self.rule(rule)

    def at(self, node: Node) -> None:
        self.reader.here = Origin(self.reader.file, node.start_mark.line + 1)

    def wrong(self, message: str) -> None:
        self.reader.wrong(message)

    def pairs(self, node: Node, known: Iterable[str]) -> Iterable[tuple[str, Node]]:
        """The entries of a mapping whose keys may be `known`; each is where the reader is then."""
        self.at(node)
        if node.id != "mapping":
            self.wrong(f"expected a mapping with some of {', '.join(sorted(known))}")
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            self.at(key_node)
            key = str(key_node.value)
            if key not in known:
                close = difflib.get_close_matches(key, list(known), 1, 0.6)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                self.reader.breach(expected(f"one of {', '.join(sorted(known))}", key) + hint)
            elif key in seen:
                self.wrong(expected("each key once", key))
            else:
                seen.add(key)
                yield key, value

    def items(self, node: Node) -> list[Node]:
        self.at(node)
        if node.id != "sequence":
            self.wrong("expected a list")
            return []
        return list(node.value)

    def text(self, node: Node) -> str | None:
        """A scalar as it stands; None when an error was told."""
        self.at(node)
        if node.id != "scalar" or node.tag.endswith(":null"):
            self.wrong("expected a single value")
            return None
        return str(node.value)

    def texts(self, node: Node) -> list[str]:
        """A scalar, or a list of them."""
        found = [self.text(each) for each in (self.items(node) if node.id == "sequence" else [node])]
        return [each for each in found if each is not None]

    def switch(self, node: Node) -> bool | None:
        word = self.text(node)
        if word is not None and word.lower() not in ("true", "false", "on", "off", "yes", "no"):
            self.wrong(expected("true or false", word))
            return None
        return None if word is None else word.lower() in ("true", "on", "yes")

    # -- global

    def settings(self, node: Node) -> None:
        directives = {word.replace("-", "_"): word for word in self.reader.directives if word not in NOT_HERE}
        directives |= {word: name for word, name in RENAMED.items() if name in self.reader.directives}
        known = {*directives, *SWITCHES, "access", "status"}
        for key, value in self.pairs(node, known):
            if key == "access":
                self.access(value, self.reader.global_rules)
            elif key == "status":
                self.status(value)
            elif key in SWITCHES:
                if self.switch(value):
                    self.reader.directives[SWITCHES[key]]("")
            elif key == "dns_multi_ip_expand":
                if (on := self.switch(value)) is not None:
                    self.reader.directives["dns-multi-ip-expand"](" on" if on else " off")
            elif (word := self.text(value)) is not None:
                self.reader.directives[directives[key]](f" {_quoted(word)}")

    def status(self, node: Node) -> None:
        words = {"file": "statusfile", "interval": "statusinterval", "format": "statusformat"}
        enabled, found = True, []
        for key, value in self.pairs(node, (*words, "enabled")):
            if key == "enabled":
                enabled = self.switch(value) is not False
            elif (word := self.text(value)) is not None:
                found.append((words[key], word, self.reader.here))
        for directive, word, here in found if enabled else []:
            self.reader.here = here
            self.reader.directives[directive](f" {_quoted(word)}")

    def access(self, node: Node, scope: list[Any]) -> None:
        before, self.reader.scope = self.reader.scope, scope
        for key, value in self.pairs(node, ("allow", "deny")):
            for item in self.items(value) if value.id == "sequence" else [value]:
                if (pattern := self.text(item)) is not None:
                    self.reader.access(f" {pattern}", key == "allow")
        self.reader.scope = before

    # -- rules

    def rule(self, node: Node) -> None:
        self.at(node)
        start = self.reader.here
        told = len(self.reader.problems)
        plain = {name.replace("-", "_"): name for name in ("src", *OPTIONS) if name not in BALANCING.values()}
        del plain["name"]
        known = {*plain, "name", "bind", "connect", "access", "load_balancing"}
        parts: dict[str, Node] = {}
        chosen: list[tuple[str, str]] = []
        for key, value in self.pairs(node, known):
            if key in plain:
                chosen += self.option(plain[key], value)
            elif key == "load_balancing":
                for word, each in self.pairs(value, BALANCING):
                    chosen += self.option(BALANCING[word], each)
            else:
                parts[key] = value
        self.reader.here = start
        for key in ("name", "bind", "connect"):
            if key not in parts:
                self.reader.wrong(f"expected a rule with {key!r}")
        if len(self.reader.problems) > told or not {"name", "bind", "connect"} <= set(parts):
            return
        name = self.text(parts["name"]) or ""
        chosen.append(("name", name))
        binds = [self.end(each, text, "tcp") for each, text in self.places(parts["bind"])]
        protocols = {each.protocol.value for each in binds}
        backends = {each: self.backends(parts["connect"], name, each) for each in sorted(protocols)}
        self.reader.here = start
        found = options(chosen, self.reader.wrong, self.reader.warn)
        found.pop("sorry_file", None)
        rules: list[Any] = []
        if "access" in parts:
            self.access(parts["access"], rules)
            self.reader.here = start
        if len(self.reader.problems) > told:
            return
        forwards = []
        for listen in binds:
            ends = backends[listen.protocol.value]
            forwards.append(assembled(listen, ends, start, found, self.reader.wrong, self.reader.warn))
        if len(self.reader.problems) == told and self.reader.unique(forwards[0]):
            self.reader.forwards += [(each, rules) for each in forwards]

    def option(self, name: str, node: Node) -> list[tuple[str, str]]:
        if name == "keepalive":
            on = self.switch(node)
            return [] if on is None else [(name, "on" if on else "off")]
        word = ";".join(self.texts(node)) if name == "src" else self.text(node)
        return [] if word is None else [(name, word)]

    def places(self, node: Node) -> list[tuple[Node, str]]:
        nodes = self.items(node) if node.id == "sequence" else [node]
        return [(each, text) for each in nodes if (text := self.text(each)) is not None]

    def end(self, node: Node, text: str, protocol: str) -> Endpoint:
        """`host:port`, `[host]:port`, with `/tcp` or `/udp`; `protocol` is meant without it."""
        self.at(node)
        if text.startswith(UNIX):
            return unix(text, self.reader.wrong)
        host, colon, port = text.rpartition(":")
        if not colon or (":" in host and not host.startswith("[")):
            self.wrong(expected("'host:port' (an IPv6 address in square brackets)", text))
            return Endpoint("", 0, Protocol(protocol))
        if "/" not in port:
            port = f"{port}/{protocol}"
        return endpoint(host, port, self.reader.service, self.reader.wrong, self.reader.warn)

    def backends(self, node: Node, name: str, protocol: str) -> list[Backend]:
        found = []
        nodes = self.items(node) if node.id == "sequence" else [node]
        for number, each in enumerate(nodes, 1):
            label = f"{name}-backend-{number}" if len(nodes) > 1 else None
            if each.id != "mapping":
                if (text := self.text(each)) is not None:
                    found.append(Backend(self.end(each, text, protocol), name=label))
                continue
            fields: dict[str, str] = {}
            for key, value in self.pairs(each, ("dest", "name", "weight", "dns_refresh", "src")):
                words = self.texts(value)
                if words:
                    fields[key] = ";".join(words)
            self.at(each)
            if "dest" not in fields:
                self.wrong("expected a backend with 'dest'")
                continue
            found.append(self.backend(each, fields, label, protocol))
        return found

    def backend(self, node: Node, fields: dict[str, str], label: str | None, protocol: str) -> Backend:
        weight = fields.get("weight", "1")
        if not weight.isascii() or not weight.isdigit() or not 1 <= int(weight[:9]) <= 100:
            self.wrong(expected("a weight from 1 to 100", weight))
            weight = "1"
        words = {"src": "src", "dns_refresh": "dns-refresh"}
        wanted = [(word, fields[key]) for key, word in words.items() if key in fields]
        own = options(wanted, self.reader.wrong, self.reader.warn)
        return Backend(
            self.end(node, fields["dest"], protocol),
            int(weight),
            fields.get("name", label),
            own.get("sources", ()),
            own.get("dns_refresh"),
        )


NOT_HERE: Final = frozenset({"allow", "deny", "include", "logcommon", "logduration"})
"""Directives that have another form in YAML, or none."""


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word
