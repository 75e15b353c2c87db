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


def gather(tensors: Sequence[WireTensor]) -> tuple[Tensor, list[WireTensor]]:
    """The elements of tensors of one dtype, one after the other, and the tensors again, lying in that memory."""
    if len(tensors) == 1:
        elements, shared = memory.shared_flat(tensors[0])
        return elements, [tensors[0] if shared else tensors[0].like(memory.data_of(elements))]
    together = bytearray().join(map(attrgetter("data"), tensors))
    view = memoryview(together)
    placed = []
    at = 0
    for tensor in tensors:
        end = at + tensor.data.nbytes
        placed.append(tensor.like(view[at:end]))
        at = end
    dtype = memory.TORCH_DTYPES[tensors[0].dtype.name]
    return torch.frombuffer(together, dtype=dtype) if together else torch.empty(0, dtype=dtype), placed
