"""What the metrics count is what happened: every byte, every connection, every line of the log.

A worker counts as things happen, so most tests bring the program to rest (nobody is connected,
everything has ended) and then compare exactly.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests import processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.load import successor
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import (
    Listener,
    Sending,
    connect,
    finish,
    noise,
    read_exactly,
    read_to_end,
    reset,
)
from tests.system.conftest import Route, StartRoute
from tests.system.metrics import (
    Scrape,
    at_rest,
    by,
    metrics_url,
    request,
    scrape,
    series,
    sessions,
    status,
    total,
)
from tests.system.namespaces import Sandbox
from tests.system.test_faults_injected import injected

pytestmark = pytest.mark.alone

HOST = "127.0.0.1"

ANYWHERE = f"metrics {HOST}:0\n"

MIB = 1 << 20

WATCHDOG = 15
"""Seconds until it has struck: five ticks of one second, on a machine that is busy."""


@pytest.fixture
def here(route: StartRoute) -> Route:
    """Two workers and a backend that the test plays."""
    return route(ANYWHERE, workers=2)


def line_of(here: Route) -> str:
    """The line of its forward."""
    return f"{here.address[0]} {here.address[1]} {here.listener.host} {here.listener.port}\n"


def label_of(here: Route) -> str:
    """What its forward is called in the metrics."""
    return f"{here.address[0]}:{here.address[1]}/tcp"


# Bytes.


def test_bytes_of_a_small_session(here: Route) -> None:
    """What the client sends is received, what it gets is sent, to the byte."""
    with here.pair() as pair:
        pair.client.sendall(b"hello")
        assert read_exactly(pair.backend, 5) == b"hello"
        pair.backend.sendall(b"good-bye!")
        assert read_exactly(pair.client, 9) == b"good-bye!"
    found = at_rest(metrics_url(here.forwarder), 1)
    assert total(found, "client_received_bytes_total") == 5
    assert total(found, "client_sent_bytes_total") == 9


def test_bytes_of_a_bulk_session(here: Route) -> None:
    """50 MB up and 20 down, most of them spliced, are counted to the byte, once by direction and
    once by the way they took."""
    up, down = noise(MIB) * 50, noise(MIB, 2) * 20
    url = metrics_url(here.forwarder)
    with here.pair() as pair:
        with Sending(pair.client, up):
            assert read_to_end(pair.backend).data == up
        with Sending(pair.backend, down):
            assert read_to_end(pair.client).data == down
    found = at_rest(url, 1)
    assert total(found, "client_received_bytes_total") == len(up)
    assert total(found, "client_sent_bytes_total") == len(down)
    # Those by the way are published up to a second late.
    ways = ("spliced_bytes_total", "copied_bytes_total")
    until(lambda: sum(total(scrape(url), way) for way in ways) == len(up + down), what="every byte's way")
    assert total(scrape(url), "spliced_bytes_total") > total(scrape(url), "copied_bytes_total") > 0


def test_bytes_of_an_open_session(here: Route) -> None:
    """A session shows its bytes while it lives, and again when there are more."""
    url = metrics_url(here.forwarder)
    with here.pair() as pair:
        for times in (1, 2, 3):
            here.greet(pair)
            until(lambda: total(scrape(url), "client_sent_bytes_total") == 4 * times)  # noqa: B023
            assert total(scrape(url), "client_received_bytes_total") == 4 * times
        assert total(scrape(url), "connections_active") == 1


# A mix of everything that can become of a connection.


@dataclass(frozen=True, slots=True)
class Mix:
    """Everything there was to see after a mix of connections: the metrics, the log's objects, and
    the text of all pages."""

    found: Scrape
    lines: list[dict[str, object]]
    pages: str

    def counted(self, name: str, label: str) -> dict[str, dict[str, float]]:
        """Forward -> label's value -> a metric's value; what is 0 is left out."""
        forwards = by(self.found, "forward_info", "forward")
        figures = {forward: by(self.found, name, label, forward=forward) for forward in forwards}
        return {forward: each for forward, each in figures.items() if each}

    def logged(self, *outcomes: str) -> dict[str, dict[str, int]]:
        """Forward -> outcome -> lines of the log, of those outcomes (rinetd's ` -` left out)."""
        figures: dict[str, Counter[str]] = {}
        for line in self.lines:
            outcome = str(line["outcome"]).removesuffix(" -")
            if outcome in outcomes:
                figures.setdefault(str(line["forward"]), Counter())[outcome] += 1
        return {forward: dict(each) for forward, each in figures.items()}


STRANGER = "127.0.0.77"
"""Where refused clients come from."""

CLOSED = {
    "db": {"done-local-closed": 3, "done-remote-closed": 4},
    "refused": {"local-connect-failed": 5},
    "full": {"local-connect-failed": 1, "done-remote-closed": 1},
    "gone": {"done-local-closed": 1},
    "elsewhere": {"local-bind-failed": 2},
}
"""What becomes of the connections of the mix."""


def full(stack: ExitStack) -> Listener:
    """A backend whose queue of one is taken: further connections wait (listen(2))."""
    listener = stack.enter_context(Listener(backlog=0))
    stack.enter_context(connect(listener.address))
    return listener


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mix]:
    """Connections of every kind that a loopback can have, and the program at rest after them."""
    with ExitStack() as stack:
        ports = {name: free_port() for name in (*CLOSED, "picky", "closed")}
        db, slow, gone = stack.enter_context(Listener()), full(stack), full(stack)
        targets = {
            "db": f"{db.host} {db.port} [name=db]",
            "refused": f"{HOST} {ports['closed']} [name=refused]",
            "full": f"{slow.host} {slow.port} [name=full]",
            "gone": f"{gone.host} {gone.port} [name=gone]",
            "elsewhere": f"{db.host} {db.port} [src=192.0.2.7, name=elsewhere]",
            "picky": f"{db.host} {db.port} [name=picky]\nallow 127.0.0.*\nallow ::1\ndeny {STRANGER}",
        }
        config = "".join(f"{HOST} {ports[name]} {target}\n" for name, target in targets.items())
        directory = tmp_path_factory.mktemp("mix")
        running = stack.enter_context(Forwarder(directory, f"{config}logformat json\n{ANYWHERE}", workers=2))
        here = Route(running, (HOST, ports["db"]), db)
        url = metrics_url(running)

        # The dial that takes the longest; and one whose client leaves meanwhile.
        late = stack.enter_context(connect((HOST, ports["full"])))
        reset(connect((HOST, ports["full"])))
        for _ in range(CLOSED["db"]["done-local-closed"]):
            with here.pair() as pair:
                here.greet(pair)
                pair.backend.close()
                assert read_to_end(pair.client).how == "EOF"
        for _ in range(CLOSED["db"]["done-remote-closed"]):
            with here.pair() as pair:
                pair.client.close()
                assert read_to_end(pair.backend).how == "EOF"
        for name in ("refused", "elsewhere"):
            for _ in range(sum(CLOSED[name].values())):
                with connect((HOST, ports[name])) as client:
                    assert read_to_end(client).data == b""
        for source, times in ((STRANGER, 2), ("127.0.1.1", 3)):
            for _ in range(times):
                with connect((HOST, ports["picky"]), source) as client:
                    assert read_to_end(client).data == b""
        # A backend that has reset the connection before anybody could look at it.
        with connect((HOST, ports["gone"])):
            until(lambda: total(scrape(url), "backend_connects_total", forward="gone") == 1)
            with here.frozen():
                gone.accept().close()  # makes room: the dial's SYN is repeated after a second
                reset(gone.accept())
            until(lambda: by(scrape(url), "connections_closed_total", "outcome", forward="gone"))
        assert read_to_end(late).data == b""

        found = at_rest(url, sum(sum(each.values()) for each in CLOSED.values()))
        lines = [json.loads(line) for line in running.log_lines()]
        pages = "".join(request(url, path).body.decode() for path in ("/metrics", "/status?history", "/"))
        yield Mix(found, lines, pages)


def test_accepted_is_every_connection_let_in(mix: Mix) -> None:
    """As many as the clients made, by forward, without those refused."""
    wanted = {forward: float(sum(each.values())) for forward, each in CLOSED.items()}
    assert by(mix.found, "connections_accepted_total", "forward") == wanted


def test_closed_by_outcome(mix: Mix) -> None:
    """Each connection is counted with what became of it, and nothing is with another one."""
    assert mix.counted("connections_closed_total", "outcome") == CLOSED


def test_closed_lines_have_a_counter(mix: Mix) -> None:
    """For every outcome and forward there are as many last lines in the log as the counter says."""
    outcomes = {outcome for each in CLOSED.values() for outcome in each}
    logged = mix.logged(*outcomes, "local-socket-failed")
    assert mix.counted("connections_closed_total", "outcome") == logged


def test_opened_lines_have_a_counter(mix: Mix) -> None:
    """So it is with the line that begins a dial."""
    logged = {forward: each["opened"] for forward, each in mix.logged("opened").items()}
    assert by(mix.found, "connections_opened_total", "forward") == logged
    assert logged == {"db": 7, "refused": 5, "full": 2, "gone": 1}


def test_refused_clients_have_a_counter(mix: Mix) -> None:
    """So it is with clients that no rule allows, or one denies."""
    logged = mix.logged("denied", "not-allowed")
    assert logged == {"picky": {"denied": 2, "not-allowed": 3}}
    counted = {"picky": {"denied": 2, "not_allowed": 3}}
    assert mix.counted("connections_denied_total", "reason") == counted


def test_lines_of_the_log_have_a_counter(mix: Mix) -> None:
    """As many lines are counted as there are, and none is lost."""
    assert total(mix.found, "log_lines_total") == len(mix.lines)
    assert total(mix.found, "log_lines_dropped_total") == 0


def test_dials_that_failed_by_reason(mix: Mix) -> None:
    """A closed port is `refused`, a backend that does not answer `timeout`, one that resets before
    a byte `reset`, a source that is not this host's `local`."""
    assert mix.counted("backend_connect_failures_total", "reason") == {
        "refused": {"refused": 5},
        "full": {"timeout": 1},
        "gone": {"reset": 1},
        "elsewhere": {"local": 2},
    }


def test_every_dial_is_counted(mix: Mix) -> None:
    """Those that failed, those that did not, and the one whose client did not wait."""
    wanted = {"db": 7, "refused": 5, "full": 2, "gone": 1, "elsewhere": 2}
    assert by(mix.found, "backend_connects_total", "forward") == wanted


def test_how_long_dials_took(mix: Mix) -> None:
    """Every dial that succeeded is in the histogram, with the time that the log has."""
    taken = [float(str(line["dial"])) for line in mix.lines if line["forward"] == "db" and line["dial"]]
    assert by(mix.found, "backend_connect_duration_seconds_count", "forward") == {"db": 7}
    assert total(mix.found, "backend_connect_duration_seconds_sum") == pytest.approx(sum(taken), abs=1e-4)
    assert total(mix.found, "backend_connect_duration_seconds_bucket", forward="db", le="10.0") == 7


def test_how_long_connections_lived(mix: Mix) -> None:
    """Every connection that ended is in the histogram, with the time that the log has."""
    ended = [line for line in mix.lines if line["outcome"] not in ("opened", "denied", "not-allowed")]
    lived = sum(float(str(line["duration"])) for line in ended)
    closed = total(mix.found, "connections_closed_total")
    assert total(mix.found, "connection_duration_seconds_count") == closed == len(ended)
    assert total(mix.found, "connection_duration_seconds_sum") == pytest.approx(lived, abs=1e-3)


def test_a_long_life_is_in_a_high_bucket(mix: Mix) -> None:
    """The connection whose dial timed out after ten seconds is above 10, below 60."""
    buckets = by(mix.found, "connection_duration_seconds_bucket", "le", forward="full")
    assert (buckets["10.0"], buckets["60.0"], buckets["+Inf"]) == (1, 2, 2)


def test_bytes_are_the_log_s(mix: Mix) -> None:
    """The counters are the sums of the log's columns."""
    columns = {"bytes_in": "client_received_bytes_total", "bytes_out": "client_sent_bytes_total"}
    for column, name in columns.items():
        assert total(mix.found, name) == sum(int(str(line[column])) for line in mix.lines) > 0


def test_no_client_s_address_is_shown(mix: Mix) -> None:
    """Neither /metrics nor /status nor the page has one."""
    assert STRANGER in {line["client"] for line in mix.lines}
    assert STRANGER not in mix.pages


# Failures that a loopback does not have.


@dataclass(frozen=True, slots=True)
class CutOff:
    """A host without a way out and with a name server that is down: what was counted after a
    connection to each of its forwards: `nowhere`, `nameless`, and `twofold`, whose name has two
    addresses, at which nobody listens."""

    found: Scrape


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> CutOff:
    """The host and its program."""
    with Sandbox(network=True) as inside, ExitStack() as stack:
        inside.cover(Path("/mnt"))
        for name, text in (
            ("hosts", f"{HOST} localhost\n127.0.0.8 backend\n127.0.0.9 backend\n"),
            ("nsswitch.conf", "hosts: files dns\nservices: files\npasswd: files\n"),
            ("resolv.conf", f"nameserver {HOST}\noptions timeout:1 attempts:1\n"),
        ):
            inside.call(Path("/mnt", name).write_text, text)
            inside.replace(Path("/etc", name), Path("/mnt", name))
        targets = {"nowhere": "192.0.2.1", "nameless": "backend.example", "twofold": "backend"}
        ports = dict(zip(targets, range(81, 84), strict=True))
        config = "".join(f"{HOST} {ports[name]} {targets[name]} 1 [name={name}]\n" for name in targets)
        directory = tmp_path_factory.mktemp("cut-off")
        running = inside.call(Forwarder, directory, config + ANYWHERE, workers=1)
        stack.enter_context(running)
        for port in ports.values():
            with inside.call(connect, (HOST, port)) as client:
                assert read_to_end(client).data == b""
        return CutOff(inside.call(at_rest, metrics_url(running), len(ports)))
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("forward", "reason"), [("nowhere", "unreachable"), ("nameless", "resolve")])
def test_dials_that_failed_elsewhere(cut_off: CutOff, forward: str, reason: str) -> None:
    """Without a route to the backend it is `unreachable`; without an address for its name, `resolve`."""
    assert by(cut_off.found, "backend_connect_failures_total", "reason", forward=forward) == {reason: 1}
    assert total(cut_off.found, "backend_connects_total", forward=forward) == 1


def test_a_dial_of_two_addresses(cut_off: CutOff) -> None:
    """Each address is a dial, and a failure; the connection is opened once, as in the log."""
    found = cut_off.found
    assert by(found, "backend_connect_failures_total", "reason", forward="twofold") == {"refused": 2}
    assert total(found, "backend_connects_total", forward="twofold") == 2
    assert total(found, "connections_opened_total", forward="twofold") == 1


def test_a_name_that_was_never_found(cut_off: CutOff) -> None:
    """Its look-ups have failed and are counted; the time of the last success is 0."""
    found = cut_off.found
    assert total(found, "dns_lookup_failures_total") == total(found, "dns_lookups_total") - 1 >= 1
    assert found[series("dns_last_success_timestamp_seconds", forward="nameless")] == 0


def test_a_name_that_was_found(route: StartRoute) -> None:
    """A forward to a host name has the time of its last look-up, one to an address has none."""
    here = route(f"{HOST} 0 localhost 1 [name=named]\n{ANYWHERE}")
    found = scrape(metrics_url(here.forwarder))
    times = {key: value for key, value in found.items() if "dns_last_success" in key[0]}
    assert times.keys() == {series("dns_last_success_timestamp_seconds", forward="named")}
    assert found[series("start_time_seconds")] - 5 < sum(times.values()) <= time.time()
    assert total(found, "dns_lookups_total") == 1
    assert total(found, "dns_lookup_failures_total") == 0


def test_a_socket_that_cannot_be_had(route: StartRoute, tmp_path: Path) -> None:
    """When there is no socket of the backend's family the outcome is `local-socket-failed`, in log
    and counter, and the reason `local`."""
    here = route(ANYWHERE)
    fails = injected(here.forwarder.worker(), tmp_path, "socket", "error=EAFNOSUPPORT:when=1")
    with fails, connect(here.address) as client:
        assert read_to_end(client).data == b""
    found = at_rest(metrics_url(here.forwarder), 1)
    assert by(found, "connections_closed_total", "outcome") == {"local-socket-failed": 1}
    assert by(found, "backend_connect_failures_total", "reason") == {"local": 1}
    assert [line["outcome"] for line in here.forwarder.log_columns()] == ["local-socket-failed -"]


# Active.


def test_open_sessions_are_active(here: Route) -> None:
    """With 20 sessions open 20 are active, by the forward's counters as by the workers' own, and
    accepted is active and closed together, before and after some have gone."""
    url = metrics_url(here.forwarder)
    with ExitStack() as stack:
        for _ in range(5):
            here.turn()
        for _ in range(20):
            here.greet(stack.enter_context(here.pair()))
        until(lambda: total(scrape(url), "connections_closed_total") == 5)
        until(lambda: sessions(url) == 20, what="20 sessions")
        found = scrape(url)
        assert total(found, "connections_active") == 20
        assert total(found, "connections_accepted_total") == 25
    assert total(at_rest(url, 25), "connections_closed_total") == 25


def test_a_dial_is_active(route: StartRoute) -> None:
    """A connection counts from accept on, while its backend has not answered yet."""
    with ExitStack() as stack:
        slow, port = full(stack), free_port()
        here = route(f"{HOST} {port} {slow.host} {slow.port} [name=full]\n{ANYWHERE}")
        url = metrics_url(here.forwarder)
        stack.enter_context(connect((HOST, port)))
        until(lambda: total(scrape(url), "connections_active", forward="full") == 1)
        assert sessions(url) == 1


# Workers.


def test_sessions_of_a_killed_worker(here: Route) -> None:
    """They are closed as `worker-died`, exactly they; accepted stays, and so do the others."""
    url = metrics_url(here.forwarder)
    with ExitStack() as stack:
        for _ in range(30):
            here.greet(stack.enter_context(here.pair()))
        until(lambda: sessions(url) == 30, what="30 sessions")
        lost = status(url)["workers"][0]["sessions"]
        victim = here.forwarder.worker(0)
        os.kill(victim, signal.SIGKILL)
        successor(here.forwarder, 0, victim)
        found = scrape(url)
        assert by(found, "connections_closed_total", "outcome") == {"worker-died": lost}
        assert total(found, "connections_active") == 30 - lost
        assert total(found, "connections_accepted_total") == 30
        assert 0 < lost < 30
        until(lambda: sessions(url) == 30 - lost, what="the successor to have none of them")
    found = at_rest(url, 30)
    assert total(found, "connections_closed_total", outcome="worker-died") == lost
    assert total(found, "log_lines_total") == len(here.forwarder.log_lines()) == 60 - lost


def test_sessions_of_a_worker_killed_in_a_drain(here: Route) -> None:
    """Without a successor they are gone all the same, and only those of the other one are left."""
    url = metrics_url(here.forwarder)
    with ExitStack() as stack:
        for _ in range(30):
            here.greet(stack.enter_context(here.pair()))
        until(lambda: sessions(url) == 30, what="30 sessions")
        lost = status(url)["workers"][0]["sessions"]
        here.forwarder.send(signal.SIGUSR1)
        here.forwarder.wait_said("draining")
        os.kill(here.forwarder.worker(0), signal.SIGKILL)
        until(lambda: scrape(url)[series("workers_running")] == 1, what="its death")
        assert total(scrape(url), "connections_active") == sessions(url) == 30 - lost
        assert total(scrape(url), "worker_restarts_total") == 1


def test_bytes_of_a_killed_worker_stay(here: Route) -> None:
    """Nothing falls: what its sessions had moved is counted still."""
    url = metrics_url(here.forwarder)
    with here.pair() as pair:
        here.greet(pair)
        until(lambda: total(scrape(url), "client_sent_bytes_total") == 4)
        for slot, victim in here.forwarder.workers().items():
            os.kill(victim, signal.SIGKILL)
            successor(here.forwarder, slot, victim)
        found = scrape(url)
    for name in ("client_received_bytes_total", "client_sent_bytes_total"):
        assert total(found, name) == 4


def test_processor_time_does_not_fall(route: StartRoute) -> None:
    """Not in any look while a worker that has used some is killed and replaced."""
    here = route(ANYWHERE)
    url = metrics_url(here.forwarder)
    victim = here.forwarder.worker()
    seen: list[dict[str, float]] = []

    def busy() -> bool:
        with here.pair() as pair, Sending(pair.client, noise(MIB) * 10):
            assert len(read_to_end(pair.backend).data) == 10 * MIB
        (worker,) = status(url)["workers"]
        return bool(sum(worker["cpu_seconds"].values()) >= 0.1)

    def replaced() -> bool:
        (worker,) = status(url)["workers"]
        seen.append(worker["cpu_seconds"])
        return bool(worker["running"] and worker["pid"] != victim)

    until(busy, what="a tenth of a second")
    assert not replaced()
    os.kill(victim, signal.SIGKILL)
    until(replaced, what="the successor")
    # Another exporter, which remembers nothing, knows what the dead one has used.
    exporter = here.forwarder.exporter()
    assert exporter is not None
    os.kill(exporter, signal.SIGKILL)
    until(lambda: here.forwarder.exporter() not in (None, exporter), what="another exporter")
    replaced()
    for mode in ("user", "system"):
        assert [each[mode] for each in seen] == sorted(each[mode] for each in seen)


def test_restarts_by_reason(route: StartRoute) -> None:
    """A worker that exits, one that is killed and one that hangs are told apart, by slot."""
    here = route(ANYWHERE, workers=3)
    url = metrics_url(here.forwarder)
    ends = ("exit", signal.SIGTERM), ("signal", signal.SIGKILL), ("watchdog", signal.SIGSTOP)
    victims = here.forwarder.workers()
    for slot, (_, number) in enumerate(ends):
        os.kill(victims[slot], number)
    for slot, victim in victims.items():
        successor(here.forwarder, slot, victim, WATCHDOG)
    for slot, (reason, _) in enumerate(ends):
        assert by(scrape(url), "worker_restarts_total", "reason", slot=str(slot)) == {reason: 1}


def test_a_planned_end_is_no_restart(here: Route) -> None:
    """A worker that a drain has ended is not counted, only missed."""
    url = metrics_url(here.forwarder)
    with here.pair() as pair:
        here.greet(pair)
        here.forwarder.send(signal.SIGUSR1)
        until(lambda: scrape(url)[series("workers_running")] == 1, what="the idle worker's end")
        assert total(scrape(url), "worker_restarts_total") == 0


def test_open_files_of_workers(here: Route) -> None:
    """As many as /proc/PID/fd has, although workers are somebody else's processes; with sessions,
    and for a successor."""
    url = metrics_url(here.forwarder)

    def told() -> bool:
        found = scrape(url)
        return all(
            found.get(series("worker_open_fds", slot=str(slot))) == len(processes.descriptors(pid))
            for slot, pid in here.forwarder.workers().items()
        )

    until(told, what="the open files of idle workers")
    with ExitStack() as stack:
        for _ in range(20):
            here.greet(stack.enter_context(here.pair()))
        until(told, what="the open files of busy workers")
    victim = here.forwarder.worker(0)
    os.kill(victim, signal.SIGKILL)
    successor(here.forwarder, 0, victim)
    until(told, what="the open files of a successor")


def test_times_of_workers(here: Route) -> None:
    """They were started after the program, and their hearts have beaten within two seconds."""
    found = status(metrics_url(here.forwarder))
    for worker in found["workers"]:
        assert found["started"] <= worker["started"] <= found["time"]
        assert found["time"] - worker["heartbeat"] < 2


# Reloads.


def test_a_removed_forward_is_counted_on(here: Route) -> None:
    """A session that outlives its forward is active, and its bytes are counted; the forward is no
    longer described."""
    url, label = metrics_url(here.forwarder), label_of(here)
    with here.pair() as pair:
        here.greet(pair)
        until(lambda: total(scrape(url), "client_sent_bytes_total", forward=label) == 4)
        here.forwarder.reload(f"{HOST} 0 {HOST} 1 [name=other]\n{ANYWHERE}")
        here.greet(pair)
        until(lambda: total(scrape(url), "client_sent_bytes_total", forward=label) == 8)
        found = scrape(url)
        assert total(found, "connections_active", forward=label) == 1
        assert by(found, "forward_info", "forward") == {"other": 1}
        configured = {each["forward"]: each["configured"] for each in status(url)["forwards"]}
        assert configured == {"other": True, label: False}
    found = at_rest(url, 1)
    assert total(found, "connections_closed_total", forward=label) == 1


def test_a_forward_that_comes_back_counts_on(here: Route) -> None:
    """Removed, and brought back with another target, it goes on from where it was."""
    url, label = metrics_url(here.forwarder), label_of(here)
    here.turn()
    at_rest(url, 1)
    here.forwarder.reload(f"{HOST} 0 {HOST} 1 [name=other]\n{ANYWHERE}")
    with Listener() as elsewhere:
        again = Route(here.forwarder, here.address, elsewhere)
        here.forwarder.reload(line_of(again) + ANYWHERE)
        again.turn()
    found = at_rest(url, 2)
    assert total(found, "connections_accepted_total", forward=label) == 2
    assert total(found, "client_sent_bytes_total", forward=label) == 8
    assert by(found, "forward_info", "target") == {f"{elsewhere.host}:{elsewhere.port}/tcp": 1}


def test_two_forwards_are_counted_apart(route: StartRoute) -> None:
    """What happens to one is not seen at the other, across a reload that puts them in another order."""
    with Listener() as elsewhere:
        port = free_port()
        second = f"{HOST} {port} {elsewhere.host} {elsewhere.port} [name=second]\n"
        here = route(second + ANYWHERE)
        url, label = metrics_url(here.forwarder), label_of(here)
        there = Route(here.forwarder, (HOST, port), elsewhere)
        here.turn()
        there.turn()
        here.forwarder.reload(second + line_of(here) + ANYWHERE)
        there.turn()
        found = at_rest(url, 3)
    assert by(found, "connections_accepted_total", "forward") == {label: 1, "second": 2}
    assert by(found, "client_received_bytes_total", "forward") == {label: 4, "second": 8}


def test_reloads_are_counted(here: Route) -> None:
    """A refused one is a failure, and unsuccessful until one is applied."""
    url = metrics_url(here.forwarder)
    config = here.forwarder.config_path.read_text()
    names = ("config_reloads_total", "config_reload_failures_total", "config_last_reload_successful")

    def figures() -> list[float]:
        found = scrape(url)
        return [found[series(name)] for name in names]

    assert figures() == [0, 0, 1]
    here.forwarder.reload("nonsense\n")
    until(lambda: figures() == [1, 1, 0], what="the refused reload")
    applied = scrape(url)[series("config_last_reload_success_timestamp_seconds")]
    here.forwarder.reload(config)
    until(lambda: figures() == [2, 1, 1], what="the applied reload")
    assert scrape(url)[series("config_last_reload_success_timestamp_seconds")] > applied


def test_forwards_that_share_a_label(forwarder: StartForwarder) -> None:
    """Two forwards on any port of one address have one row; the page is valid OpenMetrics all
    the same, and their queues are counted together."""
    one = forwarder(f"{HOST} 0 {HOST} 1\n{ANYWHERE}", workers=1)
    two = forwarder(f"{HOST} 0 {HOST} 1\n{HOST} 0 {HOST} 2\n{ANYWHERE}", workers=1)
    answer = request(metrics_url(two), "/metrics", headers={"Accept": "application/openmetrics-text"})
    families = text_string_to_metric_families(answer.body.decode())  # type: ignore[no-untyped-call]
    assert list(families)
    found = scrape(metrics_url(two))
    assert by(found, "forward_info", "forward") == {f"{HOST}:0/tcp": 1}

    def limit(running: Forwarder) -> float:
        return total(scrape(metrics_url(running)), "listener_queue_limit")

    until(lambda: limit(two) == 2 * limit(one) > 0, what="the queues of both")


# What runs short.


def test_queues_of_stopped_workers(here: Route) -> None:
    """Clients that nobody accepts are in the queues, every one; later in none."""
    url = metrics_url(here.forwarder)
    with ExitStack() as stack:
        with here.frozen():
            for _ in range(30):
                stack.enter_context(connect(here.address))
            until(lambda: total(scrape(url), "listener_queue_length") == 30, what="30 in the queues")
            assert all(each > 0 for each in by(scrape(url), "listener_queue_length", "slot").values())
        until(lambda: total(scrape(url), "listener_queue_length") == 0, what="empty queues")
        until(lambda: total(scrape(url), "connections_active") == 30)


FILES = 64
"""Descriptors that a process may have in the next two tests."""


@contextmanager
def crowd(forwarder: StartForwarder, backend: StartServer, spare: int) -> Iterator[Forwarder]:
    """A worker with more clients than it has descriptors for: two for each, and `spare` (0 or 1)
    left over. They stay inside the block, and are served to the end after it."""
    port, behind = free_port(), backend(echo)
    config = f"{HOST} {port} {behind.host} {behind.port}\n{ANYWHERE}"
    limit = [require_peer("prlimit"), f"--nofile={FILES}:{FILES}"]
    running = forwarder(config, command=limit, workers=1)

    def left() -> int:
        return FILES - len(processes.descriptors(running.worker()))

    if left() % 2 != spare:
        running.reload(f"{config}{HOST} 0 {HOST} 1\n")  # another listener
        until(lambda: left() % 2 == spare, what="the number of descriptors")
    with ExitStack() as stack:
        clients = [stack.enter_context(connect((HOST, port))) for _ in range(left() // 2 + 20)]
        yield running
        for client in clients:
            finish(client)
        assert {read_to_end(client).how for client in clients} == {"EOF"}
    at_rest(metrics_url(running), len(clients))


def test_out_of_descriptors_for_clients(forwarder: StartForwarder, backend: StartServer) -> None:
    """accept(2) that fails for want of descriptors is counted, at least as often as the log says
    so, and so is the time without accepting."""
    with crowd(forwarder, backend, 0) as running:
        url = metrics_url(running)
        until(lambda: by(scrape(url), "accept_errors_total", "reason").get("emfile", 0) > 1)
        until(lambda: total(scrape(url), "accept_paused_seconds_total") > 0)
        assert scrape(url)[series("worker_max_fds", slot="0")] == FILES
    found = scrape(url)
    assert by(found, "accept_errors_total", "reason").keys() == {"emfile"}
    failed = sum(line["outcome"] == "accept-failed -" for line in running.log_columns())
    assert 1 <= failed <= total(found, "accept_errors_total")


def test_out_of_descriptors_for_backends(forwarder: StartForwarder, backend: StartServer) -> None:
    """When there is one for a client but none to dial with, it is not accept(2) that fails; the
    time without accepting is counted all the same."""
    with crowd(forwarder, backend, 1) as running:
        url = metrics_url(running)
        until(lambda: total(scrape(url), "accept_paused_seconds_total") > 0)


def test_lines_that_the_log_would_not_take(route: StartRoute) -> None:
    """Lines lost on a full disk are counted as lost, and none as written."""
    here = route(f"logfile /dev/full\n{ANYWHERE}", workers=2)
    url = metrics_url(here.forwarder)
    for _ in range(10):
        here.turn()
    assert total(at_rest(url, 10), "log_lines_dropped_total") == 0  # kept: there may be room later
    here.forwarder.reload()
    found = scrape(url)
    assert total(found, "log_lines_dropped_total") == 20
    assert total(found, "log_lines_total") == 0


# Rates.


def history_of(url: str) -> dict[str, list[float]]:
    """The rates that the only forward has had."""
    (forward,) = status(url, "?history")["forwards"]
    history: dict[str, list[float]] = forward["history"]
    return history


def test_rates(here: Route) -> None:
    """What has happened between two samples is a rate, of the forward and of all; the history
    has it too, if asked for, but for datagrams."""
    url = metrics_url(here.forwarder)
    with here.pair() as pair:
        pair.client.sendall(noise(MIB))
        assert read_exactly(pair.backend, MIB) == noise(MIB)
    until(lambda: sum(history_of(url)["received_bytes"]) > 0, what="the bytes in the history")
    found = status(url)
    (forward,) = found["forwards"]
    kept = {*history_of(url), "received_datagrams", "sent_datagrams"}
    assert found["totals"]["rates"].keys() == forward["rates"].keys() == kept
    assert forward["history"] is None
