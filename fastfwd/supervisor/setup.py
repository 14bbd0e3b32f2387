"""A configuration with everything that was opened and decided for it.

supervisor/main makes the first one, supervisor/reload one per reload; a worker's table
is made from it. The commit turns it into what serves.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from fastfwd.model import Config, ConfigError
from fastfwd.observe.rows import Key
from fastfwd.supervisor.listeners import Listeners, Place, close
from fastfwd.supervisor.metrics import MetricsPort, Opened, discard


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

    def open(self, listeners: Listeners, metrics: MetricsPort) -> None:
        """Open what it needs and is not held yet, all or nothing. Raises ConfigError with every
        line that asks for what cannot be had."""
        problems = []
        try:
            self.opened = listeners.open(self.places, self.config.backlog)
        except ConfigError as error:
            problems += error.problems
        try:
            self.metrics = metrics.open(self.config)
        except ConfigError as error:
            problems += error.problems
        if problems:
            self.drop()
            raise ConfigError(sorted(problems, key=lambda problem: problem.origin.line))

    def drop(self) -> None:
        """Undo the opening of what is not wanted after all."""
        discard(self.metrics)
        self.abandon()

    def abandon(self) -> None:
        """Close what was opened, and nothing else: this may be a new child."""
        close(self.opened)
        if self.metrics is not None and self.metrics.sock is not None:
            self.metrics.sock.close()
        if self.log_descriptor is not None:
            os.close(self.log_descriptor)
        self.opened, self.metrics, self.log_descriptor = {}, None, None
