"""docs/install.md against what it tells: commands, files and targets that are named there exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/install.md").read_text("utf-8")
COMMANDS = [line.partition("#")[0].strip() for line in re.findall(r"(?m)^    (\S.*)$", PAGE)]


def test_there_are_commands() -> None:
    """They were found."""
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("target", sorted({each.split()[1] for each in COMMANDS if each.startswith("make ")}))
def test_a_target_is_there(target: str) -> None:
    """In the Makefile, and in its help."""
    text = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"(?m)^{target}:", text)
    assert re.search(rf"(?m)^#   make {target} ", text)


def test_what_a_build_needs_is_what_it_asks_for() -> None:
    """The page has every package of Build-Depends, and make and dpkg-buildpackage themselves."""
    control = (ROOT / "deploy/debian/control").read_text("utf-8")
    wanted = re.search(r"(?m)^Build-Depends: (.*)$", control)
    assert wanted
    names = {each.split()[0].removesuffix("-compat") for each in wanted[1].split(",")}
    (said,) = (each.split()[2:] for each in COMMANDS if each.startswith("apt install make"))
    assert {*names, "make", "dpkg-dev"} - {"python3"} == set(said)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE))))
def test_a_link_leads_somewhere(link: str) -> None:
    """Beside the page."""
    assert (ROOT / "docs" / link).exists()


@pytest.mark.parametrize("file", ["/etc/fastfwd.conf", "/var/log/fastfwd", "/etc/fastfwd/"])
def test_a_file_of_the_page_is_the_packages(file: str) -> None:
    """Named there, and by the package."""
    assert file in PAGE
    texts = [path.read_text("utf-8") for path in (ROOT / "deploy/debian").iterdir() if path.is_file()]
    assert any(file.strip("/") in text for text in texts)
