"""The exporter's HTTP server: what it answers, what it refuses, and what hostile clients cannot do to it."""

from __future__ import annotations

import asyncio
import errno
import gzip
import http.client
import itertools
import json
import logging
import os
import re
import resource
import select
import socket
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfwd.observe.http import Answer, HttpServer, Limits, Request
from tests import deadline
from tests.deadline import until
from tests.peers import require_peer
from tests.ports import free_port
from tests.sockets import PATIENCE, Address, queued, read_exactly, read_to_end

LARGE = 1_000_000
HUGE = 8_000_000
"""More than two kernels together take for a client that reads nothing."""

FLOOD = 500

GET = b"GET /small HTTP/1.1\r\nHost: exporter\r\n\r\n"
GET_LARGE = GET.replace(b"small", b"large")
GET_HUGE = GET.replace(b"small", b"huge")


def answer(request: Request) -> Answer | None:
    """What the servers here serve."""
    match request.path:
        case "/small" | "/":
            return Answer(200, "text/plain", b"small", (("X-Mark", "kept"),))
        case "/large":
            return Answer(200, "text/plain", bytes(LARGE))
        case "/huge":
            return Answer(200, "text/plain", bytes(HUGE))
        case "/just-below":
            return Answer(200, "text/plain", b"x" * 1023)
        case "/compressible":
            return Answer(200, "text/plain", b"x" * 1024)
        case "/fails":
            raise RuntimeError("a secret")
        case "/not-an-answer":
            return Answer(999, "text/plain", b"")
        case path if path.startswith("/request"):
            return Answer(200, "application/json", json.dumps(request).encode())
        case _:
            return None


class Running:
    """A server in a thread of the test. Leaving it fails if asyncio had something to complain
    about, or if the program would have said something that the test did not `hear`."""

    def __init__(self, serve: Callable[[Request], Answer | None] = answer, **limits: float) -> None:
        self.server = HttpServer(serve, Limits(**limits))  # type: ignore[arg-type]
        self.complaints: list[dict[str, object]] = []
        self.messages: list[logging.LogRecord] = []
        self.handler = logging.Handler()
        self.handler.emit = self.note  # type: ignore[method-assign]
        logging.getLogger("fastfwd").addHandler(self.handler)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, complaint: self.complaints.append(complaint))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.address: Address = self.listen()

    def listen(self) -> Address:
        """Listen on another port."""
        sock = listener()
        address: Address = sock.getsockname()
        self.run(self.listen_on(sock))
        return address

    async def listen_on(self, sock: socket.socket) -> None:
        """Listen on `sock`, in its loop."""
        self.server.listen(sock)

    def run(self, coroutine: object) -> None:
        """Run a coroutine in the server's loop to its end."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)  # type: ignore[arg-type, var-annotated]
        future.result(deadline.seconds(10))

    def note(self, record: logging.LogRecord) -> None:
        """Keep a message of this server; others run beside it."""
        if record.thread == self.thread.ident:
            self.messages.append(record)

    def hear(self, count: int = 1) -> list[str]:
        """Wait for `count` messages of the program, and take them."""
        until(lambda: len(self.messages) >= count, what="messages")
        heard = [record.getMessage() for record in self.messages]
        self.messages.clear()
        return heard

    async def stop(self) -> None:
        """Close the server, in its loop."""
        self.server.close()

    def close(self) -> None:
        """End it and judge it."""
        self.run(self.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(deadline.seconds(10))
        self.loop.close()
        logging.getLogger("fastfwd").removeHandler(self.handler)
        assert not self.complaints
        assert not [record.getMessage() for record in self.messages]


def listener() -> socket.socket:
    """A listening socket, as the exporter gets it."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", free_port()))
    sock.listen(1024)
    sock.setblocking(False)
    return sock


@dataclass(frozen=True)
class Reply:
    """One answer as a client saw it; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A client that says exactly what it is told to, over TCP or to an AF_UNIX socket's path; `how`
    is how its connection ended."""

    def __init__(self, address: Address | Path, data: bytes = b"", *, receive_buffer: int = 0) -> None:
        unix = isinstance(address, Path)
        self.sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        self.sock.settimeout(deadline.seconds(PATIENCE))
        if not unix:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(str(address) if isinstance(address, Path) else address)
        except BaseException:
            self.sock.close()
            raise
        if data:
            self.send(data)

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def send_if_open(self, data: bytes) -> bool:
        """Send; false if the server has ended the connection."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def finish(self) -> Client:
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reply(self, *, head: bool = False) -> Reply:
        """The next answer; with `head` to a HEAD request."""
        start = b""
        while not start.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, f"ended within {start!r}"
            start += byte
        status, headers = parse_start(start)
        size = 0 if head else int(headers["content-length"])
        body = read_exactly(self.sock, size)
        assert len(body) == size
        return Reply(status, headers, body)

    @property
    def how(self) -> str:
        """How the connection ends, after whatever comes before that."""
        return read_to_end(self.sock).how

    def failed(self) -> bool:
        """Whether the connection has been reset, without reading from it."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))

    def close(self) -> None:
        self.sock.close()


def parse_start(start: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer; fails on anything odd."""
    first, *lines = start.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [A-Z][A-Za-z -]+", first)
    assert match, first
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    return int(match[1]), headers


def replies(data: bytes) -> list[Reply]:
    """The answers in a stream, none of them to HEAD; fails on anything else in it."""
    found = []
    while data:
        start, end, rest = data.partition(b"\r\n\r\n")
        assert end, data
        status, headers = parse_start(start + end)
        size = int(headers["content-length"])
        assert len(rest) >= size
        found.append(Reply(status, headers, rest[:size]))
        data = rest[size:]
    return found


Serve = Callable[..., Running]
Connect = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Call it with an answer and limits, or nothing; gives a running server."""
    with ExitStack() as stack:

        def start(served: Callable[[Request], Answer | None] = answer, **limits: float) -> Running:
            running = Running(served, **limits)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def client() -> Iterator[Connect]:
    """Call it with the arguments of `Client`; all of them are closed."""
    with ExitStack() as stack:

        def connect(to: Running | Address | Path, data: bytes = b"", **options: int) -> Client:
            connected = Client(to.address if isinstance(to, Running) else to, data, **options)
            stack.callback(connected.close)
            return connected

        yield connect


@pytest.fixture(scope="module")
def steady() -> Iterator[Running]:
    """One server for the tests that only ask."""
    running = Running()
    yield running
    running.close()


def ask(running: Running, data: bytes) -> list[Reply]:
    """Send `data` and the FIN; all answers."""
    asking = Client(running.address)
    try:
        if asking.send_if_open(data):
            try:
                asking.finish()
            except OSError:  # the server was faster
                pass
        return replies(read_to_end(asking.sock).data)
    finally:
        asking.close()


def get(running: Running, path: str = "/small", **headers: str) -> Reply:
    """A good request's answer."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    (reply,) = ask(running, f"GET {path} HTTP/1.1\r\nHost: exporter\r\n{lines}\r\n".encode())
    return reply


# What is answered.


def test_a_get_has_its_answer(steady: Running) -> None:
    """Status, type, body and the answer's own headers arrive."""
    reply = get(steady)
    found = (reply.status, reply.headers["content-type"], reply.body, reply.headers["x-mark"])
    assert found == (200, "text/plain", b"small", "kept")


@pytest.mark.parametrize("path", ["/small", "/nothing", "/fails"])
def test_every_answer_says_how_to_treat_it(steady: Running, path: str) -> None:
    """The headers that hold for all of them."""
    headers = get(steady, path).headers
    steady.messages.clear()
    assert headers["server"] == "fastfwd"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["vary"] == "Accept-Encoding"


def test_a_refusal_says_how_to_treat_it_too(steady: Running) -> None:
    """A malformed request's answer has the same headers."""
    (reply,) = ask(steady, b"nonsense\r\n\r\n")
    assert {"server", "date", "cache-control", "x-content-type-options", "vary"} <= set(reply.headers)


def test_the_date_is_http_s(steady: Running) -> None:
    """Date is in the one form that HTTP allows, in GMT."""
    date = get(steady).headers["date"]
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert parsedate_to_datetime(date).strftime("%a, %d %b %Y %H:%M:%S GMT") == date


@pytest.mark.parametrize("path", ["small", "large", "compressible", "nothing"])
def test_head_has_the_headers_of_get_and_no_body(serve: Serve, client: Connect, path: str) -> None:
    """Content-Length is that of the body GET would have."""
    running = serve()
    request = f"GET /{path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n".encode()
    asking = client(running, request.replace(b"GET", b"HEAD"))
    head = asking.reply(head=True)
    full = asking.send(request).reply()
    head.headers.pop("date")
    full.headers.pop("date")
    assert (head.status, head.headers) == (full.status, full.headers)


def test_an_unknown_path_is_not_found(steady: Running) -> None:
    """None from the answer function is 404."""
    assert get(steady, "/nothing").status == 404


def test_an_unknown_path_keeps_the_connection(serve: Serve, client: Connect) -> None:
    """404 is an answer like any other."""
    asking = client(serve(), GET.replace(b"small", b"nothing"))
    assert asking.reply().headers["connection"] == "keep-alive"
    assert asking.send(GET).reply().status == 200


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/request", "/request", ""),
        ("/request?a=%20b&c", "/request", "a=%20b&c"),
        ("/request?a?b", "/request", "a?b"),
        ("/request%2Fx%c3%bc", "/request/xü", ""),
        ("//request", None, None),
        ("http://exporter/request?q", "/request", "q"),
        ("HTTPS://exporter:1234/request", "/request", ""),
        ("/request/../x", "/request/../x", ""),
    ],
)
def test_the_target_is_understood(steady: Running, target: str, path: str | None, query: str | None) -> None:
    """Paths are decoded and separated from the query, of whole URLs too."""
    reply = get(steady, target)
    if path is None:
        assert reply.status == 404
    else:
        assert json.loads(reply.body)[:2] == [path, query]


def test_a_url_without_a_path_is_the_root(steady: Running) -> None:
    """http://host means http://host/."""
    assert get(steady, "http://exporter").body == b"small"


def test_header_names_are_lower_case_and_values_bare(steady: Running) -> None:
    """The answer function looks headers up by their lower-case names."""
    reply = get(steady, "/request", ACCEPT=" \ttext/html \t")
    assert json.loads(reply.body)[2] == {"host": "exporter", "accept": "text/html"}


def test_a_repeated_header_is_joined(steady: Running) -> None:
    """Two Accept lines are one list (RFC 9110, 5.3)."""
    reply = get(steady, "/request", Accept="a", ACCEPT="b")
    assert json.loads(reply.body)[2]["accept"] == "a, b"


def test_empty_lines_before_a_request_are_ignored(steady: Running) -> None:
    """RFC 9112, 2.2."""
    assert [reply.status for reply in ask(steady, b"\r\n\r\n" + GET)] == [200]


# Keeping connections.


def test_requests_follow_each_other_on_a_connection(serve: Serve, client: Connect) -> None:
    """HTTP/1.1 keeps the connection."""
    asking = client(serve())
    found = [asking.send(GET).reply() for _ in range(3)]
    assert {(reply.status, reply.headers["connection"]) for reply in found} == {(200, "keep-alive")}


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (b"GET /small HTTP/1.0\r\n\r\n", False),
        (b"GET /small HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET /small HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", False),
        (b"GET /small HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n\r\n", False),
        (b"GET /small HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n\r\n", False),
        (b"GET /small HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n", True),
        (b"GET /small HTTP/1.2\r\nHost: a\r\n\r\n", True),
    ],
)
def test_the_client_says_whether_to_keep(serve: Serve, client: Connect, request_: bytes, kept: bool) -> None:
    """Connection and the version decide, and the answer says so."""
    asking = client(serve(), request_)
    assert asking.reply().headers["connection"] == ("keep-alive" if kept else "close")
    if kept:
        assert asking.send(GET).reply().status == 200
    else:
        assert asking.how == "EOF"


def test_pipelined_requests_are_answered_in_order(steady: Running) -> None:
    """Many requests in one packet, of which some are refused for what they ask."""
    paths = [f"/request/{number}" for number in range(50)]
    data = b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths)
    assert [json.loads(reply.body)[0] for reply in ask(steady, data)] == paths


def test_a_pipeline_is_answered_across_large_answers(steady: Running) -> None:
    """What the kernel does not take at once holds up the next answer, and loses nothing."""
    found = ask(steady, GET_LARGE + GET + GET_HUGE + GET)
    assert [len(reply.body) for reply in found] == [LARGE, 5, HUGE, 5]


def test_a_pipeline_longer_than_the_buffer_is_answered(steady: Running) -> None:
    """The limit is for one request, not for what waits behind it."""
    count = 40_000 // len(GET)
    assert len(ask(steady, GET * count)) == count


def test_nothing_is_answered_after_close(steady: Running) -> None:
    """Requests behind `Connection: close` are thrown away."""
    data = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET
    assert len(ask(steady, data)) == 1


@pytest.mark.parametrize("place", [1, 5, len(GET) - 3, len(GET) - 2, len(GET) - 1])
def test_a_request_may_come_in_pieces(serve: Serve, client: Connect, place: int) -> None:
    """They are put together, its end too."""
    running = serve()
    asking = client(running, GET[:place])
    get(running)  # its turn came after that of the first piece
    assert asking.send(GET[place:]).reply().status == 200


def test_a_client_that_has_finished_gets_its_whole_answer(serve: Serve, client: Connect) -> None:
    """A FIN behind the request does not cut the answer off."""
    asking = client(serve(), GET_HUGE).finish()
    ending = read_to_end(asking.sock)
    assert (ending.how, len(replies(ending.data)[0].body)) == ("EOF", HUGE)


def test_a_client_that_goes_silently_is_no_matter(serve: Serve, client: Connect) -> None:
    """Connections that end without a request, or within a large answer, leave no message."""
    running = serve()
    client(running).close()
    client(running, GET_HUGE, receive_buffer=4096).close()
    client(running, GET[:20]).close()
    assert get(running).status == 200


# Compression.


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("gzip ; q=0.5 , identity;q=0.5", True),
        ("br, gzip", True),
        ("", False),
        ("identity", False),
        ("deflate, br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=0.5, identity", False),
        ("gzip;q=0.5, *;q=1", False),
        ("gzip;q=high", False),
        ("gzip;q=2", False),
        ("gzip;q=nan", False),
        (",;=,;q=1;", False),
    ],
)
def test_gzip_is_negotiated(steady: Running, accepted: str, compressed: bool) -> None:
    """Only who takes gzip, and does not like the plain body better, gets it."""
    reply = get(steady, "/compressible", Accept_Encoding=accepted)
    assert (reply.headers.get("content-encoding") == "gzip") is compressed
    assert (gzip.decompress(reply.body) if compressed else reply.body) == b"x" * 1024


def test_a_short_body_is_not_compressed(steady: Running) -> None:
    """Below 1 KiB there is nothing to win."""
    assert "content-encoding" not in get(steady, "/just-below", Accept_Encoding="gzip").headers


# What is refused.

HOST = b"\r\nHost: a\r\n"

MALFORMED = {
    "no version (HTTP/0.9)": b"GET /small\r\n\r\n",
    "two spaces": b"GET  /small HTTP/1.1" + HOST,
    "a space in the target": b"GET /small /x HTTP/1.1" + HOST,
    "a tab for a space": b"GET\t/small HTTP/1.1" + HOST,
    "a vertical tab for a space": b"GET\x0b/small HTTP/1.1" + HOST,
    "no method": b" /small HTTP/1.1" + HOST,
    "a method that is no token": b"G(T /small HTTP/1.1" + HOST,
    "a small http": b"GET /small http/1.1" + HOST,
    "a long version": b"GET /small HTTP/1.10" + HOST,
    "a target without a slash": b"GET small HTTP/1.1" + HOST,
    "a target of another scheme": b"GET ftp://a/small HTTP/1.1" + HOST,
    "a target of only a scheme": b"GET http:///small HTTP/1.1" + HOST,
    "an asterisk to GET": b"GET * HTTP/1.1" + HOST,
    "a fragment": b"GET /small#x HTTP/1.1" + HOST,
    "a letter above ASCII in the target": b"GET /sm\xe4ll HTTP/1.1" + HOST,
    "a stray percent": b"GET /small% HTTP/1.1" + HOST,
    "a percent with half a number": b"GET /small%4 HTTP/1.1" + HOST,
    "a percent with no number": b"GET /small?%zz HTTP/1.1" + HOST,
    "a path that is not UTF-8": b"GET /small%ff HTTP/1.1" + HOST,
    "a bare LF": b"GET /small HTTP/1.1\nHost: a\n\n",
    "one bare LF": b"GET /small HTTP/1.1\r\nHost: a\nX: y\r\n",
    "a bare CR": b"GET /small HTTP/1.1\r\nHost: a\rX: y\r\n",
    "a second CR at the end": b"GET /small HTTP/1.1\r\nHost: a\r\nX: y\r\r\n",
    "a second CR at the very end": b"GET /small HTTP/1.1\r\nHost: a\r\n\r\r\n",
    "NUL in a header": b"GET /small HTTP/1.1\r\nHost: a\0b\r\n",
    "NUL in the target": b"GET /small\0 HTTP/1.1" + HOST,
    "an escape in a header": b"GET /small HTTP/1.1" + HOST + b"X: \x1b[2J\r\n",
    "DEL in a header": b"GET /small HTTP/1.1" + HOST + b"X: \x7f\r\n",
    "a folded header": b"GET /small HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n",
    "a folded first header": b"GET /small HTTP/1.1\r\n Host: a\r\n",
    "a header without a colon": b"GET /small HTTP/1.1\r\nHost: a\r\nX\r\n",
    "a header without a name": b"GET /small HTTP/1.1\r\nHost: a\r\n: x\r\n",
    "a space before the colon": b"GET /small HTTP/1.1\r\nHost : a\r\n",
    "a header name that is no token": b"GET /small HTTP/1.1\r\nHost: a\r\nX@: y\r\n",
    "a header name above ASCII": b"GET /small HTTP/1.1\r\nHost: a\r\nX\xb2: y\r\n",
    "no Host": b"GET /small HTTP/1.1\r\n",
    "two Hosts": b"GET /small HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
    "two Hosts in HTTP/1.0": b"GET /small HTTP/1.0\r\nHost: a\r\nHost: a\r\n",
    "two Hosts in one": b"GET /small HTTP/1.1\r\nHost: a, b\r\n",
    "a Host with a user": b"GET /small HTTP/1.1\r\nHost: u@a\r\n",
    "a Host with a path": b"GET /small HTTP/1.1\r\nHost: a/b\r\n",
}
"""What is wrong -> the request, without the empty line at its end."""


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_refused(serve: Serve, client: Connect, data: bytes) -> None:
    """400 with a reason in one line of text, and the connection ends."""
    asking = client(serve(), data + b"\r\n")
    reply = asking.reply()
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert reply.headers["content-type"].startswith("text/plain")
    assert re.fullmatch(rb"400 Bad Request: [ -~]+\n", reply.body)
    assert asking.how == "EOF"


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /small HTTP/1.1\nHost: a\n\n", b"G\0"]
)
def test_what_cannot_become_a_request_is_not_waited_for(serve: Serve, client: Connect, data: bytes) -> None:
    """A TLS greeting, or lines that end in LF, have their 400 before the time is over."""
    assert client(serve(request_seconds=3600.0), data).reply().status == 400


def test_a_request_that_is_cut_off_is_malformed(steady: Running) -> None:
    """The client's FIN within the headers."""
    assert [reply.status for reply in ask(steady, GET[:-2])] == [400]


def test_http_2_is_a_version_we_do_not_speak(serve: Serve, client: Connect) -> None:
    """The preface of a client that takes HTTP/2 for granted."""
    reply = client(serve(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)).reply()
    assert (reply.status, reply.headers["connection"]) == (505, "close")


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"3.0"])
def test_an_unknown_version_is_refused(steady: Running, version: bytes) -> None:
    """Only HTTP/1 is spoken."""
    assert [reply.status for reply in ask(steady, GET.replace(b"1.1", version))] == [505]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "get", "ANY"])
def test_other_methods_are_not_allowed(steady: Running, method: str) -> None:
    """405 says which are."""
    (reply,) = ask(steady, GET.replace(b"GET", method.encode()))
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("line", [b"OPTIONS * HTTP/1.1", b"CONNECT a:80 HTTP/1.1"])
def test_other_methods_have_other_targets(steady: Running, line: bytes) -> None:
    """Targets that are no paths do not make them malformed."""
    assert [reply.status for reply in ask(steady, line + HOST + b"\r\n")] == [405]


def test_http_1_0_needs_no_host(steady: Running) -> None:
    """Host came with HTTP/1.1."""
    assert [reply.status for reply in ask(steady, b"GET /small HTTP/1.0\r\n\r\n")] == [200]


def padded(size: int) -> bytes:
    """A good request of exactly `size` bytes."""
    start = GET[:-2] + b"X: "
    return start + b"x" * (size - len(start) - 4) + b"\r\n\r\n"


def test_headers_up_to_the_limit_are_read(steady: Running) -> None:
    """8 KiB together with the request line and the empty line."""
    assert [reply.status for reply in ask(steady, padded(8192))] == [200]


def test_longer_headers_are_refused(serve: Serve, client: Connect) -> None:
    """One byte more is 431, and the connection ends."""
    asking = client(serve(), padded(8193))
    assert asking.reply().status == 431
    assert asking.how == "EOF"


def test_a_longer_target_is_refused(serve: Serve, client: Connect) -> None:
    """When the request line alone is too long it is 414."""
    assert client(serve(), b"GET /" + b"x" * 8192).reply().status == 414


def test_a_refusal_survives_what_the_client_still_sends(serve: Serve, client: Connect) -> None:
    """The answer is not lost in a reset because bytes behind it were not read."""
    asking = client(serve(), padded(2_000_000))
    ending = read_to_end(asking.sock)
    assert ([reply.status for reply in replies(ending.data)], ending.how) == ([431], "EOF")


def test_many_short_headers_are_read(steady: Running) -> None:
    """The limit is in bytes only."""
    assert [reply.status for reply in ask(steady, GET[:-2] + b"a:\r\n" * 2000 + b"\r\n")] == [200]


SMUGGLED = b"GET /request/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

BODIES = {
    "length": (b"Content-Length: %d\r\n" % len(SMUGGLED), 413),
    "long length": (b"Content-Length: " + b"9" * 5000 + b"\r\n", 413),
    "length with zeros": (b"Content-Length: 0000005\r\n", 413),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 5\r\n", 400),
    "a list of lengths": (b"Content-Length: 0, 5\r\n", 400),
    "signed length": (b"Content-Length: +5\r\n", 400),
    "negative length": (b"Content-Length: -5\r\n", 400),
    "hexadecimal length": (b"Content-Length: 0x5\r\n", 400),
    "superscript length": (b"Content-Length: \xb2\r\n", 400),
    "empty length": (b"Content-Length:\r\n", 400),
    "chunked": (b"Transfer-Encoding: chunked\r\n", 400),
    "odd coding": (b"Transfer-Encoding: x\r\n", 400),
    "empty coding": (b"Transfer-Encoding:\r\n", 400),
    "chunked and length": (b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", 400),
    "length before the colon": (b"Content-Length : 5\r\n", 400),
    "length behind a line without a colon": (b"X\r\nContent-Length: 5\r\n", 400),
    "length behind a fold": (b"X: y\r\n z\r\nContent-Length: 5\r\n", 400),
    "length behind a bare CR": (b"X: y\rContent-Length: 5\r\n", 400),
    "expected length": (b"Expect: 100-continue\r\nContent-Length: 5\r\n", 413),
}
"""What announces a body -> the header lines, the status."""


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize(("lines", "status"), BODIES.values(), ids=BODIES)
def test_a_body_is_never_the_next_request(steady: Running, lines: bytes, status: int, method: bytes) -> None:
    """A request that may have a body is refused, and nothing behind it is read."""
    data = GET.replace(b"GET", method)[:-2] + lines + b"\r\n" + SMUGGLED
    assert [reply.status for reply in ask(steady, data)] == [status]


@pytest.mark.parametrize("length", [b"0", b"000"])
def test_an_empty_body_is_none(steady: Running, length: bytes) -> None:
    """Content-Length: 0 is what it says."""
    data = GET[:-2] + b"Content-Length: " + length + b"\r\n\r\n"
    assert [reply.status for reply in ask(steady, data + GET)] == [200, 200]


# Answers that fail.


def test_an_exception_is_500_and_a_message(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    """The operator is told by the program's own messages; nothing goes to stderr past them."""
    running = serve()
    assert get(running, "/fails").status == 500
    assert running.messages[0].exc_info
    assert running.hear() == ["metrics: no answer to '/fails'"]
    assert capfd.readouterr().err == ""


def test_an_exception_is_not_shown_to_the_client(serve: Serve) -> None:
    """Nothing of it is in the answer."""
    running = serve()
    reply = get(running, "/fails")
    running.hear()
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body


def test_an_answer_that_cannot_be_sent_is_500(serve: Serve) -> None:
    """A status that does not exist."""
    running = serve()
    assert get(running, "/not-an-answer").status == 500
    running.hear()


def test_a_message_quotes_what_the_client_said(serve: Serve) -> None:
    """A path with line ends cannot write lines of its own."""

    def fail(_: Request) -> Answer | None:
        raise RuntimeError

    running = serve(fail)
    get(running, "/a%0Ab")
    assert running.hear() == ["metrics: no answer to '/a\\nb'"]


# Time.


def test_a_silent_client_is_not_waited_for(serve: Serve, client: Connect) -> None:
    """A connection without a request ends."""
    assert client(serve(request_seconds=0.1)).how == "EOF"


def test_a_byte_now_and_then_does_not_help(serve: Serve, client: Connect) -> None:
    """The time is for the whole request."""
    asking = client(serve(request_seconds=0.3), GET[:-4] + b"\r\nX: ")
    until(lambda: not asking.send_if_open(b"x"), 10, "the connection ended")


def test_empty_lines_do_not_help(serve: Serve, client: Connect) -> None:
    """What is ignored does not make the time begin again."""
    asking = client(serve(request_seconds=0.3))
    until(lambda: not asking.send_if_open(b"\r\n"), 10, "the connection ended")


def test_an_idle_connection_ends(serve: Serve, client: Connect) -> None:
    """After an answer there is a time for the next request."""
    asking = client(serve(request_seconds=3600.0, idle_seconds=0.1), GET)
    assert asking.reply().status == 200
    assert asking.how == "EOF"


def test_an_idle_connection_has_its_own_time(serve: Serve, client: Connect) -> None:
    """The time for a request does not run between requests."""
    running = serve(request_seconds=0.2)
    asking = client(running, GET)
    asking.reply()
    assert client(running).how == "EOF"
    assert asking.send(GET).reply().status == 200


@pytest.mark.parametrize("begun", [b"G", b"\r\n"])
def test_the_first_byte_of_the_next_request_starts_its_time(
    serve: Serve, client: Connect, begun: bytes
) -> None:
    """A kept connection gives nobody more time."""
    asking = client(serve(request_seconds=0.1, idle_seconds=3600.0), GET)
    asking.reply()
    assert asking.send(begun).how == "EOF"


def test_a_request_begun_behind_another_has_its_time(serve: Serve, client: Connect) -> None:
    """Half a request that came together with a whole one is not idle."""
    asking = client(serve(request_seconds=0.1, idle_seconds=3600.0), GET + GET[:10])
    asking.reply()
    assert asking.how == "EOF"


def test_an_answer_that_is_not_taken_ends_the_connection(serve: Serve, client: Connect) -> None:
    """A client that does not read is reset."""
    asking = client(serve(answer_seconds=0.1), GET_HUGE, receive_buffer=4096)
    until(asking.failed, 10, "a reset")


def test_taking_a_little_now_and_then_does_not_help(serve: Serve, client: Connect) -> None:
    """The time is for the whole answer."""
    asking = client(serve(answer_seconds=0.3), GET_HUGE, receive_buffer=4096)
    taken = bytearray()

    def take() -> bool:
        try:
            taken.extend(asking.sock.recv(1024))
        except ConnectionResetError:
            return True
        return False

    until(take, 10, "a reset")
    assert len(taken) < HUGE


def test_a_client_that_has_finished_and_takes_nothing_is_reset(serve: Serve, client: Connect) -> None:
    """The kernel is not left with an answer that nobody takes: this one fits into its buffer."""

    def medium(_: Request) -> Answer | None:
        return Answer(200, "text/plain", bytes(100_000))

    asking = client(serve(medium, answer_seconds=0.3), GET, receive_buffer=4096).finish()
    until(asking.failed, 10, "a reset")


def test_a_client_that_never_closes_is_left(serve: Serve, client: Connect) -> None:
    """After the last answer there is a time for the client to close."""
    asking = client(serve(answer_seconds=0.2), b"GET /small HTTP/1.0\r\n\r\n")
    asking.reply()
    until(lambda: not asking.send_if_open(b"x"), 10, "the connection ended")


# Numbers.


def test_the_one_that_has_waited_longest_makes_room(serve: Serve, client: Connect) -> None:
    """A newcomer is served, and the oldest half-open connection ends for it."""
    running = serve(connections=3)
    oldest, *others = [client(running, GET[:10]) for _ in range(3)]
    newcomer = client(running, GET)
    assert newcomer.reply().status == 200
    assert oldest.how in {"EOF", "ECONNRESET"}
    assert [other.send(GET[10:]).reply().status for other in others] == [200, 200]


def test_a_byte_does_not_make_a_client_younger(serve: Serve, client: Connect) -> None:
    """Who drips its request is still the oldest."""
    running = serve(connections=2)
    oldest = client(running, GET[:10])
    other = client(running, GET[:10])
    oldest.send(GET[10:12])
    assert client(running, GET).reply().status == 200
    assert oldest.how in {"EOF", "ECONNRESET"}
    assert other.send(GET[10:]).reply().status == 200


def test_an_answer_makes_a_client_younger(serve: Serve, client: Connect) -> None:
    """Who was answered last has waited for the shortest time."""
    running = serve(connections=2)
    scraper = client(running, GET)
    scraper.reply()
    silent = client(running)
    scraper.send(GET).reply()
    assert client(running, GET).reply().status == 200
    assert silent.how in {"EOF", "ECONNRESET"}
    assert scraper.send(GET).reply().status == 200


def test_who_waits_for_us_is_never_dropped(serve: Serve, client: Connect) -> None:
    """Whole requests are all answered, however many come while we are busy."""
    busy, released = threading.Event(), threading.Event()

    def slow(request: Request) -> Answer | None:
        if request.path == "/slow":
            busy.set()
            released.wait(deadline.seconds(20))
        return answer(request)

    running = serve(slow, connections=4)
    first = client(running, GET.replace(b"small", b"slow"))
    assert busy.wait(deadline.seconds(10))
    others = [client(running, GET) for _ in range(40)]
    released.set()
    assert first.reply().status == 404
    assert [other.reply().status for other in others] == [200] * 40


def test_the_kernel_is_not_left_to_hold_large_answers(serve: Serve, client: Connect) -> None:
    """1 MB does not vanish in the kernel's buffers, which it would without SEND_BUFFER: with room
    for one such answer, the second one ends the first."""
    running = serve(answers=1)
    first = client(running, GET_LARGE, receive_buffer=4096)
    second = client(running, GET_LARGE, receive_buffer=4096)
    until(first.failed, 10, "a reset")
    assert not second.failed()


def test_taking_a_part_makes_a_client_younger(serve: Serve, client: Connect) -> None:
    """Who reads a long answer is not the oldest, although it came first."""
    running = serve(connections=2)
    reading = client(running, GET_HUGE, receive_buffer=4096)
    begun(reading)
    silent = client(running, GET)
    silent.reply()
    taken = read_exactly(reading.sock, HUGE // 2)  # more than the kernel held: it has gone on since
    assert client(running, GET).reply().status == 200
    assert silent.how in {"EOF", "ECONNRESET"}
    (reply,) = replies(taken + read_exactly(reading.sock, reading_left(taken)))
    assert len(reply.body) == HUGE


def begun(asking: Client) -> None:
    """Wait until its answer has begun to arrive."""
    poll = select.poll()  # not select(2): a long test run has more than 1024 descriptors
    poll.register(asking.sock, select.POLLIN)
    until(lambda: poll.poll(0), 10, "an answer")


def reading_left(taken: bytes) -> int:
    """How many bytes of a HUGE answer come after `taken`, its beginning."""
    return HUGE - len(taken.partition(b"\r\n\r\n")[2])


def test_the_answer_without_progress_makes_room(serve: Serve, client: Connect) -> None:
    """Who reads keeps its answer, who does not loses it."""
    running = serve(answers=2)
    reading = client(running, GET_HUGE, receive_buffer=4096)
    silent = client(running, GET_HUGE, receive_buffer=4096)
    begun(silent)
    taken = read_exactly(reading.sock, HUGE // 2)
    newcomer = client(running, GET_HUGE)
    assert len(newcomer.reply().body) == HUGE
    assert silent.failed()
    (reply,) = replies(taken + read_exactly(reading.sock, reading_left(taken)))
    assert len(reply.body) == HUGE


# Floods.


@pytest.fixture
def flood(client: Connect) -> Callable[..., list[Client]]:
    """Call it for FLOOD connections that have sent something."""

    def begin(running: Running, data: bytes) -> list[Client]:
        return [client(running, data, receive_buffer=4096) for _ in range(FLOOD)]

    return begin


Flood = Callable[[Running, bytes], list[Client]]


def test_silent_clients_shut_nobody_out(serve: Serve, flood: Flood) -> None:
    """500 connections that send nothing."""
    running = serve()
    flood(running, b"")
    assert get(running).status == 200


def test_half_open_requests_shut_nobody_out(serve: Serve, flood: Flood) -> None:
    """500 requests that grow by a byte now and then (slowloris)."""
    running = serve()
    clients = flood(running, GET[:-2] + b"X: ")
    found = []
    for _ in range(5):
        for each in clients:
            each.send_if_open(b"x")
        found.append(get(running, "/large").status)
    assert found == [200] * 5


def test_clients_that_do_not_read_shut_nobody_out(serve: Serve, flood: Flood) -> None:
    """500 requests for 1 MB that nobody takes."""
    running = serve()
    flood(running, GET_LARGE)
    assert len(get(running, "/large").body) == LARGE


def test_a_reader_is_not_shut_out_while_others_begin(serve: Serve, client: Connect) -> None:
    """Who reads steadily gets its answer although 30 that do not read ask meanwhile."""
    running = serve()
    reading = client(running, GET_HUGE, receive_buffer=4096)
    taken = b""
    for _ in range(30):
        taken += read_exactly(reading.sock, HUGE // 40)
        begun(client(running, GET_HUGE, receive_buffer=4096))
    (reply,) = replies(taken + read_exactly(reading.sock, reading_left(taken)))
    assert len(reply.body) == HUGE


def test_a_flood_costs_bounded_memory(serve: Serve, flood: Flood) -> None:
    """500 answers of 1 MB that nobody takes are never kept at the same time."""
    running = serve()
    tracemalloc.start()
    try:
        flood(running, GET_LARGE)
        get(running)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * LARGE


def test_an_answer_that_was_taken_costs_nothing(serve: Serve, client: Connect) -> None:
    """Idle connections do not keep the answers they had."""
    running = serve()
    tracemalloc.start()
    try:
        for _ in range(30):
            client(running, GET_LARGE).reply()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3 * LARGE


def test_half_open_requests_cost_bounded_memory(serve: Serve, flood: Flood) -> None:
    """500 requests of almost 8 KiB without an end."""
    running = serve()
    tracemalloc.start()
    try:
        flood(running, padded(8192)[:-4])
        get(running)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


def test_a_flood_that_goes_leaves_nothing(serve: Serve, flood: Flood) -> None:
    """When the clients have gone, the server holds no connection."""
    running = serve()
    for each in flood(running, GET):
        each.close()
    server = running.server
    until(lambda: not (server._waiting or server._ready or server._sending), 10, "no connections")


# Listening.


def test_without_descriptors_accepting_pauses(
    serve: Serve, client: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    """EMFILE is one message, no traceback, and who waits is served when there is room again."""
    running = serve(accept_seconds=0.05)
    kept = client(running, GET)
    kept.reply()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as waiting:
        waiting.settimeout(deadline.seconds(PATIENCE))
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no new one; open ones stay
        try:
            waiting.connect(running.address)
            waiting.sendall(GET)
            until(lambda: running.messages, 10, "a message")
            assert kept.send(GET).reply().status == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        waiting.shutdown(socket.SHUT_WR)
        (reply,) = replies(read_to_end(waiting).data)
    assert reply.status == 200
    assert running.hear() == ["metrics: cannot accept: Too many open files"]
    assert capfd.readouterr().err == ""


class Exhausted(socket.socket):
    """A listening socket on a machine without descriptors."""

    tried = 0

    def accept(self) -> tuple[socket.socket, Address]:
        """What accept(2) says then."""
        self.tried += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def exhausted(running: Running) -> Exhausted:
    """Make `running` listen on a socket that cannot accept the client that waits in its queue."""
    sock = Exhausted()
    sock.bind(("127.0.0.1", free_port()))
    sock.listen()
    sock.setblocking(False)
    running.address = sock.getsockname()
    running.run(running.listen_on(sock))
    return sock


def test_lasting_trouble_is_said_once(serve: Serve, client: Connect) -> None:
    """However often accepting fails."""
    running = serve(accept_seconds=0.01)
    sock = exhausted(running)
    client(running)
    until(lambda: sock.tried > 5, 10, "attempts")
    assert running.hear() == ["metrics: cannot accept: Too many open files"]


def test_trouble_does_not_spin(serve: Serve, client: Connect) -> None:
    """There is a pause between two attempts, in which the others are served."""
    running = serve(accept_seconds=3600.0)
    kept = client(running, GET)
    kept.reply()
    sock = exhausted(running)
    client(running)
    running.hear()
    for _ in range(20):
        kept.send(GET).reply()
    assert sock.tried == 1


def test_trouble_ends_with_another_listener(serve: Serve, client: Connect) -> None:
    """A new listener is served at once, although the old one pauses."""
    running = serve(accept_seconds=3600.0)
    exhausted(running)
    client(running)
    running.hear()
    running.address = running.listen()
    assert get(running).status == 200


def test_a_pause_that_ends_after_the_listener_is_no_matter(serve: Serve, client: Connect) -> None:
    """What was paused has been closed meanwhile."""
    running = serve(accept_seconds=0.05, request_seconds=0.2)
    exhausted(running)
    client(running)
    running.hear()
    running.address = running.listen()
    assert client(running).how == "EOF"  # later than the end of the pause


def test_another_listener_takes_over(serve: Serve, client: Connect) -> None:
    """The new address is served, the old one refuses."""
    running = serve()
    old, running.address = running.address, running.listen()
    assert get(running).status == 200
    with pytest.raises(ConnectionRefusedError):
        client(old)


def test_open_connections_survive_another_listener(serve: Serve, client: Connect) -> None:
    """A kept connection goes on after the listener it came through is closed."""
    running = serve()
    asking = client(running, GET)
    asking.reply()
    running.listen()
    assert asking.send(GET).reply().status == 200


def test_a_listener_is_emptied_before_it_is_closed(serve: Serve, client: Connect) -> None:
    """Who waits in the queue of the old listener is answered."""
    running = serve()
    held, released = threading.Event(), threading.Event()

    async def replace() -> None:
        held.set()
        released.wait(deadline.seconds(20))  # the loop stands still
        running.server.listen(listener())

    thread = threading.Thread(target=running.run, args=(replace(),))
    thread.start()
    assert held.wait(deadline.seconds(10))
    waiting = [client(running, GET) for _ in range(20)]
    released.set()
    thread.join(deadline.seconds(10))
    assert [each.reply().status for each in waiting] == [200] * 20


def test_closing_ends_everything(serve: Serve, client: Connect) -> None:
    """Listener, idle, half-open and sending connections."""
    running = serve()
    idle = client(running, GET)
    idle.reply()
    half_open = client(running, GET[:10])
    sending = client(running, GET_HUGE, receive_buffer=4096)
    begun(sending)
    running.run(running.stop())
    assert [each.how for each in (idle, half_open)] == ["EOF", "EOF"] or half_open.how == "ECONNRESET"
    assert sending.how == "ECONNRESET"
    with pytest.raises(ConnectionRefusedError):
        client(running)


def test_closing_twice_is_no_matter(serve: Serve) -> None:
    """The second time there is nothing to close."""
    running = serve()
    running.run(running.stop())
    running.run(running.stop())


@pytest.fixture
def unix_path(serve: Serve, tmp_path: Path) -> Path:
    """The path of an AF_UNIX socket that is served."""
    path = tmp_path / "metrics"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(1024)
    sock.setblocking(False)
    running = serve()
    running.run(running.listen_on(sock))
    return path


def test_a_unix_socket_is_served(client: Connect, unix_path: Path) -> None:
    """Large answers too."""
    assert len(client(unix_path, GET_LARGE).reply().body) == LARGE


def test_a_unix_client_that_has_finished_gets_its_whole_answer(client: Connect, unix_path: Path) -> None:
    """A FIN behind the request does not cut the answer off."""
    ending = read_to_end(client(unix_path, GET_HUGE).finish().sock)
    assert (ending.how, len(replies(ending.data)[0].body)) == ("EOF", HUGE)


def test_small_answers_wait_for_a_unix_client(client: Connect, unix_path: Path) -> None:
    """An AF_UNIX socket that is full takes nothing of the next answer, where TCP takes a part of
    it; that answer goes on too when the client reads."""
    asking = client(unix_path, GET * 1500)
    until(lambda: queued(asking.sock) > 30_000, 10, "more answers than the kernel takes")
    assert [asking.reply().status for _ in range(1500)] == [200] * 1500


def test_unix_clients_that_do_not_read_shut_nobody_out(client: Connect, unix_path: Path) -> None:
    """The bounds hold on an AF_UNIX socket too."""
    for _ in range(FLOOD):
        client(unix_path, GET_LARGE)
    assert len(client(unix_path, GET_LARGE).reply().body) == LARGE


# Other programs as clients.


def test_http_client_keeps_its_connection(steady: Running) -> None:
    """Python's own client, three requests on one connection."""
    connection = http.client.HTTPConnection(*steady.address, timeout=deadline.seconds(PATIENCE))
    found = []
    try:
        for method, path in (("GET", "/small"), ("HEAD", "/large"), ("GET", "/large")):
            connection.request(method, path)
            response = connection.getresponse()
            found.append((response.status, len(response.read()), connection.sock is not None))
    finally:
        connection.close()
    assert found == [(200, 5, True), (200, 0, True), (200, LARGE, True)]


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run curl; the proxy of the environment is none of its business."""
    return subprocess.run(
        [require_peer("curl"), "-q", "-sS", "--noproxy", "*", "--max-time", "20", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=deadline.seconds(30),
    )


def url(running: Running, path: str) -> str:
    """The address of `path` on it."""
    host, port = running.address
    return f"http://{host}:{port}{path}"


def test_curl_takes_compressed_answers(steady: Running) -> None:
    """What it decompresses is the body."""
    ran = curl("--compressed", "-D", "/dev/stderr", url(steady, "/large"))
    assert b"Content-Encoding: gzip" in ran.stderr
    assert ran.stdout == bytes(LARGE)


def test_curl_keeps_its_connection(steady: Running) -> None:
    """Two requests, one connection."""
    ran = curl("-w", "%{num_connects}\n", "-o", "/dev/null", url(steady, "/large"), url(steady, "/small"))
    assert ran.stdout.split() in ([b"1"], [b"1", b"0"]) or ran.stdout.startswith(b"1\n")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-I"], b"200"),
        (["--http1.0"], b"200"),
        (["-X", "OPTIONS"], b"405"),
        (["-d", "body"], b"413"),
        (["-d", "body", "-H", "Transfer-Encoding: chunked"], b"400"),
        (["-T", __file__, "-H", "Expect: 100-continue"], b"413"),
        (["-H", "Host:"], b"400"),
        (["--path-as-is", "-H", "X: " + "x" * 9000], b"431"),
    ],
)
def test_curl_sees_the_status(steady: Running, arguments: list[str], status: bytes) -> None:
    """Every kind of request has a status that curl reads."""
    ran = curl(*arguments, "-o", "/dev/null", "-w", "%{http_code}", url(steady, "/small"))
    assert (ran.stdout, ran.returncode) == (status, 0)


def test_curl_speaks_to_a_unix_socket(unix_path: Path) -> None:
    """As an operator does when the exporter has no port."""
    ran = curl("--unix-socket", str(unix_path), "http://localhost/small")
    assert ran.stdout == b"small"


def test_curl_without_tls_on_our_side_fails_at_once(serve: Serve) -> None:
    """https:// to the plain port is a wrong version for curl, not a wait."""
    ran = curl(url(serve(request_seconds=3600.0), "/small").replace("http:", "https:"))
    assert ran.returncode == 35  # CURLE_SSL_CONNECT_ERROR


# Whatever comes.

fuzz = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

WORDS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b":",
        b",",
        b"%",
        b"%ff",
        b"?",
        b"#",
        b"/",
        b"*",
    ),
    *(
        b"GET ",
        b"POST ",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"http://a",
        b"Host: a\r\n",
        b"\xff",
        b"\x85",
    ),
    *(
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: x\r\n",
    ),
    *(b"Accept-Encoding: gzip;q=1\r\n", b"x" * 9000, GET),
]

Edit = tuple[float, float, bytes]


def mutated(edits: list[Edit]) -> bytes:
    """Two good requests in which pieces have been replaced."""
    data = GET + GET.replace(b"small", b"request/x?y=%20")
    for at, size, word in edits:
        start = int(at * len(data))
        data = data[:start] + word + data[start + int(size * 20) :]
    return data


fractions = st.floats(0, 1)
edits = st.lists(
    st.tuples(fractions, st.just(0.0) | fractions, st.sampled_from(WORDS)), min_size=1, max_size=5
)


@fuzz
@given(data=st.binary(max_size=400).filter(lambda data: b"HTTP/1" not in data))  # it knows this file's words
def test_noise_is_refused(steady: Running, data: bytes) -> None:
    """Random bytes have an answer of refusal or none, and the server goes on."""
    assert all(reply.status >= 400 for reply in ask(steady, data))
    assert get(steady).status == 200
    assert not steady.messages


@fuzz
@given(edits=edits)
def test_mutated_requests_do_no_harm(steady: Running, edits: list[Edit]) -> None:
    """Requests with pieces replaced have well-formed answers, and the server goes on."""
    statuses = [reply.status for reply in ask(steady, mutated(edits))]
    assert set(statuses) <= {200, 400, 404, 405, 413, 414, 431, 505}
    assert get(steady).status == 200
    assert not steady.messages


@fuzz
@given(edits=edits, cuts=st.lists(fractions, max_size=4))
def test_where_the_stream_is_cut_does_not_matter(
    steady: Running, edits: list[Edit], cuts: list[float]
) -> None:
    """The same bytes in several pieces have the same answers."""
    data = mutated(edits)[:8000]
    asking = Client(steady.address)
    try:
        places = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
        for start, end in itertools.pairwise(places):
            asking.send_if_open(data[start:end])
        try:
            asking.finish()
        except OSError:  # the server was faster
            pass
        found = replies(read_to_end(asking.sock).data)
    finally:
        asking.close()
    assert [(reply.status, reply.body) for reply in found] == [
        (reply.status, reply.body) for reply in ask(steady, data)
    ]
