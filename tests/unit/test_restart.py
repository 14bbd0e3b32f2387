"""When a dead child is replaced: at once, then with growing pauses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.supervisor.restart import FIRST_DELAY, LONGEST_DELAY, STEADY, after_death

SHORT = st.floats(0, STEADY, exclude_max=True)
LONG = st.floats(STEADY, 1e9)
FAILURES = st.integers(0, 10_000)


@settings(derandomize=True)
@given(st.one_of(SHORT, LONG))
def test_the_first_death_costs_no_pause(lived: float) -> None:
    """Clients wait in the queue: the first successor comes at once."""
    assert after_death(0, lived) == (1, 0.0)


@settings(derandomize=True)
@given(FAILURES, LONG)
def test_a_child_that_worked_clears_the_record(failures: int, lived: float) -> None:
    """A child that lived for STEADY seconds counts as the first to die."""
    assert after_death(failures, lived) == (1, 0.0)


@settings(derandomize=True)
@given(FAILURES, SHORT)
def test_deaths_in_a_row_are_counted(failures: int, lived: float) -> None:
    """Each early death adds one."""
    assert after_death(failures, lived)[0] == failures + 1


@settings(derandomize=True)
@given(FAILURES, SHORT)
def test_pauses_grow_and_are_bounded(failures: int, lived: float) -> None:
    """A pause is never shorter than the one before it, and never longer than LONGEST_DELAY."""
    before, after = after_death(failures, lived)[1], after_death(failures + 1, lived)[1]
    assert before <= after <= LONGEST_DELAY


def test_pauses_double() -> None:
    """The pauses of a child that dies at once every time."""
    failures, pauses = 0, []
    for _ in range(10):
        failures, pause = after_death(failures, 0.0)
        pauses.append(pause)
    assert pauses == [0.0, *(FIRST_DELAY * 2**power for power in range(7)), LONGEST_DELAY, LONGEST_DELAY]


def test_a_fault_at_start_is_no_fork_bomb() -> None:
    """A child that dies at once every time is forked fewer than 20 times in its first minute."""
    failures, now, forks = 0, 0.0, 0
    while now < 60:
        forks += 1
        failures, pause = after_death(failures, 0.0)
        now += pause
    assert forks < 20


LIVES = st.lists(st.one_of(st.sampled_from([0.0, 0.01, 1.0, 4.99, STEADY, 6.0]), SHORT, LONG), max_size=60)
"""How long one child after the other lives, in seconds."""


@settings(derandomize=True)
@given(LIVES)
def test_any_history(lives: list[float]) -> None:
    """As long as children die early, no pause is shorter than the one before; one that has worked is
    forgiven everything; and no pause is longer than LONGEST_DELAY."""
    failures, before = 0, 0.0
    for lived in lives:
        failures, pause = after_death(failures, lived)
        assert 0.0 <= pause <= LONGEST_DELAY
        if lived >= STEADY:
            assert (failures, pause) == (1, 0.0)
        else:
            assert pause >= before
        before = pause


@settings(derandomize=True)
@given(st.lists(st.sampled_from([0.0, 0.01, 1.0, 4.99, STEADY, 6.0]), min_size=200, max_size=200))
def test_no_history_is_a_fork_bomb(lives: list[float]) -> None:
    """However children time their deaths, a slot has at most 70 of them in a minute."""
    failures, now, forks = 0, 0.0, 0
    for lived in lives:
        now += lived
        if now >= 60:
            break
        failures, pause = after_death(failures, lived)
        now += pause
        forks += 1
    assert forks <= 70
