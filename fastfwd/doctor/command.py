"""`fastfwd --doctor`: read the machine and the configuration, find the program, have the report written.

cli calls `examine` and prints what it returns. It changes nothing and opens no socket but the exporter's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastfwd.config.check import check
from fastfwd.config.load import load
from fastfwd.config.resolve import Unresolvable, hosts, is_local, lookup
from fastfwd.doctor.capacity import Facts
from fastfwd.doctor.demand import Demand, demand, usual
from fastfwd.doctor.machine import read
from fastfwd.doctor.program import Program, find
from fastfwd.doctor.report import holds, text
from fastfwd.model import Address, Config, ConfigError, Problem


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
    addresses, problems = _addresses(config)
    problems += check(config, addresses=addresses, is_local=is_local)
    return demand(config, addresses), find(config), problems


def _addresses(config: Config) -> tuple[dict[str, list[Address]], list[Problem]]:
    """What the names in a configuration mean, and those that mean nothing. A name server that does not answer
    is no problem of the configuration's: what dials such a name counts as one address."""
    found: dict[str, list[Address]] = {}
    problems = []
    bind, dial = hosts(config)
    for forward in config.forwards:
        for name in (forward.listen.host, *sorted(forward.hosts)):
            if name not in bind | dial or name in found:
                continue
            try:
                found[name] = lookup(name)
            except Unresolvable as error:
                found[name] = []
                if error.definitive or name in bind:
                    said = f"expected a host that can be resolved, found '{name}': {error.reason}"
                    problems.append(Problem(forward.origin, said))
    return found, problems
