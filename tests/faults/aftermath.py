"""After a fault: the program is as it was, and its books are right.

Every row ends with this. Sockets, pipes and memory are back where they were, nothing has been
dumped on stderr, every log line is whole, and what was opened was closed, or is still live.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tests import processes
from tests.deadline import until
from tests.forwarder import Forwarder

GROWTH: Final = 16 << 20
"""Bytes of memory that a process may have kept: allocators do not give back everything."""

PIPES: Final = 2 * 1024
"""Descriptors of pipes that a worker may keep for later."""

ENDED: Final = ("done-", "idle-", "half-close-", "local-connect-failed")
"""How the last words of sessions begin that have had an `opened` before."""

BACK: Final = 10.0
"""Seconds until everything must be back."""


class Aftermath:
    """The program `running`, and what it had when it was started."""

    def __init__(self, running: Forwarder) -> None:
        """Look now: before the load and before the fault."""
        self.running = running
        self.sessions_lost = False
        """Set it where the fault kills workers: their sessions have no last line."""
        self.memory_judged = True
        self._sockets = self._count("socket:")
        self._memory = self._resident()

    def judge(self) -> None:
        """All clients are gone: it must be as before. C rinetd is not judged."""
        running = self.running
        if running.kind != "fastfwd" or not running.running():
            return
        until(lambda: self._count("socket:") <= self._sockets, BACK, f"sockets are back\n{self._held()}")
        assert self._count("pipe:") <= PIPES * max(1, len(running.workers())), self._held()
        if self.memory_judged:
            until(
                lambda: self._resident() <= self._memory + GROWTH * len(running.pids()),
                BACK,
                f"memory is back: {self._memory} bytes before, {self._resident()} now",
            )
        assert "Traceback" not in running.stderr(), running.stderr()
        self._judge_log()

    def _judge_log(self) -> None:
        text = self.running.log_text()
        lines = text.splitlines()
        if not lines or lines[0].startswith("{"):
            return
        assert "\0" not in text, "NUL bytes in the log"
        crooked = [line for line in lines if line.count("\t") != 8]
        assert not crooked, f"log lines that are not whole: {crooked[:5]}"
        if not self.sessions_lost:
            until(lambda: self._balance() == 0, BACK, "every session that was opened has ended")

    def _balance(self) -> int:
        """Opened sessions less ended ones. Without a word before, a dial that failed at once ends too."""
        words = Counter(line.rpartition("\t")[2] for line in self.running.log_lines())
        return words["opened"] - sum(count for word, count in words.items() if word.startswith(ENDED))

    def _count(self, what: str) -> int:
        return sum(name.startswith(what) for pid in self.running.pids() for name in _descriptors(pid))

    def _resident(self) -> int:
        found = 0
        for pid in self.running.pids():
            try:
                found += processes.rss(pid)
            except OSError:  # it has just ended
                continue
        return found

    def _held(self) -> str:
        return "\n".join(f"{pid}: {sorted(_descriptors(pid))}" for pid in self.running.pids())


def _descriptors(pid: int) -> list[str]:
    try:
        return list(processes.descriptors(pid).values())
    except OSError:
        return []
