"""What tensors look like as bytes: sizes, byte order, memory order, and NumPy's names for the dtypes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from service.dtypes import DTYPES, DType
from service.errors import MalformedBody
from service.wire.message import WireTensor

# NumPy's own limits since 2.0: more dimensions, or a larger array, cannot exist there.
MAX_DIMENSIONS = 64
MAX_TENSOR_BYTES = 2**63 - 1

# As np.save and msgpack-numpy name them; bfloat16 as ml_dtypes' arrays are named.
DESCR_OF: dict[str, str] = {"float16": "<f2", "bfloat16": "<V2", "float32": "<f4", "float64": "<f8"}

# What is read: the dtype, and whether its bytes are swapped. `|V2` is bfloat16 seen through a plain view.
DTYPE_OF_DESCR: dict[str, tuple[DType, bool]] = {
    **{descr: (DTYPES[name], False) for name, descr in DESCR_OF.items()},
    **{descr.replace("<", ">"): (DTYPES[name], True) for name, descr in DESCR_OF.items() if name != "bfloat16"},
    "|V2": (DTYPES["bfloat16"], False),
}


def byte_length(shape: tuple[int, ...], dtype: DType) -> int:
    """How many bytes a tensor of this shape has; `MalformedBody` if no such array can exist.

    As NumPy does, an empty tensor's other dimensions are bounded too.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise MalformedBody(f"a shape of {len(shape)} dimensions; at most {MAX_DIMENSIONS} are possible")
    if math.prod(filter(None, shape)) * dtype.itemsize > MAX_TENSOR_BYTES:
        raise MalformedBody(f"a tensor of shape {str(shape)[:200]} would have more than {MAX_TENSOR_BYTES} bytes")
    return math.prod(shape) * dtype.itemsize


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The memory of a contiguous array, as bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


def swapped(data: memoryview, dtype: DType) -> memoryview:
    """The elements with their bytes in the other order, in fresh memory."""
    return bytes_of(np.frombuffer(data, _word(dtype)).byteswap())


def in_c_order(tensor: WireTensor) -> memoryview:
    """The tensor's bytes in C order: its own memory, or a copy where it lies in Fortran order."""
    # Dimensions of 1 do not move an element; without them any shape that fits in memory has few dimensions.
    shape = tuple(dimension for dimension in tensor.shape if dimension != 1)
    if not tensor.fortran or len(shape) < 2 or 0 in shape:
        return tensor.data
    return bytes_of(np.ascontiguousarray(np.frombuffer(tensor.data, _word(tensor.dtype)).reshape(shape, order="F")))


def _word(dtype: DType) -> np.dtype[Any]:
    # Unsigned words: bytes are moved, never read as numbers, so that a NaN keeps its payload.
    return np.dtype(f"u{dtype.itemsize}")
