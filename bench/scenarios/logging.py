"""What a line for every connection costs."""

from __future__ import annotations

from pathlib import Path

from bench.contenders import Contender
from bench.lab import Lab
from bench.processes import wait
from bench.results import Case
from bench.scenario import ACTIVE, CONNECTING, Scenario, small

KNOWN = {
    "rinetd": {"off", "tab", "common"},
    "fastfwd": {"off", "tab", "common", "json"},
    "haproxy": {"off", "tcplog"},
}
"""The formats of each program."""

LINES = {"rinetd": 1, "fastfwd": 2, "haproxy": 1}
"""The least number of lines that each writes for a connection: one when it is let in, one at its end.
C rinetd often leaves out the second, HAProxy has only that."""


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, with the log that the case says."""
    log = None if case.label == "off" else case.label
    with lab.start(contender, log=log) as way:
        figures = small(way, ACTIVE, seconds, close=True)
        if log is not None:
            path, least = way.directory / "log", LINES[contender.family] * figures["count"]
            wait(lambda: lines(path) >= least, f"{contender.name} has written {least:.0f} lines")
        return figures


def lines(path: Path) -> int:
    """How many lines a file has."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def suits(contender: Contender, case: Case) -> bool:
    """Whether it knows the format."""
    return case.label in KNOWN[contender.family]


SCENARIO = Scenario(
    "logging",
    "The connection log",
    "wrk makes 64 connections at a time, one request on each; the contender logs none of them or all, to"
    " a file. tab and common are the formats of rinetd's log, with one line when a connection is let in"
    " and one at its end, of which C rinetd often leaves out the second; tcplog is HAProxy's, one line at"
    " the end. Afterwards the lines are counted.",
    "log",
    CONNECTING,
    (Case("off"), *(Case(label, without="off") for label in ("tab", "common", "json", "tcplog"))),
    ("rinetd", "haproxy-1", "fastfwd-1", "fastfwd-2"),
    measure,
    suits,
    quick=("off", "tab", "tcplog"),
)
