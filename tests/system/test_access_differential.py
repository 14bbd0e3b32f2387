"""Access rules put to fastfwd, to C rinetd and to a model: clients from all over 127.0.0.0/8, over
real sockets.

The model is that of tests/unit/test_access, rinetd's four steps. C rinetd differs from it in two
ways that are known (docs/compatibility.md). It takes rule number 0 for none: if that one is a
forward's, and the forward has another, the forward's rules are taken to begin with number 1, so that
its first one is skipped and the next forward's first one counts. And it sees an IPv4 client of an IPv6
listener only as `::ffff:`. Any other difference fails.

An ordinary run tries the same files every time; FASTFWD_FUZZ_EXAMPLES=2000 tries that many new ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfwd.model import AccessRule, Outcome
from tests.conftest import StartForwarder, StartServer
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Server, banner
from tests.system.test_access import HELLO, gets_in
from tests.unit.test_access import CLIENTS as ANY_CLIENTS
from tests.unit.test_access import RULES as ANY_RULES
from tests.unit.test_access import SCOPES, bounded, judged, matches, model

EXAMPLES = int(os.environ.get("FASTFWD_FUZZ_EXAMPLES", "0"))

CLIENTS = ("127.0.0.1", "127.0.0.2", "127.0.0.12", "127.1.0.2", "127.10.200.1", "127.255.255.254")

pytestmark = pytest.mark.timeout(120 + EXAMPLES)


@dataclass(frozen=True, slots=True)
class File:
    """Global rules, and for each forward where it listens and its own rules."""

    everywhere: tuple[AccessRule, ...]
    forwards: tuple[tuple[str, tuple[AccessRule, ...]], ...]

    def text(self, ports: list[int], backend: Server) -> str:
        """As a configuration."""
        lines = [spelled(rule) for rule in self.everywhere]
        for (host, own), port in zip(self.forwards, ports, strict=True):
            lines += [f"{host} {port} {backend.host} {backend.port}", *map(spelled, own)]
        return "".join(f"{line}\n" for line in lines)


def spelled(rule: AccessRule) -> str:
    """A rule as it stands in a file."""
    return f"{'allow' if rule.allow else 'deny'} {rule.pattern}"


def ours(file: File) -> set[tuple[int, str]]:
    """Whom the model lets in: numbers of forwards, and clients."""
    return {
        (number, client)
        for number, (host, own) in enumerate(file.forwards)
        for client in CLIENTS
        if model([list(file.everywhere), list(own)], seen(host, client)) is None
    }


def rinetds(file: File) -> set[tuple[int, str]]:
    """Whom C rinetd lets in, by the model with its two faults."""
    rules = [*file.everywhere, *(rule for _, own in file.forwards for rule in own)]
    number_of_first = len(file.everywhere)
    found = set()
    for number, (host, own) in enumerate(file.forwards):
        start = number_of_first or (1 if len(own) > 1 else 0)
        number_of_first += len(own)
        scopes = [list(file.everywhere), rules[start : start + len(own)]]
        for client in CLIENTS:
            if admitted(scopes, seen(host, client)):
                found.add((number, client))
    return found


def admitted(scopes: list[list[AccessRule]], text: str) -> bool:
    """rinetd's four steps over a client's one spelling."""
    return all(
        not any(matches(rule.pattern, text) for rule in rules if not rule.allow)
        and any(matches(rule.pattern, text) for rule in rules if rule.allow)
        >= any(rule.allow for rule in rules)
        for rules in scopes
    )


def seen(host: str, client: str) -> str:
    """A client's address as the listener sees it."""
    return f"::ffff:{client}" if ":" in host else client


def found(running: Forwarder, file: File, ports: list[int]) -> set[tuple[int, str]]:
    """Who gets in."""
    return {
        (number, client)
        for number, port in enumerate(ports)
        for client in CLIENTS
        if gets_in(("127.0.0.1", port), client)
    }


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """A client's address, or a piece of it, with wildcards."""
    text = draw(st.sampled_from(CLIENTS))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(text)))
        text = (
            text[:start]
            + draw(st.sampled_from(["*", "?", "", "**"]))
            + text[start + draw(st.integers(0, 4)) :]
        )
    return draw(st.sampled_from([text, text, text, f"::ffff:{text}", f"*{text}"])) or "*"


rules = st.lists(st.builds(AccessRule, st.booleans(), patterns()), max_size=3).map(tuple)
files = st.builds(
    File,
    st.one_of(st.just(()), rules),
    st.lists(st.tuples(st.sampled_from(["127.0.0.1", "0.0.0.0", "::"]), rules), min_size=2, max_size=3).map(
        tuple
    ),
)


@settings(
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    max_examples=EXAMPLES or 40,
    suppress_health_check=list(HealthCheck),
)
@given(file=files)
def judge(start: StartForwarder, running: Forwarder, greeter: Server, ports: list[int], file: File) -> None:
    """One file, put to all three."""
    count = len(file.forwards)
    running.reload(file.text(ports[:count], greeter))
    assert running.said("reload refused") == 0, running.stderr()
    assert found(running, file, ports[:count]) == ours(file)
    peer_ports = [free_port() for _ in range(count)]
    peer = start(file.text(peer_ports, greeter), kind="rinetd", log=False)
    try:
        assert found(peer, file, peer_ports) == rinetds(file)
    finally:
        peer.close()


def test_who_gets_in_by_any_rules(forwarder: StartForwarder, backend: StartServer) -> None:
    """fastfwd lets in whom the model lets in; C rinetd does the same, but for its two faults."""
    require_peer("rinetd")
    greeter, ports = backend(banner, HELLO), [free_port() for _ in range(3)]
    judge(forwarder, forwarder("", log=False), greeter, ports)


@bounded
@given(SCOPES, ANY_RULES, st.integers(0, 1), ANY_CLIENTS)
def test_no_allow_lets_a_denied_client_in(
    scopes: list[list[AccessRule]], rule: AccessRule, scope: int, client: str
) -> None:
    """Who is denied stays out whatever else is allowed, and wherever."""
    more = [list(each) for each in scopes]
    more[scope].append(AccessRule(True, rule.pattern))
    if judged(scopes, client) is Outcome.DENIED:
        assert judged(more, client) is not None
