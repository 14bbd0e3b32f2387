"""The command: `python -m bench [SCENARIO ...]`.

Progress and complaints go to stderr, tables to stdout, results to a directory: a
scenario's JSON as soon as the scenario is done, report and pictures at the end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from bench import lab as labs
from bench import report
from bench.contenders import CONTENDERS
from bench.processes import ROOT, stop_descendants
from bench.results import DIRECTORY
from bench.scenario import measure
from bench.scenarios import SCENARIOS

ROUNDS, SECONDS = 5, 3.0
"""What a published run has at least."""

QUICK_ROUNDS, QUICK_SECONDS = 1, 1.0
QUICK_CONTENDERS = ("rinetd", "haproxy-1", "haproxy-2", "stunnel", "hitch", "fastfwd-1", "fastfwd-2")

UNPUBLISHED = ROOT / "build" / "bench"
"""Where results go that are not good enough to replace the published ones."""

STOPPED = 130
"""The exit status after Ctrl-C, as a shell has it."""


class Progress:
    """One line on stderr that says what is measured; on a terminal it is overwritten each time.
    A contender that fails takes fewer measurements than `total` has for it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._terminal = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Say what is measured next."""
        self._done += 1
        start, end = ("\r\033[K", "") if self._terminal else ("", "\n")
        print(f"{start}{self._done}/{self._total} {text}", end=end, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a table."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure fastfwd beside other forwarders, on this machine, over loopback.",
        epilog=f"scenarios: {', '.join(SCENARIOS)}; contenders: {', '.join(CONTENDERS)}",
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="what to measure (default: everything)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often (default {ROUNDS})")
    parser.add_argument(
        "--seconds", type=float, metavar="N", help=f"of load per measurement (default {SECONDS:g})"
    )
    parser.add_argument("--contender", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="one short round, fewer cases and contenders: a look"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where results go (default bench/results for a full run, else build/bench)",
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write report and pictures again"
    )
    options = parser.parse_args(words)
    for kind, names, known in (
        ("scenario", options.scenarios, SCENARIOS),
        ("contender", options.contender or (), CONTENDERS),
    ):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no {kind} {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    if min((each for each in (options.rounds, options.seconds) if each is not None), default=1) < 1:
        parser.error("--rounds and --seconds are at least 1")
    return options


def directory_of(options: argparse.Namespace) -> Path:
    """Where the results go: only a run that lacks nothing replaces published ones."""
    if options.output:
        return Path(options.output)
    if options.report:
        return DIRECTORY
    lacks = [name for name, contender in CONTENDERS.items() if not contender.available()]
    short = (options.rounds or ROUNDS) < ROUNDS or (options.seconds or SECONDS) < SECONDS
    if options.quick or options.contender or short:
        return UNPUBLISHED
    if lacks:
        print(f"bench: without {', '.join(lacks)} the results go to {UNPUBLISHED}", file=sys.stderr)
        return UNPUBLISHED
    return DIRECTORY


def end(number: int, frame: object) -> NoReturn:
    """SIGTERM: as Ctrl-C, so that nothing is left running."""
    raise KeyboardInterrupt


def run(options: argparse.Namespace, directory: Path) -> int:
    """Measure, print and write; the exit status."""
    contenders = options.contender or (QUICK_CONTENDERS if options.quick else tuple(CONTENDERS))
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    scenarios = [SCENARIOS[name] for name in dict.fromkeys(options.scenarios) or SCENARIOS]
    progress = Progress(sum(len(each.steps(contenders, rounds, options.quick)) for each in scenarios))
    failed: set[str] = set()
    with closing(labs.Lab()) as lab:
        for scenario in scenarios:
            result = measure(scenario, lab, contenders, rounds, seconds, options.quick, progress)
            progress.clear()
            print(report.plain(result), flush=True)
            result.save(directory)
            failed |= result.failed.keys()
    publish(directory)
    if failed:
        print(f"bench: failed somewhere: {', '.join(sorted(failed))}", file=sys.stderr)
    return 1 if failed else 0


def publish(directory: Path) -> None:
    """Write report and pictures of everything that `directory` has."""
    written = report.write(directory)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if not written:
        print(f"bench: no results in {directory}", file=sys.stderr)


def main() -> int:
    """Run the command; the exit status."""
    options = arguments(sys.argv[1:])
    if options.report:
        try:
            publish(directory_of(options))
        except ValueError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        return 0
    if not labs.enter_namespace():
        print(
            "bench: without root's rights there is no network namespace and no DNAT; other traffic on"
            " loopback disturbs the figures",
            file=sys.stderr,
        )
    labs.raise_limits()
    signal.signal(signal.SIGTERM, end)
    directory = directory_of(options)
    try:
        return run(options, directory)
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        stop_descendants()
        print(
            f"\nbench: stopped; what was complete is in {directory}, and `python -m bench --report --output"
            f" {directory}` makes its report",
            file=sys.stderr,
        )
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
