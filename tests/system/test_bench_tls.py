"""TLS through the forwarders that the bench compares: everybody's connections are the same."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from bench import clients
from bench.contenders import CONTENDERS, ENCRYPTING, Contender
from bench.lab import Lab
from bench.processes import HOST
from bench.scenarios import SCENARIOS
from tests.peers import require_peer

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Backends; no namespace."""
    for name in ("wrk", "iperf3", "nginx", "openssl"):
        require_peer(name)
    with closing(Lab()) as lab:
        yield lab


@pytest.fixture(params=ENCRYPTING)
def contender(request: pytest.FixtureRequest) -> Contender:
    """One that is here."""
    found = CONTENDERS[request.param]
    if found.program:
        require_peer(found.program)
    return found


@pytest.fixture
def end(contender: Contender) -> Contender:
    """One that can be at both ends of a chain."""
    if contender.name not in SCENARIOS["tls-chain"].contenders:
        pytest.skip(f"{contender.name} is no client")
    return contender


def agreed(port: int) -> dict[str, str]:
    """What `openssl s_client` says it has agreed upon with who listens at a port."""
    done = subprocess.run(
        [require_peer("openssl"), "s_client", "-connect", f"{HOST}:{port}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"New, (\S+), Cipher is (\S+)", done.stdout)
    keys = re.search(r"Server Temp Key: (\w+)", done.stdout)
    proof = re.search(r"Peer signature type: (\w+)", done.stdout)
    if found is None or keys is None or proof is None:
        raise AssertionError(done.stdout)
    return {"version": found[1], "cipher": found[2], "keys": keys[1], "proof": proof[1]}


def test_everybody_agrees_upon_the_same(lab: Lab, contender: Contender) -> None:
    with lab.start_tls(contender) as way:
        assert agreed(way.ports[0]) == {
            "version": "TLSv1.3",
            "cipher": "TLS_AES_256_GCM_SHA384",
            "keys": "X25519",
            "proof": "ECDSA",
        }


@pytest.mark.parametrize("resume", [False, True])
def test_handshakes_are_counted(lab: Lab, contender: Contender, resume: bool) -> None:
    with lab.start_tls(contender) as way:
        found = clients.handshakes(way.ports[0], 2, 1, resume=resume)
    assert found.count > 0


def test_idle_connections_have_got_the_file(lab: Lab, contender: Contender) -> None:
    port = lab.web[contender.name]
    with (
        lab.start_tls(contender) as way,
        clients.idle(way.ports[0], port, 3, tls=True, after="large"),
    ):
        pass


def test_a_chain_passes_everything_on(lab: Lab, end: Contender) -> None:
    with (
        lab.start_chain(end) as way,
        socket.create_connection((HOST, way.ports[0]), 10) as connection,
    ):
        clients.fetch(connection, "large")
        assert len(way.pids) == 2


def test_a_file_that_does_not_come_is_an_error(lab: Lab) -> None:
    with (
        socket.create_connection((HOST, lab.web["direct"]), 10) as connection,
        pytest.raises(RuntimeError, match=r"^no file in the answer: HTTP/1.1 404"),
    ):
        clients.fetch(connection, "missing")


def test_without_tls_there_is_no_answer(lab: Lab, contender: Contender) -> None:
    with lab.start_tls(contender) as way:
        assert not clients.ask(way.ports[0], seconds=2).answered
