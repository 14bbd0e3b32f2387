"""A long stream through two forwarders that have TLS in between."""

from __future__ import annotations

from bench import clients
from bench.contenders import ENCRYPTING, Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import NO_CLIENT_END, Scenario, priced
from bench.scenarios.bulk import FIGURES


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """As many flows at a time as the case says."""
    with lab.start_chain(contender) as way:
        before = way.cpu()
        with clients.Flows(way.ports[1], int(case.value), seconds) as streams:
            found = streams.finish()
        return {"rate": found.rate / 1e9, **priced(way, before, found.received / 1e9)}


SCENARIO = Scenario(
    "tls-chain",
    "A long stream through a chain with TLS",
    "iperf3 sends as fast as it can to one process of the program, which encrypts (TLS 1.3) and sends to a"
    " second one, which decrypts and sends to iperf3's receiver. The processor time is that of both.",
    "flows",
    FIGURES,
    (Case("1 flow", 1),),
    tuple(name for name in ENCRYPTING if name not in NO_CLIENT_END),
    measure,
    omitted=NO_CLIENT_END,
)
