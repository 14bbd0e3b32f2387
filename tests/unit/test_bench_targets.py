"""Targets of the bench: what holds, what does not, what is not judged."""

from __future__ import annotations

import pytest

from bench.results import Measurement
from bench.scenarios import SCENARIOS
from bench.targets import TARGETS, Target, Verdict, judge
from tests.unit.measured import CPU, result

CASE = "64 connections"
REQUESTS = {
    "requests": result(
        "requests",
        {
            (CASE, "rinetd"): [10, 10, 10],
            (CASE, "haproxy-1"): [10, 10, 10],
            (CASE, "haproxy+splice-1"): [13, 13, 13],
            (CASE, "haproxy-2"): [8, 8, 8],
            (CASE, "fastfwd-1"): [10, 10.4, 11],
            (CASE, "fastfwd-2"): [9, 9, 9],
        },
        figure=CPU,
    )
}


def verdict(reference: str, workers: int) -> Verdict:
    """What is judged of the requests above."""
    (found,) = (
        each
        for each in judge(REQUESTS)
        if (each.target.scenario, each.target.reference, each.workers) == ("requests", reference, workers)
    )
    return found


def medians(verdict: Verdict) -> list[float | None]:
    """The medians of its ratios."""
    return [ratio and ratio.median for ratio in verdict.ratios]


def test_a_target_holds_if_the_median_does() -> None:
    """1.04 is within 1.05, though one round gave 1.1."""
    assert verdict("haproxy", 1).holds is True


def test_as_many_workers_are_judged_as_the_other_has_threads() -> None:
    """9 µs beside the 8 of two threads."""
    found = verdict("haproxy", 2)
    assert (medians(found), found.holds) == ([9 / 8], False)


def test_two_workers_beside_a_program_with_one_thread_are_shown_and_not_judged() -> None:
    found = verdict("rinetd", 2)
    assert (medians(found), found.holds) == ([0.9], None)


def test_haproxy_that_always_splices_is_shown_and_not_judged() -> None:
    found = verdict("haproxy+splice", 1)
    assert (medians(found), found.holds) == ([0.8], None)


def test_nginx_has_one_process_and_is_judged_beside_one_worker() -> None:
    case = "64 flows"
    found = result(
        "datagrams",
        {(case, "nginx"): [10], (case, "fastfwd-1"): [13], (case, "fastfwd-2"): [13]},
        figure=CPU,
    )
    assert [
        (each.workers, medians(each), each.holds)
        for each in judge({"datagrams": found})
        if (each.target.case, each.target.stretch) == (case, False)
    ] == [(1, [1.3], True), (2, [1.3], None)]


def test_stunnel_has_threads_enough_to_be_judged_beside_any_number_of_workers() -> None:
    case = "64 connections"
    found = result(
        "tls-requests",
        {
            (case, "stunnel"): [10],
            (case, "hitch"): [10],
            (case, "fastfwd-1"): [12],
            (case, "fastfwd-2"): [11],
        },
    )
    assert [
        (each.target.reference, each.workers, each.holds)
        for each in judge({"tls-requests": found})
        if each.target.scenario == "tls-requests"
    ] == [("stunnel", 1, True), ("stunnel", 2, False), ("hitch", 1, True), ("hitch", 2, None)]


@pytest.mark.parametrize(("p99", "bulk", "holds"), [(7, 11, True), (9, 11, False), (7, 9, False)])
def test_two_bounds_hold_only_both_at_once(p99: float, bulk: float, holds: bool) -> None:
    found = result("mixed", {("2 flows", "fastfwd-1"): [], ("2 flows", "haproxy-1"): []})
    for name, figures in (
        ("fastfwd-1", {"p99": p99, "bulk": bulk}),
        ("haproxy-1", {"p99": 10, "bulk": 10}),
    ):
        found.measurements.append(Measurement(0, "2 flows", name, dict(figures)))
    assert [each.holds for each in judge({"mixed": found}) if each.target.scenario == "mixed"] == [
        holds,
        None,
        None,
        None,
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    assert {each.holds for each in judge({})} == {None}


def test_at_least_is_the_other_direction() -> None:
    found = result("bulk", {("1 flow", "rinetd"): [1], ("1 flow", "fastfwd-1"): [1.5]})
    holds = {
        each.target.reference: each.holds
        for each in judge({"bulk": found})
        if (each.target.scenario, each.target.bounds[0].figure, each.workers) == ("bulk", "rate", 1)
    }
    assert holds == {"rinetd": True, "haproxy": None, "haproxy+splice": None}


def test_the_price_of_a_setting_is_judged_beside_the_same_contender_without_it() -> None:
    found = result(
        "logging", {("off", "fastfwd-1"): [100], ("tab", "fastfwd-1"): [94]}, without={"tab": "off"}
    )
    (holds,) = (
        each.holds
        for each in judge({"logging": found})
        if each.target.scenario == "logging" and each.workers == 1
    )
    assert holds is False


@pytest.mark.parametrize(
    "target", TARGETS, ids=lambda each: f"{each.scenario}-{each.bounds[0].figure}-{each.reference}"
)
def test_a_target_is_about_something_that_is_measured(target: Target) -> None:
    scenario = SCENARIOS[target.scenario]
    assert {bound.figure for bound in target.bounds} <= {figure.name for figure in scenario.figures}
    (case,) = (case for case in scenario.cases if case.label == target.case)
    assert target.without == case.without
    assert {f"fastfwd-{workers}" for workers in (1, 2)} | {target.to(1).contender} <= set(scenario.contenders)
