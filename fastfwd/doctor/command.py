"""`fastfwd --doctor`: read the machine and the configuration, find the program, have the report written.

cli calls `examine` and prints what it returns. It changes nothing and opens no socket but the exporter's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastfwd.config.check import check
from fastfwd.config.load import load
from fastfwd.config.resolve import is_local, meanings
from fastfwd.doctor.capacity import Facts
from fastfwd.doctor.demand import Demand, demand, usual
from fastfwd.doctor.machine import read
from fastfwd.doctor.program import Program, find
from fastfwd.doctor.report import holds, text
from fastfwd.model import Config, ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Examination:
    """The `report`, the `problems` of the configuration, and whether the machine `holds` as many sessions as
    were asked for."""

    report: str
    problems: list[Problem]
    holds: bool


def examine(file: str, wanted: int | None, *, lenient: bool) -> Examination:
    """What this machine holds with the configuration `file`, and whether that is `wanted` sessions. With a
    file that cannot be used the machine is judged all the same."""
    asked, program, problems = _configuration(file, lenient=lenient)
    machine = read(os.getpid()) if program is None else read(program.workers[0], program.pid)
    facts = Facts(machine, asked, program)
    return Examination(text(facts, wanted), problems, wanted is None or holds(facts, wanted))


def _configuration(file: str, *, lenient: bool) -> tuple[Demand, Program | None, list[Problem]]:
    try:
        config = load(file, lenient=lenient)
    except ConfigError as error:
        return usual(file), find(Config(file)), error.problems
    addresses, problems, _ = meanings(config)
    problems += check(config, addresses=addresses, is_local=is_local)
    return demand(config, addresses), find(config), problems
