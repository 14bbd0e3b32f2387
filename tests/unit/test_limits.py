"""Who is inside: keys of clients, parts of the census, and admission by several workers at once."""

from __future__ import annotations

import fcntl
import os
import signal
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.model import Limits, Outcome
from fastfwd.observe.scoreboard import ForwardCell, Scoreboard
from fastfwd.worker.limits import ENTRIES, PART, WAYS, Admission, Census, Part, key
from tests.deadline import until
from tests.unit.test_scoreboard import in_a_child


def part() -> Part:
    """An empty one."""
    return Part(memoryview(bytearray(PART)))


def nobody() -> int:
    """The connections of a forward that has none."""
    return 0


# Whom an address counts as.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::ffff:2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:8000::"),
        ("fe80::1%lo", "fe80::2%eth0"),
    ],
)
def test_the_same_client(one: str, other: str) -> None:
    """A mapped address is the IPv4 one; an IPv6 client is its /64, whatever the zone."""
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8:0:1::1", "2001:db8:0:2::1"), ("192.0.2.1", "::c000:201")],
)
def test_different_clients(one: str, other: str) -> None:
    """Another IPv4 address, another /64."""
    assert key(one) != key(other)


# A part.

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=200)


@settings(derandomize=True, deadline=None)
@given(STEPS)
def test_a_part_counts_like_a_counter(steps: list[tuple[bool, int]]) -> None:
    """Whatever the order of adding and removing, every client's count is right."""
    mine, model = part(), Counter[int]()
    for add, number in steps:
        client = key(f"192.0.2.{number}")
        if add:
            mine.add(client)
            model[number] += 1
        elif model[number]:
            mine.remove(client)
            model[number] -= 1
    assert {number: mine.count(key(f"192.0.2.{number}")) for number in model} == dict(model)


def test_a_part_holds_many_clients() -> None:
    """As many as a worker has descriptors for, and every one is counted once."""
    mine = part()
    clients = [key(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") for number in range(10_000)]
    for client in clients:
        mine.add(client)
    assert {mine.count(client) for client in clients} == {1}


def test_the_place_of_one_that_left_is_used_again() -> None:
    """Ten times as many clients as there are places, one after the other."""
    mine = part()
    for number in range(10 * ENTRIES // WAYS):
        client = key(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        mine.add(client)
        assert mine.count(client) == 1
        mine.remove(client)


def test_the_client_whose_key_is_zero_is_one_like_others() -> None:
    """`::/64` has the key that an empty place has."""
    mine = part()
    mine.add(key("::1"))
    mine.add(key("::2"))
    assert mine.count(key("::3")) == 2


def test_clearing_forgets_everybody() -> None:
    """Counts and sum are 0 again."""
    mine = part()
    mine.inside[0] = 1
    mine.add(key("192.0.2.1"))
    mine.clear()
    assert (mine.inside[0], mine.count(key("192.0.2.1"))) == (0, 0)


# Admission.


class Workers:
    """So many workers' ways in, in one process, and a forward's row for each of them."""

    def __init__(self, count: int, limits: Limits) -> None:
        self.census = Census(count)
        self.board = Scoreboard(count, 1)
        self.ways = [Admission(self.census, slot, limits, ()) for slot in range(count)]

    def admit(self, slot: int, client: str = "192.0.2.1", limit: int | None = None) -> Outcome | None:
        """One more connection at the worker of `slot`."""
        row = self.board.forward(0, slot)
        return self.ways[slot].admit(client, row, limit, lambda: self.board.active(0))


def test_all_workers_together_let_in_as_many_as_the_limit_says() -> None:
    """The limit is of their sum."""
    here = Workers(3, Limits(connections=7))
    found = [here.admit(number % 3, f"192.0.2.{number}") for number in range(10)]
    assert found == [None] * 7 + [Outcome.OVER_LIMIT] * 3


def test_who_leaves_makes_room() -> None:
    """At whichever worker."""
    here = Workers(2, Limits(connections=1))
    assert here.admit(0) is None
    assert here.admit(1) is Outcome.OVER_LIMIT
    here.ways[0].leave("192.0.2.1")
    assert here.admit(1) is None


def test_a_client_has_a_limit_of_its_own() -> None:
    """Over all workers, and another client has another."""
    here = Workers(2, Limits(connections_per_client=2))
    assert [here.admit(slot) for slot in (0, 1, 0, 1)] == [None, None, *[Outcome.OVER_CLIENT_LIMIT] * 2]
    assert here.admit(0, "192.0.2.2") is None


def test_a_forward_has_a_limit_of_its_own() -> None:
    """It counts what its rows say."""
    here = Workers(2, Limits())
    assert [here.admit(slot, limit=3) for slot in (0, 1, 0, 1)] == [None] * 3 + [Outcome.OVER_LIMIT]
    here.board.forward(0, 0)[ForwardCell.CLOSED_LOCAL] += 1
    assert here.admit(1, limit=3) is None


def test_who_is_refused_is_not_counted() -> None:
    """Neither as inside nor as accepted."""
    here = Workers(1, Limits(connections=1))
    for _ in range(5):
        here.admit(0)
    assert here.census.parts[0].inside[0] == here.board.active(0) == 1


def test_connections_from_before_the_limit_count() -> None:
    """A reload that brings a limit finds those that are there."""
    census, row = Census(1), Scoreboard(1, 1).forward(0, 0)
    way = Admission(census, 0, Limits(connections_per_client=2), ["192.0.2.1", "192.0.2.1"])
    assert way.admit("192.0.2.1", row, None, nobody) is Outcome.OVER_CLIENT_LIMIT


def test_at_the_same_time_they_let_in_exactly_as_many() -> None:
    """Four processes that try at once, again and again, fill the place to the last connection and
    never overfill it."""
    tries, limit = 2000, 3001
    census, board = Census(4), Scoreboard(4, 1)
    begin, go = os.pipe()
    children = []
    for slot in range(4):
        child = os.fork()
        if child == 0:
            try:
                os.close(go)
                way = Admission(census, slot, Limits(connections=limit), ())
                os.read(begin, 1)
                for _ in range(tries):
                    way.admit("192.0.2.1", board.forward(0, slot), None, nobody)
            finally:
                os._exit(0)
        children.append(child)
    os.close(begin)
    os.close(go)
    for child in children:
        os.waitpid(child, 0)
    assert sum(each.inside[0] for each in census.parts) == limit


def test_a_worker_that_stands_still_with_the_lock_stops_nobody() -> None:
    """The others go on without it."""
    here = Workers(2, Limits(connections=10))
    with locked_elsewhere(here.census, signal.SIGSTOP):
        assert here.admit(1) is None


def test_a_worker_that_dies_with_the_lock_lets_go_of_it() -> None:
    """The kernel takes it back."""
    here = Workers(2, Limits(connections=10))
    with locked_elsewhere(here.census, signal.SIGKILL) as child:
        os.waitpid(child, 0)
        assert here.census.lock()
        here.census.unlock()


class locked_elsewhere:  # noqa: N801  # reads as a statement
    """Another process has the lock, and has got the signal."""

    def __init__(self, census: Census, number: signal.Signals) -> None:
        self.census, self.number = census, number

    def __enter__(self) -> int:
        told, tell = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            self.census.lock()
            os.write(tell, b"x")
            while True:
                signal.pause()
        assert os.read(told, 1) == b"x"
        os.close(told)
        os.close(tell)
        os.kill(self.child, self.number)
        return self.child

    def __exit__(self, *_: object) -> None:
        if self.number is signal.SIGSTOP:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)


def test_the_lock_is_the_processes_own() -> None:
    """While one has it another does not get it."""
    census = Census(2)
    with locked_elsewhere(census, signal.SIGSTOP):
        until(lambda: not census.lock(), what="the lock is taken")
        with pytest.raises(BlockingIOError):
            fcntl.lockf(census._lock._file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_alone_it_needs_no_lock() -> None:
    """With one slot nobody else is there to be kept out."""
    assert not Census(1).lock()


def test_abandoned_it_cannot_be_written() -> None:
    """A store kills the process."""
    census = Census(1)

    def store() -> int:
        census.abandon()
        census.parts[0].inside[0] = 1
        return 0

    assert in_a_child(store) == -signal.SIGSEGV
