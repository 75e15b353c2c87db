"""The bytes in flight: reserved before a body is read, released when its answer has left."""

from __future__ import annotations

from service.errors import Overloaded


class Budget:
    """A number of bytes that calls share. Used on the event loop only, so it needs no lock."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.in_flight_bytes = 0

    def reserve(self, nbytes: int) -> None:
        """Take `nbytes`, or raise `Overloaded` when they do not fit beside what is in flight."""
        if self.in_flight_bytes + nbytes > self.limit_bytes:
            raise Overloaded(
                f"{self.in_flight_bytes} bytes are in flight and this call needs {nbytes}; allowed: {self.limit_bytes} at once",
                retry_after_s=1.0,
            )
        self.in_flight_bytes += nbytes

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        self.in_flight_bytes -= nbytes
        assert self.in_flight_bytes >= 0
