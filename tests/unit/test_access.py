"""Access rules against a model of rinetd's four steps: global allow, global deny, own allow, own deny."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.model import AccessRule, Outcome
from fastfwd.worker.access import Scope, compile_rules, explain
from tests import deadline

Rules = list[AccessRule]

# The model.


def matches(pattern: str, text: str) -> bool:
    """A glob as rinetd's match.c reads it: `*` any run, `?` exactly one character, all of the text."""
    if "/" in pattern:
        return within(pattern, text)
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and matches(pattern[1:], text[1:])


def within(network: str, text: str) -> bool:
    """Whether an address is in a network, by the standard library."""
    try:
        return ip_address(text) in ip_network(network)
    except ValueError:
        return False


def spellings(client: str) -> list[str]:
    """The forms a client goes by: an IPv4-mapped one by its IPv4 address too."""
    return [client, client.removeprefix("::ffff:")] if client.startswith("::ffff:") else [client]


def model(scopes: Sequence[Rules], client: str) -> Outcome | None:
    """What rinetd(8) says of `client`, step by step."""
    for rules in scopes:
        allows = [rule for rule in rules if rule.allow]
        denies = [rule for rule in rules if not rule.allow]
        if allows and not any(matches(rule.pattern, form) for rule in allows for form in spellings(client)):
            return Outcome.NOT_ALLOWED
        if any(matches(rule.pattern, form) for rule in denies for form in spellings(client)):
            return Outcome.DENIED
    return None


def judged(scopes: Sequence[Rules], client: str) -> Outcome | None:
    """What the program says of `client`."""
    judge = compile_rules(scopes)
    return judge(client) if judge is not None else None


# A small world, so that patterns hit.

CLIENTS = st.sampled_from(
    [
        *("127.0.0.1", "127.0.0.2", "127.0.0.12", "10.1.0.1", "10.10.0.1", "192.168.1.7", "1.1.1.1"),
        *("::1", "fe80::1", "fe80::1:2", "2001:db8::a", "2001:db8:0:1::a"),
        *("::ffff:127.0.0.1", "::ffff:10.1.0.1", "::ffff:192.168.1.7"),
    ]
)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """An address, some of its characters turned into wildcards or taken out; sometimes anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text("0123456789abcdef.:*?", min_size=1, max_size=6))
    text = draw(CLIENTS)
    if draw(st.integers(0, 3)) == 0:
        bits = 128 if ":" in text else 32
        return str(ip_network((text, draw(st.integers(0, bits))), strict=False))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 4))
        text = text[:start] + draw(st.sampled_from(["*", "?", "", "**"])) + text[start + length :]
    return text or "*"


RULES = st.builds(AccessRule, st.booleans(), patterns())
SCOPES = st.lists(st.lists(RULES, max_size=4), min_size=2, max_size=2)

bounded = settings(derandomize=True, deadline=None, max_examples=300)


@bounded
@given(SCOPES, CLIENTS)
def test_verdicts_are_those_of_rinetds_four_steps(scopes: list[Rules], client: str) -> None:
    """Whoever comes, the outcome and its word are the model's."""
    assert judged(scopes, client) == model(scopes, client)


@bounded
@given(SCOPES, RULES, st.integers(0, 1), CLIENTS)
def test_another_deny_never_lets_anybody_in(
    scopes: list[Rules], rule: AccessRule, scope: int, client: str
) -> None:
    """Who was kept out stays out when a deny is added anywhere (rinetd 0.73 ignores its first rule)."""
    more = [list(rules) for rules in scopes]
    more[scope].insert(0, AccessRule(False, rule.pattern))
    if judged(scopes, client) is not None:
        assert judged(more, client) is not None


@bounded
@given(SCOPES, RULES, st.integers(0, 1), CLIENTS)
def test_another_allow_never_locks_anybody_out(
    scopes: list[Rules], rule: AccessRule, scope: int, client: str
) -> None:
    """In a scope that has an allow, a further one only lets more in."""
    scopes[scope].append(AccessRule(True, "*"))
    more = [list(rules) for rules in scopes]
    more[scope].append(AccessRule(True, rule.pattern))
    if judged(scopes, client) is None:
        assert judged(more, client) is None


@bounded
@given(SCOPES.flatmap(lambda scopes: st.tuples(st.just(scopes), *map(st.permutations, scopes))), CLIENTS)
def test_order_inside_a_scope_does_not_matter(
    shuffled: tuple[list[Rules], Rules, Rules], client: str
) -> None:
    """Any permutation of a scope's rules judges alike."""
    scopes, *others = shuffled
    assert judged(scopes, client) == judged(others, client)


@bounded
@given(SCOPES, CLIENTS)
def test_allowing_everybody_is_no_rule(scopes: list[Rules], client: str) -> None:
    """A scope of a single `allow *` judges like an empty one."""
    assert judged([[AccessRule(True, "*")], scopes[1]], client) == judged([[], scopes[1]], client)


@bounded
@given(SCOPES, st.sampled_from(["127.0.0.1", "10.1.0.1", "192.168.1.7"]))
def test_a_denied_ipv4_client_cannot_come_in_mapped(scopes: list[Rules], client: str) -> None:
    """What keeps an IPv4 client out by a deny keeps it out through a dual-stack listener."""
    if judged(scopes, client) is Outcome.DENIED:
        assert judged(scopes, "::ffff:" + client) is Outcome.DENIED


@bounded
@given(SCOPES, CLIENTS)
def test_the_explanation_is_the_verdict(scopes: list[Rules], client: str) -> None:
    """Both say the same, and the rules that are given as the reason are one."""
    outcome, rules = explain(scopes, client)
    assert outcome == judged(scopes, client)
    if outcome is Outcome.DENIED:
        assert [judged([[rule]], client) for rule in rules] == [Outcome.DENIED]
    else:
        assert all(rule.allow and judged([[rule]], client) == outcome for rule in rules)


def test_a_zone_is_no_way_out() -> None:
    """A link-local client is denied by its address and by a network, whatever its interface."""
    for pattern in ("fe80::1", "fe80::/10", "fe80::?"):
        assert judged([[AccessRule(False, pattern)]], "fe80::1%eth0") is Outcome.DENIED


def test_without_rules_there_is_no_judge() -> None:
    """Scopes without a rule cost nothing: there is nothing to ask."""
    assert compile_rules([(), ()]) is None


@pytest.mark.parametrize(
    ("pattern", "client", "match"),
    [
        ("127.*", "127.0.0.1", True),
        ("*.1", "127.0.0.1", True),
        ("127*0.1", "127.0.0.1", True),
        ("**", "127.0.0.1", True),
        ("127.0.0.", "127.0.0.1", False),
        ("27.0.0.1", "127.0.0.1", False),
        ("127.0.0.?", "127.0.0.1", True),
        ("127.0.0.?", "127.0.0.12", False),
        ("127.0.0.??", "127.0.0.12", True),
        ("127.0.0.1?", "127.0.0.1", False),
        ("127.0.0.1*", "127.0.0.1", True),
        ("127?0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127a0.0.1", False),
        ("*", "::1", True),
        ("fe80::*", "fe80::1%lo", True),
        ("2001:db8:*", "2001:db8::a", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("::ffff:127.*", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "::ffff:7f00:1", False),
    ],
)
def test_patterns(pattern: str, client: str, match: bool) -> None:
    """`*` is any run, `?` exactly one character, a dot only a dot, and the whole address must match."""
    assert judged([[AccessRule(False, pattern)]], client) == (Outcome.DENIED if match else None)


def test_a_mapped_client_is_allowed_by_its_ipv4_form() -> None:
    """An allow pattern for the IPv4 address lets the client in through a dual-stack listener too."""
    assert judged([[AccessRule(True, "127.0.0.1")]], "::ffff:127.0.0.1") is None


def test_the_word_says_which_kind_of_rule() -> None:
    """Missing every allow is not-allowed; hitting a deny is denied, if an allow was hit before."""
    scope = [AccessRule(True, "10.*"), AccessRule(False, "10.1.*")]
    assert judged([scope], "192.168.1.7") is Outcome.NOT_ALLOWED
    assert judged([scope], "10.1.0.1") is Outcome.DENIED
    assert judged([scope], "10.10.0.1") is None


def test_the_global_scope_speaks_first() -> None:
    """A client that both scopes refuse gets the global one's word."""
    everywhere = [AccessRule(False, "10.*")]
    own = [AccessRule(True, "127.*")]
    assert judged([everywhere, own], "10.1.0.1") is Outcome.DENIED
    assert judged([own, everywhere], "10.1.0.1") is Outcome.NOT_ALLOWED


@pytest.mark.timeout(deadline.seconds(5))
@pytest.mark.parametrize("pattern", ["*1" * 20 + "2", "?*" * 20 + "2", "*" * 1000 + "2", "*:" * 7 + "2"])
def test_a_pattern_with_many_stars_does_not_stall(pattern: str) -> None:
    """No client can choose an address for which a pattern takes the worker's time."""
    assert judged([[AccessRule(False, pattern)]], ":".join(["1111"] * 8)) is None


def test_a_shared_scope_is_compiled_once() -> None:
    """Forwards with the same rules have the same patterns; what each has of its own is its own."""
    shared = (AccessRule(False, "192.0.2.0/24"),)
    compiled: dict[int, Scope] = {}
    one = compile_rules((shared, ()), compiled)
    before = dict(compiled)
    own = (AccessRule(False, "198.51.100.7"),)
    other = compile_rules((shared, own), compiled)
    assert one is not None
    assert other is not None
    assert [judge("198.51.100.7") for judge in (one, other)] == [None, Outcome.DENIED]
    assert compiled[id(shared)] is before[id(shared)]
