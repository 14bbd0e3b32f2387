"""Writes debian/changelog: an entry for each release in CHANGELOG.md, the newest with the package's revision.

`make deb` calls it in the top directory of the tree: `changelog.py REVISION MAINTAINER`. The version is the
program's own, so the two cannot differ; one that CHANGELOG.md does not have is an error.
"""

from __future__ import annotations

import re
import sys
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path


def entries(changes: str, version: str, revision: str, maintainer: str) -> str:
    """The text. Releases that are newer than `version`, or have no date yet, are left out."""
    releases = re.split(r"(?m)^## \[(\d[^]]*)\] - (\d{4}-\d\d-\d\d)\n", changes)[1:]
    found = list(zip(releases[::3], releases[1::3], releases[2::3], strict=True))
    versions = [each for each, _, _ in found]
    if version not in versions:
        raise SystemExit(
            f"CHANGELOG.md: expected a heading '## [{version}] - DATE', as fastfwd/__init__.py says"
        )
    blocks = []
    for number, date, text in found[versions.index(version) :]:
        items = [" ".join(item.split()) for item in re.findall(r"(?m)^- (.*\n(?:  .*\n)*)", text)]
        lines = (textwrap.fill(item, 78, initial_indent="  * ", subsequent_indent="    ") for item in items)
        at = format_datetime(datetime.fromisoformat(date).replace(hour=12, tzinfo=UTC))
        blocks.append(
            f"fastfwd ({number}-{revision}) unstable; urgency=medium\n\n"
            + "\n".join(lines)
            + f"\n\n -- {maintainer}  {at}\n"
        )
        revision = "1"
    return "\n".join(blocks)


def main() -> None:
    """As above."""
    revision, maintainer = sys.argv[1:]
    said = re.search(r'__version__ = "(.*)"', Path("fastfwd/__init__.py").read_text("utf-8"))
    assert said
    sys.stdout.write(entries(Path("CHANGELOG.md").read_text("utf-8"), said[1], revision, maintainer))


if __name__ == "__main__":
    main()
