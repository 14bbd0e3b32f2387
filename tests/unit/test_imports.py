"""Who may know whom: docs/architecture.md's one-way rule, read off the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastfwd

ROOT = Path(fastfwd.__file__).parent

PARTS = (
    "__main__",
    "channel",
    "cli",
    "config",
    "doctor",
    "model",
    "observe",
    "relay",
    "resolver",
    "stunnel",
    "supervisor",
    "tls",
    "worker",
)

MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"config", "doctor", "observe", "supervisor", "worker"},
    "doctor": {"config", "observe", "relay", "supervisor", "worker"},
    "supervisor": {"config", "worker", "observe", "channel", "resolver"},
    "worker": {"relay", "observe", "channel", "tls"},
    "resolver": {"channel", "config", "worker"},
    "stunnel": {"config"},
    "config": {"tls"},
    "observe": {"channel"},
    "relay": set(),
    "channel": set(),
    "tls": set(),
    "model": set(),
}
"""Part of the program -> the other parts it may import, besides itself and `model`."""

WITHOUT_MODEL = {"model", "relay"}
"""Parts that import nothing of ours at all."""

MODULES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The part a source file belongs to; the package's own __init__ is part of none."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a source file imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "fastfwd")


def test_the_parts_are_known() -> None:
    """Every source file belongs to a part that the rule names."""
    assert {part(path) for path in MODULES} - {"__init__"} == set(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_imports_go_one_way(name: str) -> None:
    """A part imports only what the rule allows it."""
    allowed = MAY_IMPORT[name] | {name} | (set() if name in WITHOUT_MODEL else {"model"})
    found = {
        (str(path.relative_to(ROOT)), target)
        for path in MODULES
        if part(path) == name
        for target in imported(path)
        if target != "fastfwd.__version__"
    }
    assert not [(path, target) for path, target in found if target.split(".")[1] not in allowed]


def test_the_resolver_takes_only_what_it_needs() -> None:
    """Of config the resolver knows the lookup, of worker the dropping of rights."""
    ours = {".".join(name.split(".")[:3]) for name in imported(ROOT / "resolver.py")}
    assert ours - {"fastfwd.channel.Channel", "fastfwd.channel.Message"} == {
        "fastfwd.config.resolve",
        "fastfwd.worker.privileges",
    }


def test_only_the_command_line_exits() -> None:
    """sys.exit is called in cli and nowhere else."""
    calls = {path.name for path in MODULES if "sys.exit" in path.read_text()}
    assert calls == {"cli.py"}


@pytest.mark.parametrize("name", ["utils", "util", "common", "helpers", "helper", "errors", "misc", "base"])
def test_there_is_no_module_for_odds_and_ends(name: str) -> None:
    """A thing lives where it is used."""
    assert not [path for path in ROOT.rglob(f"{name}*") if path.stem == name]


def forbidden() -> list[str]:
    """The single words of the vocabulary's third column, without its remarks."""
    text = (Path(__file__).parents[2] / "docs" / "vocabulary.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    words = [word.strip() for row in rows[2:] for word in re.split(r"[,.]", row[2])]
    return [word for word in words if re.fullmatch(r"[a-z]+", word)]


def test_the_vocabulary_forbids_something() -> None:
    """The table is where this test looks for it."""
    assert {"acl", "upstream", "proxystate", "tunnel", "stats"} <= set(forbidden())


def names(path: Path) -> Iterator[str]:
    """What a source file calls its modules, classes, functions and attributes."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name


ORDINARY = {
    *("route", "rule", "service", "parent", "child", "thread", "index", "age", "get", "put", "master"),
    *("status", "result", "state", "context", "restart", "server", "link", "filter"),
}
"""Words that have an ordinary meaning besides the forbidden one: a service name of
/etc/services, the exit status, an access rule, a child process."""


def test_no_name_is_a_forbidden_word() -> None:
    """What has a word of its own is not called by another program's."""
    words = set(forbidden()) - ORDINARY
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in MODULES
        for name in names(path)
        if words & {word.lower() for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)}
    }
    assert not found
