"""A file's path -> a Config that can be used, or ConfigError with every reason why not.

Called by cli at start and by the supervisor on reload. It reads the file, asks
the account database, and makes paths absolute; it must never resolve a host
name, open a log or bind a port of the configuration.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from glob import glob

from fastfwd.config import encryption
from fastfwd.config.check import check
from fastfwd.config.endpoint import LONGEST_PATH
from fastfwd.config.parse import GuardProblem, parse
from fastfwd.config.resolve import is_local
from fastfwd.config.wording import expected
from fastfwd.model import Config, ConfigError, MetricsAddress, Origin, Problem

LARGEST = 64 * 2**20  # bytes: ends the reading of an endless device such as /dev/zero


def load(path: str, *, lenient: bool = False, directory: str | None = None) -> Config:
    """Read, parse and check a configuration file.

    Args:
        path: a regular file, or anything else that can be read to an end (a FIFO, /dev/stdin).
        lenient: skip bad forwards and unknown lines and turn their problems into warnings, as
            rinetd did from 0.5 to 0.62. Lines that guard something (allow, deny, user,
            group) stay errors, and so do problems of the file as a whole.
        directory: what relative names in the file are relative to, by default the current
            directory. A daemon has left the one it was started in.

    Returns:
        The configuration, with absolute `logfile`, `pidfile` and path of `metrics`. Names are not
        resolved, so `check` has judged only what needs no resolving.

    Raises:
        ConfigError: with every problem in file order.
    """
    config, problems = _parsed(path)
    order = {file: number for number, file in enumerate(config.files)}

    def place(problem: Problem) -> tuple[int, int]:
        return order.get(problem.origin.file, len(order)), problem.origin.line

    fatal = [problem for problem in problems if not lenient or isinstance(problem, GuardProblem)]
    skipped = [problem for problem in problems if problem not in fatal]
    fatal += _accounts(config)
    config, unusable = encryption.read(config, _content)
    fatal += unusable
    metrics = config.metrics and _absolute_metrics(config.metrics, directory)
    if metrics and metrics.path and len(os.fsencode(metrics.path)) > LONGEST_PATH:
        what = f"a path of at most {LONGEST_PATH} bytes (unix(7)) from the root on"
        fatal.append(Problem(config.origin("metrics"), expected(what, metrics.path)))
    conflicts = check(config, addresses={}, is_local=is_local)
    if not lenient:
        fatal += conflicts
    while lenient and conflicts:
        skipped += conflicts
        bad = {problem.origin for problem in conflicts}
        config = replace(config, forwards=tuple(each for each in config.forwards if each.origin not in bad))
        if config.origin("metrics") in bad:
            config = replace(config, metrics=None)
        conflicts = check(config, addresses={}, is_local=is_local)
    if fatal:
        raise ConfigError(sorted(fatal, key=place))
    warnings = [Problem(each.origin, f"line skipped: {each.message}") for each in skipped]
    if config.user is not None and pwd.getpwnam(config.user).pw_uid == 0:
        message = f"{config.user!r} may do everything, and so could who takes over a worker"
        warnings.append(Problem(config.origin("user"), message))
    return replace(
        config,
        logfile=config.logfile and _absolute(config.logfile, directory),
        pidfile=config.pidfile and _absolute(config.pidfile, directory),
        statusfile=config.statusfile and _absolute(config.statusfile, directory),
        metrics=config.metrics and metrics,
        warnings=tuple(sorted([*config.warnings, *warnings], key=place)),
    )


def metrics_address(path: str) -> MetricsAddress | None:
    """Where the exporter of a running program listens, as its file says, which may have errors
    elsewhere by now. Raises ConfigError when it cannot be read."""
    metrics = _parsed(path)[0].metrics
    return metrics and _absolute_metrics(metrics, None)


def _absolute(name: str, directory: str | None) -> str:
    return os.path.join(directory, name) if directory is not None else os.path.abspath(name)


def _absolute_metrics(metrics: MetricsAddress, directory: str | None) -> MetricsAddress:
    return metrics if metrics.path is None else MetricsAddress(path=_absolute(metrics.path, directory))


def _parsed(path: str) -> tuple[Config, list[Problem]]:
    data = _read(path)
    if not path.endswith((".yaml", ".yml")):
        return parse(data, path, read_file=_content, matching=_matching)
    from fastfwd.config.structured import parse_yaml  # noqa: PLC0415  # the other language

    return parse_yaml(data, path, read_file=_content, matching=_matching)


def _matching(pattern: str) -> list[str]:
    return sorted(glob(pattern))


def _content(path: str) -> bytes:
    """What is in a file. Raises OSError, EFBIG where there are more than LARGEST bytes."""
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, f"more than {LARGEST} bytes")
    return data


def _read(path: str) -> bytes:
    whole = Origin(path, 0)
    try:
        return _content(path)
    except IsADirectoryError:
        raise ConfigError([Problem(whole, "expected a file, found a directory")]) from None
    except OSError as error:
        if error.errno == errno.EFBIG:
            what = f"expected at most {LARGEST} bytes, found more"
        else:
            what = f"cannot read it: {error.strerror}"
        raise ConfigError([Problem(whole, what)]) from None


def _accounts(config: Config) -> list[Problem]:
    wanted: list[tuple[str, str | None, str, Callable[[str], object]]] = [
        ("user", config.user, "an account of this host", pwd.getpwnam),
        ("group", config.group, "a group of this host", grp.getgrnam),
    ]
    problems = []
    for directive, name, what, find in wanted:
        if name is None:
            continue
        try:
            find(name)
        except (KeyError, ValueError):  # ValueError: a name that no database can hold
            problems.append(Problem(config.origin(directive), expected(what, name)))
    return problems
