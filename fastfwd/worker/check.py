"""Looks now and then whether a backend is there, where `check=` asks for it.

worker/main makes a Check for each backend in one worker only, which looks for all of them; what it
finds is on the backend's row. A check connects and closes; it sends nothing, but where clients are
announced to backends it says that it is nobody's.
"""

from __future__ import annotations

import errno
import select
import socket
from _socket import socket as Socket  # noqa: N812
from contextlib import suppress
from typing import TYPE_CHECKING

from fastfwd.worker.balance import CHECKED_DOWN
from fastfwd.worker.dial import STREAM
from fastfwd.worker.introduction import introduction

if TYPE_CHECKING:
    from fastfwd.worker.accept import Listener
    from fastfwd.worker.balance import Member
    from fastfwd.worker.loop import TimerQueue
    from fastfwd.worker.main import Worker


class Check:
    """The checks of one backend, one at a time."""

    def __init__(self, worker: Worker, member: Member[Listener], seconds: int) -> None:
        """Every so many `seconds`; an answer that takes longer is none."""
        self._worker = worker
        self._member = member
        self._sock: Socket | None = None
        self._next = 0
        self._due: TimerQueue[None] = worker.loop.timer(seconds, self._begin)
        self._due.add(None, worker.loop.now)

    def end(self) -> None:
        """No more checks; nobody is said to be missing because of the last one."""
        self._worker.loop.retire(self._due)
        self._drop()
        self._member.own[CHECKED_DOWN] = 0

    def _begin(self, _: None) -> None:
        self._due.add(None, self._worker.loop.now)
        if self._sock is not None:  # the last one has not been answered
            self._drop()
            self._member.own[CHECKED_DOWN] = 1
        target = self._member.listener.target
        if not target.addresses:
            self._member.own[CHECKED_DOWN] = 1
            return
        address = target.addresses[self._next % len(target.addresses)]
        try:
            sock = Socket(address.family, STREAM, 0)
        except OSError:
            return  # no descriptor is no news of the backend
        try:
            target.prepare(sock, address, None)
            code = sock.connect_ex(target.at(address))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, "")
            self._worker.loop.watch(sock.fileno(), select.EPOLLOUT, self._answer)
        except OSError:
            sock.close()
            self._failed()
        else:
            self._sock = sock

    def _answer(self, mask: int) -> None:
        assert self._sock is not None
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if (version := self._member.listener.forward.send_proxy) and not error:
            # Without it a backend that waits for a header would write a line about every check.
            with suppress(OSError):  # it was there, and is gone: the next one finds out
                self._sock.send(introduction(version, None, None))
        self._drop()
        if error:
            self._failed()
        else:
            self._member.own[CHECKED_DOWN] = 0

    def _failed(self) -> None:
        self._next += 1  # another address next time
        self._member.own[CHECKED_DOWN] = 1

    def _drop(self) -> None:
        if self._sock is not None:
            self._worker.loop.forget(self._sock.fileno())
            self._worker.loop.closing.append(self._sock)
            self._sock = None
