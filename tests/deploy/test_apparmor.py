"""The profile of deploy/apparmor: AppArmor's parser takes it. (test_systemd.py holds it against the files
that the program opens; no kernel has to have AppArmor for either.)"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests import deadline
from tests.peers import require_peer

PROFILE = Path(__file__).parents[2] / "deploy" / "apparmor" / "usr.sbin.fastfwd"

VARIABLE = re.compile(r"(@\{\w+\}) *\+?= *(.+)")
RULE = re.compile(r"(?:owner )?([/@]\S*) +([a-zA-Z]+),")
"""Of the flat text that the parser makes: what a variable stands for, what may be done to a file."""


def parser(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """apparmor_parser, which must not load anything into the kernel, nor keep anything."""
    return subprocess.run(
        [
            require_peer("apparmor_parser"),
            "--skip-kernel-load",
            "--skip-read-cache",
            "--skip-cache",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(60),
    )


def test_the_parser_takes_it() -> None:
    """With everything that it includes."""
    done = parser(PROFILE)
    assert done.returncode == 0, done.stderr


def test_the_parser_finds_a_slip(tmp_path: Path) -> None:
    """The check above can fail."""
    wrong = tmp_path / "wrong"
    wrong.write_text(PROFILE.read_text().replace("/etc/fastfwd.conf r,", "/etc/fastfwd.conf read,"))
    assert parser(wrong).returncode != 0


def rules() -> list[tuple[re.Pattern[str], str]]:
    """Which paths the profile speaks of, and the letters of what it allows."""
    text = parser("--preprocess", PROFILE).stdout
    values: dict[str, str] = {}
    found = []
    for line in map(str.strip, text.splitlines()):
        if match := VARIABLE.fullmatch(line):
            # A value may end in a slash; so does what stands before a slash in a rule.
            values[match[1]] = "{" + ",".join(each.rstrip("/") for each in match[2].split()) + "}"
        elif match := RULE.fullmatch(line):
            path = match[1]
            while "@{" in path:
                path = re.sub(r"@\{\w+\}", lambda name: values[name[0]], path)
            found.append((re.compile(pattern(path)), match[2]))
    return found


def pattern(path: str) -> str:
    """A path with AppArmor's wildcards as a regular expression (apparmor.d(5), Globbing)."""
    signs = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    words = re.findall(r"\*\*|\[[^]]*\]|.", path)
    return "".join(word if word[0] == "[" else signs.get(word, re.escape(word)) for word in words)


def allows(known: list[tuple[re.Pattern[str], str]], path: str, wanted: str) -> bool:
    """Whether all letters of `wanted` are granted for the path."""
    granted = {letter for paths, letters in known if paths.fullmatch(path) for letter in letters}
    return set(wanted) <= granted


def test_what_it_keeps_out() -> None:
    """What a worker has no business with."""
    known = rules()
    assert not allows(known, "/etc/shadow", "r")
    assert not allows(known, "/root/.ssh/id_ed25519", "r")
    assert not allows(known, "/etc/fastfwd.conf", "w")
    assert not allows(known, "/var/log/syslog", "w")
    assert not any(letters.endswith("x") and paths.fullmatch("/bin/sh") for paths, letters in known)
