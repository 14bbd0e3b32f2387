"""The worker's end of the channel, in the real loop."""

from __future__ import annotations

import threading

from fastfwd.channel import pair
from fastfwd.observe.scoreboard import Scoreboard
from fastfwd.worker.limits import Census
from fastfwd.worker.main import Worker
from tests.deadline import until


def test_what_a_busy_supervisor_had_no_room_for_is_sent_later() -> None:
    """Messages that fill the channel arrive once the supervisor reads, though nothing else is sent."""
    ours, theirs = pair()
    worker = Worker(0, theirs, Scoreboard(1, 0), Census(1))
    sent = 0
    while not theirs.backlog:
        theirs.send({"op": "say", "level": 20, "text": "x" * 10_000})
        sent += 1
    running = threading.Thread(target=worker.run)
    running.start()
    arrived = 0

    def all_there() -> bool:
        nonlocal arrived
        arrived += len(ours.receive()[0])
        return arrived == sent

    try:
        until(all_there, what="the last message")
    finally:
        ours.send({"op": "stop"})
        running.join()
        for end in (ours, theirs, worker.loop.epoll):
            end.close()
