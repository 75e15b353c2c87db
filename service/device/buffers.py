"""Memory for bodies, which becomes the memory of their tensors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import OutOfMemory

# Cache line, and more than the alignment of any element.
ALIGNMENT = 64
_SMALL_BYTES = 16 * 1024
# From here on fresh memory is mapped for each body and unmapped after it: page faults on every page, and
# processors that wait for each other. Seen at 16 MiB and 8 connections: about a quarter of the rate.
_POOLED_BYTES = 512 * 1024
_KEPT_BYTES = 512 * 2**20
_KEPT_S = 10.0

Room = npt.NDArray[np.uint8]


def no_memory(what: str) -> OutOfMemory:
    """The error of a call for which the host, not the device, has no memory left."""
    return OutOfMemory(f"the host has no memory left for {what}; try again, or send smaller tensors")


def pageable(nbytes: int) -> Room:
    """Ordinary memory, uninitialised. NumPy asks for huge pages when the size is worth it. Raises `OutOfMemory`."""
    try:
        return np.empty(nbytes, dtype=np.uint8)
    except MemoryError as error:
        raise no_memory(f"the {nbytes} bytes of this body") from error


def allocate(nbytes: int) -> memoryview:
    """`nbytes` of uninitialised memory whose end is aligned. Raises `OutOfMemory`.

    The last tensor of a body ends where the body ends, in npy as in msgpack, so aligning the end aligns
    its elements, wherever its header ends. Small bodies are not worth the care: what is not aligned in them
    is copied later, in less than a microsecond.
    """
    if nbytes < _SMALL_BYTES:
        return _small(nbytes)
    return _placed(pageable(nbytes + ALIGNMENT), nbytes)


class Pool:
    """Large buffers that were used a moment ago, for bodies of about the same size. For one event loop.

    New ones come from `fresh`: that of a device gives memory that the device reads and writes itself.
    """

    def __init__(self, fresh: Callable[[int], Room] = pageable) -> None:
        self._fresh = fresh
        self._free: list[tuple[float, Room]] = []
        self.bytes = 0

    def take(self, nbytes: int) -> memoryview:
        """Memory as `allocate` gives it, used before where there is some. Raises `OutOfMemory`."""
        if nbytes < _POOLED_BYTES:
            return allocate(nbytes)
        needed = nbytes + ALIGNMENT
        room = self._kept(needed)
        return _placed(self._made(needed) if room is None else room, nbytes)

    def give(self, buffer: memoryview) -> None:
        """Take back memory that nobody reads or writes any more."""
        room: Any = buffer.obj
        if buffer.nbytes >= _POOLED_BYTES and self.bytes + room.nbytes <= _KEPT_BYTES:
            self._free.append((time.monotonic(), room))
            self.bytes += room.nbytes

    def clear(self) -> None:
        """Let go of everything, as memory is missing elsewhere."""
        self._free.clear()
        self.bytes = 0

    def _kept(self, nbytes: int) -> Room | None:
        for index, (_, room) in enumerate(self._free):
            if nbytes <= room.nbytes <= nbytes + nbytes // 4:
                del self._free[index]
                self.bytes -= room.nbytes
                return room
        return None

    def _made(self, nbytes: int) -> Room:
        try:
            return self._fresh(nbytes)
        except OutOfMemory:
            if not self._free:
                raise
        # What is kept for bodies of other sizes may be what is missing.
        self.clear()
        return self._fresh(nbytes)

    def trim(self) -> None:
        """Let go of what was not used for a while."""
        oldest = time.monotonic() - _KEPT_S
        if self._free and self._free[0][0] < oldest:
            self._free = [(since, room) for since, room in self._free if since >= oldest]
            self.bytes = sum(room.nbytes for _, room in self._free)


def _small(nbytes: int) -> memoryview:
    try:
        return memoryview(bytearray(nbytes))
    except MemoryError as error:
        raise no_memory(f"the {nbytes} bytes of this body") from error


def _placed(room: Room, nbytes: int) -> memoryview:
    start = -(room.ctypes.data + nbytes) % ALIGNMENT
    return room.data[start : start + nbytes]
