"""What fastfwd is meant to reach beside C rinetd and HAProxy, and whether it does.

The table is data. report shows the verdicts; nothing fails because of one: a target that
is missed is a fact about fastfwd, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Result, Spread

WORKERS = (1, 2)
"""The numbers of workers that are judged."""


@dataclass(frozen=True, slots=True)
class Target:
    """The median ratio of `figure` in `case` to the family `reference` is to be at most
    `bound`, or at least if not `most`. Without a `reference` it is the ratio to the same
    contender in `reference_case`. A `stretch` target is one that nothing is promised for."""

    scenario: str
    figure: str
    case: str
    reference: str | None
    bound: float
    most: bool = False
    reference_case: str | None = None
    stretch: bool = False

    def against(self, workers: int) -> str:
        """The name of the contender that fastfwd with that many workers is compared with."""
        if self.reference is None:
            return f"fastfwd-{workers}"
        return f"{self.reference}-{workers}" if self.reference == "haproxy" else self.reference

    def judged(self, workers: int) -> bool:
        """Whether the comparison is fair enough to judge: C rinetd has one thread."""
        return self.reference != "rinetd" or workers == 1


def most(
    scenario: str, figure: str, case: str, reference: str | None, bound: float, *, stretch: bool = False
) -> Target:
    """A target for a figure of which less is better."""
    return Target(scenario, figure, case, reference, bound, most=True, stretch=stretch)


def least(
    scenario: str,
    figure: str,
    case: str,
    reference: str | None,
    bound: float,
    reference_case: str | None = None,
) -> Target:
    """A target for a figure of which more is better."""
    return Target(scenario, figure, case, reference, bound, reference_case=reference_case)


TARGETS = (
    most("bulk", "cpu", "1 flow", "rinetd", 0.40),
    most("bulk", "cpu", "1 flow", "haproxy", 0.90),
    least("bulk", "rate", "1 flow", "rinetd", 1.4),
    least("bulk", "rate", "1 flow", "haproxy", 1.0),
    most("requests", "cpu", "64 connections", "haproxy", 1.05),
    most("requests", "cpu", "64 connections", "rinetd", 1.0, stretch=True),
    most("connections", "cpu", "64 at a time", "haproxy", 1.20),
    most("connections", "cpu", "64 at a time", "haproxy", 1.05, stretch=True),
    least("idle", "requests", "8,000 idle", "rinetd", 30),
    least("idle", "requests", "8,000 idle", "haproxy", 0.9),
    least("idle", "connections", "8,000 idle", "rinetd", 30),
    least("idle", "connections", "8,000 idle", "haproxy", 0.9),
    most("mixed", "p99", "2 flows", "haproxy", 0.8),
    least("mixed", "bulk", "2 flows", "haproxy", 1.0),
    most("memory", "connection", "4,000 idle", "haproxy", 0.35),
    least("logging", "rate", "tab", None, 0.95, "off"),
    least("access", "rate", "1,000 rules", None, 0.9, "none"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured with one number of workers; `ratio` is None if that was not."""

    target: Target
    workers: int
    ratio: Spread | None

    @property
    def holds(self) -> bool | None:
        """Whether the median is where it is meant to be; None if it is not known or not judged."""
        if self.ratio is None or not self.target.judged(self.workers):
            return None
        if self.target.most:
            return self.ratio.median <= self.target.bound
        return self.ratio.median >= self.target.bound


def judge(results: Mapping[str, Result]) -> list[Verdict]:
    """Every target with every number of workers; `results` by scenario."""
    return [
        Verdict(target, workers, measured(results.get(target.scenario), target, workers))
        for target in TARGETS
        for workers in WORKERS
    ]


def measured(result: Result | None, target: Target, workers: int) -> Spread | None:
    """The ratio that a target is about."""
    if result is None:
        return None
    return result.ratio(
        target.case, f"fastfwd-{workers}", target.against(workers), target.figure, target.reference_case
    )
