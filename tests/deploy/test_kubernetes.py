"""The manifests in deploy/kubernetes: valid by Kubernetes' own schemas, of one mind with each other, with the
configuration in them and with the image; the rules among them are those of deploy/prometheus.

No cluster is there: what an API server, a kubelet or a network plugin would do is not tried.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fastfwd.config.load import load
from fastfwd.model import Config
from tests import deadline
from tests.conftest import StartForwarder
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import Server, banner, serve
from tests.sockets import connect, finish, read_exactly, read_to_end
from tests.system.test_prometheus_rules import promtool

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "kubernetes"
DIRECTORIES = ("", "edge", "monitoring")

Json = dict[str, Any]

CRD_OF_OPERATOR = {
    "PodMonitor": {
        "required": ["selector", "podMetricsEndpoints"],
        "additionalProperties": False,
        "properties": {
            "jobLabel": {"type": "string"},
            "selector": {"type": "object", "required": ["matchLabels"]},
            "sampleLimit": {"type": "integer"},
            "podMetricsEndpoints": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "additionalProperties": False,
                    "properties": {
                        "port": {"type": "string"},
                        "path": {"type": "string", "pattern": "^/"},
                        "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                        "scrapeTimeout": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                        "relabelings": {
                            "type": "array",
                            "items": {
                                "additionalProperties": False,
                                "properties": {
                                    "sourceLabels": {"type": "array", "items": {"type": "string"}},
                                    "targetLabel": {"type": "string"},
                                    "regex": {"type": "string"},
                                    "action": {"enum": ["replace", "keep", "drop"]},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
    "PrometheusRule": {
        "required": ["groups"],
        "additionalProperties": False,
        "properties": {
            "groups": {
                "type": "array",
                "items": {
                    "required": ["name", "rules"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "rules": {
                            "type": "array",
                            "items": {
                                "required": ["expr"],
                                "oneOf": [{"required": ["record"]}, {"required": ["alert"]}],
                                "additionalProperties": False,
                                "properties": {
                                    "record": {"type": "string"},
                                    "alert": {"type": "string"},
                                    "expr": {"type": "string"},
                                    "for": {"type": "string"},
                                    "labels": {"additionalProperties": {"type": "string"}},
                                    "annotations": {"additionalProperties": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What the `spec` of the Prometheus operator's kinds may be, as far as the files here use it."""


def documents(directory: str) -> list[Json]:
    """Every manifest in a directory, as written."""
    paths = sorted((FILES / directory).glob("*.yaml"))
    found = [each for path in paths for each in yaml.safe_load_all(path.read_text())]
    return [each for each in found if each["kind"] != "Kustomization"]


def rendered(directory: str) -> list[Json]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(
        [require_peer("kubectl"), "kustomize", str(FILES / directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def only(found: list[Json], kind: str) -> Json:
    """The one manifest of that kind."""
    (one,) = (each for each in found if each["kind"] == kind)
    return one


def pod(workload: Json) -> Json:
    """The pod that a Deployment or a DaemonSet makes."""
    spec: Json = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Json) -> Json:
    """Its only container."""
    (one,) = pod(workload)["containers"]
    return dict(one)


DEPLOYMENT = only(documents(""), "Deployment")
DAEMONSET = only(documents("edge"), "DaemonSet")
WORKLOADS = pytest.mark.parametrize(
    ("workload", "directory"), [(DEPLOYMENT, ""), (DAEMONSET, "edge")], ids=["deployment", "daemonset"]
)


# Valid.


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_every_manifest_is_valid(directory: str) -> None:
    """By the schemas of the newest Kubernetes that is known here; the operator's kinds by those above."""
    found = documents(directory)
    assert found
    for each in found:
        if schema := CRD_OF_OPERATOR.get(each["kind"]):
            assert each["apiVersion"] == "monitoring.coreos.com/v1"
            jsonschema.validate(each["spec"], schema)
        else:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_kustomize_renders_them(directory: str) -> None:
    """All manifests of a directory are in what `kubectl kustomize` makes, valid, in one namespace."""
    found = rendered(directory)
    kinds = sorted(each["kind"] for each in found if each["kind"] != "ConfigMap")
    assert kinds == sorted(each["kind"] for each in documents(directory))
    for each in found:
        if each["kind"] not in CRD_OF_OPERATOR:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    assert len({each["metadata"].get("namespace", each["metadata"]["name"]) for each in found}) == 1


# No rights.


def test_the_deployment_is_restricted() -> None:
    """What the Pod Security Standard `restricted` asks, which its namespace enforces."""
    assert only(documents(""), "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == (
        "restricted"
    )
    spec, rights = pod(DEPLOYMENT), container(DEPLOYMENT)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all("configMap" in volume for volume in spec["volumes"])
    assert [each["name"] for each in spec["securityContext"]["sysctls"]] == [
        "net.ipv4.ip_unprivileged_port_start"
    ]


@WORKLOADS
def test_nothing_can_be_written(workload: Json, directory: str) -> None:
    """The root is read-only, and so is every volume."""
    one = container(workload)
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    assert all(mount["readOnly"] for mount in one["volumeMounts"])
    assert pod(workload)["automountServiceAccountToken"] is False


def test_the_account_is_the_image_s() -> None:
    """The Deployment's user and group are those that the Dockerfile makes."""
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    account = pod(DEPLOYMENT)["securityContext"]
    assert f"\nUSER {account['runAsUser']}:{account['runAsGroup']}\n" in dockerfile


def test_no_sysctl_in_the_node_s_network() -> None:
    """A kubelet refuses a pod with hostNetwork and a net.* sysctl."""
    assert pod(DAEMONSET)["hostNetwork"] is True
    assert "sysctls" not in pod(DAEMONSET)["securityContext"]


# Of one mind.


@WORKLOADS
def test_the_image_s_arguments(workload: Json, directory: str) -> None:
    """The file that is named is in the directory that the ConfigMap of kustomization.yaml is mounted on."""
    one = container(workload)
    kustomization = yaml.safe_load((FILES / directory / "kustomization.yaml").read_text())
    (made,) = kustomization["configMapGenerator"]
    (volume,) = pod(workload)["volumes"]
    (mount,) = one["volumeMounts"]
    assert volume["configMap"]["name"] == made["name"]
    assert mount["name"] == volume["name"]
    assert "subPath" not in mount  # which a changed ConfigMap would not reach
    assert one["args"] == ["-f", "-c", f"{mount['mountPath']}/{made['files'][0]}"]


def test_selectors_find_the_pods() -> None:
    """Service, budget, policy, monitor and spread all mean the Deployment's pods, and not the DaemonSet's."""
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    found = documents("")
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        only(found, "Service")["spec"]["selector"],
        only(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        only(documents("monitoring"), "PodMonitor")["spec"]["selector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod(DEPLOYMENT)["topologySpreadConstraints"]),
    ]
    other = DAEMONSET["spec"]["template"]["metadata"]["labels"].items()
    for selector in selectors:
        assert selector.items() <= labels
        assert not selector.items() <= other
    assert DAEMONSET["spec"]["selector"]["matchLabels"].items() <= other


def config(directory: str) -> Config:
    """The configuration in a directory."""
    return load(str(FILES / directory / "fastfwd.conf"))


def test_the_deployment_s_ports() -> None:
    """Every forward's port is the container's, the Service's and the policy's, and none is besides."""
    forwards = {
        (forward.listen.port, forward.listen.protocol.value.upper()) for forward in config("").forwards
    }
    ports = {
        each["name"]: (each["containerPort"], each["protocol"]) for each in container(DEPLOYMENT)["ports"]
    }
    metrics = ports.pop("metrics")
    assert set(ports.values()) == forwards
    service = only(documents(""), "Service")["spec"]["ports"]
    assert {(each["port"], each["protocol"]) for each in service} == forwards
    assert {each["targetPort"] for each in service} == set(ports)
    clients, prometheus = only(documents(""), "NetworkPolicy")["spec"]["ingress"]
    assert {each["port"] for each in clients["ports"]} == set(ports)
    assert "from" not in clients  # with externalTrafficPolicy Local their addresses are their own
    assert [each["port"] for each in prometheus["ports"]] == ["metrics"]
    where = config("").metrics
    assert where is not None
    assert metrics == (where.port, "TCP")
    assert only(documents("monitoring"), "PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


@WORKLOADS
def test_probes_ask_the_exporter(workload: Json, directory: str) -> None:
    """At a path that it answers, at the configuration's port; in the node's network at its address too."""
    where = config(directory).metrics
    assert where is not None
    one = container(workload)
    named = {each["name"]: each["containerPort"] for each in one.get("ports", [])}
    paths = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = one[probe]["httpGet"]
        assert named.get(get["port"], get["port"]) == where.port
        assert get.get("host", "0.0.0.0") == where.host
        paths[probe] = get["path"]
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


def test_a_worker_for_each_processor_asked_for() -> None:
    """`workers` is what the pod requests; `auto` would count the node's."""
    assert str(config("").workers) == container(DEPLOYMENT)["resources"]["requests"]["cpu"]
    assert "cpu" not in container(DEPLOYMENT)["resources"]["limits"]


@pytest.mark.parametrize("directory", ["", "edge"])
def test_the_configuration(directory: str, tmp_path: Path) -> None:
    """`fastfwd -t` has nothing to say against it; an address stands for the cluster's names."""
    text = (FILES / directory / "fastfwd.conf").read_text()
    path = tmp_path / "fastfwd.conf"
    path.write_text(re.sub(r"\S+\.svc\.cluster\.local", "192.0.2.1", text))
    done = run("-t", "-c", str(path))
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_configuration_can_be_checked_from_a_pipe() -> None:
    """`fastfwd -t -c /dev/stdin <fastfwd.conf`, as the file itself and the document say."""
    done = subprocess.run(
        [sys.executable, "-m", "fastfwd", "-t", "-c", "/dev/stdin"],
        input="127.0.0.1 8080 192.0.2.1 80\nfoo bar\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(20),
    )
    assert done.returncode == 1
    assert "/dev/stdin:2: " in done.stderr


# The end of a pod.


@WORKLOADS
def test_a_drain_fits_into_the_grace_period(workload: Json, directory: str) -> None:
    """After the hook there are ten seconds for TERM to end what is left, before KILL."""
    shell, option, script = container(workload)["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    assert "kill -USR1 1;" in script
    hook = sum(int(seconds) for seconds in re.findall(r"sleep (\d+)", script))
    assert pod(workload)["terminationGracePeriodSeconds"] - hook >= 10


@pytest.fixture
def greeter() -> Iterator[Server]:
    """A backend that speaks first."""
    with serve(banner) as server:
        yield server


@WORKLOADS
def test_the_hook_drains(workload: Json, directory: str, forwarder: StartForwarder, greeter: Server) -> None:
    """The hook's own script, with the program's number for 1: a session goes on, nobody new is let in, and
    with the session's end the program ends, with 0, long before the hook."""
    port = free_port()
    running: Forwarder = forwarder(f"127.0.0.1 {port} {greeter.host} {greeter.port}\n")
    script = container(workload)["lifecycle"]["preStop"]["exec"]["command"][2]
    script = script.replace("kill -USR1 1;", f"kill -USR1 {running.pid};").replace("sleep 5;", "")
    with connect(("127.0.0.1", port)) as client:
        hello = read_exactly(client, len("SSH-2.0-test\r\n"))
        hook = subprocess.Popen(["sh", "-c", script], start_new_session=True)
        try:
            until(lambda: refused(port), what="nobody new to be let in")
            client.sendall(b"still here")
            assert read_exactly(client, 10) == b"still here"
            assert running.running()
            assert hook.poll() is None
            finish(client)
            assert read_to_end(client).data == b""
            assert running.wait() == 0
        finally:
            kill_group(hook)
    assert hello.startswith(b"SSH")


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        connect(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a shell and its `sleep`."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(deadline.seconds(5))


# The rules.


def test_the_rules_are_those_of_prometheus() -> None:
    """monitoring/prometheusrule.yaml is what prometheusrule.py makes now."""
    made = subprocess.run(
        [sys.executable, str(FILES / "prometheusrule.py")], capture_output=True, text=True, check=True
    ).stdout
    assert (FILES / "monitoring/prometheusrule.yaml").read_text() == made, (
        "run: python deploy/kubernetes/prometheusrule.py > deploy/kubernetes/monitoring/prometheusrule.yaml"
    )


def test_promtool_reads_the_rules(tmp_path: Path) -> None:
    """The groups of the manifest are all those of deploy/prometheus, unchanged, and promtool is content."""
    spec = only(documents("monitoring"), "PrometheusRule")["spec"]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(spec))
    promtool("check", "rules", "--lint-fatal", path)
    originals = [
        group
        for path in sorted((ROOT / "deploy/prometheus").glob("*.yml"))
        if path.stem.endswith(("rules", "alerts"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert sorted(map(str, spec["groups"])) == sorted(map(str, originals))


def test_runbooks_of_one_s_own() -> None:
    """`--runbooks` is put before each runbook_url, and changes nothing else."""
    base = "https://git.example.org/fastfwd/"
    made = subprocess.run(
        [sys.executable, str(FILES / "prometheusrule.py"), "--runbooks", base],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plain = (FILES / "monitoring/prometheusrule.yaml").read_text()
    assert made.count(f"runbook_url: {base}docs/") == plain.count("runbook_url: docs/") > 0
    assert made.replace(base, "") == plain


def test_the_job_is_the_one_that_alerts_go_by() -> None:
    """The operator takes the job's name from a label of the pods: it is `fastfwd`."""
    label = only(documents("monitoring"), "PodMonitor")["spec"]["jobLabel"]
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"][label] == "fastfwd"
    assert 'up{job="fastfwd"}' in (ROOT / "deploy/prometheus/fastfwd.alerts.yml").read_text()
