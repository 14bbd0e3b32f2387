"""A real Prometheus that scrapes a running program, and its answers.

    with Prometheus(tmp_path, metrics_url(forwarder)) as prometheus:
        prometheus.wait('up{job="fastfwd"}', 1)
        assert prometheus.value("sum(fastfwd_connections_accepted_total)") == 10

It scrapes and evaluates once a second, keeps its data below the directory it is given and
listens on loopback only.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from tests import deadline
from tests.deadline import until
from tests.peers import require_peer
from tests.ports import free_port

SCRAPE_SECONDS = 1
"""Between two scrapes, and between two evaluations of rules."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of a query's answer."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """One running server that scrapes the exporter at `url` as the job `fastfwd`."""

    def __init__(self, directory: Path, url: str, rules: Sequence[Path] = ()) -> None:
        program = require_peer("prometheus")
        self.port = free_port()
        self.output = directory / "prometheus.log"
        config = directory / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {
                        "scrape_interval": f"{SCRAPE_SECONDS}s",
                        "scrape_timeout": f"{SCRAPE_SECONDS}s",
                        "evaluation_interval": f"{SCRAPE_SECONDS}s",
                    },
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": [
                        {"job_name": "fastfwd", "static_configs": [{"targets": [urlsplit(url).netloc]}]},
                    ],
                }
            )
        )
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
            )

    def get(self, path: str, **parameters: str) -> str:
        """The body of a GET; an error of the server's is an assertion with its words."""
        url = f"http://127.0.0.1:{self.port}/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=deadline.seconds(20)) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{url}: {error.code} {error.read().decode()}") from None

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        answer = json.loads(self.get(f"api/v1/{path}", **parameters))
        assert answer["status"] == "success", answer
        assert "warnings" not in answer, answer
        return answer["data"]

    def query(self, expression: str) -> list[Sample]:
        """What a PromQL expression gives now; a scalar is a sample without labels."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float | None:
        """The only sample's value; None when there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0].value if found else None

    def wait(self, expression: str, wanted: float, seconds: float = 15) -> None:
        """Wait until the expression's only value is `wanted`."""
        seen: list[float | None] = []

        def look() -> bool:
            seen[:] = [self.value(expression)]
            return seen == [wanted]

        try:
            until(look, seconds, expression)
        except AssertionError as error:
            raise AssertionError(f"{error}: {seen} instead of {wanted}") from None

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None, self.output.read_text()
        try:
            return "Ready" in self.get("-/ready")
        except (OSError, AssertionError):
            return False

    def __enter__(self) -> Prometheus:
        try:
            until(self.ready, 30, "Prometheus is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(deadline.seconds(15))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(deadline.seconds(15))
