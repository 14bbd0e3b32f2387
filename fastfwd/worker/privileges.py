"""From root to nobody, for good. Called by every child right after its fork.

Order matters: the groups need root to be given up, and no_new_privs comes last. What
was dropped is verified, because a drop that silently failed is worse than none. A supervisor
that is not root, but was given capabilities (systemd.exec(5), AmbientCapabilities=), has
children of its own account without them. `drop` must never be called in the supervisor.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import struct
from dataclasses import dataclass
from typing import Final

from fastfwd.model import Config, Forward

PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
PR_SET_KEEPCAPS: Final = 8
PR_SET_NO_NEW_PRIVS: Final = 38
CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
NET_ADMIN: Final = 1 << 12
"""CAP_NET_ADMIN: what SO_MARK takes (socket(7))."""
NET_RAW: Final = 1 << 13
"""CAP_NET_RAW: the lesser of the two that IP_TRANSPARENT is content with (do_ip_setsockopt in the kernel's
net/ipv4/ip_sockglue.c; ip(7) names the greater one alone)."""

UNCOUNTED: Final = 1 << 21 | 1 << 24
"""CAP_SYS_ADMIN, CAP_SYS_RESOURCE: who has either may open any number of large pipes (pipe(7))."""

DEFAULT_USER: Final = "nobody"


class PrivilegeError(Exception):
    """Privileges could not be dropped; the process must not serve."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who a child becomes: `uid` and `gid`, None for those that it has. `capabilities` are the bits
    that it keeps (capabilities(7)), `given` those that it has before."""

    uid: int | None
    gid: int | None
    capabilities: int = 0
    given: int = 0


def account(config: Config) -> Account:
    """Who workers become: the account of the directives `user` and `group`, or our own if this process
    is not root; with what its forwards cannot do without. Raises KeyError for an unknown name."""
    given = permitted()
    if os.geteuid() != 0:
        return Account(None, None, capabilities(config) & given, given)
    entry = pwd.getpwnam(config.user or DEFAULT_USER)
    group = grp.getgrnam(config.group).gr_gid if config.group else entry.pw_gid
    return Account(entry.pw_uid, group, capabilities(config), given)


def needed(forward: Forward) -> dict[str, int]:
    """The options of a forward that need a right, each with that right."""
    found = {}
    if forward.mark is not None:
        found["mark"] = NET_ADMIN
    if forward.transparent:
        found["transparent"] = NET_RAW
    return found


def capabilities(config: Config) -> int:
    """The rights that workers need for a configuration's forwards."""
    kept = 0
    for forward in config.forwards:
        for right in needed(forward).values():
            kept |= right
    return kept


def drop(to: Account) -> None:
    """Become `to` and bar every way back. Raises PrivilegeError."""
    if to.uid is not None and to.gid is not None:
        if to.capabilities:
            _prctl("PR_SET_KEEPCAPS", PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
            os.setresgid(to.gid, to.gid, to.gid)
            os.setresuid(to.uid, to.uid, to.uid)
        except OSError as error:
            raise PrivilegeError(f"cannot become uid {to.uid}, gid {to.gid}: {error.strerror}") from error
        if os.getresuid() != (to.uid,) * 3 or os.getresgid() != (to.gid,) * 3 or os.getgroups():
            raise PrivilegeError(f"still uid {os.getresuid()}, gid {os.getresgid()}, groups {os.getgroups()}")
        if to.capabilities:
            _keep_only(to.capabilities)
    elif to.given:
        # The ambient ones go with the inheritable ones (capabilities(7)).
        _keep_only(to.capabilities)
        # As after a change of account: siblings have ours, and must not read our memory (ptrace(2)).
        _prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, 0)
    if to.uid != 0 and (held := permitted()) != to.capabilities:
        raise PrivilegeError(f"holding capabilities {held:#x}, not {to.capabilities:#x}")
    _prctl("PR_SET_NO_NEW_PRIVS", PR_SET_NO_NEW_PRIVS, 1)


def permitted() -> int:
    """The capabilities that this process may use."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def hide_memory(*, hidden: bool) -> None:
    """Whether other processes of this account, and those that it forks, are kept from its memory and
    descriptors (ptrace(2))."""
    _prctl("PR_SET_DUMPABLE", PR_SET_DUMPABLE, not hidden)


def _prctl(name: str, option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise PrivilegeError(f"{name}: {os.strerror(ctypes.get_errno())}")


def _keep_only(capabilities: int) -> None:
    """Have these effective and permitted, and no others (capset(2))."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFF_FFFF, capabilities >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data) != 0:
        raise PrivilegeError(f"cannot keep capabilities {capabilities:#x}: {os.strerror(ctypes.get_errno())}")
