"""Many small tensors of one call as one: a pass over them together instead of thousands of passes.

Only for elementwise expressions, whose bits do not depend on what lies beside an element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from service.device import memory
from service.device.devices import Device
from service.wire.message import WireTensor

# From here on a tensor's own pass costs less than copying it together with others.
LARGE_BYTES = 256 * 1024
# What is gathered at a time where it can be put back.
_TILE_BYTES = 512 * 1024


class _Tile(NamedTuple):
    """Some tensors, and the place of each among the bytes of all of them."""

    tensors: slice
    places: list[slice]
    nbytes: int


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


def may_overwrite(tensors: Sequence[WireTensor]) -> bool:
    """Whether there are several, all in memory that can be written to."""
    return len(tensors) > 1 and not any(tensor.data.readonly for tensor in tensors)


def overwrite(operands: Sequence[Sequence[WireTensor]], work: Callable[..., None]) -> None:
    """Overwrite the tensors of the last operand where they are: gathered, computed and put back while they are in cache.

    All are of one dtype, and those of one place alike. `work` gets the same elements of each operand, and overwrites the last.
    """
    rooms = [memoryview(bytearray(_TILE_BYTES)) for _ in operands]
    dtype = memory.TORCH_DTYPES[operands[-1][0].dtype.name]
    for tile in _tiles([tensor.data.nbytes for tensor in operands[-1]]):
        parts = [[tensor.data for tensor in operand[tile.tensors]] for operand in operands]
        for room, datas in zip(rooms, parts, strict=True):
            for place, data in zip(tile.places, datas, strict=True):
                room[place] = data
        if tile.nbytes:
            work(*(torch.frombuffer(room[: tile.nbytes], dtype=dtype) for room in rooms))
        for place, data in zip(tile.places, parts[-1], strict=True):
            data[:] = rooms[-1][place]


def _tiles(lengths: Sequence[int]) -> Iterator[_Tile]:
    """Neighbours that fit into a tile together; each alone does."""
    start = 0
    places: list[slice] = []
    end = 0
    for n, length in enumerate(lengths):
        if end + length > _TILE_BYTES:
            yield _Tile(slice(start, n), places, end)
            start, places, end = n, [], 0
        places.append(slice(end, end + length))
        end += length
    yield _Tile(slice(start, len(lengths)), places, end)


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
