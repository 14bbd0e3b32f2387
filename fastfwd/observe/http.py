"""The exporter's HTTP/1.1 server: short answers to GET and HEAD, whoever asks.

The exporter gives it a function from Request to Answer, and listening sockets. All of
it runs in one asyncio loop and must never wait for a client: what one has not sent or
will not take is waited for by the loop, for a time and in a memory that have bounds
(`Limits`). It knows nothing of what it serves.

The parser is strict, and not the standard library's: http.server takes a line without
a colon for the end of the headers (a Content-Length behind it is not seen, and the body
becomes the next request), a bare CR for a line end, and NUL for a letter. A request
that is not exactly one thing is refused and its connection closed.

asyncio watches the sockets; its servers and transports are not used. They print a
traceback for every accept that fails for want of descriptors, and read and queue as
much as the client likes.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import socket
import struct
import termios
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

SEND_BUFFER: Final = 128 << 10
"""SO_SNDBUF of a TCP connection; the kernel doubles it. Left alone, the kernel keeps up to
4 MB for a client that does not read (net.ipv4.tcp_wmem). With 32 KiB, less than one
segment of the loopback device, 1 MB takes 600 ms there; from 64 KiB on, 0.2 ms."""

ACCEPTS: Final = 16
"""Connections taken per turn: a flood of them must not hold up who is being answered."""

EMPTIED: Final = 4096
"""Connections taken at most from a listener that is about to be closed."""

LOOK_SECONDS: Final = 0.1
"""Between two looks whether a client that has said its last word has taken its answer."""

COMPRESS_FROM: Final = 1 << 10
"""Bytes; a shorter body fits one packet as it is."""

COMPRESSION: Final = 1
"""zlib's level: 825 kB of metrics become 86 kB in 1.9 ms. Level 3 makes 82 kB in 2.4 ms, level
6 74 kB in 7.2 ms, in which nobody else is answered."""

GZIP_FORMAT: Final = 31
"""zlib's `wbits` for a gzip header around the largest window."""

END: Final = b"\r\n\r\n"
"""What ends a header block."""

LEADING: Final = re.compile(rb"(?:\r\n)+")
"""Empty lines before a request are to be ignored (RFC 9112, 2.2)."""

FORBIDDEN: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no header block has: half a line end, a control character. A TLS greeting has them."""

REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9])\.([0-9])")
HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
AUTHORITY: Final = re.compile(r"(?i:https?)://[^/?#]+")
STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
HOST: Final = re.compile(r"[^\s/?#@,]*")
"""Two Host headers, joined as any two of a name are, have a comma and do not match."""

QUALITY: Final = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")

METHODS: Final = ("GET", "HEAD")

TEXT: Final = "text/plain; charset=utf-8"

logger = logging.getLogger("fastfwd")


class Limits(NamedTuple):
    """What clients may cost.

    Together: `connections` times `request_bytes` and about 3 KB of objects (1.5 MB),
    plus `answers` bodies and one in the making; in the kernel `connections` times
    twice SEND_BUFFER (32 MiB).
    """

    connections: int = 128
    """Open at a time. One more, and the one that has waited longest for its client, to complete a
    request or to take any of its answer, ends; never the newcomer: half-open requests
    must not shut out a scrape."""

    answers: int = 8
    """Answers being sent that the kernel did not take at once. One more, and the one whose
    client has taken nothing for longest ends."""

    request_bytes: int = 8 << 10
    """The request line and the headers."""

    request_seconds: float = 10
    """From the first byte, or from the accept, to the end of the headers."""

    idle_seconds: float = 75
    """Between an answer and the first byte of the next request."""

    answer_seconds: float = 30
    """For the client to take an answer; and after the last one, to close."""

    accept_seconds: float = 1
    """Pause after an accept that failed for want of descriptors or memory."""


class Request(NamedTuple):
    """What is asked for. The path is decoded and without the query, header names are lower-case."""

    path: str
    query: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What is said to it. The body is plain: compressing it is the server's business."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class HttpServer:
    """Serves what `answer` says on one listener at a time."""

    def __init__(self, answer: Callable[[Request], Answer | None], limits: Limits | None = None) -> None:
        """`answer` is called once per good GET or HEAD and must not block; None stands for 404, an
        exception for 500."""
        self._answer = answer
        self._limits = limits or Limits()
        self._listener: socket.socket | None = None
        self._failing = False  # the last accept did
        # Every connection is in exactly one of the first two.
        self._waiting: OrderedDict[_Connection, None] = OrderedDict()  # for its client, longest first
        self._ready: deque[_Connection] = deque()  # has a request, waits for its turn
        self._sending: OrderedDict[_Connection, None] = OrderedDict()  # longest without progress first

    def listen(self, sock: socket.socket) -> None:
        """Accept on `sock` (bound, listening, non-blocking, TCP or AF_UNIX), which is the server's
        from now on. An earlier one is emptied and closed; open connections go on."""
        if sock.family != socket.AF_UNIX:
            # Connections inherit these; for AF_UNIX the kernel's own bound is as good.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = asyncio.get_running_loop()
        earlier, self._listener = self._listener, sock
        self._loop.add_reader(sock, self._accept, sock)
        if earlier is not None:
            self._accept(earlier, EMPTIED)
            self._loop.remove_reader(earlier)
            earlier.close()

    @property
    def idle(self) -> bool:
        """Whether nobody is here."""
        return not self._waiting and not self._ready

    def deafen(self) -> None:
        """Stop listening; whoever is here is answered."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Stop listening, drop all connections."""
        self.deafen()
        for connection in (*self._waiting, *self._ready):
            connection.close()
        self._ready.clear()

    # Connections come

    def _accept(self, listener: socket.socket, most: int = ACCEPTS) -> None:
        for _ in range(most):
            if len(self._ready) >= self._limits.connections:
                return  # all of them wait for us: a newcomer, in the listener's queue
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(listener, error)
                return
            self._failing = False
            sock.setblocking(False)
            if len(self._waiting) + len(self._ready) >= self._limits.connections:
                next(iter(self._waiting)).close()
            _Connection(self, sock).begin()

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        if not self._failing:
            logger.warning("metrics: cannot accept: %s", error.strerror)
        self._failing = True
        self._loop.remove_reader(listener)
        self._loop.call_later(self._limits.accept_seconds, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._loop.add_reader(listener, self._accept, listener)

    # Requests come

    def _enqueue(self, connection: _Connection) -> None:
        """`connection` has something to answer."""
        self._waiting.pop(connection, None)
        self._ready.append(connection)
        if len(self._ready) == 1:
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        """Answer one request. One per turn of the loop, so that between any two of them every
        client that reads its answer gets more of it."""
        if not self._ready:
            return
        connection = self._ready.popleft()
        if self._ready:
            self._loop.call_soon(self._serve)
        connection.serve()

    def _reply(self, head: _Head) -> bytes:
        """The bytes that answer a good request."""
        try:
            if head.method not in METHODS:
                return _encode(_METHOD_NOT_ALLOWED, head)
            return _encode(self._answer(head.request) or _NOT_FOUND, head)
        except Exception:
            logger.exception("metrics: no answer to %r", head.request.path)
            return _encode(_INTERNAL_ERROR, head)

    # Connections wait

    def _wait(self, connection: _Connection) -> None:
        """`connection` waits for its client from now on."""
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def _progress(self, connection: _Connection) -> None:
        """The client of `connection` took a part of its answer, and the rest waits."""
        self._wait(connection)
        self._sending[connection] = None
        self._sending.move_to_end(connection)
        if len(self._sending) > self._limits.answers:
            next(iter(self._sending)).close()

    def _forget(self, connection: _Connection) -> None:
        self._waiting.pop(connection, None)
        self._sending.pop(connection, None)


class _Connection:
    """One client: receives a request, waits for its turn, sends the answer, and again."""

    __slots__ = ("_buffer", "_ended", "_idle", "_keep", "_limits", "_server", "_sock", "_timer", "_unsent")

    def __init__(self, server: HttpServer, sock: socket.socket) -> None:
        self._server = server
        self._limits = server._limits
        self._sock = sock
        self._buffer = bytearray()
        self._unsent = memoryview(b"")
        self._keep = True  # another request may follow
        self._idle = False  # nothing of it has come
        self._ended = False  # nothing will come any more
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Receive the first request. If it is there already, no newcomer can take its place."""
        self._await(self._receive, self._limits.request_seconds)
        self._step(self._receive)

    def serve(self) -> None:
        """Answer the first request of the buffer."""
        self._step(self._reply)

    def close(self) -> None:
        """End it; with a reset if the client has not taken everything, or the kernel would go on
        offering it the rest for minutes."""
        self._unwatch()
        if _untaken(self._sock):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()
        self._server._forget(self)

    def _step(self, action: Callable[[], None]) -> None:
        """Every callback of the loop comes through here: an exception must not reach the loop,
        which would print it and call again."""
        try:
            action()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        except Exception:
            logger.exception("metrics: a connection failed")
            self.close()

    def _await(self, action: Callable[[], None], seconds: float, *, writable: bool = False) -> None:
        """Call `action` whenever the socket is readable (or writable), for so many seconds."""
        self._unwatch()
        loop = self._server._loop
        watch = loop.add_writer if writable else loop.add_reader
        watch(self._sock, self._step, action)
        self._timer = loop.call_later(seconds, self.close)
        self._server._wait(self)

    def _unwatch(self) -> None:
        loop = self._server._loop
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self) -> None:
        piece = self._sock.recv(self._limits.request_bytes - len(self._buffer))
        seen = len(self._buffer)
        self._buffer += piece
        self._ended = not piece
        if self._due(max(0, seen - len(END) + 1)):
            self._unwatch()
            self._server._enqueue(self)
        elif self._ended:
            self._farewell()
        elif self._idle:
            self._idle = False
            self._await(self._receive, self._limits.request_seconds)

    def _due(self, start: int) -> bool:
        """Whether the buffer has something to answer: a header block, or what can never become
        one. Nothing before `start` is."""
        buffer = self._buffer
        if leading := LEADING.match(buffer):
            del buffer[: leading.end()]
        if not buffer:
            return False
        if self._ended or len(buffer) == self._limits.request_bytes:
            return True
        return buffer.find(END, start) >= 0 or FORBIDDEN.search(buffer, start) is not None

    def _reply(self) -> None:
        try:
            head = _parse(self._take())
        except _RequestError as refusal:
            self._keep = False
            self._unsent = memoryview(_encode(refusal.answer, None))
        else:
            self._keep = head.keep
            self._unsent = memoryview(self._server._reply(head))
        self._send()

    def _take(self) -> str:
        """The first header block of the buffer, without its end."""
        end = self._buffer.find(END)
        if FORBIDDEN.search(self._buffer, 0, end + len(END) if end >= 0 else len(self._buffer)):
            raise _RequestError(HTTPStatus.BAD_REQUEST, "a stray CR, LF or control character")
        if end < 0 and len(self._buffer) < self._limits.request_bytes:
            raise _RequestError(HTTPStatus.BAD_REQUEST, "the request is cut off")
        if end < 0 and b"\r\n" not in self._buffer:
            raise _RequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "the request line is too long")
        if end < 0:
            raise _RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too long")
        block = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + len(END)]
        return block

    def _send(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._unsent = memoryview(b"")  # an empty slice would hold the answer
            self._server._sending.pop(self, None)
            self._sent()
            return
        if self not in self._server._sending:
            self._await(self._send, self._limits.answer_seconds, writable=True)
            self._server._progress(self)
        elif sent:
            self._server._progress(self)

    def _sent(self) -> None:
        """The answer has gone: what comes next?"""
        if self._keep and self._due(0):
            self._unwatch()
            self._server._enqueue(self)
        elif self._keep and not self._ended:
            self._idle = not self._buffer
            limits = self._limits
            self._await(self._receive, limits.idle_seconds if self._idle else limits.request_seconds)
        else:
            self._farewell()

    def _farewell(self) -> None:
        """No more answers. Closing now would reset the connection if bytes have come that nobody
        read, and what is under way to the client would be lost with it."""
        self._sock.shutdown(socket.SHUT_WR)
        self._await(self._discard, self._limits.answer_seconds)

    def _discard(self) -> None:
        """The last answer has gone; the client may still send."""
        if not self._sock.recv(self._limits.request_bytes):
            self._server._loop.remove_reader(self._sock)
            self._leave()

    def _leave(self) -> None:
        """The client sends nothing more, but may still have to take something. The kernel does not
        tell when it has, so look again and again; the timer of `_await` ends that."""
        if self._sock.fileno() < 0:
            return
        if _untaken(self._sock):
            self._server._loop.call_later(LOOK_SECONDS, self._step, self._leave)
        else:
            self.close()


def _untaken(sock: socket.socket) -> int:
    """Bytes that the other side has not acknowledged (tcp(7), SIOCOUTQ)."""
    (size,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(size)


class _Head(NamedTuple):
    """A good request, and what the connection must know of it."""

    method: str
    request: Request
    keep: bool


class _RequestError(Exception):
    """The request cannot be answered, and nothing after it can be trusted."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.answer = _error(status, reason)


def _error(status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, TEXT, f"{status.value} {status.phrase}: {reason}\n".encode(), headers)


_NOT_FOUND: Final = _error(HTTPStatus.NOT_FOUND, "there is nothing here")
_METHOD_NOT_ALLOWED: Final = _error(
    HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", ("Allow", ", ".join(METHODS))
)
_INTERNAL_ERROR: Final = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "see the messages of the program")


def _parse(block: str) -> _Head:
    """Understand a header block (RFC 9112); raises _RequestError."""
    first, *lines = block.split("\r\n")
    line = REQUEST_LINE.fullmatch(first)
    if line is None:
        raise _RequestError(HTTPStatus.BAD_REQUEST, "not an HTTP request line")
    method, target, major, minor = line.groups()
    if major != "1":
        raise _RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.0 and HTTP/1.1")
    headers: dict[str, str] = {}
    for each in lines:
        header = HEADER.fullmatch(each)
        if header is None:
            raise _RequestError(HTTPStatus.BAD_REQUEST, "not a header line")
        name, value = header[1].lower(), header[2].strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if minor != "0" and "host" not in headers:
        raise _RequestError(HTTPStatus.BAD_REQUEST, "no Host header")
    if not HOST.fullmatch(headers.get("host", "")):
        raise _RequestError(HTTPStatus.BAD_REQUEST, "not one good Host header")
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
        raise _RequestError(HTTPStatus.BAD_REQUEST, "a request has no body here")
    if length.strip("0"):
        raise _RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request has no body here")
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    keep = "close" not in options and (minor != "0" or "keep-alive" in options)
    if method not in METHODS:  # their targets may be of other forms: `*`, `host:port`
        return _Head(method, Request(target, "", headers), keep)
    return _Head(method, Request(*_locate(target), headers), keep)


def _locate(target: str) -> tuple[str, str]:
    """Path and query of a request's target, which may be a whole URL (RFC 9112, 3.2.2)."""
    if authority := AUTHORITY.match(target):
        target = target[authority.end() :]
        if not target.startswith("/"):
            target = f"/{target}"
    if not target.startswith("/") or "#" in target or STRAY_PERCENT.search(target):
        raise _RequestError(HTTPStatus.BAD_REQUEST, "not a path")
    path, _, query = target.partition("?")
    try:
        return unquote(path, errors="strict"), query
    except UnicodeDecodeError:
        raise _RequestError(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from None


def _encode(answer: Answer, head: _Head | None) -> bytes:
    """The answer on the wire; `head` is None for a request that was refused."""
    body = answer.body
    status = HTTPStatus(answer.status)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Server: fastfwd",
        # In the C locale, which no part of the program changes.
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        f"Content-Type: {answer.content_type}",
        "Cache-Control: no-store",
        "Vary: Accept-Encoding",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in answer.headers),
    ]
    if len(body) >= COMPRESS_FROM and head and _wants_gzip(head.request.headers.get("accept-encoding", "")):
        body = zlib.compress(body, COMPRESSION, GZIP_FORMAT)
        lines.append("Content-Encoding: gzip")
    lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Connection: {'keep-alive' if head and head.keep else 'close'}")
    start = "\r\n".join(lines).encode("latin-1") + END
    return start if head and head.method == "HEAD" else start + body


def _wants_gzip(accepted: str) -> bool:
    """Whether gzip is acceptable and no worse than the plain body (RFC 9110, 12.5.3). An unreadable
    quality is 0."""
    qualities: dict[str, float] = {}
    for part in accepted.lower().split(","):
        coding, *parameters = [piece.strip() for piece in part.split(";")]
        weights = [QUALITY.fullmatch(parameter) for parameter in parameters]
        qualities[coding] = min((float(weight[1]) if weight else 0.0 for weight in weights), default=1.0)
    gzip = qualities.get("gzip", qualities.get("x-gzip", qualities.get("*", 0.0)))
    return gzip > 0 and gzip >= qualities.get("identity", qualities.get("*", 0.0))
