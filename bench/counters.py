"""What counting costs, on the real scoreboard: `python -m bench.counters`.

A request on a connection that stays open costs two turns of a pump and two of the loop
(the client's bytes, then the backend's); a connection costs the rest once. Best of
several rounds, in microseconds, the empty loop taken off.
"""

from __future__ import annotations

from time import monotonic
from timeit import repeat

from fastfwd.observe.scoreboard import CONNECT_TIME, DURATION, FORWARD_ROW, Scoreboard
from fastfwd.relay.pump import Tally
from fastfwd.worker.session import CLOSED_LOCAL, RECEIVED

CELL_BYTES = 8
NUMBER = 200_000
ROUNDS = 7


class Holder:
    """Stands for a session, a pump and the loop: attributes in slots, as theirs are."""

    __slots__ = ("now", "row", "taken")

    now: float
    row: memoryview
    taken: int


def names() -> dict[str, object]:
    """What the statements use."""
    board = Scoreboard(1, 1)
    pump, session, loop = Holder(), Holder(), Holder()
    pump.taken = 1_000_000
    session.row = board.forward(0, 0)
    loop.now = monotonic()
    return {
        "pump": pump,
        "session": session,
        "row": board.forward(0, 0),
        "loop": loop,
        "tally": Tally(),
        "monotonic": monotonic,
        "longest": 1e9,
        "n": 100,
        "RECEIVED": RECEIVED,
        "CLOSED_LOCAL": CLOSED_LOCAL,
        "DURATION": DURATION,
        "CONNECT_TIME": CONNECT_TIME,
    }


EVENTS = {
    "bytes of a turn": "before = pump.taken\nsession.row[RECEIVED] += pump.taken - before",
    "bytes by path": "tally.copied += n",
    "length of a loop's turn": "took = monotonic() - loop.now\nif took > longest: most = took",
    "a count": "row[CLOSED_LOCAL] += 1",
    "a histogram": "DURATION.observe(row, 12.5)",
}
"""What is timed, as the code has it."""

REQUEST = {"bytes of a turn": 2, "bytes by path": 2, "length of a loop's turn": 2}
CONNECTION = {"a count": 4, "a histogram": 2}


def cost(statement: str) -> float:
    """Microseconds per execution."""
    scope = names()
    empty = min(repeat("pass", number=NUMBER, repeat=ROUNDS))
    return (min(repeat(statement, globals=scope, number=NUMBER, repeat=ROUNDS)) - empty) / NUMBER * 1e6


def main() -> None:
    """Measure and print."""
    costs = {event: cost(statement) for event, statement in EVENTS.items()}
    for event, microseconds in costs.items():
        print(f"{event:28} {microseconds:6.3f} µs")
    for what, parts in (("a request", REQUEST), ("a connection, besides", CONNECTION)):
        print(f"{what:28} {sum(costs[event] * times for event, times in parts.items()):6.3f} µs")
    print(f"a row                        {FORWARD_ROW * CELL_BYTES:6} bytes per slot and forward")


if __name__ == "__main__":
    main()
