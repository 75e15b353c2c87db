"""The one definition of a sum, the same on every device and for every number of threads.

PyTorch's own sums depend on vector width, threads and device. Here neighbours are added pairwise,
level by level (`s[0]+s[1], s[2]+s[3], …`), an odd last one is carried up unchanged. float16, bfloat16
and float32 accumulate in float32, float64 in float64; the last value is rounded to the dtype once.
The error grows with log2(n) (Higham 1993, doi:10.1137/0914050).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sum_to_shape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum `x` over the dimensions along which `shape` was broadcast to x's shape; the result has `shape`.

    The elements of each sum are taken in C order of the summed dimensions. No element sums to 0.
    The result never shares memory with `x`, which may be overwritten afterwards.
    """
    import torch

    padded = (1,) * (x.dim() - len(shape)) + tuple(shape)
    summed = [axis for axis, size in enumerate(padded) if size == 1 and x.shape[axis] != 1]
    if not summed:
        return x.reshape(tuple(shape)).clone()
    kept = [axis for axis in range(x.dim()) if axis not in summed]
    kept_shape = [x.shape[axis] for axis in kept]
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.permute((*kept, *summed)).to(accumulator).reshape(*kept_shape, -1) if x.numel() else None
    total = x.new_zeros(kept_shape) if rows is None else _pairwise(rows).to(x.dtype)
    # Where nothing was summed this would be a view of x, which the caller may overwrite next.
    return (total if summed else total.clone()).reshape(tuple(shape))


def total(x: Tensor) -> Tensor:
    """The sum of all elements of `x`, 0-d, of x's dtype."""
    return sum_to_shape(x, ())


def _pairwise(rows: Tensor) -> Tensor:
    """Sum over the last dimension, which is not empty."""
    import torch

    while (n := rows.shape[-1]) > 1:
        level = rows[..., 0 : n - n % 2 : 2] + rows[..., 1::2]
        rows = torch.cat([level, rows[..., -1:]], dim=-1) if n % 2 else level
    return rows[..., 0]
