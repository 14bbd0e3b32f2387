"""Small requests in TLS, on connections that stay open."""

from __future__ import annotations

from bench.contenders import ENCRYPTING, Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import Scenario, small
from bench.scenarios.requests import FIGURES


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Requests over as many connections as the case says."""
    with lab.start_tls(contender) as way:
        return small(way, int(case.value), seconds, tls=True)


SCENARIO = Scenario(
    "tls-requests",
    "Small requests in TLS",
    "wrk asks for a file of 100 bytes as fast as the answers come, in TLS 1.3, one request at a time on each"
    " connection; nginx gets the requests without TLS.",
    "connections",
    FIGURES,
    (Case("64 connections", 64),),
    ENCRYPTING,
    measure,
)
