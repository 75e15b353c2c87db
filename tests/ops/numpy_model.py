"""The oracle in NumPy: float16 and bfloat16 are computed in float32 and rounded after every step, explicitly.

It shares no line, and no library, with the operators; sums are those of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.ops import Operator

Array = NDArray[Any]

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def to_numpy(x: Tensor) -> Array:
    """The same elements as a NumPy array, bfloat16 included."""
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def to_torch(x: Array) -> Tensor:
    """The same elements as a tensor, bfloat16 included."""
    x = np.ascontiguousarray(x).reshape(x.shape)
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic on one dtype: `wide` computes, `round` rounds to the dtype."""

    dtype: np.dtype[Any]

    @property
    def wide_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    def wide(self, value: Any) -> Array:
        return np.asarray(value).astype(self.wide_dtype)

    def round(self, value: Any) -> Array:
        return self.wide(value).astype(self.dtype)

    def mul(self, a: Any, b: Any) -> Array:
        return self.round(self.wide(a) * self.wide(b))

    def div(self, a: Any, b: Any) -> Array:
        return self.round(self.wide(a) / self.wide(b))

    def add(self, a: Any, b: Any) -> Array:
        return self.round(self.wide(a) + self.wide(self.round(b)))

    def sub(self, a: Any, b: Any) -> Array:
        return self.round(self.wide(a) - self.wide(self.round(b)))

    def unary(self, function: Callable[[Array], Array], a: Array) -> Array:
        return self.round(function(self.wide(a)))

    def quantize(self, x: Array, k: int) -> Array:
        s = float(2**k - 1)
        return self.div(self.unary(np.rint, self.mul(x, s)), s)


def forward(op: Operator, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The operator's value, from and to tensors."""
    with np.errstate(all="ignore"):
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        return to_torch(_forward(op, to_numpy(x), arrays))


def _forward(op: Any, x: Array, tensors: dict[str, Array]) -> Array:
    a = Arithmetic(x.dtype)
    match op.name:
        case "round":
            return a.unary(np.rint, x)
        case "ceil":
            return a.unary(np.ceil, x)
        case "floor":
            return a.unary(np.floor, x)
        case "clamp":
            low, high = a.wide(a.round(op.min_value)), a.wide(a.round(op.max_value))
            wide = a.wide(x)
            wide = np.where(wide < low, low, wide)
            return a.round(np.where(wide > high, high, wide))
        case "step_quantize":
            return a.mul(a.unary(np.rint, a.div(x, op.step)), op.step)
        case "k_bit_quantize":
            return a.quantize(x, op.k)
        case "affine_k_bit_quantize":
            w, b = (tensors[v] if isinstance(v, str) else v for v in (op.w, op.b))
            return a.add(a.mul(a.quantize(x, op.k), w), b)
        case "clamp_by_linear":
            low, span = _extent(a, x, op.eps)
            return a.div(a.sub(x, low), span)
    raise LookupError(f"no NumPy model of {op.name}")


def _extent(a: Arithmetic, x: Array, eps: float) -> tuple[Array, Array]:
    low, high = a.round(a.wide(x).min()), a.round(a.wide(x).max())
    return low, a.sub(a.add(high, eps), low)


def clamp_by_linear_gradient(x: Tensor, grad_output: Tensor, eps: float) -> Tensor:
    """The contract's formula for the gradient of `clamp_by_linear`, transcribed."""
    with np.errstate(all="ignore"):
        return to_torch(_clamp_by_linear_gradient(to_numpy(x), to_numpy(grad_output), eps))


def _clamp_by_linear_gradient(x: Array, g: Array, eps: float) -> Array:
    a = Arithmetic(x.dtype)
    low, D = _extent(a, x, eps)
    n = a.sub(x, low)
    gn = a.div(g, D)
    gD = total(a.mul(-g, a.div(a.div(n, D), D)))
    gm = a.add(-gD, total(-gn))
    at_min, at_max = a.wide(x) == a.wide(x).min(), a.wide(x) == a.wide(x).max()
    min_share = a.div(gm, a.round(np.count_nonzero(at_min)))
    max_share = a.div(gD, a.round(np.count_nonzero(at_max)))
    zero = a.round(0.0)
    grad_x = a.add(gn, np.where(at_min, min_share, zero))
    return a.add(grad_x, np.where(at_max, max_share, zero))


def total(x: Array) -> Array:
    """The sum of all elements as the contract defines it: pairwise, level by level, rounded once."""
    a = Arithmetic(x.dtype)
    return a.round(_pairwise(list(a.wide(x).ravel())))


def _pairwise(values: list[Any]) -> Any:
    if not values:
        return 0.0
    while len(values) > 1:
        pairs = [values[i] + values[i + 1] for i in range(0, len(values) - 1, 2)]
        values = pairs + values[len(values) - len(values) % 2 :]
    return values[0]


def sum_to_shape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The sum over the dimensions along which `shape` was broadcast, each taken in C order."""
    array = to_numpy(x)
    a = Arithmetic(array.dtype)
    padded = (1,) * (array.ndim - len(shape)) + tuple(shape)
    members: dict[tuple[int, ...], list[Any]] = {index: [] for index in np.ndindex(padded)}
    wide = a.wide(array)
    for index in np.ndindex(array.shape):
        members[tuple(i if size != 1 else 0 for i, size in zip(index, padded, strict=True))].append(wide[index])
    with np.errstate(all="ignore"):
        sums = np.array([_pairwise(values) for values in members.values()], dtype=a.wide_dtype)
        return to_torch(a.round(sums).reshape(tuple(shape)))
