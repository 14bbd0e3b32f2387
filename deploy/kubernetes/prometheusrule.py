"""Makes monitoring/prometheusrule.yaml of the rules in deploy/prometheus, so that there is one set of them.

    cd deploy/kubernetes
    python prometheusrule.py [--runbooks https://git.example.org/fastfwd/] > monitoring/prometheusrule.yaml

Run it by hand after the rules have changed; a test compares. The groups go in as they are, with the comments;
it must never change an expression.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

RULES = Path(__file__).resolve().parents[1] / "prometheus"
FILES = ("fastfwd.rules.yml", "fastfwd.alerts.yml", "fleet.rules.yml")

HEAD = """\
# The rules of deploy/prometheus for the Prometheus operator. Made by deploy/kubernetes/prometheusrule.py:
# do not edit. Applied by: kubectl apply -k .
# A Prometheus with a ruleSelector wants its label here too.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fastfwd
  labels:
    app.kubernetes.io/name: fastfwd
spec:
  groups:
"""


def groups(text: str) -> str:
    """The entries of `groups` of a rule file, as deep as HEAD wants them."""
    _, found, body = text.partition("\ngroups:\n")
    if not found:
        raise ValueError("expected a line 'groups:'")
    return "".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True))


def made(runbooks: str = "") -> str:
    """The whole manifest; `runbooks` is put before each runbook_url."""
    parts = [f"    # {name}\n{groups((RULES / name).read_text())}" for name in FILES]
    text = HEAD + "\n".join(parts)
    return re.sub(r"(?m)^( +runbook_url: )", lambda found: found[0] + runbooks, text)


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runbooks", default="", metavar="URL", help="put before each runbook_url")
    print(made(parser.parse_args().runbooks), end="")


if __name__ == "__main__":
    main()
