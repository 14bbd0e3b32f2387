"""The image itself: built from the Dockerfile by buildah, run by podman and runc as compose.yaml says.

The base is not fetched: debootstrap makes Debian's minimal system of the same release, which stands for
it. Everything is in a store of the test's own, which is removed.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import deadline
from tests.conftest import StartServer
from tests.deadline import until
from tests.deploy.debian import debootstrap
from tests.peers import require_peer, require_root
from tests.servers import Server, echo, source
from tests.sockets import connect, finish, noise, read_exactly, read_to_end
from tests.system.namespaces import Sandbox

pytestmark = [pytest.mark.package, pytest.mark.timeout(deadline.seconds(600))]

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
IMAGE = "localhost/fastfwd:test"
AUTHORITIES = Path("/usr/local/share/ca-certificates")

LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
"""What podman would ask for otherwise, root in a sandbox may not have."""


class Engine:
    """buildah and podman with a store of their own."""

    def __init__(self, directory: Path) -> None:
        self.store = [
            *("--root", str(directory / "store"), "--runroot", str(directory / "run")),
            *("--storage-driver", "overlay"),
        ]
        self.podman_program = [
            *(require_peer("podman"), *self.store, "--cgroup-manager", "cgroupfs"),
            *("--runtime", require_peer("runc"), "--events-backend", "file"),
        ]

    def call(self, *command: str, text: str = "", seconds: float = 60, status: int = 0) -> str:
        """Run a command to its end; what it wrote to standard output."""
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=deadline.seconds(seconds),
        )
        assert done.returncode == status, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def podman(self, *arguments: str, text: str = "", seconds: float = 60, status: int = 0) -> str:
        """The same with a command of podman's."""
        return self.call(*self.podman_program, *arguments, text=text, seconds=seconds, status=status)

    def import_base(self, name: str, release: str) -> None:
        """A system that debootstrap makes, under the base's name."""
        with tempfile.TemporaryDirectory(prefix="fastfwd-base-") as directory:
            root = debootstrap(Path(directory), release, ())
            if AUTHORITIES.is_dir():  # whom the machine trusts beside Debian's, a proxy's say
                shutil.copytree(AUTHORITIES, root / AUTHORITIES.relative_to("/"), dirs_exist_ok=True)
            archive = Path(directory, "root.tar")
            self.call("tar", "-C", str(root), "-cf", str(archive), ".")
            self.podman("import", "--quiet", str(archive), name)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine that has the image."""
    require_root()
    require_peer("buildah")
    (base,) = re.findall(r"(?m)^ARG BASE=(\S+)$", DOCKERFILE.read_text())
    release = base.partition(":")[2].removesuffix("-slim")
    directory = Path(tempfile.mkdtemp(prefix="fastfwd-image-", dir="/var/tmp"))
    found = Engine(directory)
    try:
        found.import_base(f"localhost/{base}", release)
        found.call(
            *(
                "buildah",
                *found.store,
                "build",
                "--isolation",
                "chroot",
                "--pull-never",
                "--format",
                "docker",
            ),
            *("--ignorefile", f"{DOCKERFILE}.dockerignore", "-f", str(DOCKERFILE), "-t", IMAGE),
            *("--build-arg", f"BASE=localhost/{base}", "--build-arg", "VERSION=1.2.3"),
            *("--build-arg", "REVISION=abc", "."),
            seconds=400,
        )
        yield found
    finally:
        found.podman("rm", "--all", "--force", "--time", "1")
        found.podman("rmi", "--all", "--force")
        shutil.rmtree(directory)


class Container:
    """One that runs, in the network of `inside`."""

    def __init__(self, engine: Engine, inside: Sandbox, directory: Path, config: str, *options: str) -> None:
        self.engine = engine
        self.inside = inside
        self.name = f"fastfwd-{uuid.uuid4().hex[:8]}"
        self.config = directory / self.name
        self.config.mkdir()
        self.configure(config)
        thread = inside.call(threading.get_native_id)
        engine.podman(
            *("run", "--detach", "--name", self.name, "--pull=never", "--log-driver=k8s-file", *LIMITS),
            *(f"--network=ns:/proc/{thread}/ns/net", "--read-only", "--read-only-tmpfs=false"),
            *("--cap-drop=ALL", "--security-opt=no-new-privileges", *options),
            *(f"--volume={self.config}:/etc/fastfwd:ro", IMAGE),
        )
        until(lambda: "ready:" in self.logs(), 20, "the program in the container")

    def configure(self, config: str) -> None:
        """Put a configuration in place."""
        (self.config / "fastfwd.conf").write_text(f"{config}metrics 0.0.0.0:9464\nworkers 2\n")

    def logs(self) -> str:
        """Both of its streams."""
        path = self.engine.podman("inspect", "--format", "{{.HostConfig.LogConfig.Path}}", self.name).strip()
        return Path(path).read_text()

    def run(self, *command: str) -> str:
        """What a command prints that is run in it."""
        return self.engine.podman("exec", self.name, *command)

    def pid(self) -> int:
        """Its first process, as numbered outside."""
        return int(self.engine.podman("inspect", "--format", "{{.State.Pid}}", self.name))

    def send(self, number: signal.Signals) -> None:
        """A signal to its first process, by its own shell, as the documents tell to."""
        self.run("sh", "-c", f"kill -{number.name.removeprefix('SIG')} 1")

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return int(self.engine.podman("wait", self.name, seconds=30))

    def client(self, port: int) -> Any:
        """A connection to it."""
        return self.inside.call(connect, ("127.0.0.1", port))

    def echoes(self, port: int) -> bool:
        """Whether the forward there works."""
        with self.client(port) as client:
            client.sendall(b"hello")
            finish(client)
            return bool(read_to_end(client).data == b"hello")


Start = Callable[..., Container]


@pytest.fixture
def network() -> Iterator[Sandbox]:
    """A network of its own for containers and backends."""
    with Sandbox(network=True) as inside:
        yield inside


@pytest.fixture
def behind(network: Sandbox, backend: StartServer) -> Server:
    """An echo there."""
    server: Server = network.call(backend, echo)
    return server


@pytest.fixture
def start(engine: Engine, network: Sandbox, tmp_path: Path) -> Iterator[Start]:
    """Call it with a configuration and podman's options; what runs is removed."""
    tmp_path.chmod(0o755)
    with ExitStack() as stack:

        def begin(config: str, *options: str) -> Container:
            found = Container(engine, network, tmp_path, config, *options)
            stack.callback(engine.podman, "rm", "--force", "--time", "1", found.name)
            return found

        yield begin


LOW = "--sysctl=net.ipv4.ip_unprivileged_port_start=0"


def first_line(config_of: Server, port: int = 80, options: str = "") -> str:
    """A forward to that backend."""
    return f"0.0.0.0 {port} {config_of.host} {config_of.port} {options}\n"


# What is in it.


def test_what_the_image_says_of_itself(engine: Engine) -> None:
    """Account, command, signal, labels and health check."""
    (image,) = json.loads(engine.podman("inspect", "--type", "image", IMAGE))
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/fastfwd/bin/fastfwd"]
    assert config["Cmd"] == ["-f", "-c", "/etc/fastfwd/fastfwd.conf"]
    assert config["StopSignal"] == "SIGTERM"
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert labels["version"] == "1.2.3"
    assert labels["revision"] == "abc"
    assert labels["licenses"] == "MIT"
    assert image["Healthcheck"]["Test"][:2] == ["CMD", "/opt/fastfwd/bin/python3"]


def test_nothing_that_builds_is_in_it(engine: Engine) -> None:
    """No compiler, no pip, no source, no lists of packages; every module is compiled."""
    script = """
        for name in cc gcc make pip pip3 git; do command -v $name && echo found $name; done
        ls /source /wheels /build 2>/dev/null
        ls /var/lib/apt/lists
        find /opt/fastfwd -name fastfwd -type d -path '*site-packages*' | while read -r package; do
            find "$package" -name '*.py' | wc -l
            find "$package" -name '*.pyc' | wc -l
        done
    """
    said = engine.podman(
        "run", "--rm", "--pull=never", *LIMITS, "--network=none", "--entrypoint=sh", IMAGE, "-c", script
    )
    sources, compiled = map(int, said.split())
    assert sources == compiled > 50


def test_a_file_is_checked_by_the_image(engine: Engine) -> None:
    """`run -i IMAGE -t -c /dev/stdin <file` ends with 0 or 1. Services have names there, and YAML is read."""
    check = ("run", "--rm", "--interactive", "--pull=never", *LIMITS, "--network=none", IMAGE, "-t", "-c")
    engine.podman(*check, "/dev/stdin", text="0.0.0.0 smtp 192.0.2.1 smtp\n")
    engine.podman(*check, "/dev/stdin", text="0.0.0.0 80 192.0.2.1\n", status=1)
    engine.podman(*check[:-3], "--entrypoint=python3", IMAGE, "-c", "import yaml")


# As compose.yaml and the Deployment run it.


def test_no_rights_and_a_low_port(start: Start, behind: Server) -> None:
    """uid 10001 without any capability, under the engine's system call filter, nothing to write to: port 80
    works, and the log is on standard output."""
    container = start(f"{first_line(behind)}logfile /dev/stdout\n", LOW)
    status = Path(f"/proc/{container.pid()}/status").read_text()
    assert re.search(r"(?m)^Uid:\t10001\t10001\t10001\t10001$", status)
    for line in ("CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert f"{line}\n" in status
    assert container.echoes(80)
    until(lambda: container.logs().count("\tdone-") == 1, what="the session's line")
    assert container.run(
        "sh", "-c", "touch /etc/fastfwd/x /tmp/x /x 2>/dev/null; ls /x /tmp /etc/fastfwd; true"
    ) == ("/etc/fastfwd:\nfastfwd.conf\n\n/tmp:\n")


def test_the_health_check(start: Start, engine: Engine, behind: Server) -> None:
    """The engine runs it and is content; `fastfwd --status` answers too."""
    container = start(first_line(behind), LOW)
    engine.podman("healthcheck", "run", container.name)
    assert "process 1: serving" in container.run("fastfwd", "--status", "-c", "fastfwd.conf")


def test_bulk_is_spliced(start: Start, network: Sandbox, backend: StartServer) -> None:
    """The engine's system call filter lets splice(2) be: 20 MB pass whole, and mostly not through memory."""
    size = 20 << 20
    server = network.call(backend, source, size)
    container = start(first_line(server), LOW)
    with container.client(80) as client:
        finish(client)
        assert read_to_end(client).data == noise(size)
    page = container.run(
        "python3",
        "-c",
        "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())",
    )
    spliced = sum(
        float(value) for value in re.findall(r"(?m)^fastfwd_spliced_bytes_total\{.*\} (\S+)$", page)
    )
    assert spliced > size / 2


def test_a_reload_by_the_container_s_shell(start: Start, behind: Server) -> None:
    """`exec … sh -c 'kill -HUP 1'` brings a new port; process 1 heeds it."""
    container = start(first_line(behind), LOW)
    container.configure(first_line(behind) + first_line(behind, 81))
    container.send(signal.SIGHUP)
    until(lambda: "reloaded: 2 forwards" in container.logs(), what="the reload")
    assert container.echoes(81)


def test_a_drain_and_the_end_of_process_1(start: Start, behind: Server) -> None:
    """USR1: a session goes on, nobody new gets in, and with its end the container ends, with 0."""
    container = start(first_line(behind), LOW)
    with container.client(80) as client:
        client.sendall(b"one")
        assert read_exactly(client, 3) == b"one"
        container.send(signal.SIGUSR1)
        until(lambda: refused(container), what="nobody new to be let in")
        client.sendall(b"two")
        assert read_exactly(client, 3) == b"two"
        finish(client)
        assert read_to_end(client).data == b""
    assert container.wait() == 0


def refused(container: Container) -> bool:
    """Whether nobody listens there."""
    try:
        container.client(80).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_is_prompt_and_logged(start: Start, engine: Engine, behind: Server) -> None:
    """TERM, the image's signal: an open session gets its line, the status is 0, nobody waits for KILL."""
    container = start(f"{first_line(behind)}logfile /dev/stdout\n", LOW)
    with container.client(80) as client:
        client.sendall(b"one")
        assert read_exactly(client, 3) == b"one"
        engine.podman("stop", "--time", "60", container.name, seconds=20)
    assert container.wait() == 0
    assert container.logs().count("\tdone-") == 1


def test_orphans_are_collected(start: Start, behind: Server) -> None:
    """What a command in the container leaves behind becomes process 1's child, and no zombie."""
    container = start(first_line(behind), LOW)
    container.run("sh", "-c", "(sleep 0.2; exit 3) & (sleep 0.1; exit 4) &")
    states = "for each in /proc/[0-9]*/stat; do cat $each; done 2>/dev/null | cut -d' ' -f2-4; true"
    until(lambda: "(sleep)" not in container.run("sh", "-c", states), what="the orphans' end")
    until(lambda: ") Z " not in container.run("sh", "-c", states), what="no zombie")
    assert container.echoes(80)


def test_an_upgrade_is_refused(start: Start, behind: Server) -> None:
    """Process 1 cannot be replaced: it says so, and goes on."""
    container = start(first_line(behind), LOW)
    before = container.pid()
    container.send(signal.SIGUSR2)
    said = "upgrade failed: this is process 1 of a container; replace the container instead"
    until(lambda: said in container.logs(), what="the refusal")
    assert container.echoes(80)
    assert container.pid() == before


# As the host's variant and the DaemonSet run it.


def test_root_with_four_capabilities(start: Start, behind: Server) -> None:
    """In a network where low ports are root's: they work, and workers are nobody, without rights."""
    added = [f"--cap-add={name}" for name in ("NET_BIND_SERVICE", "SETUID", "SETGID", "KILL")]
    container = start(first_line(behind), "--user=0:0", *added)
    assert container.echoes(80)
    said = container.run("sh", "-c", "grep -h -e ^Name -e ^Uid -e ^CapPrm /proc/[0-9]*/status")
    workers = re.findall(r"Name:\tfastfwd-w\d\nUid:\t(\d+)\t.*\nCapPrm:\t(\d+)\n", said)
    assert workers == [("65534", "0000000000000000")] * 2
