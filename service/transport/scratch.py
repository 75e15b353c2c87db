"""Memory for what comes while no body is awaited: a head, mostly, with the beginning of its body or all of it."""

from __future__ import annotations

# Before what is received: the head of an answer may be longer than that of its request, in whose place it is put.
MARGIN = 1024
_BYTES = 256 * 1024


class Scratch:
    """One for all connections of a loop: it is filled and emptied within one callback."""

    def __init__(self) -> None:
        self.bytes = bytearray(MARGIN + _BYTES)
        self.view = memoryview(self.bytes)

    def move(self, start: int, stop: int, to: int) -> None:
        """Move what lies from `start` to `stop`, so that it begins at `to`."""
        if start != to:
            self.view[to : to + stop - start] = self.view[start:stop]
