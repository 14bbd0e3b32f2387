"""The tables of the documents that the program itself knows best: options, directives, fixed limits.

    python docs/reference.py            # write them where the marks are
    python docs/reference.py --check    # say which are stale, and exit with 1 if one is

A mark is `<!-- options: GROUP -->`, `<!-- directives: GROUP -->` or `<!-- fixed limits -->`; what stands
from there to `<!-- end -->` is made of fastfwd/config/options.py, fastfwd/config/directives.py and the
defaults of fastfwd/model.py. Everything around is written by hand. `make man` and `make docs` run this; the
tests check it. It must never say what the code does not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final, NamedTuple

from fastfwd.config import check, directives, forward, load, options, parse
from fastfwd.config.endpoint import LONGEST_PATH
from fastfwd.config.options import FLAGS, MOST_SOURCES
from fastfwd.config.value import Value
from fastfwd.model import Config, Forward, Limits
from fastfwd.observe import eventlog, http, rows
from fastfwd.worker import handshake

DOCS: Final = Path(__file__).parent

_MARKED: Final = re.compile(
    r"(?ms)^(<!-- (options|directives|fixed limits)(?:: (\w+))? -->\n).*?^(<!-- end -->)$"
)

THE_DEFAULT: Final = "the default"
"""What stands for the default of an option each of whose words has a row."""


class Row(NamedTuple):
    """A line of a table: what to write, what is so without it, what it does."""

    written: str
    default: str
    effect: str


def filled(text: str) -> str:
    """A document with its tables made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{_table(match[2], match[3])}{match[4]}", text)


def marks(text: str) -> list[tuple[str, str]]:
    """The kinds and groups of the tables in a document."""
    return [(match[2], match[3]) for match in _MARKED.finditer(text)]


def _table(kind: str, group: str) -> str:
    if kind == "fixed limits":
        return _lines(("what", "at most"), FIXED)
    if kind == "options":
        found = [row for name, each in options.GROUPS[group].items() for row in _option(name, each)]
        return _rows("option", found)
    return _rows("directive", _directives(directives.GROUPS[group]))


def _rows(what: str, found: list[Row]) -> str:
    """Without a column of defaults where nothing has one."""
    if any(row.default for row in found):
        return _lines((what, "default", "effect"), found)
    return _lines((what, "effect"), [(row.written, row.effect) for row in found])


def _lines(head: Iterable[str], found: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, where a `|` within a cell needs a stroke before it."""
    cells = [list(head)]
    cells += [["---"] * len(cells[0])]
    cells += [[cell.replace("|", r"\|") for cell in row] for row in found]
    text = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    return text.replace("| --- ", "|---").replace("--- |", "---|").replace("|  |", "| |")


def _option(name: str, each: options.Option) -> list[Row]:
    default = _default(each.value, OPTIONS_WITHOUT[each.field], each.default)
    if isinstance(each.effect, dict):
        return [
            Row(f"`{name}={word}`", THE_DEFAULT if default == f"`{word}`" else "", effect)
            for word, effect in each.effect.items()
        ]
    written = name if name in FLAGS else f"{name}={each.value.form}"
    return [Row(f"`{written}`", default, each.effect.replace("{bounds}", each.value.bounds))]


def _directives(group: Mapping[str, directives.Directive]) -> list[Row]:
    """Those that do the same have one row."""
    found: list[Row] = []
    for word, each in group.items():
        default = each.default
        if each.kind not in (directives.Kind.NOTHING, directives.Kind.OWN):
            default = _default(each.value, DIRECTIVES_WITHOUT[each.kind][each.field], default)
        written = " ".join(filter(None, (word, each.value.form)))
        row = Row(f"`{written}`", default, each.effect.replace("{bounds}", each.value.bounds))
        if found and found[-1][1:] == row[1:]:
            found[-1] = row._replace(written=f"{found[-1].written}, {row.written}")
        else:
            found.append(row)
    return found


def _default(value: Value, without: object, words: str) -> str:
    """How the model's default is written, as far as it can be; else what the table says of it."""
    for text in _spellings(value, without):
        try:
            read = value.read(text)
        except ValueError:
            continue
        if read == without and type(read) is type(without):
            if words:
                raise ValueError(f"{value.form}: the default is {text}, {words!r} says it once more")
            return f"`{text}`"
    if not words:
        raise ValueError(f"{value.form}: the model has {without!r}, which needs words")
    return words


def _spellings(value: Value, without: object) -> Iterable[str]:
    yield from value.form.split("|")
    if value.form == "TIME" and without:
        yield f"{without}s"
    if isinstance(without, int) and without is not False:
        yield f"{without:04o}" if value.form == "MODE" else f"{without}"


def _plain(kind: type) -> dict[str, object]:
    return {each.name: each.default for each in fields(kind)}


def _without_options() -> dict[str, object]:
    """What a forward has whose options do not say otherwise. Those of TLS are where it has TLS; `None`
    for what is no field of its own."""
    config, problems = parse.parse(b"0 1 a 1 [tls-accept, cert=c, tls-connect]", "")
    accept, connect = config.forwards[0].tls_accept, config.forwards[0].tls_connect
    if problems or accept is None or connect is None:
        raise ValueError(f"a forward with TLS: {problems}")
    fields_of_none = (each.field for each in options.OPTIONS.values())
    return (
        dict.fromkeys(fields_of_none)
        | _plain(Forward)
        | {
            "verify_client": accept.client_required,
            "verify_server": connect.verify,
            "tls_min": accept.minimum,
        }
    )


OPTIONS_WITHOUT: Final = _without_options()
DIRECTIVES_WITHOUT: Final = {
    kind: _plain(Limits if kind is directives.Kind.LIMIT else Config) for kind in directives.Kind
}


def _bytes(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} bytes"


FIXED: Final = (
    ("ports of all ranges together", f"{check.MOST_PORTS:,}"),
    ("backends of a forward", f"{forward.MOST_BACKENDS:,}"),
    ("addresses of a forward's `src=`", f"{MOST_SOURCES:,}"),
    ("TLS handshakes in a worker at a time", f"{handshake.MOST:,}"),
    ("forwards more than at the start, those that reloads have removed included", f"{rows.SPARE:,}"),
    ("files that are read, `include`d ones too", f"{parse.MOST_FILES:,}"),
    ("files that include each other", f"{parse.DEEPEST:,} levels"),
    ("a file of the configuration", _bytes(load.LARGEST)),
    ("a `sorry-file=`", _bytes(parse.LONGEST_SORRY)),
    ("the path of a Unix socket", f"{LONGEST_PATH} bytes"),
    (
        "log lines that a worker keeps for a log which takes nothing; then they are dropped, and counted",
        _bytes(eventlog.QUEUE_BYTES),
    ),
    ("connections to the exporter", f"{http.Limits().connections:,}"),
)
"""What no directive changes."""


def bring_up_to_date(made: Iterable[tuple[Path, str]], arguments: list[str]) -> int:
    """Write each file that is not yet what is made for it; with --check say which, and return 1 if one is."""
    stale = 0
    for path, text in made:
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale = 1
        if arguments == ["--check"]:
            print(f"{path.name} is stale: make man", file=sys.stderr)
        else:
            path.write_text(text, "utf-8")
    return stale if arguments == ["--check"] else 0


def main(arguments: list[str]) -> int:
    """Write what is stale, or say so."""
    return bring_up_to_date(
        ((path, filled(path.read_text("utf-8"))) for path in sorted(DOCS.glob("*.md"))), arguments
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
