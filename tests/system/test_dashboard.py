"""The Grafana dashboard and the documents' queries, run against a real Prometheus and a busy program."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests import deadline
from tests.datagrams import udp_client
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.load import Load, successor
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import serve_apart
from tests.sockets import connect, read_exactly, read_to_end
from tests.system.metrics import metrics_url
from tests.system.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "deploy" / "grafana" / "dashboard.py"
DASHBOARD = GENERATOR.with_suffix(".json")

Json = dict[str, Any]

BOARD: Json = json.loads(DASHBOARD.read_text())
PANELS: list[Json] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES: list[Json] = [each for each in BOARD["templating"]["list"] if each["type"] == "query"]

COLUMNS = 24
"""Of Grafana's grid."""

WITHOUT_DATA = {
    "docs/metrics.md: fastfwd_scrape_collect_seconds > 0.1",
    "docs/metrics.md: fastfwd_config_last_reload_successful == 0",
    "docs/metrics.md: sum by (reason) (rate(fastfwd_accept_errors_total[5m])) > 0",
    "docs/metrics.md: increase(fastfwd_pipes_short_total[1h]) > 0",
    "docs/metrics.md: increase(fastfwd_log_lines_dropped_total[1d]) > 0",
    "docs/metrics.md: sum by (forward, reason) (rate(fastfwd_udp_datagrams_dropped_total[5m])) > 0",
    'docs/metrics.md: rate(fastfwd_connections_closed_total{outcome="evicted"}[5m]) > 0',
    "docs/metrics.md: rate(fastfwd_tls_streams_cut_total[5m]) > 0",
    "docs/metrics.md: fastfwd_tls_session_tickets_shared == 0",
    "docs/metrics.md: fastfwd_tls_in_kernel == 1",
    "docs/metrics.md: sum by (forward, reason) (rate(fastfwd_proxy_header_failures_total[5m])) > 0",
    "docs/runbooks.md: fastfwd_listener_queue_length / fastfwd_listener_queue_limit > 0.8",
    "docs/runbooks.md: rate(fastfwd_accept_paused_seconds_total[5m]) > 0",
    "docs/runbooks.md: sum by (forward, reason) (rate(fastfwd_udp_datagrams_dropped_total[5m])) > 0",
    "docs/runbooks.md: rate(fastfwd_dns_lookup_failures_total[1h]) > 0",
}
"""Queries that look for something wrong, which is not wrong here; every other one must have data."""


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Where each query of the dashboard stands, and its text, Grafana's variables replaced."""
    found = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    ]
    found += [(each["name"], each["expr"]) for each in BOARD["annotations"]["list"]]
    for where, expression in found:
        for name, value in (
            ("$__rate_interval", "20s"),
            ("$job", ".*"),
            ("$instance", ".*"),
            ("$forward", ".*"),
        ):
            expression = expression.replace(name, value)  # noqa: PLW2901
        assert "$" not in expression
        yield where, expression


def document_queries(path: Path) -> Iterator[tuple[str, str]]:
    """The queries in a document's PromQL blocks: one a line, longer ones indented from the second line on."""
    for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL):
        code = "\n".join(line for line in block.splitlines() if not line.startswith("#"))
        for expression in re.split(r"\n(?! )", code.strip()):
            yield f"{path.relative_to(ROOT)}: {expression}", expression


QUERIES = [
    *dashboard_queries(),
    *document_queries(ROOT / "docs" / "metrics.md"),
    *document_queries(ROOT / "docs" / "runbooks.md"),
]


# The file.


def test_the_json_is_what_the_generator_prints() -> None:
    """dashboard.json has not been changed by hand, nor been forgotten."""
    printed = subprocess.run(
        [sys.executable, str(GENERATOR)],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline.seconds(20),
    )
    assert printed.stdout == DASHBOARD.read_text()


def test_panels_lie_side_by_side() -> None:
    """No two cover each other, and none leaves the grid."""
    covered: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert cells.isdisjoint(covered), panel["title"]
        assert at["x"] + at["w"] <= COLUMNS, panel["title"]
        covered |= cells


def test_panels_have_numbers_of_their_own() -> None:
    """No id is used twice."""
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert sorted(set(numbers)) == sorted(numbers)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: Json) -> None:
    """It has a description, a unit, and queries with letters of their own, all from the chosen source."""
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert sorted(set(letters)) == letters != []
    assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}


# A busy program.


def test_what_may_be_without_data() -> None:
    """Those queries exist."""
    assert {where for where, _ in QUERIES} > WITHOUT_DATA


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus beside a program to which a bit of everything happens, again and again."""
    require_peer("prometheus")
    directory = tmp_path_factory.mktemp("busy")
    echoing, refusing, denying, named, several, asking, secure, announced = (free_port() for _ in range(8))
    authority = trustme.CA()
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    own = directory / "own.pem"
    own.write_bytes(authority.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    own.chmod(0o600)
    with ExitStack() as stack:
        backend = stack.enter_context(serve_apart("echo"))
        target = f"{backend.host} {backend.port}"
        config = (
            f"127.0.0.1 {echoing} {target} [name=echo]\n"
            f"127.0.0.1 {refusing} 127.0.0.1 {free_port()} [name=refusing]\n"
            f"127.0.0.1 {denying} {target} [name=denying]\ndeny *\n"
            f"127.0.0.1 {named} localhost {free_port()} [name=named]\n"
            f"127.0.0.1 {several} 127.0.0.1:{free_port()},{backend.host}:{backend.port} 1 [name=several]\n"
            f"127.0.0.1 {asking}/udp 127.0.0.1 {free_port()}/udp [name=udp]\n"
            f"127.0.0.1 {secure} {target} [name=secure, tls-accept, cert={own}]\n"
            f"127.0.0.1 {announced} {target} [name=announced, accept-proxy=192.0.2.1]\n"
            "max-udp-connections 1\nmetrics 127.0.0.1:0\n"
        )
        forwarder = stack.enter_context(Forwarder(directory, config, workers=2))
        prometheus = stack.enter_context(Prometheus(directory, metrics_url(forwarder)))
        load = stack.enter_context(Load(("127.0.0.1", echoing), 20))
        load.open_streams(16)  # so many that each worker has some
        prometheus.wait("up", 1)
        forwarder.reload()
        victim = forwarder.worker(0)
        os.kill(victim, signal.SIGKILL)
        successor(forwarder, 0, victim)
        load.open_streams(4)

        def scraped() -> bool:
            with (
                connect(("127.0.0.1", secure)) as client,
                trusting.wrap_socket(client, server_hostname="localhost") as greeted,
            ):
                greeted.sendall(b"x")
                read_exactly(greeted, 1)
            with connect(("127.0.0.1", secure)) as client:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                read_to_end(client)
            for port in (refusing, denying, named):
                with connect(("127.0.0.1", port)) as client:
                    read_to_end(client)
            for _ in range(8):
                with connect(("127.0.0.1", several)) as client:
                    client.sendall(b"x")
                    read_exactly(client, 1)
                with udp_client(("127.0.0.1", asking)) as client:
                    for _ in range(3):  # one is refused, and the next one is told
                        client.send(b"x")
            return (prometheus.value("count_over_time(up[1m])") or 0) >= 6

        until(scraped, 20, "scrapes")
        yield prometheus


@pytest.mark.parametrize(("where", "expression"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query(busy: Prometheus, where: str, expression: str) -> None:
    """Prometheus understands it, and it has data, unless it looks for something wrong."""
    found = busy.query(expression)
    if where not in WITHOUT_DATA:
        assert found != []


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable["name"])
def test_a_variable_has_values(busy: Prometheus, variable: Json) -> None:
    """The choices of each of the dashboard's variables are found."""
    found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    assert found
    selector = re.sub(r"\$\w+", ".*", found[1])
    assert busy.ask(f"label/{found[2]}/values", **{"match[]": selector}) != []
