"""The arithmetic of the bench: medians, ratios within a round, and who is compared with whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import results
from bench.results import Measurement, Reference, Spread
from tests.unit.measured import NAMES, result

CASE = "64 connections"
RINETD = Reference("rinetd")


def test_a_value_is_the_median_with_the_extremes() -> None:
    assert result("requests", {(CASE, "rinetd"): [5, 1, 3]}).value(CASE, "rinetd", "rate") == Spread(3, 1, 5)


def test_a_ratio_is_the_median_of_ratios_and_not_a_ratio_of_medians() -> None:
    """The second round was slow for both; the medians alone would give 1."""
    found = result("requests", {(CASE, "fastfwd-1"): [100, 2, 90], (CASE, "rinetd"): [50, 1, 90]})
    assert found.ratio(CASE, "fastfwd-1", "rate", RINETD) == Spread(2, 1, 2)


def test_a_round_that_one_of_the_two_lacks_is_in_no_ratio() -> None:
    found = result("requests", {(CASE, "fastfwd-1"): [1, 2], (CASE, "rinetd"): [1]})
    assert found.ratio(CASE, "fastfwd-1", "rate", RINETD) == Spread(1, 1, 1)


def test_what_was_not_measured_has_no_value_and_no_ratio() -> None:
    found = result("requests", {(CASE, "fastfwd-1"): [1]})
    found.measurements.append(Measurement(0, CASE, "direct", {}))
    assert found.value(CASE, "direct", "rate") is None
    assert found.ratio(CASE, "fastfwd-1", "rate", Reference("direct")) is None


def test_a_ratio_to_nothing_is_none() -> None:
    found = result("reload", {(CASE, "fastfwd-1"): [3], (CASE, "rinetd"): [0]})
    assert found.ratio(CASE, "fastfwd-1", "rate", RINETD) is None


def test_a_setting_is_compared_with_the_same_contender_without_it() -> None:
    found = result(
        "logging",
        {("off", "fastfwd-1"): [10, 20], ("tab", "fastfwd-1"): [9, 19]},
        without={"tab": "off"},
    )
    assert found.comparisons() == [("fastfwd-1", Reference("fastfwd-1", "off"))]
    assert found.ratio("tab", "fastfwd-1", "rate", Reference("fastfwd-1", "off")) == Spread(0.925, 0.9, 0.95)


def test_a_case_has_no_ratio_to_one_that_it_does_not_name() -> None:
    found = result(
        "scrape",
        {(case, "fastfwd-2"): [1] for case in ("2", "2, scraped", "64")},
        without={"2, scraped": "2"},
    )
    to = Reference("fastfwd-2", "2")
    assert [found.ratio(case.label, "fastfwd-2", "rate", to) is not None for case in found.cases] == [
        False,
        True,
        False,
    ]


def test_fastfwd_is_compared_with_c_rinetd_and_each_haproxy_of_as_many_threads() -> None:
    found = result("requests", {(CASE, name): [1.0] for name in NAMES})
    assert [(contender, to.contender) for contender, to in found.comparisons()] == [
        ("fastfwd-1", "rinetd"),
        ("fastfwd-1", "haproxy-1"),
        ("fastfwd-1", "haproxy+splice-1"),
        ("fastfwd-2", "rinetd"),
        ("fastfwd-2", "haproxy-2"),
    ]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    found = result("bulk", {("1 flow", "rinetd"): [1.5, 2.5]})
    assert results.load(found.save(tmp_path)) == found


def test_all_results_of_a_directory_come_in_the_order_of_the_names(tmp_path: Path) -> None:
    for name in ("connections", "bulk"):
        result(name, {("1 flow", "rinetd"): [1]}).save(tmp_path)
    assert list(results.load_all(tmp_path, ["bulk", "idle", "connections"])) == ["bulk", "connections"]


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"scenario": "bulk"}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bulk.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"bulk\.json is not a result"):
        results.load(path)
