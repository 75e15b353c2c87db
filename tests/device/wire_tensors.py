"""Torch tensors as they might lie in a body, and back."""

from __future__ import annotations

from torch import Tensor

from service.device import memory
from service.dtypes import DTYPES
from service.wire.message import WireTensor


def on_wire(x: Tensor, *, fortran: bool = False, offset: int = 0, readonly: bool = False) -> WireTensor:
    """`x` as it might lie in a body: in this memory order, at this offset from an aligned address."""
    laid_out = x.permute(tuple(reversed(range(x.dim())))).contiguous() if fortran else x.contiguous()
    content = bytes(memory.data_of(laid_out))
    room = memoryview(bytearray(offset) + content)[offset:]
    name = str(x.dtype).removeprefix("torch.")
    return WireTensor(DTYPES[name], tuple(x.shape), room.toreadonly() if readonly else room, fortran)


def off_wire(tensor: WireTensor) -> Tensor:
    """The elements, in memory that is shared where that is possible."""
    return memory.shaped(memory.shared_flat(tensor)[0], tensor)
