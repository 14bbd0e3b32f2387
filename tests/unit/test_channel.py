"""Messages and descriptors between the supervisor and a child, with both ends in the test's hand."""

from __future__ import annotations

import os
import pickle
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfwd.channel import BATCH, HEADER, LIMIT_UP, Channel, ChannelError, Message, pair
from tests.deadline import until

Received = list[tuple[Message, list[int] | None]]


class Ends:
    """A connected pair."""

    def __init__(self) -> None:
        self.supervisor, self.child = pair()

    def down(self) -> Received:
        """What the child receives now; the supervisor must be there."""
        messages, alive = self.child.receive()
        assert alive
        return messages

    def up(self) -> Received:
        """What the supervisor receives now; the child must be there."""
        messages, alive = self.supervisor.receive()
        assert alive
        return messages

    def down_all(self, count: int) -> Received:
        """`count` messages at the child, flushing as the socket takes them."""
        found: Received = []

        def look() -> bool:
            self.supervisor.flush()
            found.extend(self.down())
            return len(found) >= count

        until(look)
        return found


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A pair that is closed at the end."""
    made = Ends()
    yield made
    made.supervisor.close()
    made.child.close()


def close_all(descriptors: list[int] | None) -> None:
    """Close what was received."""
    for descriptor in descriptors or ():
        os.close(descriptor)


def identity(descriptor: int) -> tuple[int, int]:
    """Which file a descriptor is."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """This process may open `count` descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        highest = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
        try:
            while True:
                taken.append(os.open("/", os.O_RDONLY))
        except OSError:
            pass
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_all(taken)


@pytest.fixture
def files() -> Iterator[list[int]]:
    """A thousand different open files."""
    made = [os.memfd_create("file") for _ in range(1000)]
    yield made
    close_all(made)


# Messages.


def test_down_goes_what_pickle_can(ends: Ends) -> None:
    """The supervisor sends objects of the program."""
    ends.supervisor.send({"op": "prepare", "table": (1, {2: 3}), "hosts": {"a": ["b"]}})
    assert ends.down() == [({"op": "prepare", "table": (1, {2: 3}), "hosts": {"a": ["b"]}}, [])]


def test_up_goes_json(ends: Ends) -> None:
    """A child sends JSON, and nothing it sends is ever unpickled."""
    ends.child.send({"op": "say", "level": 20, "text": "hello"})
    raw = ends.supervisor.sock.recv(1 << 16)
    assert orjson.loads(raw[HEADER.size :]) == {"op": "say", "level": 20, "text": "hello"}


def test_messages_keep_their_order(ends: Ends) -> None:
    """Several messages that arrive together come out one by one, in order."""
    for number in range(50):
        ends.child.send({"op": "say", "number": number})
    assert [message["number"] for message, _ in ends.up()] == list(range(50))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=50), min_size=1, max_size=4), st.integers(1, 60))
def test_frames_may_arrive_in_pieces(texts: list[str], size: int) -> None:
    """However the stream is cut, the same messages come out."""
    frames = b"".join(
        HEADER.pack(len(payload), 0) + payload for text in texts for payload in [orjson.dumps({"text": text})]
    )
    supervisor, child = pair()
    found = []
    for start in range(0, len(frames), size):
        child.sock.send(frames[start : start + size])
        messages, alive = supervisor.receive()
        assert alive
        found += [message["text"] for message, _ in messages]
    supervisor.close()
    child.close()
    assert found == texts


def test_nothing_has_arrived(ends: Ends) -> None:
    """Without a message the answer is an empty list from a living peer."""
    assert ends.supervisor.receive() == ([], True)


def test_end_of_file_means_that_the_peer_is_gone(ends: Ends) -> None:
    """A closed end is not alive; its last words come first."""
    ends.child.send({"op": "say", "text": "farewell"})
    ends.child.close()
    assert ends.supervisor.receive() == ([({"op": "say", "text": "farewell"}, [])], False)
    assert ends.supervisor.receive() == ([], False)


def test_half_a_message_at_the_end_is_none(ends: Ends) -> None:
    """A peer that dies in the middle of a message has not sent it."""
    ends.child.sock.send(HEADER.pack(100, 0) + b'{"op":')
    ends.child.close()
    assert ends.supervisor.receive() == ([], False)


# A full socket.


def test_sending_never_waits(ends: Ends) -> None:
    """What the socket does not take is kept, and `backlog` says so."""
    for number in range(100):
        ends.supervisor.send({"op": "prepare", "number": number, "table": b"x" * 100_000})
    assert ends.supervisor.backlog
    assert [message["number"] for message, _ in ends.down_all(100)] == list(range(100))
    assert not ends.supervisor.backlog


def test_a_message_larger_than_the_socket_arrives(ends: Ends) -> None:
    """A table of some megabytes goes through in as many flushes as it takes."""
    ends.supervisor.send({"op": "prepare", "table": b"x" * (5 << 20)})
    assert [len(message["table"]) for message, _ in ends.down_all(1)] == [5 << 20]


def test_a_dead_peer_takes_nothing(ends: Ends) -> None:
    """Sending to a peer that is gone raises nothing and leaves no backlog."""
    ends.child.close()
    for _ in range(3):
        ends.supervisor.send({"op": "stop"})
    assert not ends.supervisor.backlog


# Descriptors.


def test_descriptors_arrive_with_their_message(ends: Ends, files: list[int]) -> None:
    """Each message has its own, in order, as duplicates."""
    ends.supervisor.send({"op": "one"}, files[:2])
    ends.supervisor.send({"op": "none"})
    ends.supervisor.send({"op": "three"}, files[2:5])
    messages = ends.down()
    assert [message["op"] for message, _ in messages] == ["one", "none", "three"]
    received = [found or [] for _, found in messages]
    assert [list(map(identity, found)) for found in received] == [
        list(map(identity, files[:2])),
        [],
        list(map(identity, files[2:5])),
    ]
    assert not {descriptor for found in received for descriptor in found} & set(files)
    for found in received:
        close_all(found)


@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 1000])
def test_many_descriptors_in_one_message(ends: Ends, files: list[int], count: int) -> None:
    """More than the kernel takes at once (253, unix(7)) arrive complete and in order."""
    ends.supervisor.send({"op": "prepare"}, files[:count])
    ((message, received),) = ends.down_all(1)
    assert message == {"op": "prepare"}
    assert received is not None
    assert list(map(identity, received)) == list(map(identity, files[:count]))
    close_all(received)


def test_many_descriptors_before_others(ends: Ends, files: list[int]) -> None:
    """A message of many batches does not take the next one's descriptors."""
    ends.supervisor.send({"op": "one"}, files[:600])
    ends.supervisor.send({"op": "two"}, files[600:900])
    (_, one), (_, two) = ends.down_all(2)
    assert one is not None
    assert two is not None
    assert list(map(identity, one + two)) == list(map(identity, files[:900]))
    close_all(one + two)


def test_descriptors_behind_a_full_socket(ends: Ends, files: list[int]) -> None:
    """Those of a message that had to wait arrive with it."""
    ends.supervisor.send({"op": "large", "table": b"x" * (1 << 20)})
    ends.supervisor.send({"op": "prepare"}, files[:300])
    assert ends.supervisor.backlog
    (_, none), (_, received) = ends.down_all(2)
    assert none == []
    assert received is not None
    assert list(map(identity, received)) == list(map(identity, files[:300]))
    close_all(received)


def test_received_descriptors_are_not_inherited(ends: Ends, files: list[int]) -> None:
    """They close at an exec (recv(2), MSG_CMSG_CLOEXEC)."""
    ends.supervisor.send({"op": "prepare"}, files[:1])
    ((_, received),) = ends.down()
    assert received is not None
    assert not os.get_inheritable(received[0])
    close_all(received)


@pytest.mark.parametrize("room", [0, 3])
def test_lost_descriptors_are_reported(ends: Ends, files: list[int], room: int) -> None:
    """Without room for all of them (EMFILE) a message comes with None, and none stay open."""
    before = len(os.listdir("/proc/self/fd"))
    with room_for(room):
        ends.supervisor.send({"op": "prepare"}, files[:5])
        messages = ends.down()
    assert messages == [({"op": "prepare"}, None)]
    assert len(os.listdir("/proc/self/fd")) == before


def test_after_a_loss_the_next_message_is_whole(ends: Ends, files: list[int]) -> None:
    """Once there is room again, descriptors arrive as before."""
    with room_for(0):
        ends.supervisor.send({"op": "prepare"}, files[:5])
        assert ends.down() == [({"op": "prepare"}, None)]
    ends.supervisor.send({"op": "prepare"}, files[5:7])
    ((_, received),) = ends.down()
    assert received is not None
    assert list(map(identity, received)) == list(map(identity, files[5:7]))
    close_all(received)


def test_a_loss_does_not_shift_the_descriptors_of_what_follows(ends: Ends, files: list[int]) -> None:
    """Of two messages received together, with room for a part of the first one's, each comes
    with exactly its own or with None."""
    with room_for(3):
        ends.supervisor.send({"op": "one"}, files[:5])
        ends.supervisor.send({"op": "two"}, files[5:7])
        messages = ends.down()
    assert [message["op"] for message, _ in messages] == ["one", "two"]
    for (_, received), wanted in zip(messages, (files[:5], files[5:7]), strict=True):
        assert received is None or list(map(identity, received)) == list(map(identity, wanted))
        close_all(received)


# What no child of ours sends.


def frame(payload: bytes, count: int = 0) -> bytes:
    """A frame as it goes over the socket."""
    return HEADER.pack(len(payload), count) + payload


@pytest.mark.parametrize(
    "data",
    [
        frame(b""),
        frame(b"not json"),
        frame(b"[1, 2]"),
        frame(b'"text"'),
        frame(b"null"),
        frame(b"\xff\xfe"),
        frame(b'{"op": NaN}'),
        frame(b'{"op": 1e999}'),
        frame(b'{"op": "\\ud800"}'),
        frame(b"[" * 100_000),
        frame(b'{"a":' * 5000),
        frame(b'{"op":' + b"[" * 1000 + b"]" * 1000 + b"}"),
        frame(b'{"op":[[[[]]]]}'),
        frame(pickle.dumps({"op": "ready"})),
        HEADER.pack(LIMIT_UP + 1, 0),
        HEADER.pack(2**32 - 1, 2**32 - 1),
        b"\xff" * 100,
    ],
    ids=lambda data: repr(data[:20]),
)
def test_garbage_from_below_is_refused(ends: Ends, data: bytes) -> None:
    """Whatever is not a JSON object in a frame is a ChannelError, not a crash."""
    ends.child.sock.setblocking(True)
    ends.child.sock.sendall(data)
    with pytest.raises(ChannelError):
        ends.supervisor.receive()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.one_of(st.binary(min_size=1, max_size=100), st.binary(max_size=40).map(frame)))
def test_any_bytes_from_below_are_survived(data: bytes) -> None:
    """Any bytes at all give messages, an incomplete one, or a ChannelError."""
    supervisor, child = pair()
    child.sock.sendall(data)
    try:
        messages, alive = supervisor.receive()
    except ChannelError:
        pass
    else:
        assert alive
        assert all(isinstance(message, dict) for message, _ in messages)
    supervisor.close()
    child.close()


class Trap:
    """Unpickled, it would set `sprung`."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Trap, "sprung", True)


def test_a_child_chooses_no_objects(ends: Ends) -> None:
    """A pickle from below is not executed."""
    ends.child.sock.send(frame(pickle.dumps(Trap())))
    with pytest.raises(ChannelError):
        ends.supervisor.receive()
    assert not Trap.sprung


def test_descriptors_from_below_do_not_pile_up(ends: Ends, files: list[int]) -> None:
    """A child that sends descriptors and never finishes a message costs the supervisor none:
    nothing that comes from below needs any."""
    before = len(os.listdir("/proc/self/fd"))
    ends.child.sock.send(HEADER.pack(1000, 0))
    for _ in range(10):
        socket.send_fds(ends.child.sock, [b"x"], files[:20])
        ends.supervisor.receive()
    assert len(os.listdir("/proc/self/fd")) - before < 50
    close_all(ends.supervisor._descriptors)


def test_a_channel_never_blocks() -> None:
    """Both ends are non-blocking from the beginning."""
    one, other = socket.socketpair()
    channel = Channel(one, trusted=False)
    assert not one.getblocking()
    channel.close()
    other.close()
