"""Several backends: who gets which, what happens when one fails, and what is shown of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import StartForwarder
from tests.datagrams import UdpBackend, ask, udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.ports import free_port
from tests.servers import Server, banner, serve
from tests.sockets import Address, connect, finish, read_to_end
from tests.system.metrics import by, metrics_url, scrape, series

StartBackends = Callable[[int], list[Server]]


@pytest.fixture
def backends() -> Iterator[StartBackends]:
    """Call it with a number for so many backends, each of which says which it is: 0, 1, 2 ..."""
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(serve(banner, f"{number}")) for number in range(count)]


def listed(servers: list[Server], weights: str = "") -> str:
    """Where they are, as a forward names them; `weights` is a digit for each."""
    marks = [f"*{weight}" for weight in weights] or [""] * len(servers)
    return ",".join(f"{server.host}:{server.port}{mark}" for server, mark in zip(servers, marks, strict=True))


def reached(address: Address, source: str | None = None) -> str:
    """Which backend a client gets; "" if none."""
    with connect(address, source) as client:
        finish(client)
        return read_to_end(client).data.decode()


def tally(address: Address, count: int) -> Counter[str]:
    """How often each was reached."""
    return Counter(reached(address) for _ in range(count))


def start(
    forwarder: StartForwarder, where: str, extra: str = "", **options: object
) -> tuple[Forwarder, Address]:
    """A program with a forward to those backends."""
    port = free_port()
    running = forwarder(f"127.0.0.1 {port} {where} 1 {extra}\n", **options)
    return running, ("127.0.0.1", port)


def test_everyone_has_a_turn(forwarder: StartForwarder, backends: StartBackends) -> None:
    """Without a word about it the backends take turns."""
    _, address = start(forwarder, listed(backends(3)), workers=1)
    assert tally(address, 30) == {"0": 10, "1": 10, "2": 10}


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("balance", ["roundrobin", "random", "leastconn"])
def test_weights(forwarder: StartForwarder, backends: StartBackends, balance: str, workers: int) -> None:
    """Over all workers each gets its share, within 5 % of all; at random, within what chance does to
    2,000 (four standard deviations)."""
    _, address = start(forwarder, listed(backends(3), "523"), f"[balance={balance}]", workers=workers)
    found = tally(address, 2000 if balance == "random" else 400)
    count = sum(found.values())
    for number, weight in enumerate((5, 2, 3)):
        assert abs(found[str(number)] / count - weight / 10) < 0.05


def test_the_first_as_long_as_it_lives(forwarder: StartForwarder, backends: StartBackends) -> None:
    """`balance=first`: the others are spares. Nobody sees the failure of one."""
    servers = backends(3)
    _, address = start(forwarder, listed(servers), "[balance=first]")
    assert tally(address, 10) == {"0": 10}
    servers[0].close()
    assert tally(address, 20) == {"1": 20}


@pytest.mark.parametrize("balance", ["first", "roundrobin", "leastconn", "random", "iphash"])
def test_nobody_sees_a_backend_that_is_gone(
    forwarder: StartForwarder, backends: StartBackends, balance: str
) -> None:
    """Who is given to it is given to another one before he knows."""
    servers = backends(3)
    _, address = start(forwarder, listed(servers), f"[balance={balance}]")
    servers[1].close()
    assert tally(address, 60)[""] == 0


def test_one_that_fails_is_left_out(forwarder: StartForwarder, backends: StartBackends) -> None:
    """After `health-threshold` failures it is dialled no more until `recovery-timeout` is over."""
    servers = backends(2)
    options = "[health-threshold=2, recovery-timeout=1h]"
    running, address = start(
        forwarder, listed(servers), f"{options}\nmetrics 127.0.0.1:{free_port()}", workers=1
    )
    servers[0].close()
    assert tally(address, 40) == {"1": 40}
    found = scrape(metrics_url(running))
    gone = f"{servers[0].host}:{servers[0].port}/tcp"
    assert by(found, "backend_connect_failures_total", "backend", reason="refused")[gone] == 2
    assert found[series("backend_up", forward=f"{address[0]}:{address[1]}/tcp", backend=gone)] == 0


def test_a_failure_seen_by_one_worker_counts_for_all(
    forwarder: StartForwarder, backends: StartBackends
) -> None:
    """What one has found out the others need not find out again: with a threshold of 1 there is no more
    than a failure for each worker, and mostly one."""
    servers = backends(2)
    options = "[balance=first, health-threshold=1, recovery-timeout=1h]"
    running, address = start(
        forwarder, listed(servers), f"{options}\nmetrics 127.0.0.1:{free_port()}", workers=4
    )
    servers[0].close()
    assert tally(address, 60) == {"1": 60}
    found = scrape(metrics_url(running))
    assert sum(by(found, "backend_connect_failures_total", "backend", reason="refused").values()) == 1


def test_one_that_is_back_is_used_again(forwarder: StartForwarder, backends: StartBackends) -> None:
    """After `recovery-timeout` it gets another chance."""
    servers = backends(2)
    _, address = start(
        forwarder, listed(servers), "[balance=first, health-threshold=1, recovery-timeout=1]", workers=1
    )
    servers[0].close()
    assert reached(address) == "1"
    with serve(banner, "back", port=servers[0].port):
        until(lambda: reached(address) == "back", what="the first one again")


def test_when_all_have_failed_all_are_tried(forwarder: StartForwarder, backends: StartBackends) -> None:
    """Better a backend that may be there again than none."""
    servers = backends(2)
    _, address = start(forwarder, listed(servers), "[health-threshold=1, recovery-timeout=1h]", workers=1)
    for server in servers:
        server.close()
    assert reached(address) == ""
    with serve(banner, "back", port=servers[0].port):
        assert reached(address) == "back"


SOURCES = [f"127.0.1.{number}" for number in range(1, 41)]


def test_a_client_stays_by_its_address(forwarder: StartForwarder, backends: StartBackends) -> None:
    """`balance=iphash`: the same backend for the same client, in every worker; of forty clients each
    backend has some."""
    _, address = start(forwarder, listed(backends(3)), "[balance=iphash]", workers=4)
    first = {source: reached(address, source) for source in SOURCES}
    assert {source: reached(address, source) for source in SOURCES} == first
    assert set(first.values()) == {"0", "1", "2"}


def test_of_a_backend_that_fails_only_its_own_clients_move(
    forwarder: StartForwarder, backends: StartBackends
) -> None:
    """The others keep theirs."""
    servers = backends(3)
    _, address = start(forwarder, listed(servers), "[balance=iphash]")
    first = {source: reached(address, source) for source in SOURCES}
    servers[2].close()
    then = {source: reached(address, source) for source in SOURCES}
    assert {source: then[source] for source in SOURCES if first[source] != "2"} == {
        source: number for source, number in first.items() if number != "2"
    }


def test_a_client_is_remembered(forwarder: StartForwarder, backends: StartBackends) -> None:
    """`affinity-ttl`: whom the round gave a client first, that client keeps, in every worker."""
    _, address = start(forwarder, listed(backends(4)), "[affinity-ttl=1h]", workers=4)
    first = {source: reached(address, source) for source in SOURCES}
    assert len(set(first.values())) == 4
    for _ in range(3):
        assert {source: reached(address, source) for source in SOURCES} == first


def test_a_client_is_forgotten(forwarder: StartForwarder, backends: StartBackends) -> None:
    """When `affinity-ttl` is over, the round goes on."""
    _, address = start(forwarder, listed(backends(2)), "[affinity-ttl=1]", workers=1)
    first = reached(address)
    assert reached(address) == first
    over = time.monotonic() + 1.1
    until(lambda: time.monotonic() > over)
    assert reached(address) != first


def test_least_connections_are_counted_over_all_workers(
    forwarder: StartForwarder, backends: StartBackends
) -> None:
    """Forty open sessions: twenty each, whichever worker has them."""
    _, address = start(forwarder, listed(backends(2)), "[balance=leastconn]", workers=4)
    with ExitStack() as stack:
        found = Counter()
        for _ in range(40):
            client = stack.enter_context(connect(address))
            found[client.recv(1).decode()] += 1
    assert abs(found["0"] - found["1"]) <= 2


def test_figures(forwarder: StartForwarder, backends: StartBackends) -> None:
    """A forward's figures are the sum of its backends', and a connection that moved is one."""
    servers = backends(2)
    metrics = f"metrics 127.0.0.1:{free_port()}"
    running, address = start(forwarder, listed(servers), f"[balance=first, health-threshold=100]\n{metrics}")
    servers[0].close()
    assert tally(address, 6) == {"1": 6}
    running.wait_log(6, "done-")
    found = scrape(metrics_url(running))
    assert by(found, "connections_accepted_total", "proto") == {"tcp": 6}
    assert by(found, "connections_active", "proto").get("tcp", 0) == 0
    one, two = (f"{server.host}:{server.port}/tcp" for server in servers)
    assert by(found, "backend_connections_total", "backend") == {one: 6, two: 6}
    assert by(found, "backend_connects_total", "backend") == {one: 6, two: 6}


def test_the_log_has_the_backend(forwarder: StartForwarder, backends: StartBackends) -> None:
    """A session's last line says who served it."""
    servers = backends(2)
    running, address = start(forwarder, listed(servers), "[balance=first]")
    servers[0].close()
    assert reached(address) == "1"
    running.wait_log(1, "done-")
    ports = [(line["connect_port"], line["outcome"]) for line in running.log_columns()]
    assert ports[0] == (str(servers[0].port), "opened")
    assert ports[-1][0] == str(servers[1].port)


def test_a_reload_that_adds_one(forwarder: StartForwarder, backends: StartBackends) -> None:
    """The others go on counting."""
    servers = backends(3)
    port = free_port()
    metrics = f"metrics 127.0.0.1:{free_port()}\n"
    running = forwarder(f"127.0.0.1 {port} {listed(servers[:2])} 1\n{metrics}", workers=1)
    tally(("127.0.0.1", port), 4)
    running.reload(f"127.0.0.1 {port} {listed(servers)} 1\n{metrics}")
    assert tally(("127.0.0.1", port), 3) == {"0": 1, "1": 1, "2": 1}
    found = by(scrape(metrics_url(running)), "backend_connections_total", "backend")
    assert sorted(found.values()) == [1, 3, 3]


def test_one_that_a_reload_takes_away(forwarder: StartForwarder, backends: StartBackends) -> None:
    """It is neither up nor down any more; its connections stay counted."""
    servers = backends(3)
    port = free_port()
    metrics = f"metrics 127.0.0.1:{free_port()}\n"
    running = forwarder(f"127.0.0.1 {port} {listed(servers)} 1\n{metrics}", workers=1)
    tally(("127.0.0.1", port), 3)
    running.reload(f"127.0.0.1 {port} {listed(servers[:2])} 1\n{metrics}")
    found = scrape(metrics_url(running))
    assert len(by(found, "backend_up", "backend")) == 2
    assert sorted(by(found, "backend_connections_total", "backend").values()) == [1, 1, 1]


def test_datagrams(forwarder: StartForwarder) -> None:
    """Flows have backends, too; one that refuses hands them on."""
    port, dead = free_port(), free_port()
    with UdpBackend(lambda data: [b"here"]) as backend:
        config = (
            f"127.0.0.1 {port}/udp 127.0.0.1:{dead},{backend.host}:{backend.port} 1/udp [balance=first]\n"
        )
        forwarder(config)
        with udp_client(("127.0.0.1", port)) as client:
            client.send(b"lost")
            until(lambda: ask(client, b"who") == b"here", what="the other backend")
