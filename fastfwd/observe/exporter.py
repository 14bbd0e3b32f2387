"""The exporter: a process that shows what happened to whoever asks over HTTP.

The supervisor forks it when the configuration says `metrics` (or `statusfile`, or
`statsloginterval`, which it serves too), tells it where to listen
and whose the scoreboard's rows are, and starts another one when it dies. It has no
rights, sees the scoreboard read-only, and never touches a session: nothing that happens
to it or in it can disturb one.

    /metrics   Prometheus text or OpenMetrics
    /status    the same facts as JSON; /status?history with the last two minutes' rates
    /healthz   200 while the supervisor and at least one worker beat
    /readyz    200 while every slot serves
    /          a page for people
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import logging
import os
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics

from fastfwd.channel import Channel, Message
from fastfwd.observe.collector import StatusCollector
from fastfwd.observe.http import TEXT, Answer, HttpServer, Request
from fastfwd.observe.observer import INTERVAL, Observer
from fastfwd.observe.report import as_json, as_text, line
from fastfwd.observe.scoreboard import Scoreboard, State
from fastfwd.observe.status import Status

BEAT: Final = 1.0
"""Seconds between two words to the supervisor, whose watchdog kills a silent child."""

FAREWELL: Final = 2.0
"""Seconds for answers that have begun when another program takes over."""

NICENESS: Final = 5
"""A scrape's arithmetic must wait for the bytes of clients, not they for it (nice(2))."""

log = logging.getLogger("fastfwd")


class Exporter:
    """State of the process."""

    def __init__(self, channel: Channel, scoreboard: Scoreboard) -> None:
        self.observer = Observer(scoreboard)
        self._channel = channel
        self._server = HttpServer(self.answer)
        self._page = Answer(503, TEXT, b"no page yet\n")
        self._collector = StatusCollector(self.observer.status)
        self._stopped = asyncio.Event()
        self._seconds = 0
        self._report_as: Callable[[Status], bytes] = as_json
        self._intervals = 30, 0
        """Seconds between two status files, and between two lines of statistics; 0: none."""
        self._lent: int | None = None
        """The next status file, empty."""
        self._reported = False

    async def run(self) -> None:
        """Serve until told to stop, or until the supervisor is gone: its successor wants the
        port."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_complain)
        loop.add_reader(self._channel.fileno(), self._hear)
        self._repeat(loop, BEAT, self._beat)
        self._repeat(loop, INTERVAL, self.observer.sample)
        self._repeat(loop, 1.0, self._report)
        await self._stopped.wait()
        self._server.close()

    def answer(self, request: Request) -> Answer | None:
        """The answer to a GET, None for an unknown path."""
        path = request.path
        if path == "/metrics":
            return self._metrics(request.headers.get("accept", ""))
        if path == "/status":
            status = self.observer.status(history=request.query == "history")
            return Answer(200, "application/json", orjson.dumps(status, option=orjson.OPT_APPEND_NEWLINE))
        if path == "/healthz":
            return _verdict(self.observer.beating(), "the supervisor, or every worker, has stopped beating")
        if path == "/readyz":
            return self._ready()
        return self._page if path == "/" else None

    def _metrics(self, accept: str) -> Answer:
        encode, content_type = choose_encoder(accept)
        if content_type.startswith("application/openmetrics-text"):
            # Our names need no escaping, so every scheme says the same; this one does not go
            # through them letter by letter (52 ms instead of 88 for 10,000 series).
            encode = partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8)
        return Answer(200, content_type, encode(self._collector))

    def _ready(self) -> Answer:
        state = self.observer.state()
        serving, slots = self.observer.serving(), self.observer.slots
        if state is State.REPLACED:
            return _verdict(True, "")
        if state is not State.SERVING:
            return _verdict(False, state.name.lower())
        return _verdict(serving == slots, f"{serving} of {slots} workers serve")

    def _repeat(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        def again() -> None:
            loop.call_later(seconds, again)
            action()

        again()

    def _beat(self) -> None:
        self._channel.send({"op": "beat"})

    # -- orders

    def _hear(self) -> None:
        messages, alive = self._channel.receive()
        for message, descriptors in messages:
            self._obey(message, descriptors or [])
        if not alive:
            self._stopped.set()

    def _obey(self, message: Message, descriptors: list[int]) -> None:
        operation = message["op"]
        if operation == "rows":
            self.observer.rows, self.observer.file = message["rows"], message["file"]
        elif operation == "worker":
            self.observer.worker(message["slot"], message["pid"], descriptors[0] if descriptors else None)
        elif operation == "listen":
            self._page = page(message["page"])
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                sock.setblocking(False)
                self._server.listen(sock)
        elif operation == "deaf":
            self._server.close()
        elif operation == "report":
            self._report_as = as_text if message["text"] else as_json
            self._intervals = message["file"], message["line"]
        elif operation == "file":
            if self._lent is not None:  # another one is wanted by now
                os.close(self._lent)
            self._lent = descriptors[0] if descriptors else None
        elif operation == "retire":
            # Another program's exporter has the port; who has asked us already is answered.
            self._server.deafen()
            wait = 0.0 if self._server.idle else FAREWELL
            asyncio.get_running_loop().call_later(wait, self._stopped.set)
        elif operation == "stop":
            self._stopped.set()

    def _report(self) -> None:
        """Once a second: what is due of the status file and of the statistics."""
        self._seconds += 1
        to_file, to_log = self._intervals
        if to_log and self._seconds % to_log == 0:
            log.info("%s", line(self.observer.status()))
        if self._lent is not None and (self._seconds % to_file == 0 or not self._reported):
            lent, self._lent, self._reported = self._lent, None, True
            with open(lent, "wb") as file:
                file.write(self._report_as(self.observer.status()))
            self._channel.send({"op": "written"})


def page(html: bytes) -> Answer:
    """The status page, with a policy that lets its own script and style run and nothing else
    (Content Security Policy Level 3)."""
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
    for element in ("script", "style"):
        inline = re.findall(rb"<%b>(.*?)</%b>" % (element.encode(), element.encode()), html, re.DOTALL)
        sums = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in inline)
        policy.append(" ".join([f"{element}-src", *(f"'sha256-{each}'" for each in sums)]))
    return Answer(200, "text/html; charset=utf-8", html, (("Content-Security-Policy", "; ".join(policy)),))


def _verdict(good: bool, why_not: str) -> Answer:
    return Answer(200, TEXT, b"ok\n") if good else Answer(503, TEXT, f"{why_not}\n".encode())


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("exporter: %s", context["message"], exc_info=context.get("exception"))


def main(channel: Channel, scoreboard: Scoreboard, become: Callable[[], None]) -> int:
    """Be the exporter in this freshly forked process; `become()` drops its privileges.
    Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("fastfwd-metrics")
    os.nice(NICENESS)
    exporter = Exporter(channel, scoreboard)
    # Once of each: what is imported on first use must come before the rights to read it go.
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        exporter.answer(Request("/metrics", "", {"accept": accept}))
    become()
    gc.collect()
    gc.freeze()
    asyncio.run(exporter.run())
    return 0
