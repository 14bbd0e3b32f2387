"""The connection log against C rinetd 0.73: the same configuration, the same visits, the same lines.

Only the time is masked. Where fastfwd means to differ, the difference is an entry
of `QUIRKS`, and a case that names it must show it: a list that lies fails.
"""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.conftest import StartForwarder
from tests.forwarder import Forwarder, Kind
from tests.peers import require_peer, require_root
from tests.ports import free_port
from tests.sockets import Listener, connect, noise, read_exactly, read_to_end

FORMATS = {"tab": "", "common": "logcommon\n"}

TIMES = {
    "tab": re.compile(r"^\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d (?=\t)"),
    "common": re.compile(r"(?<=\[)\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d  [+-]\d{4}(?=\])"),
}
"""The time of a line: the trailing blank and the two blanks before the zone are C's own."""


@dataclass(frozen=True, slots=True)
class Quirk:
    """One word that C 0.73 writes and the word that fastfwd writes in its place."""

    c: str
    ours: str
    reason: str


QUIRKS = {
    "denied": Quirk("(null)", "denied", "C 0.73 indexes one beyond its array of words"),
    "not-allowed": Quirk("denied", "not-allowed", "C 0.73's words are shifted by one against its enum"),
    "refused": Quirk("done-local-closed", "local-connect-failed -", "C takes a failed connect for a close"),
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One client: where from, bytes sent, bytes read, and who closes first."""

    source: str | None = None
    sends: int = 5
    reads: int = 9
    closes: str = "client"
    served: bool = True
    """False: the forwarder ends it without asking the backend, or the backend is not there."""
    lines: int = 2
    """Log lines that it leaves."""


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration (`LISTEN` and `TARGET` stand for free ports) and its visits.

    `listens` and `backend` are the numeric addresses behind the names in the
    configuration; `backend` None means that nobody listens there. `words` is what
    C writes in its last column, one entry per line.
    """

    name: str
    config: str
    words: tuple[str, ...]
    visits: tuple[Visit, ...] = (Visit(),)
    listens: str = "127.0.0.1"
    backend: str | None = "127.0.0.1"
    service: str | None = None
    quirk: str | None = None


PLAIN = "127.0.0.1 LISTEN 127.0.0.1 TARGET\n"
REMOTE = ("opened", "done-remote-closed")
LOCAL = ("opened", "done-local-closed")

CASES = [
    Case("client-closes", PLAIN, REMOTE),
    Case("backend-closes", PLAIN, LOCAL, (Visit(closes="backend"),)),
    Case("zero-bytes-client-closes", PLAIN, REMOTE, (Visit(sends=0, reads=0),)),
    Case("zero-bytes-backend-closes", PLAIN, LOCAL, (Visit(sends=0, reads=0, closes="backend"),)),
    Case("only-client-speaks", PLAIN, REMOTE, (Visit(reads=0),)),
    Case("only-backend-speaks", PLAIN, LOCAL, (Visit(sends=0, closes="backend"),)),
    Case("100-kB-client-closes", PLAIN, REMOTE, (Visit(sends=100_000, reads=100_001),)),
    Case("100-kB-backend-closes", PLAIN, LOCAL, (Visit(sends=100_001, reads=100_000, closes="backend"),)),
    Case("many", PLAIN, (REMOTE + LOCAL) * 10, (Visit(), Visit(closes="backend")) * 10),
    Case("other-client-address", PLAIN, REMOTE, (Visit(source="127.0.0.9"),)),
    Case("tcp-suffix", "127.0.0.1 LISTEN/tcp 127.0.0.1 TARGET/tcp\n", REMOTE),
    Case("localhost", "localhost LISTEN localhost TARGET\n", REMOTE),
    Case("zero-is-any", "0 LISTEN 127.0.0.1 TARGET\n", REMOTE),
    Case("zero-as-backend", "127.0.0.1 LISTEN 0 TARGET\n", REMOTE),
    Case("any", "0.0.0.0 LISTEN 127.0.0.1 TARGET\n", REMOTE),
    Case("v6", "::1 LISTEN ::1 TARGET\n", REMOTE, listens="::1", backend="::1"),
    Case("v6-to-v4", "::1 LISTEN 127.0.0.1 TARGET\n", REMOTE, listens="::1"),
    Case("v4-to-v6", "127.0.0.1 LISTEN ::1 TARGET\n", REMOTE, backend="::1"),
    Case("dual-stack-v4-client", ":: LISTEN 127.0.0.1 TARGET\n", REMOTE),
    Case("dual-stack-v6-client", ":: LISTEN 127.0.0.1 TARGET\n", REMOTE, listens="::1"),
    Case(
        "service-listens",
        "127.0.0.77 SERVICE 127.0.0.1 TARGET\n",
        REMOTE,
        listens="127.0.0.77",
        service="listen",
    ),
    Case(
        "service-target",
        "127.0.0.1 LISTEN 127.0.0.78 SERVICE\n",
        REMOTE,
        backend="127.0.0.78",
        service="target",
    ),
    Case("options", "127.0.0.1 LISTEN 127.0.0.1 TARGET [timeout=5, src=127.0.0.7]\n", REMOTE),
    Case("allowed", PLAIN + "allow 127.0.0.*\n", REMOTE, (Visit(source="127.0.0.2"),)),
    Case(
        "denied",
        "deny 127.0.0.2\n" + PLAIN,
        ("(null)",),
        (Visit(source="127.0.0.2", served=False, lines=1),),
        quirk="denied",
    ),
    Case(
        "denied-by-the-forward",
        PLAIN + "deny 127.0.0.2\n",
        ("(null)", *REMOTE),
        (Visit(source="127.0.0.2", served=False, lines=1), Visit(source="127.0.0.3")),
        quirk="denied",
    ),
    Case(
        "not-allowed",
        "allow 127.0.0.3\n" + PLAIN,
        ("denied",),
        (Visit(source="127.0.0.2", served=False, lines=1),),
        quirk="not-allowed",
    ),
    Case(
        "not-allowed-by-the-forward",
        PLAIN + "allow 127.0.0.3\n",
        ("denied", *REMOTE),
        (Visit(source="127.0.0.2", served=False, lines=1), Visit(source="127.0.0.3")),
        quirk="not-allowed",
    ),
    Case("refused", PLAIN, LOCAL, (Visit(sends=0, served=False),), backend=None, quirk="refused"),
    # TCP to the broadcast address fails inside connect(2), with ENETUNREACH (ip(7)).
    Case(
        "unreachable",
        "127.0.0.1 LISTEN 255.255.255.255 TARGET\n",
        ("local-connect-failed -",),
        (Visit(sends=0, served=False, lines=1),),
        backend=None,
    ),
]

SERVICE = "http-alt"
"""A service name with a port that needs no privilege, on an address of its own."""

MARKS = pytest.mark.parametrize("logformat", FORMATS)
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def service_port() -> int:
    """The port of SERVICE on this machine."""
    try:
        return socket.getservbyname(SERVICE, "tcp")
    except OSError:
        pytest.skip("no /etc/services here")


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a case, the same for both programs so that their lines are equal as written."""

    listen: int
    target: int

    @classmethod
    def of(cls, case: Case) -> Ports:
        """Free ports, or the service's where the case asks for it."""
        listen = service_port() if case.service == "listen" else free_port()
        target = service_port() if case.service == "target" else free_port()
        return cls(listen, target)


def make_visit(
    forwarder: Forwarder, address: tuple[str, int], backend: Listener | None, visit: Visit
) -> None:
    """Go through one visit; each step waits until the other side has seen the one before.

    C loses the second line when both ends close within one turn of its loop (86 of
    100), so the second end closes only after it has seen the first one's FIN.
    """
    before = len(forwarder.log_lines())
    with ExitStack() as stack:
        client = stack.enter_context(connect(address, visit.source))
        if not visit.served or backend is None:
            assert read_to_end(client).data == b""
            forwarder.wait_log(before + visit.lines)
            return
        server = stack.enter_context(backend.accept())
        forwarder.wait_log(before + 1)
        client.sendall(noise(visit.sends))
        assert read_exactly(server, visit.sends) == noise(visit.sends)
        server.sendall(noise(visit.reads, 2))
        assert read_exactly(client, visit.reads) == noise(visit.reads, 2)
        first, second = (client, server) if visit.closes == "client" else (server, client)
        first.close()
        assert read_to_end(second).how == "EOF"
        second.close()
        forwarder.wait_log(before + visit.lines)


def lines_of(start: StartForwarder, kind: Kind, case: Case, logformat: str, ports: Ports) -> list[str]:
    """Run the case against one program; its log lines with the time masked."""
    config = case.config.replace("LISTEN", str(ports.listen)).replace("TARGET", str(ports.target))
    config = config.replace("SERVICE", SERVICE) + FORMATS[logformat]
    with ExitStack() as stack:
        backend = stack.enter_context(Listener(case.backend, ports.target)) if case.backend else None
        with start(config, kind=kind) as forwarder:
            for visit in case.visits:
                make_visit(forwarder, (case.listens, ports.listen), backend, visit)
        lines = forwarder.log_lines()
    masked = []
    for line in lines:
        text, count = TIMES[logformat].subn("TIME", line)
        assert count == 1, f"no time in {line!r}"
        masked.append(text)
    return masked


def word_of(line: str, logformat: str) -> str:
    """The word of a masked line."""
    if logformat == "tab":
        return line.rsplit("\t", 1)[1]
    request = line.split('"')[1]
    return request.removesuffix(" HTTP/1.0").rsplit("/", 1)[1]


def with_quirk(line: str, quirk: Quirk, logformat: str) -> str:
    """C's line as fastfwd writes it, when its word is the quirk's; any other line unchanged."""
    if word_of(line, logformat) != quirk.c:
        return line
    if logformat == "tab":
        return line.removesuffix(quirk.c) + quirk.ours
    return line.replace(f'/{quirk.c} HTTP/1.0"', f'/{quirk.ours} HTTP/1.0"')


@pytest.fixture(autouse=True)
def needs() -> None:
    """C rinetd, and a server's rights."""
    require_peer("rinetd")
    require_root()


@MARKS
@EACH
def test_c_writes_what_the_cases_say(forwarder: StartForwarder, case: Case, logformat: str) -> None:
    """C rinetd's words are the recorded ones: the other side of the comparison means what it should."""
    lines = lines_of(forwarder, "rinetd", case, logformat, Ports.of(case))
    assert [word_of(line, logformat) for line in lines] == list(case.words)


@MARKS
@EACH
def test_fastfwd_writes_the_lines_of_c(forwarder: StartForwarder, case: Case, logformat: str) -> None:
    """fastfwd's lines are C's, byte for byte but for the time and the one quirk that the case names."""
    ports = Ports.of(case)
    c_lines = lines_of(forwarder, "rinetd", case, logformat, ports)
    expected = c_lines
    if case.quirk is not None:
        expected = [with_quirk(line, QUIRKS[case.quirk], logformat) for line in c_lines]
        assert expected != c_lines, "C does not show the quirk"
    assert lines_of(forwarder, "fastfwd", case, logformat, ports) == expected
