"""How many chunks are in flight: fewer when a server has too much to do, more again when it has not.

Additive increase, multiplicative decrease, as TCP has it (Chiu and Jain 1989): each round of answers adds one, a refusal halves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """A bound on what is in flight, between 1 and `most`, that follows what becomes of it. Shared by threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bound = float(most)
        self._in_flight = 0
        self._round = 0
        self._condition = threading.Condition()

    @property
    def bound(self) -> int:
        """How many may be in flight now."""
        return int(self._bound)

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a place in flight; gives the round, to be handed to `refused`."""
        with self._condition:
            self._condition.wait_for(lambda: self._in_flight < self.bound)
            self._in_flight += 1
            current = self._round
        try:
            yield current
        finally:
            with self._condition:
                self._in_flight -= 1
                self._condition.notify()

    def answered(self) -> None:
        """One was answered well."""
        with self._condition:
            before = self.bound
            self._bound = min(self._most, self._bound + 1 / self._bound)
            if self.bound > before:
                self._condition.notify()

    def refused(self, sent_in: int) -> None:
        """One was refused for lack of capacity; what was sent before the last fall says nothing new."""
        with self._condition:
            if sent_in == self._round:
                self._round += 1
                self._bound = max(1.0, self._bound / 2)
