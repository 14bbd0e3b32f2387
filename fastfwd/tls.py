"""TLS as a configuration asks for it: contexts of the ssl module, made of bytes.

config/encryption makes them to see whether they can be made, worker/main to serve with. Files
have been read before, by the supervisor, which may. What the ssl module does not offer is
at the end: a key of session tickets that all workers have.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import re
import ssl
import sys
from collections.abc import Sequence
from hashlib import shake_256
from typing import Any, Final

from fastfwd.model import UNIX, Certificate, Forward, TlsAccept, TlsConnect

codecs.lookup("idna")
"""Host names need it (the ssl module); a process without rights may be unable to read it later."""

MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

TICKET_KEY: Final = 80
"""Bytes: a name, a key for HMAC, one for AES (OpenSSL, SSL_CTX_set_tlsext_ticket_keys)."""

TICKETS_HOLD: Final = 6 * 3600
"""Seconds of one key."""

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,255}")
"""What a client may ask for (RFC 6066, 3) and be repeated."""


class Refused(Exception):  # noqa: N818  # what it is, not whose mistake
    """OpenSSL does not take what the configuration says; the text says what was expected."""


class Accepting:
    """The server's side of one forward: a context for each certificate, chosen by the name that the
    client asks for (SNI, RFC 6066, 3)."""

    def __init__(self, wanted: TlsAccept) -> None:
        """Raises Refused."""
        self.contexts = [_server(wanted, each) for each in wanted.certificates]
        names = [each.names for each in wanted.certificates]
        self._identity = repr((wanted.client_required, wanted.client_ca, names)).encode()
        self.context = self.contexts[0]
        """For clients that ask for no name, or for one that no certificate has."""
        self._named: dict[str, ssl.SSLContext] = {}
        for context, certificate in zip(self.contexts, wanted.certificates, strict=True):
            for name in certificate.names:
                self._named.setdefault(name, context)
        self.context.sni_callback = self._asked

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """A connection's side, over those buffers."""
        return self.context.wrap_bio(incoming, outgoing, server_side=True)

    def tickets(self, secret: bytes) -> bool:
        """Seal session tickets with a key made of `secret`; returns whether that can be done. When a session
        is resumed neither side shows a certificate again, so a ticket is good only where those for the same
        names are shown, and the same ones are asked for."""
        key = shake_256(secret + self._identity).digest(TICKET_KEY)
        return all(set_ticket_key(context, key) for context in self.contexts)

    def _asked(self, tls: Any, name: str | None, context: ssl.SSLContext) -> None:
        # It comes from a stranger, and the ssl module lets every ASCII character pass.
        tls.asked = name if name is not None and NAME.fullmatch(name) else None
        if name is not None and len(self.contexts) > 1:
            name = name.lower()
            # A wildcard stands for one label (RFC 9525, 6.3).
            found = self._named.get(name) or self._named.get(f"*.{name.partition('.')[2]}")
            if found is not None:
                tls.context = found


class Connecting:
    """The client's side, towards the backends of one forward."""

    def __init__(self, wanted: TlsConnect) -> None:
        """Raises Refused."""
        self._wanted = wanted
        self._contexts: dict[str, ssl.SSLContext] = {"": _client(wanted, wanted.alpn)}

    def wrap(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, host: str, protocol: str | None = None
    ) -> ssl.SSLObject:
        """A connection's side, over those buffers, to `host` unless the configuration names another
        server; with `protocol` alone offered, if that is to be passed on (RFC 7301)."""
        context = self._contexts[""]
        if self._wanted.alpn_of_client and protocol is not None:
            if protocol not in self._contexts:
                self._contexts[protocol] = _client(self._wanted, (protocol,))
            context = self._contexts[protocol]
        return context.wrap_bio(
            incoming, outgoing, server_side=False, server_hostname=self._wanted.name or named(host)
        )


def named(host: str) -> str | None:
    """What a server that is dialled as `host` is called; None for a Unix socket."""
    return None if host.startswith(UNIX) else host


class Contexts:
    """Those of everything that a worker serves, each made once: of a thousand ports with one certificate
    there is one. Session tickets are sealed with a key that all workers make of the same secret, and that
    changes with time: who gets hold of one key can read the sessions of some hours."""

    def __init__(self, secret: bytes, before: Contexts | None) -> None:
        """What is the same as `before` is kept."""
        self._secret = secret
        self._before = before
        self._accepting: dict[TlsAccept, Accepting] = {}
        self._connecting: dict[TlsConnect, Connecting] = {}
        self._period = -1
        self.shared_tickets = True
        """Whether tickets of one worker are good for the others."""

    def of(self, forward: Forward) -> tuple[Accepting | None, Connecting | None]:
        """Those of one forward, for its clients and its backends. Raises Refused."""
        accept, connect = forward.tls_accept, forward.tls_connect
        if accept is not None and accept not in self._accepting:
            kept = None if self._before is None else self._before._accepting.get(accept)
            self._accepting[accept] = kept or Accepting(accept)
            self._period = -1
        if connect is not None and connect not in self._connecting:
            known = None if self._before is None else self._before._connecting.get(connect)
            self._connecting[connect] = known or Connecting(connect)
        return (
            None if accept is None else self._accepting[accept],
            None if connect is None else self._connecting[connect],
        )

    def renew(self, now: float) -> None:
        """Have the tickets' key be that of `now` (seconds since the epoch), if it is not yet."""
        self._before = None
        if self._accepting and now // TICKETS_HOLD != self._period:
            self._period = int(now // TICKETS_HOLD)
            secret = self._secret + self._period.to_bytes(8)
            done = [each.tickets(secret) for each in self._accepting.values()]
            self.shared_tickets = all(done)


def not_raised(what: sys.UnraisableHookArgs) -> None:
    """The hook of a process that accepts (sys.unraisablehook): a client that asks for a server by bytes
    that are not ASCII fails in its handshake. The ssl module would also write its bytes and a traceback
    to stderr, for which Python tries to open a dozen files."""
    if not (isinstance(what.exc_value, UnicodeDecodeError) and isinstance(what.object, bytes)):
        sys.__unraisablehook__(what)


def _server(wanted: TlsAccept, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context, wanted.minimum, wanted.ciphers, wanted.alpn)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    # Another one costs 15 of 300 µs of a handshake; who comes back with it gets a new one.
    context.num_tickets = 1
    load(context, certificate)
    if wanted.client_ca is not None:
        trust(context, wanted.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if wanted.client_required else ssl.CERT_OPTIONAL
    return context


def _client(wanted: TlsConnect, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _common(context, wanted.minimum, wanted.ciphers, alpn)
    if not wanted.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif wanted.ca is not None:
        trust(context, wanted.ca)
    else:
        context.set_default_verify_paths()
    if wanted.certificate is not None:
        load(context, wanted.certificate)
    return context


def _common(context: ssl.SSLContext, minimum: str, ciphers: str | None, alpn: Sequence[str]) -> None:
    context.minimum_version = MINIMUM[minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    if ciphers is not None:
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError:
            raise Refused(
                f"a list of ciphers that OpenSSL knows (openssl-ciphers(1)), found {ciphers!r}"
            ) from None
    if alpn:
        context.set_alpn_protocols(list(alpn))


def load(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Give `context` a certificate with its chain and its key. Raises Refused."""

    def no_password() -> str:
        raise Refused(
            f"a key that is not encrypted, found {certificate.key_file!r}:"
            " nobody is there to be asked for the password"
        )

    # The module takes names of files only.
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(certificate.chain + b"\n" + certificate.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=no_password)
    except ssl.SSLError as error:
        raise Refused(_what_is_wrong(error, certificate)) from None
    finally:
        os.close(descriptor)


def _what_is_wrong(error: ssl.SSLError, certificate: Certificate) -> str:
    reason = error.reason or "no PEM"
    if reason == "KEY_VALUES_MISMATCH":
        return f"the key of {certificate.file!r}, found another one's in {certificate.key_file!r}"
    if "SMALL" in reason or "WEAK" in reason:
        return f"a certificate whose key and digest are strong enough, found {certificate.file!r} ({reason})"
    files = " and ".join(dict.fromkeys((repr(certificate.file), repr(certificate.key_file))))
    return f"a certificate and its key in PEM, found {files} ({reason})"


def trust(context: ssl.SSLContext, certificates: bytes) -> None:
    """Have `context` trust those certificates (PEM), and no others. Raises Refused."""
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is in the file, be it a server's own
    try:
        context.load_verify_locations(cadata=certificates.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError):
        raise Refused("certificates in PEM") from None
    if not context.cert_store_stats()["x509"]:
        raise Refused("at least one certificate")


# What the ssl module does not offer.

_SET_TICKET_KEYS, _GET_TICKET_KEYS = 59, 58  # openssl/tls1.h


def set_ticket_key(context: ssl.SSLContext, key: bytes) -> bool:
    """Have `context` seal and open session tickets (RFC 8446, 4.6.1; RFC 5077) with `key`, TICKET_KEY
    bytes. Returns whether it does: otherwise its key is its own, and its tickets are worth nothing in
    another process.

    The call is OpenSSL's, reached through the library that the ssl module has loaded; the pointer to
    its structure stands behind the head of Python's object, in every CPython up to the one that is
    tested here. The key is read back: where that fails, nothing was changed.
    """
    if sys.implementation.name != "cpython" or sys.version_info[:2] > (3, 14):
        return False
    try:
        import _ssl  # noqa: PLC0415

        control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (ImportError, AttributeError, OSError):  # linked otherwise
        return False
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
    control.restype = ctypes.c_long
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if control(pointer, _GET_TICKET_KEYS, 0, None) != TICKET_KEY:
        return False
    control(pointer, _SET_TICKET_KEYS, TICKET_KEY, key)
    found = ctypes.create_string_buffer(TICKET_KEY)
    control(pointer, _GET_TICKET_KEYS, TICKET_KEY, found)
    return found.raw == key
