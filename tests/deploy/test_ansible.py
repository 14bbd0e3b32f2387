"""The role in deploy/ansible, run for real by ansible-playbook against this machine. /etc, /opt and what else
it writes to are covered by layers that vanish with the test.

What is about the configuration does without systemd: a `systemctl` of the test's own notes what it is asked,
and passes a reload on to a program that runs. Installation and upgrade have a systemd that has booted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import fastfwd
from tests import deadline
from tests.conftest import StartForwarder, StartServer
from tests.deploy.machine import Machine
from tests.forwarder import Forwarder
from tests.peers import lack, require_root
from tests.ports import free_port
from tests.servers import echo, serve
from tests.sockets import connect, finish, read_exactly, read_to_end
from tests.system.namespaces import Sandbox

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "ansible"
ROLE = FILES / "roles" / "fastfwd"
CONF = Path("/etc/fastfwd.conf")
COVERED = ("/etc", "/opt", "/usr/local", "/var/log", "/root")

SYSTEMCTL = """\
#!/bin/sh
# What a test has in systemd's place: the unit is there, enabled and runs.
echo "$*" >>{said}
case "$*" in
show*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nUnitFileState=enabled\\n' ;;
reload*) kill -HUP "$(cat {running})" ;;
esac
"""


def playbook(*arguments: str) -> list[str]:
    """The command that runs the playbook on this machine."""
    program = Path(sys.executable).with_name("ansible-playbook")
    if not program.exists():
        lack("ansible-playbook is not installed")
    return [str(program), "-i", "localhost,", "-c", "local", *arguments]


@dataclass
class Host:
    """This machine under its covers."""

    inside: Sandbox
    directory: Path
    variables: dict[str, Any] = field(default_factory=dict)

    def apply(self, *arguments: str, status: int = 0, **variables: Any) -> str:
        """Run the playbook with these variables; what it says."""
        every = {"ansible_python_interpreter": sys.executable, **self.variables, **variables}
        (self.directory / "variables.yml").write_text(yaml.safe_dump(every))
        site = yaml.safe_load((FILES / "site.yml").read_text())
        site[0]["hosts"] = "localhost"
        (self.directory / "site.yml").write_text(yaml.safe_dump(site))
        done: subprocess.CompletedProcess[str] = self.inside.call(
            subprocess.run,
            playbook("-e", f"@{self.directory}/variables.yml", *arguments, f"{self.directory}/site.yml"),
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "ANSIBLE_ROLES_PATH": str(FILES / "roles"),
                "ANSIBLE_HOME": str(self.directory / "ansible"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "LC_ALL": "C.UTF-8",
            },
            timeout=deadline.seconds(110),
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def read(self, path: Path = CONF) -> str:
        """A file as it is there."""
        return str(self.inside.call(path.read_text))

    def asked(self) -> list[str]:
        """What systemctl was asked to do since the last call, but for questions."""
        path = self.directory / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith(("show", "is-"))]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """The machine, with fastfwd at its place, and a systemctl."""
    require_root()
    with Sandbox() as inside:
        for number, name in enumerate(COVERED):
            upper, work = tmp_path / f"upper{number}", tmp_path / f"work{number}"
            upper.mkdir()
            work.mkdir()
            options = f"lowerdir={name},upperdir={upper},workdir={work}"
            inside.run("mount", "-t", "overlay", "fastfwd-test", "-o", options, name)
        text = SYSTEMCTL.format(said=tmp_path / "asked", running=tmp_path / "running")
        script(inside, Path("/usr/local/bin/systemctl"), text)
        script(
            inside,
            Path("/usr/local/sbin/fastfwd"),
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m fastfwd "$@"\n',
        )
        yield Host(inside, tmp_path, {"fastfwd_install": "none"})


def script(inside: Sandbox, path: Path, text: str) -> None:
    """A program of the test's."""
    inside.call(path.write_text, text)
    inside.call(path.chmod, 0o755)


def quiet(host: Host) -> None:
    """A systemctl for which nothing runs that could be sent a signal."""
    text = SYSTEMCTL.format(said=host.directory / "asked", running=host.directory / "running")
    without = re.sub(r"(?m)^reload\*.*\n", "", text)
    script(host.inside, Path("/usr/local/bin/systemctl"), without)


WEB = {"name": "web", "listen": "127.0.0.1 8080", "to": "192.0.2.1,192.0.2.2 80", "options": ["check=5s"]}


# What is written.


def test_the_playbook_s_syntax() -> None:
    """ansible-playbook reads it and finds the role."""
    done = subprocess.run(
        playbook("--syntax-check", str(FILES / "site.yml")),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        timeout=deadline.seconds(60),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_is_documented() -> None:
    """README.md has those of defaults/main.yml, in that order, and no other."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    documented = re.findall(r"(?m)^\| `(fastfwd_\w+)` \|", (FILES / "README.md").read_text())
    assert documented == list(defaults)


def test_nothing_restarts() -> None:
    """No task and no handler has a state that would end the sessions."""
    found = [
        (path.name, entry["name"])
        for path in (*ROLE.glob("tasks/*.yml"), *ROLE.glob("handlers/*.yml"))
        for entry in yaml.safe_load(path.read_text())
        if "restart" in str({key: value for key, value in entry.items() if key != "name"})
    ]
    assert found == []


# What is done.


@pytest.mark.package
def test_a_configuration(host: Host) -> None:
    """Written as the variables say; the service, which is enabled and runs, is reloaded; a second run changes
    nothing and asks for no reload."""
    quiet(host)
    variables: dict[str, Any] = {
        "fastfwd_directives": {"logduration": True, "metrics": "127.0.0.1:9464"},
        "fastfwd_rules": ["deny 203.0.113.0/24"],
        "fastfwd_forwards": [
            {**WEB, "rules": ["allow 198.51.100.0/24", "deny 198.51.100.13"]},
            {"listen": "127.0.0.1 53/udp", "to": "192.0.2.3 53/udp"},
        ],
        "fastfwd_extra": "127.0.0.1 25 192.0.2.4 25",
    }
    said = host.apply(**variables)
    assert re.search(r"changed=[1-9].*failed=0", said)
    lines = [line for line in host.read().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "logduration",
        "metrics 127.0.0.1:9464",
        "deny 203.0.113.0/24",
        "127.0.0.1 8080  192.0.2.1,192.0.2.2 80  [name=web, check=5s]",
        "allow 198.51.100.0/24",
        "deny 198.51.100.13",
        "127.0.0.1 53/udp  192.0.2.3 53/udp",
        "127.0.0.1 25 192.0.2.4 25",
    ]
    assert host.asked() == ["daemon-reload", "reload fastfwd"]
    assert re.search(r"changed=0 .*failed=0", host.apply(**variables))
    assert host.asked() == ["daemon-reload"]


def test_a_wrong_configuration_is_not_put_in_place(host: Host) -> None:
    """The run fails with the line and the words of `fastfwd -t`; the file stays, and nothing is reloaded."""
    host.inside.call(CONF.write_text, "127.0.0.1 8080 192.0.2.1 80\n")
    said = host.apply(status=2, fastfwd_forwards=[{"listen": "127.0.0.1 8080", "to": "192.0.2.1"}])
    assert "failed to validate" in said
    assert "expected" in said
    assert host.read() == "127.0.0.1 8080 192.0.2.1 80\n"
    assert host.asked() == []


@pytest.mark.package
def test_check_mode_changes_nothing(host: Host) -> None:
    """`--check --diff` shows the new lines and writes none."""
    host.inside.call(CONF.write_text, "127.0.0.1 8080 192.0.2.1 80\n")
    said = host.apply("--check", "--diff", fastfwd_forwards=[WEB])
    assert "+127.0.0.1 8080  192.0.2.1,192.0.2.2 80  [name=web, check=5s]" in said
    assert host.read() == "127.0.0.1 8080 192.0.2.1 80\n"
    assert [line for line in host.asked() if line.startswith(("reload ", "kill", "start"))] == []


def test_a_session_outlives_a_change(host: Host, forwarder: StartForwarder, backend: StartServer) -> None:
    """A program that runs with the file takes the new forward, and a session through the old one goes on."""
    server = backend(echo)
    one, two = free_port(), free_port()
    first = {"name": "one", "listen": f"127.0.0.1 {one}", "to": f"{server.host} {server.port}"}
    second = {"name": "two", "listen": f"127.0.0.1 {two}", "to": f"{server.host} {server.port}"}
    running: Forwarder = forwarder(f"127.0.0.1 {one} {server.host} {server.port} [name=one]\n")
    (host.directory / "running").write_text(f"{running.pid}\n")
    with connect(("127.0.0.1", one)) as client:
        client.sendall(b"before")
        assert read_exactly(client, 6) == b"before"
        host.apply(
            fastfwd_conf=str(running.config_path),
            fastfwd_directives={"workers": 2, "logfile": str(running.log_path)},
            fastfwd_forwards=[first, second],
        )
        running.wait_reloaded(1)
        client.sendall(b"after")
        assert read_exactly(client, 5) == b"after"
    with connect(("127.0.0.1", two)) as client:
        client.sendall(b"new")
        finish(client)
        assert read_to_end(client).data == b"new"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One without fastfwd, and with what the role takes from the controlling host: a wheel of this tree, and
    those of its libraries for the Python of Debian."""
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    dist, house = tmp_path / "dist", tmp_path / "wheelhouse"
    for command in (
        ["build", "--wheel", "--outdir", str(dist), str(ROOT)],
        [
            *("pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary", ":all:"),
            *(
                "--python-version",
                version,
                "-d",
                str(house),
                "-r",
                str(ROOT / "deploy/docker/requirements.txt"),
            ),
        ],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=deadline.seconds(120),
        )
        assert done.returncode == 0, done.stdout + done.stderr
    with Machine(tmp_path) as booted:
        booted.path("/usr/local/sbin/fastfwd").unlink()
        shutil.copytree(dist, booted.path("/root/dist"))
        shutil.copytree(house, booted.path("/root/wheelhouse"))
        yield booted


def apply(machine: Machine, **variables: Any) -> str:
    """Run the playbook inside, with this tree's Ansible, which what it runs knows nothing of."""
    site = yaml.safe_load((FILES / "site.yml").read_text())
    site[0]["hosts"] = "localhost"
    site[0]["environment"] = {"PYTHONPATH": "", "LD_LIBRARY_PATH": ""}
    machine.write("/root/site.yml", yaml.safe_dump(site))
    machine.write("/root/variables.yml", yaml.safe_dump(variables))
    python = f"/opt/fastfwd/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    done = machine.try_run(
        *("env", "HOME=/root", "PYTHONPATH=/opt/fastfwd/site", "LD_LIBRARY_PATH=/opt/fastfwd/python/lib"),
        *("ANSIBLE_ROLES_PATH=/opt/fastfwd/tree/deploy/ansible/roles", "ANSIBLE_NOCOLOR=1"),
        *("ANSIBLE_LOCALHOST_WARNING=false", python, "-m", "ansible.cli.playbook"),
        *("-i", "localhost,", "-c", "local", "-e", "@/root/variables.yml", "/root/site.yml"),
        seconds=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr + machine.said()
    return done.stdout


def make_newer(wheel: Path) -> None:
    """Give what is in a wheel another version, though its name and what pip reads stay the same."""
    old = wheel.with_suffix(".old")
    wheel.rename(old)
    with zipfile.ZipFile(old) as before, zipfile.ZipFile(wheel, "w") as after:
        for each in before.infolist():
            data = before.read(each)
            if each.filename == "fastfwd/__init__.py":
                data = data.replace(fastfwd.__version__.encode(), b"newer")
            after.writestr(each, data)
    old.unlink()


@pytest.mark.package
@pytest.mark.timeout(deadline.seconds(400))
def test_an_installation_and_an_upgrade(machine: Machine) -> None:
    """Account, environment, command, unit, log's rotation, configuration: all there, and the service runs.
    The same again changes nothing. Another wheel of the same version takes over; a session goes on."""
    (wheel,) = machine.path("/root/dist").iterdir()
    with ExitStack() as stack:
        port = machine.call(lambda: stack.enter_context(serve(echo)).port)
        variables: dict[str, Any] = {
            "ansible_python_interpreter": "/usr/bin/python3",
            "fastfwd_python": "/usr/bin/python3",
            "fastfwd_wheel": f"/root/dist/{wheel.name}",
            "fastfwd_wheelhouse": "/root/wheelhouse",
            "fastfwd_forwards": [{"name": "web", "listen": "127.0.0.1 80", "to": f"127.0.0.1 {port}"}],
        }
        apply(machine, **variables)
        account = machine.run("getent", "passwd", "fastfwd")
        assert re.fullmatch(r"fastfwd:x:\d+:\d+:[^:]*:/:/usr/sbin/nologin\n", account)
        assert machine.run("readlink", "/usr/local/sbin/fastfwd") == "/opt/fastfwd/bin/fastfwd\n"
        assert machine.path("/etc/logrotate.d/fastfwd").read_text().startswith("# ")
        assert machine.run("systemctl", "is-enabled", "fastfwd.service") == "enabled\n"
        first = machine.show("fastfwd.service", "MainPID")

        assert re.search(r"changed=0 .*failed=0", apply(machine, **variables))
        assert machine.show("fastfwd.service", "MainPID") == first

        make_newer(wheel)
        with machine.call(connect, ("127.0.0.1", 80)) as client:
            client.sendall(b"before")
            assert read_exactly(client, 6) == b"before"
            apply(machine, **variables)
            assert machine.show("fastfwd.service", "MainPID") != first
            client.sendall(b"after")
            assert read_exactly(client, 5) == b"after"
        assert machine.run("fastfwd", "--status").startswith("fastfwd newer, ")
        assert machine.show("fastfwd.service", "NRestarts") == "0"
