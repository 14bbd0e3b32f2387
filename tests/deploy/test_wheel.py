"""The wheel and the source distribution, built and installed where there is nothing else, and used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fastfwd
from tests import deadline
from tests.conftest import StartServer
from tests.deadline import until
from tests.servers import echo
from tests.sockets import connect, read_exactly

pytestmark = [pytest.mark.package, pytest.mark.timeout(deadline.seconds(300))]

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""An environment in which this tree is not found."""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=CLEAN | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline.seconds(200),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with both; the wheel is made from the source distribution."""
    where = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--outdir", where, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return where


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """It, for every machine."""
    return built / f"fastfwd-{fastfwd.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, its dependencies, and nothing else."""
    where = tmp_path_factory.mktemp("installed") / "fastfwd"
    venv.create(where, with_pip=True)
    command = [where / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", wheel]
    done = run(*command, cwd=where)
    assert done.returncode == 0, done.stdout + done.stderr
    return where


@pytest.fixture(scope="module")
def source(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    where = tmp_path_factory.mktemp("source")
    with tarfile.open(built / f"fastfwd-{fastfwd.__version__}.tar.gz") as archive:
        archive.extractall(where, filter="data")
    return where / f"fastfwd-{fastfwd.__version__}"


@contextmanager
def running(prefix: Path, directory: Path, configuration: str) -> Iterator[None]:
    """The installed program, serving."""
    (directory / "fastfwd.conf").write_text(configuration)
    said = directory / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [prefix / "bin/fastfwd", "-f", "-c", "fastfwd.conf"], cwd=directory, env=CLEAN, stderr=stderr
        )
    try:
        until(lambda: "ready:" in said.read_text(), 15, "it serves")
        yield
    finally:
        process.terminate()
        process.wait(deadline.seconds(10))


# The wheel


def test_it_says_its_version(prefix: Path) -> None:
    """From another directory."""
    done = run(prefix / "bin/fastfwd", "-v", cwd=prefix)
    assert (done.returncode, done.stdout) == (0, f"fastfwd {fastfwd.__version__}\n")


def test_it_carries_bytes(
    prefix: Path, tmp_path: Path, backend: StartServer, free_port: Callable[[], int]
) -> None:
    """As installed."""
    port = free_port()
    with (
        running(prefix, tmp_path, f"127.0.0.1 {port} 127.0.0.1 {backend(echo).port}\n"),
        connect(("127.0.0.1", port)) as client,
    ):
        client.sendall(b"through\n")
        assert read_exactly(client, 8) == b"through\n"
        client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(("path", "word"), [("/", "<!doctype html>"), ("/metrics", "fastfwd_build_info")])
def test_the_exporter_answers(
    prefix: Path, tmp_path: Path, free_port: Callable[[], int], path: str, word: str
) -> None:
    """It has its page, and the libraries that it is made with."""
    port = free_port()
    with (
        running(prefix, tmp_path, f"metrics 127.0.0.1:{port}\n"),
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer,
    ):
        assert word in answer.read().decode().lower()


def test_the_second_command_translates(prefix: Path, tmp_path: Path) -> None:
    """A stunnel.conf in, a configuration out."""
    (tmp_path / "stunnel.conf").write_text("[web]\naccept = 443\nconnect = 80\ncert = /etc/web.pem\n")
    done = run(prefix / "bin/fastfwd-stunnel2conf", "stunnel.conf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tls-accept" in done.stdout


@pytest.mark.parametrize(
    "file",
    [
        "share/man/man1/fastfwd-stunnel2conf.1",
        "share/man/man8/fastfwd.8",
        "share/bash-completion/completions/fastfwd",
        "share/bash-completion/completions/fastfwd-stunnel2conf",
        "share/zsh/site-functions/_fastfwd",
        "share/fish/vendor_completions.d/fastfwd.fish",
        "share/fish/vendor_completions.d/fastfwd-stunnel2conf.fish",
    ],
)
def test_it_has_the_file(prefix: Path, file: str) -> None:
    """Where man and the shells look, below a prefix."""
    assert (prefix / file).is_file()


def test_it_has_every_manual_page(wheel: Path) -> None:
    """Of docs/ and docs/man/."""
    pages = {path.name for each in ("docs", "docs/man") for path in (ROOT / each).glob("*.[1578]")}
    with zipfile.ZipFile(wheel) as archive:
        assert {Path(name).name for name in archive.namelist() if "/share/man/" in name} == pages


def test_it_has_the_program_and_nothing_else(wheel: Path) -> None:
    """No tests, no bench."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        programs = {name for name in archive.namelist() if name.startswith("fastfwd/")}
    name = f"fastfwd-{fastfwd.__version__}"
    assert tops == {"fastfwd", f"{name}.data", f"{name}.dist-info"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "fastfwd").rglob("*") if path.is_file()}
    assert programs == {path for path in ours if "__pycache__" not in path}


# The source distribution


@pytest.mark.parametrize("directory", ["fastfwd", "bench", "tests", "deploy", "docs", ".ci"])
def test_the_source_has_every_file(source: Path, directory: str) -> None:
    """Of this tree: the tests read most of them."""
    there = {path.relative_to(source) for path in (source / directory).rglob("*") if path.is_file()}
    here = {path.relative_to(ROOT) for path in (ROOT / directory).rglob("*") if path.is_file()}
    assert {path for path in here if "__pycache__" not in path.parts} == there


def test_the_source_can_be_tested(source: Path) -> None:
    """Every test is found and imported there, and those that read the documents pass."""
    for what in (["--collect-only", "-q"], ["tests/config/test_documents.py"]):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *what]
        done = run(*command, cwd=source, PYTHONPATH=str(source))
        assert done.returncode == 0, done.stdout + done.stderr
