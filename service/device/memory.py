"""Between a tensor of the wire and a tensor of torch: the same memory where it can be shared."""

from __future__ import annotations

import torch
from torch import Tensor

from service.dtypes import DType
from service.wire.message import Style, WireTensor

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def in_place(tensor: WireTensor) -> Tensor | None:
    """The elements where they are, 1-d and writable; None where there are none, or they are read-only or not aligned."""
    if tensor.data.readonly or not tensor.data.nbytes:
        return None
    elements = torch.frombuffer(tensor.data, dtype=TORCH_DTYPES[tensor.dtype.name])
    return None if elements.data_ptr() % tensor.dtype.itemsize else elements


def shared_flat(tensor: WireTensor) -> tuple[Tensor, bool]:
    """The elements in the order in which they lie in memory, 1-d, writable; and whether they share that memory.

    They do, unless that is read-only or not aligned to the element size (kernels may assume
    alignment): then the bytes are copied once.
    """
    dtype = TORCH_DTYPES[tensor.dtype.name]
    if not tensor.data.nbytes:
        return torch.empty(0, dtype=dtype), True
    if tensor.data.readonly:
        return torch.frombuffer(bytearray(tensor.data), dtype=dtype), False
    shared = in_place(tensor)
    return (torch.frombuffer(tensor.data, dtype=dtype).clone(), False) if shared is None else (shared, True)


def between(tensor: WireTensor, start: int, stop: int) -> WireTensor:
    """These elements, in the order in which they lie in memory, as a tensor of their own over the same bytes."""
    itemsize = tensor.dtype.itemsize
    return WireTensor(tensor.dtype, (stop - start,), tensor.data[start * itemsize : stop * itemsize])


def shaped(elements: Tensor, tensor: WireTensor) -> Tensor:
    """`elements`, which lie as `tensor` does, as a tensor of its shape (a view)."""
    if tensor.fortran:
        return elements.view(tensor.shape[::-1]).permute(tuple(reversed(range(len(tensor.shape)))))
    return elements.view(tensor.shape)


def data_of(elements: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return elements.reshape(-1).view(torch.uint8).numpy().data


def to_wire(tensor: Tensor, dtype: DType, style: Style) -> WireTensor:
    """A CPU tensor of any layout as a tensor of the wire, in C order."""
    return WireTensor(dtype, tuple(tensor.shape), data_of(tensor.contiguous()), style=style)


def end_of(data: memoryview) -> int:
    """The address behind the last byte."""
    return torch.frombuffer(data, dtype=torch.uint8).data_ptr() + data.nbytes
