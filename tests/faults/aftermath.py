"""After a fault: the program is as it was, and its books are right.

Every row ends with this. Sockets, pipes and memory are back where they were, nothing has been
dumped on stderr, every log line is whole, and what was opened was closed, or is still live.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from tests import processes
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.system.metrics import answers, metrics_url

GROWTH: Final = 16 << 20
"""Bytes of memory that a process may have kept: allocators do not give back everything."""

PIPES: Final = 2 * 1024
"""Descriptors of pipes that a worker may keep for later."""

ENDED: Final = ("done-", "idle-", "half-close-", "evicted")
"""How the last words of sessions begin that have had an `opened` before."""

FAILED: Final = "local-"
"""How the last word of a dial that failed begins. It has had its `opened` when an attempt had begun;
where none could (no free port, no route, no address of the name) this is its only line."""

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
        if "\nmetrics " in f"\n{running.config_path.read_text()}":
            # It imports its libraries first, then opens what it has all the time.
            until(lambda: answers(metrics_url(running), "/readyz") == 200, what="the exporter")
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
        assert "\0" not in text, "NUL bytes in the log"
        if text.startswith("{"):
            whole, unbalanced = _whole_json, _unbalanced_json
        else:
            whole, unbalanced = _whole, _unbalanced
        crooked = [line for line in text.splitlines() if not whole(line)]
        assert not crooked, f"log lines that are not whole: {crooked[:5]}"
        if self.sessions_lost:
            return
        try:
            until(lambda: not unbalanced(self.running.log_lines()), BACK)
        except AssertionError:
            raise AssertionError(unbalanced(self.running.log_lines())) from None

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


def _whole(line: str) -> bool:
    return line.count("\t") == 8


def _unbalanced(lines: list[str]) -> str:
    """How what was opened differs from what has ended, if it does. These lines do not tell one session from
    another, so of the dials that failed any number may have been opened."""
    words = Counter(line.rpartition("\t")[2] for line in lines)
    ended = sum(count for word, count in words.items() if word.startswith(ENDED))
    failed = sum(count for word, count in words.items() if word.startswith(FAILED))
    if ended <= words["opened"] <= ended + failed:
        return ""
    return f"{words['opened']} opened, but {ended} ended and {failed} failed"


def _whole_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _unbalanced_json(lines: list[str]) -> str:
    """The same, where every line names its session."""
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    opened = Counter(each["session"] for each in found if each["outcome"] == "opened")
    ended = Counter(each["session"] for each in found if each["outcome"] != "opened")
    unopened = {each["session"] for each in found if each["outcome"].startswith(ENDED)} - set(opened)
    faults = {
        "opened twice": [session for session, count in opened.items() if count > 1],
        "ended twice": [session for session, count in ended.items() if count > 1],
        "not ended": list(set(opened) - set(ended)),
        "never opened": list(unopened),
    }
    return "; ".join(f"{len(each)} {what}: {each[:3]}" for what, each in faults.items() if each)


def _descriptors(pid: int) -> list[str]:
    try:
        return list(processes.descriptors(pid).values())
    except OSError:
        return []
