"""The command line: flags, then check or run. The only place that exits.

The flags are rinetd's (`-c`, `-f`, `-h`, `-v`), so that its init scripts work, plus
`-t`, `--explain`, `--status` and `--lenient`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from fastfwd import __version__
from fastfwd.model import Config, ConfigError, Forward, Outcome

OWN_FILE = "/etc/fastfwd.conf"
RINETDS_FILE = "/etc/rinetd.conf"

EACH = 0.2
"""Seconds between two looks at how far an upgrade is."""

MOST_SESSIONS = 100_000_000
"""More than any machine has memory for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `fastfwd`. Exit status: 0 stopped, valid, shown or upgraded, 1 the configuration, the
    start or the upgrade failed, it has no such forward, or no status was to be had, 2 wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.explain and (not options.test or options.status or len(options.explain) > 2):
        parser.error("expected -t --explain ADDRESS [FORWARD]")
    if options.doctor and (options.test or options.explain or options.status):
        parser.error("expected --doctor without -t, --explain and --status")
    if options.sessions is not None and not options.doctor:
        parser.error("expected --doctor with --sessions")
    file = os.path.abspath(options.conf_file)
    try:
        if options.explain:
            sys.exit(_explain(file, *options.explain, lenient=options.lenient))
        if options.doctor:
            sys.exit(_doctor(file, options.sessions, lenient=options.lenient))
        if options.test:
            sys.exit(_test(file, lenient=options.lenient))
        if options.status:
            sys.exit(_status(file))
        if options.upgrade:
            sys.exit(_upgrade(file))
        from fastfwd.supervisor.main import Options, run

        sys.exit(run(Options(file, os.getcwd(), foreground=options.foreground, lenient=options.lenient)))
    except ConfigError as error:
        for problem in error.problems:
            print(f"fastfwd: {problem}", file=sys.stderr)
        sys.exit(1)


def default_file(command: str) -> str:
    """The configuration of whoever names none: our own file if there is one, else rinetd's; and rinetd's
    alone for who calls the program (`command`) by that name."""
    if os.path.basename(command) == "rinetd" or not os.path.exists(OWN_FILE):
        return RINETDS_FILE
    return OWN_FILE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastfwd",
        description="Forward TCP and UDP as rinetd does, on every core. "
        "What to forward is in the configuration file; see fastfwd.conf(5).",
    )
    add = parser.add_argument
    add(
        "-c",
        "--conf-file",
        metavar="FILE",
        default=default_file(sys.argv[0]),
        help=f"configuration (default {OWN_FILE}; if there is none, or called as rinetd, {RINETDS_FILE})",
    )
    add(
        "-f",
        "--foreground",
        action="store_true",
        help="do not go to the background; messages to standard error",
    )
    add("-t", "--test", action="store_true", help="check the configuration and exit")
    add(
        "--explain",
        nargs="+",
        metavar=("ADDRESS", "FORWARD"),
        help="with -t: say which line lets a client with that address in, or keeps it out",
    )
    add(
        "--upgrade",
        action="store_true",
        help="have the running program replaced by the one that is installed now, and wait for the outcome",
    )
    add("--status", action="store_true", help="show what the running program does, and exit")
    add(
        "--doctor",
        action="store_true",
        help="say how many sessions this machine holds, by which limit, and what moves that",
    )
    add(
        "--sessions",
        type=_sessions,
        metavar="N",
        help="with --doctor: say what so many sessions need; the exit status tells whether it is there",
    )
    add(
        "--lenient",
        action="store_true",
        help="skip lines with errors, with a warning, as rinetd before 0.63 did",
    )
    add("-v", "--version", action="version", version=f"fastfwd {__version__}")
    return parser


def _sessions(text: str) -> int:
    """An argument of --sessions. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_SESSIONS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_SESSIONS}, found {text!r}")
    return int(text)


def _doctor(file: str, sessions: int | None, *, lenient: bool) -> int:
    """Report what this machine holds with `file`, which may be in error: that is told, too."""
    from fastfwd.doctor.command import examine

    found = examine(file, sessions, lenient=lenient)
    for problem in found.problems:
        print(f"fastfwd: {problem}", file=sys.stderr)
    print(found.report, end="")
    return 0 if found.holds and not found.problems else 1


def _test(file: str, *, lenient: bool) -> int:
    """Check `file` as a start would, names included, without opening anything."""
    from fastfwd.config.check import check
    from fastfwd.config.load import load
    from fastfwd.config.resolve import is_local, meanings
    from fastfwd.config.wording import counted

    config = load(file, lenient=lenient)
    addresses, problems, doubts = meanings(config)
    for doubt in doubts:
        print(f"fastfwd: {doubt}", file=sys.stderr)
    problems += check(config, addresses=addresses, is_local=is_local)
    if problems:
        raise ConfigError(problems)
    for warning in config.warnings:
        print(f"fastfwd: {warning}", file=sys.stderr)
    print(f"fastfwd: {file} is valid: {counted(len(config.forwards), 'forward')}", file=sys.stderr)
    return 0


def _explain(file: str, client: str, which: str | None = None, *, lenient: bool) -> int:
    """Say of every forward, or of `which`, what becomes of a client with that address, and why."""
    from fastfwd.config.load import load
    from fastfwd.config.wording import expected

    address = _numeric(client)
    if address is None:
        print(f"fastfwd: {expected('a numeric address after --explain', client)}", file=sys.stderr)
        return 2
    config = load(file, lenient=lenient)
    found = [each for each in config.forwards if which is None or which in _names(each)]
    if not found:
        complaint = "expected a forward, found none"
        if which is not None:
            complaint = expected("the name or the port of a forward", which)
        print(f"fastfwd: {file}: {complaint}", file=sys.stderr)
        return 1
    for forward in found:
        print(f"{forward.label}: {_verdict(config, forward, address)}")
    return 0


def _numeric(client: str) -> str | None:
    """A client's address as the kernel would write it, None if it is no address; a zone stays."""
    address, percent, zone = client.partition("%")
    for family in (socket.AF_INET6,) if percent else (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address)) + percent + zone
        except (OSError, ValueError):  # ValueError: a character that no address has
            pass
    return None


def _names(forward: Forward) -> set[str]:
    """What `forward` may be called: by its name, by where it listens, by any of its ports."""
    ports = () if forward.listen.unix else forward.listen.ports
    return {forward.label, str(forward.listen), *map(str, ports)}


def _verdict(config: Config, forward: Forward, address: str) -> str:
    from fastfwd.worker.access import explain

    if forward.listen.unix:
        return "let in: access rules do not concern a Unix socket's clients"
    outcome, rules = explain((config.rules, forward.rules), address)
    lines = ", ".join(
        f"{each.origin}: {'allow' if each.allow else 'deny'} {each.pattern}" for each in rules[:3]
    )
    more = f", and {len(rules) - 3} more" if len(rules) > 3 else ""
    if outcome is None:
        return f"let in by {lines}{more}" if rules else "let in: no rule keeps it out"
    if outcome is Outcome.DENIED:
        return f"denied by {lines}"
    return f"not allowed: none of {lines}{more}"


def _status(file: str) -> int:
    """Show what the program that runs with `file` does."""
    from fastfwd.observe.terminal import text, width

    status = _ask(file)
    if isinstance(status, str):
        print(f"fastfwd: {status}", file=sys.stderr)
        return 1
    print(text(status, width()), end="")
    return 0


def _ask(file: str) -> dict[str, Any] | str:
    """What the program that runs with `file` says of itself, or why that is not to be had."""
    from fastfwd.config.load import metrics_address
    from fastfwd.observe.terminal import fetch

    address = metrics_address(file)
    if address is None:
        return f"{file} has no line 'metrics ADDRESS:PORT': there is nobody to ask"
    if address.path is None and address.port == 0:
        return f"{file} leaves the metrics port to the kernel: the program has said which at its start"
    try:
        return fetch(address)
    except OSError as error:
        return f"nobody answers on {address}: {error.strerror or error}"
    except ValueError as error:
        return f"{address} is not ours: {error}"


def _upgrade(file: str) -> int:
    """Have the program that runs with `file` hand over to a new one, and say what came of it."""
    from fastfwd.supervisor.upgrade import PATIENCE

    before = _ask(file)
    if isinstance(before, str):
        print(f"fastfwd: {before}", file=sys.stderr)
        return 1
    pid, failures = before["pid"], before["upgrades"]["failures"]
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        print(f"fastfwd: cannot signal process {pid}: {error.strerror}", file=sys.stderr)
        return 1
    end = time.monotonic() + PATIENCE + 2 * EACH
    while time.monotonic() < end:
        time.sleep(EACH)
        now = _ask(file)
        if isinstance(now, str):
            continue  # the new program's file may say another place, where nobody is yet
        if now["pid"] != pid:
            print(f"fastfwd: process {now['pid']}, version {now['version']}, has taken over")
            return 0
        if now["upgrades"]["failures"] != failures:
            complaint = f"upgrade failed: process {pid} goes on, and its log says why"
            print(f"fastfwd: {complaint}", file=sys.stderr)
            return 1
    print(f"fastfwd: process {pid} has neither been replaced nor said why not", file=sys.stderr)
    return 1
