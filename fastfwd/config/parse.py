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

from fastfwd.config.endpoint import LONGEST_PATH, Service
from fastfwd.config.forward import parse_forward
from fastfwd.config.number import AMOUNT, NO_TIME, TIME, amount, seconds
from fastfwd.config.pattern import is_pattern, network, never_matches, normalise
from fastfwd.config.resolve import numeric
from fastfwd.config.wording import expected, quote
from fastfwd.model import AccessRule, Config, Forward, LogFormat, MetricsAddress, Origin, Problem

MOST_WORKERS = 1024
GUARDS = frozenset(
    {
        *("allow", "deny", "user", "group", "include"),
        *("max-connections", "max-connections-per-client", "max-udp-connections"),
    }
)
FAMILIES: dict[str, int | None] = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "any": None}

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

SYSTEMS_TIMEOUT = 127
"""Seconds that the kernel's own six repetitions of a SYN take (tcp(7), tcp_syn_retries)."""

DEEPEST = 10
"""Levels of files that include each other, as in rinetd-uv."""

MOST_FILES = 10_000

WITHOUT_MEANING = ("buffersize", "pool-min-free", "pool-max-free", "pool-trim-delay")
"""Directives of rinetd-uv about its buffers."""

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
    for number, line in enumerate(data.split(b"\n"), 1):
        for part in line.removesuffix(b"\r").split(b"\0"):
            yield number, part.decode("utf-8", "surrogateescape")


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
        self.directives: dict[str, Callable[[str], None]] = {
            "allow": lambda rest: self.access(rest, True),
            "deny": lambda rest: self.access(rest, False),
            "include": self.include,
            "logfile": self.logfile,
            "pidlogfile": self.pidlogfile,
            "pidfile": self.pidlogfile,
            "logcommon": self.logcommon,
            "logformat": self.logformat,
            "logduration": self.logduration,
            "workers": self.workers,
            "user": self.user,
            "group": self.group,
            "metrics": self.metrics,
            "max-connections": lambda rest: self.limit("max-connections", "connections", rest),
            "max-connections-per-client": lambda rest: self.limit(
                "max-connections-per-client", "connections_per_client", rest
            ),
            "max-udp-connections": lambda rest: self.limit("max-udp-connections", "udp_connections", rest),
            "connect-timeout": lambda rest: self.time("connect-timeout", "connect_timeout", rest),
            "idle-timeout": lambda rest: self.time("idle-timeout", "idle_timeout", rest),
            "listen-backlog": self.listen_backlog,
            "statusfile": self.statusfile,
            "statusinterval": self.statusinterval,
            "statsloginterval": self.statsloginterval,
            "statusformat": self.statusformat,
            **{word: partial(self.without_meaning, word) for word in WITHOUT_MEANING},
            "dns-refresh": self.dns_refresh,
            "dns-multi-ip-expand": self.dns_expand,
            "dns-multi-ip-proto": self.dns_family,
            "half-close-timeout": lambda rest: self.time("half-close-timeout", "half_close_timeout", rest),
        }

    def config(self) -> Config:
        forwards = tuple(replace(forward, rules=tuple(rules)) for forward, rules in self.forwards)
        if not forwards:
            self.warnings.append(Problem(Origin(self.file, 0), "no forwards: there is nothing to do"))
        return replace(
            self.settings,
            forwards=forwards,
            rules=tuple(self.global_rules),
            files=tuple(self.files),
            origins=self.origins,
            warnings=tuple(self.warnings),
        )

    def wrong(self, message: str) -> None:
        self.problems.append(Problem(self.here, message))

    def breach(self, message: str) -> None:
        self.problems.append(GuardProblem(self.here, message))

    def warn(self, message: str) -> None:
        self.warnings.append(Problem(self.here, message))

    def whole(self, path: str, data: bytes) -> None:
        """Read all of a file, then go on where it was included."""
        before, self.file = self.file, path
        self.files.append(path)
        self.inside.append(os.path.realpath(path))
        for number, text in _lines(data):
            self.read(number, text)
        self.inside.pop()
        self.file = before

    def include(self, rest: str) -> None:
        pattern = self.file_name(rest, self.breach)
        if pattern is None:
            return
        here = self.here
        found = self.matching(os.path.join(os.path.dirname(self.file), pattern))
        if not found:
            self.warn(f"no file matches {pattern!r}: nothing is included")
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

    def without_meaning(self, word: str, rest: str) -> None:
        if self.argument(rest, "a value", self.wrong) is not None and word not in self.origins:
            self.set(word)
            self.warn(f"{word!r} means nothing here: buffers are the kernel's")

    def listen_backlog(self, rest: str) -> None:
        what = "a number from 1 to 65535"
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return
        if re.fullmatch("0*[1-9][0-9]{0,4}", word) is None or int(word) > 65535:
            self.wrong(expected(what, word))
            return
        self.set("listen-backlog")
        self.settings = replace(self.settings, backlog=int(word))

    def statusfile(self, rest: str) -> None:
        name = self.file_name(rest)
        if name is not None:
            self.set("statusfile")
            self.settings = replace(self.settings, statusfile=name)

    def statusformat(self, rest: str) -> None:
        what = "'json' or 'text'"
        word = self.argument(rest, what, self.wrong)
        if word is not None and word not in ("json", "text"):
            self.wrong(expected(what, word))
        elif word is not None:
            self.set("statusformat")
            self.settings = replace(self.settings, status_text=word == "text")

    def statusinterval(self, rest: str) -> None:
        if (number := self.seconds("statusinterval", rest, or_none=False)) is not None:
            self.settings = replace(self.settings, status_interval=number)

    def statsloginterval(self, rest: str) -> None:
        if (number := self.seconds("statsloginterval", rest, or_none=True)) is not None:
            self.settings = replace(self.settings, stats_interval=number)

    def seconds(self, directive: str, rest: str, *, or_none: bool) -> int | None:
        what = NO_TIME if or_none else TIME
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return None
        if (number := seconds(word, or_none=or_none)) is None:
            self.wrong(expected(what, word))
            return None
        self.set(directive)
        return number

    def dns_expand(self, rest: str) -> None:
        what = "'on' or 'off'"
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return
        if word not in ("on", "off"):
            self.wrong(expected(what, word))
            return
        self.set("dns-multi-ip-expand")
        self.settings = replace(self.settings, dns_expand=word == "on")

    def read(self, number: int, text: str) -> None:
        self.here = Origin(self.file, number)
        if number == 1 and text.startswith("\ufeff"):
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
            say = self.breach if meant in GUARDS else self.wrong
            say(f"expected a forward or a directive, found {quote(body)} (did you mean {meant!r}?)")
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
            self.wrong(f"expected a name of its own, found {forward.name!r} of line {first.line}")
        return first is self.here

    def access(self, rest: str, allow: bool) -> None:
        word = rest.strip(_BLANKS)
        if word.startswith("@"):
            self.access_list(word.removeprefix("@"), allow)
        elif (pattern := self.argument(rest, "a pattern", self.breach)) is not None:
            self.access_rule(pattern, allow)

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

    def access_list(self, rest: str, allow: bool) -> None:
        """`@file`: a pattern a line."""
        name = self.file_name(f" {rest}", self.breach)
        if name is None:
            return
        path = os.path.join(os.path.dirname(self.file), name)
        try:
            lines = list(_lines(self.read_file(path)))
        except OSError as error:
            self.breach(f"expected a list of patterns, found {path!r}: {error.strerror}")
            return
        directive, before, wrong = self.here, len(self.scope), len(self.problems)
        for number, line in lines:
            self.here = Origin(path, number)
            words = line.partition("#")[0].split()
            if len(words) > 1:
                self.breach(expected("one pattern a line", line.strip()))
            elif words:
                self.access_rule(words[0], allow)
            if len(self.problems) - wrong > MOST_WRONG:
                self.breach("so many errors in one list are enough: the rest was not read")
                break
        self.here = directive
        if len(self.scope) == before and len(self.problems) == wrong:
            self.breach(f"expected a pattern in the list {path!r}, found none")

    def logfile(self, rest: str) -> None:
        name = self.file_name(rest)
        if name is not None:
            self.set("logfile")
            self.settings = replace(self.settings, logfile=name)

    def pidlogfile(self, rest: str) -> None:
        name = self.file_name(rest)
        if name is not None:
            self.set("pidlogfile")
            self.settings = replace(self.settings, pidfile=name)

    def logcommon(self, rest: str) -> None:
        if self.nothing(rest):
            self.format(LogFormat.COMMON)

    def logformat(self, rest: str) -> None:
        what = "one of the formats 'rinetd', 'common', 'json'"
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return
        try:
            self.format(LogFormat(word))
        except ValueError:
            self.wrong(expected(what, word))

    def logduration(self, rest: str) -> None:
        if self.nothing(rest):
            self.origins["logduration"] = self.here
            self.settings = replace(self.settings, logduration=True)

    def workers(self, rest: str) -> None:
        what = f"'auto' or a number from 1 to {MOST_WORKERS}"
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return
        number = None
        if word != "auto":
            digits = word.lstrip("0")  # int() refuses thousands of them
            if re.fullmatch("[1-9][0-9]{0,3}", digits) is None or int(digits) > MOST_WORKERS:
                self.wrong(expected(what, word))
                return
            number = int(digits)
        self.set("workers")
        self.settings = replace(self.settings, workers=number)

    def user(self, rest: str) -> None:
        name = self.argument(rest, "the name of an account", self.breach)
        if name is not None:
            self.set("user")
            self.settings = replace(self.settings, user=name)

    def group(self, rest: str) -> None:
        name = self.argument(rest, "the name of a group", self.breach)
        if name is not None:
            self.set("group")
            self.settings = replace(self.settings, group=name)

    def limit(self, directive: str, field: str, rest: str) -> None:
        word = self.argument(rest, AMOUNT, self.breach)
        if word is None:
            return
        if (number := amount(word)) is None:
            self.breach(expected(AMOUNT, word))
            return
        self.set(directive)
        self.settings = replace(self.settings, limits=replace(self.settings.limits, **{field: number}))

    def time(self, directive: str, field: str, rest: str) -> None:
        word = self.argument(rest, TIME, self.wrong)
        if word is None:
            return
        if directive == "connect-timeout" and seconds(word, or_none=True) == 0:
            word = f"{SYSTEMS_TIMEOUT}"  # as in rinetd-uv
        if (number := seconds(word)) is None:
            self.wrong(expected(TIME, word))
            return
        self.set(directive)
        self.settings = replace(self.settings, limits=replace(self.settings.limits, **{field: number}))

    def dns_refresh(self, rest: str) -> None:
        if (number := self.seconds("dns-refresh", rest, or_none=True)) is not None:
            self.settings = replace(self.settings, dns_refresh=number)

    def dns_family(self, rest: str) -> None:
        what = "one of 'ipv4', 'ipv6', 'any'"
        word = self.argument(rest, what, self.wrong)
        if word is None:
            return
        if word not in FAMILIES:
            self.wrong(expected(what, word))
            return
        self.set("dns-multi-ip-proto")
        self.settings = replace(self.settings, dns_family=FAMILIES[word])

    def metrics(self, rest: str) -> None:
        what = "'ADDRESS:PORT' or 'unix:/path'"
        if not rest.strip(_BLANKS).startswith("unix:"):
            word = self.argument(rest, what, self.wrong)
            address = None if word is None else self.metrics_address(word, what)
        else:
            path = self.file_name(rest.replace("unix:", "", 1))
            address = None if path is None else self.metrics_path(path)
        if address is not None:
            self.set("metrics")
            self.settings = replace(self.settings, metrics=address)

    def metrics_address(self, word: str, what: str) -> MetricsAddress | None:
        host, colon, port = word.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not port.isascii() or not port.isdigit():
            self.wrong(expected(what, word))
        elif (":" in bare) != (bare != host):
            self.wrong(expected(f"{what} with an IPv6 address, and nothing else, in square brackets", word))
        elif (address := numeric(bare)) is None:
            self.wrong(expected(f"{what} with a numeric address (every one is '0.0.0.0' or '[::]')", word))
        elif len(digits := port.lstrip("0") or "0") > 5 or int(digits) > 65535:
            self.wrong(expected("a port from 0 to 65535", port))
        else:
            return MetricsAddress(address.text, int(digits))
        return None

    def metrics_path(self, path: str) -> MetricsAddress | None:
        if len(os.fsencode(path)) > LONGEST_PATH:
            self.wrong(expected(f"a path of at most {LONGEST_PATH} bytes (unix(7))", path))
            return None
        return MetricsAddress(path=path)

    def format(self, logformat: LogFormat) -> None:
        before = self.origins.get("logformat")
        if before is not None and self.settings.logformat is not logformat:
            old = self.settings.logformat.value
            self.warn(f"log format {logformat.value!r} replaces {old!r} of line {before.line}")
        self.origins["logformat"] = self.here
        self.settings = replace(self.settings, logformat=logformat)

    def set(self, directive: str) -> None:
        before = self.origins.get(directive)
        if before is not None:
            self.warn(f"{directive!r} is repeated: this line replaces line {before.line}")
        self.origins[directive] = self.here

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
    import difflib  # noqa: PLC0415  # only a bad file pays for it

    close = difflib.get_close_matches(word, directives, 1, 0.75)
    return close[0] if close else None
