"""Where fastfwd reads a configuration otherwise than C rinetd 0.73, as data.

The grammar test finds differences and asks here; a difference that no quirk
explains fails. docs/compatibility.md tells the same to people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from fastfwd.config.directives import DIRECTIVES
from fastfwd.config.options import OPTIONS
from fastfwd.model import Config, Problem
from tests.config.oracle import Verdict


class Kind(Enum):
    """What differs."""

    REJECTED = auto()  # rinetd loads it; asked for each of fastfwd's problems
    ACCEPTED = auto()  # fastfwd loads it
    LISTENERS = auto()  # both load it and listen elsewhere
    LINE = auto()  # both refuse it; rinetd's line is not among fastfwd's


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration and what both made of it."""

    data: bytes
    config: Config
    problems: tuple[Problem, ...]
    verdict: Verdict

    @property
    def head(self) -> bytes:
        """`data` without an unterminated last line."""
        return self.data[: max(self.data.rfind(b"\n"), self.data.rfind(b"\0")) + 1]

    @property
    def tail(self) -> bytes:
        return self.data[len(self.head) :]

    @property
    def last_line(self) -> int:
        return self.data.count(b"\n") + 1


@dataclass(frozen=True, slots=True)
class Quirk:
    """A wanted difference: its name, what it explains, both behaviours, and why fastfwd differs."""

    id: str
    kinds: tuple[Kind, ...]
    explains: Callable[[Case, Problem | None], bool]
    rinetd: str
    fastfwd: str
    reason: str


def _says(pattern: str) -> Callable[[Case, Problem | None], bool]:
    expression = re.compile(pattern)
    return lambda case, problem: problem is not None and expression.search(problem.message) is not None


def _hears(pattern: str) -> Callable[[Case, Problem | None], bool]:
    expression = re.compile(pattern)
    return lambda case, problem: expression.search(case.verdict.error) is not None


def _in_tail(case: Case, problem: Problem | None) -> bool:
    return bool(case.tail) and problem is not None and problem.origin.line == case.last_line


def _in_line_with_two_src(case: Case, problem: Problem | None) -> bool:
    if problem is None or not re.search("address|host", problem.message):
        return False
    line = case.data.split(b"\n")[problem.origin.line - 1]
    return len(re.findall(rb"src[ \t]*=", line)) > 1


_SPANNING = re.compile(rb'(?:^|[\n\0])[ \t]*(?:pid)?logfile[ \t]+"[^"\n]*[\n\r\0]')
_NUL_IN_NAME = re.compile(rb"(?:^|[\n\0])[ \t]*(?:pid)?logfile[ \t]+[^ \t\r\n]*\0")

_OWN = (
    *({*DIRECTIVES} - {"allow", "deny", "logcommon", "logfile", "pidlogfile"}),
    rf".*(?:{'|'.join({*OPTIONS} - {'timeout', 'src'})})[ \t]*=",
    r"(?:allow|deny)[ \t]+(?:[0-9A-Fa-f.:\[\]]+/|@)",
    r".*src[ \t]*=[^,\]]*[/;]",  # several addresses to dial from
    r"(?:.*[ \t])?unix:[/@]",
    r"[^ \t]+[ \t]+[0-9]+-[0-9]+",
    r"[^ \t]+[ \t]+[^ \t]+[ \t]+[^ \t]+[,*]",  # several backends
)
"""How the lines begin that only fastfwd knows."""

QUIRKS = (
    Quirk(
        "port over 65535",
        (Kind.REJECTED,),
        _says("expected a port from 0 to 65535"),
        "takes it modulo 65536",
        "refuses it",
        "nobody means it: 85557 would listen on 20021",
    ),
    Quirk(
        "udp on one side",
        (Kind.REJECTED,),
        _says("expected '/(?:tcp|udp)' on both sides"),
        "makes datagrams of a stream, or a stream of datagrams",
        "refuses the line",
        "where a datagram ends is lost, or made up: no protocol survives it",
    ),
    Quirk(
        "duplicate udp",
        (Kind.REJECTED,),
        _says(r"expected a listener of its own, found '[^']*/udp'"),
        "starts both listeners",
        "refuses the second",
        "one of them never sees a datagram; and the same switch lets others take the port",
    ),
    Quirk(
        "forward to itself",
        (Kind.REJECTED,),
        _says("expected a target elsewhere"),
        "dials itself until the file descriptors end",
        "refuses the line",
        "one connection would take the service down",
    ),
    Quirk(
        "src of the other family",
        (Kind.REJECTED,),
        _says("after 'src=' to dial"),
        "fails to bind and dials from another address",
        "refuses the line",
        "it can never work as written",
    ),
    Quirk(
        "line end inside a quoted file name",
        (Kind.REJECTED, Kind.ACCEPTED, Kind.LINE, Kind.LISTENERS),
        lambda case, problem: _SPANNING.search(case.data) is not None,
        "reads on in the next line",
        "ends the line",
        "a forgotten quote would swallow the lines that follow",
    ),
    Quirk(
        "bad src= before a good one",
        (Kind.REJECTED,),
        _in_line_with_two_src,
        "forgets all but the last src=",
        "refuses the line",
        "a bad value is a slip wherever it stands",
    ),
    Quirk(
        "fastfwd's own words",
        (Kind.ACCEPTED, Kind.LINE),
        _hears(rf"invalid syntax at line \d+: [ \t]*(?:{'|'.join(_OWN)})"),
        "does not know them",
        "knows them",
        "what rinetd has no word for",
    ),
    Quirk(
        "unterminated last line, refused",
        (Kind.REJECTED,),
        _in_tail,
        "ignores the last line when nothing ends it",
        "reads it like any other",
        "editors leave it so; an ignored deny opens a door",
    ),
    Quirk(
        "unterminated last line, listening",
        (Kind.LISTENERS,),
        lambda case, problem: bool(case.tail),
        "ignores the last line when nothing ends it",
        "reads it like any other",
        "editors leave it so; an ignored deny opens a door",
    ),
    Quirk(
        "square brackets",
        (Kind.ACCEPTED,),
        _hears(r'cannot resolve host "\[[0-9A-Fa-f:]+\]"'),
        "asks the name service for [::1]",
        "takes the brackets off",
        "it is how IPv6 addresses are written beside a port",
    ),
    Quirk(
        "IPv6 address that begins with 0",
        (Kind.ACCEPTED, Kind.LINE),
        _hears(r"invalid syntax at line \d+: (?:.*[ \t=])?0[0-9A-Fa-f]*:[0-9A-Fa-f:]+"),
        "reads the first 0 as the address 0",
        "takes the whole address",
        "0:0::1 is ::1",
    ),
    Quirk(
        "binding comes later",
        (Kind.ACCEPTED,),
        _hears(r"couldn't bind to address .* \(Cannot assign requested address\)"),
        "binds while it reads",
        "loads the file; the supervisor binds",
        "whether an address is there is the host's matter, not the file's",
    ),
    Quirk(
        "NUL after a file name",
        (Kind.REJECTED, Kind.ACCEPTED, Kind.LINE),
        lambda case, problem: _NUL_IN_NAME.search(case.data) is not None,
        "takes NUL, and what follows to the next blank, for a part of the name",
        "ends the line, as NUL does elsewhere",
        "one rule for every line; no name can hold NUL",
    ),
    Quirk(
        "line numbers after NUL",
        (Kind.LINE,),
        lambda case, problem: b"\0" in case.data,
        "counts every NUL as a line's end",
        "counts lines as an editor does",
        "the number is for a person with an editor",
    ),
)
