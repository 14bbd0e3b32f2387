"""The options about TLS: put together by forward, and their files read by load.

`assembled` is pure: it says what the options mean together. `read` reads the certificates and keys,
and tries them: a handshake with itself shows that OpenSSL takes a certificate, that the key is its
own, that it is valid today, and whose it is, all by what the ssl module offers.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any, Final, NamedTuple

from fastfwd import tls
from fastfwd.config.endpoint import Say
from fastfwd.config.wording import expected, quote
from fastfwd.model import Certificate, Config, Forward, Problem, TlsAccept, TlsConnect

ReadFile = Callable[[str], bytes]

ACCEPT: Final = ("cert", "key", "client_ca", "verify_client", "alpn")
CONNECT: Final = ("server_ca", "server_name", "verify_server", "client_cert", "client_key", "server_alpn")
BOTH: Final = ("tls_min", "ciphers")
"""Fields that options set, by the side they concern."""

EVERYBODY: Final = 0o007

EXPIRED, NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, _NOT_YET_VALID (openssl/x509_vfy.h)

LONGEST_NAME: Final = 4096  # bytes, PATH_MAX: of several files it must be clear which


def named(path: str) -> str:
    """A file's name in a message, all of it."""
    return quote(path, LONGEST_NAME)


def assembled(found: dict[str, Any], wrong: Say) -> dict[str, Any]:
    """Take the fields about TLS out of `found`; what they are in Forward."""
    given: dict[str, Any] = {
        field: found.pop(field) for field in (*ACCEPT, *CONNECT, *BOTH) if field in found
    }
    accept, connect = found.pop("tls_accept", False), found.pop("tls_connect", False)
    for side, fields, partner in (
        (accept, ACCEPT, "'tls-accept'"),
        (connect, CONNECT, "'tls-connect'"),
        (accept or connect, BOTH, "'tls-accept' or 'tls-connect'"),
        (
            accept or connect or "proxy_from" in found,
            ("handshake_timeout",),
            "'tls-accept', 'tls-connect' or 'accept-proxy'",
        ),
    ):
        for field in fields:
            if not side and (field in given or field in found):
                wrong(f"expected {field.replace('_', '-')!r} with {partner} only")
    common = {"minimum": given.get("tls_min", "1.2"), "ciphers": given.get("ciphers")}
    made: dict[str, Any] = {}
    if accept:
        made["tls_accept"] = _accept(given, common, wrong)
    if connect:
        made["tls_connect"] = _connect(given, common, wrong)
        if made["tls_connect"].alpn_of_client and not (accept and "alpn" in given):
            wrong(
                "expected 'tls-accept' and 'alpn' with 'server-alpn=client': there is no protocol to pass on"
            )
    return made


def _accept(given: dict[str, Any], common: dict[str, Any], wrong: Say) -> TlsAccept:
    files: tuple[str, ...] = given.get("cert", ())
    keys: tuple[str, ...] = given.get("key", files)
    if not files:
        wrong("expected 'cert' with 'tls-accept', found none")
    elif len(keys) != len(files):
        wrong(f"expected as many keys as certificates ({len(files)}), or none, found {len(keys)}")
    if "verify_client" in given and "client_ca" not in given:
        wrong("expected 'client-ca' with 'verify-client', found none")
    return TlsAccept(
        tuple(map(Certificate, files, keys)),
        given.get("client_ca"),
        client_required=given.get("verify_client", True),
        alpn=given.get("alpn", ()),
        **common,
    )


def _connect(given: dict[str, Any], common: dict[str, Any], wrong: Say) -> TlsConnect:
    file = given.get("client_cert")
    if file is None and "client_key" in given:
        wrong("expected 'client-cert' with 'client-key', found none")
    verify = given.get("verify_server", True)
    if not verify and "server_ca" in given:
        wrong("expected no 'server-ca' with 'verify-server=off': nothing would be compared with it")
    alpn: tuple[str, ...] = given.get("server_alpn", ())
    return TlsConnect(
        verify,
        given.get("server_ca"),
        None,
        given.get("server_name"),
        None if file is None else Certificate(file, given.get("client_key", file)),
        alpn=() if alpn == ("client",) else alpn,
        alpn_of_client=alpn == ("client",),
        **common,
    )


def read(config: Config, read_file: ReadFile) -> tuple[Config, list[Problem]]:
    """The configuration with what the files hold that its forwards name, and what is wrong with them."""
    problems: list[Problem] = []
    once = _Once(cache(read_file), cache(tried), cache(tls.Accepting), cache(tls.Connecting))
    forwards = tuple(_Files(each, once, problems).forward() for each in config.forwards)
    return replace(config, forwards=forwards), problems


class _Once(NamedTuple):
    """What is done once for all forwards: many have the same certificate, and to try one takes 4 ms."""

    read_file: ReadFile
    tried: Callable[..., dict[str, Any]]
    accepting: Callable[[TlsAccept], tls.Accepting]
    connecting: Callable[[TlsConnect], tls.Connecting]


class _Files:
    """Those of one forward. Relative names are beside the file that names them."""

    def __init__(self, forward: Forward, once: _Once, problems: list[Problem]) -> None:
        self.it = forward
        self.once = once
        self.problems = problems

    def forward(self) -> Forward:
        accept, connect = self.it.tls_accept, self.it.tls_connect
        if accept is None and connect is None:
            return self.it
        before = len(self.problems)
        if accept is not None:
            accept = replace(
                accept,
                certificates=tuple(self.certificate(each, server=True) for each in accept.certificates),
                client_ca=self.authorities(accept.client_ca_file),
            )
        if connect is not None:
            own = connect.certificate
            connect = replace(
                connect,
                ca=self.authorities(connect.ca_file),
                certificate=None if own is None else self.certificate(own, server=False),
            )
        if len(self.problems) == before:
            try:
                if accept is not None:
                    self.once.accepting(accept)
                if connect is not None:
                    self.names(connect, self.once.connecting(connect))
            except tls.Refused as error:
                self.wrong(f"expected {error}")
        return replace(self.it, tls_accept=accept, tls_connect=connect)

    def names(self, wanted: TlsConnect, connecting: tls.Connecting) -> None:
        """Whether every backend has a name that a server can be asked for, and compared with."""
        for host in [wanted.name] if wanted.name else [each.endpoint.host for each in self.it.backends]:
            if tls.named(host) is None and wanted.verify:
                self.wrong(
                    "expected 'server-name', or 'verify-server=off', with 'tls-connect' to a Unix socket:"
                    f" a certificate is for no path, found {quote(host)}"
                )
                continue
            try:
                connecting.wrap(ssl.MemoryBIO(), ssl.MemoryBIO(), host)
            except ValueError:
                self.wrong(expected("a host name that a server can be asked for (RFC 1035, 2.3.1)", host))

    def wrong(self, message: str) -> None:
        self.problems.append(Problem(self.it.origin, message))

    def content(self, name: str, what: str) -> bytes | None:
        path = os.path.join(os.path.dirname(self.it.origin.file), name)
        try:
            return self.once.read_file(path)
        except OSError as error:
            self.wrong(f"expected {what} that can be read, found {named(path)}: {error.strerror}")
            return None

    def authorities(self, name: str | None) -> bytes | None:
        if name is None or (found := self.content(name, "a file of certificates")) is None:
            return None
        try:
            tls.trust(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), found)
        except tls.Refused as error:
            self.wrong(f"expected {error}, found none in {named(name)}")
        return found

    def certificate(self, it: Certificate, *, server: bool) -> Certificate:
        """That certificate, read and tried out for that side."""
        both = it.key_file == it.file
        chain = self.content(it.file, "a certificate and its key" if both else "a certificate")
        key = chain if both else self.content(it.key_file, "a key")
        if chain is None or key is None:
            return it
        path = os.path.join(os.path.dirname(self.it.origin.file), it.key_file)
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except OSError:  # gone since it was read
            mode = 0
        if mode & EVERYBODY:
            self.wrong(f"expected a key that not everybody may use, found {named(path)} with mode {mode:04o}")
        found = replace(it, chain=chain, key=b"" if both else key)
        try:
            facts = self.once.tried(found, server=server)
        except tls.Refused as error:
            self.wrong(f"expected {error}")
            return found
        expires = int(ssl.cert_time_to_seconds(facts["notAfter"]))
        return replace(found, names=tuple(_names(facts)), expires=expires)


def tried(certificate: Certificate, *, server: bool) -> dict[str, Any]:
    """What a peer sees of a certificate (ssl.SSLSocket.getpeercert), by a handshake with ourselves in
    which it is shown by that side. Raises tls.Refused."""
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    tls.load(shows, certificate)
    looks = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if server else ssl.PROTOCOL_TLS_SERVER)
    looks.check_hostname = False
    looks.verify_mode = ssl.CERT_REQUIRED
    tls.trust(looks, certificate.chain)
    if not server:
        shows.check_hostname = False
        shows.verify_mode = ssl.CERT_NONE
        tls.load(looks, certificate)  # a server must have one
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = shows.wrap_bio(there, back, server_side=server)
    other = looks.wrap_bio(back, there, server_side=not server)
    try:
        for _ in range(4):
            for side in (other, one):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (EXPIRED, NOT_YET):
            when = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
            raise tls.Refused(
                f"a certificate that is valid today, found {named(certificate.file)}, which {when}"
            ) from None
        what = "a certificate for a server" if server else "a certificate for a client"
        raise tls.Refused(f"{what}, found {named(certificate.file)}: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise tls.Refused(
            f"a certificate that OpenSSL can use, found {named(certificate.file)} ({error.reason})"
        ) from None
    return other.getpeercert() or {}


def _names(facts: dict[str, Any]) -> Iterable[str]:
    """Those that a certificate is for: its alternative names, else its common name (RFC 9525, 1.7.1)."""
    names = [value for kind, value in facts.get("subjectAltName", ()) if kind == "DNS"]
    if not names:
        names = [value for part in facts["subject"] for kind, value in part if kind == "commonName"]
    return (each.lower() for each in names)
