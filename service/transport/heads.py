"""Heads that came before, by their bytes.

On a kept connection most requests repeat their head byte for byte, and so do the connections of one
job. What the parser and the core made of it the first time holds again: at 4 KiB that is a third of
the work of a call.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.core import Admitted
from service.head import Head
from service.transport.repeat import Repeat

HEAD_END = b"\r\n\r\n"
# A head of a usual client has 150 to 500 bytes; both bounds together keep the memory under a megabyte. (What is learned of the
# calls with a head has a bound of its own.)
_MAX_HEAD_BYTES = 2048
_MAX_HEADS = 256


@dataclass(slots=True)
class Known:
    """What the bytes of a head say: a hot request that was admitted, whose body has `length` bytes, at least one.

    `repeat` answers the next one if it is like the last one.
    """

    head: Head
    terms: Admitted
    length: int
    keep_alive: bool
    request_id: bytes | None
    repeat: Repeat | None = None


class KnownHeads:
    """The heads that one process has learned; all are forgotten when there are too many, as a flood of new ones makes them."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}

    def get(self, raw: bytes) -> Known | None:
        """What is known of the head with these bytes."""
        return self._known.get(raw)

    def learn(self, raw: bytes, known: Known) -> None:
        """Remember a head."""
        if len(raw) > _MAX_HEAD_BYTES:
            return
        if len(self._known) >= _MAX_HEADS:
            self._known.clear()
        self._known[raw] = known

    def forget(self) -> None:
        """Forget them all: what was allowed before may not be any more."""
        self._known.clear()
