"""What the codecs read and write: tensors as described bytes, single, in a list or by name.

A message maps the names of the contract (`x`, `grad_output`, `y`, `grad_x`, and those of tensor
parameters) to bundles. Elements never become Python objects here; neither NumPy nor torch is needed
to hold a tensor, so that server and client share the codecs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from service.dtypes import DType

# How a tensor is written: as the contract's own map, as msgpack-numpy's map, or as nested JSON lists.
Style = Literal["plain", "msgpack_numpy", "nested"]


class WireTensor(NamedTuple):
    """A tensor as bytes: little-endian, in C order, or in Fortran order where `fortran` says so.

    A tuple, because a call may make thousands of these: a frozen dataclass takes three times as long.
    """

    dtype: DType
    shape: tuple[int, ...]
    data: memoryview
    fortran: bool = False
    style: Style = "plain"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def like(self, data: memoryview) -> WireTensor:
        """A tensor of this dtype, shape, order and style over other bytes."""
        # A list of a thousand equal headers makes a thousand of these: without the Python frame of __new__.
        return tuple.__new__(WireTensor, (self.dtype, self.shape, data, self.fortran, self.style))


class Bundle(NamedTuple):
    """One tensor (`single`), several in a list, or several by name (`names`, one for each)."""

    tensors: tuple[WireTensor, ...]
    names: tuple[str, ...] | None = None
    single: bool = False

    @classmethod
    def of(cls, tensor: WireTensor) -> Bundle:
        """The bundle of one tensor."""
        return cls((tensor,), single=True)


Message = Mapping[str, Bundle]
