"""The rules, alerts and runbooks that come along: valid, tested each, and complete.

What they say is tested by promtool on invented series (deploy/prometheus/*.test.yml);
here a real Prometheus also loads them beside a real program that has nothing to do.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests import deadline
from tests.deadline import until
from tests.forwarder import Forwarder
from tests.peers import require_peer
from tests.ports import free_port
from tests.system.metrics import metrics_url
from tests.system.prometheus import Prometheus

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "prometheus"
RULES = FILES / "fastfwd.rules.yml"
ALERTS = FILES / "fastfwd.alerts.yml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"

Json = dict[str, Any]


def promtool(*arguments: object) -> str:
    """Run promtool in the rules' directory; it must succeed."""
    done = subprocess.run(
        [require_peer("promtool"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=FILES,
        timeout=deadline.seconds(60),
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def rules(path: Path) -> list[Json]:
    """Every rule of a rule file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def groups(path: Path) -> list[Json]:
    """Every test group that belongs to a rule file."""
    found: list[Json] = yaml.safe_load(path.with_suffix(".test.yml").read_text())["tests"]
    return found


ALERT = {rule["alert"]: rule for rule in rules(ALERTS)}
RECORD = {rule["record"]: rule for rule in rules(RULES)}
CASES = {group["name"]: group for group in groups(ALERTS)}

each_alert = pytest.mark.parametrize("name", ALERT)


# What promtool says.


def test_scrape_configuration() -> None:
    """Prometheus would start with scrape.yml, and finds the rules it names."""
    assert "2 rule files found" in promtool("check", "config", "scrape.yml")


@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_rule_file(path: Path) -> None:
    """Every rule is valid, and no two are the same."""
    assert f"SUCCESS: {len(rules(path))} rules found" in promtool("check", "rules", "--lint-fatal", path)


@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_tests_of_a_rule_file(path: Path) -> None:
    """promtool's unit tests pass."""
    promtool("test", "rules", path.with_suffix(".test.yml"))


# Complete.


def test_every_recording_rule_is_tested() -> None:
    """Every recorded series has an expected value."""
    expressions = [case["expr"] for group in groups(RULES) for case in group["promql_expr_test"]]
    assert {name for name in RECORD if not any(name in text for text in expressions)} == set()


@each_alert
def test_an_alert_has_a_case_that_fires(name: str) -> None:
    """Over the threshold it fires, with every label and annotation as expected; not at once."""
    group = CASES[name]
    assert {case["alertname"] for case in group["alert_rule_test"]} == {name}
    before, *_, after = [case["exp_alerts"] for case in group["alert_rule_test"]]
    assert before == []
    above = [fired for fired in after if fired["exp_labels"]["instance"] == "above"]
    assert [set(fired["exp_annotations"]) for fired in above] == [set(ALERT[name]["annotations"])]


@each_alert
def test_an_alert_has_a_case_that_stays_quiet(name: str) -> None:
    """The same series just under the threshold are fed in too, and are expected not to fire."""
    series: dict[str, set[str]] = {"above": set(), "below": set()}
    for each in CASES[name]["input_series"]:
        for instance, found in series.items():
            if f'instance="{instance}"' in each["series"]:
                # How a histogram's observations are spread may differ, what is counted may not.
                found.add(re.sub(r'(, )?(instance|le)="[^"]*"', "", each["series"]))
    assert series["above"] == series["below"] != set()
    fired = [alert for case in CASES[name]["alert_rule_test"] for alert in case["exp_alerts"]]
    assert "below" not in {alert["exp_labels"]["instance"] for alert in fired}


@each_alert
def test_what_an_alert_says(name: str) -> None:
    """Severity, summary, description and runbook are there; the description names the host."""
    alert = ALERT[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert "{{ $labels.instance }}" in notes["summary"]
    assert "{{ $labels.instance }}" in notes["description"]
    assert notes["runbook_url"] == f"docs/runbooks.md#{name.lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """The headings of docs/runbooks.md are the alerts, in their order."""
    headings = re.findall(r"^## (Fastfwd\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert headings == list(ALERT)


def test_the_job_of_scrape_configuration() -> None:
    """The job that an alert goes by is the one scrape.yml makes."""
    (job,) = yaml.safe_load((FILES / "scrape.yml").read_text())["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in ALERT["FastfwdDown"]["expr"]


# Beside a real program that has just started and has nothing to do.


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with all rules, after several scrapes and evaluations."""
    require_peer("prometheus")
    directory = tmp_path_factory.mktemp("idle")
    own = directory / "own.pem"
    own.write_bytes(trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    own.chmod(0o600)
    spread = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    config = (
        f"127.0.0.1 {free_port()} localhost {free_port()}\n"
        f"127.0.0.1 {free_port()} {spread} 1\n"
        f"127.0.0.1 {free_port()}/udp 127.0.0.1 {free_port()}/udp\n"
        f"127.0.0.1 {free_port()} 127.0.0.1 {free_port()} [tls-accept, cert={own}, tls-connect]\n"
        "metrics 127.0.0.1:0\n"
    )
    with (
        Forwarder(directory, config) as forwarder,
        Prometheus(directory, metrics_url(forwarder), [RULES, ALERTS]) as prometheus,
    ):
        until(lambda: (prometheus.value("count_over_time(up[1m])") or 0) >= 5, 15, "scrapes")
        yield prometheus


def evaluated(prometheus: Prometheus) -> list[Json]:
    """Every rule as Prometheus sees it, once all have been evaluated."""

    def look() -> list[Json] | None:
        found = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else None

    return until(look, 15, "all rules evaluated") or []


def test_every_rule_can_be_evaluated(idle: Prometheus) -> None:
    """No rule has an error."""
    found = evaluated(idle)
    assert {rule["name"] for rule in found} == {*ALERT, *RECORD}
    assert [rule for rule in found if rule["health"] != "ok"] == []


@pytest.mark.parametrize("record", RECORD)
def test_a_recording_rule_has_data(idle: Prometheus, record: str) -> None:
    """It has a series as soon as there are two scrapes, traffic or not."""
    until(lambda: idle.query(record), 10, record)


def test_no_alert_beside_an_idle_program(idle: Prometheus) -> None:
    """Nothing fires and nothing is pending: having just started is no fault."""
    evaluated(idle)
    noticed = {alert["labels"]["alertname"] for alert in idle.ask("alerts")["alerts"]}
    assert noticed - {"FastfwdLoopLagHigh"} == set()  # which a machine busy with other things can bring about
