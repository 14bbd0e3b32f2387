"""The Debian packages: built, looked at, and installed on a Debian that has booted. Two minutes, of which the
Debian is one."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fastfwd
from tests import deadline
from tests.deadline import until
from tests.deploy.debian import Debian, debootstrap
from tests.peers import require_peer
from tests.servers import echo, serve
from tests.sockets import connect, read_exactly

pytestmark = [pytest.mark.package, pytest.mark.timeout(deadline.seconds(600))]

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "deploy/debian"
PRIVATE = Path("usr/lib/fastfwd")

Packages = dict[str, Path]
"""Name to file."""


def output(*command: str | Path) -> str:
    """What a command of this host writes; it must not fail."""
    done = subprocess.run(
        [require_peer(str(command[0])), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(300),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Both, as `make deb` builds them."""
    require_peer("dpkg-buildpackage")
    where = tmp_path_factory.mktemp("deb") / "deb"
    output("make", "-C", ROOT, "deb", f"DEB={where}")
    return {path.name.partition("_")[0]: path for path in where.glob("*.deb")}


@pytest.fixture(scope="module")
def unpacked(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their files, with the maintainer's scripts in DEBIAN."""
    found = {}
    for name, path in packages.items():
        found[name] = tmp_path_factory.mktemp("unpacked") / name
        output("dpkg-deb", "--raw-extract", path, found[name])
    return found


@pytest.fixture(scope="module")
def newer(unpacked: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package fastfwd with a higher revision, whose example has changed."""
    copy = tmp_path_factory.mktemp("newer") / "fastfwd"
    shutil.copytree(unpacked["fastfwd"], copy, symlinks=True)
    control = copy / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", r"\g<0>+newer", control.read_text()))
    with (copy / "etc/fastfwd.conf").open("a") as example:
        example.write("# Changed by the package.\n")
    built = copy.with_suffix(".deb")
    output("dpkg-deb", "--root-owner-group", "--build", copy, built)
    return built


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every Debian here starts from; rinetd is installed."""
    return debootstrap(tmp_path_factory.mktemp("base"))


@pytest.fixture
def debian(base: Path, tmp_path: Path) -> Iterator[Debian]:
    """A fresh one, booted."""
    with Debian(base, tmp_path) as booted:
        yield booted


@pytest.fixture(scope="module")
def installed(base: Path, packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    """One on which fastfwd has been installed beside rinetd, and nothing else done: only to be looked at."""
    with Debian(base, tmp_path_factory.mktemp("installed")) as booted:
        booted.install(packages["fastfwd"])
        yield booted


@pytest.fixture
def backend() -> Iterator[Callable[[Debian], int]]:
    """Call it with a Debian for the port of an echo server in its network."""
    with ExitStack() as stack:
        yield lambda debian: debian.call(lambda: stack.enter_context(serve(echo)).port)


def echoed(client: socket.socket, text: bytes) -> bytes:
    """What comes back of `text`."""
    client.sendall(text)
    return read_exactly(client, len(text))


def through(debian: Debian, port: int, text: bytes = b"through\n") -> bytes:
    """What a new connection to `port` inside brings back of `text`."""
    with debian.call(connect, ("127.0.0.1", port)) as client:
        return echoed(client, text)


def serving(debian: Debian, port: int) -> None:
    """Wait until somebody listens there."""

    def look() -> bool:
        try:
            through(debian, port)
        except ConnectionError:
            return False
        return True

    until(look, 10, f"a listener\n{debian.said()}")


def configure(debian: Debian, text: str, file: str = "/etc/fastfwd.conf") -> None:
    """Add to the configuration."""
    with debian.path(file).open("a") as configuration:
        configuration.write(text)


def programs(debian: Debian) -> list[str]:
    """The processes inside that run what the packages install."""
    found = debian.try_run("sh", "-c", "grep -lE '/usr/sbin/(fastfwd|rinetd)' /proc/[0-9]*/cmdline")
    return [each for each in found.stdout.split() if "/self/" not in each]


# What is in them


def test_lintian_has_no_complaint(packages: Packages) -> None:
    """Debian's own check, warnings included; what is overridden has its reason beside it."""
    output("lintian", "--allow-root", "--profile=debian", "--fail-on=error,warning", *packages.values())


def test_the_scripts_are_clean_shell() -> None:
    """What dpkg runs as root."""
    scripts = [
        path for path in DEBIAN.iterdir() if path.suffix in {".preinst", ".postinst", ".prerm", ".postrm"}
    ]
    assert len(scripts) == 7
    output("shellcheck", "--shell=dash", *scripts)


@pytest.mark.parametrize("name", ["fastfwd", "fastfwd-rinetd"])
def test_the_version_is_the_programs(packages: Packages, name: str) -> None:
    """With the package's revision."""
    assert output("dpkg-deb", "--field", packages[name], "Version") == f"{fastfwd.__version__}-1\n"


def test_a_version_without_changes_is_not_built(tmp_path: Path) -> None:
    """A number that CHANGELOG.md does not have."""
    (tmp_path / "fastfwd").mkdir()
    (tmp_path / "fastfwd/__init__.py").write_text('__version__ = "99.0"\n')
    shutil.copy(ROOT / "CHANGELOG.md", tmp_path)
    done = subprocess.run(
        [sys.executable, DEBIAN / "changelog.py", "1", "somebody"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "99.0" in done.stderr


def test_what_it_carries_is_what_the_program_depends_on() -> None:
    """And the extra for YAML, each at one release that pyproject.toml allows, held by hashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        Requirement(each) for each in project["dependencies"] + project["optional-dependencies"]["yaml"]
    ]
    text = (DEBIAN / "requirements.txt").read_text("utf-8")
    pinned = dict(re.findall(r"(?m)^([a-z-]+)==([0-9.]+) \\\n    --hash=sha256:[0-9a-f]{64}", text))
    assert set(pinned) == {each.name for each in wanted}
    assert all(each.specifier.contains(pinned[each.name]) for each in wanted)


def test_it_depends_on_the_python_it_was_made_for(packages: Packages) -> None:
    """Its modules are compiled for one."""
    version = output("/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])")
    major, minor = map(int, version.split())
    said = output("dpkg-deb", "--field", packages["fastfwd"], "Depends")
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})" in said


@pytest.mark.parametrize(
    "file",
    [
        "usr/lib/fastfwd/fastfwd/observe/page.html",
        "usr/share/bash-completion/completions/fastfwd.bash",
        "usr/share/bash-completion/completions/fastfwd-stunnel2conf.bash",
        "usr/share/zsh/vendor-completions/_fastfwd",
        "usr/share/fish/vendor_completions.d/fastfwd.fish",
        "usr/share/fish/vendor_completions.d/fastfwd-stunnel2conf.fish",
        "usr/share/doc/fastfwd/README.md",
        "usr/share/doc/fastfwd/docs/configuration.md",
        "usr/share/doc/fastfwd/examples/prometheus/fastfwd.alerts.yml",
        "etc/logrotate.d/fastfwd",
        "etc/fastfwd",
    ],
)
def test_it_has_the_file(unpacked: dict[str, Path], file: str) -> None:
    """Where Debian looks for such a one."""
    assert (unpacked["fastfwd"] / file).exists()


def test_it_has_every_manual_page(unpacked: dict[str, Path]) -> None:
    """Of docs/ and docs/man/."""
    pages = {f"{path.name}.gz" for each in ("docs", "docs/man") for path in (ROOT / each).glob("*.[1578]")}
    assert {path.name for path in (unpacked["fastfwd"] / "usr/share/man").rglob("*.gz")} == pages


def test_it_has_nothing_of_the_development(unpacked: dict[str, Path]) -> None:
    """No tests, no bench, no pip, none of its records; no C library of others."""
    private = unpacked["fastfwd"] / PRIVATE
    names = {path.name for path in private.rglob("*")}
    assert not names & {"tests", "bench", "pip", "setuptools", "bin", "RECORD", "direct_url.json"}
    assert {path.name.partition(".")[0] for path in private.rglob("*.so")} == {"orjson", "_psutil_linux"}


def test_no_file_knows_where_it_was_built(packages: Packages, unpacked: dict[str, Path]) -> None:
    """Neither by name nor in what was compiled."""
    where = str(packages["fastfwd"].parent).encode()
    files = [path for path in unpacked["fastfwd"].rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 100
    assert [path for path in files if where in path.read_bytes()] == []


def test_no_unit_starts_what_is_not_in_it(unpacked: dict[str, Path]) -> None:
    """The program by its bare name, with its own file; rinetd may go on beside it."""
    for path in (unpacked["fastfwd"] / "lib/systemd/system").iterdir():
        text = path.read_text()
        commands = dict(re.findall(r"(?m)^(Exec\w+)=(.*fastfwd.*)", text))
        file = "/etc/fastfwd/%i.conf" if "@" in path.name else "/etc/fastfwd.conf"
        assert set(commands) == {"ExecStartPre", "ExecStart", "ExecReload"}
        for command in commands.values():
            assert command.startswith("fastfwd ")
            assert re.search(r" -c (\S+)", command)[1] == file  # type: ignore[index]
        assert "/opt/" not in text
        assert "rinetd" not in text


def test_an_upgrade_stops_nothing(unpacked: dict[str, Path]) -> None:
    """No script of either package stops or restarts a unit then."""
    for package in unpacked.values():
        for script in (package / "DEBIAN").glob("p*"):
            text = script.read_text()
            assert "restart" not in text.replace("without a restart", "")
            for stop in re.finditer(r"\b(?:invoke|systemctl) stop ", text):
                assert "= remove ]" in text[: stop.start()].splitlines()[-2] + text[: stop.start()]
                assert script.name == "prerm"


# Beside rinetd


def test_the_command_is_there(installed: Debian) -> None:
    """With the version of this tree."""
    assert installed.run("fastfwd", "-v") == f"fastfwd {fastfwd.__version__}\n"


def test_so_is_the_second_one(installed: Debian) -> None:
    """It translates."""
    configuration = "[web]\naccept = 443\nconnect = 80\ncert = /etc/web.pem\n"
    installed.path("/root/stunnel.conf").write_text(configuration)
    assert "tls-accept" in installed.try_run("fastfwd-stunnel2conf", "/root/stunnel.conf").stdout


def test_its_configuration_is_right_and_forwards_nothing(installed: Debian) -> None:
    """As it is installed."""
    done = installed.try_run("fastfwd", "-t", "-c", "/etc/fastfwd.conf")
    assert done.returncode == 0
    assert "/etc/fastfwd.conf is valid: 0 forwards" in done.stderr


def test_its_configuration_without_the_comments_is_right(installed: Debian) -> None:
    """Every line that is proposed there."""
    example = (DEBIAN / "fastfwd.conf").read_text()
    lines = re.findall(r"(?m)^# (\d+\..*|allow .*|deny .*|include .*|metrics .*)$", example)
    assert len(lines) == 7
    installed.path("/root/all.conf").write_text("\n".join(lines) + "\n")
    assert "valid: 3 forwards" in installed.run("sh", "-c", "fastfwd -t -c /root/all.conf 2>&1")


def test_it_runs_and_will_after_a_boot(installed: Debian) -> None:
    """Since it was installed."""
    assert installed.active("fastfwd.service")
    assert installed.run("systemctl", "is-enabled", "fastfwd.service") == "enabled\n"


def test_rinetd_goes_on_beside_it(installed: Debian) -> None:
    """Nothing has stopped it."""
    assert installed.active("rinetd.service")
    assert installed.commands("rinetd.service") == [["/usr/sbin/rinetd"]]


def test_the_program_can_be_started_again_by_its_own_words(installed: Debian) -> None:
    """The upgrade does: what the kernel was given has the interpreter, its flags, and the command's name."""
    main = installed.commands("fastfwd.service")[0]
    assert main[:3] == ["/usr/bin/python3", "-IS", "/usr/sbin/fastfwd"]
    assert installed.run(*main[:3], "-v") == f"fastfwd {fastfwd.__version__}\n"


def test_the_account_is_there(installed: Debian) -> None:
    """Nobody can log in with it."""
    assert installed.run("getent", "passwd", "fastfwd").rstrip().endswith("/usr/sbin/nologin")


def test_its_directories_are_there(installed: Debian) -> None:
    """The log's is the account's."""
    assert installed.run("stat", "-c", "%U:%G %a", "/var/log/fastfwd", "/etc/fastfwd") == (
        "fastfwd:adm 750\nroot:root 755\n"
    )


def test_man_finds_the_pages(installed: Debian) -> None:
    """By name."""
    installed.run("man", "-w", "8", "fastfwd")
    installed.run("man", "-w", "1", "fastfwd-stunnel2conf")


def test_logrotate_reads_its_entry(installed: Debian) -> None:
    """With everything else that is there."""
    done = installed.try_run("logrotate", "--debug", "/etc/logrotate.conf")
    assert done.returncode == 0
    assert "error" not in done.stderr


def test_a_start_compiles_nothing(installed: Debian) -> None:
    """Root could write what it compiles, and dpkg would see that a file has changed."""
    configuration = "metrics 127.0.0.1:9464\n127.0.0.1 81 127.0.0.1 82\n"
    installed.path("/root/one.conf").write_text(configuration)
    installed.path("/root/one.yaml").write_text("rules: []\n")
    installed.run("fastfwd", "-t", "-c", "/root/one.conf")
    installed.try_run("fastfwd", "-t", "-c", "/root/one.yaml")
    installed.try_run("fastfwd", "--status", "-c", "/root/one.conf")
    assert installed.run("dpkg", "--verify", "fastfwd") == ""
    assert installed.run("find", "/usr/lib/fastfwd", "-type", "f", "-newer", "/etc/fastfwd.conf") == ""


def test_other_pythons_packages_do_not_concern_it(installed: Debian) -> None:
    """A caller's path, a caller's directory, the machine's own packages."""
    for where in ("/root/evil", "/usr/local/lib/python3.11/dist-packages"):
        installed.path(where).mkdir(parents=True, exist_ok=True)
        for module in ("fastfwd", "argparse", "orjson"):
            (installed.path(where) / f"{module}.py").write_text("raise SystemExit(99)\n")
    said = installed.run("sh", "-c", "cd /root/evil && PYTHONPATH=/root/evil fastfwd -v")
    assert said == f"fastfwd {fastfwd.__version__}\n"


def test_a_forward_carries_bytes(
    debian: Debian, packages: Packages, backend: Callable[[Debian], int]
) -> None:
    """A line in the file, and a reload."""
    debian.install(packages["fastfwd"])
    configure(debian, f"127.0.0.1 80 127.0.0.1 {backend(debian)}\n")
    debian.run("systemctl", "reload", "fastfwd.service")
    until(lambda: "reloaded:" in debian.said(), 10, "the reload")
    assert through(debian, 80) == b"through\n"


def test_yaml_is_read(debian: Debian, packages: Packages) -> None:
    """The extra is part of the package."""
    debian.install(packages["fastfwd"])
    example = (ROOT / "tests/config/same/rinetd-uv.yaml").read_text()
    debian.path("/root/rinetd.yaml").write_text(example)
    done = debian.try_run("fastfwd", "-t", "-c", "/root/rinetd.yaml")
    assert "PyYAML" not in done.stderr


def test_the_log_is_written_and_rotated(
    debian: Debian, packages: Packages, backend: Callable[[Debian], int]
) -> None:
    """What comes after the rotation is in the new file."""
    debian.install(packages["fastfwd"])
    configure(debian, f"127.0.0.1 80 127.0.0.1 {backend(debian)}\n")
    debian.run("systemctl", "restart", "fastfwd.service")
    serving(debian, 80)
    log = debian.path("/var/log/fastfwd/connections.log")
    through(debian, 80)
    until(lambda: "done" in log.read_text(), 10, "a line")
    debian.run("logrotate", "--force", "/etc/logrotate.d/fastfwd")
    until(lambda: "reloaded:" in debian.said(), 10, "the reload")
    assert log.read_text() == ""
    through(debian, 80)
    until(lambda: "done" in log.read_text(), 10, "a line in the new file")


def test_an_upgrade_keeps_the_configuration(debian: Debian, packages: Packages, newer: Path) -> None:
    """Nobody is asked, and what the package would have is beside it."""
    debian.install(packages["fastfwd"])
    configure(debian, "# Mine.\n")
    mine = debian.path("/etc/fastfwd.conf").read_text()
    debian.run("dpkg", "--force-confold", "--install", _given(debian, newer))
    assert debian.path("/etc/fastfwd.conf").read_text() == mine
    assert "Changed by the package" in debian.path("/etc/fastfwd.conf.dpkg-dist").read_text()


UNITS = {
    "fastfwd.service": "/etc/fastfwd.conf",
    "fastfwd@one.service": "/etc/fastfwd/one.conf",
    "fastfwd-rinetd.service": "/etc/rinetd.conf",
}


@pytest.mark.parametrize("unit", UNITS)
def test_an_upgrade_loses_no_session(
    debian: Debian, packages: Packages, newer: Path, backend: Callable[[Debian], int], unit: str
) -> None:
    """The new version is the service's main process, and accepts, while the old one's session goes on."""
    debian.install(packages["fastfwd"])
    configure(debian, f"127.0.0.1 80 127.0.0.1 {backend(debian)}\n", UNITS[unit])
    if unit == "fastfwd-rinetd.service":
        debian.install(packages["fastfwd-rinetd"])
    debian.run("systemctl", "restart", unit)
    serving(debian, 80)
    before = debian.run("systemctl", "show", "--property=MainPID", unit)
    with debian.call(connect, ("127.0.0.1", 80)) as client:
        assert echoed(client, b"before\n") == b"before\n"
        debian.run("dpkg", "--force-confold", "--install", _given(debian, newer))
        until(
            lambda: debian.run("systemctl", "show", "--property=MainPID", unit) != before, 20, debian.said()
        )
        assert echoed(client, b"after\n") == b"after\n"
        assert through(debian, 80) == b"through\n"
    assert debian.run("systemctl", "show", "--property=NRestarts", unit) == "NRestarts=0\n"


def test_an_upgrade_starts_nothing_that_was_stopped(debian: Debian, packages: Packages, newer: Path) -> None:
    """By an operator, who has a reason."""
    debian.install(packages["fastfwd"])
    debian.run("systemctl", "stop", "fastfwd.service")
    debian.run("dpkg", "--force-confold", "--install", _given(debian, newer))
    assert not debian.active("fastfwd.service")


def test_a_removal_leaves_the_configuration_and_nothing_that_runs(debian: Debian, packages: Packages) -> None:
    """Instances are stopped too."""
    debian.install(packages["fastfwd"])
    if debian.path("/lib/systemd/system/fastfwd@.service").exists():
        debian.path("/etc/fastfwd/one.conf").write_text("127.0.0.1 81 127.0.0.1 82\n")
        debian.run("systemctl", "start", "fastfwd@one.service")
    assert len(programs(debian)) >= 3
    debian.run("apt-get", "remove", "-y", "fastfwd")
    assert debian.commands("fastfwd.service") == []
    assert [each for each in programs(debian) if "fastfwd" in debian.path(each).read_text()] == []
    assert debian.path("/etc/fastfwd.conf").exists()


def test_a_purge_leaves_nothing_of_it(debian: Debian, packages: Packages) -> None:
    """No configuration, no log, no link of a unit; the account stays."""
    debian.install(packages["fastfwd"])
    debian.path("/var/log/fastfwd/connections.log").touch()
    debian.run("apt-get", "purge", "-y", "fastfwd")
    found = debian.run("find", "/etc", "/usr", "/lib", "/var/log", "-xdev", "-iname", "*fastfwd*")
    assert found == ""
    debian.run("getent", "passwd", "fastfwd")


# In rinetd's place


@pytest.fixture
def replaced(debian: Debian, packages: Packages, backend: Callable[[Debian], int]) -> Debian:
    """One whose rinetd forwards port 80, until fastfwd-rinetd is installed. apt was not asked twice."""
    configure(debian, f"127.0.0.1 80 127.0.0.1 {backend(debian)}\n# Mine.\n", "/etc/rinetd.conf")
    debian.run("systemctl", "restart", "rinetd.service")
    assert through(debian, 80) == b"through\n"
    debian.install(packages["fastfwd"], packages["fastfwd-rinetd"])
    serving(debian, 80)
    return debian


def test_it_forwards_what_rinetd_did(replaced: Debian) -> None:
    """By the same file, which nobody touched."""
    assert through(replaced, 80) == b"through\n"
    assert replaced.path("/etc/rinetd.conf").read_text().endswith("# Mine.\n")
    assert not replaced.path("/etc/rinetd.conf.of-rinetd").exists()


def test_rinetd_is_gone(replaced: Debian) -> None:
    """The package is removed, and the name is fastfwd's."""
    assert replaced.run("dpkg-query", "--show", "-f", "${db:Status-Status}", "rinetd") == "config-files"
    assert replaced.run("rinetd", "-v") == f"fastfwd {fastfwd.__version__}\n"


def test_the_service_has_rinetds_name(replaced: Debian) -> None:
    """For scripts that say so."""
    assert replaced.active("rinetd.service")
    assert replaced.commands("rinetd.service")[0][:3] == ["/usr/bin/python3", "-IS", "/usr/sbin/rinetd"]
    replaced.run("systemctl", "restart", "rinetd")
    serving(replaced, 80)


def test_the_manual_page_has_rinetds_name(replaced: Debian) -> None:
    """It is fastfwd's."""
    assert replaced.run("man", "-w", "rinetd") == replaced.run("man", "-w", "fastfwd")


def test_a_purge_of_rinetd_takes_nothing_away(replaced: Debian) -> None:
    """Its configuration and its entry for logrotate are in use, and the service is still started at boot."""
    replaced.run("apt-get", "purge", "-y", "rinetd")
    assert replaced.path("/etc/rinetd.conf").read_text().endswith("# Mine.\n")
    assert replaced.path("/etc/logrotate.d/rinetd").exists()
    assert replaced.run("systemctl", "is-enabled", "fastfwd-rinetd.service") == "enabled\n"


def test_rinetds_log_is_written(replaced: Debian) -> None:
    """The one that its file names, where rinetd wrote as root."""
    log = replaced.path("/var/log/rinetd.log")
    assert through(replaced, 80) == b"through\n"
    until(lambda: "done" in log.read_text(), 10, "a line")


def test_the_way_back_to_rinetd(replaced: Debian, base: Path) -> None:
    """Its package is installed again; it finds its file, and no diversion is left."""
    (package,) = (base / "var/cache/apt/archives").glob("rinetd_*.deb")
    replaced.install(package)
    assert replaced.commands("rinetd.service") == [["/usr/sbin/rinetd"]]
    serving(replaced, 80)
    assert through(replaced, 80) == b"through\n"
    assert "fastfwd" not in replaced.run("dpkg-divert", "--list")
    assert not replaced.active("fastfwd-rinetd.service")


def test_without_a_rinetd_conf_nothing_is_started_or_made(debian: Debian, packages: Packages) -> None:
    """On a machine that never had rinetd."""
    debian.run("apt-get", "purge", "-y", "rinetd")
    debian.install(packages["fastfwd"], packages["fastfwd-rinetd"])
    assert not debian.active("rinetd.service")
    assert not debian.path("/etc/rinetd.conf").exists()
    assert debian.try_run("systemctl", "is-failed", "--quiet", "rinetd.service").returncode != 0


def _given(debian: Debian, package: Path) -> str:
    """A package file of this host, inside."""
    shutil.copy(package, debian.path("/root"))
    return f"/root/{package.name}"
