"""Arithmetic that gives a tensor's CPU bits on every device.

Eager PyTorch is the definition, on the CPU. On CUDA it departs from it in three places, each seen in
its kernels: a Python divisor is turned into its reciprocal, a Python addend or bound next to float16
stays float32, and fmax turns the -0.0 that meets a bound of 0 into +0.0. These functions close them.
"""

from __future__ import annotations

from ctypes import c_float
from numbers import Real
from typing import TYPE_CHECKING

from service.dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor


def fits(value: float, dtype: DType) -> bool:
    """Whether `value` stays finite as PyTorch rounds it: to float32 on its way to float16 and bfloat16.

    Rounded twice, a number just below the middle between the dtype's maximum and infinity is infinite.
    """
    return dtype.holds(value if dtype.name == "float64" else c_float(value).value)


def rounded(value: float | Tensor, x: Tensor) -> float | Tensor:
    """`value` as x's dtype holds it, when it is a number and x is floating; else as it is."""
    import torch

    if isinstance(value, Real) and x.is_floating_point():
        return torch.tensor(value, dtype=x.dtype).item()
    return value


def divide(x: Tensor, divisor: float | Tensor, out: Tensor | None = None) -> Tensor:
    """`x / divisor` by true division; a number next to float16 or bfloat16 is kept as float32."""
    import torch

    if x.is_cpu or not isinstance(divisor, (int, float)):
        return torch.div(x, divisor, out=out)
    if x.dtype in (torch.float16, torch.bfloat16):
        quotient = x.float() / torch.full((), divisor, dtype=torch.float32, device=x.device)
        return quotient.to(x.dtype) if out is None else out.copy_(quotient)
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return torch.div(x, torch.full((), divisor, dtype=dtype, device=x.device), out=out)


def between(x: Tensor, min_value: float, max_value: float, out: Tensor | None = None) -> Tensor:
    """`min(max(x, min_value), max_value)`; NaN stays NaN, and a zero at a bound keeps its sign."""
    import torch

    if x.is_cpu or not (_is_ordered(min_value) and _is_ordered(max_value)):
        return torch.clamp(x, min_value, max_value, out=out)
    low, high = rounded(min_value, x), rounded(max_value, x)
    y = torch.where(x < low, low, x)
    y = torch.where(y > high, high, y)
    return y if out is None else out.copy_(y)


def _is_ordered(bound: object) -> bool:
    """Whether a bound is a number and not NaN, which `torch.clamp` spreads over all of y."""
    return isinstance(bound, Real) and bound == bound


def inside(x: Tensor, min_value: float, max_value: float) -> Tensor:
    """The mask `min_value <= x <= max_value`, with the bounds as x's dtype holds them; false at NaN."""
    return (x >= rounded(min_value, x)).logical_and_(x <= rounded(max_value, x))


def ones_inside(x: Tensor, min_value: float, max_value: float) -> Tensor:
    """`inside` as integers 1 and 0, each as wide as an element of `x`; the bounds are ordered numbers.

    On the CPU PyTorch compares into a bool tensor, and fills where one is set, an element at a time. What it compares in
    place, in the dtype that is compared, is vectorised: a tile of float32 is masked 9 times as fast this way.
    """
    import torch

    kept = between(x, min_value, max_value).eq_(x)
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return kept.view(words[x.element_size()]).ne_(0)
