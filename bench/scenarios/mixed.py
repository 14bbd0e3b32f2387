"""Small requests while long streams pass."""

from __future__ import annotations

import time

from bench import clients
from bench.contenders import SPLICING, USUAL, Contender
from bench.lab import Lab
from bench.processes import ESTABLISHED, sockets, wait
from bench.results import Case, Figure
from bench.scenario import ACTIVE, FORKING, Scenario, priced

FIGURES = (
    Figure("p50", "latency of a request, median", "ms", ".2f", less=True),
    Figure("p99", "latency of a request, 99th percentile", "ms", ".2f", less=True),
    Figure("requests", "requests per second", "1/s"),
    Figure("bulk", "throughput of the streams", "Gbit/s", ".1f"),
    Figure("cpu", "processors used", "", ".2f", less=True),
)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """As many streams as the case says, and requests for as long as they last."""
    flows = int(case.value)

    def connected() -> int:
        return sockets(ESTABLISHED).count(lab.bulk)

    with lab.start(contender) as way:
        wait(lambda: not connected(), "iperf3 is free")
        before, begun = way.cpu(), time.monotonic()
        with clients.Flows(way.ports[1], flows, seconds) as streams:
            # iperf3 has one connection more, by which client and server agree.
            wait(lambda: connected() > flows, "the streams have reached iperf3", 0.005)
            beside = clients.requests(way.ports[0], ACTIVE, seconds)
            streamed = streams.finish()
        return {
            "p50": beside.p50,
            "p99": beside.p99,
            "requests": beside.rate,
            "bulk": streamed.rate / 1e9,
            **priced(way, before, time.monotonic() - begun),
        }


SCENARIO = Scenario(
    "mixed",
    "Small requests beside long streams",
    "iperf3 sends two streams as fast as it can; for the same time wrk asks for a file of 100 bytes over"
    " 64 connections that stay open. Both pass the same program, on a forward each.",
    "",
    FIGURES,
    (Case("2 flows", 2),),
    (*USUAL, *SPLICING),
    measure,
    omitted=FORKING,
)
