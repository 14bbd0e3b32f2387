"""What becomes of those options of stunnel 5.68 that have no counterpart: tables, with what to do instead.

Used by translate, which has all the others in its own hands. docs/migrating-from-stunnel.md has every option
of these tables, and a test sees to it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Kind(Enum):
    """How much it matters that an option is not translated; the value is what the operator reads."""

    NOTE = "note"
    """It says nothing here, and nothing is missed."""
    WARNING = "warning"
    """It is translated; one should know what that means."""
    LOST = "not translated"
    """The forward works without it."""
    LEFT_OUT = "left out"
    """Without it the forward would not work, or would let in whom stunnel kept out: it is a comment only."""


class Fate(NamedTuple):
    """What happens to an option, and why or what to do; nothing at all with one of the `harmless` values
    (in lower case)."""

    kind: Kind
    text: str
    harmless: tuple[str, ...] = ()


_MESSAGES: Final = Fate(Kind.NOTE, "messages go to syslog, or to standard error with 'fastfwd -f'")
_RANDOM: Final = Fate(Kind.NOTE, "OpenSSL has the kernel's random numbers")
_WINDOWS: Final = Fate(Kind.NOTE, "there is no Windows program")
_NEGOTIATION: Final = Fate(Kind.NOTE, "without its 'protocol' it says nothing")
_CACHE: Final = Fate(Kind.NOTE, "sessions are resumed by tickets, which need no cache")
_ENGINE: Final = Fate(Kind.LEFT_OUT, "keys are files here; nothing is asked of an OpenSSL engine")
_REVOKED: Final = Fate(
    Kind.LEFT_OUT,
    "revoked certificates are not looked for; short-lived ones need no list. Who keeps out somebody by it "
    "needs a new CA for the others",
)
_TICKETS: Final = Fate(
    Kind.LOST,
    "tickets are good for all workers, with a key that changes; another host's are not taken: the client "
    "makes a full handshake",
)
_PROGRAM: Final = Fate(
    Kind.LEFT_OUT,
    "no program is started; have systemd do that (a Unix socket with Accept=yes), and forward there",
)
_PSK: Final = Fate(
    Kind.LEFT_OUT, "there are certificates only; give the clients some ('client-ca=', 'client-cert=')"
)

GLOBAL: Final = {
    "chroot": Fate(
        Kind.LOST,
        "workers have no rights either way; RootDirectory= of systemd.exec(5) is the same for all. "
        "'CApath', 'CRLpath', 'pid' and 'exec' were relative to it",
    ),
    "compression": Fate(Kind.LOST, "TLS is never compressed (RFC 9325, 3.3)"),
    "egd": _RANDOM,
    "engine": Fate(Kind.LOST, "no OpenSSL engine is used"),
    "enginectrl": Fate(Kind.NOTE, "no OpenSSL engine is used"),
    "enginedefault": Fate(Kind.NOTE, "no OpenSSL engine is used"),
    "fips": Fate(Kind.LOST, "set it for all of OpenSSL: fips_module(7)", ("no",)),
    "foreground": Fate(Kind.NOTE, "start with 'fastfwd -f'", ("no",)),
    "iconactive": _WINDOWS,
    "iconerror": _WINDOWS,
    "iconidle": _WINDOWS,
    "log": Fate(Kind.LOST, "the log is always appended to", ("append",)),
    "rndbytes": _RANDOM,
    "rndfile": _RANDOM,
    "rndoverwrite": _RANDOM,
    "service": Fate(Kind.NOTE, "syslog has it under 'fastfwd'"),
    "syslog": _MESSAGES,
    "taskbar": _WINDOWS,
}
"""Of the program as a whole."""

SERVICE: Final = {
    "caengine": _ENGINE,
    "checkemail": Fate(Kind.LEFT_OUT, "certificates are compared with a host's name only ('server-name=')"),
    "ciphersuites": Fate(Kind.LOST, "those of TLS 1.3 are OpenSSL's own; 'ciphers=' is for 1.2"),
    "config": Fate(Kind.LOST, "set it for all of OpenSSL: config(5)"),
    "crlfile": _REVOKED,
    "crlpath": _REVOKED,
    "curves": Fate(Kind.LOST, "the groups are OpenSSL's own; 'Groups' of config(5) sets them for all of it"),
    "debug": Fate(Kind.NOTE, "there is no level: every connection is in the log, and failures say why"),
    "delay": Fate(Kind.NOTE, "names are always looked up beside the sessions, and again ('dns-refresh')"),
    "engineid": _ENGINE,
    "enginenum": _ENGINE,
    "exec": _PROGRAM,
    "execargs": Fate(Kind.NOTE, "without 'exec' it says nothing"),
    "ident": Fate(Kind.LEFT_OUT, "nobody is asked for a user's name; see 'client-ca='"),
    "libwrap": Fate(
        Kind.LEFT_OUT,
        "hosts.allow and hosts.deny are not read; put 'allow' and 'deny' lines below the forward",
        ("no",),
    ),
    "logid": Fate(Kind.NOTE, "'session' of 'logformat json' is the same in all lines of a connection"),
    "ocsp": _REVOKED,
    "ocspaia": _REVOKED._replace(harmless=("no",)),
    "ocspflag": Fate(Kind.NOTE, "no OCSP responder is asked"),
    "ocspnonce": Fate(Kind.NOTE, "no OCSP responder is asked"),
    "protocolauthentication": _NEGOTIATION,
    "protocoldomain": _NEGOTIATION,
    "protocolheader": _NEGOTIATION,
    "protocolhost": _NEGOTIATION,
    "protocolpassword": _NEGOTIATION,
    "protocolusername": _NEGOTIATION,
    "pskidentity": _PSK,
    "psksecrets": _PSK,
    "pty": Fate(Kind.NOTE, "without 'exec' it says nothing"),
    "redirect": Fate(Kind.LOST, "a client whose certificate is not good is closed, and sent nowhere else"),
    "renegotiation": Fate(Kind.LOST, "renegotiation is off (TLS 1.3 has none)", ("no",)),
    "reset": Fate(Kind.LOST, "a reset is passed on as a reset", ("yes",)),
    "retry": Fate(Kind.NOTE, "without 'exec' it says nothing", ("no",)),
    "securitylevel": Fate(
        Kind.LOST, "the level is OpenSSL's own ('CipherString = DEFAULT:@SECLEVEL=2' of config(5))", ("2",)
    ),
    "sessioncachesize": _CACHE,
    "sessioncachetimeout": _CACHE,
    "sessiond": _CACHE,
    "sessionresume": Fate(Kind.LOST, "sessions can always be resumed", ("yes",)),
    "stack": Fate(Kind.NOTE, "there are no threads"),
    "ticketkeysecret": _TICKETS,
    "ticketmacsecret": _TICKETS,
    "timeoutclose": Fate(
        Kind.NOTE, "nobody is waited for: a connection that ends without close_notify is told in the log"
    ),
}
"""Of a service."""

SECRET: Final = frozenset({"enginectrl", "protocolpassword", "ticketkeysecret", "ticketmacsecret"})
"""Options whose values are shown to nobody."""

NO_MATTER: Final = frozenset(
    {
        *("no_sslv2", "no_sslv3", "no_tlsv1", "no_tlsv1_1", "no_compression", "no_renegotiation"),
        *("cipher_server_preference", "single_dh_use", "single_ecdh_use", "no_dtlsv1", "no_dtlsv1_2"),
    }
)
"""`options` that are so in any case."""
