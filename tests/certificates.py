"""An authority of the test's own, what it has signed, and peers that speak TLS.

    authority = Authority(tmp_path)
    cert = authority.server("localhost")           # a file with certificate, chain and key, mode 0600
    forwarder(f"127.0.0.1 {port} ... [tls-accept, cert={cert}]")
    with authority.client(("127.0.0.1", port)) as client: ...

Files are in the test's directory, each with a name of its own.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.servers import Handler, Visit
from tests.sockets import Address, Ending, connect

NAME: Final = "localhost"
"""What servers are called unless the test says something else."""

VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

CUT: Final = "cut"
"""How a stream ended in which a FIN came without close_notify (RFC 8446, 6.1)."""

CLOSE_WAIT: Final = 8  # linux/include/net/tcp_states.h: the peer's FIN has come, and no reset

DAY: Final = timedelta(days=1)


class Authority:
    """A certificate authority, and the files with what it signs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self._count = 0
        self.file = self.write("authority", self.pem, mode=0o644)
        """Its own certificate."""

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self.authority.cert_pem.bytes()

    def write(self, stem: str, content: bytes, mode: int = 0o600) -> Path:
        """A file with that content."""
        self._count += 1
        path = self.directory / f"{stem}-{self._count}.pem"
        path.touch(mode=0o600)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def issue(self, *names: str, **options: Any) -> trustme.LeafCert:
        """A certificate for those names, addresses, or `user@host`; options as trustme has them."""
        return self.authority.issue_cert(*(names or (NAME,)), **options)

    def server(self, *names: str, **options: Any) -> Path:
        """The certificate of a server, its chain and its key, in one file."""
        return self.whole(self.issue(*names, **options))

    def person(self, name: str = "alice", **options: Any) -> Path:
        """The certificate of a client, and its key, in one file."""
        return self.whole(self.issue(f"{name}@example.org", common_name=name, **options))

    def whole(self, made: trustme.LeafCert) -> Path:
        """All of a certificate in one file."""
        return self.write("whole", made.private_key_and_cert_chain_pem.bytes())

    def pair(self, *names: str, **options: Any) -> tuple[Path, Path]:
        """A certificate with its chain, and its key, in two files."""
        made = self.issue(*names, **options)
        chain = b"".join(each.bytes() for each in made.cert_chain_pems)
        return self.write("chain", chain, 0o644), self.write("key", made.private_key_pem.bytes())

    def expired(self, *names: str) -> Path:
        """A server's, which was valid until yesterday."""
        now = datetime.now(UTC)
        return self.server(*names, not_before=now - 9 * DAY, not_after=now - DAY)

    def early(self, *names: str) -> Path:
        """A server's, which is valid from tomorrow on."""
        now = datetime.now(UTC)
        return self.server(*names, not_before=now + DAY, not_after=now + 9 * DAY)

    def encrypted_key(self, key: Path) -> Path:
        """The same key, for those who know the password."""
        found = load_pem_private_key(key.read_bytes(), None)
        secret = BestAvailableEncryption(b"secret")
        return self.write("encrypted", found.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))

    # Peers.

    def trusting(
        self, *, version: str | None = None, person: Path | None = None, alpn: Sequence[str] = ()
    ) -> ssl.SSLContext:
        """The context of a client that trusts this authority, speaks `version` only, has the
        certificate of `person`, and wants one of `alpn`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.pem.decode())
        return _finished(context, version, person, alpn)

    def serving(
        self, cert: Path, *, version: str | None = None, asks: bool = False, alpn: Sequence[str] = ()
    ) -> ssl.SSLContext:
        """The context of a server with the certificate in `cert`, which `asks` for a client's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if asks:
            context.load_verify_locations(cadata=self.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return _finished(context, version, cert, alpn)

    def client(
        self,
        address: Address,
        name: str | None = NAME,
        *,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
        **options: Any,
    ) -> ssl.SSLSocket:
        """A client of the server `name` at `address`; without a `name` it asks for none, and looks at
        none. `options` are those of `trusting`."""
        context = context or self.trusting(**options)
        if name is None:
            context.check_hostname = False
        return greeted(connect(address), context, name, session)


def _finished(
    context: ssl.SSLContext, version: str | None, cert: Path | None, alpn: Sequence[str]
) -> ssl.SSLContext:
    if version is not None:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if cert is not None:
        context.load_cert_chain(cert)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def greeted(
    client: socket.socket, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """TLS on a connected socket; where that fails the socket is closed."""
    try:
        return context.wrap_socket(client, server_hostname=name, session=session, suppress_ragged_eofs=False)
    except BaseException:
        client.close()
        raise


def ending(end: ssl.SSLSocket) -> Ending:
    """Everything up to the end of the stream, and how it ended: `EOF` is close_notify, CUT a FIN alone."""
    data = bytearray()
    while True:
        try:
            piece = end.recv(1 << 16)
        except TimeoutError:
            raise
        except ssl.SSLEOFError:  # OpenSSL says so of a reset, too
            return Ending(bytes(data), CUT if state(end) == CLOSE_WAIT else "ECONNRESET")
        except ssl.SSLZeroReturnError:  # where we have said close_notify ourselves
            piece = b""
        except ssl.SSLError as error:
            return Ending(bytes(data), error.reason or "")
        except OSError as error:
            return Ending(bytes(data), errno.errorcode[error.errno or 0])
        if not piece:
            return Ending(bytes(data), "EOF")
        data += piece


def state(end: socket.socket) -> int:
    """That of the connection (tcp(7), TCP_INFO)."""
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def say_end(end: ssl.SSLSocket) -> None:
    """Send close_notify, and go on reading."""
    patience = end.gettimeout()
    end.setblocking(False)
    try:
        # SSLSocket.unwrap would wait for the peer's, and drop what comes before it.
        # An SSLError says that what has come is lost here; close_notify has been sent.
        with suppress(ssl.SSLError):
            end._sslobj.shutdown()  # type: ignore[attr-defined]
    finally:
        end.settimeout(patience)


def over_tls(handler: Handler, context: ssl.SSLContext) -> Handler:
    """A handler of tests.servers, behind a handshake of the server `context`; it ends with close_notify."""

    def handle(connection: socket.socket, visit: Visit, *arguments: object) -> None:
        try:
            secured = context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False)
        except OSError as error:
            visit.end(f"handshake: {getattr(error, 'reason', None) or type(error).__name__}")
            return
        with secured:
            try:
                handler(secured, visit, *arguments)
                say_end(secured)
            except ssl.SSLEOFError:
                visit.end(CUT)

    return handle
