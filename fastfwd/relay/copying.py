"""Movers that take bytes through user space: recv into one buffer, then send.

`copier` makes the mover every TCP direction begins with; `discard` is the one of a
direction whose sink is gone and whose source must still be read. They keep the
contract of relay/pump and never allocate while the sink keeps up.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import MSG_MORE

from fastfwd.relay import choose
from fastfwd.relay.pump import DRY, END, FULL, MORE, SINK_BROKE, SOURCE_BROKE, Mover, Pump, Tally


def copier(promote: Callable[[Pump], bool], tally: Tally) -> Mover:
    """A copying mover with a buffer of its own, `choose.BUFFER` bytes, for all pumps of
    a worker. `promote(pump)` is asked after every full read past the threshold and
    answers whether it has put another mover in place. What is taken is counted in `tally`.

    A closure: one function for every pump, and the buffer in nobody else's reach. Methods
    are looked up where they are called: binding them first costs 0.05 µs each, and most
    turns have one read.
    """
    size = choose.BUFFER
    buffer = bytearray(size)
    view = memoryview(buffer)

    def copy(pump: Pump, budget: int) -> int:
        if pump.held is not None and (verdict := send_held(pump)):
            return verdict
        if pump.ending:
            return pump.ending
        while True:
            try:
                n = pump.source.recv_into(buffer)
            except BlockingIOError:
                return DRY
            except OSError as error:
                # Latched: a second read after the error says clean EOF (measured).
                pump.error = error.errno or 0
                pump.ending = SOURCE_BROKE
                return SOURCE_BROKE
            if not n:
                pump.ending = SOURCE_BROKE if pump.error else END
                return pump.ending
            pump.taken += n
            tally.copied += n
            last = pump.fin and n < size and not pump.error
            try:
                # The last bytes wait for the shutdown that follows at once: they and the
                # FIN make one packet, and the sink is woken once (5 of 62 µs per connection).
                sent = pump.sink.send(view[:n], MSG_MORE) if last else pump.sink.send(view[:n])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                pump.error = error.errno or 0
                pump.pending = n
                return SINK_BROKE
            if last:
                # In order, the FIN is behind everything: less than asked for is the rest.
                pump.ending = END
            if sent < n:
                pump.held = memoryview(bytes(view[sent:n]))
                pump.pending = n - sent
                return FULL
            if last:
                return END
            if n < size:
                # Less than asked for means drained (epoll(7), question 9), which
                # saves the read that would only say EAGAIN.
                pump.streak = 0
                if not (pump.to_end or pump.fin):
                    return DRY
            else:
                pump.streak += 1
                if budget > n and choose.promote(pump.streak) and promote(pump):
                    return pump.move(pump, budget - n)
            budget -= n
            if budget <= 0:
                return MORE

    return copy


def send_held(pump: Pump) -> int:
    """Send what an earlier short send left over. Returns FULL or SINK_BROKE, or 0 (DRY)
    when nothing is held any more."""
    assert pump.held is not None
    try:
        sent = pump.sink.send(pump.held)
    except BlockingIOError:
        return FULL
    except OSError as error:
        pump.error = error.errno or 0
        return SINK_BROKE
    pump.pending -= sent
    if pump.pending:
        pump.held = pump.held[sent:]
        return FULL
    pump.held = None
    return 0


def discarder() -> Mover:
    """A mover that reads and drops, for the lingering end of a session: answers DRY,
    MORE, END or SOURCE_BROKE and never touches the sink."""
    buffer = bytearray(choose.BUFFER)

    def discard(pump: Pump, budget: int) -> int:
        recv_into = pump.source.recv_into
        while budget > 0:
            try:
                n = recv_into(buffer)
            except BlockingIOError:
                return DRY
            except OSError as error:
                pump.error = error.errno or 0
                return SOURCE_BROKE
            if not n:
                return END
            pump.taken += n
            pump.pending += n
            budget -= n
        return MORE

    return discard
