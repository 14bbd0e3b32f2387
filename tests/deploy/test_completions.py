"""What bash, zsh and fish complete after the two commands.

Each shell has the files where a package puts them, and finds them by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastfwd import cli
from fastfwd.stunnel import command
from tests import deadline
from tests.deadline import until
from tests.peers import lack, require_peer

FILES = Path(__file__).parents[2] / "deploy/completions"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")

CONFIGURATION = """\
0.0.0.0 80  10.1.1.2 8080  [balance=leastconn, name=web]
0.0.0.0 443 10.1.1.2 8443  [name=web-tls]
0.0.0.0 25  10.1.1.3 25
# 0.0.0.0 26 10.1.1.3 26   [name=old]
0.0.0.0 53/udp 10.1.1.4 53/udp [timeout=10,name=dns]
"""

Complete = Callable[[str], set[str]]
"""A line up to the cursor, to the words that would go on."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a configuration and nothing else in it, and a home beside it."""
    tmp_path = tmp_path_factory.mktemp("completions")
    where = tmp_path / "place"
    where.mkdir()
    (where / "one.conf").write_text(CONFIGURATION)
    (where / "sub").mkdir()
    (tmp_path / "home/bin").mkdir(parents=True)
    for name in ("fastfwd", "fastfwd-stunnel2conf"):  # fish has nothing to say of a command that is not there
        (tmp_path / "home/bin" / name).touch(0o755)
    return where


def environment(place: Path) -> dict[str, str]:
    """A person's, with an own home and no settings."""
    home = place.with_name("home")
    return {
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
    }


def run(*words: str, place: Path) -> str:
    """What a command writes."""
    done = subprocess.run(
        words,
        cwd=place,
        env=environment(place),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )
    assert done.stderr == ""
    return done.stdout


BASH = """
source "$1"
__load_completion "$2" || exit 1
function=$(complete -p "$2")
function=${function#*-F }
function=${function%% *}
COMP_LINE=$3 COMP_POINT=${#3} COMP_TYPE=9 COMP_KEY=9
compopt() { :; }
"$function" "$2"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash_words(line: str) -> list[str]:
    """`line` as readline cuts it: `=` and `:` are words of their own."""
    return [
        word for part in line.split(" ") for word in ([""] if not part else re.findall(r"[=:]+|[^=:]+", part))
    ]


@pytest.fixture(scope="module")
def bash(place: Path) -> Complete:
    """As bash-completion finds and calls it."""
    if not BASH_COMPLETION.exists():
        lack("bash-completion is not installed")
    shell = require_peer("bash")
    there = place.with_name("home") / ".local/share/bash-completion/completions"
    there.mkdir(parents=True)
    for file in FILES.glob("*.bash"):
        shutil.copy(file, there)

    def complete(line: str) -> set[str]:
        words = bash_words(line)
        set_up = f"COMP_WORDS=({' '.join(repr(word) for word in words)}) COMP_CWORD={len(words) - 1}\n"
        said = run(
            *(shell, "--norc", "-c", set_up + BASH, "bash", str(BASH_COMPLETION), words[0], line), place=place
        )
        return set(said.split())

    return complete


@pytest.fixture(scope="module")
def fish(place: Path) -> Complete:
    """As `complete -C` tells it."""
    shell = require_peer("fish")
    there = place.with_name("home") / ".config/fish/completions"
    there.mkdir(parents=True)
    for file in FILES.glob("*.fish"):
        shutil.copy(file, there)

    def complete(line: str) -> set[str]:
        said = run(shell, "--private", "-c", 'complete -C "$argv[1]"', line, place=place)
        return {each.partition("\t")[0] for each in said.splitlines()}

    return complete


ZSH = """
fpath=({files} $fpath)
autoload -Uz compinit && compinit -u -D
LISTMAX=1000
# Whatever is added is noted as well.
compadd() {{
    local -a found
    if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
        builtin compadd -O found "$@"
        added+=("${{found[@]}}")
    fi
    builtin compadd "$@"
}}
show() {{
    added=()
    zle list-choices
    print -rl -- "${{added[@]}}" >{out}.new
    mv {out}.new {out}
}}
zle -N show
bindkey '^X' show
: >{ready}
"""


@pytest.fixture(scope="module")
def zsh(place: Path) -> Iterator[Complete]:
    """At a terminal: the line is typed, and a key shows what Tab would."""
    shell = require_peer("zsh")
    home = place.with_name("home")
    there, out, ready = home / "functions", home / "out", home / "ready"
    there.mkdir()
    shutil.copy(FILES / "_fastfwd", there)
    (home / ".zshrc").write_text(ZSH.format(files=there, out=out, ready=ready))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execve(shell, [shell, "-o", "noglobalrcs", "-i"], environment(place) | {"ZDOTDIR": str(home)})

    def drained(condition: Callable[[], bool]) -> bool:
        while select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 4096)
        return condition()

    def complete(line: str) -> set[str]:
        os.write(terminal, b"\x15" + line.encode() + b"\x18")
        until(lambda: drained(out.exists), 10, f"zsh to complete {line!r}")
        said = out.read_text().split()
        out.unlink()
        return set(said)

    try:
        until(lambda: drained(ready.exists), 20, "zsh to begin")
        yield complete
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest) -> Complete:
    """Each of them."""
    found: Complete = request.getfixturevalue(request.param)
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All that a parser takes."""
    return {option for action in parser._actions for option in action.option_strings}


def stunnel2conf() -> set[str]:
    """The options of the second command, from its own words: its parser is a matter of its own."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        command.main(["-h"])
    return set(re.findall(r"(?<![\w-])--?[a-z]+(?:-[a-z]+)*", said.getvalue().partition("options:")[2]))


def test_every_option_is_completed(complete: Complete) -> None:
    """Those that the program has, and no others."""
    assert complete("fastfwd -") == options(cli._parser())


def test_an_option_that_is_begun(complete: Complete) -> None:
    """The only one that goes on so."""
    assert complete("fastfwd -t --st") == {"--status"}


@pytest.mark.parametrize("option", ["-c", "--conf-file"])
def test_a_file_follows_conf_file(complete: Complete, option: str) -> None:
    """And a directory, on the way to one."""
    assert {each.rstrip("/") for each in complete(f"fastfwd {option} ")} == {"one.conf", "sub"}


def test_the_names_of_forwards_follow_explain_and_an_address(complete: Complete) -> None:
    """Those in the file that -c names; not one in a comment."""
    assert complete("fastfwd -c one.conf -t --explain 192.0.2.1 ") == {"web", "web-tls", "dns"}


def test_a_name_that_is_begun(complete: Complete) -> None:
    """With the file after an equals sign."""
    assert complete("fastfwd --conf-file=one.conf -t --explain 192.0.2.1 we") == {"web", "web-tls"}


@pytest.mark.parametrize("words", ["-c one.conf -t --explain", "--doctor --sessions"])
def test_nothing_is_proposed_for_an_address_or_a_number(complete: Complete, words: str) -> None:
    """Who knows it but the person?"""
    assert complete(f"fastfwd {words} ") == set()


def test_the_second_commands_options(complete: Complete) -> None:
    """All it has."""
    assert complete("fastfwd-stunnel2conf -") == stunnel2conf()


def test_the_second_command_reads_a_file(complete: Complete) -> None:
    """Any."""
    assert {each.rstrip("/") for each in complete("fastfwd-stunnel2conf o")} == {"one.conf"}
