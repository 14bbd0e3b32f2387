"""The rules over a fleet and their federation: promtool's word, and two programs under a real Prometheus."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import StartForwarder
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import answer_at_end, serve
from tests.sockets import connect, finish, read_to_end
from tests.system.metrics import metrics_url
from tests.system.prometheus import Prometheus
from tests.system.test_prometheus_rules import FILES, promtool

FLEET = FILES / "fleet.rules.yml"
RULES = [FILES / "fastfwd.rules.yml", FLEET]

RECORDS = [rule["record"] for group in yaml.safe_load(FLEET.read_text())["groups"] for rule in group["rules"]]


def test_the_rule_file() -> None:
    """Every rule is valid, and no two are the same."""
    assert f"SUCCESS: {len(RECORDS)} rules found" in promtool("check", "rules", "--lint-fatal", FLEET)


def test_tests_of_the_rule_file() -> None:
    """promtool's unit tests pass."""
    promtool("test", "rules", FLEET.with_suffix(".test.yml"))


def test_every_rule_is_tested() -> None:
    """Every recorded series has an expected value there."""
    tests = yaml.safe_load(FLEET.with_suffix(".test.yml").read_text())["tests"]
    expressions = [case["expr"] for group in tests for case in group["promql_expr_test"]]
    assert [name for name in RECORDS if not any(f"({name}," in text for text in expressions)] == []


def test_the_federation_s_configuration() -> None:
    """Prometheus would start with it."""
    promtool("check", "config", "federation.yml")


# Two instances, a Prometheus that scrapes both, and one above it.


class Fleet:
    """Two running programs, each with a forward `web` to one backend; the second has one called `spare` too.
    `lower` scrapes both, `upper` federates from `lower` as federation.yml says."""

    def __init__(self, directory: Path, backend: tuple[str, int], start: Any) -> None:
        host, port = backend
        self.ports = [free_port(), free_port()]
        spare = f"127.0.0.1 {free_port()} {host} {port} [name=spare]\n"
        self.running: list[Forwarder] = [
            start(f"127.0.0.1 {mine} {host} {port} [name=web]\n{more}metrics 127.0.0.1:0\n")
            for mine, more in zip(self.ports, ("", spare), strict=True)
        ]
        below = directory / "lower"
        below.mkdir()
        self.lower = Prometheus(below, metrics_url(self.running[0]), RULES)
        # The class has one target; this Prometheus takes the other from its file at a reload.
        config = yaml.safe_load((below / "prometheus.yml").read_text())
        config["global"]["external_labels"] = {"site": "berlin"}
        targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
        targets.append(metrics_url(self.running[1]).removeprefix("http://").rstrip("/"))
        (below / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.upper = upper(directory, self.lower)

    def visit(self, instance: int) -> None:
        """One connection through an instance's `web`."""
        with connect(("127.0.0.1", self.ports[instance])) as client:
            finish(client)
            assert read_to_end(client).data == b""


@pytest.fixture
def fleet(tmp_path: Path, forwarder: StartForwarder) -> Iterator[Fleet]:
    """The two, with both of Prometheus ready: each takes five seconds to begin with its targets."""
    require_peer("prometheus")
    with serve(answer_at_end) as backend:
        found = Fleet(tmp_path, backend.address, forwarder)
        with found.lower, found.upper:
            for each in (found.lower, found.upper):
                each.process.send_signal(signal.SIGHUP)  # read the file as it is now
            found.lower.wait("sum(up)", 2)
            yield found


def upper(directory: Path, lower: Prometheus) -> Prometheus:
    """A Prometheus with federation.yml, which asks `lower`; more often than that says."""
    above = directory / "upper"
    above.mkdir()
    found = Prometheus(above, f"http://127.0.0.1:{lower.port}/")
    config = yaml.safe_load((FILES / "federation.yml").read_text())
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{lower.port}"]}]
    job["scrape_interval"] = job["scrape_timeout"] = "1s"
    (above / "prometheus.yml").write_text(yaml.safe_dump(config))
    return found


def test_a_fleet_and_its_federation(fleet: Fleet) -> None:
    """Figures of two instances are added up, differences between them are found, and all of it, and nothing
    else, comes to the Prometheus above, with the site's name."""
    lower = fleet.lower
    lower.wait("job:fastfwd_instances_up:sum", 2)
    lower.wait("job:fastfwd_forwards_missing:sum", 1)
    fleet.visit(0)
    fleet.visit(1)
    until(
        lambda: (lower.value('job_forward:fastfwd_connections_accepted:rate5m{forward="web"}') or 0) > 0, 20
    )
    # The evaluation may be one scrape behind; the counters themselves are exact.
    lower.wait('sum(fastfwd_connections_accepted_total{forward="web"})', 2)
    above = fleet.upper
    above.wait('job:fastfwd_instances_up:sum{job="fastfwd", site="berlin"}', 2)
    above.wait('job:fastfwd_forwards_missing:sum{site="berlin"}', 1)
    names = {sample.labels["__name__"] for sample in above.query('{__name__=~".*fastfwd.*"}')}
    assert names <= set(RECORDS)
    known = {sample.labels["__name__"] for sample in lower.query('{__name__=~"job.*:.+"}')}
    until(lambda: known <= {s.labels["__name__"] for s in above.query('{__name__=~".*fastfwd.*"}')}, 15)
    fleet.running[1].stop()
    lower.wait("job:fastfwd_instances_up:sum", 1)
    lower.wait("job:fastfwd_instances:count", 2)
