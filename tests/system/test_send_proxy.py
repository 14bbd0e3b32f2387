"""What backends are told of the client, as a reader sees it that is not ours (the package proxy-protocol)."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trustme
from proxyprotocol.result import ProxyResult, is_local, is_unknown

from tests import deadline
from tests.announcing import ASKED, ASKED6, CLIENT, CLIENT6, addresses, header, received, unpacked
from tests.conftest import StartForwarder, StartServer
from tests.datagrams import LARGEST, UdpBackend, ask, udp_client
from tests.deadline import until
from tests.ports import free_port
from tests.servers import banner
from tests.sockets import Address, Listener, connect, finish, noise, read_exactly, read_to_end, reset

VERSIONS = ["v1", "v2"]


def start(forwarder: StartForwarder, behind: Listener, options: str, host: str = "127.0.0.1") -> Address:
    """A forward with those options to that backend; where clients go."""
    port = free_port()
    forwarder(f"{host} {port} {behind.host} {behind.port} [{options}]\n", workers=1)
    return host, port


def alike(result: ProxyResult, version: str) -> bool:
    """Whether that says: nobody's connection."""
    return is_unknown(result) if version == "v1" else is_local(result)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_client_and_where_it_went(forwarder: StartForwarder, listener: Listener, version: str) -> None:
    """Its own address and port, and those that it has connected to; then its bytes, and nothing else."""
    address = start(forwarder, listener, f"send-proxy={version}")
    with connect(address, "127.0.0.7") as client, listener.accept() as served:
        assert addresses(received(served, version)) == (client.getsockname(), address)
        client.sendall(noise(100_000))
        finish(client)
        assert read_to_end(served).data == noise(100_000)
        served.sendall(b"answer")
        served.close()
        assert read_to_end(client).data == b"answer"


@pytest.mark.parametrize("version", VERSIONS)
def test_ipv6(forwarder: StartForwarder, listener: Listener, version: str) -> None:
    """The same, although the backend is IPv4."""
    address = start(forwarder, listener, f"send-proxy={version}", "::1")
    with connect(address) as client, listener.accept() as served:
        assert addresses(received(served, version)) == (client.getsockname()[:2], address)


@pytest.mark.parametrize("version", VERSIONS)
def test_ipv4_on_an_ipv6_socket(forwarder: StartForwarder, listener: Listener, version: str) -> None:
    """It is told of as IPv4, which it is."""
    _, port = start(forwarder, listener, f"send-proxy={version}", "::")
    with connect(("127.0.0.1", port)) as client, listener.accept() as served:
        assert addresses(received(served, version)) == (client.getsockname(), ("127.0.0.1", port))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("client", "asked"), [(CLIENT, ASKED), (CLIENT6, ASKED6)])
def test_what_was_announced_is_passed_on(
    forwarder: StartForwarder, listener: Listener, version: str, client: Address, asked: Address
) -> None:
    """Both addresses, in either version."""
    address = start(forwarder, listener, f"accept-proxy=127.0.0.1, send-proxy={version}")
    with connect(address) as end:
        end.sendall(header("v1", client, asked) + b"ping")
        with listener.accept() as served:
            assert addresses(received(served, version)) == (client, asked)
            assert read_exactly(served, 4) == b"ping"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_of_a_unix_socket(
    forwarder: StartForwarder, listener: Listener, tmp_path: Path, version: str
) -> None:
    """It has no address."""
    forwarder(f"unix:{tmp_path}/s {listener.host} {listener.port} [send-proxy={version}]\n")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/s")
        with listener.accept() as served:
            assert alike(received(served, version), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_backend_on_a_unix_socket(forwarder: StartForwarder, version: str) -> None:
    """It is told as well."""
    port = free_port()
    with socket.socket(socket.AF_UNIX) as behind:
        behind.settimeout(deadline.seconds(20))
        behind.bind(f"\0fastfwd-test-{port}")
        behind.listen()
        forwarder(f"127.0.0.1 {port} unix:@fastfwd-test-{port} [send-proxy={version}]\n")
        with connect(("127.0.0.1", port)) as client, behind.accept()[0] as served:
            assert addresses(received(served, version))[0] == client.getsockname()


@pytest.mark.parametrize("version", VERSIONS)
def test_neither_side_waits(forwarder: StartForwarder, backend: StartServer, version: str) -> None:
    """A backend that speaks first, after the header, to a client that is silent."""
    behind = backend(banner)
    port = free_port()
    forwarder(f"127.0.0.1 {port} {behind.host} {behind.port} [send-proxy={version}]\n")
    with connect(("127.0.0.1", port)) as client:
        assert read_exactly(client, 14) == b"SSH-2.0-test\r\n"
        # The echo behind it: the header alone has come, and at once.
        head = read_exactly(client, 28 if version == "v2" else 40)
        assert head.startswith(b"\r\n\r\n\0\r\nQUIT\n" if version == "v2" else b"PROXY TCP4 127.0.0.1")


def test_each_backend_that_is_tried_is_told(forwarder: StartForwarder, listener: Listener) -> None:
    """The first is not there, the second hears all of it."""
    port = free_port()
    where = f"127.0.0.1:{free_port()},127.0.0.1:{listener.port}"
    forwarder(f"127.0.0.1 {port} {where} 1 [send-proxy=v2, balance=first]\n")
    with connect(("127.0.0.1", port)) as client, listener.accept() as served:
        assert addresses(received(served, "v2"))[0] == client.getsockname()


def test_a_backend_that_resets_at_once(forwarder: StartForwarder, listener: Listener) -> None:
    """The client sees a reset."""
    address = start(forwarder, listener, "send-proxy=v2")
    for _ in range(20):
        with connect(address) as client:
            reset(listener.accept())
            assert read_to_end(client).how == "ECONNRESET"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_check_is_nobodys(forwarder: StartForwarder, version: str) -> None:
    """A backend that waits for headers has one before the end."""
    with Listener() as one, Listener() as other:
        where = f"{one.host}:{one.port},{other.host}:{other.port}"
        forwarder(f"127.0.0.1 {free_port()} {where} 1 [send-proxy={version}, check=1]\n")
        with one.accept() as checked:
            assert alike(received(checked, version), version)
            assert read_to_end(checked).data == b""


# TLS.


def facts(result: ProxyResult) -> dict[str, object]:
    """What it says of the client's TLS."""
    tlv = result.tlv
    found: dict[str, object] = {"alpn": tlv.alpn, "authority": tlv.authority}
    if tlv.ssl is not None:
        found |= {"version": tlv.ssl.version, "cipher": tlv.ssl.cipher, "cn": tlv.ssl.cn}
        found |= {"verified": tlv.ssl.verify == 0, "certificate": tlv.ssl.has_cert_conn}
    return found


@pytest.mark.parametrize("shown", [True, False], ids=["with a certificate", "without"])
def test_the_clients_tls(forwarder: StartForwarder, listener: Listener, tmp_path: Path, shown: bool) -> None:
    """Version, cipher, the name that was asked for, the protocol; and whose certificate it was, if any."""
    authority = trustme.CA()
    issued = authority.issue_cert("www.example.org")
    own = authority.issue_cert("me@example.org", common_name="Zoë of the tests")
    for name, content in (("server.pem", issued), ("own.pem", own)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(content.private_key_and_cert_chain_pem.bytes())
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    options = (
        "tls-accept, cert={0}/server.pem, alpn=h2;http/1.1, client-ca={0}/ca.pem, verify-client=optional"
    )
    address = start(forwarder, listener, options.format(tmp_path) + ", send-proxy=v2-tls")
    context = ssl.create_default_context(cafile=f"{tmp_path}/ca.pem")
    context.set_alpn_protocols(["http/1.1"])
    if shown:
        context.load_cert_chain(tmp_path / "own.pem")
    with connect(address) as plain, context.wrap_socket(plain, server_hostname="www.example.org") as client:
        client.sendall(b"ping")
        with listener.accept() as served:
            result = received(served, "v2")
            assert read_exactly(served, 4) == b"ping"
        cipher = client.cipher()
        assert cipher is not None
        assert addresses(result)[0] == client.getsockname()
        assert facts(result) == {
            "alpn": b"http/1.1",
            "authority": "www.example.org",
            "version": "TLSv1.3",
            "cipher": cipher[0],
            "cn": "Zoë of the tests" if shown else None,
            "verified": shown,
            "certificate": shown,
        }


@pytest.mark.parametrize("version", VERSIONS)
def test_before_the_handshake_with_a_backend(
    forwarder: StartForwarder, listener: Listener, tmp_path: Path, certificate: Path, version: str
) -> None:
    """In plain text, then TLS, as HAProxy and nginx do it."""
    address = start(forwarder, listener, f"send-proxy={version}, tls-connect, verify-server=off")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with connect(address) as client, listener.accept() as plain:
        assert addresses(received(plain, version))[0] == client.getsockname()
        with context.wrap_socket(plain, server_side=True) as served:
            client.sendall(b"ping")
            assert served.recv(4) == b"ping"


# Datagrams.


def test_the_first_datagram_of_a_flow(forwarder: StartForwarder) -> None:
    """It has the header before it, and no other one has."""
    port = free_port()
    with UdpBackend(lambda data: [data[-1:]]) as behind:
        forwarder(f"127.0.0.1 {port}/udp {behind.host} {behind.port}/udp [send-proxy=v2]\n", workers=1)
        with udp_client(("127.0.0.1", port), "127.0.0.9") as client:
            for data in (b"1", b"2"):
                assert ask(client, data) == data
            own = client.getsockname()
        (first, _), (second, _) = behind.seen
    result = unpacked(first[:-1], "v2")
    assert addresses(result) == (own, ("127.0.0.1", port))
    assert getattr(result, "protocol", None) is socket.SOCK_DGRAM
    assert second == b"2"


@pytest.mark.parametrize(("asked", "bound"), [("127.0.0.5", "0.0.0.0"), ("::1", "::"), ("127.0.0.5", "::")])
def test_which_address_a_datagram_was_sent_to(forwarder: StartForwarder, asked: str, bound: str) -> None:
    """Also where the forward has all of them."""
    port = free_port()
    with UdpBackend() as behind:
        forwarder(f"{bound} {port}/udp {behind.host} {behind.port}/udp [send-proxy=v2]\n")
        with udp_client((asked, port)) as client:
            ask(client, b"1")
            own = client.getsockname()[:2]
        assert addresses(unpacked(behind.seen[0][0][:-1], "v2")) == (own, (asked, port))


def test_an_empty_datagram_and_the_longest(forwarder: StartForwarder) -> None:
    """Both arrive behind their header; one for which there is no room any more is dropped and counted, and
    the flow is told of with the next one."""
    port = free_port()
    with UdpBackend() as behind:
        forwarder(f"127.0.0.1 {port}/udp {behind.host} {behind.port}/udp [send-proxy=v2]\n", workers=1)
        for size in (0, 65_507 - 28):
            with udp_client(("127.0.0.1", port)) as client:
                assert ask(client, noise(size))[28:] == noise(size)
        with udp_client(("127.0.0.1", port)) as client:
            client.send(noise(65_507))
            assert len(ask(client, b"x")) == 29


def test_another_backend_is_told_too(forwarder: StartForwarder) -> None:
    """The first one refuses: the datagram goes to the second, behind a header."""
    port = free_port()
    with UdpBackend() as behind:
        where = f"127.0.0.1:{free_port()},127.0.0.1:{behind.port}"
        forwarder(f"127.0.0.1 {port}/udp {where} 1/udp [send-proxy=v2, balance=first]\n", workers=1)
        with udp_client(("127.0.0.1", port)) as client:

            def answered() -> bytes:
                client.settimeout(0.2)
                client.send(b"1")
                try:
                    return client.recv(LARGEST)
                except TimeoutError:
                    return b""

            assert len(until(answered, what="an answer of the second")) == 29
