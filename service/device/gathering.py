"""Many small tensors of one call as one: a pass over them together instead of thousands of passes.

Only for elementwise expressions, whose bits do not depend on what lies beside an element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor

from service.device import memory
from service.device.devices import Device
from service.wire.message import WireTensor

# From here on a tensor's own pass costs less than copying it together with others.
LARGE_BYTES = 256 * 1024


def runs(tensors: Sequence[WireTensor]) -> Iterator[slice]:
    """The tensors in runs that can be gathered: small neighbours of one dtype; a large one is alone."""
    if len(tensors) == 1:
        yield slice(0, 1)
        return
    start = 0
    for (_, is_large), group in groupby(tensors, lambda tensor: (tensor.dtype.name, tensor.data.nbytes >= LARGE_BYTES)):
        length = sum(1 for _ in group)
        step = 1 if is_large else length
        yield from (slice(at, at + step) for at in range(start, start + length, step))
        start += length


def gather(device: Device, tensors: Sequence[WireTensor]) -> tuple[Tensor, list[WireTensor]]:
    """The elements of tensors of one dtype, one after the other, and the tensors again, lying in that memory.

    A tensor alone stays where it is, if it can; several are copied, into memory that the device likes.
    """
    if len(tensors) == 1:
        elements, shared = memory.shared_flat(tensors[0])
        return elements, [tensors[0] if shared else tensors[0].like(memory.data_of(elements))]
    view = _joined(device, tensors)
    placed = []
    at = 0
    for tensor in tensors:
        end = at + tensor.data.nbytes
        placed.append(tensor.like(view[at:end]))
        at = end
    dtype = memory.TORCH_DTYPES[tensors[0].dtype.name]
    return torch.frombuffer(view, dtype=dtype) if view.nbytes else torch.empty(0, dtype=dtype), placed


def _joined(device: Device, tensors: Sequence[WireTensor]) -> memoryview:
    pieces = list(map(attrgetter("data"), tensors))
    if device.computes_in_place:
        return memoryview(bytearray().join(pieces))
    view = device.allocate(sum(piece.nbytes for piece in pieces)).data
    at = 0
    for piece in pieces:
        view[at : at + piece.nbytes] = piece
        at += piece.nbytes
    return view
