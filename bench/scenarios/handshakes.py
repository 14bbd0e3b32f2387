"""A connection with TLS for each request."""

from __future__ import annotations

from bench import clients
from bench.contenders import ENCRYPTING, Contender
from bench.lab import Lab
from bench.results import Case, Figure
from bench.scenario import Scenario, priced

CLIENTS = 8
"""Processes, on two processors or a few."""

FIGURES = (
    Figure("rate", "handshakes per second", "1/s"),
    Figure("cpu", "CPU per handshake", "µs", less=True),
)

RESUMED = Case("resumed")


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """Connections whose handshakes are of the case's kind."""
    with lab.start_tls(contender) as way:
        before = way.cpu()
        found = clients.handshakes(way.ports[0], CLIENTS, seconds, resume=case is RESUMED)
        return {"rate": found.rate, **priced(way, before, found.count / 1e6)}


SCENARIO = Scenario(
    "handshakes",
    "TLS handshakes",
    f"`openssl s_time`, {CLIENTS} processes of it, makes one connection after the other with TLS 1.3 and asks"
    " for a file of 100 bytes on each, first with a full handshake every time (a certificate for ECDSA with"
    " P-256, keys agreed upon by X25519), then taking up an earlier session. A client's share of a full"
    " handshake costs more than the server's.",
    "",
    FIGURES,
    (Case("full"), RESUMED),
    ENCRYPTING,
    measure,
)
