"""One module per scenario; SCENARIOS has them in the order of the report."""

from __future__ import annotations

from bench.scenario import Scenario
from bench.scenarios import (
    access,
    bulk,
    connections,
    datagrams,
    handshakes,
    idle,
    logging,
    memory,
    mixed,
    reload,
    requests,
    scaling,
    scrape,
    startup,
    tls_chain,
    tls_memory,
    tls_requests,
)

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        bulk,
        requests,
        connections,
        idle,
        mixed,
        datagrams,
        memory,
        tls_requests,
        handshakes,
        tls_chain,
        tls_memory,
        logging,
        access,
        startup,
        reload,
        scaling,
        scrape,
    )
}
