"""The documents as a site (docs/conf.py) and as manual pages (docs/manual.py), by what reads them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastfwd.cli import _parser
from fastfwd.config.directives import DIRECTIVES
from fastfwd.config.options import FLAGS, OPTIONS
from tests.peers import require_peer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "man").iterdir())
MADE = [page for page in PAGES if page.name != "fastfwd-stunnel2conf.1"]


def built(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """The site of a source that has docs/conf.py, as `make docs` makes it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html"),
            *("-d", str(target / "trees"), "-c", str(source / "docs"), str(source), str(target / "site")),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one."""
    target = tmp_path_factory.mktemp("docs")
    done = built(ROOT, target)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return target / "site"


def test_every_document_is_in_the_contents(site: Path) -> None:
    """The strict build succeeds; a reader of the first page finds everything."""
    first = (site / "docs" / "index.html").read_text()
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]:
        page = site / path.relative_to(ROOT).with_suffix(".html")
        assert page.exists()
        if path != DOCS / "index.md":
            assert f'href="{os.path.relpath(page, site / "docs")}"' in first


def test_the_directory_of_the_site_leads_to_the_first_page(site: Path) -> None:
    """Whoever opens it needs no name of a file."""
    match = re.search(r"url=([^\"]+)", (site / "index.html").read_text())
    assert match is not None
    assert (site / match[1]).exists()


def test_what_is_no_page_can_be_had(site: Path) -> None:
    """A link to a file of deploy/ is one to a copy."""
    text = (site / "docs" / "configuration.html").read_text()
    match = re.search(r'href="([^"]+/fastfwd-transparent)"', text)
    assert match is not None
    copy = site / "docs" / match[1]
    assert copy.read_bytes() == (ROOT / "deploy" / "transparent" / "fastfwd-transparent").read_bytes()


BROKEN = {
    "[text](gone.md)": "gone.md",
    "[text](page.md#gone)": "gone",
    "[text](#gone-too)": "gone-too",
    "![text](gone.png)": "gone.png",
    "[text](../deploy/gone)": "deploy/gone",
    "[text](nowhere/)": "nowhere",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What is said of a source with a wrong link in each of some lines, and its site."""
    source = tmp_path_factory.mktemp("source")
    (source / "docs" / "there").mkdir(parents=True)
    (source / "docs" / "index.md").write_text("# First\n\n## Start\n\n* [Page](page.md)\n")
    good = "[a](index.md) [b](#page) [c](index.md#start) [d](there) [e](conf.py)"
    (source / "docs" / "page.md").write_text("# Page\n\n" + "\n\n".join([good, *BROKEN]) + "\n")
    (source / "docs" / "later.md").write_text("# Later\n")
    shutil.copy(DOCS / "conf.py", source / "docs")
    done = built(source, source / "build")
    assert done.returncode == 1
    return done.stderr.splitlines(), source / "build" / "site"


@pytest.mark.parametrize("link", BROKEN)
def test_a_link_that_leads_nowhere_ends_the_build(small: tuple[list[str], Path], link: str) -> None:
    """One to a page, to a heading, to a picture, to a file, to a directory."""
    assert [line for line in small[0] if "page.md" in line and BROKEN[link] in line]


def test_nothing_is_said_of_other_links(small: tuple[list[str], Path]) -> None:
    """A page, a heading, a directory and a file that are there are no errors."""
    assert len([line for line in small[0] if "WARNING" in line or "ERROR" in line]) == len(BROKEN)


def test_a_page_that_the_index_does_not_name_is_last(small: tuple[list[str], Path]) -> None:
    """It is forgotten, not lost."""
    text = (small[1] / "docs" / "index.html").read_text()
    assert 0 < text.index("page.html") < text.index(">More<") < text.index("later.html")


def test_the_manual_pages_are_made_of_the_documents() -> None:
    """Nobody has edited one, and nobody has forgotten `make man`."""
    done = subprocess.run(
        [sys.executable, str(DOCS / "manual.py"), "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_manual_page_is_clean(page: Path) -> None:
    """As mandoc(1) sees it."""
    command = [require_peer("mandoc"), "-T", "lint", "-W", "warning", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


RENDERERS = {"mandoc": ["-T", "utf8", "-O", "width=80"], "man": ["--warnings", "-l"]}


def shown(page: Path, renderer: str = "mandoc") -> str:
    """A page as a terminal of 80 columns shows it, without bold and underlined characters."""
    done = subprocess.run(
        [require_peer(renderer), *RENDERERS[renderer], str(page)],
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(".\b", "", done.stdout)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_configurations_page_has_every_word(renderer: str) -> None:
    """Each option and each directive begins a definition; those that do the same share one."""
    text = shown(DOCS / "man" / "fastfwd.conf.5", renderer)
    terms = [term for line in re.findall(r"(?m)^ {7}(\S.*)$", text) for term in line.split(", ")]
    for name in OPTIONS:
        assert [term for term in terms if term == name or term.startswith(f"{name}=")], name
    for word in DIRECTIVES:
        assert [term for term in terms if re.match(rf"{word}(?: |$)", term)], word
    assert set(FLAGS) <= set(terms)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("page", MADE, ids=lambda page: page.name)
def test_a_page_fits_a_terminal(page: Path, renderer: str) -> None:
    """What is wider than 80 columns is an example, which cannot be broken."""
    source = re.sub(r"\\&|\\\[u\w+\]", "", page.read_text())
    for escape, plain in ((r"\-", "-"), (r"\(aq", "'"), (r"\(ti", "~"), (r"\(ha", "^"), (r"\(ga", "`")):
        source = source.replace(escape, plain)
    examples = set("".join(re.findall(r"(?ms)^\.EX\n(.*?)^\.EE", source)).splitlines())
    wide = [line.strip() for line in shown(page, renderer).splitlines() if len(line) > 80]
    assert set(wide) <= {line.strip() for line in examples}


def test_the_commands_page_has_every_flag() -> None:
    """The flags that the parser of the command line knows."""
    text = shown(DOCS / "man" / "fastfwd.8")
    flags = [flag for action in _parser()._actions for flag in action.option_strings]
    assert len(flags) > 8
    assert [flag for flag in flags if not re.search(rf"(?m)^ {{7}}(?:.*, )?{flag}\b", text)] == []


@pytest.mark.parametrize("word", ["SIGNALS", "UPGRADE", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"])
def test_the_commands_page_has_a_section(word: str) -> None:
    """Those that a reader of manual pages looks for."""
    assert re.search(rf"(?m)^{word}$", shown(DOCS / "man" / "fastfwd.8"))


def test_every_page_is_installed() -> None:
    """Where man(1) looks for its section."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    pages = {f"docs/man/{page.name}": f"share/man/man{page.name[-1]}/{page.name}" for page in PAGES}
    assert {name: target for name, target in shared.items() if name.startswith("docs/man/")} == pages
