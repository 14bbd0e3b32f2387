"""The bench's command line: what is refused, and what a run may overwrite."""

from __future__ import annotations

import pytest

from bench.__main__ import UNPUBLISHED, arguments, directory_of
from bench.contenders import CONTENDERS
from bench.results import DIRECTORY
from bench.scenarios import SCENARIOS


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says to these arguments, which it must not take."""
    with pytest.raises(SystemExit) as ended:
        arguments(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_scenario_is_an_error_that_lists_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "bulk", "speed")
    assert f"no scenario 'speed'; there are: {', '.join(SCENARIOS)}" in said


def test_an_unknown_contender_is_an_error_that_lists_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--contender", "fastfwd")
    assert f"no contender 'fastfwd'; there are: {', '.join(CONTENDERS)}" in said


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--seconds", "0.5"), ("--rounds", "many")])
def test_senseless_numbers_are_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, str]) -> None:
    assert words[0] in refused(capsys, *words)


@pytest.mark.parametrize(
    "words", [["--quick"], ["--contender", "rinetd"], ["--rounds", "1"], ["--seconds", "1"]], ids=" ".join
)
def test_a_run_that_lacks_something_replaces_no_published_results(words: list[str]) -> None:
    assert directory_of(arguments(words)) == UNPUBLISHED


def test_output_says_otherwise() -> None:
    assert directory_of(arguments(["--quick", "--output", str(DIRECTORY)])) == DIRECTORY


def test_a_report_is_made_of_the_published_results() -> None:
    assert directory_of(arguments(["--report"])) == DIRECTORY
