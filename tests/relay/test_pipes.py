"""The pipe pool: what is lent, what comes back, what the kernel refuses."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastfwd.relay.pipes import SIZE, USABLE, Pipe, PipePool
from fastfwd.relay.pump import FULL, release
from tests.peers import require_root
from tests.relay.ends import between, in_pipe
from tests.sockets import noise

NOBODY_ELSE = 54_321
"""A user that no other process runs as: the kernel counts pipe pages per user (pipe(7))."""

PAGE = 4096


@contextmanager
def pool_of(cap: int) -> Iterator[PipePool]:
    """A pool whose idle pipes are closed at the end."""
    pool = PipePool(cap)
    try:
        yield pool
    finally:
        pool.close()


def is_open(descriptor: int) -> bool:
    """Whether `descriptor` is open in this process."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def lent(pool: PipePool) -> Pipe:
    """A pipe from `pool`, which must have one."""
    pipe = pool.lend()
    assert pipe is not None
    return pipe


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child that is an unprivileged user of its own."""
    require_root()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY_ELSE, NOBODY_ELSE, NOBODY_ELSE)
            os.setresuid(NOBODY_ELSE, NOBODY_ELSE, NOBODY_ELSE)
            answer = {"result": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]


def take_pages(left: int) -> None:
    """Use up this user's pipe pages (fs.pipe-user-pages-soft) but for `left`."""
    # Bytes: the interpreter's encodings may lie where this user cannot read.
    with open("/proc/sys/fs/pipe-user-pages-soft", "rb") as soft:
        pages = int(soft.read()) - left
    with open("/proc/sys/fs/pipe-max-size", "rb") as largest_size:
        largest = int(largest_size.read())
    while pages > 0:
        _, writer = os.pipe()
        size = min(largest, 1 << (pages * PAGE).bit_length() - 1)  # the kernel rounds up to a power of two
        pages -= fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size) // PAGE


# Lending.


def test_a_pipe_is_as_large_as_asked_for() -> None:
    """Within the user's limit a pipe takes SIZE bytes, and is not counted as short."""
    with pool_of(1) as pool:
        pipe = lent(pool)
        assert fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) == SIZE
        assert pool.short == 0
        pool.give_back(pipe)


def test_a_pipe_never_blocks_and_is_not_inherited() -> None:
    """Both ends are non-blocking and close at an exec."""
    with pool_of(1) as pool:
        pipe = lent(pool)
        for end in (pipe.read_end, pipe.write_end):
            assert not os.get_blocking(end)
            assert not os.get_inheritable(end)
        pool.give_back(pipe)


def test_no_pipe_is_lent_twice() -> None:
    """Two borrowers have two pipes."""
    with pool_of(2) as pool:
        one, two = lent(pool), lent(pool)
        assert len({one.read_end, one.write_end, two.read_end, two.write_end}) == 4
        pool.give_back(one)
        pool.give_back(two)


def test_at_the_cap_nothing_is_lent() -> None:
    """With `cap` pipes on loan the answer is None, and a pipe again after one came back."""
    with pool_of(2) as pool:
        one, two = lent(pool), lent(pool)
        assert pool.lend() is None
        pool.give_back(one)
        assert pool.lend() is one
        pool.give_back(one)
        pool.give_back(two)


def test_a_pipe_given_back_is_lent_again() -> None:
    """An empty pipe is reused instead of making another."""
    with pool_of(2) as pool:
        pipe = lent(pool)
        pool.give_back(pipe)
        assert (pool.lent, pool.idle) == (0, 1)
        assert pool.lend() is pipe
        assert (pool.lent, pool.idle) == (1, 0)
        pool.give_back(pipe)


def test_a_killed_pipe_is_closed() -> None:
    """`kill` closes both ends, and the loan is over."""
    with pool_of(1) as pool:
        pipe = lent(pool)
        os.write(pipe.write_end, b"dirty")
        pool.kill(pipe)
        assert not is_open(pipe.read_end)
        assert not is_open(pipe.write_end)
        assert (pool.lent, pool.idle) == (0, 0)


def test_fill_stops_at_the_cap() -> None:
    """Filling opens as many as asked for, and never more than the cap."""
    with pool_of(5) as pool:
        pool.fill(3)
        assert pool.idle == 3
        pool.fill(100)
        assert pool.idle == 5


def test_close_closes_the_idle_ones() -> None:
    """After `close` no pipe of the pool is open."""
    pool = PipePool(3)
    pool.fill(3)
    pipes = [lent(pool) for _ in range(3)]
    for pipe in pipes:
        pool.give_back(pipe)
    pool.close()
    assert pool.idle == 0
    assert not any(is_open(end) for pipe in pipes for end in (pipe.read_end, pipe.write_end))


# What the kernel refuses.


def test_without_descriptors_nothing_is_lent() -> None:
    """At the limit of open files (EMFILE) the answer is None, and none are left behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pool_of(4) as pool:
        lowest = os.open("/", os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))  # room for one, and a pipe needs two
        try:
            pipe = pool.lend()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert pipe is None
        assert (pool.lent, pool.idle, pool.short) == (0, 0, 1)
        assert not is_open(lowest)


def test_a_smaller_pipe_is_used_if_it_is_large_enough() -> None:
    """Past the user's soft limit for SIZE, a pipe of 64 KiB is lent and counted as short."""

    def work() -> list[int]:
        pool = PipePool(4)
        take_pages(left=USABLE // PAGE)
        pipe = pool.lend()
        return [pool.short, fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ) if pipe else 0]

    assert in_child(work) == [1, USABLE]


def test_a_pipe_of_two_slots_is_not_used() -> None:
    """With all pages of the user taken, the answer is None, counted as short, and nothing leaks."""

    def work() -> list[int]:
        pool = PipePool(4)
        take_pages(left=0)
        before = len(os.listdir("/proc/self/fd"))
        return [pool.lend() is None, pool.short, pool.lent, len(os.listdir("/proc/self/fd")) - before]

    assert in_child(work) == [True, 1, 0, 0]


def test_pipes_opened_with_rights_stay_large() -> None:
    """A pipe opened before the rights were dropped keeps its size: that is what `fill` is for."""
    with pool_of(2) as pool:
        pool.fill(2)

        def work() -> list[int]:
            take_pages(left=0)
            return [fcntl.fcntl(lent(pool).write_end, fcntl.F_GETPIPE_SZ) for _ in range(2)]

        assert in_child(work) == [SIZE, SIZE]


# Giving up at the end of a session.


def test_release_gives_an_empty_pipe_back() -> None:
    """A pump without bytes in its pipe returns it to the pool."""
    with between("splicing") as ends:
        pipe = ends.pump.pipe = lent(ends.pool)
        release(ends.pump, ends.pool)
        assert ends.pump.pipe is None
        assert ends.pool.lend() is pipe
        ends.pool.give_back(pipe)


def test_release_kills_a_dirty_pipe() -> None:
    """A pump with bytes in its pipe closes it, and them."""
    with between("splicing", small=True) as ends:
        ends.clog()
        ends.send(b"secret")
        assert ends.turn() == FULL
        pipe = ends.pump.pipe
        assert pipe is not None
        assert in_pipe(pipe.read_end) == len(b"secret")
        release(ends.pump, ends.pool)
        assert not is_open(pipe.read_end)
        assert (ends.pool.lent, ends.pool.idle) == (0, 0)


def test_release_drops_a_held_buffer() -> None:
    """A pump that copied and could not send lets go of the rest."""
    with between("copying", small=True) as ends:
        ends.clog()
        ends.send(b"secret" * 2000)  # a kernel that says full may still have room for a few bytes
        assert ends.turn() == FULL
        assert ends.held() > 0
        release(ends.pump, ends.pool)
        assert ends.held() == 0


def test_released_twice_is_released_once() -> None:
    """A second `release` of the same pump changes nothing."""
    with between("splicing") as ends:
        ends.pump.pipe = lent(ends.pool)
        release(ends.pump, ends.pool)
        release(ends.pump, ends.pool)
        assert (ends.pool.lent, ends.pool.idle) == (0, 1)


@pytest.mark.parametrize("ending", ["release", "reset"])
def test_no_byte_of_an_aborted_stream_comes_out_in_another(ending: str) -> None:
    """Streams are cut with bytes in their pipes; what the next borrower sends has none of them."""
    with between("splicing", cap=1, small=True) as first:
        first.clog()
        first.send(b"CANARY" * 100)
        assert first.turn() == FULL
        if ending == "reset":
            first.receiver.close()  # with bytes unread: a reset
            first.turn_until()
        pool = first.pool
        for number in range(20):
            release(first.pump, pool)
            with between("splicing") as second:
                second.pump.move, own = first.pump.move, second.pool
                second.pool = pool
                second.carry(noise(100_000, number))
                assert second.received == noise(100_000, number)
                own.close()
