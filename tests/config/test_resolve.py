"""Names and numbers: what is an address already, what the name service says, what is local."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from fastfwd.config.parse import parse
from fastfwd.config.resolve import Unresolvable, hosts, is_local, lookup, numeric
from fastfwd.model import Address
from tests.peers import require_peer, require_root


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("0", "0.0.0.0"),
        ("0.0.0.0", "0.0.0.0"),
        ("192.0.2.1", "192.0.2.1"),
        ("127.0.0.010", "127.0.0.8"),
    ],
)
def test_numeric_ipv4(host: str, text: str) -> None:
    """A dotted quad is an address, octal where a number begins with 0; `0` is any."""
    assert numeric(host) == Address(socket.AF_INET, text)


@pytest.mark.parametrize(
    ("host", "text"),
    [("::", "::"), ("0:0::1", "::1"), ("2001:DB8::1", "2001:db8::1"), ("::ffff:7f00:1", "::ffff:127.0.0.1")],
)
def test_numeric_ipv6(host: str, text: str) -> None:
    """Any spelling of an IPv6 address becomes inet_ntop(3)'s."""
    assert numeric(host) == Address(socket.AF_INET6, text)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "1",
        "127.1",
        "256.0.0.1",
        "127.0.0.08",
        "",
        "::g",
        "[::1]",
        "fe80::1%lo",
        "\udcff:",
        "1:\0",
    ],
)
def test_not_numeric(host: str) -> None:
    """Everything else is not an address."""
    assert numeric(host) is None


def test_lookup_of_localhost() -> None:
    """localhost is somewhere on the loopback interface."""
    assert {address.text for address in lookup("localhost")} & {"127.0.0.1", "::1"}


def test_lookup_has_no_duplicates() -> None:
    """Each address comes once, however many socket types it has."""
    found = lookup("localhost")
    assert len(found) == len(set(found))


def test_lookup_keeps_the_order() -> None:
    """Addresses come in the order that the name service prefers."""
    asked = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    assert [address.text for address in lookup("localhost")] == list(
        dict.fromkeys(peer[4][0] for peer in asked)
    )


def test_lookup_of_a_number() -> None:
    """A number needs no name service."""
    assert lookup("192.0.2.1") == [Address(socket.AF_INET, "192.0.2.1")]


@pytest.mark.parametrize("host", ["::1::", "a" * 64, "ü.example"])
def test_name_that_cannot_be(host: str) -> None:
    """What no name service could know is definitively unresolvable, and the error names it."""
    with pytest.raises(Unresolvable) as caught:
        lookup(host)
    assert caught.value.host == host
    assert caught.value.definitive


def test_name_service_out_of_reach() -> None:
    """Without a network nobody can say that a name does not exist: not definitive."""
    require_root()
    script = (
        "from fastfwd.config.resolve import Unresolvable, lookup\n"
        "try: lookup('name.example')\n"
        "except Unresolvable as error: print(error.definitive, bool(error.reason))"
    )
    command = [require_peer("unshare"), "--net", sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False True\n"


def test_hosts() -> None:
    """Only names need a lookup: those bound on one side, those dialled and dialled from on the other."""
    config, _ = parse(
        b"bound 2001 target 80 [src=source]\n0 2002 192.0.2.1 80 [src=::1]\n[::1] 2003 target 81\n", "file"
    )
    assert hosts(config) == ({"bound"}, {"target", "source"})


@pytest.mark.parametrize(
    ("family", "text"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.9.8.7")],
)
def test_loopback_is_local(family: int, text: str) -> None:
    """Every loopback address is this host's."""
    assert is_local(Address(family, text))


def test_foreign_address_is_not_local() -> None:
    """A documentation address (RFC 5737) is nobody's here."""
    assert not is_local(Address(socket.AF_INET, "192.0.2.1"))


def test_nonlocal_bind_fools_nobody() -> None:
    """With the sysctl that lets any address be bound, own and foreign addresses are still told apart."""
    require_root()
    script = (
        "import socket\n"
        "from fastfwd.config.resolve import is_local\n"
        "from fastfwd.model import Address\n"
        "texts = '192.0.2.1', '192.0.2.2', '198.51.100.1', '127.0.0.1', '127.9.8.7'\n"
        "print([is_local(Address(socket.AF_INET, text)) for text in texts])"
    )
    setup = (
        "ip link set lo up && ip link add v0 type veth peer name v1 && ip addr add 192.0.2.1/24 dev v0 && "
        'ip link set v0 up && ip link set v1 up && echo 1 >/proc/sys/net/ipv4/ip_nonlocal_bind && exec "$@"'
    )
    require_peer("ip")
    command = [require_peer("unshare"), "--net", "sh", "-c", setup, "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[True, False, False, True, True]\n", done.stderr
