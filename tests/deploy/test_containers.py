"""The Dockerfile and compose.yaml without an engine: what a linter and Docker Compose itself say of them, and
they of each other; their commands, accounts and rights are tried on the program as it is installed here.

The image is built and run in test_image.py.
"""

from __future__ import annotations

import fnmatch
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import deadline, processes
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.peers import lack, require_peer, require_root
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import connect, finish, read_to_end
from tests.system.metrics import metrics_url
from tests.system.namespaces import Sandbox

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "docker"
DOCKERFILE = (FILES / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

Json = dict[str, Any]


def tool(name: str, *arguments: object) -> str:
    """What a program of the development environment prints; it must succeed."""
    beside = Path(sys.executable).with_name(name)
    done = subprocess.run(
        [str(beside) if beside.exists() else require_peer(name), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(30),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def services() -> dict[str, Json]:
    """The services of compose.yaml as Docker Compose understands them, both ways to run."""
    if not Path(sys.executable).with_name("docker-compose").exists():
        lack("docker-compose is not installed")
    said = tool(
        "docker-compose", "-f", FILES / "compose.yaml", "--profile", "host", "config", "--format", "json"
    )
    found: dict[str, Json] = json.loads(said)["services"]
    return found


def stages() -> list[list[str]]:
    """The instructions of each stage of the Dockerfile, in one line each, without comments."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    found: list[list[str]] = []
    for line in (" ".join(line.split()) for line in text.splitlines() if line.strip()):
        if line.startswith("FROM "):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def instruction(name: str) -> str:
    """What the last stage says in its only instruction of that name."""
    (one,) = (line for line in stages()[-1] if line.startswith(f"{name} "))
    return one.removeprefix(f"{name} ")


def health_check() -> list[str]:
    """The command of HEALTHCHECK."""
    found: list[str] = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    return found


# What is written.


def test_hadolint() -> None:
    """It has nothing to say but what the file itself excuses: packages are not held to a version."""
    if not Path(sys.executable).with_name("hadolint").exists():
        lack("hadolint is not installed")
    assert tool("hadolint", FILES / "Dockerfile") == ""
    assert set(re.findall(r"hadolint ignore=(\S+)", DOCKERFILE)) == {"DL3008"}


def test_compose_reads_its_file() -> None:
    """Docker Compose takes the file: every key is known, every value of its kind."""
    assert set(services()) == {"fastfwd", "fastfwd-host"}


def test_the_build_of_compose() -> None:
    """compose.yaml builds this Dockerfile with the repository's root as context."""
    for service in services().values():
        assert Path(service["build"]["context"]) == ROOT
        assert Path(service["build"]["context"], service["build"]["dockerfile"]).read_text() == DOCKERFILE


def test_versions() -> None:
    """The image's tag, everywhere, is the version of the program."""
    version = (ROOT / "fastfwd/__init__.py").read_text().split('__version__ = "')[1].partition('"')[0]
    for service in services().values():
        assert service["image"] == f"fastfwd:{version}"
        assert service["build"]["args"] == {"VERSION": version}
    for name in ("kustomization.yaml", "edge/kustomization.yaml"):
        assert f"newTag: {version}\n" in (ROOT / "deploy/kubernetes" / name).read_text()
    assert f"fastfwd:{version} --build-arg VERSION={version} " in DOCKERFILE


def test_nothing_in_the_image_needs_a_shell() -> None:
    """ENTRYPOINT, CMD and HEALTHCHECK are lists: the program itself is process 1 and gets the signals."""
    assert json.loads(instruction("ENTRYPOINT")) == ["/opt/fastfwd/bin/fastfwd"]
    assert json.loads(instruction("CMD")) == ["-f", "-c", "/etc/fastfwd/fastfwd.conf"]
    assert health_check()[:2] == ["/opt/fastfwd/bin/python3", "-c"]


def test_the_last_stage_builds_nothing() -> None:
    """It installs Debian's Python and what that lacks, by name: no compiler, no pip, no recommendation."""
    (install,) = (line for line in stages()[-1] if "apt-get install" in line)
    words = install.split("apt-get install ")[1].split(" &&")[0].split()
    assert words == ["-y", "--no-install-recommends", "ca-certificates", "netbase", "python3"]


def test_compose_has_the_image_s_health_check() -> None:
    """The same command and the same times."""
    times = dict(word.removeprefix("--").split("=") for word in instruction("HEALTHCHECK").split()[:4])
    for service in services().values():
        check = service["healthcheck"]
        assert check["test"] == ["CMD", *health_check()]
        assert {key.replace("_", "-"): str(check[key]) for key in check if key != "test"} == times


def test_rights_in_compose() -> None:
    """Nothing can be written and no right be gained; with a network of its own there is none at all."""
    found = services()
    for service in found.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(volume["read_only"] for volume in service["volumes"])
        assert "privileged" not in service
    assert found["fastfwd"]["user"] == instruction("USER")
    assert "cap_add" not in found["fastfwd"]
    assert found["fastfwd-host"]["cap_add"] == ["NET_BIND_SERVICE", "SETUID", "SETGID", "KILL"]


def test_the_host_s_network_in_compose() -> None:
    """There nothing is published and no sysctl is set: an engine refuses both."""
    host = services()["fastfwd-host"]
    assert host["network_mode"] == "host"
    assert not {"ports", "sysctls", "networks"} & set(host)


def test_a_stop_in_compose_drains() -> None:
    """Sessions have time to end."""
    for service in services().values():
        assert (service["stop_signal"], service["stop_grace_period"]) == ("SIGUSR1", "5m0s")


# What goes in.


def test_what_the_wheel_is_made_of_is_not_ignored() -> None:
    """Every file that pyproject.toml names is let through by Dockerfile.dockerignore."""
    lines = (FILES / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        PROJECT["project"]["license"]["file"],
        *build["packages"],
        *build.get("shared-data", {}),
        *build.get("force-include", {}),
        *(f"deploy/docker/{name}" for name in ("requirements.txt", "build-requirements.txt")),
    }
    assert {name for name in wanted if not any(fnmatch.fnmatch(name, each) for each in let_in)} == set()
    assert lines[[line.startswith("#") for line in lines].index(False)] == "*"  # and all else is kept out


def pinned(name: str) -> dict[str, Requirement]:
    """The requirements of a file, each of which has its hashes."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (FILES / name).read_text()).replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        words = line.split()
        assert words[1:], line
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in words[1:]), line
        requirement = Requirement(words[0])
        assert [each.operator for each in requirement.specifier] == ["=="], line
        found[canonicalize_name(requirement.name)] = requirement
    return found


def test_libraries_are_held() -> None:
    """requirements.txt has what pyproject.toml wants, YAML included, each in a version that it takes."""
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["yaml"]]
    found = pinned("requirements.txt")
    for text in wanted:
        requirement = Requirement(text)
        (exactly,) = found[canonicalize_name(requirement.name)].specifier
        assert exactly.version in requirement.specifier
    assert set(found) == {canonicalize_name(Requirement(text).name) for text in wanted}


def test_what_builds_is_held() -> None:
    """build-requirements.txt has pyproject.toml's."""
    wanted = {canonicalize_name(Requirement(text).name) for text in PROJECT["build-system"]["requires"]}
    assert wanted <= set(pinned("build-requirements.txt"))


def test_the_configuration_beside_compose() -> None:
    """`fastfwd -t` has nothing to say against conf/fastfwd.conf."""
    done = run("-t", "-c", str(FILES / "conf/fastfwd.conf"))
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_published_ports_are_forwarded() -> None:
    """Each that compose.yaml publishes is a forward's or the exporter's, which is for this host only."""
    lines = (FILES / "conf/fastfwd.conf").read_text().splitlines()
    forwards = {line.split()[1] for line in lines if re.match(r"[0-9]", line)}
    published = services()["fastfwd"]["ports"]
    assert {f"{each['target']}/{each['protocol']}".removesuffix("/tcp") for each in published} == forwards | {
        "9464"
    }
    assert [each["host_ip"] for each in published if each["target"] == 9464] == ["127.0.0.1"]


# The health check's command, beside a running program.


def healthy(url: str, **environment: str) -> bool:
    """What the command says of the exporter at `url` in place of its own address."""
    _, option, script = health_check()
    assert script.count("9464") == 1
    port = url.rstrip("/").rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, option, script.replace("9464", port)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
        timeout=deadline.seconds(20),
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def test_the_health_check_of_a_program_that_serves(forwarder: StartForwarder) -> None:
    """Status 0, whatever proxy the environment names."""
    url = metrics_url(forwarder(f"127.0.0.1 {free_port()} 127.0.0.1 1\nmetrics 127.0.0.1:0\n"))
    assert healthy(url)
    assert healthy(url, http_proxy="http://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1")


def test_the_health_check_of_a_program_that_hangs(forwarder: StartForwarder) -> None:
    """Status 1 while the supervisor stands still, and 0 again afterwards."""
    running = forwarder(f"127.0.0.1 {free_port()} 127.0.0.1 1\nmetrics 127.0.0.1:0\n")
    url = metrics_url(running)
    with processes.stopped(running.pid):
        until(lambda: not healthy(url), 20, "the silence to be noticed")
    until(lambda: healthy(url), 20, "good health")


def test_the_health_check_where_nobody_is() -> None:
    """Status 1."""
    assert not healthy(f"http://127.0.0.1:{free_port()}/")


# The accounts and rights of compose.yaml, of which Kubernetes has the same, given to the program by setpriv.


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter."""
    require_root()
    with tempfile.TemporaryDirectory(prefix="fastfwd-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


Start = Callable[..., tuple[Sandbox, Forwarder]]


@pytest.fixture
def contained(place: Path, backend: StartServer) -> Iterator[Start]:
    """Call it with setpriv's arguments, and with a sysctl, for a program in a network of its own whose
    port 80 leads to an echo; stopped at the end, which must be clean."""
    with ExitStack() as stack:

        def start(*rights: str, first_port: str | None = None) -> tuple[Sandbox, Forwarder]:
            inside = stack.enter_context(Sandbox(network=True))
            inside.open_way_to_python()
            if first_port is not None:
                inside.sysctl("net.ipv4.ip_unprivileged_port_start", first_port)
            server = inside.call(backend, echo)
            command = [require_peer("setpriv"), *rights, "--no-new-privs"]
            config = f"127.0.0.1 80 {server.host} {server.port}\n"
            running: Forwarder = inside.call(Forwarder, place, config, command=command, log=False)
            stack.callback(running.close)
            return inside, running

        yield start


def status(pid: int, name: str) -> str:
    """A line of /proc/PID/status."""
    (line,) = re.findall(rf"(?m)^{name}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text())
    return str(line)


def echoes(port: int) -> bool:
    """Whether the forward there works."""
    with connect(("127.0.0.1", port)) as client:
        client.sendall(b"hello")
        finish(client)
        return read_to_end(client).data == b"hello"


def test_a_low_port_without_any_right(contained: Start) -> None:
    """The account of the image, no capability, the sysctl that compose.yaml sets: port 80 works."""
    first = services()["fastfwd"]["sysctls"]["net.ipv4.ip_unprivileged_port_start"]
    uid, gid = instruction("USER").split(":")
    inside, running = contained(
        *(f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"),
        first_port=first,
    )
    for pid in (running.pid, *running.workers().values()):
        assert status(pid, "Uid").split() == [uid] * 4
        assert [int(status(pid, name), 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [0, 0, 0]
    assert inside.call(echoes, 80)


def test_the_host_s_network_with_four_capabilities(contained: Start) -> None:
    """Root with what compose.yaml and daemonset.yaml add, and nothing else: port 80 works, workers are nobody
    and have none of it, one that hangs is ended, a reload brings another low port."""
    host = services()["fastfwd-host"]
    manifest = (ROOT / "deploy/kubernetes/edge/daemonset.yaml").read_text()
    assert f"add: [{', '.join(host['cap_add'])}]" in manifest
    kept = ",".join(f"+{name.lower()}" for name in host["cap_add"])
    inside, running = contained(f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--clear-groups")
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    for pid in running.workers().values():
        assert status(pid, "Uid").split() == [nobody] * 4
        assert int(status(pid, "CapEff"), 16) == 0
    assert inside.call(echoes, 80)
    hung = running.worker(0)
    os.kill(hung, signal.SIGSTOP)
    until(lambda: running.workers().get(0, hung) != hung, 20, "the watchdog to replace it")
    text = running.config_path.read_text()
    running.reload(text + text.splitlines()[0].replace(" 80 ", " 81 ") + "\n")
    assert inside.call(echoes, 81)
