"""Drop-in for `spikingjelly.activation_based.quantize`: the same names, signatures and values, differentiable, on any device.

The functions take every tensor that PyTorch's own expressions take, integer ones forward included. Ties
round to even. Where a gradient is said to be `grad_output`, it is that tensor itself, not a copy.

One value differs from upstream: where `clamp`'s mask cuts a gradient it is exactly 0, also where
`grad_output` is NaN or infinite, or `x` is NaN.

Sources of the straight-through gradient: Bengio et al. 2013, arXiv:1308.3432.
"""

# ruff: noqa: ARG004, autograd hands every function a ctx
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from service.ops import arithmetic, clamping, normalizing, uniform

__all__ = [
    "affine_k_bit_quantize",
    "ceil",
    "ceil_atgf",
    "clamp",
    "clamp_atgf",
    "clamp_backward",
    "clamp_by_linear",
    "floor",
    "floor_atgf",
    "k_bit_quantize",
    "k_bit_quantize_atgf",
    "k_bit_quantize_forward",
    "round",
    "round_atgf",
    "step_quantize",
    "step_quantize_atgf",
    "step_quantize_forward",
]


class round_atgf(torch.autograd.Function):
    """Autograd function of `round`: forward `torch.round(x)`, backward `grad_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`round(x)`."""
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """`grad_output`."""
        return grad_output


def round(x: Tensor) -> Tensor:  # noqa: A001, upstream's name
    """Round to the nearest integer, ties to even.

    y = round(x)

    grad_x = grad_output

    Shapes: x and y are (*), any rank; y keeps x's dtype, which may be an integer one when no gradient is asked for.

    Sources: arXiv:1308.3432; spikingjelly.activation_based.quantize.round
    """
    return _apply(round_atgf, x)


class ceil_atgf(torch.autograd.Function):
    """Autograd function of `ceil`: forward `torch.ceil(x)`, backward `grad_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`ceil(x)`."""
        return torch.ceil(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """`grad_output`."""
        return grad_output


def ceil(x: Tensor) -> Tensor:
    """Round up to an integer.

    y = ceil(x)

    grad_x = grad_output

    Shapes: x and y are (*), any rank; y keeps x's dtype, which may be an integer one when no gradient is asked for.

    Sources: arXiv:1308.3432; spikingjelly.activation_based.quantize.ceil
    """
    return _apply(ceil_atgf, x)


class floor_atgf(torch.autograd.Function):
    """Autograd function of `floor`: forward `torch.floor(x)`, backward `grad_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`floor(x)`."""
        return torch.floor(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """`grad_output`."""
        return grad_output


def floor(x: Tensor) -> Tensor:
    """Round down to an integer.

    y = floor(x)

    grad_x = grad_output

    Shapes: x and y are (*), any rank; y keeps x's dtype, which may be an integer one when no gradient is asked for.

    Sources: arXiv:1308.3432; spikingjelly.activation_based.quantize.floor
    """
    return _apply(floor_atgf, x)


def clamp_backward(grad_output: Tensor, x: Tensor, min_value: float, max_value: float) -> Tensor:
    """The gradient of `clamp`: `grad_output` where `min_value <= x <= max_value`, exactly 0 elsewhere and where x is NaN.

    Shapes: grad_output and x are (*), any rank; the result keeps grad_output's dtype. Differentiable in `grad_output`.
    Raises TypeError where a bound is None.

    Sources: Courbariaux et al. 2016, arXiv:1602.02830; spikingjelly.activation_based.quantize.clamp_backward
    """
    return clamping.masked(grad_output, x, min_value, max_value)


class clamp_atgf(torch.autograd.Function):
    """Autograd function of `clamp`: forward `torch.clamp(x, min_value, max_value)`, backward `clamp_backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, min_value: float, max_value: float) -> Tensor:
        """`min(max(x, min_value), max_value)`."""
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.min_value = min_value
            ctx.max_value = max_value
        return arithmetic.between(x, min_value, max_value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """`grad_output` inside the bounds, exactly 0 elsewhere; none for the bounds."""
        (x,) = ctx.saved_tensors
        return clamp_backward(grad_output, x, ctx.min_value, ctx.max_value), None, None


def clamp(x: Tensor, min_value: float, max_value: float) -> Tensor:
    """Cut values to a range; the gradient passes where nothing was cut.

    y = min(max(x, min_value), max_value)

    grad_x = grad_output where min_value <= x <= max_value, exactly 0 elsewhere

    Shapes: x and y are (*), any rank; y has the dtype that `torch.clamp` gives: x's, if x is floating.
    Where min_value > max_value all of y is max_value. NaN in x stays NaN and has gradient 0.
    Raises RuntimeError where a finite bound lies outside the range of x's dtype.

    Sources: Courbariaux et al. 2016, arXiv:1602.02830; spikingjelly.activation_based.quantize.clamp
    """
    return _apply(clamp_atgf, x, min_value, max_value)


def step_quantize_forward(x: Tensor, step: float) -> Tensor:
    """`round(x / step) * step`, as a plain expression: the forward of `step_quantize`.

    Shapes: x and y are (*), any rank; y keeps x's dtype, if x is floating.

    Sources: spikingjelly.activation_based.quantize.step_quantize_forward
    """
    return uniform.step_quantize(x, step)


class step_quantize_atgf(torch.autograd.Function):
    """Autograd function of `step_quantize`: forward `step_quantize_forward(x, step)`, backward `grad_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        """`round(x / step) * step`."""
        return step_quantize_forward(x, step)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        """`grad_output`; none for the step."""
        return grad_output, None


def step_quantize(x: Tensor, step: float) -> Tensor:
    """Quantize to the nearest multiple of a step, which may be negative; ties of `x / step` go to even.

    y = round(x / step) * step

    grad_x = grad_output

    Shapes: x and y are (*), any rank; y keeps x's dtype, if x is floating; an integer x gives the default dtype.

    Sources: arXiv:1308.3432; spikingjelly.activation_based.quantize.step_quantize
    """
    return _apply(step_quantize_atgf, x, step)


def k_bit_quantize_forward(x: Tensor, k: int) -> Tensor:
    """`round(x * s) / s` with `s = 2**k - 1`, as a plain expression: the forward of `k_bit_quantize`.

    Shapes: x and y are (*), any rank; y keeps x's dtype, if x is floating.
    Raises ValueError where k is negative.

    Sources: arXiv:1606.06160; spikingjelly.activation_based.quantize.k_bit_quantize_forward
    """
    return uniform.k_bit_quantize(x, k)


class k_bit_quantize_atgf(torch.autograd.Function):
    """Autograd function of `k_bit_quantize`: forward `k_bit_quantize_forward(x, k)`, backward `grad_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        """`round(x * s) / s`."""
        return k_bit_quantize_forward(x, k)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        """`grad_output`; none for k."""
        return grad_output, None


def k_bit_quantize(x: Tensor, k: int) -> Tensor:
    """Quantize to the k-bit grid of DoReFa-Net: multiples of 1 / (2**k - 1). Nothing is clamped.

    y = round(x * s) / s, s = 2**k - 1

    grad_x = grad_output, outside [0, 1] too

    Shapes: x and y are (*), any rank; y keeps x's dtype, if x is floating; an integer x gives the default dtype.
    Raises ValueError where k < 1.

    Sources: Zhou et al. 2016 (DoReFa-Net), arXiv:1606.06160; spikingjelly.activation_based.quantize.k_bit_quantize
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more bits")
    return _apply(k_bit_quantize_atgf, x, k)


def affine_k_bit_quantize(x: Tensor, k: int, w: Tensor, b: Tensor) -> Tensor:
    """Quantize to the k-bit grid, then scale and shift.

    y = w * k_bit_quantize(x, k) + b

    grad_x = w * grad_output, grad_w = sum(grad_output * k_bit_quantize(x, k)), grad_b = sum(grad_output),
    by autograd, each sum taken by PyTorch over the dimensions that were broadcast

    Shapes: x is (*), any rank; w and b are tensors that broadcast with it, or numbers; dtypes promote as PyTorch's do.
    Raises ValueError where k < 1.

    Sources: Zhou et al. 2016, arXiv:1606.06160; spikingjelly.activation_based.quantize.affine_k_bit_quantize
    """
    return uniform.affine(k_bit_quantize(x, k), w, b)


def clamp_by_linear(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Map a tensor linearly to [0, 1], from its least to its greatest element.

    y = (x - x_min) / (x_max - x_min), x_min = min(x), x_max = max(x) + eps

    grad_x = the true derivative, by autograd, through min and max too; tied extrema share theirs evenly

    Shapes: x and y are (*), any rank, at least one element; y keeps x's dtype, if x is floating.
    Raises RuntimeError where x is empty.

    Sources: spikingjelly.activation_based.quantize.clamp_by_linear
    """
    return normalizing.clamp_by_linear(x, eps)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply`, which carries no types, with one."""
    y: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return y
