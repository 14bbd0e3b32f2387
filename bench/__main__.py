"""The command: `python -m bench [SCENARIO ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import lab as labs
from bench.contenders import CONTENDERS
from bench.scenario import measure
from bench.scenarios import SCENARIOS


def show(text: str) -> None:
    """Say what is going on, on one line of a terminal that it overwrites, on lines otherwise."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--contender", action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    labs.enter_namespace()
    labs.raise_limits()
    lab = labs.Lab(options.quick)
    try:
        for name in options.scenarios or SCENARIOS:
            result = measure(
                SCENARIOS[name], lab, options.contender or list(CONTENDERS), options.rounds, options.seconds, show
            )
            for case in result.cases:
                for figure in result.figures:
                    print(case.label, figure.title)
                    for contender in result.contenders:
                        value = result.value(case.label, contender, figure.name)
                        if value is None:
                            continue
                        ratios = [result.ratio(case.label, contender, ref, figure.name) for ref in ("rinetd", "haproxy-1", "haproxy-2")]
                        print(f"    {contender:12}{value.median:12.3f}  " + "  ".join(f"{r.median:.3f}" if r else "-" for r in ratios))
            if options.output:
                result.save(options.output)
    finally:
        lab.close()


if __name__ == "__main__":
    main()
