"""What the process asks of its host once: limits, the background, the system log.

cli and supervisor/main call these. None of them knows the configuration.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import syslog
from collections.abc import Callable

LEVELS = {
    logging.CRITICAL: syslog.LOG_CRIT,
    logging.ERROR: syslog.LOG_ERR,
    logging.WARNING: syslog.LOG_WARNING,
    logging.INFO: syslog.LOG_INFO,
}


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; children inherit it. Returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def ephemeral_ports() -> range:
    """The ports the kernel takes for outgoing connections (ip(7), ip_local_port_range)."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as sysctl:
            first, last = sysctl.read().split()
    except (OSError, ValueError):
        return range(1, 65536)  # unknown: any port may be one
    return range(int(first), int(last) + 1)


def usable_processors() -> int:
    """Processors this process may run on, which a container or taskset can limit."""
    return len(os.sched_getaffinity(0))


def occupy_stdio() -> None:
    """Open whichever of descriptors 0 to 2 the starter has closed. A socket that got such a
    number would later be taken for a terminal and replaced."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def detach() -> Callable[[], None]:
    """Go to the background. Returns in the new process only; what it returns must be
    called once everything works: until then the shell waits, and sees this process's
    messages and, if it dies first, its exit status."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writer)
        if os.read(reader, 1):
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF or 1)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        let_go()
        os.write(writer, b"+")
        os.close(writer)

    return ready


def let_go() -> None:
    """Keep nothing of whoever started us: no terminal, no pipe that a shell reads to its
    end, no directory that could not be unmounted."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def speak_on(descriptor: int) -> None:
    """Have `descriptor` as standard error, instead of what is it now."""
    os.dup2(descriptor, 2)
    os.close(descriptor)


def printable(text: str) -> str:
    """`text` with control characters escaped: nobody else must forge lines in our log."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class SyslogHandler(logging.Handler):
    """Messages to syslog(3), facility daemon."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("fastfwd", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` with its priority."""
        syslog.syslog(LEVELS.get(record.levelno, syslog.LOG_NOTICE), self.format(record))


def log_to_stderr() -> logging.Handler:
    """A handler for the foreground: one line per message, `fastfwd: ` before it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fastfwd: %(message)s"))
    return handler
