"""Results of the campaign -> the table in docs/reliability.md: `python -m tests.faults.report`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import orjson

from tests.faults.row import RESULTS

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
PROGRAMS: Final = {"fastfwd": "fastfwd", "rinetd": "C rinetd", "haproxy": "HAProxy"}
"""The columns, in their order, and their headings."""

BLOCK: Final = re.compile(r"(<!-- faults:begin -->\n).*?(<!-- faults:end -->)", re.DOTALL)


def results() -> dict[int, dict[str, dict[str, Any]]]:
    """What was found: number of the row -> program -> its file."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        each = orjson.loads(path.read_bytes())
        found.setdefault(each["number"], {})[each["program"]] = each
    return found


def outcome(result: dict[str, Any] | None) -> str:
    """How often it was tried and did not hold. Of n tries without a failure, the true rate is
    below 3/n with 95 % confidence (the rule of three)."""
    if result is None:
        return "–"
    tries, broken = result["tries"], result["broken"]
    figures = "; ".join(f"{name} {value}" for name, value in result["figures"].items())
    # From a hundred tries on the bound says something.
    bound = f" (< {300 / tries:.2g} %)" if not broken and tries >= 100 else ""
    words = f"{broken:,} of {tries:,} failed{bound}"
    return f"{words}; {figures}" if figures else words


def title(name: str, program: str, found: dict[int, dict[str, dict[str, Any]]]) -> str:
    """`name` and the versions of `program` that the results are of, as far as they say."""
    versions = {each[program].get("version", "") for each in found.values() if program in each}
    return " ".join([name, ", ".join(sorted(versions - {""}))]).strip()


def table() -> str:
    """Markdown: a row per fault, a column per program."""
    found = results()
    titles = [title(name, program, found) for program, name in PROGRAMS.items()]
    lines = [
        f"| # | fault | promise | {' | '.join(titles)} | test |",
        f"| ---: | --- | --- | {'--- | ' * len(titles)}--- |",
    ]
    for number, each in sorted(found.items()):
        ours = each.get("fastfwd") or next(iter(each.values()))
        outcomes = " | ".join(outcome(each.get(program)) for program in PROGRAMS)
        lines.append(
            f"| {number} | {ours['fault']} | {ours['promise']} | {outcomes} |"
            f" `{ours['test'].removeprefix('tests/faults/')}` |"
        )
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The document with the table of the present results."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", text)


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
