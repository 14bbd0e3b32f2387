"""What more threads, or workers, are good for."""

from __future__ import annotations

from bench.contenders import Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import SERVING, Scenario, serving


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Requests and then connections."""
    with lab.start(contender) as way:
        return serving(way, seconds)


SCENARIO = Scenario(
    "scaling",
    "More threads or workers",
    "wrk asks for a file of 100 bytes, first over 64 connections that stay open, then over a new one each"
    " time, 64 at a time. wrk and nginx, with a thread each, run on the same processors.",
    "",
    SERVING,
    (Case("64 connections"),),
    ("haproxy-1", "haproxy-2", "haproxy-4", "fastfwd-1", "fastfwd-2", "fastfwd-4"),
    measure,
    rounds=3,
)
