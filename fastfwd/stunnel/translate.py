"""Sections of a stunnel.conf -> a configuration, with a remark on everything that it does not say.

Called by command. Pure: no certificate is read. What it makes is read again by the forwarder's own parser,
and what that refuses is left out with its words: a translation is a configuration that can be started.

Where an option guards something and has no counterpart its service is left out, and its forward is a
comment: nobody is let in whom stunnel kept out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fastfwd.config.check import check
from fastfwd.config.options import FLAGS
from fastfwd.config.parse import parse
from fastfwd.config.resolve import numeric
from fastfwd.config.value import LONGEST
from fastfwd.config.wording import meant, quote
from fastfwd.model import UNIX, Origin, Problem
from fastfwd.stunnel.options import GLOBAL, NO_MATTER, SECRET, SERVICE, Fate, Kind
from fastfwd.stunnel.read import Given, Section

IDLE: Final = 43200
"""Seconds of silence after which stunnel ends a session, unless the file says otherwise."""

OLD: Final = ("all", "sslv2", "sslv3", "tlsv1", "tlsv1.1")
"""Versions of TLS below the least one here."""

SWITCHES: Final = {"yes": "on", "1": "on", "no": "off", "0": "off"}
"""Values of socket options."""

VALUES: Final = {
    "verify": ("0", "1", "2", "3", "4"),
    **dict.fromkeys(("client", "verifychain", "verifypeer", "requirecert"), ("yes", "no")),
}
"""What may stand where a slip would change who is let in."""

DIRECTIVES: Final = {"setuid": "user", "setgid": "group", "pid": "pidlogfile", "output": "logfile"}
"""Options of the program that are one directive here."""

KNOWN: Final = (
    *("accept", "connect", "client", "cert", "key", "cafile", "capath", "checkhost", "checkip", "ciphers"),
    *("verify", "verifychain", "verifypeer", "requirecert", "sni", "sslversion", "sslversionmin"),
    *("sslversionmax", "options", "protocol", "transparent", "timeoutidle", "timeoutconnect"),
    *("timeoutbusy", "failover", "local", "socket", "setuid", "setgid"),
)
"""Options of services that this module knows, beside those of the table."""


class Remark(NamedTuple):
    """What is to be said of a line: of the option there, if it is about one."""

    origin: Origin
    kind: Kind
    about: str
    text: str

    def __str__(self) -> str:
        about = f"{self.about}: " if self.about else ""
        return f"{self.kind.value}: {about}{self.text}"


@dataclass(slots=True)
class Made:
    """What became of a service: its forward, a comment if a remark says that it is left out; no line if it
    is part of another one's."""

    section: Section
    line: str = ""
    remarks: list[Remark] = field(default_factory=list)

    @property
    def left_out(self) -> bool:
        """Whether the line is a comment."""
        return any(each.kind is Kind.LEFT_OUT for each in self.remarks)


@dataclass(slots=True)
class Translation:
    """Directives with the remarks on the file as a whole, and what became of each service."""

    directives: list[str]
    remarks: list[Remark]
    services: list[Made]

    def all_remarks(self) -> list[Remark]:
        """Those of all services too; what several of them have from one line is there once."""
        return list(dict.fromkeys((*self.remarks, *(it for each in self.services for it in each.remarks))))

    @property
    def complete(self) -> bool:
        """Whether everything was translated."""
        return not any(each.kind in (Kind.LOST, Kind.LEFT_OUT) for each in self.all_remarks())

    def text(self) -> str:
        """The configuration, with the remarks as comments."""
        lines = ["# What fastfwd-stunnel2conf made of a stunnel.conf."]
        lines += [f"# line {each.origin.line}: {each}" for each in self.remarks]
        lines += self.directives
        for each in self.services:
            lines += ["", f"# Service {quote(each.section.name or '')}, line {each.section.origin.line}"]
            lines += [f"# line {remark.origin.line}: {remark}" for remark in each.remarks]
            if each.line:
                lines.append(f"# {_printable(each.line)}" if each.left_out else each.line)
        return "\n".join(lines) + "\n"


def translated(sections: list[Section], problems: list[Problem]) -> Translation:
    """The configuration that does what those sections say. `problems` are lines that could not be read."""
    whole, rest = sections[0], sections[1:]
    remarks = [Remark(each.origin, Kind.LOST, "", each.message) for each in problems]
    directives = list(_directives(whole, remarks))
    defaults = [each for each in whole.given if each.key not in (*GLOBAL, *DIRECTIVES)]
    if not rest and defaults:
        remarks.append(
            Remark(
                defaults[0].origin,
                Kind.LEFT_OUT,
                "",
                "a file without services is for inetd, and nothing is started by that here; "
                "have fastfwd listen where inetd does",
            )
        )
    names: set[str] = set()
    services = [_Service(each, defaults, _name(each.name or "", names)) for each in rest]
    idle = max((each.idle for each in services), default=IDLE)
    for each in services:
        each.translate(idle)
    by_name = {each.section.name: each for each in services}
    for each in services:
        each.join(by_name)
    made = [each.made() for each in services]
    _try(made)
    return Translation([*directives, f"idle-timeout {idle}"], remarks, made)


def _name(service: str, taken: set[str]) -> str:
    """A `name=` for a service, unlike all others."""
    plain = re.sub(r"[^A-Za-z0-9_.:-]", "-", service) or "service"
    name, count = plain, 1
    while name in taken:
        count += 1
        name = f"{plain}-{count}"
    taken.add(name)
    return name


def _directives(whole: Section, remarks: list[Remark]) -> Iterator[str]:
    """What the global options say of the program."""
    last = {each.key: each for each in whole.given}
    for key, given in last.items():
        fate = GLOBAL.get(key) or SERVICE.get(key)
        if fate is not None:
            if key in GLOBAL or fate.kind is Kind.NOTE:
                _judge(given, fate, remarks)
        elif key not in DIRECTIVES:
            continue
        elif not given.value:
            remarks.append(_of(given, Kind.NOTE, "no pid file is written with 'fastfwd -f'"))
        elif key == "output" and given.value.startswith("/dev/"):
            remarks.append(_of(given, Kind.NOTE, "messages go to standard error with 'fastfwd -f'"))
        else:
            line = f"{DIRECTIVES[key]} {_quoted(given.value) if key in ('pid', 'output') else given.value}"
            if wrong := parse(_bytes(line), given.origin.file)[1]:
                remarks.append(_of(given, Kind.LOST, wrong[0].message))
                continue
            yield line
            if key == "output":
                text = "this log has connections, one a line; messages go to syslog, or to standard error"
                remarks.append(_of(given, Kind.WARNING, text))


def _judge(given: Given, fate: Fate, remarks: list[Remark]) -> None:
    if given.value.lower() not in fate.harmless:
        remarks.append(_of(given, fate.kind, fate.text))


def _of(given: Given, kind: Kind, text: str) -> Remark:
    about = given.name if given.key in SECRET else f"{given.name} = {given.value}"
    return Remark(given.origin, kind, quote(about), text)


def _try(services: list[Made]) -> None:
    """Leave out what the forwarder would not take, with the words that it has for it."""
    able = [each for each in services if each.line and not each.left_out]
    config, problems = parse(_bytes("\n".join(each.line for each in able)), "")
    for problem in (*problems, *check(config, addresses={}, is_local=lambda _: False)):
        made = able[problem.origin.line - 1]
        made.remarks.append(Remark(made.section.origin, Kind.LEFT_OUT, "", problem.message))


class _Service:
    """One service, with the defaults of the global section; `options` are those of its forward."""

    def __init__(self, section: Section, defaults: list[Given], name: str) -> None:
        self.section = section
        self.given = [*defaults, *section.given]
        self.name = name
        self.remarks: list[Remark] = []
        self.options: dict[str, str] = {}
        self.certificates: list[tuple[str, str]] = []
        self.client = self.value("client", "no").lower() == "yes"
        self.primary = None if self.client else self.last("sni")
        self.joined = False

    # What the file says.

    def all(self, key: str) -> list[Given]:
        return [each for each in self.given if each.key == key]

    def last(self, key: str) -> Given | None:
        return next((each for each in reversed(self.given) if each.key == key), None)

    def value(self, key: str, default: str = "") -> str:
        given = self.last(key)
        return default if given is None else given.value

    @property
    def idle(self) -> int:
        """Seconds of its TIMEOUTidle."""
        return _seconds(self.value("timeoutidle")) or IDLE

    # What is said to the operator.

    def say(self, given: Given, kind: Kind, text: str) -> None:
        self.remarks.append(_of(given, kind, text))

    def say_of_all(self, kind: Kind, text: str) -> None:
        self.remarks.append(Remark(self.section.origin, kind, "", text))

    # The translation.

    def translate(self, idle: int) -> None:
        """Fill `options`, but for certificates."""
        for each in self.given:
            wanted = VALUES.get(each.key)
            if wanted is not None and each.value.lower() not in wanted:
                self.say(each, Kind.LEFT_OUT, f"expected one of {', '.join(map(repr, wanted))}")
            if each.key in ("cert", "key", "cafile") and not each.value.startswith("/"):
                self.say(each, Kind.WARNING, "a relative name is beside the file that names it")
            if (fate := SERVICE.get(each.key)) is not None:
                if fate.kind is not Kind.NOTE or each in self.section.given:
                    _judge(each, fate, self.remarks)
            elif each.key in GLOBAL:
                self.say(each, Kind.NOTE, "it is an option of the whole program, not of a service")
            elif each.key not in KNOWN:
                text = "stunnel 5.68 has no such option" + meant(each.key, (*KNOWN, *SERVICE, *GLOBAL))
                self.say(each, Kind.LOST, text)
        if self.client:
            self.towards_servers()
        else:
            self.towards_clients()
        self.versions()
        self.protocol()
        self.addresses()
        self.times(idle)
        self.sockets()

    def level(self) -> tuple[bool, bool, bool]:
        """(chain, peer, required): what is asked of the other side's certificate, which depends on
        the order of the options."""
        chain = peer = required = False
        for each in self.given:
            yes = each.value.lower() == "yes"
            if each.key == "verify":
                chain, peer = each.value in ("1", "2", "3"), each.value in ("3", "4")
                required = each.value in ("2", "3", "4")
            elif each.key == "verifychain":
                chain, required = yes, required or yes
            elif each.key == "verifypeer":
                peer, required = yes, required or yes
            elif each.key == "requirecert":
                required = yes
        return chain, peer, required

    def authorities(self, option: str) -> None:
        """`option` is the one that names the certificates to trust, if they are compared with any."""
        file, directory = self.last("cafile"), self.last("capath")
        chain, peer, _ = self.level()
        if not (chain or peer):
            for each in (file, directory):
                if each is not None:
                    self.say(each, Kind.NOTE, "nothing is compared with it")
            return
        if directory is not None:
            kind = Kind.LEFT_OUT if file is None else Kind.LOST
            self.say(directory, kind, f"put its certificates into one file, and name that with '{option}='")
        if file is not None:
            self.options[option] = file.value
        elif directory is None:
            self.say_of_all(Kind.LEFT_OUT, f"without 'CAfile' nothing can be verified; see '{option}='")
        if peer:
            self.say_of_all(
                Kind.LEFT_OUT,
                f"verifyPeer takes the certificates in the file only, '{option}=' all that lead to one "
                "of them. That is the same if each of them is self-signed; then take away the '#'",
            )

    def towards_clients(self) -> None:
        self.options["tls-accept"] = "on"
        certificate = self.last("cert")
        if certificate is None:
            self.say_of_all(Kind.LEFT_OUT, "a server needs 'cert'")
        else:
            self.certificates.append(self.pair(certificate))
        self.authorities("client-ca")
        chain, peer, required = self.level()
        if (chain or peer) and not required:
            self.options["verify-client"] = "optional"
        elif required and not (chain or peer) and (given := self.last("requirecert")) is not None:
            self.say(given, Kind.LOST, "it let in everybody with any certificate; see 'client-ca='")
        for each in (*self.all("checkhost"), *self.all("checkip")):
            self.say(each, Kind.LEFT_OUT, "names in clients' certificates are not compared with anything")

    def pair(self, certificate: Given) -> tuple[str, str]:
        """The files of a certificate and of its key."""
        for each in (certificate, self.last("key")):
            if each is None:
                continue
            if each.value.lower().startswith("pkcs11:"):
                self.say(each, Kind.LEFT_OUT, "keys are files here")
            elif each.value.lower().endswith((".p12", ".pfx")):
                self.say(each, Kind.LEFT_OUT, "files are PEM: 'openssl pkcs12 -nodes -in FILE -out FILE.pem'")
        return certificate.value, self.value("key", certificate.value)

    def towards_servers(self) -> None:
        self.options["tls-connect"] = "on"
        self.authorities("server-ca")
        chain, peer, _ = self.level()
        name, hosts = self.last("sni"), [*self.all("checkhost"), *self.all("checkip")]
        if not (chain or peer):
            self.options["verify-server"] = "off"
            self.say_of_all(
                Kind.WARNING,
                "stunnel did not verify the server, so this does not either: anybody in between can be it. "
                "Better take 'verify-server=off' away; 'server-ca=' names a CA that the system does not know",
            )
        elif hosts:
            self.check_name(hosts)
        else:
            asked = quote(name.value) if name and name.value else "the host that is dialled"
            text = f"the certificate must be for {asked}, stunnel compared no name; see 'server-name='"
            self.say_of_all(Kind.LOST, text)
        if name is not None and not name.value:
            self.say(name, Kind.LOST, "a name that is dialled is always sent; an address never is")
        elif name is not None and hosts and (chain or peer):
            if name.value != hosts[0].value:
                text = f"the server is asked for the name that is verified, {quote(hosts[0].value)}"
                self.say(name, Kind.LOST, text)
        elif name is not None:
            self.options["server-name"] = name.value
        if (certificate := self.last("cert")) is not None:
            self.options["client-cert"], self.options["client-key"] = self.pair(certificate)

    def check_name(self, hosts: list[Given]) -> None:
        """The first of the names that the server's certificate may be for; stricter than all of them."""
        first, *others = hosts
        # A backend's own host is verified without a word.
        if any(_host_and_port(each)[0] != first.value for each in self.places("connect")):
            self.options["server-name"] = first.value
            if ":" in first.value:
                self.say(first, Kind.LEFT_OUT, "'server-name=' has no IPv6 address; dial that address")
        for each in others:
            self.say(each, Kind.LOST, "a server has one name, the first one here")

    def versions(self) -> None:
        low = self.last("sslversionmin") or self.last("sslversion")
        high = self.last("sslversionmax") or self.last("sslversion")
        if low is not None:
            if low.value.lower() == "tlsv1.3":
                self.options["tls-min"] = "1.3"
            elif low.value.lower() in OLD and not (low.key == "sslversion" and low.value.lower() == "all"):
                self.say(low, Kind.LOST, "the least is 1.2; what is older is refused (RFC 8996)")
        if high is not None and high.value.lower() not in ("all", "tlsv1.3"):
            self.say(high, Kind.LOST, "there is no highest version but what both sides have")
        for each in self.all("options"):
            word = each.value.lower()
            if word == "no_tlsv1_2":
                self.options["tls-min"] = "1.3"
            elif word not in NO_MATTER:
                self.say(each, Kind.LOST, "OpenSSL's options are those that 'tls-min=' and 'ciphers=' say")
        if (ciphers := self.last("ciphers")) is not None:
            if "=" in ciphers.value:
                self.say(ciphers, Kind.LOST, "there can be no '=' in 'ciphers='; name the ciphers alone")
            else:
                self.options["ciphers"] = ":".join(ciphers.value.replace(",", " ").split())

    def protocol(self) -> None:
        given = self.last("protocol")
        if given is not None and given.value.lower() == "proxy":
            self.options["send-proxy"] = "v1"
        elif given is not None:
            text = "fastfwd speaks TLS from the first byte; take the port on which the protocol does that too"
            self.say(given, Kind.LEFT_OUT, text)
        given = self.last("transparent")
        value = "none" if given is None else given.value.lower()
        if value in ("source", "yes"):
            self.options["transparent"] = "on"
        elif given is not None and value not in ("none", "no"):
            text = "only the port that a client asked for is known here, see 'port=original'"
            self.say(given, Kind.LEFT_OUT, text)

    def addresses(self) -> None:
        places = self.places("connect")
        if len(places) > 1:
            self.options["balance"] = "roundrobin" if self.value("failover").lower() == "rr" else "first"
        elif self.value("failover").lower() == "rr" and places and not numeric(_host_and_port(places[0])[0]):
            self.say(
                self.last("failover") or self.given[0],
                Kind.LOST,
                "of a name with several addresses the first that works is dialled; 'dns-multi-ip-expand on' "
                "spreads connections over them, for all forwards",
            )
        if (given := self.last("local")) is not None:
            self.options["src"] = given.value
        for key in ("setuid", "setgid"):
            for each in self.all(key):
                self.say(
                    each, Kind.LOST, "the file belongs to who starts fastfwd; see 'mode=' for its rights"
                )

    def times(self, idle: int) -> None:
        for key, option in (("timeoutconnect", "connect-timeout"), ("timeoutbusy", "handshake-timeout")):
            given = self.last(key)
            if given is not None and (seconds := _seconds(given.value)):
                self.options[option] = str(seconds)
            elif given is not None:
                self.say(given, Kind.LOST, f"expected seconds, at least 1; '{option}=' is as without it")
        silence = self.last("timeoutidle")
        if silence is not None and not _seconds(silence.value):
            self.say(silence, Kind.LOST, f"expected seconds, at least 1; 'idle-timeout' is {IDLE}")
        if self.idle != idle:
            text = f"there is one 'idle-timeout' for all forwards, the longest: {idle} s, not {self.idle}"
            if silence is None:
                self.say_of_all(Kind.LOST, text)
            else:
                self.say(silence, Kind.LOST, text)

    def sockets(self) -> None:
        for each in self.all("socket"):
            side, _, rest = each.value.partition(":")
            name, _, value = (part.strip() for part in rest.partition("="))
            option = (side.strip().lower(), name.upper())
            if name.upper() in ("TCP_NODELAY", "SO_REUSEADDR"):
                if value.lower() in ("no", "0"):
                    self.say(each, Kind.LOST, "it is always on")
            elif name.upper() == "SO_KEEPALIVE" and value.lower() in SWITCHES:
                self.options["keepalive"] = SWITCHES[value.lower()]
            elif option == ("r", "SO_BINDTODEVICE"):
                self.options["device"] = value
            elif option == ("a", "SO_BINDTODEVICE"):
                self.say(each, Kind.LEFT_OUT, "listen on an address of that interface instead")
            elif option == ("r", "IP_FREEBIND") and value.lower() in SWITCHES:
                self.options["freebind"] = SWITCHES[value.lower()]
            elif option == ("r", "IP_TOS") and re.fullmatch("[0-9]{1,3}", value):
                self.options["dscp"] = str(int(value) >> 2)
            else:
                self.say(each, Kind.LOST, "sockets are as a forwarder needs them")

    def places(self, key: str) -> list[str]:
        return [each.value for each in self.all(key)]

    # Several certificates at one address.

    def join(self, services: dict[str | None, _Service]) -> None:
        """Give the primary service this one's certificate, if that is all in which they differ."""
        if self.primary is None:
            return
        name, _, pattern = self.primary.value.partition(":")
        primary = services.get(name.strip())
        if primary is None or primary.client:
            self.say(self.primary, Kind.LEFT_OUT, "there is no such server to be part of")
            return
        if not any(each.key == "accept" for each in self.section.given):
            self.given += primary.all("accept")
        if primary.places("connect") != self.places("connect") or primary.options != self.options:
            self.say(
                self.primary,
                Kind.LEFT_OUT,
                "by the name that a client asks for a certificate is chosen, not a backend or anything else; "
                "give it an address or a port of its own",
            )
        elif not self.left_out:
            self.joined = True
            new = [each for each in self.certificates if each not in primary.certificates]
            primary.certificates += new
            text = f"its certificate is one of {quote(primary.name)}'s, for the names that it is for"
            self.say(self.primary, Kind.WARNING, f"{text}, whether they match {quote(pattern)} or not")

    @property
    def left_out(self) -> bool:
        return any(each.kind is Kind.LEFT_OUT for each in self.remarks)

    def made(self) -> Made:
        """The forward, with what was said."""
        return Made(self.section, "" if self.joined else self.line(), self.remarks)

    def line(self) -> str:
        accept, places = self.last("accept"), self.places("connect")
        if accept is None or not places:
            if not self.left_out:
                which = "accept" if accept is None else "connect"
                self.say_of_all(Kind.LEFT_OUT, f"without '{which}' it is no forward")
            return ""
        listen = _unix(accept.value) or "{} {}".format(*_host_and_port(accept.value, "0.0.0.0"))
        ends = [_unix(each) or _host_and_port(each) for each in places]
        ports = list(dict.fromkeys(each[1] for each in ends if isinstance(each, tuple)))
        port = ports[0] if ports else ""
        backends = ",".join(_backend(each, port, alone=len(ends) == 1) for each in ends)
        made = {"name": self.name}
        if self.certificates:
            made["tls-accept"] = "on"
            made["cert"] = ";".join(certificate for certificate, _ in self.certificates)
            if any(certificate != key for certificate, key in self.certificates):
                made["key"] = ";".join(key for _, key in self.certificates)
        made |= self.options
        words = [key if key in FLAGS else f"{key}={value}" for key, value in made.items()]
        return " ".join(filter(None, (listen, backends, port, f"[{', '.join(words)}]")))


def _host_and_port(text: str, default: str = "localhost") -> tuple[str, str]:
    """The parts of `[HOST:]PORT`. The host may be an IPv6 address without brackets: the last colon counts."""
    host, _, port = (part.strip() for part in text.rpartition(":"))
    return host.removeprefix("[").removesuffix("]") or default, port


def _seconds(text: str) -> int:
    """A number of seconds; 0 if it is none."""
    return min(int(text), LONGEST) if re.fullmatch("[0-9]{1,10}", text) else 0


def _unix(text: str) -> str:
    return f"{UNIX}{text}" if text.startswith("/") else ""


def _backend(end: str | tuple[str, str], port: str, *, alone: bool) -> str:
    if isinstance(end, str):
        return end
    host = f"[{end[0]}]" if ":" in end[0] and not alone else end[0]
    return host if end[1] == port else f"{host}:{end[1]}"


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)
