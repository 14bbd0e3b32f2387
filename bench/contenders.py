"""Who is compared: how each contender is configured and started, and what it may be asked.

A scenario starts one through `Contender.start`, always as a fresh process: C rinetd
stays slow after it has once held many connections, and nobody should profit from
another measurement's caches. Every contender gets the same forwards and no logging
unless the scenario says otherwise.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import (
    HOST,
    INSIDE,
    cpu_seconds,
    installed,
    needed,
    proportional_memory,
    run,
    running,
)

MAX_SESSIONS = 9_000
"""What each is configured for: two descriptors each, and with a thousand listeners below the
hard limit of 20,000 that containers often have."""

DENIED_CLIENT = "127.1.0.1"
"""The last deny rule: an address of loopback from which only a check connects."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contender is to do: `forwards` are pairs of a port to listen on and a port to
    forward to, both on loopback, and `protocol`, "tcp" or "udp", is that of all of them; `log`
    is None or the name of a format ("tab", "common", "json", "tcplog"), written to the file
    `log` in the contender's directory; `denied` is a number of deny rules that match no client
    of a measurement; `reloadable` asks for the way of running in which a signal makes the
    program read its configuration again; `metrics` is the port of the exporter, which only
    fastfwd has. With `certificate`, a file that has one and its key, clients speak TLS; with
    `authority`, a file with the certificate that vouches for it, the targets do."""

    forwards: tuple[tuple[int, int], ...]
    protocol: str = "tcp"
    log: str | None = None
    denied: int = 0
    reloadable: bool = False
    metrics: int | None = None
    certificate: Path | None = None
    authority: Path | None = None

    def denied_patterns(self) -> list[str]:
        """What the deny rules name, in rinetd's form: by turns an address and a network of 256,
        from all over the address space, for rules with a common beginning are judged
        cheaply by some programs; DENIED_CLIENT is the last."""
        if not self.denied:
            return []
        chance = random.Random(self.denied)
        firsts = [first for first in range(1, 224) if first != 127]
        return [
            f"{chance.choice(firsts)}.{chance.randrange(256)}.{chance.randrange(256)}"
            f".{chance.randrange(256) if n % 2 else '*'}"
            for n in range(self.denied - 1)
        ] + [DENIED_CLIENT]

    def denied_networks(self) -> list[str]:
        """The same in CIDR notation."""
        return [pattern.replace(".*", ".0/24") for pattern in self.denied_patterns()]


Commands = list[list[str | Path]]


class Way:
    """A way to the backends while a measurement lasts: `ports` to connect to, one per forward,
    and what the contender's processes have used. There are none where the kernel does
    everything, whose price nobody can be asked for."""

    def __init__(self, ports: Sequence[int], pids: Sequence[int], directory: Path) -> None:
        self.ports = list(ports)
        self.pids = list(pids)
        self.directory = directory

    def cpu(self) -> float | None:
        """Processor seconds that the contender has used so far."""
        return sum(map(cpu_seconds, self.pids)) if self.pids else None

    def memory(self) -> int:
        """PSS of the contender's processes now, in bytes."""
        return sum(map(proportional_memory, self.pids))


@dataclass(frozen=True, slots=True)
class Contender:
    """`name` as on the command line, `title` as in a table; `family` is the program, of which
    there may be several contenders that differ in `threads` (workers, for fastfwd). `program`
    is what must be installed. `commands` writes what the program reads into a directory and
    answers with what to run there; `reload_signal` makes a program that was set up as
    `reloadable` read it again. `references` are the names of the contenders that its ratios
    are to, where they are measured too."""

    name: str
    title: str
    family: str
    threads: int
    program: str | None
    commands: Callable[[Path, Setup], Commands]
    version: Callable[[], str]
    reload_signal: signal.Signals = signal.SIGHUP
    references: tuple[str, ...] = ()

    def available(self) -> bool:
        """Whether its program is installed."""
        return self.program is None or installed(self.program) is not None

    @contextmanager
    def start(self, directory: Path, setup: Setup) -> Iterator[Way]:
        """A fresh process that serves `setup`, from when it listens; its files are in `directory`."""
        ports = [port for port, _ in setup.forwards]
        with ExitStack() as stack:
            commands = self.commands(directory, setup)
            each = [[port] for port in ports] if len(commands) > 1 else [ports]
            started = [
                stack.enter_context(running(command, directory, waited))
                for command, waited in zip(commands, each, strict=False)
            ]
            yield Way(ports, [process.pid for process in started], directory)

    def reload(self, way: Way, setup: Setup) -> None:
        """Write what `setup` says, and tell the running program to read it; it has only been
        told when this returns."""
        self.commands(way.directory, setup)
        os.kill(way.pids[0], self.reload_signal)


class Direct(Contender):
    """No forwarder at all: the client talks to the backend. An upper limit."""

    @contextmanager
    def start(self, directory: Path, setup: Setup) -> Iterator[Way]:
        """The way to the backends themselves."""
        yield Way([target for _, target in setup.forwards], [], directory)


class Translation(Contender):
    """The kernel's own forwarding: nftables translates the destination. What it costs is
    spent in whoever sends, so it has no processor time of its own."""

    def available(self) -> bool:
        """Whether there are rules to change: those of a namespace of our own, never the host's."""
        return INSIDE in os.environ and installed("nft") is not None

    @contextmanager
    def start(self, directory: Path, setup: Setup) -> Iterator[Way]:
        """Rules, taken away again afterwards: connection tracking would burden everybody else."""
        nft = needed("nft")
        rules = "".join(
            f"{setup.protocol} dport {port} redirect to :{target}\n" for port, target in setup.forwards
        )
        table = directory / "nft.conf"
        table.write_text(
            "table ip bench {\nchain output {\ntype nat hook output priority -100;\n"
            f"ip daddr {HOST} jump forwards\n}}\nchain forwards {{\n{rules}}}\n}}\n"
        )
        run([nft, "-f", table], 1)
        try:
            yield Way([port for port, _ in setup.forwards], [], directory)
        finally:
            run([nft, "delete", "table", "ip", "bench"], 1)


def nothing(directory: Path, setup: Setup) -> Commands:
    """For the ways that need no process."""
    return []


def fastfwd(workers: int) -> Callable[[Path, Setup], Commands]:
    """fastfwd of this checkout with `workers` workers."""

    def commands(directory: Path, setup: Setup) -> Commands:
        text = f"workers {workers}\n" + rinetd_lines(directory, setup)
        if setup.log == "json":
            text += f"logfile {directory}/log\nlogformat json\n"
        if setup.metrics is not None:
            text += f"metrics {HOST}:{setup.metrics}\n"
        (directory / "fastfwd.conf").write_text(text)
        return [[sys.executable, "-m", "fastfwd", "-f", "-c", directory / "fastfwd.conf"]]

    return commands


def rinetd_lines(directory: Path, setup: Setup) -> str:
    """The part of a configuration that both C rinetd and fastfwd read."""
    lines = [f"pidlogfile {directory}/pid"]
    lines += [f"deny {pattern}" for pattern in setup.denied_patterns()]
    suffix = "/udp" if setup.protocol == "udp" else ""
    options = ""
    if setup.certificate:
        options = f" [tls-accept, cert={setup.certificate}, tls-min=1.3]"
    if setup.authority:
        options = f" [tls-connect, server-ca={setup.authority}, tls-min=1.3]"
    lines += [f"{HOST} {port}{suffix} {HOST} {target}{suffix}{options}" for port, target in setup.forwards]
    if setup.log in {"tab", "common"}:
        lines.append(f"logfile {directory}/log")
    if setup.log == "common":
        lines.append("logcommon")
    return "\n".join(lines) + "\n"


def rinetd(directory: Path, setup: Setup) -> Commands:
    """C rinetd."""
    (directory / "rinetd.conf").write_text(rinetd_lines(directory, setup))
    return [[needed("rinetd"), "-f", "-c", directory / "rinetd.conf"]]


def haproxy(threads: int, splicing: bool = False) -> Callable[[Path, Setup], Commands]:
    """HAProxy as a TCP proxy. Left to itself it splices when its heuristics see a long stream
    (`splice-auto`), which may be never: over loopback 2.6 copies 16 KiB at a time. With
    `splicing` it always does, small messages too, through the largest pipes that the
    kernel gives everybody.

    Everything else is as it comes: the manual gives `shards` for very many threads only,
    and larger buffers would be paid for by every connection.

    Logs go to its standard output, which is a file: the cheapest of its ways, for no
    other process reads them. Deny rules are a list in a file, which it keeps in a tree. A
    reload in the master-worker mode hands the listeners over to the new process.
    """

    def commands(directory: Path, setup: Setup) -> Commands:
        choice = "option splice-auto"
        if splicing:
            choice = "option splice-request\n    option splice-response"
        text = f"""
global
    nbthread {threads}
    maxconn {MAX_SESSIONS}
    maxpipes 200
    {"tune.pipesize 1048576" if splicing else ""}
    {"log stdout format raw daemon" if setup.log else ""}
defaults
    mode tcp
    {choice}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    {"log global" if setup.log else ""}
    {"option tcplog" if setup.log else ""}
"""
        rule = ""
        if setup.denied:
            (directory / "denied").write_text("\n".join(setup.denied_networks()) + "\n")
            rule = f"    tcp-request connection reject if {{ src -f {directory}/denied }}\n"
        bind, server = "backlog 4096", ""
        if setup.certificate:
            bind += f" ssl crt {setup.certificate} ssl-min-ver TLSv1.3"
        if setup.authority:
            server = f" ssl verify required ca-file {setup.authority} ssl-min-ver TLSv1.3"
        for port, target in setup.forwards:
            text += (
                f"listen {port}\n    bind {HOST}:{port} {bind}\n{rule}    server s {HOST}:{target}{server}\n"
            )
        (directory / "haproxy.cfg").write_text(text)
        if setup.log:
            (directory / "log").symlink_to("said")
        mode = "-W" if setup.reloadable else "-db"
        return [[needed("haproxy"), mode, "-f", directory / "haproxy.cfg"]]

    return commands


def nginx_stream(directory: Path, setup: Setup) -> Commands:
    """nginx as a proxy with its own defaults: one process, with a master before it only if it is to
    be reloaded. `deny` is the stream module's own way to refuse a client; it goes through the
    list. A flow of datagrams lasts until it has been silent for `proxy_timeout`, for neither
    `proxy_responses` nor `proxy_requests` ends it before; `multi_accept` has all datagrams read
    that are there, which spares nginx a fifth of its processor time."""
    udp = setup.protocol == "udp"
    listen = "udp reuseport" if udp else "backlog=4096"
    servers = "".join(
        f"server {{ listen {HOST}:{port} {listen}; proxy_pass {HOST}:{target}; }}\n"
        for port, target in setup.forwards
    )
    denied = "".join(f"deny {network};\n" for network in setup.denied_networks())
    master = "on" if setup.reloadable else "off"
    (directory / "nginx.conf").write_text(f"""
        load_module {NGINX_STREAM};
        daemon off; master_process {master}; pid {directory}/pid; error_log stderr crit;
        worker_rlimit_nofile {2 * MAX_SESSIONS + 500};
        events {{ worker_connections {2 * MAX_SESSIONS + 100}; {"multi_accept on;" if udp else ""} }}
        stream {{ access_log off; proxy_timeout 1h; proxy_connect_timeout 10s; {denied} {servers} }}""")
    return [[needed("nginx"), "-e", "stderr", "-c", directory / "nginx.conf"]]


NGINX_STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"


class NginxStream(Contender):
    """nginx, whose stream module is a package of its own."""

    def available(self) -> bool:
        """Whether the program and the module are there."""
        return installed("nginx") is not None and Path(NGINX_STREAM).exists()


def socat(directory: Path, setup: Setup) -> Commands:
    """socat, which forks for every connection; one process per forward."""
    program = needed("socat")
    return [
        [program, f"TCP4-LISTEN:{port},bind={HOST},fork,reuseaddr,backlog=4096", f"TCP4:{HOST}:{target}"]
        for port, target in setup.forwards
    ]


def stunnel(directory: Path, setup: Setup) -> Commands:
    """stunnel as a server or as a client, which has a thread for every connection."""
    if setup.authority:
        ours = f"client = yes\nCAfile = {setup.authority}\nverifyChain = yes\n"
    else:
        ours = f"cert = {setup.certificate}\n"
    text = "foreground = yes\npid =\nsyslog = no\ndebug = crit\nsslVersionMin = TLSv1.3\n"
    for port, target in setup.forwards:
        text += f"[{port}]\naccept = {HOST}:{port}\nconnect = {HOST}:{target}\n{ours}"
    (directory / "stunnel.conf").write_text(text)
    return [[needed("stunnel4"), directory / "stunnel.conf"]]


def hitch(directory: Path, setup: Setup) -> Commands:
    """hitch with one worker, which is not root: it knows one backend, so there is one process per
    forward."""
    commands: Commands = []
    for port, target in setup.forwards:
        path = directory / f"hitch-{port}.conf"
        path.write_text(f"""
            frontend = "[{HOST}]:{port}"
            backend = "[{HOST}]:{target}"
            pem-file = "{setup.certificate}"
            workers = 1
            backlog = 4096
            tls-protos = TLSv1.3
            daemon = off
            syslog = off
            log-level = 0
            {"" if os.geteuid() else 'user = "nobody"'}
        """)
        commands.append([needed("hitch"), f"--config={path}"])
    return commands


def said(pattern: str, *command: str) -> Callable[[], str]:
    """A function that finds `pattern`'s first group in what `command` says of itself."""

    def version() -> str:
        program = installed(command[0])
        if program is None:
            return "not installed"
        done = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        found = re.search(pattern, done.stdout + done.stderr)
        return found[1] if found else "unknown"

    return version


def own_version() -> str:
    """fastfwd's version, and the commit if this is a checkout; `-dirty` where the program differs
    from that. (The bench's own results, written meanwhile, do not count.)"""
    number = run([sys.executable, "-m", "fastfwd", "-v"], 1).split()[-1]
    try:
        commit = run([needed("git"), "describe", "--always"], 1).strip()
        changed = run([needed("git"), "status", "--porcelain", "--", "fastfwd"], 1).strip()
    except RuntimeError:
        return number
    return f"{number} ({commit}{'-dirty' if changed else ''})"


def kernel() -> str:
    """The kernel's release."""
    return Path("/proc/sys/kernel/osrelease").read_text().strip()


rinetd_version = said(r"rinetd ([0-9.]+)", "rinetd", "-v")
haproxy_version = said(r"version ([0-9.]+)", "haproxy", "-v")
nginx_version = said(r"nginx/([0-9.]+)", "nginx", "-v")


def an_haproxy(threads: int, splicing: bool = False) -> Contender:
    """HAProxy with that many threads, splicing always or as it thinks fit."""
    name = f"haproxy{'+splice' * splicing}-{threads}"
    title = f"HAProxy, {threads} thread{'s' * (threads > 1)}{', always splicing' * splicing}"
    return Contender(
        name,
        title,
        "haproxy",
        threads,
        "haproxy",
        haproxy(threads, splicing),
        haproxy_version,
        reload_signal=signal.SIGUSR2,
    )


def a_fastfwd(workers: int) -> Contender:
    """fastfwd with that many workers, to stand beside as many threads."""
    return Contender(
        f"fastfwd-{workers}",
        f"fastfwd, {workers} worker{'s' * (workers > 1)}",
        "fastfwd",
        workers,
        None,
        fastfwd(workers),
        own_version,
        references=("rinetd", "stunnel", "hitch", f"haproxy-{workers}", f"haproxy+splice-{workers}"),
    )


CONTENDERS: dict[str, Contender] = {
    each.name: each
    for each in (
        Direct("direct", "direct", "direct", 0, None, nothing, kernel),
        Translation(
            "dnat", "nftables DNAT", "dnat", 0, "nft", nothing, said(r"v([0-9.]+)", "nft", "--version")
        ),
        Contender("rinetd", "C rinetd", "rinetd", 1, "rinetd", rinetd, rinetd_version),
        an_haproxy(1),
        an_haproxy(1, splicing=True),
        an_haproxy(2),
        an_haproxy(2, splicing=True),
        an_haproxy(4),
        NginxStream("nginx", "nginx stream", "nginx", 1, "nginx", nginx_stream, nginx_version),
        Contender("socat", "socat", "socat", 1, "socat", socat, said(r"version ([0-9.]+)", "socat", "-V")),
        Contender(
            "stunnel",
            "stunnel",
            "stunnel",
            1,
            "stunnel4",
            stunnel,
            said(r"stunnel ([0-9.]+)", "stunnel4", "-version"),
        ),
        Contender(
            "hitch", "hitch", "hitch", 1, "hitch", hitch, said(r"hitch ([0-9.]+)", "hitch", "--version")
        ),
        a_fastfwd(1),
        a_fastfwd(2),
        a_fastfwd(4),
    )
}
"""By name, in the order of the tables."""

SPLICING = ("haproxy+splice-1", "haproxy+splice-2")
"""Who is besides in scenarios in which it matters how bytes are moved."""

USUAL = ("direct", "dnat", "rinetd", "haproxy-1", "haproxy-2", "nginx", "fastfwd-1", "fastfwd-2")
"""Who is in most scenarios."""

ENCRYPTING = ("stunnel", "hitch", "haproxy-1", "haproxy-2", "fastfwd-1", "fastfwd-2")
"""Who is in scenarios of TLS."""
