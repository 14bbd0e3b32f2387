"""The same configuration in YAML, as rinetd-uv has it -> Config.

Called by load for a file that ends in `.yaml` or `.yml`. The words are the directives' and the
options', with `_` for `-`, and they are read by the same functions: what is right or wrong in one
language is so in the other. Needs PyYAML (`fastfwd[yaml]`).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Final

from fastfwd.config.endpoint import Service, endpoint, unix
from fastfwd.config.forward import WEIGHT, assembled
from fastfwd.config.options import OPTIONS, read
from fastfwd.config.parse import Matching, Reader, ReadFile
from fastfwd.config.value import SWITCH
from fastfwd.config.wording import expected, meant, quote
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

NOT_HERE: Final = frozenset({"allow", "deny", "include", "logcommon", "logduration"})
"""Directives that have another form in YAML, or none."""

BALANCING: Final = {
    "algorithm": "balance",
    "health_threshold": "health-threshold",
    "recovery_timeout": "recovery-timeout",
    "affinity_ttl": "affinity-ttl",
    "affinity_max_entries": "affinity-max-entries",
}
"""Words of `load_balancing` -> options."""

SPELLINGS: Final = {"true": "on", "on": "on", "yes": "on", "false": "off", "off": "off", "no": "off"}
"""Truth values, as YAML 1.1 has them."""

BACKEND: Final = ("dest", "name", "weight", "dns_refresh", "src")
"""Words of a backend."""

ELSEWHERE: Final = frozenset({"name", *BALANCING.values()})
"""Options that are not simply words of a rule."""

REQUIRED: Final = ("name", "bind", "connect")
"""What a rule cannot do without."""

FEW: Final = 6
"""So many keys a message lists; of more the manual page has the list."""

Node = Any
"""yaml.nodes.Node"""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


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
    except RecursionError:
        raise ConfigError([Problem(Origin(file, 0), "expected YAML: it is nested too deeply")]) from None
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
    # What is wrong with a backend is so for each address that its rule listens on.
    return reader.config(), list(dict.fromkeys(reader.problems))


class _Document:
    """One pass over the nodes. Each value is read as the text that stands in the file."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def read(self, root: Node) -> None:
        for key, value in self.pairs(root, "a configuration", ("global", "rules")):
            if key == "global":
                self.settings(value)
            else:
                for rule in self.items(value, "a list of rules"):
                    self.rule(rule)

    def at(self, node: Node) -> None:
        self.reader.here = Origin(self.reader.file, node.start_mark.line + 1)

    def wrong(self, message: str) -> None:
        self.reader.wrong(message)

    def pairs(self, node: Node, what: str, known: Collection[str]) -> Iterator[tuple[str, Node]]:
        """The entries of a mapping, `what` it is, whose keys may be `known`; each is where the reader is
        then. A key may be a misspelt `deny`, so an unknown one is not skipped."""
        self.at(node)
        if node.id != "mapping":
            self.wrong(f"expected a mapping with the keys of {what}, found {_shape(node)}")
            return
        seen: set[str] = set()
        for key_node, value in node.value:
            self.at(key_node)
            key = str(key_node.value) if key_node.id == "scalar" else _shape(key_node)
            if key not in known:
                listed = ", ".join(sorted(known)) if len(known) <= FEW else "fastfwd.conf(5) lists them"
                self.reader.breach(expected(f"a key of {what} ({listed})", key) + meant(key, known))
            elif key in seen:
                self.wrong(expected("each key once", key))
            else:
                seen.add(key)
                yield key, value

    def items(self, node: Node, what: str) -> list[Node]:
        self.at(node)
        if node.id != "sequence":
            self.wrong(f"expected {what}, found {_shape(node)}")
            return []
        return list(node.value)

    def text(self, node: Node) -> str | None:
        """A scalar as it stands; None when an error was told."""
        self.at(node)
        if node.id != "scalar" or node.tag.endswith(":null"):
            self.wrong(f"expected a single value, found {_shape(node)}")
            return None
        if _UNPRINTABLE.search(node.value):
            self.wrong(expected("a value of printable text", node.value))
            return None
        return str(node.value)

    def texts(self, node: Node) -> list[str]:
        """A scalar, or a list of them."""
        return [text for _, text in self.places(node)]

    def places(self, node: Node) -> list[tuple[Node, str]]:
        """The same with where each stands."""
        return [(each, text) for each in _all(node) if (text := self.text(each)) is not None]

    def switch(self, node: Node) -> str | None:
        """A truth value, "on" or "off"."""
        word = self.text(node)
        if word is not None and word.lower() not in SPELLINGS:
            self.wrong(expected("true or false", word))
            return None
        return None if word is None else SPELLINGS[word.lower()]

    # -- global

    def settings(self, node: Node) -> None:
        directives = {word.replace("-", "_"): word for word in self.reader.directives if word not in NOT_HERE}
        directives |= RENAMED
        for key, value in self.pairs(node, "'global'", {*directives, *SWITCHES, "access", "status"}):
            if key == "access":
                self.access(value, self.reader.global_rules)
            elif key == "status":
                self.status(value)
            elif key in SWITCHES:
                if self.switch(value) == "on":
                    self.reader.directives[SWITCHES[key]]("")
            elif key == "dns_multi_ip_expand":
                if (on := self.switch(value)) is not None:
                    self.reader.give("dns-multi-ip-expand", on)
            elif (word := self.text(value)) is not None:
                self.reader.give(directives[key], word)

    def status(self, node: Node) -> None:
        words = {"file": "statusfile", "interval": "statusinterval", "format": "statusformat"}
        enabled, found = True, []
        for key, value in self.pairs(node, "'status'", (*words, "enabled")):
            if key == "enabled":
                enabled = self.switch(value) != "off"
            elif (word := self.text(value)) is not None:
                found.append((words[key], word, self.reader.here))
        self.at(node)
        if enabled and node.id == "mapping" and "statusfile" not in [directive for directive, _, _ in found]:
            self.wrong("expected 'status' with 'file', found none")
        for directive, word, here in found if enabled else []:
            self.reader.here = here
            self.reader.give(directive, word)

    def access(self, node: Node, scope: list[Any]) -> None:
        before, self.reader.scope = self.reader.scope, scope
        for key, value in self.pairs(node, "'access'", ("allow", "deny")):
            for item, pattern in self.places(value):
                self.at(item)
                self.reader.pattern(pattern, key == "allow")
        self.reader.scope = before

    # -- rules

    def rule(self, node: Node) -> None:
        self.at(node)
        start = self.reader.here
        told = len(self.reader.problems)
        plain = {name.replace("-", "_"): name for name in OPTIONS if name not in ELSEWHERE}
        known = {*plain, *REQUIRED, "access", "load_balancing"}
        parts: dict[str, Node] = {}
        found: dict[str, Any] = {}
        for key, value in self.pairs(node, "a rule", known):
            if key in plain:
                found |= self.option(plain[key], key, value)
            elif key == "load_balancing":
                for word, each in self.pairs(value, "'load_balancing'", BALANCING):
                    found |= self.option(BALANCING[word], word, each)
            else:
                parts[key] = value
                if key == "name":
                    found |= self.option(key, key, value)
        self.reader.here = start
        for key in REQUIRED:
            if node.id == "mapping" and key not in parts:
                self.wrong(f"expected a rule with {key!r}, found none")
        if len(self.reader.problems) > told:
            return
        binds = [self.end(each, text, "tcp") for each, text in self.places(parts["bind"])]
        if not binds:
            self.wrong("expected at least one address to listen on, found none")
        protocols = {each.protocol.value for each in binds}
        backends = {each: self.backends(parts["connect"], found["name"], each) for each in sorted(protocols)}
        self.reader.here = start
        rules: list[Any] = []
        if "access" in parts:
            self.access(parts["access"], rules)
            self.reader.here = start
        if len(self.reader.problems) > told:
            return
        forwards = []
        for listen in binds:
            ends = backends[listen.protocol.value]
            forward = assembled(
                listen, ends, start, found, sorry=self.reader.sorry, wrong=self.wrong, warn=self.reader.warn
            )
            forwards.append(forward)
        if len(self.reader.problems) == told and self.reader.unique(forwards[0]):
            self.reader.forwards += [(each, rules) for each in forwards]

    def option(self, name: str, key: str, node: Node) -> dict[str, Any]:
        """The field of Forward that the option `name` sets, which is called `key` here; none when an
        error was told."""
        if name in ("src", "accept-proxy"):
            word: str | None = ";".join(self.texts(node))
        elif OPTIONS[name].value is SWITCH:
            word = self.switch(node)
        else:
            word = self.text(node)
        return {} if word is None else read(name, word, f"{key}:", self.wrong, self.reader.warn)

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
        nodes = _all(node)
        for number, each in enumerate(nodes, 1):
            label = f"{name}-backend-{number}" if len(nodes) > 1 else None
            if each.id != "mapping":
                if (text := self.text(each)) is not None:
                    found.append(Backend(self.end(each, text, protocol), name=label))
                continue
            found.append(self.backend(each, label, protocol))
        if not nodes:
            self.wrong("expected at least one backend, found none")
        return found

    def backend(self, node: Node, label: str | None, protocol: str) -> Backend:
        place, share, own = Endpoint("", 0, Protocol(protocol)), 1, dict[str, Any]()
        without = True
        for key, value in self.pairs(node, "a backend", BACKEND):
            if key in ("src", "dns_refresh"):
                own |= self.option(key.replace("_", "-"), key, value)
            elif (text := self.text(value)) is None:
                continue
            elif key == "dest":
                place, without = self.end(value, text, protocol), False
            elif key == "name":
                label = text
            else:
                try:
                    share = WEIGHT.read(text)
                except ValueError:
                    self.wrong(WEIGHT.wrong(text))
        if without:
            self.at(node)
            self.wrong("expected a backend with 'dest', found none")
        return Backend(place, share, label, own.get("sources", ()), own.get("dns_refresh"))


def _all(node: Node) -> list[Node]:
    """What is in a list; or the node itself, for one thing may stand without a list around it."""
    return list(node.value) if node.id == "sequence" else [node]


def _shape(node: Node) -> str:
    """What a node is, for a message about what it should have been."""
    if node.id != "scalar":
        return "a mapping" if node.id == "mapping" else "a list"
    return quote(node.value) if node.value else "nothing"
