"""A configuration with everything that was opened and decided for it.

supervisor/main makes the first one, supervisor/reload one per reload; a worker's table
is made from it. The commit turns it into what serves.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from fastfwd.model import Config
from fastfwd.observe.rows import Key
from fastfwd.supervisor.listeners import Place
from fastfwd.supervisor.metrics import Opened


@dataclass(slots=True)
class Setup:
    """`numbers` are the rows of the scoreboard in use; `opened` the groups of listeners that
    are not held yet, `metrics` what MetricsPort has opened: both empty after the commit."""

    config: Config
    places: list[Place]
    numbers: dict[Key, int]
    generation: int
    log_descriptor: int | None = None
    opened: dict[str, list[socket.socket]] = field(default_factory=dict)
    metrics: Opened | None = None
