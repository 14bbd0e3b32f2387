"""The resolver: a small process that may block in getaddrinfo so that nobody else does.

The supervisor forks it when a forward names a host; supervisor/names talks to it. It
answers each question once, in whatever order the answers come. It knows nothing but
the names it is asked for.
"""

from __future__ import annotations

import select
import signal
import threading
from queue import SimpleQueue
from typing import Final

from fastfwd.channel import Channel, Message
from fastfwd.config.resolve import Unresolvable, lookup
from fastfwd.worker.privileges import Account, drop

THREADS: Final = 8
"""Questions asked at the same time: one dead name server must not hold up every name."""


def main(channel: Channel, account: Account) -> int:
    """Answer {"op": "lookup", "host"} with {"op": "found", "host", "addresses"} or
    {"op": "failed", "host", "reason", "definitive"} until the supervisor is gone.
    Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("fastfwd-dns")
    drop(account)
    questions: SimpleQueue[str] = SimpleQueue()
    answering = threading.Lock()
    for _ in range(THREADS):
        threading.Thread(target=_answer, args=(questions, channel, answering), daemon=True).start()
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        messages, alive = channel.receive()
        for message, _ in messages:
            if message["op"] == "stop":
                return 0
            questions.put(message["host"])
        if not alive:
            return 0


def _answer(questions: SimpleQueue[str], channel: Channel, answering: threading.Lock) -> None:
    while True:
        host = questions.get()
        try:
            addresses = [(address.family, address.text) for address in lookup(host)]
            answer: Message = {"op": "found", "host": host, "addresses": addresses}
        except Unresolvable as error:
            answer = {"op": "failed", "host": host, "reason": error.reason, "definitive": error.definitive}
        with answering:
            channel.send(answer)
