"""The backend of datagrams: sends each back to whoever it came from, `python -m bench.echo PORT`.

lab starts it, and ends it by a signal.
"""

from __future__ import annotations

import sys

from bench.mmsg import Batch, opened
from bench.processes import HOST

BATCH = 256
"""Datagrams that one system call takes at most."""


def main() -> None:
    """Until a signal ends it."""
    batch = Batch(BATCH)
    with opened() as sock:
        sock.bind((HOST, int(sys.argv[1])))
        while True:
            batch.send(sock, 0, batch.receive(sock))


if __name__ == "__main__":
    main()
