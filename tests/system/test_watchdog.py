"""A worker that does not come round its loop is killed and replaced."""

from __future__ import annotations

from contextlib import ExitStack

from tests import processes
from tests.deadline import until
from tests.sockets import connect, finish, read_to_end
from tests.system.conftest import StartRoute

PATIENCE = 15
"""Seconds: five ticks of one second, and a machine that is busy."""


def test_a_hung_worker_is_replaced(route: StartRoute) -> None:
    """Without a heartbeat it is killed, which is said, and the clients who queued meanwhile
    are served by its successor; an idle worker beside it lives on."""
    here = route(workers=2)
    hung, idle = here.forwarder.worker(0), here.forwarder.worker(1)
    with ExitStack() as stack:
        processes.stop(hung)
        clients = [stack.enter_context(connect(here.address)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"%02d" % number)
            finish(client)
        until(lambda: here.forwarder.workers().get(0, hung) != hung, PATIENCE, "the replacement")
        for _ in clients:
            with here.listener.accept() as backend:
                backend.sendall(backend.recv(2))
        assert [read_to_end(client).data for client in clients] == [b"%02d" % n for n in range(20)]
    assert here.forwarder.worker(1) == idle
    assert here.forwarder.said("worker 0 has not come round its loop for 5 s; killing it") == 1
    assert not processes.alive(hung)
