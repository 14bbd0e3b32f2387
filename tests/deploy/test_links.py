"""Links between the documents lead somewhere: to a file that exists, and to a heading that it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.pages import DOCS, FENCE, HEADING, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])

LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"`[^`\n]*`")


def links(path: Path) -> list[str]:
    """The targets in a page that are not on other hosts."""
    text = CODE.sub("", FENCE.sub("", path.read_text("utf-8")))
    return [target for target in LINK.findall(text) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """What a page's headings are called in links."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text("utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """A heading, too, where there is one in the link."""
    lost = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            lost.append(target)
    assert lost == []


def test_there_are_links() -> None:
    """They were found."""
    assert sum(len(links(page)) for page in PAGES) > 100
