"""Host names and numeric addresses: the only part of `config` that asks DNS or the host's own interfaces.

The numeric half is pure and serves check, diff and forward. `lookup` blocks for
as long as the name service likes, so it belongs to start-up and to the resolver
process; it must never be called by a loop that serves clients.
"""

from __future__ import annotations

import re
import socket
from typing import Final

from fastfwd.model import UNIX, Address, Config, Origin, Problem

LOOKUPS: Final = 64
"""Names that are looked up at the same time."""

_DOTTED = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


class Unresolvable(Exception):  # noqa: N818  # it says what the name is, as the callers read it
    """A name without an address.

    `host` is the name, `reason` the name service's words. `definitive` says that
    the name does not exist (EAI_NONAME, EAI_NODATA); otherwise nobody could tell,
    and asking again later may help (EAI_AGAIN, EAI_SYSTEM, ...).
    """

    def __init__(self, host: str, reason: str, definitive: bool) -> None:
        super().__init__(f"cannot resolve host {host!r}: {reason}")
        self.host = host
        self.reason = reason
        self.definitive = definitive


def numeric(host: str) -> Address | None:
    """The address that `host` spells without a name service, or None when it is a name.

    Args:
        host: as in a forward, square brackets already taken off. `0` is 0.0.0.0, as
            in rinetd(8); a dotted number with a leading 0 is octal, as in inet_aton(3);
            `unix:PATH` is a socket of this host.
    """
    if host.startswith(UNIX):
        return Address(socket.AF_UNIX, host.removeprefix(UNIX))
    if host == "0":
        return Address(socket.AF_INET, "0.0.0.0")
    try:
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host)
            return Address(socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, packed))
        if _DOTTED.fullmatch(host):
            return Address(socket.AF_INET, socket.inet_ntoa(socket.inet_aton(host)))
    except (OSError, ValueError):  # ValueError: a character that no address has
        pass
    return None


def lookup(host: str) -> list[Address]:
    """Every address of `host` in the order of getaddrinfo(3), each once. Blocks.

    Raises:
        Unresolvable: there is no such name, or it could not be asked for.
    """
    try:
        # Bytes: a str would make Python import its IDNA tables, and the grammar has only ASCII names.
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Unresolvable(host, error.strerror or str(error), error.errno in _NO_SUCH_NAME) from None
    except UnicodeEncodeError:
        raise Unresolvable(host, "not an ASCII name", True) from None
    return list(dict.fromkeys(Address(int(family), str(peer[0])) for family, _, _, _, peer in found))


def meanings(config: Config) -> tuple[dict[str, list[Address]], list[Problem], list[Problem]]:
    """The addresses of every name in a configuration, what is wrong with those that have none, and of which
    of them nobody could tell: that is no error, if they are only dialled. Blocks."""
    # Here, because only who checks a configuration looks up all of it.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    bind, dial = hosts(config)
    origins: dict[str, Origin] = {}
    for forward in config.forwards:
        for name in (forward.listen.host, *sorted(forward.hosts)):
            if name in bind | dial:
                origins.setdefault(name, forward.origin)
    # All at once: a name server that does not answer costs ten seconds, and not for each of them.
    with ThreadPoolExecutor(LOOKUPS) as threads:
        answers = {name: threads.submit(lookup, name) for name in origins}
    found: dict[str, list[Address]] = {}
    problems: list[Problem] = []
    doubts: list[Problem] = []
    for name, answer in answers.items():
        try:
            found[name] = answer.result()
        except Unresolvable as error:
            found[name] = []
            said = f"expected a host that can be resolved, found '{name}': {error.reason}"
            known = error.definitive or name in bind
            (problems if known else doubts).append(Problem(origins[name], said))
    return found, problems, doubts


def hosts(config: Config) -> tuple[set[str], set[str]]:
    """The names that need `lookup`: those that forwards bind, and those they dial or dial from."""
    bind = {forward.listen.host for forward in config.forwards}
    dial = {host for forward in config.forwards for host in forward.hosts}
    return {host for host in bind if numeric(host) is None}, {host for host in dial if numeric(host) is None}


def is_local(address: Address) -> bool:
    """Whether a packet to `address` stays on this host: it is one of its own, or loopback.

    An address is ours when a socket can be bound to it, unless the sysctl
    ip_nonlocal_bind lets any address be bound. Then the source that the kernel
    picks towards the address decides; that misses secondary addresses of an
    interface (their source is the primary one), and never takes a foreign one for ours.
    """
    with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address.text, 0))
        except OSError:
            return False
    return not _binds_anything(address.family) or _is_own_source(address)


def _binds_anything(family: int) -> bool:
    version = "ipv6" if family == socket.AF_INET6 else "ipv4"
    try:
        with open(f"/proc/sys/net/{version}/ip_nonlocal_bind", "rb") as sysctl:
            return sysctl.read().strip() == b"1"
    except OSError:
        return False


def _is_own_source(address: Address) -> bool:
    if address.text.startswith("127."):
        return True
    with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address.text, 9))  # UDP: picks the route, sends nothing
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address.text)
