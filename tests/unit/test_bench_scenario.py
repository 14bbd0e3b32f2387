"""How the bench runs a scenario: in which order, with whom, and what a failure takes with it."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import cast

import pytest

from bench.contenders import CONTENDERS, Contender
from bench.lab import Lab
from bench.processes import INSIDE, queued
from bench.results import Case, Figure
from bench.scenario import Scenario, measure
from bench.scenarios import SCENARIOS

NAMES = ["direct", "fastfwd-1"]
NOWHERE = cast(Lab, None)
"""For scenarios that start nothing."""


def scenario(failing: str = "", rounds: int | None = None) -> Scenario:
    """One that answers at once, except for the contender `failing`, for which it breaks."""

    def figures(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
        assert contender.name != failing, "nobody expected this"
        return {"rate": 1.0, "secret": 2.0}

    return Scenario(
        "nothing",
        "Nothing",
        "It is not.",
        "",
        (Figure("rate", "rate", "1/s"),),
        (Case("a"), Case("b")),
        tuple(NAMES),
        figures,
        quick=("a",),
        rounds=rounds,
    )


def test_everybody_is_in_every_round_in_another_order() -> None:
    assert [(n, case.label, each.name) for n, case, each in scenario().steps(NAMES, 2, False)] == [
        (0, "a", "direct"),
        (0, "a", "fastfwd-1"),
        (0, "b", "direct"),
        (0, "b", "fastfwd-1"),
        (1, "a", "fastfwd-1"),
        (1, "a", "direct"),
        (1, "b", "fastfwd-1"),
        (1, "b", "direct"),
    ]


def test_a_slow_scenario_has_fewer_rounds() -> None:
    assert max(n for n, _, _ in scenario(rounds=3).steps(NAMES, 5, False)) == 2


def test_the_quick_form_has_fewer_cases() -> None:
    assert {case.label for _, case, _ in scenario().steps(NAMES, 1, True)} == {"a"}


@pytest.mark.parametrize("each", SCENARIOS.values(), ids=SCENARIOS)
def test_every_scenario_is_about_contenders_and_cases_that_exist(each: Scenario) -> None:
    labels = {case.label for case in each.cases}
    assert set(each.contenders) <= CONTENDERS.keys()
    assert set(each.beside) <= set(each.contenders)
    assert each.omitted.keys() <= CONTENDERS.keys() - set(each.contenders)
    assert set(each.quick) <= labels
    assert {case.without for case in each.cases} <= {None, *labels}


def test_what_no_figure_is_declared_for_is_not_kept() -> None:
    found = measure(scenario(), NOWHERE, NAMES, 1, 1.0, False, print)
    assert {figure for each in found.measurements for figure in each.figures} == {"rate"}


def test_a_scenario_has_ratios_to_whom_it_says_instead_of_the_usual_ones() -> None:
    present = ["rinetd", "haproxy-1", "nginx", "fastfwd-1"]
    usual, beside = scenario(), replace(scenario(), beside=("nginx", "socat"))
    assert usual.references(CONTENDERS["fastfwd-1"], present) == ["rinetd", "haproxy-1"]
    assert beside.references(CONTENDERS["fastfwd-1"], present) == ["nginx"]
    assert beside.references(CONTENDERS["nginx"], present) == []


def test_who_fails_is_left_out_and_the_others_go_on() -> None:
    """Whatever it is, an assertion included."""
    found = measure(scenario(failing="direct"), NOWHERE, NAMES, 2, 1.0, False, print)
    assert {each.contender for each in found.measurements} == {"fastfwd-1"}
    assert len(found.measurements) == 4
    assert found.failed["direct"].startswith("in round 1, a: AssertionError: nobody expected this")


def test_rules_are_changed_only_in_a_namespace_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INSIDE, raising=False)
    assert not CONTENDERS["dnat"].available()


def test_a_machine_is_described_with_its_congestion_control() -> None:
    found = measure(scenario(), NOWHERE, NAMES, 1, 1.0, False, print)
    assert found.machine["congestion control"] in available()


def available() -> list[str]:
    """What this kernel has."""
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control", encoding="ascii") as file:
        return file.read().split()


def test_connections_that_nobody_has_taken_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        assert queued(port) == 3
        server.accept()[0].close()
        assert queued(port) == 2
        for client in clients:
            client.close()
