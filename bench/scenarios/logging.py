"""What a line for every connection costs."""

from __future__ import annotations

from pathlib import Path

from bench import clients
from bench.contenders import Contender
from bench.lab import Lab
from bench.processes import wait
from bench.results import Case, Figure
from bench.scenario import Scenario, priced

ACTIVE = 64

KNOWN = {
    "rinetd": {"off", "tab", "common"},
    "fastfwd": {"off", "tab", "common", "json"},
    "haproxy": {"off", "tcplog"},
}
"""The formats of each program."""

LINES = {"rinetd": 1, "fastfwd": 2, "haproxy": 1}
"""The least number of lines that each writes for a connection: one when it is let in, one at its end.
C rinetd often leaves out the second, HAProxy has only that."""

FIGURES = (
    Figure("rate", "connections per second", "1/s"),
    Figure("cpu", "CPU per connection", "µs", ".1f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections, with the log that the case says."""
    log = None if case.label == "off" else case.label
    with lab.start(contender, log=log) as way:
        before = way.cpu()
        found = clients.requests(way.ports[0], ACTIVE, seconds, close=True)
        figures = {"rate": found.rate, **priced(way, before, "cpu", found.count / 1e6)}
        if log is not None:
            path, least = way.directory / "log", LINES[contender.family] * found.count
            wait(lambda: lines(path) >= least, f"{contender.name} has written {least} lines")
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
    FIGURES,
    tuple(Case(label, number) for number, label in enumerate(("off", "tab", "common", "json", "tcplog"))),
    ("rinetd", "haproxy-1", "fastfwd-1", "fastfwd-2"),
    measure,
    suits,
    quick=("off", "tab", "tcplog"),
)
