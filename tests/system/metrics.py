"""A client of the exporter: what a running program shows, and a scrape as a dictionary.

    url = metrics_url(forwarder)
    found = scrape(url)
    assert found[series("connections_active", forward="db", proto="tcp")] == 1
    assert by(found, "connections_closed_total", "outcome") == {"done-remote-closed": 3}

Every call is a connection of its own and has a deadline. Metrics are named without their prefix.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tests import deadline
from tests.deadline import until
from tests.forwarder import Forwarder

Labels = frozenset[tuple[str, str]]
Key = tuple[str, Labels]
Scrape = dict[Key, float]

PREFIX = "fastfwd_"

PATIENCE = 10.0
"""Seconds that one request may take."""

WHERE = re.compile(r"metrics: (http://\S+/|unix:\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, the headers with lower-case names, the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the Unix socket at `path`."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def metrics_url(forwarder: Forwarder) -> str:
    """Where its exporter is found now: `http://ADDRESS:PORT/` or `unix:PATH`."""
    found = WHERE.findall(forwarder.stderr())
    assert found, f"no exporter\n{forwarder.stderr()}"
    return str(found[-1])


def port_of(url: str) -> int:
    """The port of a `metrics_url`."""
    port = urlsplit(url).port
    assert port is not None
    return port


def request(
    url: str,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    seconds: float = PATIENCE,
) -> Answer:
    """One request; raises OSError when nobody answers within `seconds`."""
    connection: http.client.HTTPConnection
    if url.startswith("unix:"):
        connection = UnixConnection(url.removeprefix("unix:"), deadline.seconds(seconds))
    else:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=deadline.seconds(seconds))
    try:
        connection.request(method, path, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())
    finally:
        connection.close()


def answers(url: str, path: str = "/metrics") -> int:
    """The status of a GET of `path`; 0 when nobody answers there."""
    try:
        return request(url, path).status
    except (OSError, http.client.HTTPException):
        return 0


def scrape(url: str, seconds: float = PATIENCE) -> Scrape:
    """Every sample of /metrics; fails if one comes twice."""
    answer = request(url, "/metrics", seconds=seconds)
    assert answer.status == HTTPStatus.OK, answer
    found: Scrape = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def status(url: str, query: str = "") -> Any:
    """What /status says."""
    answer = request(url, f"/status{query}")
    assert answer.status == HTTPStatus.OK, answer
    return json.loads(answer.body)


def series(name: str, **labels: str) -> Key:
    """The key of a sample in a scrape."""
    return PREFIX + name, frozenset(labels.items())


def total(found: Scrape, name: str, **labels: str) -> float:
    """The sum of all samples of a metric that have these labels, and others perhaps."""
    wanted = labels.items()
    return sum(value for (each, own), value in found.items() if each == PREFIX + name and wanted <= own)


def by(found: Scrape, name: str, label: str, **labels: str) -> dict[str, float]:
    """`label`'s value -> the sum of the samples with it and `labels`; what is 0 is left out."""
    values = {dict(own)[label] for each, own in found if each == PREFIX + name}
    sums = {value: total(found, name, **{label: value}, **labels) for value in values}
    return {value: figure for value, figure in sums.items() if figure}


def sessions(url: str) -> int:
    """How many sessions the workers have, by their own count."""
    return sum(worker["sessions"] for worker in status(url)["workers"])


def at_rest(url: str, accepted: int) -> Scrape:
    """The scrape after so many accepted connections have all ended and their lines are counted."""

    def quiet() -> bool:
        totals = status(url)["totals"]
        # A worker counts its sessions last: by then everything else is on the scoreboard.
        return (totals["accepted"], totals["active"], sessions(url)) == (accepted, 0, 0)

    until(quiet, what=f"{accepted} connections to have come and gone")
    return scrape(url)
