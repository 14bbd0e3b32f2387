"""Certificates, keys and the options about TLS: what is wrong with them is an error with file and line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from fastfwd.config.load import load
from fastfwd.model import Config, ConfigError
from tests.certificates import Authority
from tests.forwarder import run
from tests.sockets import noise

LINE: Final = "127.0.0.1 8443 10.0.0.1 80"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority, and the files that it has signed."""
    return Authority(tmp_path)


def written(authority: Authority, options: str, line: str = LINE) -> Path:
    """A configuration, with its forward in the second line."""
    path = authority.directory / "rinetd.conf"
    path.write_text(f"# TLS\n{line} [{options}]\n")
    return path


def wrong(authority: Authority, options: str, line: str = LINE) -> str:
    """The only thing that is wrong, which is located in the second line."""
    path = written(authority, options, line)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    (found,) = caught.value.problems
    assert (found.origin.file, found.origin.line) == (str(path), 2)
    return found.message


def right(authority: Authority, options: str, line: str = LINE) -> Config:
    """A configuration that can be used."""
    return load(str(written(authority, options, line)))


# What there is.


def test_certificate_chain_and_key_may_be_one_file(authority: Authority) -> None:
    """Or two."""
    right(authority, f"tls-accept, cert={authority.server()}")
    chain, key = authority.pair()
    right(authority, f"tls-accept, cert={chain}, key={key}")


def test_relative_names_are_beside_the_file(authority: Authority) -> None:
    """Wherever the program was started."""
    right(authority, f"tls-accept, cert={authority.server().name}")


def test_the_names_and_the_end_of_a_certificate_are_known(authority: Authority) -> None:
    """In lower case; an address is no name."""
    config = right(authority, f"tls-accept, cert={authority.server('A.example', '*.B.example', '10.1.2.3')}")
    accept = config.forwards[0].tls_accept
    assert accept is not None
    assert set(accept.certificates[0].names) == {"a.example", "*.b.example"}
    assert accept.certificates[0].expires > 1_700_000_000


def test_neither_key_nor_certificate_is_shown(authority: Authority) -> None:
    """However a configuration gets into a message."""
    config = right(authority, f"tls-accept, cert={authority.server()}")
    assert "PRIVATE" not in repr(config)
    assert "CERTIFICATE" not in repr(config)


# Files.


@pytest.mark.parametrize(
    "options",
    [
        "tls-accept, cert=none.pem",
        "tls-accept, cert={cert}, key=none.pem",
        "tls-accept, cert={cert}, client-ca=none.pem",
        "tls-connect, server-ca=none.pem",
        "tls-connect, client-cert=none.pem",
        "tls-connect, client-cert={person}, client-key=none.pem",
    ],
)
def test_a_file_that_is_missing(authority: Authority, options: str) -> None:
    """Every one."""
    said = wrong(authority, options.format(cert=authority.server(), person=authority.person()))
    assert "none.pem" in said
    assert said.endswith("No such file or directory")


def test_a_directory_is_no_file(authority: Authority) -> None:
    """Whatever it has."""
    (authority.directory / "certs").mkdir()
    said = wrong(authority, "tls-accept, cert=certs")
    assert "certs" in said
    assert said.endswith("Is a directory")


def test_a_file_that_may_not_be_read(authority: Authority) -> None:
    """The account's rights are said."""
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    cert = authority.server()
    cert.chmod(0)
    assert wrong(authority, f"tls-accept, cert={cert}").endswith("Permission denied")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o601])
def test_a_key_that_everybody_may_use(authority: Authority, mode: int) -> None:
    """It is none; the message has the mode."""
    cert = authority.server()
    cert.chmod(mode)
    said = wrong(authority, f"tls-accept, cert={cert}")
    assert cert.name in said
    assert f"mode {mode:04o}" in said


def test_a_key_that_a_group_may_use(authority: Authority) -> None:
    """As Debian's ssl-cert has it."""
    cert = authority.server()
    cert.chmod(0o640)
    right(authority, f"tls-accept, cert={cert}")


@pytest.mark.parametrize(
    "side", ["tls-accept, cert={chain}, key={key}", "tls-connect, client-cert={chain}, client-key={key}"]
)
def test_another_ones_key(authority: Authority, side: str) -> None:
    """Both files are named."""
    chain, key = authority.pair()[0], authority.pair()[1]
    said = wrong(authority, side.format(chain=chain, key=key))
    assert str(chain) in said
    assert str(key) in said


def test_an_encrypted_key(authority: Authority) -> None:
    """Nobody is there to be asked; the file is named, and nothing waits for a terminal."""
    chain, key = authority.pair()
    encrypted = authority.encrypted_key(key)
    said = wrong(authority, f"tls-accept, cert={chain}, key={encrypted}")
    assert "encrypted" in said
    assert str(encrypted) in said


@pytest.mark.parametrize("content", [b"", b"nothing", noise(1000), b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate(authority: Authority, content: bytes) -> None:
    """The file is named."""
    broken = authority.write("broken", content)
    said = wrong(authority, f"tls-accept, cert={broken}, key={authority.pair()[1]}")
    assert str(broken) in said


@pytest.mark.parametrize("content", [b"", b"nothing", noise(1000)])
def test_what_is_no_key(authority: Authority, content: bytes) -> None:
    """The file is named."""
    broken = authority.write("broken", content)
    said = wrong(authority, f"tls-accept, cert={authority.pair()[0]}, key={broken}")
    assert str(broken) in said


def test_a_key_without_a_certificate(authority: Authority) -> None:
    """In the only file that there is."""
    key = authority.pair()[1]
    assert str(key) in wrong(authority, f"tls-accept, cert={key}")


def test_an_expired_certificate(authority: Authority) -> None:
    """It is said which, and that it has."""
    cert = authority.expired()
    said = wrong(authority, f"tls-accept, cert={cert}")
    assert str(cert) in said
    assert "has expired" in said


def test_a_certificate_of_tomorrow(authority: Authority) -> None:
    """It is said which, and that it is not valid yet."""
    cert = authority.early()
    said = wrong(authority, f"tls-accept, cert={cert}")
    assert str(cert) in said
    assert "not valid yet" in said


def test_an_expired_certificate_of_a_client(authority: Authority) -> None:
    """Which backends are shown."""
    cert = authority.expired("alice@example.org")
    said = wrong(authority, f"tls-connect, client-cert={cert}")
    assert str(cert) in said
    assert "has expired" in said


@pytest.mark.parametrize("content", ["", "nothing", "KEY"])
@pytest.mark.parametrize(
    "option", ["tls-accept, cert={cert}, client-ca={file}", "tls-connect, server-ca={file}"]
)
def test_authorities_without_certificates(authority: Authority, option: str, content: str) -> None:
    """The file is named."""
    key = authority.pair()[1].read_bytes()
    file = authority.write("authorities", key if content == "KEY" else content.encode())
    said = wrong(authority, option.format(cert=authority.server(), file=file))
    assert str(file) in said


def test_every_certificate_of_several_is_looked_at(authority: Authority) -> None:
    """Not only the first."""
    expired = authority.expired()
    assert str(expired) in wrong(authority, f"tls-accept, cert={authority.server()};{expired}")


# Options.


@pytest.mark.parametrize("side", ["tls-accept, cert={cert}", "tls-connect"])
@pytest.mark.parametrize("ciphers", ["NONSENSE", "!ALL"])
def test_ciphers_that_are_none(authority: Authority, side: str, ciphers: str) -> None:
    """What was found is said."""
    assert ciphers in wrong(authority, f"{side.format(cert=authority.server())}, ciphers={ciphers}")


@pytest.mark.parametrize(
    "options",
    [
        "cert=a.pem",
        "key=a.pem",
        "client-ca=a.pem",
        "verify-client=optional",
        "alpn=h2",
        "server-ca=a.pem",
        "server-name=a.example",
        "verify-server=off",
        "client-cert=a.pem",
        "client-key=a.pem",
        "server-alpn=h2",
        "tls-min=1.3",
        "ciphers=HIGH",
        "handshake-timeout=5",
    ],
)
def test_options_without_tls(authority: Authority, options: str) -> None:
    """Each names what it is for."""
    said = wrong(authority, options)
    assert options.partition("=")[0] in said
    assert "with 'tls-" in said


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("tls-accept", "'cert'"),
        ("tls-accept, cert={cert}, key={cert};{cert}", "as many keys as certificates"),
        ("tls-accept, cert={cert}, verify-client=require", "'client-ca'"),
        ("tls-accept, cert={cert}, server-name=a.example", "'tls-connect'"),
        ("tls-connect, alpn=h2", "'tls-accept'"),
        ("tls-connect, client-key={cert}", "'client-cert'"),
        ("tls-connect, verify-server=off, server-ca={cert}", "'server-ca'"),
        ("tls-connect, server-alpn=client", "'alpn'"),
        ("tls-connect, server-name=a..b", "host name"),
        ("tls-connect, server-name=-", "host name"),
        ("tls-connect, tls-min=1.1", "1.2"),
        ("tls-connect, server-name=" + "a" * 64 + ".example", "host name"),
    ],
)
def test_options_that_do_not_fit(authority: Authority, options: str, part: str) -> None:
    """What is missing, or too much, is said."""
    assert part in wrong(authority, options.format(cert=authority.server()))


def test_a_path_is_no_name(authority: Authority) -> None:
    """A Unix socket's server must be named, or go unverified."""
    line = "127.0.0.1 8443 unix:/run/it"
    assert "'server-name'" in wrong(authority, "tls-connect", line)
    right(authority, "tls-connect, server-name=a.example", line)
    right(authority, "tls-connect, verify-server=off", line)


def test_datagrams_have_no_tls(authority: Authority) -> None:
    """Neither from clients nor to backends."""
    for options in (f"tls-accept, cert={authority.server()}", "tls-connect"):
        assert "TCP" in wrong(authority, options, "127.0.0.1 8443/udp 10.0.0.1 80/udp")


def test_the_command_says_so(authority: Authority) -> None:
    """`fastfwd -t`: the file and the line, and a status of 1."""
    path = written(authority, "tls-accept, cert=none.pem")
    done = run("-t", "-c", str(path))
    assert done.returncode == 1
    assert f"{path}:2: expected a certificate and its key that can be read, found " in done.stderr


def test_the_command_finds_nothing(authority: Authority) -> None:
    """Where nothing is wrong."""
    path = written(authority, f"tls-accept, cert={authority.server()}, tls-connect")
    done = run("-t", "-c", str(path))
    assert (done.returncode, "is valid" in done.stderr) == (0, True)
