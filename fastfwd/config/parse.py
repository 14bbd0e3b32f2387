"""The text of rinetd.conf -> Config: the whole language of rinetd 0.62 and 0.73, and what fastfwd adds.

Called by load, and by tests with bytes of their own. Pure but for the service
names it looks up. Every error is collected, none stops the reading, and nothing
here asks what a name resolves to or whether two lines fit together.

A line is a directive or a forward (see the module `forward`). Lines end with LF,
CRLF or NUL; the last one needs no end. A line that begins with a directive's
word is still a forward when its second field is a port number and it has four
fields, so that a host may be called `user`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from typing import Any, Final

from fastfwd.config.directives import DIRECTIVES, GUARDS, Kind
from fastfwd.config.endpoint import LONGEST_PATH, Service
from fastfwd.config.forward import parse_forward
from fastfwd.config.pattern import is_pattern, network, never_matches, normalise
from fastfwd.config.resolve import numeric
from fastfwd.config.wording import closest, expected, place, quote
from fastfwd.model import (
    UNIX,
    AccessRule,
    Config,
    Forward,
    LogFormat,
    MetricsAddress,
    Origin,
    Problem,
)

METRICS: Final = DIRECTIVES["metrics"].value.what

_BLANKS = " \t"
_FIRST_WORD = re.compile(r"[^ \t#]*")
_FORWARD = re.compile(r"[^ \t#]+[ \t]+[0-9]+(?:-[0-9]+)?(?:/tcp|/udp)?[ \t]+[^ \t#]+[ \t]+[^ \t#]")
# Three fields are a forward that lacks one; fewer are something else, and the forward above stays current.
_MEANS_FORWARD = re.compile(r"[^ \t]+[ \t]+[^ \t]+[ \t]+[^ \t]")
_UNIX = re.compile(r"unix:|[^ \t]+[ \t]+[^ \t]+[ \t]+unix:")
_FILE_NAME = re.compile(r'(?:"([^"]+)"|([^ \t]+))(.*)', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL_NAMES = {"\r": "a lone carriage return", "\f": "a form feed", "\v": "a vertical tab"}


LONGEST_SORRY = 1 << 20
"""Bytes of what clients are sent when no backend can be reached."""

MOST_WRONG = 20
"""Errors of one list of patterns that are told."""

DEEPEST = 10
"""Levels of files that include each other, as in rinetd-uv."""

MOST_FILES = 10_000

ReadFile = Callable[[str], bytes]
Matching = Callable[[str], list[str]]


def _none(pattern: str) -> list[str]:
    return []


def _no_file(path: str) -> bytes:
    raise OSError(errno.ENOENT, "other files are not read here")


@dataclass(frozen=True, slots=True)
class GuardProblem(Problem):
    """An error in a line that guards something (GUARDS).

    To skip such a line would open what it was written to close, so a lenient
    `load` does not skip it.
    """


def parse(
    data: bytes,
    file: str,
    *,
    service: Service = socket.getservbyname,
    read_file: ReadFile = _no_file,
    matching: Matching = _none,
) -> tuple[Config, list[Problem]]:
    """Read a configuration.

    Args:
        data: the file's content.
        file: its name, for messages and origins.
        service: port number of a service name and a protocol, OSError for an unknown one.
        read_file: content of another file that this one names (`include`, `allow @file`),
            OSError if it cannot be read.
        matching: the files that a pattern of `include` matches, in order.

    Returns:
        The configuration made of the good lines, and every error in file order. Access
        rules that follow a bad forward line belong to it and fall with it. The
        configuration's `origins` are keyed by directive (`logfile`, `pidlogfile`,
        `workers`, `user`, `group`, `metrics`, `logduration`, the limits; `logformat` stands for
        `logcommon` too).
        Access patterns are in `pattern.normalise`'s spelling.
    """
    reader = Reader(file, service, read_file, matching)
    reader.whole(file, data)
    return reader.config(), reader.problems


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines with their numbers as an editor counts them: NUL ends a line for rinetd, but not there."""
    for count, line in enumerate(data.split(b"\n"), 1):
        for part in line.removesuffix(b"\r").split(b"\0"):
            yield count, part.decode("utf-8", "surrogateescape")


class Reader:
    """One pass over the lines: collects settings, forwards and problems."""

    def __init__(self, file: str, service: Service, read_file: ReadFile, matching: Matching) -> None:
        self.file = file
        self.files: list[str] = []
        self.matching = matching
        self.inside: list[str] = []
        self.service = service
        self.read_file = read_file
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self.origins: dict[str, Origin] = {}
        self.settings = Config(file)
        self.global_rules: list[AccessRule] = []
        self.forwards: list[tuple[Forward, list[AccessRule]]] = []
        self.names: dict[str, Origin] = {}
        self.scope = self.global_rules
        self.here = Origin(file, 0)
        own: dict[str, Callable[[str], None]] = {
            "allow": lambda rest: self.access(rest, True),
            "deny": lambda rest: self.access(rest, False),
            "include": self.include,
            "logcommon": self.logcommon,
            "logduration": self.logduration,
            "metrics": self.metrics,
        }
        self.directives: dict[str, Callable[[str], None]] = {
            word: own[word]
            if each.kind is Kind.OWN
            else partial(self.file_of if each.kind is Kind.FILE else self.setting, word)
            for word, each in DIRECTIVES.items()
        }
        """What reads the rest of a directive's line, by its word."""

    def config(self) -> Config:
        forwards = tuple(replace(forward, rules=tuple(rules)) for forward, rules in self.forwards)
        for forward in forwards:
            if forward.listen.unix and forward.rules and not forward.proxy_from:
                message = (
                    "access rules do not concern a Unix socket's clients: its 'mode' says who may connect"
                )
                self.warnings.append(Problem(forward.rules[0].origin or forward.origin, message))
        for directive in ("statusinterval", "statusformat"):
            if directive in self.origins and self.settings.statusfile is None:
                message = f"{directive!r} means nothing without 'statusfile'"
                self.warnings.append(Problem(self.origins[directive], message))
        if not forwards:
            self.warnings.append(Problem(Origin(self.file, 0), "no forwards: there is nothing to do"))
        return replace(
            self.settings,
            forwards=forwards,
            rules=tuple(self.global_rules),
            files=tuple(self.files),
            origins=self.origins,
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    def wrong(self, message: str) -> None:
        self.problems.append(Problem(self.here, message))

    def breach(self, message: str) -> None:
        self.problems.append(GuardProblem(self.here, message))

    def guarded(self, directive: str) -> Callable[[str], None]:
        """What tells an error in a line with that directive."""
        return self.breach if directive in GUARDS else self.wrong

    def warn(self, message: str) -> None:
        self.warnings.append(Problem(self.here, message))

    def whole(self, path: str, data: bytes) -> None:
        """Read all of a file, then go on where it was included."""
        before, self.file = self.file, path
        self.files.append(path)
        self.inside.append(os.path.realpath(path))
        for line, text in _lines(data):
            self.read(line, text)
        self.inside.pop()
        self.file = before

    def include(self, rest: str) -> None:
        pattern = self.file_name(rest, self.breach)
        if pattern is None:
            return
        here = self.here
        found = self.matching(os.path.join(os.path.dirname(self.file), pattern))
        if not found and has_magic(pattern):
            self.warn(f"no file matches {quote(pattern)}: nothing is included")
        elif not found:
            self.breach(
                f"expected a file that can be read, found {quote(pattern)}: {os.strerror(errno.ENOENT)}"
            )
        for path in found:
            self.here = here
            if os.path.realpath(path) in self.inside:
                self.breach(f"expected a file that does not include itself, found {path!r}")
            elif len(self.inside) > DEEPEST:
                self.breach(f"expected at most {DEEPEST} levels of files in each other, found {path!r}")
            elif len(self.files) >= MOST_FILES:
                self.breach(f"expected at most {MOST_FILES} files, found {path!r}")
            else:
                try:
                    data = self.read_file(path)
                except OSError as error:
                    self.breach(f"expected a file that can be read, found {path!r}: {error.strerror}")
                else:
                    self.whole(path, data)
        self.here = here

    def read(self, line: int, text: str) -> None:
        self.here = Origin(self.file, line)
        if line == 1 and text.startswith("\ufeff"):
            self.wrong("expected plain text, found a byte order mark (save the file without one)")
            text = text.removeprefix("\ufeff")
        text = text.strip(_BLANKS)
        word = _FIRST_WORD.match(text)[0]  # type: ignore[index]  # it matches the empty word too
        if word in self.directives and not _FORWARD.match(text):
            self.directives[word](text[len(word) :])
            return
        body = text.partition("#")[0].rstrip(_BLANKS)
        if body:
            self.forward(word, body)

    def forward(self, word: str, body: str) -> None:
        if body.startswith(";"):
            self.wrong(expected("'#' before a comment", body))
            return
        complete = _MEANS_FORWARD.match(body) is not None or _UNIX.match(body) is not None
        meant = None if complete else _directive_meant(word, self.directives)
        if meant is not None:
            self.guarded(meant)(
                f"expected a forward or a directive, found {quote(body)} (did you mean {meant!r}?)"
            )
            return
        if complete:
            self.scope = []
        strange = _CONTROL.search(body)
        if strange is not None:
            self.wrong(f"expected a line of printable text, found {_character(strange[0])} in {quote(body)}")
            return
        if not complete:
            what = "a forward ('bindaddress bindport connectaddress connectport') or a directive"
            self.wrong(expected(what, body))
            return
        forward = parse_forward(
            body,
            self.here,
            service=self.service,
            sorry=self.sorry,
            wrong=self.wrong,
            warn=self.warn,
        )
        if forward is not None and self.unique(forward):
            self.forwards.append((forward, self.scope))

    def sorry(self, name: str) -> bytes:
        try:
            content = self.read_file(os.path.join(os.path.dirname(self.file), name))
        except OSError as error:
            raise ValueError(f"a file that can be read ({error.strerror})") from None
        if not 0 < len(content) <= LONGEST_SORRY:
            raise ValueError(f"a file of 1 to {LONGEST_SORRY} bytes")
        return content

    def unique(self, forward: Forward) -> bool:
        if forward.name is None:
            return True
        first = self.names.setdefault(forward.name, self.here)
        if first is not self.here:
            where = place(first, self.here)
            self.wrong(f"expected a name of its own, found {quote(forward.name)} of {where}")
        return first is self.here

    def access(self, rest: str, allow: bool) -> None:
        word = rest.strip(_BLANKS)
        if word.startswith("@"):
            name = self.file_name(f" {word.removeprefix('@')}", self.breach)
            pattern = None if name is None else f"@{name}"
        else:
            pattern = self.argument(rest, "a pattern", self.breach)
        if pattern is not None:
            self.pattern(pattern, allow)

    def pattern(self, text: str, allow: bool) -> None:
        """A pattern, or `@` and the name of a file of them."""
        if text.startswith("@"):
            self.access_list(os.path.join(os.path.dirname(self.file), text.removeprefix("@")), allow)
        else:
            self.access_rule(text, allow)

    def access_rule(self, pattern: str, allow: bool) -> None:
        if "/" in pattern:
            try:
                plain = network(pattern)
            except ValueError as error:
                self.breach(expected(str(error), pattern))
                return
        elif not is_pattern(pattern):
            self.breach(expected(_pattern_meant(pattern), pattern))
            return
        else:
            plain = normalise(pattern)
            if never_matches(plain):
                self.warn(_never(pattern, allow))
        self.scope.append(AccessRule(allow, plain, self.here))

    def access_list(self, path: str, allow: bool) -> None:
        """A file of patterns, one a line."""
        try:
            lines = list(_lines(self.read_file(path)))
        except OSError as error:
            self.breach(f"expected a list of patterns, found {path!r}: {error.strerror}")
            return
        directive, before, wrong = self.here, len(self.scope), len(self.problems)
        for line, text in lines:
            self.here = Origin(path, line)
            words = text.partition("#")[0].split()
            if len(words) > 1:
                self.breach(expected("one pattern a line", text.strip()))
            elif words:
                self.access_rule(words[0], allow)
            if len(self.problems) - wrong > MOST_WRONG:
                self.breach("so many errors in one list are enough: the rest was not read")
                break
        self.here = directive
        if len(self.scope) == before and len(self.problems) == wrong:
            self.breach(f"expected a pattern in the list {path!r}, found none")

    def logcommon(self, rest: str) -> None:
        if self.nothing(rest):
            self.give("logformat", LogFormat.COMMON.value)

    def logduration(self, rest: str) -> None:
        if self.nothing(rest):
            self.set("logduration", logduration=True)

    def file_of(self, directive: str, rest: str) -> None:
        if (found := self.file_name(rest)) is not None:
            self.give(directive, found)

    def setting(self, directive: str, rest: str) -> None:
        what = DIRECTIVES[directive].value.what
        if (word := self.argument(rest, what, self.guarded(directive))) is not None:
            self.give(directive, word)

    def give(self, directive: str, text: str) -> None:
        """Set a directive that has a value (`metrics`, and all but those of Kind.OWN) to `text`, which
        has no quotes, blanks or comment around it."""
        if directive == "metrics":
            self.exporter(text)
            return
        kind, field, value, *_ = DIRECTIVES[directive]
        if kind is Kind.FILE:
            self.set("pidlogfile" if directive == "pidfile" else directive, **{field: text})
            return
        try:
            found = value.read(text)
        except ValueError:
            self.guarded(directive)(value.wrong(text))
            return
        if kind is Kind.NOTHING:
            if directive not in self.origins:
                self.warn(f"{directive!r} means nothing here: buffers are the kernel's")
            self.set(directive)
        elif kind is Kind.LIMIT:
            self.set(directive, limits=replace(self.settings.limits, **{field: found}))
        else:
            self.set(directive, **{field: found})

    def set(self, directive: str, **fields: Any) -> None:
        before, settings = self.origins.get(directive), replace(self.settings, **fields)
        if before is not None and settings != self.settings:
            self.warn(f"{directive!r} is repeated: this line replaces {place(before, self.here)}")
        self.origins[directive] = self.here
        self.settings = settings

    def metrics(self, rest: str) -> None:
        if not rest.strip(_BLANKS).startswith(UNIX):
            found = self.argument(rest, METRICS, self.wrong)
        else:
            path = self.file_name(rest.replace(UNIX, "", 1))
            found = None if path is None else f"{UNIX}{path}"
        if found is not None:
            self.give("metrics", found)

    def exporter(self, text: str) -> None:
        if not text.startswith(UNIX):
            address = self.metrics_address(text)
        else:
            path = text.removeprefix(UNIX)
            address = MetricsAddress(path=path)
            if not path or len(os.fsencode(path)) > LONGEST_PATH:
                self.wrong(expected(f"a path of at most {LONGEST_PATH} bytes (unix(7))", path))
                return
        if address is not None:
            self.set("metrics", metrics=address)

    def metrics_address(self, word: str) -> MetricsAddress | None:
        host, colon, port = word.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not port.isascii() or not port.isdigit():
            self.wrong(expected(METRICS, word))
        elif (":" in bare) != (bare != host):
            self.wrong(
                expected(f"{METRICS} with an IPv6 address, and nothing else, in square brackets", word)
            )
        elif (address := numeric(bare)) is None:
            what = "a numeric address (every one is '0.0.0.0' or '[::]')"
            self.wrong(expected(f"{METRICS} with {what}", word))
        elif len(digits := port.lstrip("0") or "0") > 5 or int(digits) > 65535:
            self.wrong(expected("a port from 0 to 65535", port))
        else:
            return MetricsAddress(address.text, int(digits))
        return None

    def argument(self, rest: str, what: str, wrong: Callable[[str], None]) -> str | None:
        """The single word after a directive, a comment ignored; None when an error was told."""
        words = rest.partition("#")[0].strip(_BLANKS)
        if not words or rest[0] not in _BLANKS:
            wrong(f"expected {what} after the directive, found {_or_nothing(rest)}")
            return None
        strange = _CONTROL.search(words)
        if strange is not None:
            wrong(f"expected {what}, found {_character(strange[0])} in {quote(words)}")
            return None
        first, *more = re.split(r"[ \t]+", words)
        if more:
            wrong(f"expected one word only ({what}), found {quote(words)}")
            return None
        return first

    def nothing(self, rest: str) -> bool:
        words = rest.partition("#")[0].strip(_BLANKS)
        if words:
            self.wrong(expected("nothing after the directive but a comment", words))
        return not words

    def file_name(self, rest: str, wrong: Callable[[str], None] | None = None) -> str | None:
        """The file named after a directive; `#` within a name does not begin a comment (rinetd)."""
        wrong = wrong or self.wrong
        match = _FILE_NAME.fullmatch(rest.strip(_BLANKS))
        if match is None or rest[0] not in _BLANKS:
            wrong(f"expected the name of a file, found {_or_nothing(rest)}")
            return None
        quoted, plain, after = match.groups()
        name = quoted or plain
        after = after.strip(_BLANKS)
        if after and not after.startswith("#"):
            if name.startswith('"'):
                wrong(expected("a closing quote after the file's name", f"{name} {after}"))
            else:
                wrong(expected("a comment or nothing after the file's name (quote one with spaces)", after))
            return None
        if "\r" in name:
            wrong(f"expected the name of a file, found a lone carriage return in {quote(name)}")
            return None
        if _CONTROL.search(name) or (plain and (plain[0] in "#\"'" or plain[-1] in "\"'")):
            self.warn(f"the file's name is taken as it stands: {quote(name)}")
        return name


def _or_nothing(rest: str) -> str:
    rest = rest.strip(_BLANKS)
    return quote(rest) if rest else "nothing"


def _character(character: str) -> str:
    return _CONTROL_NAMES.get(character) or f"the control character {character!r}"


def _pattern_meant(pattern: str) -> str:
    if "%" in pattern:
        return "a pattern without a zone"
    return "a pattern of digits, a-f and '.:*?' (host names are not looked up)"


def _never(pattern: str, allow: bool) -> str:
    if pattern.endswith(".") and not never_matches(pattern + "*"):
        hint = f" (did you mean '{pattern}*'?)"
    else:
        hint = ""
    effect = ", and an allow rule that matches nobody keeps everybody out" if allow else ""
    return f"pattern {quote(pattern)} can never match an address{effect}{hint}"


def _directive_meant(word: str, directives: dict[str, Callable[[str], None]]) -> str | None:
    """The directive that `word` is a slip of, if it looks like one."""
    word = word.lower()
    for directive in ("allow", "deny"):
        if word.startswith(directive):
            return directive
    return closest(word, directives, 0.75)
