"""The command `fastfwd-stunnel2conf`: a stunnel.conf in, a configuration out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastfwd import __version__
from fastfwd.stunnel.read import read
from fastfwd.stunnel.translate import translated


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `fastfwd-stunnel2conf`: the configuration to standard output, remarks to standard
    error too. Exit status: 0 everything was translated, 1 something was not, 2 wrong usage, or
    a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog="fastfwd-stunnel2conf",
        description="Write a stunnel.conf's services as fastfwd's forwards, and say what cannot be said.",
    )
    parser.add_argument("file", metavar="FILE", help="configuration of stunnel 4 or 5")
    parser.add_argument("-v", "--version", action="version", version=f"fastfwd {__version__}")
    file = parser.parse_args(arguments).file
    try:
        result = translated(*read(file))
    except OSError as error:
        sys.stderr.write(f"{parser.prog}: {error.filename}: {error.strerror}\n")
        return 2
    for remark in result.all_remarks():
        sys.stderr.write(f"{parser.prog}: {remark.origin}: {remark}\n")
    sys.stdout.write(result.text())
    return 0 if result.complete else 1
