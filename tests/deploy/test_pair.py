"""Two firewalls and one address, with real keepalived and real fastfwd: what a failover and a switch lose.

docs/pair.md has the figures that `make failover` measures; here is what must hold every time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import processes
from tests.deadline import until
from tests.deploy.pair import ADDRESS, ADDRESS6, QUICK, Call, Pair, alive
from tests.peers import require_peer

SESSIONS = 20

StartPair = Callable[..., Pair]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[StartPair]:
    """Call it with the arguments of `Pair` after the directory."""
    require_peer("keepalived")
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Pair(tmp_path, **options))


@dataclass(frozen=True, slots=True)
class Switch:
    """A planned switch, as docs/pair.md has it: sessions that are alive after each step, half of them over
    IPv6, new connections that failed, how the old program ended."""

    calls: int
    failed: list[Call]
    old: int
    new: int
    draining: int
    ended: int
    left: int


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Switch:
    """Carry one out, with new connections all the time."""
    require_peer("keepalived")
    with Pair(tmp_path_factory.mktemp("switch")) as pair:
        master = pair.master()
        standby = pair.other(master)
        sessions = pair.sessions(SESSIONS) + pair.sessions(SESSIONS, ADDRESS6)
        with pair.calls() as calls:
            pair.switch(master, standby)
            begun = len(calls.calls)
            until(lambda: len(calls.calls) > begun + 50, what="calls after the switch")
        old = alive(sessions)
        later = pair.sessions(SESSIONS) + pair.sessions(SESSIONS, ADDRESS6)
        new = alive(later)
        assert master.forwarder is not None
        master.forwarder.send(signal.SIGUSR1)
        master.forwarder.wait_said("draining")
        draining = alive(sessions)
        for client in sessions:
            client.close()
        ended = master.forwarder.wait()
        for node in (master, standby):
            node.handover("end", ADDRESS)
            node.handover("end", ADDRESS6)
        return Switch(len(calls.done()), calls.failed(), old, new, draining, ended, alive(later))
    raise AssertionError("unreachable")


def test_a_planned_switch_loses_no_new_connection(switch: Switch) -> None:
    """Of fifty a second, before, during and after it."""
    assert switch.calls > 50
    assert switch.failed == []


def test_a_planned_switch_loses_no_session(switch: Switch) -> None:
    """They go on at the host that has them, and new ones begin at the other one."""
    assert (switch.old, switch.new) == (2 * SESSIONS, 2 * SESSIONS)


def test_the_old_host_drains(switch: Switch) -> None:
    """Its fastfwd ends with the last session, which ends when its client wants it."""
    assert (switch.draining, switch.ended) == (2 * SESSIONS, 0)


def test_the_new_host_goes_on(switch: Switch) -> None:
    """When all that was set up for the switch is gone."""
    assert switch.left == 2 * SESSIONS


def test_a_switch_without_the_handover(pair: StartPair) -> None:
    """Sessions are lost, and both sides are told: the clients by the host that does not know them, the
    backend by the one that has no address for them any more."""
    made = pair()
    master = made.master()
    sessions = made.sessions(SESSIONS) + made.sessions(SESSIONS, ADDRESS6)
    master.add_priority(-50)
    made.moved_to(made.other(master))
    until(lambda: not made.backend.open, 5, "the backend to hear of it")
    assert alive(sessions) == 0


def test_a_dead_host(pair: StartPair) -> None:
    """The other one takes over, and new connections are answered; the dead one's sessions are lost, all of
    them."""
    made = pair()
    master = made.master()
    sessions = made.sessions(SESSIONS)
    master.die()
    made.moved_to(made.other(master))
    until(made.call, what="a new connection to be answered")
    assert alive(sessions) == 0


@dataclass(frozen=True, slots=True)
class Fault:
    """fastfwd dies on the host that has the address, comes back, dies on the other one, then on both: which
    of the two had the address, the first or the second (0, 1), and how many sessions lived when the first
    had come back."""

    after_death: int
    after_return: int
    sessions: int
    after_second: int
    without: int


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Fault:
    """Go through it; keepalived lives all the time."""
    require_peer("keepalived")
    with Pair(tmp_path_factory.mktemp("fault")) as pair:
        first = pair.master()
        second = pair.other(first)
        both = [first, second]
        first.kill_fastfwd()
        until(lambda: pair.holders() == [second], 15, "the other one to have the address")
        found = both.index(pair.master())
        assert pair.call()
        sessions = pair.sessions(SESSIONS)
        waited = first.said("Entering BACKUP STATE")
        first.serve()
        until(lambda: first.said("Entering BACKUP STATE") > waited, 15, "the first to be ready")
        back, living = both.index(pair.master()), alive(sessions)
        second.kill_fastfwd()
        until(lambda: pair.holders() == [first], 15, "the first to have it again")
        assert pair.call()
        again = both.index(pair.master())
        first.kill_fastfwd()
        until(lambda: not pair.holders(), 15, "nobody to have it")
        return Fault(found, back, living, again, len(pair.holders()))
    raise AssertionError("unreachable")


def test_fastfwd_dies_alone(fault: Fault) -> None:
    """keepalived sees it, gives the address up, and the other one answers."""
    assert fault.after_death == 1


def test_who_comes_back_does_not_take_the_address(fault: Fault) -> None:
    """The hosts have the same priority: a second move would end the sessions of the second one."""
    assert (fault.after_return, fault.sessions) == (1, SESSIONS)


def test_who_has_come_back_takes_over(fault: Fault) -> None:
    """When the other one's fastfwd dies."""
    assert fault.after_second == 0


def test_nobody_has_the_address_where_nobody_serves(fault: Fault) -> None:
    """A client gets no answer, rather than a refusal."""
    assert fault.without == 0


def test_a_preferred_host_takes_it_back(pair: StartPair) -> None:
    """With a higher priority it does."""
    made = pair(preferred="fw1")
    first, second = made.nodes["fw1"], made.nodes["fw2"]
    made.moved_to(first)
    first.kill_fastfwd()
    made.moved_to(second)
    first.serve()
    made.moved_to(first)
    until(made.call, what="a new connection to be answered")


def test_a_farewell(pair: StartPair) -> None:
    """A keepalived that is stopped says so: the other one does not wait for its silence."""
    made = pair(changes={**QUICK, "advert_int 1": "advert_int 1"})
    master = made.master()
    pids = [each.pid for node in made.nodes.values() for each in node.watchers()]
    master.stop_keepalived()
    # Without a word it would be 3.6 s, and with one it is 0.6 s.
    made.moved_to(made.other(master), 2)
    made.close()
    assert len(pids) == 4
    assert not any(map(processes.alive, pids))
