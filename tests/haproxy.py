"""HAProxy in the place of fastfwd: forwards in rinetd's language -> haproxy.cfg.

Only what the campaign's rows for it have: forwards, `src=`, `workers`, `connect-timeout` and
`idle-timeout`. Whatever else there is is an error, so that no row compares less than it says.

The rest is what its manual recommends for the same task, in every row alike: it chooses `maxconn` by
the limit of descriptors itself; keepalive is on, as in fastfwd; a connection to the only server
there is is tried once (`retries 0`), as fastfwd and rinetd do. `option nolinger`, which would make its
ends resets, the manual strongly advises against: it makes them of clean ends too.
"""

from __future__ import annotations

import signal
from pathlib import Path

GLOBAL = """\
global
    nbthread {threads}
    hard-stop-after 1h
    log stdout format raw daemon
defaults
    mode tcp
    {log}
    backlog 4096
    retries 0
    option splice-auto
    option tcpka
    clitcpka-idle 60s
    srvtcpka-idle 60s
    timeout connect {connect}s
    timeout client {idle}s
    timeout server {idle}s
"""

LISTEN = """\
listen {bind}
    bind {bind}
    server backend {target} {source}
"""


def translated(text: str, threads: int, log: bool) -> str:
    """haproxy.cfg for a configuration; `threads` unless it has `workers`; with `log`, a line for every
    session goes to its standard output."""
    connect, idle, listens = "10", "3600", []
    for line in text.splitlines():
        match line.split():
            case []:
                pass
            case ["workers", count]:
                threads = int(count)
            case ["connect-timeout", connect]:
                pass
            case ["idle-timeout", idle]:
                pass
            case [host, port, target, target_port, *options] if port.isdigit() and target_port.isdigit():
                bind = f"{bracketed(host)}:{port}"
                listens.append(
                    LISTEN.format(
                        bind=bind,
                        target=f"{bracketed(target)}:{target_port}",
                        source=source("".join(options), line),
                    )
                )
            case _:
                raise ValueError(f"this has no translation for HAProxy: {line!r}")
    head = GLOBAL.format(
        threads=threads, connect=connect, idle=idle, log="log global\n    option tcplog" if log else ""
    )
    return head + "".join(listens)


def bracketed(host: str) -> str:
    """The host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def source(options: str, line: str) -> str:
    """A forward's `[src=ADDRESS]`, the only option there is, for its server."""
    if not options:
        return ""
    name, _, address = options.removeprefix("[").removesuffix("]").partition("=")
    if name != "src":
        raise ValueError(f"this has no translation for HAProxy: {line!r}")
    return f"source {address}"


def obeys(pid: int) -> bool:
    """Whether the master would take a SIGUSR2 (proc(5), status): one that comes while it starts, or while
    a reload makes it start anew, is lost."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << signal.SIGUSR2 - 1)
