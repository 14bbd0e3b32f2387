"""The guides for those who come from other programs: what they show is accepted by both programs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fastfwd.config.directives import FILES, WITHOUT_MEANING
from fastfwd.config.load import load
from fastfwd.config.parse import parse
from fastfwd.config.structured import BALANCING, RENAMED
from fastfwd.model import Config
from tests import deadline
from tests.certificates import Authority
from tests.deadline import until
from tests.deploy.pages import DOCS, ROOT, Block, blocks
from tests.peers import require_peer
from tests.system.namespaces import Sandbox

ADDRESSES = ("203.0.113.10", "10.1.0.1")
"""What the guides call this host's own."""

CERTIFICATES = ("www.pem", "mail.pem", "me.pem")
AUTHORITIES = ("people.pem", "ours.pem")
"""Files that the examples name."""

GUIDES = ("from-haproxy", "from-rinetd-uv", "from-socat", "rinetd-to-fastfwd", "dnat")


def page(name: str) -> str:
    """The text of a guide."""
    return (DOCS / f"{name}.md").read_text("utf-8")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the examples name."""
    directory = tmp_path_factory.mktemp("guides")
    authority = Authority(directory)
    for name in CERTIFICATES:
        authority.server("localhost").rename(directory / name)
    for name in AUTHORITIES:
        (directory / name).write_bytes(authority.pem)
    (directory / "blocked.lst").write_text("192.0.2.0/24\n192.0.2.7\n")
    return directory


@pytest.fixture(scope="module")
def host() -> Iterator[Sandbox]:
    """A network of its own that has the addresses of the examples."""
    with Sandbox(network=True) as sandbox:
        for address in ADDRESSES:
            sandbox.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        yield sandbox


def checked(host: Sandbox, directory: Path, *command: str) -> str:
    """What a program that checks a file says to it; "" if all is well."""
    done: subprocess.CompletedProcess[str] = host.call(
        partial(
            subprocess.run,
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(20),
        )
    )
    return "" if done.returncode == 0 else f"status {done.returncode}: {done.stdout}{done.stderr}"


@dataclass(frozen=True, slots=True)
class Example:
    """A configuration of fastfwd in a guide, and what stands before it in its section."""

    guide: str
    number: int
    block: Block


def examples() -> list[Example]:
    """All there are."""
    return [
        Example(guide, number, block)
        for guide in GUIDES
        for number, block in enumerate(blocks(page(guide)))
        if block.name.startswith("fastfwd.")
    ]


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{each.guide}-{each.number}" for each in EXAMPLES])
def test_fastfwd_takes_what_is_shown(host: Sandbox, files: Path, example: Example) -> None:
    """Without an error; and without a warning, but of what rinetd-uv says about its buffers."""
    path = files / f"{example.guide}-{example.number}{Path(example.block.name).suffix}"
    path.write_text(example.block.text)
    done = host.call(
        partial(
            subprocess.run,
            [sys.executable, "-m", "fastfwd", "-t", "-c", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(20),
        )
    )
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "buffers are the kernel's" not in line]
    assert len(warnings) == 1, done.stderr  # "... is valid"


def test_every_guide_has_examples() -> None:
    """An empty parametrisation would pass unseen."""
    assert {each.guide for each in EXAMPLES} == set(GUIDES)


# HAProxy.

HAPROXY = [block for block in blocks(page("from-haproxy")) if block.name == "haproxy.cfg"]


@pytest.mark.parametrize("block", HAPROXY, ids=lambda block: block.heading)
def test_haproxy_takes_what_is_shown(host: Sandbox, files: Path, block: Block) -> None:
    """Without a warning."""
    assert haproxy(host, files, block.text, "-dW") == ""  # a warning is an error


def haproxy(host: Sandbox, files: Path, text: str, *options: str) -> str:
    """What it says to a file; "" if all is well."""
    (files / "haproxy.cfg").write_text(text)
    return checked(host, files, require_peer("haproxy"), *options, "-c", "-f", "haproxy.cfg")


def rows(text: str, heading: str) -> list[tuple[str, str]]:
    """The rows of the table below a heading."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [line.strip("|").split(" | ", 1) for line in section.splitlines() if line.startswith("| ")]
    return [(left.strip(), right.strip()) for left, right in found[1:]]


SPAN = re.compile(r"`([^`]+)`")

TIMES = "    timeout client 1h\n    timeout server 1h\n    timeout connect 5s\n"
GLOBAL = "global\n    {0}\ndefaults\n    mode tcp\n" + TIMES + "listen x\n    bind :80\n"
PROXY = "defaults\n    mode tcp\n" + TIMES + "listen x\n    bind :1\n    {0}\n    server x 10.1.1.2:80\n"
TABLE = PROXY.replace("{0}", "stick-table type ip size 10k expire 30m store conn_cur,conn_rate(1s)\n    {0}")
BIND = PROXY.replace("bind :1", "{0}").replace("    {0}\n    server", "    server")
SERVER = PROXY.replace("bind :1", "bind 10.1.0.1:20000-20999").replace("    server x 10.1.1.2:80\n", "")

TABLES = {
    "Word for word: `global`": GLOBAL,
    "`defaults`, `frontend`, `backend`, `listen`": TABLE,
    "`bind`": BIND,
    "`server`": SERVER,
}
"""The heading of a table of HAProxy's words -> a file with the place of one of them."""

WORDS = [
    (heading, word)
    for heading in TABLES
    for left, _ in rows(page("from-haproxy"), heading)
    for word in SPAN.findall(left)
]


def test_haproxy_has_the_words_on_the_left(host: Sandbox, files: Path) -> None:
    """Each alone, where it belongs."""
    assert len(WORDS) > 60
    wrong = {}
    for heading, word in WORDS:
        form = TABLES[heading]
        if word.startswith("stick-table"):
            form = PROXY
        if said := haproxy(host, files, form.replace("{0}", word)):
            wrong[word] = said
    assert wrong == {}


NOT_OURS = frozenset(
    {
        *("over-limit", "USR1", "TERM", "LOCAL", "-f", "RootDirectory=", "server-name="),
        *("hash-type consistent", "maxconn", "global", "verify optional", "sni", "verifyhost"),
    }
)
"""Spans on the right that are not to be put into a file."""


def taken(span: str, directory: Path) -> bool:
    """Whether fastfwd knows a span: as a line, as an option, as the beginning or the end of a forward."""

    def read(name: str) -> bytes:
        return (directory / Path(name).name).read_bytes()

    for line in (
        span,
        f"127.0.0.1 1 10.1.1.2 1\n{span}",
        f"127.0.0.1 1 10.1.1.2 1 [{span}]",
        f"127.0.0.1 1 10.1.1.2,10.1.1.3 1 [{span}]",
        f"127.0.0.1 1 10.1.1.2 1 [tls-accept, cert=www.pem, {span}]",
        f"127.0.0.1 1 10.1.1.2 1 [tls-accept, cert=www.pem, client-ca=people.pem, {span}]",
        f"127.0.0.1 1 10.1.1.2 1 [tls-connect, {span}]",
        f"127.0.0.1 1 10.1.1.2 1 [tls-accept, cert=www.pem, alpn=h2, tls-connect, {span}]",
        f"127.0.0.1 1 10.1.1.2,10.1.1.3 1 [affinity-ttl=1m, {span}]",
        f"127.0.0.1 1/udp 10.1.1.2 1/udp [{span}]",
        f"unix:/run/x 10.1.1.2 1 [{span}]",
        f"{span} 10.1.1.2 1",
        f"{span} 10.1.1.2 20000-20999",
        f"127.0.0.1 1 {span}",
        f"127.0.0.1 1 {span} 1",
    ):
        _, problems = parse(f"{line}\n".encode(), "f", read_file=read)
        if not problems:
            return True
    return False


@pytest.mark.parametrize("heading", TABLES)
def test_fastfwd_has_the_words_on_the_right(files: Path, heading: str) -> None:
    """Each alone, where it belongs."""
    spans = {span for _, right in rows(page("from-haproxy"), heading) for span in SPAN.findall(right)}
    ours = spans - NOT_OURS
    assert len(ours) >= 8
    assert {span for span in ours if not taken(span, files)} == set()


# C rinetd and rinetd-uv.


def test_rinetd_takes_the_first_example(host: Sandbox, files: Path) -> None:
    """It starts with it: it has no check of its own."""
    text = next(blocks(page("rinetd-to-fastfwd"))).text
    assert "10.1.1.2 8080" in text
    path = files / "rinetd.conf"
    path.write_text(text.replace("/var/log/", f"{files}/").replace("/run/", f"{files}/"))
    with (files / "stderr").open("w+") as stderr:
        process = host.call(
            partial(subprocess.Popen, [require_peer("rinetd"), "-f", "-c", str(path)], stderr=stderr)
        )
        try:
            until(lambda: "starting redirections" in (files / "stderr").read_text(), what="rinetd to start")
            assert "error" not in (files / "stderr").read_text().lower()
            assert len(host.run("ss", "-Hltun").splitlines()) == 3
        finally:
            process.terminate()
            process.wait(deadline.seconds(10))


def test_both_languages_say_the_same(host: Sandbox, files: Path) -> None:
    """The example in YAML and the one in rinetd's language."""
    both = []
    for block in blocks(page("from-rinetd-uv")):
        path = files / f"uv{Path(block.name).suffix}"
        path.write_text(block.text)
        config = load(str(path))
        both.append(without_names(config))
    assert len(both) == 2
    assert both[0] == both[1]


def without_names(config: Config) -> tuple[object, ...]:
    """What of a configuration does not depend on its language: not names, not lines."""
    settings = (config.logfile, config.pidfile, config.dns_refresh, config.dns_expand, config.statusfile)
    rules = [(rule.allow, rule.pattern) for rule in config.rules]
    forwards = [
        (
            *(str(each.listen), [(str(one.endpoint), one.weight) for one in each.backends]),
            *(each.balance, each.health_threshold, each.recovery_timeout, each.affinity_ttl, each.timeout),
        )
        for each in config.forwards
    ]
    return (*settings, config.status_interval, config.status_text, rules, forwards)


def test_every_word_of_rinetd_uv_is_in_the_table() -> None:
    """Those that the program has for its sake, and those of its YAML."""
    left = " ".join(row[0] for row in rows(page("from-rinetd-uv"), "Words"))
    named = set(SPAN.findall(left))
    words = {*WITHOUT_MEANING, "pidfile", *FILES, *RENAMED, *BALANCING, "include", "allow", "deny"}
    words |= {"dns-refresh", "dns-multi-ip-expand", "dns-multi-ip-proto", "connect-timeout", "listen-backlog"}
    words |= {"max-udp-connections", "statusinterval", "statusformat", "statsloginterval", "log_common"}
    assert words - named - {"log_format"} == set()  # a word of ours
