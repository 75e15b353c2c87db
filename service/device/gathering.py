"""Many small tensors of one call as one: a pass over them together instead of thousands of passes.

Only for elementwise expressions, whose bits do not depend on what lies beside an element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
TILE_BYTES = 512 * 1024


class Tile(NamedTuple):
    """Neighbouring tensors, and the place of each among the bytes of all of them."""

    tensors: slice
    places: Sequence[slice]


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


def goes_through_tiles(device: Device, tensors: Sequence[WireTensor]) -> bool:
    """Whether to `overwrite` these: several, or one that kernels cannot take as it lies, in memory that can be written to."""
    if not device.computes_in_place or any(tensor.data.readonly for tensor in tensors):
        return False
    return len(tensors) > 1 or (tensors[0].data.nbytes > 0 and memory.in_place(tensors[0]) is None)


def pieces(nbytes: int) -> list[slice]:
    """So many bytes, divided so that each piece fits into a tile."""
    return [slice(start, min(start + TILE_BYTES, nbytes)) for start in range(0, nbytes, TILE_BYTES)]


def tiles(lengths: Sequence[int]) -> Iterator[Tile]:
    """Neighbours of so many bytes, none larger than a tile, as many at a time as fit into one."""
    start = end = 0
    places: list[slice] = []
    for n, length in enumerate(lengths):
        if end + length > TILE_BYTES and places:
            yield Tile(slice(start, n), places)
            start, end, places = n, 0, []
        places.append(slice(end, end + length))
        end += length
    yield Tile(slice(start, len(lengths)), places)


def overwrite(dtype: torch.dtype, cut: Iterable[Tile], operands: Sequence[Sequence[memoryview]], work: Callable[..., None]) -> None:
    """Overwrite the tensors of the last operand where they are: gathered, computed and put back while they are in cache.

    Tensors of one place have the same number of elements. `work` gets the same elements of each operand, and overwrites the last.
    """
    for tile in cut:
        rooms = [bytearray().join(operand[tile.tensors]) for operand in operands]
        if not rooms[-1]:
            continue
        work(*(torch.frombuffer(room, dtype=dtype) for room in rooms))
        computed = memoryview(rooms[-1])
        for data, place in zip(operands[-1][tile.tensors], tile.places, strict=True):
            data[:] = computed[place]


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
