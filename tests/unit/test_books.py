"""What the supervisor writes on the scoreboard."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fastfwd.channel import pair
from fastfwd.config.parse import parse
from fastfwd.model import Address, Config, ConfigError, Protocol
from fastfwd.observe.rows import Key, key
from fastfwd.observe.scoreboard import Cell, ForwardCell, Scoreboard, State, SupervisorCell, WatchCell
from fastfwd.supervisor.books import Books
from fastfwd.supervisor.children import Child, Death
from fastfwd.supervisor.inherited import Inherited
from fastfwd.supervisor.listeners import Listeners, places
from tests.deadline import until
from tests.ports import free_port
from tests.sockets import connect

SLOTS = 2
ROOM = 3


@pytest.fixture
def board() -> Scoreboard:
    """Two slots, room for three forwards."""
    return Scoreboard(SLOTS, ROOM)


@pytest.fixture
def books(board: Scoreboard) -> Books:
    """Of that board."""
    return Books(board)


@pytest.fixture
def child() -> Iterator[Child]:
    """The worker of slot 1, as the supervisor knows it."""
    ours, theirs = pair()
    yield Child(4711, 1, ours, time.monotonic())
    ours.close()
    theirs.close()


def config(*names: str) -> Config:
    """A configuration with these forwards."""
    lines = [f"127.0.0.1 {2000 + place} 127.0.0.1 80 [name={name}]" for place, name in enumerate(names)]
    found, problems = parse("\n".join(lines).encode(), "rinetd.conf")
    assert problems == []
    return found


def named(*rows: str) -> dict[Key, int]:
    """Rows 0, 1, … for these names."""
    return {(name, Protocol.TCP, None): number for number, name in enumerate(rows)}


def between(before: int, figure: int) -> bool:
    """Whether `figure` is a time since `before`, nanoseconds of the epoch both."""
    return before <= figure <= time.time_ns()


# The supervisor itself.


def test_a_start_is_noted(board: Scoreboard, books: Books) -> None:
    """When, and that a configuration was applied; it was no reload."""
    before = time.time_ns()
    books.started()
    own = board.supervisor
    assert between(before, own[SupervisorCell.STARTED])
    assert own[SupervisorCell.RELOADED] == own[SupervisorCell.STARTED]
    assert (own[SupervisorCell.RELOAD_OK], own[SupervisorCell.RELOADS]) == (1, 0)


def test_a_reload_is_noted(board: Scoreboard, books: Books) -> None:
    """That it was tried, applied, and when."""
    before = time.time_ns()
    books.reload_begun()
    books.reload_ended(applied=True)
    own = board.supervisor
    assert (own[SupervisorCell.RELOADS], own[SupervisorCell.RELOAD_FAILURES]) == (1, 0)
    assert own[SupervisorCell.RELOAD_OK] == 1
    assert between(before, own[SupervisorCell.RELOADED])


def test_a_refused_reload_is_noted(board: Scoreboard, books: Books) -> None:
    """The time of the last good one stays."""
    books.started()
    applied = board.supervisor[SupervisorCell.RELOADED]
    books.reload_begun()
    books.reload_ended(applied=False)
    own = board.supervisor
    assert (own[SupervisorCell.RELOADS], own[SupervisorCell.RELOAD_FAILURES]) == (1, 1)
    assert (own[SupervisorCell.RELOAD_OK], own[SupervisorCell.RELOADED]) == (0, applied)


def test_a_beat_is_monotonic_time(board: Scoreboard, books: Books) -> None:
    """Whoever reads it compares it with his own clock."""
    before = time.monotonic_ns()
    books.beat()
    assert before <= board.supervisor[SupervisorCell.HEARTBEAT] <= time.monotonic_ns()


def test_a_state_is_noted(board: Scoreboard, books: Books) -> None:
    """What the whole program is doing."""
    books.state(State.DRAINING)
    assert board.supervisor[SupervisorCell.STATE] == State.DRAINING


@pytest.mark.parametrize("failed", [False, True])
def test_a_look_up_is_noted(board: Scoreboard, books: Books, failed: bool) -> None:
    """Each is one look-up, and a failed one a failure too."""
    books.looked_up(failed=failed)
    assert board.supervisor[SupervisorCell.LOOKUPS] == 1
    assert board.supervisor[SupervisorCell.LOOKUP_FAILURES] == failed


# Workers.


def test_a_birth_is_noted(board: Scoreboard, books: Books, child: Child) -> None:
    """Pid and time, in the slot's row and no other; it does not serve yet."""
    before = time.time_ns()
    books.born(child)
    watch = board.watch(1)
    assert (watch[WatchCell.PID], watch[WatchCell.SERVING]) == (4711, 0)
    assert between(before, watch[WatchCell.BORN])
    assert not any(board.watch(0))


def test_serving_is_noted(board: Scoreboard, books: Books, child: Child) -> None:
    """From its first table on."""
    books.born(child)
    books.serving(child)
    assert board.watch(1)[WatchCell.SERVING] == 1


def test_a_death_empties_the_slot(board: Scoreboard, books: Books, child: Child) -> None:
    """No pid, not serving."""
    books.born(child)
    books.serving(child)
    books.died(Death(child, "", 0, 0.0, 0.0), [], planned=True)
    assert (board.watch(1)[WatchCell.PID], board.watch(1)[WatchCell.SERVING]) == (0, 0)


@pytest.mark.parametrize(
    ("code", "unresponsive", "planned", "restarts"),
    [
        (3, False, False, (1, 0, 0)),
        (0, False, False, (1, 0, 0)),
        (-11, False, False, (0, 1, 0)),
        (-9, True, False, (0, 0, 1)),
        (-9, False, True, (0, 0, 0)),
        (0, False, True, (0, 0, 0)),
    ],
    ids=["exit", "exit with 0", "signal", "watchdog", "planned kill", "planned exit"],
)
def test_an_unplanned_death_is_counted_by_its_reason(
    board: Scoreboard,
    books: Books,
    child: Child,
    code: int,
    unresponsive: bool,
    planned: bool,
    restarts: tuple[int, int, int],
) -> None:
    """exit, signal, watchdog; a drained or stopped worker is none of them."""
    child.unresponsive = unresponsive
    books.died(Death(child, "", code, 0.0, 0.0), [], planned=planned)
    watch = board.watch(1)
    assert (
        watch[WatchCell.EXITED],
        watch[WatchCell.SIGNALLED],
        watch[WatchCell.UNRESPONSIVE],
    ) == restarts


def test_processor_time_adds_up(board: Scoreboard, books: Books, child: Child) -> None:
    """A slot's dead workers together, in microseconds."""
    for _ in range(2):
        books.died(Death(child, "", 0, 1.5, 0.25), [], planned=True)
    assert board.watch(1)[WatchCell.CPU_USER] == 3_000_000
    assert board.watch(1)[WatchCell.CPU_SYSTEM] == 500_000


@pytest.mark.parametrize("planned", [False, True])
def test_a_death_ends_its_connections(board: Scoreboard, books: Books, child: Child, planned: bool) -> None:
    """In the dead worker's slot only, and in the rows in use."""
    for number in range(ROOM):
        for slot in range(SLOTS):
            board.forward(number, slot)[ForwardCell.ACCEPTED] = 5
    board.row(1)[Cell.SESSIONS] = 15
    books.died(Death(child, "", -9, 0.0, 0.0), [0, 2], planned=planned)
    assert [board.active(number) for number in range(ROOM)] == [5, 10, 5]
    assert board.read(1, Cell.SESSIONS) == 0


def test_a_death_survives_what_a_worker_has_made_of_the_scoreboard(
    board: Scoreboard, books: Books, child: Child
) -> None:
    """A worker that was taken over can fill every cell with anything; the supervisor must go on."""
    for cells in (board.watch(1), board.row(1), board.forward(0, 1)):
        cells[:] = memoryview(b"\xff" * cells.nbytes).cast("Q")
    books.died(Death(child, "", -11, 0.5, 0.5), [0], planned=False)


def test_what_somebody_else_has_written_is_not_counted_on(
    board: Scoreboard, books: Books, child: Child
) -> None:
    """The supervisor's own figures are right again with its next store."""
    books.died(Death(child, "", -11, 0.5, 0.25), [], planned=False)
    board.watch(1)[:] = memoryview(b"\x55" * board.watch(1).nbytes).cast("Q")
    books.died(Death(child, "", -11, 0.5, 0.25), [], planned=False)
    watch = board.watch(1)
    assert watch[WatchCell.SIGNALLED] == 2
    assert (watch[WatchCell.CPU_USER], watch[WatchCell.CPU_SYSTEM]) == (1_000_000, 500_000)


# Rows.


def test_the_first_rows(books: Books) -> None:
    """In the order of the file."""
    assert books.assign(config("a", "b"), {}) == named("a", "b")


def test_too_many_forwards_are_an_error_of_the_file(books: Books) -> None:
    """The message says how many there may be, and that a restart helps."""
    with pytest.raises(ConfigError) as caught:
        books.assign(config("a", "b", "c", "d"), {})
    expected = "rinetd.conf: expected at most 3 forwards and backends without a restart, found 4"
    assert str(caught.value) == expected


def test_a_row_with_living_connections_is_not_given_away(board: Scoreboard, books: Books) -> None:
    """Whichever slot they are in."""
    board.forward(0, 1)[ForwardCell.ACCEPTED] = 1
    assert books.assign(config("x"), named("a", "b", "c"))[("x", Protocol.TCP, None)] == 1


def test_a_row_that_goes_to_another_begins_at_0(board: Scoreboard, books: Books) -> None:
    """Only that one: whoever keeps a row keeps its figures, and so does one that is gone."""
    for number in range(ROOM):
        board.forward(number, 0)[ForwardCell.SENT] = 7
    old = named("a", "b", "c")
    new = {("b", Protocol.TCP, None): 1, ("c", Protocol.TCP, None): 2, ("x", Protocol.TCP, None): 0}
    books.reassigned(old, new)
    assert [board.forward(number, 0)[ForwardCell.SENT] for number in range(ROOM)] == [0, 7, 7]


def test_a_row_that_nobody_had_needs_no_clearing(board: Scoreboard, books: Books) -> None:
    """It is 0, and reading it would make it memory."""
    board.forward(1, 0)[ForwardCell.SENT] = 7
    books.reassigned(named("a"), named("a", "b"))
    assert board.forward(1, 0)[ForwardCell.SENT] == 7


# Names.


def test_a_name_that_was_found_is_noted(board: Scoreboard, books: Books) -> None:
    """For every forward whose target it is, in slot 0."""
    text = b"127.0.0.1 2001 db 80\n127.0.0.1 2002 other 80\n127.0.0.1 2003 db 81\n"
    forwards = parse(text, "f")[0].forwards
    numbers = {key(forward): number for number, forward in enumerate(forwards)}
    books.resolved(forwards, numbers, {"db": 12345})
    assert [board.forward(number, 0)[ForwardCell.RESOLVED] for number in range(3)] == [12345, 0, 12345]
    assert not any(board.forward(number, 1)[ForwardCell.RESOLVED] for number in range(3))


# Queues.


class Serving:
    """A configuration whose listeners are open, and nobody accepts."""

    def __init__(self, text: str) -> None:
        self.config, problems = parse(text.encode(), "f")
        assert problems == []
        address = Address(socket.AF_INET, "127.0.0.1")
        self.places = places(self.config, {"127.0.0.1": [address]})
        self.listeners = Listeners(SLOTS, Inherited())
        self.listeners.commit(self.places, self.listeners.open(self.places, None))
        self.clients: list[socket.socket] = []

    def call(self, count: int, place: int = 0) -> None:
        """Have `count` clients wait."""
        port = self.listeners.held[self.places[place].key][0].getsockname()[1]
        self.clients += [connect(("127.0.0.1", port)) for _ in range(count)]

    def wait_noted(self, board: Scoreboard, books: Books, numbers: dict[Key, int], count: int) -> None:
        """Have the queues noted until row 0 shows that `count` clients wait."""

        def noted() -> bool:
            books.queues(self.places, numbers, self.listeners)
            return lengths(board, 0) == count

        until(noted, what=f"{count} clients in the queues")

    def close(self) -> None:
        """Close everything."""
        for client in self.clients:
            client.close()
        self.listeners.close()


def lengths(board: Scoreboard, number: int) -> int:
    """Who waits in all slots of a row."""
    return sum(board.forward(number, slot)[ForwardCell.QUEUE_LENGTH] for slot in range(SLOTS))


def test_queues_are_noted(board: Scoreboard, books: Books) -> None:
    """How many wait, and how many may, in every slot."""
    with closing(Serving(f"127.0.0.1 {free_port()} 127.0.0.1 80 [name=a]\n")) as serving:
        serving.call(5)
        serving.wait_noted(board, books, named("a"), 5)
    limits = {board.forward(0, slot)[ForwardCell.QUEUE_LIMIT] for slot in range(SLOTS)}
    assert limits == {min(65535, int(Path("/proc/sys/net/core/somaxconn").read_text()))}


def test_a_queue_that_has_been_emptied_is_noted(board: Scoreboard, books: Books) -> None:
    """The length falls again."""
    with closing(Serving(f"127.0.0.1 {free_port()} 127.0.0.1 80 [name=a]\n")) as serving:
        serving.call(3)
        serving.wait_noted(board, books, named("a"), 3)
        for slot, listener in enumerate(serving.listeners.held[serving.places[0].key]):
            for _ in range(board.forward(0, slot)[ForwardCell.QUEUE_LENGTH]):
                listener.accept()[0].close()
        books.queues(serving.places, named("a"), serving.listeners)
        assert lengths(board, 0) == 0


def test_queues_of_forwards_that_share_a_row_add_up(board: Scoreboard, books: Books) -> None:
    """Two forwards on port 0 of one address."""
    with closing(Serving("127.0.0.1 0 127.0.0.1 80\n127.0.0.1 0 127.0.0.1 81\n")) as serving:
        serving.call(2, place=0)
        serving.call(3, place=1)
        serving.wait_noted(board, books, {key(serving.config.forwards[0]): 0}, 5)


def test_queues_of_closed_listeners_are_left(board: Scoreboard, books: Books) -> None:
    """While it drains the supervisor has no listeners any more; that is no error."""
    with closing(Serving(f"127.0.0.1 {free_port()} 127.0.0.1 80 [name=a]\n")) as serving:
        serving.listeners.close()
        books.queues(serving.places, named("a"), serving.listeners)
        assert lengths(board, 0) == 0
