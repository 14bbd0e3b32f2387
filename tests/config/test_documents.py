"""The reference, and the tables that the program reads by, of which docs/reference.py makes its own.

Every word that a configuration may have is in these tables, and nothing else is; the documents have what
they say; the examples are right.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastfwd.config.directives import DIRECTIVES, GUARDS
from fastfwd.config.directives import GROUPS as DIRECTIVES_BY_GROUP
from fastfwd.config.options import FLAGS, OPTIONS
from fastfwd.config.options import GROUPS as OPTIONS_BY_GROUP
from fastfwd.config.parse import Reader, parse
from fastfwd.config.structured import BACKEND, BALANCING, RENAMED, SWITCHES, parse_yaml

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "configuration.md").read_text("utf-8")
COMMAND = (DOCS / "command.md").read_text("utf-8")


def test_the_tables_are_made_of_the_programs_own() -> None:
    """Nobody has typed a default or a range, and nobody has forgotten `make man`."""
    done = subprocess.run(
        [sys.executable, str(DOCS / "reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_group_is_in_the_reference_once() -> None:
    """What has no mark would be in no table."""
    marks = re.findall(r"(?m)^<!-- (options|directives): (\w+) -->$", REFERENCE)
    assert sorted(marks) == sorted(
        [("options", group) for group in OPTIONS_BY_GROUP]
        + [("directives", group) for group in DIRECTIVES_BY_GROUP]
    )


def test_no_word_is_in_two_groups() -> None:
    """One of them would be lost."""
    assert len(OPTIONS) == sum(map(len, OPTIONS_BY_GROUP.values()))
    assert len(DIRECTIVES) == sum(map(len, DIRECTIVES_BY_GROUP.values()))


def test_a_directive_is_what_the_table_has() -> None:
    """The parser knows each of the words, and no other."""
    reader = Reader("f", lambda name, protocol: 0, lambda path: b"", lambda pattern: [])
    assert reader.directives.keys() == DIRECTIVES.keys()


@pytest.mark.parametrize("word", DIRECTIVES)
def test_a_directive_is_taken_for_one(word: str) -> None:
    """A line with nothing but its word is no forward and no slip."""
    _, problems = parse(word.encode(), "f")
    assert not [each for each in problems if "a forward" in each.message]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_taken_for_one(name: str) -> None:
    """What is wrong with it is its value, or its company."""
    _, problems = parse(f"0.0.0.0 80 192.0.2.1 80 [{name}=:]".encode(), "f")
    assert not [each for each in problems if "one of the options" in each.message]


def test_another_word_is_neither() -> None:
    """So the tests above can fail."""
    _, problems = parse(b"colour\n0.0.0.0 80 192.0.2.1 80 [colour=:]", "f")
    assert ["a forward" in each.message for each in problems] == [True, False]
    assert "one of the options" in problems[1].message


@pytest.mark.parametrize("word", [*OPTIONS, *DIRECTIVES])
def test_what_is_said_of_a_word_has_its_range(word: str) -> None:
    """From the least to the most, where it does anything; or each of the words that its value may be."""
    for each in (OPTIONS.get(word), DIRECTIVES.get(word)):
        if each is None or not each.field:
            continue
        if isinstance(each.effect, dict):
            assert "|".join(each.effect) == each.value.form
        else:
            assert ("{bounds}" in each.effect) == bool(each.value.bounds)
            assert ("0" in each.effect) >= ("or 0 for" in each.value.what)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_an_option(name: str) -> None:
    """Of on and off."""
    assert OPTIONS[name].value.form == "on|off"


@pytest.mark.parametrize(
    "key", [*RENAMED, *SWITCHES, *BALANCING, *BACKEND, "load_balancing", "access", "status"]
)
def test_every_key_of_yaml_is_named(key: str) -> None:
    """Those that are not simply a word with `_` for `-`."""
    assert re.search(rf"\b{key}\b", REFERENCE[REFERENCE.index("## YAML") :])


@pytest.mark.parametrize("word", sorted(GUARDS))
def test_what_a_lenient_start_does_not_skip(word: str) -> None:
    """Both documents say it where they explain --lenient."""
    assert f"`{word}`" in REFERENCE[REFERENCE.index("--lenient") :].partition("\n\n")[0]
    assert f"`{word}`" in COMMAND[COMMAND.index("| `--lenient`") :].partition("\n")[0]


def blocks(text: str) -> list[str]:
    """The indented examples of a document."""
    found = re.findall(r"(?m)(?:^    .*\n(?:\n(?=    ))?)+", text)
    return [re.sub(r"(?m)^    ", "", each) for each in found]


LANGUAGE, YAML = REFERENCE.partition("## YAML")[::2]
OTHERS = re.compile(r"(?m)^(?:fastfwd|nft|bindaddress).*\n")
"""Commands, and lines that are no examples."""
EXAMPLES = [lines for each in blocks(LANGUAGE) if (lines := OTHERS.sub("", each).strip())]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_right(example: str) -> None:
    """It can be copied as it stands."""
    _, problems = parse(example.encode(), "f", read_file=lambda _: b"10.*\n")
    assert problems == []


def test_there_are_examples() -> None:
    """They were found: an empty parametrisation would pass unseen."""
    assert len(EXAMPLES) >= 9


def test_the_example_in_yaml_is_right() -> None:
    """The same."""
    example = blocks(YAML)[0]
    _, problems = parse_yaml(example.encode(), "f", read_file=lambda _: b"10.*\n", matching=lambda _: [])
    assert problems == []
