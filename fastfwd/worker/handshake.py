"""The handshake of a Stream, as the loop goes: with a client before it is dialled for, with a backend
before there is a session.

worker/dial begins them. Each has its time, and there is a most of them per worker: then the one that
was begun first has to go, for one that takes so long is more likely an attacker's than the newest.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastfwd.observe.scoreboard import TlsFailure
from fastfwd.worker.session import READ

if TYPE_CHECKING:
    from fastfwd.relay.ciphering import Stream
    from fastfwd.worker.main import Worker

MOST: Final = 1000
"""Handshakes that a worker has at a time: with 10 s for each, a hundred a second that lead nowhere."""

BOTH_WAYS: Final = READ | select.EPOLLOUT

NOT_TLS: Final = (
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_TOO_SMALL",
    "BAD_RECORD_TYPE",
    "UNEXPECTED_MESSAGE",
)
"""What OpenSSL says of bytes that are no TLS at all."""

IN_COMMON: Final = ("PROTOCOL", "CIPHER", "VERSION", "HANDSHAKE_FAILURE", "SIGNATURE_ALGORITHM", "GROUP")
"""Parts of what it says when there is nothing that both sides can do."""

BAD_NAME: Final = "CALLBACK_FAILED"
"""What it says when a client asks for a server by something that is no ASCII."""

PROOF: Final = ("CERT", "UNKNOWN_CA")
"""Parts of what it, or the peer, says of a certificate."""


class Handshake:
    """One handshake, until `done` or `failed` is called. Ready to be a key of a TimerQueue."""

    __slots__ = ("_done", "_failed", "_fd", "_stream", "_worker", "seconds")

    def __init__(
        self,
        worker: Worker,
        stream: Stream,
        seconds: int,
        done: Callable[[], None],
        failed: Callable[[TlsFailure, str], None],
    ) -> None:
        """Have `stream` shake hands within `seconds`; `failed` is called with why, as a kind and in
        words. Its socket is the caller's to watch, by `event`, for reading."""
        self._worker = worker
        self._stream = stream
        self._fd = stream.fileno()
        self._done = done
        self._failed = failed
        self.seconds = seconds
        if worker.handshakes_now() >= MOST:
            worker.oldest_handshake().fail(TlsFailure.EVICTED, "evicted")
        worker.handshakes(seconds).add(self, worker.loop.now)

    def event(self, mask: int) -> None:
        """The socket is ready for something."""
        try:
            if not self._stream.handshake():
                if self._stream.unsent:  # more than there was room for
                    self._worker.loop.epoll.modify(self._fd, BOTH_WAYS)
                return
        except ssl.SSLError as error:
            self.fail(kind(error), words(error))
        except OSError:
            self.fail(TlsFailure.CLOSED, "closed")
        else:
            self.end()
            self._done()

    def timed_out(self) -> None:
        """It has had its time."""
        self.fail(TlsFailure.TIMEOUT, "timeout")

    def fail(self, why: TlsFailure, said: str) -> None:
        """It leads nowhere."""
        self.end()
        self._failed(why, said)

    def end(self) -> None:
        """It is over, or nobody wants it any more."""
        self._worker.handshakes(self.seconds).discard(self)


def kind(error: ssl.SSLError) -> TlsFailure:
    """Where a failed handshake is counted."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError) or any(part in reason for part in PROOF):
        return TlsFailure.CERTIFICATE
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return TlsFailure.CLOSED
    if reason in NOT_TLS:
        return TlsFailure.NOT_TLS
    if any(part in reason for part in IN_COMMON):
        return TlsFailure.PROTOCOL
    return TlsFailure.OTHER


def words(error: ssl.SSLError) -> str:
    """What OpenSSL has to say, without what the peer has sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if error.reason == BAD_NAME:
        return "no server name"
    return (error.reason or type(error).__name__).lower().replace("_", " ")
