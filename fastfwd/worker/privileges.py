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
from dataclasses import dataclass
from typing import Final

PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
DEFAULT_USER: Final = "nobody"


class PrivilegeError(Exception):
    """Privileges could not be dropped; the process must not serve."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who a child becomes."""

    uid: int
    gid: int


def account(user: str | None, group: str | None) -> Account | None:
    """The account for the directives `user` and `group`, or None when this process is not
    root and stays what it is. Raises KeyError for an unknown name."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam(user or DEFAULT_USER)
    return Account(entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid)


def drop(to: Account | None) -> None:
    """Become `to` (None: keep the account) and bar every way back. Raises PrivilegeError."""
    if to is not None:
        try:
            os.setgroups([])
            os.setresgid(to.gid, to.gid, to.gid)
            os.setresuid(to.uid, to.uid, to.uid)
        except OSError as error:
            raise PrivilegeError(f"cannot become uid {to.uid}, gid {to.gid}: {error.strerror}") from error
        if os.getresuid() != (to.uid,) * 3 or os.getresgid() != (to.gid,) * 3 or os.getgroups():
            raise PrivilegeError(f"still uid {os.getresuid()}, gid {os.getresgid()}, groups {os.getgroups()}")
        if to.uid != 0 and (held := _effective_capabilities()):
            raise PrivilegeError(f"still holding capabilities {held:#x}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0
