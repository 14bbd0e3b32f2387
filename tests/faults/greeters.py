"""Clients that shake hands and leave, from a process of their own.

    with apart("tests.faults.greeters", HOST, port, authority.file, 200) as process:
        ...
        tell(process, "stop")
        done, failed, seconds = json.loads(said(process))

As many per second as asked for, one after the other, each with a handshake of its own and close_notify.
"""

from __future__ import annotations

import json
import select
import ssl
import sys
import time

from tests.apart import say
from tests.certificates import NAME, greeted, say_end
from tests.sockets import Address, connect


def greet(address: Address, authority: str, rate: int) -> tuple[int, int, float]:
    """Until a line comes on stdin: how many have done so, how many have failed, in how many seconds."""
    context = ssl.create_default_context(cafile=authority)
    done = failed = 0
    began = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, began + done / rate - time.monotonic()))[0]:
        try:
            with greeted(connect(address), context, NAME) as client:
                say_end(client)
        except OSError:
            failed += 1
        done += 1
    return done, failed, time.monotonic() - began


if __name__ == "__main__":
    say(json.dumps(greet((sys.argv[1], int(sys.argv[2])), sys.argv[3], int(sys.argv[4]))))
