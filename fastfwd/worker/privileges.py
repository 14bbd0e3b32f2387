"""From root to nobody, for good. Called by every child right after its fork.

Order matters: the groups need root to be given up, and no_new_privs comes last. What
was dropped is verified, because a drop that silently failed is worse than none. It
must never be called in the supervisor.
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

PR_SET_KEEPCAPS: Final = 8  # linux/prctl.h
PR_SET_NO_NEW_PRIVS: Final = 38
CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
NET_ADMIN: Final = 1 << 12
"""CAP_NET_ADMIN: what SO_MARK takes (socket(7))."""
NET_RAW: Final = 1 << 13
"""CAP_NET_RAW: the lesser of the two that IP_TRANSPARENT is content with (do_ip_setsockopt in the kernel's
net/ipv4/ip_sockglue.c; ip(7) names the greater one alone)."""

DEFAULT_USER: Final = "nobody"


class PrivilegeError(Exception):
    """Privileges could not be dropped; the process must not serve."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who a child becomes. `capabilities` are the bits that it keeps (capabilities(7))."""

    uid: int
    gid: int
    capabilities: int = 0


def account(config: Config) -> Account | None:
    """Who workers become: the account of the directives `user` and `group`, with what its forwards
    cannot do without; None when this process is not root and stays what it is. Raises
    KeyError for an unknown name."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(config.user or DEFAULT_USER)
    group = grp.getgrnam(config.group).gr_gid if config.group else entry.pw_gid
    return Account(entry.pw_uid, group, capabilities(config))


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


def drop(to: Account | None) -> None:
    """Become `to` (None: keep the account) and bar every way back. Raises PrivilegeError."""
    if to is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if to.capabilities and libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) != 0:
            raise PrivilegeError(f"PR_SET_KEEPCAPS: {os.strerror(ctypes.get_errno())}")
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
        if to.uid != 0 and (held := _effective_capabilities()) != to.capabilities:
            raise PrivilegeError(f"holding capabilities {held:#x}, not {to.capabilities:#x}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")


def _keep_only(capabilities: int) -> None:
    """Have these effective and permitted, and no others (capset(2))."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFF_FFFF, capabilities >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data) != 0:
        raise PrivilegeError(f"cannot keep capabilities {capabilities:#x}: {os.strerror(ctypes.get_errno())}")


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
