"""Every word that rinetd lacks, in both languages: what is written means what the model says, whatever is
combined; what is mutated is an error with a line, or means something else, and never ends in a traceback.

An ordinary run tries the same forty files a test; FASTFWD_FUZZ_EXAMPLES=20000 tries that many new ones.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfwd.config.check import check
from fastfwd.config.parse import parse
from fastfwd.config.structured import parse_yaml
from fastfwd.model import Config, ConfigError, Problem
from tests.config import grammar
from tests.config.golden import loopback

EXAMPLES = int(os.environ.get("FASTFWD_FUZZ_EXAMPLES", "0"))

pytestmark = pytest.mark.timeout(120 + EXAMPLES)

fuzz = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def content(path: str) -> bytes:
    """The files of patterns that exist, and `own`, which is to be included."""
    if path in grammar.LISTS:
        return "\n".join(grammar.LISTS[path]).encode()
    if path == "own":
        return b"deny 10.99.*\n"
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def matching(pattern: str) -> list[str]:
    """`own`, by its name or by a pattern."""
    return ["own"] if pattern in ("own", "ow*") else []


def of_conf(data: bytes) -> tuple[Config, list[Problem]]:
    """What rinetd's language makes of it."""
    return parse(data, "f", read_file=content, matching=matching)


def of_yaml(data: bytes) -> tuple[Config, list[Problem]]:
    """What YAML makes of it."""
    return parse_yaml(data, "f", read_file=content, matching=matching)


def bare(config: Config) -> Config:
    """Without where things were written, and what was said about them."""
    forwards = tuple(replace(each, origin=grammar.NOWHERE) for each in config.forwards)
    return replace(config, forwards=forwards, origins={}, warnings=(), files=())


def labelled(config: Config) -> Config:
    """As YAML has it: with the names that are optional elsewhere, allow rules before deny rules; and
    a status file's words only with that file."""
    forwards = tuple(
        replace(
            each,
            name=each.label.translate(NAMES),
            rules=tuple(sorted(each.rules, key=lambda rule: not rule.allow)),
            backends=tuple(
                replace(one, name=one.label if len(each.backends) > 1 else None) for one in each.backends
            ),
        )
        for each in config.forwards
    )
    rules = tuple(sorted(config.rules, key=lambda rule: not rule.allow))
    if config.statusfile is None:
        config = replace(config, status_interval=30, status_text=False)
    return replace(config, forwards=forwards, rules=rules)


NAMES = str.maketrans("/[]@", "____")
"""What a forward's name may not hold and its listener does."""


def named(config: Config) -> Config:
    """With names that YAML can have, since there each rule must have one."""
    return replace(
        config,
        forwards=tuple(replace(each, name=each.label.translate(NAMES)) for each in config.forwards),
    )


@fuzz
@given(config=grammar.configs())
def test_what_lines_say(config: Config) -> None:
    """A model, written as lines, is that model again."""
    found, problems = of_conf(grammar.conf(config).encode())
    assert problems == []
    assert bare(found) == config


@fuzz
@given(config=grammar.configs().map(named))
def test_what_yaml_says(config: Config) -> None:
    """A model, written as YAML, is that model again, and so the same as the lines."""
    found, problems = of_yaml(grammar.yaml(config).encode())
    assert problems == []
    assert bare(found) == labelled(config)


@fuzz
@given(config=grammar.configs())
def test_nothing_is_in_the_way_of_anything(config: Config) -> None:
    """Forwards of other ports do not conflict; the only thing that may is to dial a listener."""
    found = check(config, addresses={}, is_local=loopback)
    assert [each for each in found if "expected a target elsewhere" not in each.message] == []


@fuzz
@given(config=grammar.configs(), which=st.sampled_from(sorted(grammar.LISTS)), allow=st.booleans())
def test_a_list_is_what_is_in_it(config: Config, which: str, allow: bool) -> None:
    """`@file` anywhere means the patterns of that file, in its place."""
    word = "allow" if allow else "deny"
    listed, _ = of_conf(f"{grammar.conf(config)}{word} @{which}\n".encode())
    spelled = "".join(f"{word} {pattern}\n" for pattern in grammar.LISTS[which])
    written, problems = of_conf(f"{grammar.conf(config)}{spelled}".encode())
    assert problems == []
    assert bare(listed) == bare(written)


@fuzz
@given(config=grammar.configs(), pattern=st.sampled_from(["own", "ow*", '"own"']))
def test_an_included_file_is_what_is_in_it(config: Config, pattern: str) -> None:
    """`include` anywhere means the lines of that file, in its place."""
    included, problems = of_conf(f"{grammar.conf(config)}include {pattern}\n".encode())
    written, _ = of_conf(grammar.conf(config).encode() + content("own"))
    assert problems == []
    assert bare(included) == bare(written)


STRANGE = [bytes([each]) for each in b"\0\r\n\t #;,[]{}=/*@:-_.'\"&!|>%+?09afx\xff\xa0"]


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Up to three slips: something dropped, doubled, put in, or a line moved."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 6))
        cut = data[start:end]
        data = (
            data[:start] + draw(st.sampled_from([b"", cut * 2, *STRANGE, b"unix:", b"*0", b"-"])) + data[end:]
        )
    return data


def judged(found: Config, problems: list[Problem]) -> None:
    """Every error has a place and is one line that can be printed."""
    for each in problems + check(found, addresses={}, is_local=loopback):
        assert each.origin.line > 0
        assert each.message.isprintable()


@fuzz
@given(data=grammar.configs().flatmap(lambda config: mutated(grammar.conf(config).encode())))
def test_slips_in_lines(data: bytes) -> None:
    """Whatever becomes of a good file."""
    judged(*of_conf(data))


@fuzz
@given(data=grammar.configs().map(named).flatmap(lambda config: mutated(grammar.yaml(config).encode())))
def test_slips_in_yaml(data: bytes) -> None:
    """Whatever becomes of a good file; it may be no YAML any more."""
    try:
        config, problems = of_yaml(data)
    except ConfigError as error:
        config, problems = Config("f"), [each for each in error.problems if each.origin.line]
    judged(config, problems)
