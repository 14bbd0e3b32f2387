"""Metrics, documents, alerts and dashboard agree: every name is the code's, and none is missing.

The code's list is METRICS of observe/collector; docs/metrics.md is its reference.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastfwd.observe.collector import METRICS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "metrics.md"

METRIC = {metric.name: metric for metric in METRICS}
HISTOGRAMS = {metric.name for metric in METRICS if metric.type == "histogram"}

NAME = re.compile(r"(?<![\w:])fastfwd_[a-z]\w*(?![\w:])")
"""A metric's name in a text. What stands between colons is a recorded series' name."""

ROW = re.compile(r"^\| `(fastfwd_\w+)` \| (\w+) \|(.*?)\| (.+) \|$", re.MULTILINE)
QUERIES = re.compile(r"```promql\n(.*?)```", re.DOTALL)

TEXTS = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*")]
    if path.suffix in {".md", ".yml", ".json", ".py", ".html", ".conf", ".service"}
    and "ansible" not in path.relative_to(ROOT).with_suffix("").parts  # roles name variables so
)


def names(text: str) -> set[str]:
    """The metrics that a text names, a histogram's series counted as the histogram."""
    found = set()
    for name in NAME.findall(text):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        found.add(base if base in HISTOGRAMS else name)
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_text_names_only_what_there_is(path: Path) -> None:
    """Every metric it names is one of the program's."""
    assert names(path.read_text()) - set(METRIC) == set()


def test_the_reference_has_every_metric() -> None:
    """docs/metrics.md has one row for each."""
    assert sorted(name for name, *_ in ROW.findall(REFERENCE.read_text())) == sorted(METRIC)


@pytest.mark.parametrize("name", METRIC)
def test_a_row_of_the_reference(name: str) -> None:
    """Type and labels in it are the code's."""
    (row,) = (row for row in ROW.findall(REFERENCE.read_text()) if row[0] == name)
    _, kind, labels, _ = row
    assert (kind, tuple(re.findall(r"`(\w+)`", labels))) == (METRIC[name].type, METRIC[name].labels)


@pytest.mark.parametrize("name", METRIC)
def test_the_reference_has_a_query_for_a_metric(name: str) -> None:
    """It shows at least one use of it."""
    assert name in names("\n".join(QUERIES.findall(REFERENCE.read_text())))
