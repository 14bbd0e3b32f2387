"""Datagrams through the forwarders that the bench compares: everybody's flows are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psutil
import pytest

from bench import clients
from bench.contenders import CONTENDERS, Way
from bench.lab import Lab
from bench.processes import family
from tests.peers import require_peer

pytestmark = pytest.mark.alone

FLOWS = 100


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Backends; no namespace."""
    for name in ("wrk", "iperf3", "nginx"):
        require_peer(name)
    with closing(Lab()) as lab:
        yield lab


@pytest.fixture(params=["rinetd", "nginx", "fastfwd-1", "fastfwd-2"])
def way(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Way]:
    """A contender that forwards datagrams."""
    contender = CONTENDERS[request.param]
    if contender.program:
        require_peer(contender.program)
    if not contender.available():
        pytest.skip(f"{contender.name} is not available")
    with lab.start_datagrams(contender) as way:
        yield way


def sockets(way: Way) -> int:
    """The UDP sockets of a contender's processes."""
    found = {
        connection.laddr
        for pid in way.pids
        for process in family(pid)
        for connection in psutil.Process(process.pid).net_connections("udp4")
    }
    return len(found)


def test_a_flow_is_there_once_and_lasts_over_many_round_trips(way: Way) -> None:
    """A socket each, beside those to listen on and of who asked whether it forwards."""
    before = sockets(way)
    with clients.Datagrams(way.ports[0], FLOWS) as flows:
        found = flows.run(0.2)
        assert found.count > FLOWS
        assert found.lost == 0
        assert sockets(way) == before + FLOWS
