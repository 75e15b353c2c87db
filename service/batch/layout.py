"""Where tensors lie in a file: values only, no I/O."""

from __future__ import annotations

import math
from typing import NamedTuple

from service.dtypes import DType
from service.wire.message import Bundle, WireTensor

_NO_DATA = memoryview(b"")


class Slot(NamedTuple):
    """One tensor: `nbytes` of elements from byte `start` of its file on.

    `swapped` says that they are big-endian, `fortran` that they lie in Fortran order.
    """

    dtype: DType
    shape: tuple[int, ...]
    start: int
    fortran: bool = False
    swapped: bool = False

    @property
    def nbytes(self) -> int:
        """The length of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """The byte after its last."""
        return self.start + self.nbytes

    @property
    def described(self) -> WireTensor:
        """The tensor without its elements: what a call can be checked with."""
        return WireTensor(self.dtype, self.shape, _NO_DATA, self.fortran)


class Layout(NamedTuple):
    """The tensors of a file, in their order; `names` where the format has names; `nbytes` is the whole file."""

    slots: tuple[Slot, ...]
    nbytes: int
    names: tuple[str, ...] | None = None

    @property
    def bundle(self) -> Bundle:
        """The tensors without their elements."""
        return Bundle(tuple(slot.described for slot in self.slots), self.names, single=self.names is None and len(self.slots) == 1)


class Literal(NamedTuple):
    """Bytes of an output that are known before anything is computed: headers."""

    start: int
    data: bytes


class Target(NamedTuple):
    """What an output will be: `nbytes` long, with these bytes between its tensors, which lie at `starts`."""

    literals: tuple[Literal, ...]
    starts: tuple[int, ...]
    nbytes: int
