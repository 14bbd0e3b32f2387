"""What a connection with TLS costs in memory."""

from __future__ import annotations

from bench import clients
from bench.contenders import ENCRYPTING, Contender
from bench.lab import Lab
from bench.results import Case
from bench.scenario import Scenario
from bench.scenarios.memory import FIGURES

LATER = Case("1,000 idle, after 1 MiB", 1_000)


def measure(lab: Lab, contender: Contender, case: Case, seconds: float) -> dict[str, float]:
    """What the processes grow by while as many connections are opened as the case says."""
    count = int(case.value)
    with lab.start_tls(contender) as way:
        # As without TLS: what is set up by the first clients is no idle connection's.
        clients.handshakes(way.ports[0], 8, 1, resume=False)
        before = way.memory()
        after = "large" if case is LATER else ""
        with clients.idle(way.ports[0], lab.web[contender.name], count, tls=True, after=after):
            return {"connection": (way.memory() - before) / count, "base": before / 2**20}


SCENARIO = Scenario(
    "tls-memory",
    "Memory of idle connections with TLS",
    "As *memory*, with connections that have shaken hands (TLS 1.3) and then say nothing, or have each got a"
    " file of 1 MiB before that. OpenSSL's part is the same for all.",
    "idle connections",
    FIGURES,
    (Case("1,000 idle", 1_000), LATER),
    ENCRYPTING,
    measure,
    quick=("1,000 idle",),
    rounds=3,
)
