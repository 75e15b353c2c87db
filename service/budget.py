"""The bytes in flight: reserved before a body is read, released when its answer has left."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.errors import Overloaded

# What a caller who finds no room is told to wait, in seconds.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 1.0, 30.0
# Half of the rate that is remembered is younger than this.
_MEMORY_S = 2.0


class Budget:
    """A number of bytes that calls share. Used on the event loop only, so it needs no lock."""

    def __init__(self, limit_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_bytes = limit_bytes
        self.in_flight_bytes = 0
        self._clock = clock
        self._looked_at = clock()
        self._released_bytes = 0
        self._bytes_per_s = 0.0

    def reserve(self, nbytes: int) -> None:
        """Take `nbytes`, or raise `Overloaded` when they do not fit beside what is in flight."""
        if self.in_flight_bytes + nbytes > self.limit_bytes:
            raise Overloaded(
                f"{self.in_flight_bytes} bytes are in flight and this call needs {nbytes}; allowed: {self.limit_bytes} at once",
                retry_after_s=self._wait_s(self.in_flight_bytes + nbytes - self.limit_bytes),
            )
        self.in_flight_bytes += nbytes

    def passes(self, nbytes: int) -> bool:
        """Whether `nbytes` fit beside what is in flight, for a call that is answered before anything else happens.

        If so they are counted, as if they had been reserved and released.
        """
        fit = self.in_flight_bytes + nbytes <= self.limit_bytes
        if fit:
            self._released_bytes += nbytes
        return fit

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        self.in_flight_bytes -= nbytes
        self._released_bytes += nbytes
        assert self.in_flight_bytes >= 0

    def look(self) -> None:
        """Measure how fast bytes are released while there is no room to waste; called several times a second.

        What a server with little to do releases says how much it is asked, not how much it can do.
        """
        now = self._clock()
        elapsed_s = now - self._looked_at
        if elapsed_s <= 0:
            return
        if self.in_flight_bytes + self._released_bytes > self.limit_bytes / 2:
            kept = 0.5 ** (elapsed_s / _MEMORY_S)
            self._bytes_per_s = kept * self._bytes_per_s + (1 - kept) * self._released_bytes / elapsed_s
        self._released_bytes = 0
        self._looked_at = now

    def _wait_s(self, missing_bytes: int) -> float:
        """How long it takes, as fast as it went lately, until there is room."""
        if not self._bytes_per_s:
            return _SHORTEST_WAIT_S
        return min(max(missing_bytes / self._bytes_per_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
