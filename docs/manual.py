"""The manual pages in docs/man, made of the documents: Markdown to man(7).

    python docs/manual.py            # write them
    python docs/manual.py --check    # say which are stale, and exit with 1 if one is

`make man` runs it, after docs/reference.py; the tests check it. PAGES says which sections of which
document a page has, so nothing is written twice. Tables, which need more than 80 columns, become lists of
definitions. A link to another page names it; one to a document that is in no page is its text. What is
written must be clean for mandoc(1) with `-W warning`. fastfwd-stunnel2conf.1 is not made here.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode as Node
from reference import bring_up_to_date

from fastfwd import __version__

DOCS: Final = Path(__file__).parent
CHANGES: Final = DOCS.parent / "CHANGELOG.md"

WIDTH: Final = 78
"""Columns of a terminal's line, less what man(1) keeps free."""

INDENTED: Final = 11
"""Columns before an example."""


class Part(NamedTuple):
    """What a page has of a document: the sections that are named, or all but those that are; what stands
    before the first goes by "". `title` becomes a section around them."""

    file: str
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    title: str | None = None

    def wants(self, section: str) -> bool:
        """Whether the page has that section."""
        return section not in self.without if self.only is None else section in self.only


class Page(NamedTuple):
    """A page: its name, section, subject, parts, and what it refers to."""

    name: str
    section: int
    subject: str
    parts: tuple[Part, ...]
    see: str

    def __str__(self) -> str:
        return f"{self.name}({self.section})"


PAGES: Final = (
    Page(
        "fastfwd",
        8,
        "TCP and UDP forwarder with rinetd's configuration",
        (Part("command.md"),),
        "fastfwd-stunnel2conf(1), splice(2), fastfwd.conf(5), services(5), fastfwd(7), rinetd(8)",
    ),
    Page(
        "fastfwd.conf",
        5,
        "configuration of fastfwd",
        (Part("configuration.md", without=("Metrics", "The log")),),
        "fastfwd-stunnel2conf(1), services(5), fastfwd(7), fastfwd(8)",
    ),
    Page(
        "fastfwd",
        7,
        "how fastfwd works, what it tells, what signals do",
        (
            Part("overview.md"),
            Part("signals.md", without=("Exit codes",), title="Signals and deaths"),
            Part("configuration.md", only=("Metrics", "The log")),
            Part("compatibility.md", only=("Outcomes",)),
        ),
        "splice(2), fastfwd.conf(5), socket(7), tcp(7), udp(7), fastfwd(8)",
    ),
)

PLACEHOLDERS: Final = re.compile(
    r"(?<![A-Za-z_-])(N|TIME|FILE|NAME|ADDRESS|PORT|SIZE|NETWORK|BITS|MODE|LIST|INTERFACE|SECONDS|PATTERN"
    r"|FORWARD|ONE|TWO|RULE|bindaddress|bindport|connectaddress|connectport|option)(?![A-Za-z_-])"
)
"""What stands for something else in a line of code."""

_SPECIAL: Final = {"\\": r"\e", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", "'": r"\(aq", "-": r"\-"}
_CONSOLE: Final = str.maketrans(_SPECIAL)
_PROSE: Final = str.maketrans({**_SPECIAL, "'": "'", "-": "-"})
_PARSER: Final = MarkdownIt("commonmark").enable("table")


def roff(page: Page) -> str:
    """The whole page."""
    upper = page.name.upper()
    volume = {5: "File Formats Manual", 7: "Miscellaneous Information Manual", 8: "System Manager's Manual"}
    lines = [
        '.\\" Made by docs/manual.py; its source is ' + ", ".join(part.file for part in page.parts) + ".",
        f'.TH {upper} {page.section} {_date()} "fastfwd {__version__}" "{volume[page.section]}"',
        ".SH NAME",
        rf"{_escaped(page.name)} \- {_escaped(page.subject)}",
    ]
    for part in page.parts:
        lines += _Part(page, part).lines()
    see = re.sub(r"([\w.-]+)\((\d)\)", lambda match: rf"\fB{_code(match[1])}\fR({match[2]})", page.see)
    return "\n".join([*lines, ".SH SEE ALSO", *see.replace(", ", ",\n").split("\n")]) + "\n"


def _date() -> str:
    """The day of the version, so that a page depends on nothing but its source."""
    match = re.search(rf"(?m)^## \[{re.escape(__version__)}\] - (\S+)$", CHANGES.read_text("utf-8"))
    if match is None:
        raise ValueError(f"{CHANGES.name} has no date of {__version__}")
    return match[1]


def _sections(file: str) -> list[tuple[str, list[Node]]]:
    """What stands under each heading of the second level, with the heading; under "" what is before."""
    found: list[tuple[str, list[Node]]] = [("", [])]
    for node in Node(_PARSER.parse((DOCS / file).read_text("utf-8"))).children:
        if node.type == "heading" and node.tag == "h2":
            found.append((_text(node), []))
        elif node.type != "heading" or node.tag != "h1":
            found[-1][1].append(node)
    return found


def _text(node: Node) -> str:
    """Without any marks."""
    if node.type in ("text", "code_inline"):
        return node.content
    return " " if node.type == "softbreak" else "".join(map(_text, node.children))


def _anchor(heading: str) -> str:
    """As code hosts and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _places() -> dict[tuple[str, str], list[tuple[Page, str]]]:
    """Where the pages have a heading, and how it is shown there: by the document and the anchor, or ""
    for the document's own."""
    found: dict[tuple[str, str], list[tuple[Page, str]]] = {}
    for page in PAGES:
        for part in page.parts:
            for section, nodes in _sections(part.file):
                if not part.wants(section):
                    continue
                if part.only is None:
                    found.setdefault((part.file, ""), []).append((page, ""))
                if section:
                    shown = section if part.title else section.upper()
                    found.setdefault((part.file, _anchor(section)), []).append((page, shown))
                for heading in (_text(node) for node in nodes if node.type == "heading"):
                    found.setdefault((part.file, _anchor(heading)), []).append((page, heading))
    return found


_PLACES: Final = _places()


@dataclass
class _Part:
    """One part of a page on its way to roff."""

    page: Page
    part: Part

    def lines(self) -> list[str]:
        """All of it."""
        found: list[str] = []
        if self.part.title is not None:
            found += [f".SH {_heading(self.part.title)}"]
        for section, nodes in _sections(self.part.file):
            if not self.part.wants(section):
                continue
            if section:
                found += [f".SS {_escaped(section)}" if self.part.title else f".SH {_heading(section)}"]
            elif nodes and self.part.title is None:
                found += [".SH DESCRIPTION"]
            found += self.blocks(nodes)
        return found

    def blocks(self, nodes: Iterable[Node]) -> list[str]:
        found: list[str] = []
        for node in nodes:
            if node.type == "heading":
                text = _escaped(_text(node))
                found += [".PP", rf"\fB{text}\fR"] if self.part.title else [f".SS {text}"]
                continue
            made = self.block(node)
            if made[:1] == [".PP"] and (not found or found[-1].startswith(".SS")):
                made = made[1:]
            found += made
        return found

    def block(self, node: Node) -> list[str]:
        if node.type == "paragraph":
            return [".PP", *self.inline(node.children[0])]
        if node.type in ("code_block", "fence"):
            return [".PP", *_example(node.content)]
        if node.type in ("bullet_list", "ordered_list"):
            start = int(node.attrs.get("start", 1))
            numbers = (f"{start + place}." for place in range(len(node.children)))
            marks = numbers if node.type == "ordered_list" else (r"\(bu" for _ in node.children)
            width = 3 if node.type == "ordered_list" else 2
            return [
                line
                for mark, item in zip(marks, node.children, strict=False)
                for line in self.item(mark, width, item)
            ]
        if node.type == "table":
            return self.table(node)
        if node.type == "html_block" and node.content.startswith("<!--"):
            return []
        raise ValueError(f"{self.part.file}: a {node.type} has no place in a manual page")

    def item(self, mark: str, width: int, item: Node) -> list[str]:
        first, *more = item.children
        lines = [f".IP {mark} {width}", *self.inline(first.children[0])]
        if more:
            lines += [f".RS {width}", *self.blocks(more), ".RE"]
        return lines

    def table(self, node: Node) -> list[str]:
        """A list of definitions: the first column is what is defined."""
        head, body = node.children
        _, *names = (_text(cell) for cell in head.children[0].children)
        lines: list[str] = []
        for row in body.children:
            term, *cells = (self.cell(cell) for cell in row.children)
            said = dict(zip(names, cells, strict=True))
            default = said.pop("default", "")
            if len(said) == 1:
                told = [_sentence(next(iter(said.values())))]
            else:
                told = [_sentence(f"{name}: {text}") for name, text in said.items() if text]
            if default:
                told += (
                    ["The default."]
                    if default == "the default"
                    else [f"Default: {_sentence(default, keep=True)}"]
                )
            lines += [".TP", rf"\&{term}" if term.startswith((".", "'")) else term]
            lines += _lines(" ".join(told))
        return lines

    def cell(self, cell: Node) -> str:
        return self.spans(cell.children[0].children, "R") if cell.children else ""

    def inline(self, node: Node) -> list[str]:
        """The lines of a paragraph; none begins with what roff would take for a request."""
        return _lines(self.spans(node.children, "R"))

    def spans(self, nodes: Sequence[Node], font: str) -> str:
        text = ""
        for place, node in enumerate(nodes):
            if node.type == "text":
                text += _escaped(node.content)
            elif node.type == "softbreak":
                text += "\n"
            elif node.type == "code_inline":
                text += rf"\fB{_code(node.content)}\f{font}"
            elif node.type in ("strong", "em"):
                inner = "B" if node.type == "strong" else "I"
                text += rf"\f{inner}{self.spans(node.children, inner)}\f{font}"
            elif node.type == "link":
                after = nodes[place + 1].content if place + 1 < len(nodes) else ""
                text += self.link(node, text, after, font)
            else:
                raise ValueError(f"{self.part.file}: a {node.type} has no place in a manual page")
        return re.sub(r"\s?\(\0\)", "", text)

    def link(self, node: Node, before: str, after: str, font: str) -> str:
        """What a link says, and where it leads: in this page, to another, to a document. Alone in its
        parentheses it is a mere reference, which becomes NUL where there is nothing to refer to."""
        target, text = str(node.attrs["href"]), self.spans(node.children, font)
        if re.match("https?:", target):
            return f"{text} <{_escaped(target)}>"
        file, _, anchor = target.partition("#")
        file = file or self.part.file
        places = _PLACES.get((file, anchor), [])
        alone, named = before.endswith("(") and after.startswith(")"), text == _escaped(file)
        if not places:
            name = rf"\fI{_escaped(file)}\f{font}"
            if "/" in file:
                return "\0" if alone else text
            return name if named else f"see {name}" if alone else f"{text} ({name})"
        page, heading = next((each for each in places if each[0] == self.page), places[0])
        where = _escaped(heading)
        if page != self.page:
            name = rf"\fB{_code(page.name)}\f{font}({page.section})"
            where = f"{where} in {name}" if where else name
        if named or re.search(r"\b[Ss]ee $", before):
            return where or text
        if alone or text == "below":
            return f"see {where}"
        return text if page == self.page else f"{text} (see {where})"


def _lines(text: str) -> list[str]:
    """Each sentence begins a line, by which roff knows it; no line looks like a request."""
    found = []
    for sentence in re.split(r"(?<=[.?!])\s+", " ".join(text.split())):
        found += textwrap.wrap(sentence, 110, break_long_words=False, break_on_hyphens=False)
    return [rf"\&{line}" if line.startswith((".", "'")) else line for line in found]


def _heading(text: str) -> str:
    return _escaped(text.upper())


def _sentence(text: str, keep: bool = False) -> str:
    """With a capital letter and a full stop, as a list of definitions has them."""
    if not keep and text[:1].islower() and not re.match(r"[a-z-]+\(\d\)", text):
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!", r".\fR")) else f"{text}."


def _escaped(text: str) -> str:
    return _ascii(text.translate(_PROSE))


def _code(text: str) -> str:
    """Within bold text, with the placeholders in italics."""
    return PLACEHOLDERS.sub(r"\\fI\1\\fB", _ascii(text.translate(_CONSOLE)))


def _ascii(text: str) -> str:
    """Other characters by their numbers: a page must not depend on how a terminal is set."""
    return "".join(each if each.isascii() else rf"\[u{ord(each):04X}]" for each in text)


def _example(text: str) -> list[str]:
    """Literal lines. In a block that is too wide for a terminal of 80 columns, runs of blanks shrink as
    far as they must; if that is not enough it is not indented either."""
    lines = text.rstrip("\n").replace("\t", " ").split("\n")
    for blanks in range(8, 0, -1):
        if max(map(len, lines)) <= WIDTH - INDENTED:
            break
        lines = [re.sub(rf"(?<=\S) {{{blanks},}}", " " * blanks, line) for line in lines]
    literal = [_ascii(line.translate(_CONSOLE)) for line in lines]
    literal = [rf"\&{line}" if line.startswith((".", r"\(aq")) else line for line in literal]
    inner = [".EX", *literal, ".EE"]
    return inner if max(map(len, lines)) > WIDTH - INDENTED else [".RS 4", *inner, ".RE"]


def main(arguments: list[str]) -> int:
    """Write what is stale, or say so."""
    return bring_up_to_date(
        ((DOCS / "man" / f"{page.name}.{page.section}", roff(page)) for page in PAGES), arguments
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
