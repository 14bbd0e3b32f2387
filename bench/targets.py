"""What fastfwd is meant to reach beside other forwarders, and whether it does.

The table is data. report shows the verdicts; nothing fails because of one: a target that
is missed is a fact about fastfwd, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.results import Reference, Result, Spread

WORKERS = (1, 2)
"""The numbers of workers that are judged."""

SINGLE = ("rinetd", "nginx", "hitch")
"""References that have one thread, whose names do not say so."""

THREAD_EACH = ("stunnel",)
"""References that have a thread for every connection: any number of workers is as many."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The median ratio of `figure` is to be at most `limit`, or at least if not `most`."""

    figure: str
    limit: float
    most: bool

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is where it is meant to be."""
        return ratio <= self.limit if self.most else ratio >= self.limit


def most(figure: str, limit: float) -> Bound:
    """For a figure of which less is better."""
    return Bound(figure, limit, True)


def least(figure: str, limit: float) -> Bound:
    """For a figure of which more is better."""
    return Bound(figure, limit, False)


@dataclass(frozen=True, slots=True)
class Target:
    """All of `bounds` are to hold at once, for the ratios in `case` to `reference`: the name of
    a contender without its number of threads. Without one they are ratios to the same
    contender in the case `without` the setting. A `stretch` target is one that nothing is
    promised for. What is not a `goal` is shown because a fair reader asks for it, and not
    judged."""

    scenario: str
    case: str
    reference: str | None
    bounds: tuple[Bound, ...]
    without: str | None = None
    stretch: bool = False
    goal: bool = True

    def to(self, workers: int) -> Reference:
        """What fastfwd with that many workers is compared with."""
        if self.reference is None:
            return Reference(f"fastfwd-{workers}", self.without)
        unnumbered = self.reference in SINGLE or self.reference in THREAD_EACH
        return Reference(self.reference if unnumbered else f"{self.reference}-{workers}")

    def judged(self, workers: int) -> bool:
        """Whether the comparison is fair enough to judge: as many workers as threads."""
        return self.goal and (self.reference not in SINGLE or workers == 1)


def haproxy(scenario: str, case: str, *bounds: Bound) -> tuple[Target, Target]:
    """A target beside HAProxy as it decides itself, and the same beside HAProxy that always
    splices, where that is measured."""
    return (
        Target(scenario, case, "haproxy", bounds),
        Target(scenario, case, "haproxy+splice", bounds, goal=False),
    )


TARGETS = (
    Target("bulk", "1 flow", "rinetd", (most("cpu", 0.40),)),
    *haproxy("bulk", "1 flow", most("cpu", 0.90)),
    Target("bulk", "8 flows", "rinetd", (most("cpu", 0.40),)),
    *haproxy("bulk", "8 flows", most("cpu", 0.90)),
    Target("bulk", "1 flow", "rinetd", (least("rate", 1.4),)),
    *haproxy("bulk", "1 flow", least("rate", 1.0)),
    *haproxy("requests", "64 connections", most("cpu", 1.05)),
    Target("requests", "64 connections", "rinetd", (most("cpu", 1.0),), stretch=True),
    Target("connections", "64 at a time", "haproxy", (most("cpu", 1.20),)),
    Target("connections", "64 at a time", "haproxy", (most("cpu", 1.05),), stretch=True),
    Target("idle", "8,000 idle", "rinetd", (least("requests_rate", 30),)),
    Target("idle", "8,000 idle", "haproxy", (least("requests_rate", 0.9),)),
    Target("idle", "8,000 idle", "rinetd", (least("connections_rate", 30),)),
    Target("idle", "8,000 idle", "haproxy", (least("connections_rate", 0.9),)),
    *haproxy("mixed", "2 flows", most("p99", 0.8), least("bulk", 1.0)),
    Target("memory", "4,000 idle", "haproxy", (most("connection", 0.35),)),
    Target("datagrams", "64 flows", "nginx", (most("cpu", 1.35),)),
    Target("datagrams", "64 flows", "nginx", (most("cpu", 1.1),), stretch=True),
    Target("datagrams", "2,000 flows", "nginx", (least("rate", 0.9),)),
    Target("tls-chain", "1 flow", "stunnel", (least("rate", 1.1),)),
    Target("tls-requests", "64 connections", "stunnel", (least("rate", 1.15),)),
    Target("tls-requests", "64 connections", "hitch", (least("rate", 0.75),)),
    Target("handshakes", "full", "stunnel", (least("rate", 5),)),
    Target("handshakes", "full", "hitch", (least("rate", 0.85),)),
    Target("tls-memory", "1,000 idle", "haproxy", (most("connection", 1.2),)),
    Target("logging", "tab", None, (least("rate", 0.95),), without="off"),
    Target("access", "1,000 rules", None, (least("rate", 0.9),), without="none"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured with one number of workers: a ratio for each of its bounds,
    None if that was not."""

    target: Target
    workers: int
    ratios: tuple[Spread | None, ...]

    @property
    def holds(self) -> bool | None:
        """Whether every median is where it is meant to be; None if it is not known or not judged."""
        if not self.target.judged(self.workers):
            return None
        known = [
            bound.holds(ratio.median)
            for bound, ratio in zip(self.target.bounds, self.ratios, strict=True)
            if ratio is not None
        ]
        return all(known) if len(known) == len(self.ratios) else None


def judge(results: Mapping[str, Result]) -> list[Verdict]:
    """Every target with every number of workers; `results` by scenario."""
    return [
        Verdict(target, workers, ratios(results.get(target.scenario), target, workers))
        for target in TARGETS
        for workers in WORKERS
    ]


def ratios(result: Result | None, target: Target, workers: int) -> tuple[Spread | None, ...]:
    """The ratios that a target is about."""
    return tuple(
        result.ratio(target.case, f"fastfwd-{workers}", bound.figure, target.to(workers)) if result else None
        for bound in target.bounds
    )
