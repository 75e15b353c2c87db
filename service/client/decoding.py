"""From a quantizer's codes to its values, in NumPy, with the bits that the server gives for `values`.

Each step is computed in the arithmetic of the dtype (float32 for float16 and bfloat16) and rounded to the dtype,
as PyTorch does it. NumPy knows no bfloat16: such numbers are kept as the float32 that equals them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.dtypes import DType
from service.errors import UnknownOperator
from service.ops import AffineKBitQuantize, Ceil, Floor, KBitQuantize, Operator, Round, StepQuantize
from service.wire.layout import bytes_of
from service.wire.message import WireTensor

_TABLE_ITEM_BYTES = 2

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def values(operator: Operator, codes: npt.NDArray[Any], dtype: DType, tensors: Mapping[str, WireTensor]) -> memoryview:
    """The bytes of `y` in C order, of codes in its shape.

    `codes` are integers; where they are signed, the smallest of their dtype stands for -0.0. `tensors` are those that the
    operator names. Raises `UnknownOperator` for one that has no codes.
    """
    unsigned = np.dtype(f"<u{codes.dtype.itemsize}")
    if not tensors and codes.dtype.itemsize <= _TABLE_ITEM_BYTES and codes.size > 2 ** (8 * codes.dtype.itemsize):
        # More elements than there are integers: each integer's value is computed once, and looked up.
        every = np.arange(2 ** (8 * codes.dtype.itemsize), dtype=unsigned).view(codes.dtype)
        table = np.frombuffer(_computed(operator, every, dtype, tensors), f"<u{dtype.itemsize}")
        return bytes_of(table.take(codes.view(unsigned).reshape(-1)))
    return _computed(operator, codes, dtype, tensors)


def _computed(operator: Operator, codes: npt.NDArray[Any], dtype: DType, tensors: Mapping[str, WireTensor]) -> memoryview:
    with np.errstate(all="ignore"):
        numbers = _rounded(codes.astype(_arithmetic(dtype)), dtype)
        if np.issubdtype(codes.dtype, np.signedinteger):
            numbers[codes == np.iinfo(codes.dtype).min] = -0.0
        return _bytes(_scaled(operator, numbers, dtype, tensors), dtype)


def _scaled(operator: Operator, codes: Numbers, dtype: DType, tensors: Mapping[str, WireTensor]) -> Numbers:
    number = _arithmetic(dtype).type
    match operator:
        case Round() | Ceil() | Floor():
            return codes
        case StepQuantize():
            return _rounded(codes * number(operator.step), dtype)
        case KBitQuantize():
            return _rounded(codes / number(2**operator.k - 1), dtype)
        case AffineKBitQuantize():
            quantized = _rounded(codes / number(2**operator.k - 1), dtype)
            product = _rounded(_operand(operator.w, dtype, tensors) * quantized, dtype)
            return _rounded(product + _rounded(_operand(operator.b, dtype, tensors), dtype), dtype)
    raise UnknownOperator(f"the codes of {operator.name!r} cannot be decoded here; a newer client may know it")


def _operand(parameter: float | str, dtype: DType, tensors: Mapping[str, WireTensor]) -> Numbers:
    """A number in the arithmetic of the dtype, or the tensor of that name."""
    if not isinstance(parameter, str):
        return np.asarray(parameter, _arithmetic(dtype))
    return numbers_of(tensors[parameter])


def numbers_of(tensor: WireTensor) -> Numbers:
    """The elements in the arithmetic of their dtype."""
    shape, order = tensor.shape, "F" if tensor.fortran else "C"
    if tensor.dtype.name == "bfloat16":
        words = np.frombuffer(tensor.data, "<u2").astype("<u4") << np.uint32(16)
        return words.view("<f4").reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]
    stored = np.frombuffer(tensor.data, np.dtype(tensor.dtype.name).newbyteorder("<"))
    return stored.astype(_arithmetic(tensor.dtype)).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _arithmetic(dtype: DType) -> np.dtype[Any]:
    return np.dtype(dtype.arithmetic)


def _rounded(numbers: Numbers, dtype: DType) -> Numbers:
    """The nearest numbers of the dtype, ties to even, in its arithmetic."""
    match dtype.name:
        case "float16":
            return numbers.astype(np.float16).astype(np.float32)
        case "bfloat16":
            return (_upper_halves(numbers).astype("<u4") << np.uint32(16)).view("<f4")
    return numbers


def _bytes(numbers: Numbers, dtype: DType) -> memoryview:
    little = (
        _upper_halves(numbers) if dtype.name == "bfloat16" else numbers.astype(np.dtype(dtype.name).newbyteorder("<"), copy=False)
    )
    return bytes_of(np.ascontiguousarray(little))


def _upper_halves(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """bfloat16 is the upper half of a float32. Half of its last place, less one where it is even, rounds ties to even."""
    words = np.ascontiguousarray(numbers, "<f4").reshape(np.shape(numbers)).view("<u4")
    rounded = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # The lower half alone may hold what makes a NaN one.
    quiet = (words >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(numbers), quiet, rounded).astype("<u2")
