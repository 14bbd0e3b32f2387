"""Tables of the bench, and the documents that have them: regenerated, they are what is committed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import report
from bench.processes import ROOT
from bench.results import DIRECTORY, Measurement, load_all
from bench.scenarios import SCENARIOS
from tests.unit.measured import TITLES, result

CASE = "64 connections"
FOUND = result(
    "requests",
    {
        (CASE, "rinetd"): [50_000, 40_000, 60_000],
        (CASE, "haproxy-1"): [50_000, 50_000, 50_000],
        (CASE, "fastfwd-1"): [60_000, 60_000, 60_000],
    },
)
LOGGING = result(
    "logging",
    {("off", "fastfwd-1"): [100, 100], ("tab", "fastfwd-1"): [95, 97]},
    variable="log",
    without={"tab": "off"},
)
PUBLISHED = load_all(DIRECTORY, SCENARIOS)


def rows(text: str) -> list[list[str]]:
    """The cells of the Markdown tables in `text`."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def test_a_table_has_medians_and_ratios_with_their_extremes() -> None:
    (table,) = report.tables(FOUND)
    assert table.head == ["requests per second (1/s, more is better)", CASE]
    assert table.rows == [
        ["C rinetd", "50,000 [40,000–60,000]"],
        ["HAProxy, 1 thread", "50,000"],
        ["fastfwd, 1 worker", "60,000"],
        ["fastfwd, 1 worker ÷ C rinetd", "1.20 [1.00–1.50]"],
        ["fastfwd, 1 worker ÷ HAProxy, 1 thread", "1.20"],
    ]


def test_the_price_of_a_setting_is_a_ratio_to_the_same_contender() -> None:
    (table,) = report.tables(LOGGING)
    assert table.rows[-1] == ["fastfwd, 1 worker ÷ itself, off", report.NOTHING, "0.96 [0.95–0.97]"]


def test_documents_have_all_ratios_in_one_table() -> None:
    table = report.ratios(FOUND)
    assert table is not None
    assert table.head == ["", "fastfwd, 1 worker ÷ C rinetd", "fastfwd, 1 worker ÷ HAProxy, 1 thread"]
    assert table.rows == [["requests per second", "1.20 [1.00–1.50]", "1.20"]]


def test_a_scenario_of_one_contender_has_its_figures_in_the_documents() -> None:
    scraped = f"{CASE}, scraped"
    found = result("scrape", {(CASE, "fastfwd-2"): [4], (scraped, "fastfwd-2"): [3]}, without={scraped: CASE})
    text = report.block("scrape", {"scrape": found}, "")
    assert "| fastfwd, 2 workers | 4 | 3 |" in text
    assert f"| fastfwd, 2 workers ÷ itself, {CASE} | – | 0.75 |" in text


def test_what_nobody_measured_has_no_row() -> None:
    found = result("requests", {(CASE, "rinetd"): [1]})
    found.contenders["fastfwd-1"] = TITLES["fastfwd-1"]
    (table,) = report.tables(found)
    assert [row[0] for row in table.rows] == ["C rinetd"]


def test_plain_columns_are_aligned() -> None:
    (table,) = report.tables(FOUND)
    assert len({len(line) for line in table.plain().splitlines()}) == 1


def test_every_row_of_a_markdown_table_has_as_many_cells() -> None:
    text = report.whole({"requests": FOUND, "logging": LOGGING})
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_who_was_left_out_is_named_with_the_reason() -> None:
    found = result("requests", {(CASE, "rinetd"): [1]})
    found.omitted["socat"] = "not available\non this machine"
    assert "Left out: socat: not available on this machine." in report.whole({"requests": found})


def test_who_failed_is_named_with_the_reason() -> None:
    found = result("requests", {(CASE, "rinetd"): [1]})
    found.failed["nginx"] = "in round 2"
    assert "Failed: nginx: in round 2." in report.whole({"requests": found})


def test_a_target_of_two_conditions_shows_both_at_once() -> None:
    figures = {"p99": (7.0, 10.0), "bulk": (11.0, 10.0)}
    found = result("mixed", {("2 flows", "fastfwd-1"): [], ("2 flows", "haproxy-1"): []})
    for name, number in (("fastfwd-1", 0), ("haproxy-1", 1)):
        found.measurements.append(
            Measurement(0, "2 flows", name, {figure: pair[number] for figure, pair in figures.items()})
        )
    (row,) = (row for row in report.targets({"mixed": found}).rows if row[1] == "≤ 0.8 and ≥ 1 × HAProxy")
    assert row[2:] == ["0.70 and 1.10, holds", report.NOTHING]


def test_the_summary_is_relative_to_c_rinetd() -> None:
    summary = report.summary({"requests": FOUND})
    assert summary is not None
    assert summary.rows == [
        ["64 busy connections: requests/s", "1.00", *[report.NOTHING] * 3, "1.20", report.NOTHING]
    ]


@pytest.mark.parametrize("line", report.SUMMARY, ids=lambda each: f"{each.scenario}-{each.figure}")
def test_a_line_of_the_summary_is_about_something_that_is_measured(line: report.Line) -> None:
    scenario = SCENARIOS[line.scenario]
    assert line.figure in [figure.name for figure in scenario.figures]
    assert line.case in [case.label for case in scenario.cases]


def test_a_block_is_replaced_and_its_surroundings_stay() -> None:
    text = "before\n<!-- bench:requests -->\nold\n<!-- bench:end -->\nafter\n"
    once = report.fill(text, {"requests": FOUND}, "images/")
    assert once.startswith("before\n<!-- bench:requests -->\nHow it is measured.")
    assert once.endswith("<!-- bench:end -->\nafter\n")
    assert "images/requests.svg" in once
    assert "old" not in once


def test_filling_twice_is_filling_once() -> None:
    text = "<!-- bench:targets -->\n<!-- bench:end -->\n<!-- bench:requests -->\n<!-- bench:end -->\n"
    once = report.fill(text, {"requests": FOUND}, "")
    assert report.fill(once, {"requests": FOUND}, "") == once


@pytest.mark.parametrize("name", ["machine", "summary", *SCENARIOS])
def test_a_block_without_results_says_so(name: str) -> None:
    assert "Not measured yet" in report.block(name, {}, "")


def test_a_block_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="'speed'"):
        report.fill("<!-- bench:speed -->\n<!-- bench:end -->\n", {}, "")


def test_a_report_has_every_scenario_with_its_picture(tmp_path: Path) -> None:
    FOUND.save(tmp_path)
    LOGGING.save(tmp_path)
    report.write(tmp_path)
    text = (tmp_path / report.REPORT).read_text()
    assert re.findall(r"\]\((\w+\.svg)\)", text) == ["requests.svg", "logging.svg"]
    assert (tmp_path / "requests.svg").exists()


def test_without_results_nothing_is_written(tmp_path: Path) -> None:
    assert report.write(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_results_elsewhere_change_no_document(tmp_path: Path) -> None:
    FOUND.save(tmp_path)
    assert not set(report.write(tmp_path)) & set(report.DOCUMENTS)


# What is committed


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_is_what_the_results_give(path: Path) -> None:
    """If this fails: `python -m bench --report`."""
    assert report.filled(path, PUBLISHED) == path.read_text()


def test_every_scenario_has_its_block() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [found[2] for found in report.BLOCK.finditer(text)] == ["machine", "targets", *SCENARIOS]


@pytest.mark.skipif(not PUBLISHED, reason="nothing is published yet")
def test_the_published_report_is_what_the_results_give() -> None:
    assert (DIRECTORY / report.REPORT).read_text() == report.whole(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_scenario_has_its_picture_and_its_table(name: str) -> None:
    assert (DIRECTORY / f"{name}.svg").exists()
    assert len(rows(report.block(name, PUBLISHED, ""))) > 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results_are_of_a_full_run(name: str) -> None:
    found = PUBLISHED[name]
    assert found.rounds >= 3
    assert "not available on this machine" not in found.omitted.values()
    assert [name for name in found.failed if name.startswith("fastfwd")] == []
