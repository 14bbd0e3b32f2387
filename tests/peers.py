"""Programs and rights that a test needs from its machine.

A machine without them skips the test; a machine that must have them all (the
continuous integration) sets FASTFWD_REQUIRE_PEERS=1, and the same test fails.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Daemons live in sbin, which a user's PATH often leaves out."""


def require_peer(name: str) -> str:
    """Path of the installed program `name`; without it the test is skipped (or fails, see above)."""
    path = shutil.which(name, path=SYSTEM_PATH)
    if path is None:
        lack(f"{name} is not installed")
    return path


def require_root() -> None:
    """Skip (or fail) unless the tests run as root."""
    if os.geteuid() != 0:
        lack("needs root")


def lack(reason: str) -> NoReturn:
    """End the test because the machine lacks something."""
    if os.environ.get("FASTFWD_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
