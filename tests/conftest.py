"""Fixtures for every test: running programs that are cleaned up, backends, free ports, a time limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import deadline, ports
from tests.forwarder import Forwarder
from tests.servers import Handler, Server, serve
from tests.sockets import Listener

TIME_LIMIT = 120
"""Seconds for one test; a test that needs more says so with `pytest.mark.timeout`."""

StartForwarder = Callable[..., Forwarder]
StartServer = Callable[..., Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the time limit."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(deadline.seconds(TIME_LIMIT)))


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Call it for a port that nobody uses."""
    return ports.free_port


@pytest.fixture
def forwarder(tmp_path: Path) -> Iterator[StartForwarder]:
    """Call it with the arguments of `Forwarder` after the directory; all of them are stopped and judged."""
    started: list[Forwarder] = []

    def start(config: str, **options: object) -> Forwarder:
        started.append(Forwarder(tmp_path, config, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    with ExitStack() as stack:
        for each in started:
            stack.callback(each.close)


@pytest.fixture
def backend() -> Iterator[StartServer]:
    """Call it with a handler of tests.servers and its arguments; gives a running `Server`."""
    with ExitStack() as stack:

        def start(handler: Handler, *arguments: object, **options: object) -> Server:
            return stack.enter_context(serve(handler, *arguments, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A backend that the test plays by hand."""
    with Listener() as held:
        yield held
