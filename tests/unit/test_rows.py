"""Whose a row of the scoreboard is, over any number of reloads."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.model import Backend, Certificate, Endpoint, Forward, Origin, Protocol, TlsAccept, TlsConnect
from fastfwd.observe.rows import FullError, Key, Row, assign, key, rows


def forward(
    label: str, *, target: str = "192.0.2.1", protocol: Protocol = Protocol.TCP, line: int = 1
) -> Forward:
    """A forward that operators call `label`."""
    listen, to = Endpoint("127.0.0.1", 2001, protocol), Endpoint(target, 80, protocol)
    return Forward(listen, (Backend(to),), Origin("file", line), name=label)


def forwards(labels: str) -> list[Forward]:
    """One forward per letter."""
    return [forward(label) for label in labels]


def never(number: int) -> bool:
    """Connections of every forward live."""
    return False


def always(number: int) -> bool:
    """No connection lives."""
    return True


def numbers(assigned: dict[Key, int]) -> dict[str, int]:
    """Label -> row."""
    return {label: number for (label, _, _), number in assigned.items()}


def after(*labels: str, capacity: int = 100, idle: Callable[[int], bool] = never) -> dict[Key, int]:
    """The rows after one reload per word, whose letters are the forwards."""
    known: dict[Key, int] = {}
    for each in labels:
        known = assign(known, forwards(each), capacity, idle)
    return known


# What a forward is known by.


def test_a_named_forward_is_known_by_its_name() -> None:
    """Its `name=` and its protocol, whatever else it says."""
    assert key(forward("db")) == ("db", Protocol.TCP, None)


def test_a_forward_without_a_name_is_known_by_where_it_listens() -> None:
    """As the log calls it."""
    listen = Endpoint("::1", 2001, Protocol.TCP)
    assert key(Forward(listen, (Backend(listen),), Origin("file", 1))) == (
        "[::1]:2001/tcp",
        Protocol.TCP,
        None,
    )


def test_tcp_and_udp_of_one_name_are_two() -> None:
    """The protocol belongs to the key."""
    assigned = assign({}, [forward("a"), forward("a", protocol=Protocol.UDP)], 100, never)
    assert assigned == {("a", Protocol.TCP, None): 0, ("a", Protocol.UDP, None): 1}


# Who gets which row.


def test_the_first_rows_are_in_the_order_of_the_file() -> None:
    """The first configuration fills the board from its beginning."""
    assert numbers(after("abc")) == {"a": 0, "b": 1, "c": 2}


def test_forwards_keep_their_rows() -> None:
    """Neither another order nor new ones beside them move a row."""
    assert numbers(after("abc", "xcba")) == {"a": 0, "b": 1, "c": 2, "x": 3}


def test_a_forward_with_another_target_keeps_its_row() -> None:
    """Operators know it by its label."""
    known = after("ab")
    changed = [forward("a", target="192.0.2.2"), forward("b", line=9)]
    assert assign(known, changed, 100, never) == known


def test_a_removed_forward_keeps_its_row() -> None:
    """What it has counted must not fall."""
    assert numbers(after("abc", "ac")) == {"a": 0, "b": 1, "c": 2}


def test_a_forward_brought_back_has_its_old_row() -> None:
    """It goes on counting where it stopped."""
    assert numbers(after("abc", "x", "xb"))["b"] == 1


def test_a_new_forward_does_not_take_a_removed_ones_row_while_there_are_others() -> None:
    """Rows are recycled only when the board is full."""
    assert numbers(after("ab", "b", "bc", capacity=3, idle=always)) == {"a": 0, "b": 1, "c": 2}


def test_forwards_of_one_key_share_a_row() -> None:
    """Listeners on port 0 of one address look the same to operators."""
    anywhere = Endpoint("127.0.0.1", 0, Protocol.TCP)
    twins = [
        Forward(anywhere, (Backend(Endpoint(f"192.0.2.{each}", 80, Protocol.TCP)),), Origin("file", each))
        for each in (1, 2)
    ]
    assert list(assign({}, [*twins, forward("a")], 100, never).values()) == [0, 1]


def test_each_of_several_backends_has_a_row() -> None:
    """After the forward's own; one that a reload takes away keeps its row, and is shown with the forward."""
    listen = Endpoint("127.0.0.1", 2001, Protocol.TCP)
    one, two, three = (Backend(Endpoint(f"192.0.2.{each}", 80, Protocol.TCP)) for each in (1, 2, 3))
    before = assign({}, [Forward(listen, (one, two), Origin("file", 1), name="a"), forward("b")], 100, never)
    assert list(before.values()) == [0, 1, 2, 3]
    changed = Forward(listen, (two, three), Origin("file", 1), name="a")
    after = assign(before, [changed, forward("b")], 100, never)
    assert {each[2]: number for each, number in after.items() if each[0] == "a"} == {
        None: 0,
        one.label: 1,
        two.label: 2,
        three.label: 4,
    }
    shown = rows(after, [changed, forward("b")], lambda forward: False)
    assert [(each.label, sorted(each.numbers)) for each in shown] == [("a", [0, 1, 2, 4]), ("b", [3])]


def test_nothing_becomes_nothing() -> None:
    """A configuration without forwards needs no row."""
    assert assign({}, [], 0, never) == {}


# When the board is full.


def test_a_full_board_recycles_the_row_of_a_forward_that_is_gone() -> None:
    """Otherwise a reload would need a restart."""
    assert numbers(after("ab", "b", "bc", capacity=2, idle=always)) == {"b": 1, "c": 0}


def test_the_longest_gone_is_the_first_to_lose_its_row() -> None:
    """Of several that are gone, the one that went first, not the one that came first."""
    recycled = after("abcd", "acd", "cd", "cdx", capacity=4, idle=always)
    assert numbers(recycled) == {"a": 0, "c": 2, "d": 3, "x": 1}


def test_coming_back_counts_as_not_having_gone() -> None:
    """One that went, came back and went again has gone last."""
    recycled = after("abc", "bc", "abc", "ac", "c", "cx", capacity=3, idle=always)
    assert numbers(recycled) == {"a": 0, "c": 2, "x": 1}


def test_rows_of_living_connections_are_not_recycled() -> None:
    """The next to have gone loses its row instead."""
    recycled = after("abc", "bc", "c", "cx", capacity=3, idle=lambda number: number != 0)
    assert numbers(recycled) == {"a": 0, "c": 2, "x": 1}


def test_a_full_board_says_so() -> None:
    """More forwards than rows are refused."""
    with pytest.raises(FullError):
        after("abc", capacity=2, idle=always)


def test_a_board_full_of_living_connections_says_so() -> None:
    """Forwards that are gone do not help while they are in use."""
    with pytest.raises(FullError):
        after("ab", "bc", capacity=2, idle=never)


def test_a_full_board_still_takes_what_it_knows() -> None:
    """A reload that brings nothing new needs no room."""
    assert numbers(after("abc", "cba", "ac", capacity=3, idle=never)) == {"a": 0, "b": 1, "c": 2}


def test_what_was_known_is_left_as_it_is() -> None:
    """A reload that is refused afterwards has changed nothing."""
    known = after("abc", "c")
    before = dict(known)
    assign(known, forwards("cxyz"), 5, always)
    assert list(known.items()) == list(before.items())


RELOADS = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=6, unique=True), st.sets(st.integers(0, 5))),
    max_size=12,
)
"""The labels of one configuration after another, and which rows are in use meanwhile."""


@settings(derandomize=True, deadline=None, max_examples=300)
@given(reloads=RELOADS, capacity=st.integers(0, 6))
def test_rows_over_any_reloads(reloads: list[tuple[list[str], set[int]]], capacity: int) -> None:
    """No two forwards share a row, every row is on the board, those wanted keep theirs, only what is gone
    and idle loses its own, and only on a full board; it is too full only if nothing else helps."""
    known: dict[Key, int] = {}
    for labels, busy in reloads:
        wanted = set(labels)
        before = numbers(known)
        idle = {each for each, number in before.items() if each not in wanted and number not in busy}
        try:
            known = assign(known, forwards("".join(labels)), capacity, lambda number: number not in busy)  # noqa: B023
        except FullError:
            assert len(before.keys() | wanted) - len(idle) > capacity
            continue
        found = numbers(known)
        assert wanted <= found.keys()
        assert len(set(found.values())) == len(found)
        assert all(0 <= number < capacity for number in found.values())
        assert all(found[each] == number for each, number in before.items() if each in found)
        lost = before.keys() - found.keys()
        assert lost <= idle
        assert not lost or len(found) == capacity


# What the exporter is shown.


def test_rows_are_in_the_order_of_the_file() -> None:
    """Those that serve first, whatever their numbers are."""
    shown = rows(after("abc", "cab"), forwards("cab"), lambda each: False)
    assert [(row.label, row.number) for row in shown] == [("c", 2), ("a", 0), ("b", 1)]


def test_rows_of_removed_forwards_come_last() -> None:
    """They have no forward any more."""
    shown = rows(after("abc", "c"), forwards("c"), lambda each: False)
    assert [row.label for row in shown] == ["c", "a", "b"]
    assert [row.forward is None for row in shown] == [False, True, True]


def test_a_row_shows_its_forward() -> None:
    """Number, label, protocol, and the forward itself."""
    only = forward("db", target="name")
    assert rows({key(only): 7}, [only], lambda each: True) == [Row(7, "db", Protocol.TCP, only, True)]


def test_a_row_says_whether_its_target_is_a_name() -> None:
    """`named` is asked about every forward that serves."""
    mixed = [forward("a", target="name"), forward("b")]
    shown = rows(assign({}, mixed, 9, never), mixed, lambda each: each.target.host == "name")
    assert [row.named for row in shown] == [True, False]


def test_a_removed_forward_has_no_name_to_look_up() -> None:
    """Nobody looks it up any more."""
    [row] = rows({("a", Protocol.TCP, None): 0}, [], lambda each: True)
    assert not row.named


def test_a_shared_row_is_shown_once() -> None:
    """With the first of those who share it."""
    twins = [forward("a", line=1), forward("a", line=2)]
    [row] = rows(assign({}, twins, 9, never), twins, lambda each: False)
    assert row.forward is twins[0]


def test_a_row_has_no_key() -> None:
    """The exporter, which anybody may ask, is told when a certificate ends, and gets no secret."""
    shown = Certificate("web.pem", "web.key", b"a chain", b"a secret", ("example.org",), 1790000000)
    plain = forward("a")
    serving = replace(plain, tls_accept=TlsAccept((shown,)), tls_connect=TlsConnect(certificate=shown))
    found = rows(assign({}, [serving], 9, never), [serving], lambda each: False)
    assert b"a secret" not in pickle.dumps(found)
    assert found[0].forward is not None
    assert found[0].forward.tls_accept is not None
    assert found[0].forward.tls_accept.certificates == (replace(shown, chain=b"", key=b""),)
