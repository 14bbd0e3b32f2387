"""Who gets in: allow and deny, globally and per forward.

The rules are rinetd's, so every case that C rinetd judges rightly is put to it as well.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Kind, columns
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Server, banner
from tests.sockets import Address, connect, read_exactly

HELLO = "hello"

CLIENTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.22", "127.1.0.2")


@dataclass(frozen=True, slots=True)
class Case:
    """Global rules, the forward's rules, and who of CLIENTS gets in."""

    name: str
    everywhere: tuple[str, ...]
    here: tuple[str, ...]
    admitted: tuple[str, ...]
    c_admits: tuple[str, ...] | None = None
    """Who gets in with C rinetd, where that differs."""


ALL = CLIENTS
FIRST, TWO, THREE, TWENTY_TWO, FAR = CLIENTS

CASES = [
    Case("no-rules", (), (), ALL),
    Case("global-allow", ("allow 127.0.0.2",), (), (TWO,)),
    Case("global-deny", ("deny 127.0.0.2",), (), (FIRST, THREE, TWENTY_TWO, FAR)),
    Case("own-allow", (), ("allow 127.0.0.2",), (TWO,)),
    Case("own-deny", (), ("deny 127.0.0.2",), (FIRST, THREE, TWENTY_TWO, FAR)),
    Case("allows-add-up", ("allow 127.0.0.2", "allow 127.0.0.3"), (), (TWO, THREE)),
    Case("denies-add-up", ("deny 127.0.0.2", "deny 127.0.0.3"), (), (FIRST, TWENTY_TWO, FAR)),
    Case("deny-beats-allow", ("allow 127.0.0.*", "deny 127.0.0.2"), (), (FIRST, THREE, TWENTY_TWO)),
    Case("whatever-the-order", ("deny 127.0.0.2", "allow 127.0.0.*"), (), (FIRST, THREE, TWENTY_TWO)),
    Case("global-deny-beats-own-allow", ("deny 127.0.0.2",), ("allow 127.0.0.2",), ()),
    Case(
        "own-deny-beats-global-allow", ("allow 127.0.0.*",), ("deny 127.0.0.2",), (FIRST, THREE, TWENTY_TWO)
    ),
    Case("both-allow-lists-bind", ("allow 127.0.0.*",), ("allow *.3", "allow 127.1.*"), (THREE,)),
    Case("own-allow-does-not-widen", ("allow 127.0.0.2",), ("allow 127.0.0.3",), ()),
    Case("both-deny-lists-bind", ("deny *.2",), ("deny *.3",), (FIRST, TWENTY_TWO)),
    Case("star-at-the-end", ("allow 127.0.*",), (), (FIRST, TWO, THREE, TWENTY_TWO)),
    Case("star-at-the-beginning", ("allow *.2",), (), (TWO, FAR)),
    Case("star-in-the-middle", ("allow 127*0.2",), (), (TWO, FAR)),
    Case("star-may-be-empty", ("allow 127.0.0.2*",), (), (TWO, TWENTY_TWO)),
    Case("two-stars", ("allow **",), (), ALL),
    Case("star-alone-denies-all", ("deny *",), (), ()),
    Case("question-mark-is-one", ("allow 127.0.0.?",), (), (FIRST, TWO, THREE)),
    Case("question-marks-are-as-many", ("allow 127.0.0.??",), (), (TWENTY_TWO,)),
    Case("a-dot-is-a-dot", ("allow 127.0.0?2",), (), (TWO,)),
    Case("a-dot-is-no-wildcard", ("allow 1.7.0.0.2",), (), ()),
    Case("the-whole-address-matches", ("allow 127.0.0.",), (), ()),
    Case("no-prefix-matches", ("deny 127.0.0.2",), ("deny 127.0.0",), (FIRST, THREE, TWENTY_TWO, FAR)),
    # C skips a forward's first rule when it has two or more and there is no global one.
    Case(
        "first-deny-counts", (), ("deny *.2", "deny *.3"), (FIRST, TWENTY_TWO), (FIRST, TWO, TWENTY_TWO, FAR)
    ),
    Case("first-allow-counts", (), ("allow *.2", "deny *.3"), (TWO, FAR), (FIRST, TWO, TWENTY_TWO, FAR)),
    Case(
        "first-of-three-counts", (), ("deny *.1", "deny *.2", "deny *.3"), (TWENTY_TWO,), (FIRST, TWENTY_TWO)
    ),
]


def gets_in(address: Address, source: str) -> bool:
    """Whether a client from `source` reaches the backend, which speaks first."""
    with connect(address, source) as client:
        try:
            heard = read_exactly(client, len(HELLO))
        except ConnectionResetError:
            return False
    assert heard in (b"", HELLO.encode())
    return bool(heard)


@pytest.fixture
def greeter(backend: StartServer) -> Server:
    """A backend that says HELLO."""
    return backend(banner, HELLO)


def admitted(start: StartForwarder, greeter: Server, case: Case, kind: Kind) -> tuple[str, ...]:
    """Who of CLIENTS gets in under the case's rules."""
    port = free_port()
    lines = (*case.everywhere, f"127.0.0.1 {port} {greeter.host} {greeter.port}", *case.here)
    start("\n".join(lines) + "\n", kind=kind)
    return tuple(client for client in CLIENTS if gets_in(("127.0.0.1", port), client))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_admit(forwarder: StartForwarder, greeter: Server, case: Case) -> None:
    """The rules let in whom the case says, and nobody else."""
    assert admitted(forwarder, greeter, case, "fastfwd") == case.admitted


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_c_rinetd_admits(forwarder: StartForwarder, greeter: Server, case: Case) -> None:
    """C rinetd lets in the same clients, except where it skips the first rule."""
    require_peer("rinetd")
    expected = case.admitted if case.c_admits is None else case.c_admits
    assert admitted(forwarder, greeter, case, "rinetd") == expected


def test_rules_belong_to_the_forward_before_them(forwarder: StartForwarder, greeter: Server) -> None:
    """A rule after the second forward says nothing of the first."""
    one, two = free_port(), free_port()
    forwarder(
        f"127.0.0.1 {one} {greeter.host} {greeter.port}\n"
        "deny 127.0.0.2\n"
        f"127.0.0.1 {two} {greeter.host} {greeter.port}\n"
        "deny 127.0.0.3\n"
    )
    found = {
        (port, source)
        for port in (one, two)
        for source in (TWO, THREE)
        if gets_in(("127.0.0.1", port), source)
    }
    assert found == {(one, THREE), (two, TWO)}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("deny 127.0.0.2", {FIRST}),
        ("allow 127.0.0.2", {TWO}),
        ("deny *.2", {FIRST}),
        ("deny ::ffff:127.0.0.2", {FIRST}),
        ("allow ::ffff:127.0.0.2", {TWO}),
        ("allow ::ffff:*\ndeny 127.0.0.2", {FIRST}),
    ],
)
def test_an_ipv4_client_of_a_dual_stack_listener(
    forwarder: StartForwarder, greeter: Server, rules: str, expected: set[str]
) -> None:
    """An IPv4 client that comes through `::` is judged by its IPv4 address and by the mapped one."""
    port = free_port()
    forwarder(f":: {port} {greeter.host} {greeter.port}\n{rules}\n")
    assert {source for source in (FIRST, TWO) if gets_in(("127.0.0.1", port), source)} == expected


@pytest.mark.parametrize(
    ("rules", "expected"), [("deny ::1", False), ("allow ::1", True), ("allow 127.*", False)]
)
def test_an_ipv6_client(forwarder: StartForwarder, greeter: Server, rules: str, expected: bool) -> None:
    """An IPv6 client is judged by its address as inet_ntop writes it."""
    port = free_port()
    forwarder(f"::1 {port} {greeter.host} {greeter.port}\n{rules}\n")
    assert gets_in(("::1", port), "::1") == expected


def test_a_refused_client_never_reaches_the_backend(forwarder: StartForwarder, greeter: Server) -> None:
    """No connection to the backend is made for a client that is not let in."""
    port = free_port()
    running = forwarder(f"deny 127.0.0.2\n127.0.0.1 {port} {greeter.host} {greeter.port}\n")
    for _ in range(20):
        assert not gets_in(("127.0.0.1", port), TWO)
    running.wait_log(20, "denied")
    assert gets_in(("127.0.0.1", port), FIRST)
    assert greeter.count == 1


@pytest.mark.parametrize(("rule", "word"), [("deny 127.0.0.2", "denied"), ("allow 127.0.0.1", "not-allowed")])
def test_a_refusal_is_one_log_line(forwarder: StartForwarder, greeter: Server, rule: str, word: str) -> None:
    """A refused client leaves one line, with its address, no bytes and the word of the rule that refused."""
    port = free_port()
    running = forwarder(f"{rule}\n127.0.0.1 {port} {greeter.host} {greeter.port}\n")
    assert not gets_in(("127.0.0.1", port), TWO)
    assert gets_in(("127.0.0.1", port), FIRST)
    lines = [columns(line) for line in running.wait_log(3)]
    assert [(line["client"], line["bytes_in"], line["bytes_out"], line["outcome"]) for line in lines[:2]] == [
        (TWO, "0", "0", word),
        (FIRST, "0", "0", "opened"),
    ]


def test_a_thousand_denials_leave_nothing_behind(forwarder: StartForwarder, greeter: Server) -> None:
    """1,000 refused clients, 10 at a time, leave 1,000 log lines and no descriptor."""
    port = free_port()
    running = forwarder(f"deny 127.0.0.2\n127.0.0.1 {port} {greeter.host} {greeter.port}\n")
    before = running.descriptors()
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(lambda _: gets_in(("127.0.0.1", port), TWO), range(1000)))
    assert not any(results)
    assert len(running.wait_log(1000, "denied")) == 1000
    until(lambda: running.descriptors() <= before, what=f"no more than {before} descriptors")
