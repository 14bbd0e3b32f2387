"""What every row of the campaign has: its Row, and a program that must be as before in the end.

An ordinary run, `make test`, has the rows in small, without those that the marker `campaign` keeps for
the campaign. `pytest tests/faults -m campaign` runs these in small.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import StartForwarder
from tests.faults.aftermath import Aftermath
from tests.faults.row import FULL, Row
from tests.forwarder import Forwarder, Kind

StartWatched = Callable[..., Aftermath]


def compared(*others: Kind) -> pytest.MarkDecorator:
    """The row is for fastfwd, and for these."""
    return pytest.mark.parametrize("kind", ["fastfwd", *others], indirect=True)


HERE: Final = Path(__file__).parent

PASSED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Outside the campaign its own tests are left out, unless `-m` says what to run."""
    if not FULL and not config.option.markexpr:
        config.option.markexpr = "not campaign"


@pytest.hookimpl(tryfirst=True)  # the option -m is obeyed by the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rows of other programs are for the campaign: nothing is asserted of them. No other test runs beside
    a fault."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("alone")
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("kind") if callspec else None
        if item.get_closest_marker("row") and kind not in (None, "fastfwd"):
            item.add_marker("campaign")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether the test came to its end: a row that did not has nothing to say."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """The program under test: fastfwd, unless the row is for others too (`compared`)."""
    found: Kind = getattr(request, "param", "fastfwd")
    return found


@pytest.fixture
def row(request: pytest.FixtureRequest, kind: Kind) -> Iterator[Row]:
    """The row that the test's marker names: `@pytest.mark.row(NUMBER, FAULT, PROMISE)`."""
    marker = request.node.get_closest_marker("row")
    assert marker is not None, "a row's marker is missing"
    made = Row(*marker.args, kind=kind, test=request.node.nodeid.partition("[")[0])
    yield made
    if request.node.stash.get(PASSED, False):  # neither skipped nor cut short
        made.judge()


@pytest.fixture
def watched(forwarder: StartForwarder) -> Iterator[StartWatched]:
    """Start a program with the arguments of `forwarder`; once the test is over, it must come back to
    what it was (`Aftermath`)."""
    started: list[Aftermath] = []

    def start(config: str, **options: object) -> Aftermath:
        running: Forwarder = forwarder(config, **options)
        started.append(Aftermath(running))
        return started[-1]

    yield start
    for each in started:
        each.judge()
