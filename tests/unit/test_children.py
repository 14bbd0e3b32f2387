"""The supervisor's children: whom it may kill."""

from __future__ import annotations

import os
import signal

import pytest

from fastfwd.channel import Channel, pair
from fastfwd.observe.scoreboard import Scoreboard
from fastfwd.supervisor.children import Child, Children
from fastfwd.worker.limits import Census
from fastfwd.worker.privileges import Account


@pytest.fixture
def children() -> Children:
    """Of a program with one slot; none is there yet."""
    return Children(Account(None, None), lambda: None, lambda pid, words: None, Scoreboard(1, 0), Census(1))


def sleeper() -> int:
    """A process that waits for its end."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def born(children: Children, pid: int) -> tuple[Child, Channel]:
    """A child in slot 0, and its own end of the channel."""
    ours, theirs = pair()
    child = children.living[0] = Child(pid, 0, ours, 0.0)
    return child, theirs


def test_a_child_that_speaks_nonsense_is_killed(children: Children) -> None:
    """It gets SIGKILL."""
    pid = sleeper()
    child, theirs = born(children, pid)
    theirs.sock.send(b"\xff" * 100)
    assert children.hear(child) == []
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    child.close()
    theirs.close()


@pytest.mark.parametrize("words", [b"\xff" * 100, b""], ids=["nonsense", "nothing"])
def test_the_last_words_of_a_dead_child_kill_nobody(children: Children, words: bytes) -> None:
    """Its number may belong to another process by then: here it does."""
    pid = sleeper()
    child, theirs = born(children, pid)
    del children.living[0]  # collected
    theirs.sock.send(words)
    theirs.close()
    assert children.hear(child) == []
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM  # SIGKILL goes first
    child.close()
