"""One module per scenario; SCENARIOS has them in the order of the report."""

from __future__ import annotations

from bench.scenario import Scenario
from bench.scenarios import bulk, connections, requests

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO for module in (bulk, requests, connections)
}
