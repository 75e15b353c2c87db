"""Memory for bodies, which becomes the memory of their tensors."""

from __future__ import annotations

import numpy as np

# Cache line, and more than the alignment of any element.
ALIGNMENT = 64
_SMALL_BYTES = 16 * 1024


def allocate(nbytes: int) -> memoryview:
    """`nbytes` of uninitialised memory whose end is aligned.

    The last tensor of a body ends where the body ends, in npy as in msgpack, so aligning the end aligns
    its elements, wherever its header ends. NumPy asks for huge pages when the size is worth it. Small
    bodies are not worth the care: what is not aligned in them is copied later, in less than a microsecond.
    """
    if nbytes < _SMALL_BYTES:
        return memoryview(bytearray(nbytes))
    room = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -(room.ctypes.data + nbytes) % ALIGNMENT
    return room.data[start : start + nbytes]
