"""Real programs talk UDP through it, and two thousand clients at once."""

from __future__ import annotations

import json
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import deadline, processes
from tests.apart import apart, said, say
from tests.conftest import StartForwarder
from tests.datagrams import LARGEST, UdpBackend, ask, udp_client
from tests.deadline import until
from tests.peers import require_peer
from tests.ports import free_port
from tests.sockets import Address
from tests.system.metrics import metrics_url, scrape, total

HOST = "127.0.0.1"


@contextmanager
def running(*command: str, ready: Address) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, from when it answers datagrams there to the end of the block."""
    with subprocess.Popen(
        [require_peer(command[0]), *command[1:]], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            until(lambda: bound(ready) or process.poll() is not None, what=f"{command[0]} to be there")
            yield process
        finally:
            process.terminate()


def bound(address: Address) -> bool:
    """Whether somebody has that port (proc(5), net/udp)."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return any(int(line[1].partition(":")[2], 16) == address[1] for line in lines)


@pytest.fixture
def names() -> Iterator[Address]:
    """A name server, dnsmasq, that knows what it was told."""
    port = free_port()
    text = "-".join(["long"] * 12)
    answers = [f"--txt-record=many.example,{number}{text}" for number in range(40)]
    with running(
        "dnsmasq",
        *("--no-daemon", "--conf-file=/dev/null", f"--port={port}", f"--listen-address={HOST}"),
        *("--bind-interfaces", "--no-resolv", "--no-hosts", "--edns-packet-max=4096"),
        *("--address=/www.example/192.0.2.80", *answers),
        ready=(HOST, port),
    ):
        yield HOST, port


def dig(port: int, *words: str) -> str:
    """What `dig` is told on that port."""
    done = subprocess.run(
        [require_peer("dig"), f"@{HOST}", "-p", str(port), "+tries=1", "+time=5", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(20),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_name_server(forwarder: StartForwarder, names: Address) -> None:
    """`dig` asks dnsmasq, over UDP and over TCP, on one port."""
    port = free_port()
    there = f"{names[0]} {names[1]}"
    forwarder(f"{HOST} {port}/udp {there}/udp\n{HOST} {port} {there}\n")
    assert dig(port, "+short", "www.example", "A") == "192.0.2.80\n"
    assert dig(port, "+short", "+tcp", "www.example", "A") == "192.0.2.80\n"


def test_an_answer_larger_than_a_packet(forwarder: StartForwarder, names: Address) -> None:
    """What the network cuts into fragments is one datagram on both sides."""
    port = free_port()
    forwarder(f"{HOST} {port}/udp {names[0]} {names[1]}/udp\n")
    said = dig(port, "+bufsize=4096", "+ignore", "many.example", "TXT")
    assert said.count('long"') == 40
    assert int(said.partition("MSG SIZE  rcvd: ")[2].split()[0]) > 2000


def test_netcat(forwarder: StartForwarder) -> None:
    """`nc -u` sends a line and shows the answer."""
    port = free_port()
    with UdpBackend(lambda data: [data.upper()]) as backend:
        forwarder(f"{HOST} {port}/udp {backend.host} {backend.port}/udp\n")
        done = subprocess.run(
            [require_peer("nc"), "-u", "-w1", HOST, str(port)],
            input=b"hello\n",
            capture_output=True,
            check=False,
            timeout=deadline.seconds(20),
        )
    assert done.stdout == b"HELLO\n"


def test_socat(forwarder: StartForwarder, tmp_path: Path) -> None:
    """socat on both ends: a client with an ephemeral port, a server that forks for each."""
    port, behind = free_port(), free_port()
    with running("socat", f"UDP4-RECVFROM:{behind},bind={HOST},fork", "EXEC:rev", ready=(HOST, behind)):
        forwarder(f"{HOST} {port}/udp {HOST} {behind}/udp\n")
        done = subprocess.run(
            [require_peer("socat"), "-t2", "-", f"UDP4:{HOST}:{port}"],
            input=b"stressed\n",
            capture_output=True,
            check=False,
            timeout=deadline.seconds(20),
        )
    assert done.stdout == b"desserts\n"


# Two thousand clients, as of a game: each sends now and then, and hears what the server has for it.

CLIENTS = 2000
TURNS = 3
AT_ONCE = 200
"""Datagrams under way: more than these the clients' own sockets would not take."""


def play(port: int, number: int) -> None:
    """A process of its own: so many clients, each with a canary; what was wrong, in JSON."""
    rng = random.Random(number)
    clients = []
    for each in range(number):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect((HOST, port))
        clients.append((client, b"<%d.%d>" % (each, rng.getrandbits(40))))
    wrong: list[str] = []
    lost = 0
    for turn in range(TURNS):
        for start in range(0, number, AT_ONCE):
            waiting = {}
            for client, canary in clients[start : start + AT_ONCE]:
                data = canary * rng.randint(1, 60) + b"%d" % turn
                client.send(data)
                waiting[client.fileno()] = client, data
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            limit = time.monotonic() + deadline.seconds(20)
            while waiting and time.monotonic() < limit:
                for descriptor, _ in poll.poll(100):
                    client, data = waiting.pop(descriptor)
                    poll.unregister(descriptor)
                    if (found := client.recv(LARGEST)) != data:
                        wrong.append(f"{found[:60]!r} instead of {data[:60]!r}")
            lost += len(waiting)
    for client, canary in clients:  # whatever came twice, or to the wrong one
        client.setblocking(False)
        try:
            wrong.append(f"{client.recv(LARGEST)[:60]!r} for {canary!r}, unasked")
        except BlockingIOError:
            client.close()
    say(json.dumps([wrong, lost]))


def test_a_crowd(forwarder: StartForwarder) -> None:
    """Every client hears its own datagrams, each once, and every one is a flow of its own."""
    port = free_port()
    with UdpBackend() as backend:
        config = f"{HOST} {port}/udp {backend.host} {backend.port}/udp\n"
        running = forwarder(f"{config}metrics {HOST}:{free_port()}\n")
        before = {pid: processes.rss(pid) for pid in running.workers().values()}
        with apart(__name__, port, CLIENTS) as crowd:
            wrong, lost = json.loads(said(crowd))
        assert (wrong, lost) == ([], 0)
        found = scrape(metrics_url(running))
        assert total(found, "connections_accepted_total") == CLIENTS
        assert total(found, "udp_datagrams_sent_total") == CLIENTS * TURNS
        assert len(backend.senders()) == CLIENTS
        grown = sum(processes.rss(pid) - old for pid, old in before.items())
        assert grown / CLIENTS <= 2048


def test_a_flood_of_strangers(forwarder: StartForwarder) -> None:
    """Ten thousand clients whom nobody answers: the table stays at its limit, and whoever was answered
    before is answered still."""
    port = free_port()
    with UdpBackend(lambda data: [data] if data.startswith(b"friend") else []) as backend:
        config = f"{HOST} {port}/udp {backend.host} {backend.port}/udp\nmax-udp-connections 500\n"
        running = forwarder(f"{config}metrics {HOST}:{free_port()}\n")
        with udp_client((HOST, port)) as friend:
            assert ask(friend, b"friend 0") == b"friend 0"
            source = backend.senders()[0]
            for number in range(10_000):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                    stranger.sendto(b"stranger", (HOST, port))
                if number % 100 == 0:
                    assert ask(friend, b"friend %d" % number) == b"friend %d" % number
        assert {sender for data, sender in backend.seen if data.startswith(b"friend")} == {source}
        until(lambda: total(scrape(metrics_url(running)), "connections_active") <= 501, what="room")


if __name__ == "__main__":
    play(int(sys.argv[1]), int(sys.argv[2]))
