"""What operators see of TLS, and of clients that nobody announced: counters, the JSON log, the status.
No peer writes in them.

Clients and backends are real ones, of Python's ssl and of openssl; who has to lie in a ClientHello
or in a certificate does so by hand.
"""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from tests import deadline
from tests.certificates import NAME, VERSIONS, Authority, ending, over_tls
from tests.conftest import StartForwarder, StartServer
from tests.deadline import until
from tests.forwarder import Forwarder, run
from tests.peers import require_peer
from tests.ports import free_port
from tests.servers import echo
from tests.sockets import Ending, Listener, connect, read_exactly, read_to_end, reset
from tests.system.metrics import by, metrics_url, scrape, series, status, total

HOST = "127.0.0.1"

HOSTILE = '\n{"outcome":"opened"}\r\x1b[2J\x1b]0;pwned\x07"\\\t,=+\x7f\x9b31m\u202egnp.exe\u2028'
"""What would end a line, begin another one, clear a screen, name a window, and turn a text round."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """It has signed everything that is to be trusted here."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def cert(authority: Authority) -> Path:
    """A server's certificate that holds for long."""
    return lasting(authority, 90)


def lasting(authority: Authority, days: float) -> Path:
    """A server's that ends in so many days."""
    return authority.server(not_after=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days))


class Site:
    """A running program whose one forward, `web`, listens on `port`."""

    def __init__(self, forwarder: Forwarder, port: int, authority: Authority) -> None:
        self.forwarder = forwarder
        self.authority = authority
        self.port = port
        self.address = HOST, port
        self.url = metrics_url(forwarder)

    def lines(self, count: int) -> list[dict[str, Any]]:
        """So many lines of the log at least."""
        return [json.loads(line) for line in self.forwarder.wait_log(count)]

    def last(self, outcome: str) -> dict[str, Any]:
        """The first line with this outcome."""
        found: dict[str, Any] = json.loads(self.forwarder.wait_log(1, f'"outcome":"{outcome}"')[0])
        return found

    @contextmanager
    def client(self, **options: Any) -> Iterator[ssl.SSLSocket]:
        """A client with TLS whose handshake is done; options as Authority.client has them."""
        with self.authority.client(self.address, **{"version": "1.3", **options}) as client:
            yield client

    def talk(self, **options: Any) -> ssl.SSLSession | None:
        """Four bytes back and forth, and the farewell; the session, to be resumed."""
        with self.client(**options) as client:
            ping(client)
            session = client.session
            client.unwrap()
            return session

    def counted(self, name: str, label: str, side: str) -> dict[str, float]:
        return by(scrape(self.url), name, label, forward="web", side=side)

    def wait_total(self, name: str, figure: float, **labels: str) -> None:
        """Wait until a metric has that sum."""
        until(lambda: total(scrape(self.url), name, **labels) == figure, what=f"{name} {labels} {figure}")


def ping(client: socket.socket) -> None:
    """Four bytes, and four back."""
    client.sendall(b"ping")
    assert read_exactly(client, 4) == b"ping"


StartSite = Callable[..., Site]


@pytest.fixture
def site(forwarder: StartForwarder, authority: Authority) -> StartSite:
    """Call it with where the forward leads and its options."""

    def start(target: tuple[str, int], options: str, more: str = "", **keywords: object) -> Site:
        port = free_port()
        metrics = f"metrics {HOST}:{free_port()}\n"
        line = f"{HOST} {port} {target[0]} {target[1]} [name=web, {options}]\n"
        running = forwarder(f"{line}logformat json\n{metrics}{more}", **keywords)
        return Site(running, port, authority)

    return start


@pytest.fixture
def accepting(site: StartSite, backend: StartServer, cert: Path) -> StartSite:
    """The same in front of a backend that sends back what comes, with TLS towards clients."""

    def start(options: str = "", **keywords: object) -> Site:
        own = f"tls-accept, cert={cert}"
        return site(backend(echo).address, f"{own}, {options}" if options else own, **keywords)

    return start


# Counters.


@pytest.mark.parametrize("version", VERSIONS)
def test_handshakes_with_clients(accepting: StartSite, version: str) -> None:
    """Each is counted with its version, on its side."""
    there = accepting()
    for _ in range(3):
        there.talk(version=version)
    assert there.counted("tls_handshakes_total", "version", "client") == {f"TLSv{version}": 3}
    assert there.counted("tls_handshakes_total", "version", "backend") == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_resumed_handshakes(accepting: StartSite, version: str) -> None:
    """A client that comes back with its ticket is counted among all, and among those resumed."""
    there = accepting(workers=2)
    context = there.authority.trusting(version=version)
    session = there.talk(context=context)
    for _ in range(4):
        session = there.talk(context=context, session=session)
    found = scrape(there.url)
    assert found[series("tls_handshakes_resumed_total", forward="web", side="client")] == 4
    assert total(found, "tls_handshakes_total", side="client") == 5


def test_handshakes_with_backends(
    site: StartSite, backend: StartServer, authority: Authority, cert: Path
) -> None:
    """Those of a forward that encrypts are counted on the backend's side."""
    server = backend(over_tls(echo, authority.serving(cert)))
    there = site((NAME, server.port), f"tls-connect, server-ca={authority.file}")
    with connect(there.address) as client:
        ping(client)
    assert there.counted("tls_handshakes_total", "version", "backend") == {"TLSv1.3": 1}
    assert there.counted("tls_handshakes_total", "version", "client") == {}


def silent(client: socket.socket) -> None:
    assert read_to_end(client).data == b""


def closing(client: socket.socket) -> None:
    client.close()


def plain(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    read_to_end(client)


def outdated(client: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(client).recv(1)


def distrustful(client: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(client, server_hostname=NAME)


@pytest.mark.parametrize(
    ("reason", "options", "client"),
    [
        ("timeout", "handshake-timeout=1", silent),
        ("closed", "", closing),
        ("not_tls", "", plain),
        ("protocol", "tls-min=1.3", outdated),
        ("certificate", "", distrustful),
    ],
)
def test_failed_handshakes(
    accepting: StartSite, reason: str, options: str, client: Callable[[socket.socket], None]
) -> None:
    """Each is counted with why, its connection with the outcome, and the log has a line with words."""
    there = accepting(options)
    with connect(there.address) as mine:
        client(mine)
        there.wait_total("connections_closed_total", 1, outcome="remote-tls-failed")
    assert there.counted("tls_handshake_failures_total", "reason", "client") == {reason: 1}
    found = there.last("remote-tls-failed -")["tls"]
    assert found["trouble"]
    assert found["client"]["version"] is None
    assert found["backend"] is None


def test_a_backend_that_is_not_trusted(
    site: StartSite, backend: StartServer, authority: Authority, tmp_path: Path
) -> None:
    """It is a dial that failed for TLS, with a reason of its own and an outcome of its own."""
    stranger = Authority(tmp_path)
    server = backend(over_tls(echo, stranger.serving(stranger.server())))
    there = site((HOST, server.port), f"tls-connect, server-ca={authority.file}, server-name={NAME}")
    with connect(there.address) as client:
        assert read_to_end(client).data == b""
    there.wait_total("connections_closed_total", 1, outcome="local-tls-failed")
    assert there.counted("tls_handshake_failures_total", "reason", "backend") == {"certificate": 1}
    assert by(scrape(there.url), "backend_connect_failures_total", "reason") == {"tls": 1}
    found = there.last("local-tls-failed -")["tls"]
    assert (found["client"], found["backend"]) == (None, None)
    assert found["trouble"].startswith("certificate: ")


def test_a_stream_that_is_cut(accepting: StartSite) -> None:
    """A client that ends its connection without a farewell may have been cut off: counted, and logged."""
    there = accepting()
    with there.client() as client:
        ping(client)
        client.shutdown(socket.SHUT_WR)  # the connection's, without TLS's own
        until(lambda: total(scrape(there.url), "tls_streams_cut_total"), what="the cut")
    assert there.last("done-remote-closed")["tls"]["client"]["cut"] is True


def test_a_stream_that_is_ended(accepting: StartSite) -> None:
    """Who says good-bye has sent everything."""
    there = accepting()
    there.talk()
    assert there.last("done-remote-closed")["tls"]["client"]["cut"] is False
    assert total(scrape(there.url), "tls_streams_cut_total") == 0


def test_a_stream_that_is_reset(accepting: StartSite) -> None:
    """A reset is one, with or without TLS, and no cut."""
    there = accepting()
    with there.client() as client:
        ping(client)
        reset(client)
    assert there.last("done-remote-closed")["tls"]["client"]["cut"] is False
    assert total(scrape(there.url), "tls_streams_cut_total") == 0


def test_who_has_been_told_may_go(site: StartSite, cert: Path) -> None:
    """A client that closes without a farewell after the backend's end has missed nothing."""
    with Listener() as listener:
        there = site(listener.address, f"tls-accept, cert={cert}")
        with there.client() as client:
            with listener.accept() as behind:
                behind.sendall(b"all of it")
            assert ending(client) == Ending(b"all of it", "EOF")
        line = there.last("done-local-closed")
    assert line["tls"]["client"]["cut"] is False
    assert total(scrape(there.url), "tls_streams_cut_total") == 0


def test_a_backend_s_stream_that_is_cut(site: StartSite, authority: Authority, cert: Path) -> None:
    """So it is on the other side: an answer without its end."""
    with Listener() as listener:
        options = f"tls-connect, server-ca={authority.file}, server-name={NAME}"
        there = site(listener.address, options)
        with connect(there.address) as client, listener.accept() as behind:
            secure = authority.serving(cert).wrap_socket(behind, server_side=True)
            secure.sendall(b"half an ans")
            assert read_exactly(client, 11) == b"half an ans"
            secure.shutdown(socket.SHUT_WR)
            assert read_to_end(client).how == "ECONNRESET"
            secure.close()
        line = there.last("done-local-closed")
    assert line["tls"]["backend"]["cut"] is True
    assert scrape(there.url)[series("tls_streams_cut_total", forward="web", side="backend")] == 1


@pytest.mark.parametrize(
    ("reason", "options", "client"),
    [
        ("malformed", "accept-proxy=127.0.0.1", plain),
        ("stranger", "accept-proxy=192.0.2.1", silent),
        ("timeout", "accept-proxy=127.0.0.1, handshake-timeout=1", silent),
        ("closed", "accept-proxy=127.0.0.1", closing),
    ],
)
def test_clients_without_a_proxy_header(
    accepting: StartSite, reason: str, options: str, client: Callable[[socket.socket], None]
) -> None:
    """Each is counted with why, its connection with the outcome; no handshake was begun."""
    there = accepting(options)
    with connect(there.address) as mine:
        client(mine)
        there.wait_total("connections_closed_total", 1, outcome="remote-proxy-failed")
    found = scrape(there.url)
    assert by(found, "proxy_header_failures_total", "reason", forward="web") == {reason: 1}
    assert total(found, "tls_handshakes_total") + total(found, "tls_handshake_failures_total") == 0
    assert "tls" not in there.last("remote-proxy-failed -")


def test_a_certificate_s_end(accepting: StartSite, cert: Path) -> None:
    """The file's own date, to the second; a reload shows the new one's."""
    there = accepting()
    pem = cert.read_bytes()
    wanted = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT") :]).not_valid_after_utc
    name = "tls_certificate_expiry_timestamp_seconds"
    labels = {"forward": "web", "side": "client", "file": str(cert)}
    assert scrape(there.url)[series(name, **labels)] == wanted.timestamp()
    config = there.forwarder.config_path.read_text()
    soon = lasting(there.authority, 3)
    there.forwarder.reload(config.replace(str(cert), str(soon)))
    assert by(scrape(there.url), name, "file").keys() == {str(soon)}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("", "off"),
        ("tls-accept, cert={0}", "accept"),
        ("tls-connect", "connect"),
        ("tls-accept, tls-connect, cert={0}", "both"),
    ],
)
def test_info_says_where_tls_is(site: StartSite, cert: Path, options: str, word: str) -> None:
    """The label `tls` of forward_info."""
    there = site((HOST, free_port()), options.format(cert) or "timeout=72")
    assert set(by(scrape(there.url), "forward_info", "tls")) == {word}


def test_tickets_and_the_kernel(accepting: StartSite) -> None:
    """A ticket of one worker is good for the other one; the kernel has no part in it."""
    there = accepting(workers=2)
    found = scrape(there.url)
    assert [found[series("tls_session_tickets_shared", slot=slot)] for slot in "01"] == [1, 1]
    assert found[series("tls_in_kernel")] == 0


def test_plain_forwards_have_no_series(site: StartSite) -> None:
    """Who has no TLS pays for none."""
    there = site((HOST, free_port()), "timeout=72")
    names = {name for name, _ in scrape(there.url) if "_tls_" in name or "_proxy_" in name}
    assert names == {"fastfwd_tls_in_kernel"}


REFERENCE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_how_many_series_there_are(forwarder: StartForwarder, authority: Authority, cert: Path) -> None:
    """The reference's formula, and what it says of backends, TLS and PROXY, is what a scrape has."""
    text = REFERENCE.read_text().partition("## How many series")[2]
    (formula,) = re.findall(r"^    (.*F.*W.*)$", text, re.MULTILINE)
    (several,) = re.findall(r"more than one, has (.*) more\.", text)
    (side,) = re.findall(r"has (\d+) more for each side", text)
    (proxy,) = re.findall(r"`accept-proxy` has (\d+) more", text)

    def evaluated(term: str, **values: int) -> int:
        product = re.sub(r"(?<=[\dA-Z]) (?=[A-Z])", " * ", term)
        return int(eval(product, {"__builtins__": {}}, values))

    ports = iter([free_port() for _ in range(12)])
    own = f"tls-accept, cert={cert};{authority.server()}"
    config = (
        f"{HOST} {next(ports)} {HOST} {next(ports)}\n"
        f"{HOST} {next(ports)} {NAME} {next(ports)}\n"
        f"{HOST} {next(ports)}/udp {HOST} {next(ports)}/udp\n"
        f"{HOST} {next(ports)} {HOST}:1,{HOST}:2,{HOST}:3 1\n"
        f"{HOST} {next(ports)} {HOST} {next(ports)} [{own}, tls-connect]\n"
        f"{HOST} {next(ports)} {HOST} {next(ports)} [tls-connect]\n"
        f"{HOST} {next(ports)} {HOST} 3 [accept-proxy=192.0.2.1]\n"
    )
    running = forwarder(f"{config}metrics {HOST}:0\n", workers=3)
    found = {key for key in scrape(metrics_url(running)) if not key[0].endswith("_created")}
    expected = evaluated(formula, F=7, N=1, T=6, U=1, W=3) + evaluated(several, B=3)
    assert len(found) == expected + 3 * int(side) + 2 + 3 + int(proxy)


# The log.


def test_a_line_of_a_session_with_tls(accepting: StartSite) -> None:
    """What was agreed on with the client, and the name that it asked for; no backend's side."""
    there = accepting("alpn=h2;http/1.1")
    there.talk(alpn=["http/1.1"])
    for line in there.lines(2):
        client = line["tls"]["client"]
        assert client.pop("cipher").startswith("TLS_")
        assert client == {
            **{"version": "TLSv1.3", "alpn": "http/1.1", "resumed": False},
            **{"sni": NAME, "subject": None, "cut": False},
        }
        assert (line["tls"]["backend"], line["tls"]["trouble"]) == (None, None)


def test_a_line_of_a_resumed_session(accepting: StartSite) -> None:
    """`resumed` tells it from a new one."""
    there = accepting()
    context = there.authority.trusting()
    there.talk(context=context, session=there.talk(context=context))
    ends = [line for line in there.lines(4) if line["outcome"] != "opened"]
    assert [line["tls"]["client"]["resumed"] for line in ends] == [False, True]


def test_a_line_of_a_session_with_tls_behind(
    site: StartSite, backend: StartServer, authority: Authority, cert: Path
) -> None:
    """The backend's side has the same, without names: those are the configuration's."""
    server = backend(over_tls(echo, authority.serving(cert)))
    there = site((NAME, server.port), f"tls-connect, server-ca={authority.file}")
    with connect(there.address) as client:
        ping(client)
    found = there.last("done-remote-closed")["tls"]
    assert found["client"] is None
    assert found["backend"].pop("cipher").startswith("TLS_")
    assert found["backend"] == {"version": "TLSv1.3", "alpn": None, "resumed": False, "cut": False}


def test_a_plain_line_has_no_tls(site: StartSite, backend: StartServer) -> None:
    """Nothing changes for who has none."""
    there = site(backend(echo).address, "timeout=72")
    with connect(there.address) as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
    assert ["tls" in line for line in there.lines(2)] == [False, False]


@pytest.mark.parametrize("directives", ["", "logcommon\n"])
def test_rinetd_s_formats_have_no_tls(
    forwarder: StartForwarder, backend: StartServer, authority: Authority, cert: Path, directives: str
) -> None:
    """Their lines are as they were: programs read them by columns."""
    port, server = free_port(), backend(echo)
    options = f"tls-accept, cert={cert}"
    config = f"{HOST} {port} {server.host} {server.port} [{options}]\n{directives}metrics {HOST}:0\n"
    running = forwarder(config)
    Site(running, port, authority).talk()
    lines = running.wait_log(2)
    widths = {len(line.split(" " if directives else "\t")) for line in lines}
    assert widths == {15 if directives else 9}, lines


# Log injection: the client's words, in its certificate and in its ClientHello.


def certificate(authority: Authority, subject: x509.Name) -> Path:
    """A client's certificate, and its key, that the authority has signed for whatever `subject` says."""
    leaf, signs = authority.issue("client.example"), authority.authority
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    own = serialization.load_pem_private_key(signs.private_key_pem.bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject_name=subject)
        .issuer_name(x509.load_pem_x509_certificate(authority.pem).subject)
        .public_key(key.public_key())  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(own, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    return authority.write("client", leaf.private_key_pem.bytes() + pem)


def subject(**names: str) -> x509.Name:
    """A name of these attributes, however long."""
    return x509.Name(
        x509.NameAttribute(getattr(NameOID, kind), text, _validate=False) for kind, text in names.items()
    )


def logged_subject(there: Site, **names: str) -> str:
    """What the log says of a client whose certificate is for that name."""
    there.talk(person=certificate(there.authority, subject(**names)))
    found: str = there.last("done-remote-closed")["tls"]["client"]["subject"]
    return found


@pytest.fixture
def mutual(accepting: StartSite, authority: Authority) -> Site:
    """A forward that asks clients for their certificates."""
    return accepting(f"client-ca={authority.file}")


def test_the_subject_of_a_client(mutual: Site) -> None:
    """As RFC 4514 writes it, the most special part first."""
    names = {"COUNTRY_NAME": "SE", "ORGANIZATION_NAME": "A, B", "COMMON_NAME": "db 1"}
    assert logged_subject(mutual, **names) == "CN=db 1,O=A\\, B,C=SE"


def assert_harmless(there: Site, count: int) -> None:
    """The log has so many lines, of printable characters all, none of them long."""
    raw = there.forwarder.log_path.read_bytes().decode()
    lines = raw.split("\n")
    assert lines.pop() == ""
    assert len(lines) == count, lines
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 2000
    assert [json.loads(line)["forward"] for line in lines] == ["web"] * count


@pytest.mark.parametrize(
    "text", [HOSTILE, "x" * 10_000, "ä€𝄞" * 2000], ids=["escapes", "10 kB", "text of many bytes"]
)
def test_a_hostile_subject(mutual: Site, text: str) -> None:
    """It ends no line and moves no cursor, and there is not much of it; what is printable stays."""
    found = logged_subject(mutual, ORGANIZATION_NAME=text)
    assert_harmless(mutual, 2)
    assert found.startswith("O=")
    assert len(found) <= 256


@pytest.mark.parametrize(
    "text",
    ['evil"},{"outcome":"opened', "a\nb", "\x1b[2J\x1b[31mred", "\\"],
    ids=["quotes", "line end", "escape", "backslash"],
)
def test_a_hostile_sni(accepting: StartSite, text: str) -> None:
    """What can be no host's name is none, although the handshake succeeds all the same."""
    there = accepting()
    asking_for(there, text)
    sni = there.lines(2)[1]["tls"]["client"]["sni"]
    assert_harmless(there, 2)
    assert sni is None


def test_a_long_sni(accepting: StartSite) -> None:
    """As long as TLS lets it be, it is logged whole."""
    there = accepting()
    asking_for(there, "x" * 255)
    assert there.lines(2)[1]["tls"]["client"]["sni"] == "x" * 255


def asking_for(there: Site, name: str) -> None:
    """A client that asks for `name`, whatever that is."""
    command = [require_peer("openssl"), "s_client", "-connect", f"{HOST}:{there.port}", "-servername", name]
    subprocess.run(command, input=b"", capture_output=True, timeout=deadline.seconds(20), check=False)


def hello(context: ssl.SSLContext, name: bytes) -> bytes:
    """A ClientHello (RFC 8446, 4.1.2) that asks for `name` (RFC 6066, 3), whatever bytes that is."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    real = outgoing.read()[9:]
    at = 34
    at += 1 + real[at]
    at += 2 + int.from_bytes(real[at : at + 2])
    at += 1 + real[at]
    ours = struct.pack("!HBH", len(name) + 3, 0, len(name)) + name
    extensions = struct.pack("!HH", 0, len(ours)) + ours
    rest = real[at + 2 :]
    while rest:
        kind, size = struct.unpack_from("!HH", rest)
        if kind != 0:
            extensions += rest[: 4 + size]
        rest = rest[4 + size :]
    body = real[:at] + struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


@pytest.mark.parametrize(
    "name",
    [b"x" * 10_000, b"\xff\xfe\x9b31m", b"a\0b", b"\x1b]0;pwned\x07\n", b""],
    ids=["10 kB", "no ASCII", "NUL", "escapes", "empty"],
)
def test_a_hostile_client_hello(accepting: StartSite, name: bytes) -> None:
    """Names that no library would send, in a handshake that leads nowhere: one line, fit for a terminal."""
    there = accepting()
    with connect(there.address) as client:
        client.sendall(hello(there.authority.trusting(), name))
        client.settimeout(deadline.seconds(5))
        client.recv(1 << 16)
    there.last("remote-tls-failed -")
    assert_harmless(there, 1)
    assert "Traceback" not in there.forwarder.stderr()


# The status.


def test_status_says_what_tls_there_is(accepting: StartSite, cert: Path) -> None:
    """Handshakes, failures and the certificate, as JSON."""
    there = accepting()
    there.talk()
    with connect(there.address) as client:
        plain(client)
    there.wait_total("connections_closed_total", 2)
    (found,) = status(there.url)["forwards"]
    assert found["tls"] == "accept"
    assert found["handshakes"]["client"]["versions"] == {"TLSv1.2": 0, "TLSv1.3": 1}
    assert found["handshakes"]["client"]["failures"]["not_tls"] == 1
    assert [each["file"] for each in found["certificates"]] == [str(cert)]


def test_the_status_command_says_what_tls_there_is(accepting: StartSite) -> None:
    """A table of its own, without a warning while there is time."""
    there = accepting()
    there.talk()
    shown = run("--status", "-c", str(there.forwarder.config_path)).stdout
    (line,) = (line for line in shown.splitlines() if line.startswith("web ") and "clients" in line)
    assert line.split()[:4] == ["web", "clients", "1", "0"]
    assert "!" not in shown


def test_the_status_command_warns_of_a_certificate(accepting: StartSite, cert: Path) -> None:
    """One that has only days left, by its file."""
    there = accepting()
    config = there.forwarder.config_path.read_text()
    soon = lasting(there.authority, 3)
    there.forwarder.reload(config.replace(str(cert), str(soon)))
    shown = run("--status", "-c", str(there.forwarder.config_path)).stdout
    assert f"! web: the certificate {soon} expires in 2 d 23 h" in shown
