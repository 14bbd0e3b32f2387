"""The bench's client of datagrams and what it is made of: many with one system call, none made up."""

from __future__ import annotations

import errno
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench import clients
from bench.mmsg import LENGTH, Batch, opened
from tests.deadline import until

HOST = "127.0.0.1"


@contextmanager
def backend(answers: Callable[[int], bool] = lambda number: True) -> Iterator[tuple[int, list[str]]]:
    """One that sends back the datagrams whose numbers `answers` says, from 0: its port, and the
    addresses that any have come from, in order."""
    seen: list[str] = []
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                data, sender = sock.recvfrom(LENGTH)
            except TimeoutError:
                continue
            seen.append(sender[0])
            if answers(len(seen) - 1):
                sock.sendto(data, sender)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        sock.settimeout(0.05)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1], seen
        finally:
            ended.set()
            thread.join()


def bound() -> socket.socket:
    """A socket that takes datagrams of the bench."""
    sock = opened()
    sock.bind((HOST, 0))
    sock.settimeout(5)
    return sock


def test_a_batch_is_sent_from_an_address_each() -> None:
    sources = ["127.2.0.1", "127.2.0.255", "127.3.4.5"]
    with bound() as server, opened() as sock:
        Batch.to(server.getsockname(), sources).send(sock, 0, 3)
        assert [server.recvfrom(LENGTH)[1] for _ in sources] == [
            (source, sock.getsockname()[1]) for source in sources
        ]


def test_a_part_of_a_batch_is_sent() -> None:
    with bound() as server, opened() as sock:
        Batch.to(server.getsockname(), [f"127.2.0.{n}" for n in range(1, 10)]).send(sock, 4, 2)
        assert [server.recvfrom(LENGTH)[1][0] for _ in range(2)] == ["127.2.0.5", "127.2.0.6"]


def test_all_of_a_batch_begin_with_what_is_in_its_data() -> None:
    with bound() as server, opened() as sock:
        batch = Batch.to(server.getsockname(), ["127.2.0.1", "127.2.0.2"])
        batch.data[:4] = b"when"
        batch.send(sock, 0, 2)
        assert [server.recv(LENGTH)[:5] for _ in range(2)] == [b"when\0"] * 2


def test_what_is_there_is_received_at_once_and_goes_back_to_whom_it_came_from() -> None:
    batch = Batch(8)
    with bound() as server, opened() as one, opened() as other:
        server.settimeout(None)
        for sock, word in ((one, b"a"), (other, b"b")):
            sock.settimeout(5)
            sock.sendto(word * LENGTH, server.getsockname())
        assert batch.receive(server) == 2
        assert batch.data[LENGTH - 1 : LENGTH + 1] == b"ab"
        batch.send(server, 0, 2)
        assert [one.recv(LENGTH), other.recv(LENGTH)] == [b"a" * LENGTH, b"b" * LENGTH]


@pytest.mark.parametrize("length", [0, LENGTH - 1, LENGTH + 1])
def test_datagrams_of_other_lengths_are_not_taken(length: int) -> None:
    """C rinetd's empty ones above all."""
    with bound() as server, opened() as sock:
        sock.sendto(bytes(length), server.getsockname())
        sock.sendto(b"x" * LENGTH, server.getsockname())
        assert server.recv(2 * LENGTH) == b"x" * LENGTH


def test_a_system_call_that_fails_is_an_error() -> None:
    with opened() as sock:
        pass
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        Batch(1).receive(sock)
    assert caught.value.errno == errno.EBADF


def test_every_flow_is_there_before_the_first_figure() -> None:
    with backend() as (port, seen), clients.Datagrams(port, 100):
        assert len(set(seen)) == 100


def test_flows_take_turns() -> None:
    with backend() as (port, seen), clients.Datagrams(port, 100) as flows:
        flows.run(0.05)
        sent = Counter(seen).values()
        assert max(sent) - min(sent) <= 1


def test_every_answer_is_counted_and_none_is_left_under_way() -> None:
    with backend() as (port, seen), clients.Datagrams(port, 10) as flows:
        before = len(seen)
        found = flows.run(0.05)
        assert (found.count, found.lost) == (len(seen) - before, 0)
        assert 0 < found.p50 <= found.p99


def test_what_does_not_come_back_is_counted_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.Datagrams, "SILENCE", 0.1)
    swallowed: set[int] = set()
    with backend(lambda number: number not in swallowed) as (port, seen):
        with clients.Datagrams(port, 10) as flows:
            before = len(seen)
            swallowed.update(range(before, before + 5))
            found = flows.run(0.05)
            until(lambda: len(seen) == before + found.count + 5, 5, "every datagram has arrived")
        assert found.lost == 5


def test_a_backend_that_says_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.Datagrams, "SILENCE", 0.01)
    monkeypatch.setattr(clients, "PATIENCE", 0.05)
    with (
        backend(lambda number: False) as (port, _),
        pytest.raises(RuntimeError, match=r"^0 datagrams came back"),
        clients.Datagrams(port, 10),
    ):
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_a_port_is_asked_whether_datagrams_come_back(answers: bool) -> None:
    with backend(lambda number: answers) as (port, _):
        assert clients.returns(port) is answers
