"""`python -m bench`, really run: short, and far from the published results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fastfwd
from bench.results import Result, load
from tests import deadline, processes
from tests.deadline import until
from tests.peers import require_peer

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "bench", "--quick", "--contender", "fastfwd-1"]


@dataclass(frozen=True, slots=True)
class Done:
    """A run that has ended: its directory, what it said, and how many of its processes are left."""

    directory: Path
    status: int
    stdout: str
    stderr: str
    left: list[int]

    def result(self, scenario: str) -> Result:
        """What it saved of a scenario."""
        return load(self.directory / f"{scenario}.json")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Three scenarios with three contenders, of which one is not installed; no namespace either, as
    for a user who is not root, and no git."""
    directory = tmp_path_factory.mktemp("bench")
    programs = directory / "programs"
    programs.mkdir()
    for name in ("wrk", "iperf3", "nginx", "rinetd"):
        (programs / name).symlink_to(require_peer(name))
    mark = f"FASTFWD_TEST_MARK={uuid.uuid4()}"
    ended = subprocess.run(
        [
            *COMMAND,
            *("requests", "connections", "datagrams", "--contender", "rinetd", "--contender", "socat"),
            *("--output", str(directory / "results")),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": str(programs), "FASTFWD_TEST_MARK": mark.partition("=")[2]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline.seconds(90),
        check=False,
    )
    left = processes.marked(mark)
    return Done(directory / "results", ended.returncode, ended.stdout, ended.stderr, left)


def test_a_run_succeeds(done: Done) -> None:
    assert (done.status, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize("scenario", ["requests", "connections", "datagrams"])
def test_each_scenario_is_saved_with_every_figure(done: Done, scenario: str) -> None:
    found = done.result(scenario)
    assert list(found.contenders) == ["rinetd", "fastfwd-1"]
    for each in found.measurements:
        assert all(each.figures[figure.name] > 0 for figure in found.figures)
    assert len(found.measurements) == 2


def test_tables_are_printed_with_ratios(done: Done) -> None:
    # Four figures of requests, three of connections, four of datagrams.
    assert done.stdout.count("fastfwd, 1 worker ÷ C rinetd") == 4 + 3 + 4


def test_progress_is_not_among_the_tables(done: Done) -> None:
    assert "requests: round 1 of 1, 64 connections, rinetd" in done.stderr
    assert "round 1 of" not in done.stdout


def test_there_is_a_report_with_pictures(done: Done) -> None:
    text = (done.directory / "README.md").read_text()
    for scenario in ("requests", "connections", "datagrams"):
        assert f"]({scenario}.svg)" in text
        ElementTree.parse(done.directory / f"{scenario}.svg")


def test_a_contender_that_is_not_installed_is_named_and_left_out(done: Done) -> None:
    assert "socat is left out of connections: not available on this machine" in done.stderr
    assert done.result("connections").omitted == {"socat": "not available on this machine"}


def test_a_version_needs_no_git(done: Done) -> None:
    assert done.result("requests").versions["fastfwd-1"] == fastfwd.__version__


def test_without_a_namespace_it_says_what_that_means(done: Done) -> None:
    assert "there is no network namespace and no DNAT" in done.stderr


def test_nothing_is_left_running(done: Done) -> None:
    assert done.left == []


def test_an_interrupted_run_keeps_what_is_complete_and_leaves_nothing_running(tmp_path: Path) -> None:
    """Interrupted in the second scenario of two; only the program itself gets the signal."""
    for name in ("wrk", "iperf3", "nginx"):
        require_peer(name)
    said, mark = tmp_path / "stderr", f"FASTFWD_TEST_MARK={uuid.uuid4()}"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "connections", "requests", "--output", str(tmp_path / "results")],
            cwd=ROOT,
            env={**os.environ, "FASTFWD_TEST_MARK": mark.partition("=")[2]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        until(lambda: "requests: round" in said.read_text(), 60, "the second scenario")
        until(lambda: "wrk" in [processes.stat(pid).comm for pid in processes.marked(mark)], 20, "a client")  # type: ignore[union-attr]
        process.send_signal(signal.SIGINT)
        assert process.wait(deadline.seconds(30)) == 130, said.read_text()
        assert processes.marked(mark) == []
    finally:
        for pid in processes.marked(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert "bench: stopped" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["connections.json"]
