"""How Sphinx makes a site of the documents: `make docs`, into build/docs.

The source is the repository, not docs/ alone, so that a link which is right on a code host is right here:
to README.md, to CHANGELOG.md, to the examples in deploy/, to the pictures of bench/. Whatever is no page is
a file to download. docs/index.md is plain Markdown; its lists become the table of contents, in their order.
The build is strict: a link that leads nowhere ends it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from sphinx.addnodes import pending_xref

from fastfwd import __version__

ROOT: Final = Path(__file__).resolve().parents[1]
INDEX: Final = "docs/index"

project = "fastfwd"
author = project
copyright = ""  # noqa: A001
version = release = __version__

extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/**.md", "deploy/**.md", "bench/results/README.md"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "docs/man",
    "tests",
    "fastfwd",
    "**/__pycache__",
    "**/node_modules",
]
root_doc = INDEX

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "none"
nitpicky = True
smartquotes = False

html_theme = "furo"
html_title = f"fastfwd {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

_LINK = re.compile(r"\]\(([\w./-]+)\.md\)")


def contents(text: str, documents: set[str]) -> str:
    """Tables of contents, unseen, for the sections of the index: the pages that their lists name, in that
    order; last, what none of them names."""
    tables = []
    listed: set[str] = set()
    for section in re.split(r"(?m)^## ", text)[1:]:
        caption = section.partition("\n")[0]
        pages = [name for link in _LINK.findall(section) if (name := _page(link)) not in listed]
        listed |= set(pages)
        tables.append((caption, pages))
    tables.append(("More", sorted(documents - listed - {INDEX})))
    return text + "".join(
        "\n```{toctree}\n:hidden:\n:caption: "
        + f"{caption}\n\n"
        + "\n".join(f"/{each}" for each in pages)
        + "\n```\n"
        for caption, pages in tables
        if pages
    )


def _page(link: str) -> str:
    """The name of the document that a link in docs/ leads to."""
    return str((ROOT / "docs" / link).resolve().relative_to(ROOT))


def _read(app: Any, name: str, source: list[str]) -> None:
    if name == INDEX:
        source[0] = contents(source[0], set(app.env.found_docs))


def _directories(app: Any, tree: Any) -> None:
    """A link to a directory is its text: a code host can show one, a site has none to show."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(tree.findall(pending_xref)):
        if node["reftype"] == "myst" and (here / node["reftarget"]).is_dir():
            node.replace_self(node.children)


def _first_page(app: Any, error: Exception | None) -> None:
    """What a visitor of the directory finds."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "index.html").write_text(
            '<!doctype html><meta charset="utf-8"><title>fastfwd</title>'
            f'<meta http-equiv="refresh" content="0; url={INDEX}.html"><a href="{INDEX}.html">fastfwd</a>\n',
            "utf-8",
        )


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", _read)
    app.connect("doctree-read", _directories)
    app.connect("build-finished", _first_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
