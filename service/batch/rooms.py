"""Memory that chunks pass through: taken once, used again for every chunk of a thread."""

from __future__ import annotations

import numpy as np

# What a message may hold before the elements of its one tensor: an npy header, or the keys of a map.
HEADROOM_BYTES = 4096


class Room:
    """A buffer for the elements of one operand, and for an answer whose elements come to lie where they lay.

    Sent and received in the same memory: half the memory, and what was just touched is touched again.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8).data

    def elements(self, nbytes: int) -> memoryview:
        """Room for elements, aligned for any dtype; what was in it is lost when it has to grow."""
        if len(self._memory) < HEADROOM_BYTES + nbytes:
            # Let go of before more is taken. Not a bytearray: that would write zeros into what is about to be written.
            self._memory = np.empty(0, np.uint8).data
            self._memory = np.empty(HEADROOM_BYTES + nbytes, np.uint8).data
        return self._memory[HEADROOM_BYTES : HEADROOM_BYTES + nbytes]

    def answer(self, nbytes: int, elements_nbytes: int) -> memoryview:
        """Room for an answer of `nbytes`, the last `elements_nbytes` of which are the elements."""
        before = nbytes - elements_nbytes
        if not 0 <= before <= HEADROOM_BYTES or len(self._memory) < HEADROOM_BYTES + elements_nbytes:
            return np.empty(nbytes, np.uint8).data
        return self._memory[HEADROOM_BYTES - before : HEADROOM_BYTES + elements_nbytes]
