"""Deadlines of connections: one look at all of them a few times a second, instead of a timer for each request."""

from __future__ import annotations

import asyncio
from typing import Protocol

# Deadlines are seconds; being late by this much is nothing, and a look at 10 000 connections takes milliseconds.
INTERVAL_S = 0.25
NEVER = float("inf")


class Mortal(Protocol):
    """What the reaper watches."""

    deadline: float

    def expired(self, now: float) -> None:
        """Called when the deadline has passed; sets a new one or closes."""


class Reaper:
    """Calls `expired` of every watched connection whose deadline has passed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: set[Mortal] = set()
        # The time of the last look, for deadlines: a clock that costs nothing to read.
        self.now = loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connection: Mortal) -> None:
        """Begin to look at a connection."""
        self._watched.add(connection)
        if self._timer is None:
            self.now = self._loop.time()
            self._timer = self._loop.call_later(INTERVAL_S, self._look)

    def forget(self, connection: Mortal) -> None:
        """Stop looking at a connection."""
        self._watched.discard(connection)

    def _look(self) -> None:
        self.now = now = self._loop.time()
        for connection in [one for one in self._watched if one.deadline <= now]:
            connection.expired(now)
        self._timer = self._loop.call_later(INTERVAL_S, self._look) if self._watched else None
