"""What is wrong between lines: listeners in each other's way, loops, sources that cannot be."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import pytest

from fastfwd.config.check import check
from fastfwd.config.parse import parse
from fastfwd.model import Address
from tests.config.golden import loopback

LO4 = Address(socket.AF_INET, "127.0.0.1")
LO6 = Address(socket.AF_INET6, "::1")
OUR_ADDRESS = Address(socket.AF_INET, "192.0.2.1")
ELSEWHERE = Address(socket.AF_INET, "192.0.2.99")


def is_local(address: Address) -> bool:
    return loopback(address) or address == OUR_ADDRESS


def messages(text: str, addresses: Mapping[str, Sequence[Address]] | None = None) -> list[str]:
    """`line: message` for every problem of `text`."""
    config, problems = parse(text.encode(), "file")
    assert problems == []
    found = check(config, addresses=addresses or {}, is_local=is_local)
    return [f"{problem.origin.line}: {problem.message}" for problem in found]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("127.0.0.8", "127.0.0.010"),
        ("::1", "[0:0::1]"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "::"),
        ("::", "127.0.0.1"),
        ("::", "::1"),
        ("::1", "::"),
        ("::", "0.0.0.0"),
        ("127.0.0.1", "::ffff:7f00:1"),
        ("0.0.0.0", "::ffff:7f00:1"),
        ("name", "name"),
        ("name", "NAME"),
    ],
)
def test_listeners_in_each_others_way(first: str, second: str) -> None:
    """Two listeners that the kernel would not both give are found, and the second names the first's line."""
    [message] = messages(f"{first} 2001 192.0.2.9 80\n\n{second} 2001 192.0.2.9 80\n")
    assert message.startswith("3: expected a listener of its own, found ")
    assert message.endswith(" of line 1")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1 2001", "127.0.0.2 2001"),
        ("127.0.0.1 2001", "127.0.0.1 2002"),
        ("127.0.0.1 2001", "::1 2001"),
        ("0.0.0.0 2001", "::1 2001"),
        ("127.0.0.1 0", "127.0.0.1 0"),
        ("0.0.0.0 0", "127.0.0.1 0"),
        ("one 2001", "two 2001"),
        ("one 2001", "127.0.0.1 2001"),
    ],
)
def test_listeners_beside_each_other(first: str, second: str) -> None:
    """Listeners that the kernel gives, or names that may be anything, are left alone."""
    assert messages(f"{first} 192.0.2.9 80\n{second} 192.0.2.9 80\n") == []


@pytest.mark.parametrize(
    ("metrics", "listen", "how"),
    [
        ("127.0.0.1:9464", "127.0.0.1 9464", "the same as"),
        ("127.0.0.8:9464", "127.0.0.010 9464", "the same as"),
        ("[::1]:9464", "0:0::1 9464", "the same as"),
        ("[::]:9464", ":: 9464", "the same as"),
        ("0.0.0.0:9464", "127.0.0.1 9464", "which takes in"),
        ("[::]:9464", "127.0.0.1 9464", "which takes in"),
        ("[::]:9464", "0.0.0.0 9464", "which takes in"),
        ("[::]:9464", "::1 9464", "which takes in"),
        ("127.0.0.1:9464", "0.0.0.0 9464", "which is taken in by"),
        ("127.0.0.1:9464", ":: 9464", "which is taken in by"),
        ("0.0.0.0:9464", ":: 9464", "which is taken in by"),
        ("[::1]:9464", ":: 9464", "which is taken in by"),
        ("[::ffff:127.0.0.1]:9464", "127.0.0.1 9464", "the same as"),
        ("[::ffff:7f00:1]:9464", "0.0.0.0 9464", "which is taken in by"),
        ("127.0.0.1:9464", "::ffff:7f00:1 9464", "the same as"),
        ("0.0.0.0:9464", "::ffff:7f00:1 9464", "which takes in"),
    ],
)
def test_metrics_port_in_a_forwards_way(metrics: str, listen: str, how: str) -> None:
    """A metrics port that a forward has is one problem, where `metrics` stands, and names the forward."""
    [message] = messages(f"\n{listen} 192.0.2.9 80\nmetrics {metrics}\n")
    assert message.startswith(
        f"3: expected a metrics port of its own, found '{metrics.replace('7f00:1', '127.0.0.1')}', "
    )
    assert f", {how} '" in message
    assert message.endswith(" of line 2")


@pytest.mark.parametrize(
    ("metrics", "listen"),
    [
        ("127.0.0.1:9464", "127.0.0.2 9464"),
        ("127.0.0.1:9464", "127.0.0.1 9465"),
        ("127.0.0.1:9464", "::1 9464"),
        ("0.0.0.0:9464", "::1 9464"),
        ("[::1]:9464", "0.0.0.0 9464"),
        ("127.0.0.1:0", "127.0.0.1 0"),
        ("0.0.0.0:0", "127.0.0.1 9464"),
        ("127.0.0.1:9464", "0.0.0.0 0"),
        ("127.0.0.1:9464", "name 9464"),
        ("unix:/run/x", "0.0.0.0 9464"),
    ],
)
def test_metrics_port_beside_a_forward(metrics: str, listen: str) -> None:
    """Other addresses, other ports, port 0, a Unix socket and names that may be anything are left alone."""
    assert messages(f"{listen} 192.0.2.9 80\nmetrics {metrics}\n") == []


def test_metrics_port_and_udp_share_a_number() -> None:
    """A UDP listener has nothing to do with the metrics port."""
    found = messages("127.0.0.1 9464/udp 192.0.2.9 80\nmetrics 127.0.0.1:9464\n")
    assert not any("metrics port" in message for message in found)


def test_metrics_port_meets_a_bind_name_by_its_first_address() -> None:
    """Once the name is known, the forward is a listener like any other."""
    text = "name 9464 192.0.2.9 80\nmetrics 127.0.0.1:9464\n"
    assert len(messages(text, {"name": [LO4, LO6]})) == 1
    assert messages(text, {"name": [LO6, LO4]}) == []


def test_forward_to_the_metrics_port() -> None:
    """The exporter may be a backend like any other."""
    assert messages("127.0.0.1 2001 127.0.0.1 9464\nmetrics 127.0.0.1:9464\n") == []


def test_tcp_and_udp_share_a_port() -> None:
    """A TCP and a UDP listener are never in each other's way."""
    found = messages("127.0.0.1 2001 192.0.2.9 80\n127.0.0.1 2001/udp 192.0.2.9 80\n")
    assert not any("listener of its own" in message for message in found)


def test_bind_name_clashes_by_its_first_address() -> None:
    """A resolved bind name listens on its first address."""
    text = "name 2001 192.0.2.9 80\n127.0.0.1 2001 192.0.2.9 80\n"
    assert len(messages(text, {"name": [LO4, LO6]})) == 1
    assert messages(text, {"name": [LO6, LO4]}) == []


def test_every_later_listener_is_reported() -> None:
    """Three listeners on one address are two problems."""
    found = messages("127.0.0.1 2001 192.0.2.9 80\n" * 3)
    assert [message[:2] for message in found] == ["2:", "3:"]


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("0.0.0.0", "192.0.2.1"),
        ("0", "0"),
        ("127.0.0.1", "0"),
        ("::", "127.0.0.1"),
        ("::", "192.0.2.1"),
        ("::", "::1"),
        ("::1", "::"),
        ("::", "0"),
        ("127.0.0.1", "::ffff:7f00:1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("127.0.0.8", "127.0.0.010"),
    ],
)
def test_forward_to_itself(listen: str, target: str) -> None:
    """A forward whose target is its own listener is refused."""
    [message] = messages(f"\n{listen} 2001 {target} 2001\n")
    assert message.startswith("2: expected a target elsewhere, found ")
    assert message.endswith(" of line 2 itself")


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.1 2001 127.0.0.1 2002",
        "127.0.0.1 2001 127.0.0.2 2001",
        "0.0.0.0 2001 192.0.2.99 2001",
        "0.0.0.0 2001 ::1 2001",
        "::1 2001 127.0.0.1 2001",
        "192.0.2.1 2001 0 2001",
        "127.0.0.1 0 127.0.0.1 0",
        "127.0.0.1 2001 name 2001",
        "name 2001 127.0.0.1 2001",
    ],
)
def test_forward_elsewhere(line: str) -> None:
    """A forward to another address, another port or an unknown name is fine."""
    assert messages(line + "\n") == []


def test_forward_to_itself_by_name() -> None:
    """A target name is followed to all of its addresses."""
    text = "127.0.0.1 2001 name 2001\n"
    assert len(messages(text, {"name": [ELSEWHERE, LO4]})) == 1
    assert messages(text, {"name": [ELSEWHERE]}) == []


def test_forward_to_itself_by_bind_name() -> None:
    """A resolved bind name is a listener like any other."""
    assert len(messages("name 2001 127.0.0.1 2001\n", {"name": [LO4]})) == 1


def test_cycle_of_several_forwards() -> None:
    """A cycle is one problem, at its last line, and names every line on the way round."""
    [message] = messages(
        "127.0.0.1 2002 127.0.0.1 2003\n"
        "127.0.0.1 2001 127.0.0.1 2002\n"
        "127.0.0.1 9999 127.0.0.1 2001\n"
        "0.0.0.0 2003 127.0.0.1 2001\n"
    )
    assert message.startswith("4: expected a target elsewhere, found '127.0.0.1:2001/tcp', ")
    assert message.endswith("which comes back through line 2 -> line 1 -> line 4")


def test_chain_without_a_cycle() -> None:
    """Forwards may follow each other as long as they end."""
    assert messages("".join(f"127.0.0.1 {port} 127.0.0.1 {port + 1}\n" for port in range(2001, 2101))) == []


def test_two_cycles_are_two_problems() -> None:
    """Every cycle is reported."""
    pair = "127.0.0.1 {0} 127.0.0.1 {1}\n127.0.0.1 {1} 127.0.0.1 {0}\n"
    assert [message[:2] for message in messages(pair.format(2001, 2002) + pair.format(2003, 2004))] == [
        "2:",
        "4:",
    ]


def test_long_chain_needs_no_recursion() -> None:
    """A cycle through ten thousand forwards is found: the walk does not recurse."""
    text = "".join(f"127.0.0.1 {port} 127.0.0.1 {port + 1}\n" for port in range(10000, 20000))
    assert len(messages(text + "127.0.0.1 20000 127.0.0.1 10000\n")) == 1


@pytest.mark.parametrize(
    ("source", "target", "version"), [("::1", "192.0.2.9", "IPv4"), ("127.0.0.1", "2001:db8::1", "IPv6")]
)
def test_source_of_the_other_family(source: str, target: str, version: str) -> None:
    """An address cannot be the source towards the other family."""
    [message] = messages(f"127.0.0.1 2001 {target} 80 [src={source}]\n")
    assert message.startswith(f"1: expected an {version} address after 'src='")


def test_source_that_fits_one_address_of_the_target() -> None:
    """A target with addresses of both families has one that the source can dial."""
    text = "127.0.0.1 2001 name 80 [src=::1]\n"
    assert messages(text, {"name": [LO4, LO6]}) == []
    assert len(messages(text, {"name": [LO4]})) == 1


def test_source_by_name() -> None:
    """A source may be a name, judged once it is resolved."""
    text = "127.0.0.1 2001 192.0.2.9 80 [src=name]\n"
    assert messages(text) == []
    assert len(messages(text, {"name": [LO6]})) == 1


def test_udp_on_both_sides() -> None:
    """Datagrams are forwarded as datagrams."""
    assert messages("127.0.0.1 2001/udp 192.0.2.9 80/udp\n") == []


@pytest.mark.parametrize(
    ("ports", "problem"),
    [
        ("2001/udp 192.0.2.9 80", "1: expected '/udp' on both sides, found '192.0.2.9:80/tcp'"),
        ("2001 192.0.2.9 80/udp", "1: expected '/tcp' on both sides, found '192.0.2.9:80/udp'"),
    ],
)
def test_mixed_protocols_are_refused(ports: str, problem: str) -> None:
    """A stream has no datagrams, and datagrams are no stream."""
    assert messages(f"127.0.0.1 {ports}\n") == [problem]


def test_a_udp_forward_to_itself() -> None:
    """It would send each datagram round until it is thrown away."""
    assert len(messages("127.0.0.1 2001/udp 127.0.0.1 2001/udp\n")) == 1


def test_problems_are_in_file_order() -> None:
    """Whatever finds them, problems come by line."""
    found = messages(
        "127.0.0.1 2001 127.0.0.1 2001\n"
        "127.0.0.1 2002 ::1 80 [src=127.0.0.1]\n"
        "127.0.0.1 2003/udp 127.0.0.1 80\n"
        "127.0.0.1 2002 192.0.2.9 80\n"
    )
    assert [message[:2] for message in found] == ["1:", "2:", "3:", "4:"]


def test_host_is_asked_only_when_it_matters() -> None:
    """Which addresses are local is not asked for targets that no listener could take."""
    config, _ = parse(b"0.0.0.0 2001 192.0.2.9 80\n", "file")

    def never(address: Address) -> bool:
        raise AssertionError(address)

    assert check(config, addresses={}, is_local=never) == []
