"""The choice between copying and splicing: figures in, answers out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.relay.choose import (
    ALONE,
    BUFFER,
    CHUNK,
    DEMOTE_AFTER,
    POLITE,
    PROMOTE_AFTER,
    SHARE,
    demote,
    portion,
    promote,
    short_runs,
)


@settings(derandomize=True)
@given(st.integers(0, 1000))
def test_promotion_has_one_threshold(full_reads: int) -> None:
    """Splicing begins with PROMOTE_AFTER full reads in a row."""
    assert promote(full_reads) == (full_reads >= PROMOTE_AFTER)


@settings(derandomize=True)
@given(st.integers(0, 1000))
def test_demotion_has_one_threshold(runs: int) -> None:
    """Copying begins again with DEMOTE_AFTER short runs in a row."""
    assert demote(runs) == (runs >= DEMOTE_AFTER)


@settings(derandomize=True)
@given(st.integers(0, 100), st.integers(0, BUFFER // 2))
def test_a_run_of_half_a_buffer_is_short(before: int, moved: int) -> None:
    """A run of at most half a buffer counts."""
    assert short_runs(before, moved) == before + 1


@settings(derandomize=True)
@given(st.integers(0, 100), st.integers(BUFFER // 2 + 1, 1 << 30))
def test_a_longer_run_starts_the_count_again(before: int, moved: int) -> None:
    """A run of more than half a buffer forgets the short ones before it."""
    assert short_runs(before, moved) == 0


@pytest.mark.parametrize("state", ["fresh"])
def test_a_direction_does_not_flap(state: str) -> None:
    """One short run does not send a spliced direction back, one full read does not promote it."""
    assert not demote(short_runs(0, 0)), state
    assert not promote(1)


@pytest.mark.parametrize("budget", [1, SHARE, 1 << 20])
def test_long_streams_alone_take_a_pipe_at_once(budget: int) -> None:
    """Past ALONE runs without a copy the budget is the caller's, the piece a pipe's size."""
    assert portion(ALONE + 1, budget) == (CHUNK, budget)


@pytest.mark.parametrize(("budget", "share"), [(1, 1), (SHARE, SHARE), (1 << 20, SHARE)])
def test_long_streams_in_company_take_less(budget: int, share: int) -> None:
    """Before that the piece is smaller, and the turn ends sooner."""
    assert portion(ALONE, budget) == (POLITE, share)
