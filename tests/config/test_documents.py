"""The reference and the manual page against the tables that the program reads by.

Every option and directive has its entry in both, with the default of the model and the range that is checked.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pytest

from fastfwd.config.directives import FILES, GUARDS, LIMITS, SETTINGS, WITHOUT_MEANING
from fastfwd.config.encryption import ACCEPT, CONNECT
from fastfwd.config.options import FLAGS, OPTIONS
from fastfwd.config.parse import parse
from fastfwd.config.structured import BACKEND, BALANCING, RENAMED, SWITCHES, parse_yaml
from fastfwd.config.value import NO_TIME, SWITCH, TIME, Value
from fastfwd.model import Config, Forward, Limits
from tests.peers import require_peer

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = (DOCS / "configuration.md").read_text("utf-8")
MANUAL = (DOCS / "fastfwd.8").read_text("utf-8")


class Word(NamedTuple):
    """An option (`name=`) or a directive: the kind of its value, and what the model has without it."""

    spelled: str
    value: Value | None
    default: object


def words() -> list[Word]:
    """All there are."""
    plain = {kind: {each.name: each.default for each in fields(kind)} for kind in (Forward, Limits, Config)}
    default = {
        **plain[Forward],
        "sorry_file": None,
        "dns_refresh": None,
        "proxy_from": None,
        "send_proxy": None,
    }
    default |= dict.fromkeys((*ACCEPT, *CONNECT, "ciphers")) | {"verify_server": True, "tls_min": "1.2"}
    found = [
        Word(name if name in FLAGS else f"{name}=", option.value, default[option.field])
        for name, option in OPTIONS.items()
    ]
    found += [Word(name, each.value, plain[Config][each.field]) for name, each in SETTINGS.items()]
    found += [Word(name, each.value, plain[Limits][each.field]) for name, each in LIMITS.items()]
    found += [Word(name, None, plain[Config][field]) for name, field in FILES.items() if name != "pidfile"]
    return [*found, Word("src=", None, None), Word("metrics", None, None), Word("logduration", None, False)]


WORDS = words()
NAMES = [word.spelled for word in WORDS]


class Entry(NamedTuple):
    """What a document says of a word: its default, and everything."""

    default: str
    text: str


def in_the_reference(word: str) -> Entry:
    """The rows of tables that begin with `word`, as one."""
    rows = [re.split(r" (?<!\\)\| ", row.strip("| ")) for row in REFERENCE.splitlines() if row[:3] == "| `"]
    end = "" if word.endswith("=") else r"[ `]"
    rows = [row for row in rows if re.match(rf"`{word}{end}", row[0])]
    assert rows, f"{word} is in no table"
    # Where every value has a row, one of them is marked as the default.
    default = next((f"{row[0]} " for row in rows if row[1] == "this one"), rows[0][1])
    return Entry(default.replace("`", ""), " ".join(map(" ".join, rows)).replace(",", ""))


def in_the_manual(word: str) -> Entry:
    """The item of a list that begins with `word`."""
    match = re.search(rf"^\.It Cm {re.escape(word)}(?: .*)?\n((?:(?!\.It|\.El).*\n)*)", MANUAL, re.MULTILINE)
    assert match, f"{word} has no item"
    text = re.sub(r"(?m)^\.[A-Z][a-z] ", "", match[0])
    return Entry(text.partition("Default:")[2], text)


def spellings(word: Word) -> set[str]:
    """How a default may be written; nothing that the model could tell is in the set for None."""
    default = word.default
    if isinstance(default, Enum):
        return {str(default.value)}
    if word.spelled == "mode=":
        return {f"{default:04o}"}
    if word.value is SWITCH:
        return {"on" if default else "off"}
    if word.spelled == "statusformat":
        return {"text" if default else "json"}
    if (isinstance(default, int) and word.value in (TIME, NO_TIME)) or word.spelled == "connect-timeout":
        return {f"{default}", f"{default}s"}
    return {f"{default}"}


DOCUMENTS = {"configuration.md": in_the_reference, "fastfwd.8": in_the_manual}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("word", WORDS, ids=NAMES)
def test_the_default_is_the_models(document: str, word: Word) -> None:
    """A word without one has no number there."""
    said = DOCUMENTS[document](word.spelled).default
    if word.default is None or (word.default is False and word.value is None) or word.spelled == "port=":
        assert not re.search(r"[0-9]", said)
    else:
        assert spellings(word) & set(re.findall(r"[A-Za-z0-9]+(?:\.[0-9]+)?", said)), said


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("word", WORDS, ids=NAMES)
def test_the_range_is_the_one_that_is_checked(document: str, word: Word) -> None:
    """From the least to the most, or all the words there are; 0 where it has a meaning of its own."""
    text = DOCUMENTS[document](word.spelled).text
    what = word.value.what if word.value else ""
    for bounds in re.findall(r"[0-9]+ to [0-9]+", what):
        assert bounds in text
    if "or 0 for" in what:
        assert re.search(r"\b0\b", text)
    for one in word.value.words if word.value else ():
        assert re.search(rf"\b{one}\b", text)


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("word", [*WITHOUT_MEANING, "pidfile", "logcommon", "include", "allow", "deny"])
def test_every_other_directive_is_named(document: str, word: str) -> None:
    """Those that have no default."""
    text = {"configuration.md": REFERENCE, "fastfwd.8": MANUAL}[document]
    assert re.search(rf"(?<![\w-]){word}(?![\w-])", text)


@pytest.mark.parametrize("document", ["configuration.md", "fastfwd.8"])
@pytest.mark.parametrize(
    "key", [*RENAMED, *SWITCHES, *BALANCING, *BACKEND, "load_balancing", "access", "status"]
)
def test_every_key_of_yaml_is_named(document: str, key: str) -> None:
    """Those that are not simply a word with `_` for `-`."""
    text = {"configuration.md": REFERENCE, "fastfwd.8": MANUAL}[document]
    assert re.search(rf"\b{key}\b", text[text.index("YAML") :])


@pytest.mark.parametrize("word", sorted(GUARDS))
def test_what_a_lenient_start_does_not_skip(word: str) -> None:
    """Both documents say it where they explain --lenient."""
    reference = REFERENCE[REFERENCE.index("--lenient") :].partition("\n\n")[0]
    manual = MANUAL[MANUAL.index("Lines that guard") :].partition("are not skipped")[0]
    assert f"`{word}`" in reference
    assert word in re.split(r"[ ,\n]+", manual)


def blocks(text: str) -> list[str]:
    """The indented examples of a document."""
    found = re.findall(r"(?m)(?:^    .*\n(?:\n(?=    ))?)+", text)
    return [re.sub(r"(?m)^    ", "", each) for each in found]


LANGUAGE, YAML = REFERENCE.partition("## YAML")[::2]
OTHERS = re.compile(r"(?m)^(?:fastfwd|nft|bindaddress|allow PATTERN|deny PATTERN).*\n")
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


@pytest.mark.parametrize("page", ["fastfwd.8", "fastfwd-stunnel2conf.1"])
def test_a_manual_page_is_clean(page: str) -> None:
    """As mandoc(1) sees it."""
    mandoc = require_peer("mandoc")
    done = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", str(DOCS / page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout + done.stderr == ""
