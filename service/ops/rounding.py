"""Rounding to integers with a straight-through gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from service.ops.base import Gradients, Operator, register

if TYPE_CHECKING:
    from torch import Tensor


class _StraightThrough(Operator):
    """Family of the operators whose gradient is `grad_output` itself."""

    is_straight_through: ClassVar[bool] = True
    gradient_is_masked: ClassVar[bool] = True

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """`grad_output`, not copied."""
        return Gradients(grad_output)

    def passes(self, x: Tensor) -> Tensor:
        """Everywhere."""
        import torch

        return torch.ones_like(x, dtype=torch.bool)


class _Rounding(_StraightThrough):
    """Family of the operators whose values are integers, and so their own codes."""

    has_codes: ClassVar[bool] = True

    def codes(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The values."""
        return self.forward(x, out=out)

    def decoded(self, codes: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """`codes`."""
        return codes


@register
class Round(_Rounding):
    """Round to the nearest integer, ties to even.

    y = round(x)

    grad_x = grad_output

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    NaN, infinities and signed zeros stay; -0.5 gives -0.0.

    Sources: Bengio et al. 2013, arXiv:1308.3432; spikingjelly.activation_based.quantize.round
    """

    name: ClassVar[str] = "round"

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`round(x)`."""
        import torch

        return torch.round(x, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`round(x)`."""
        return lambda x: np.rint(x, x)


@register
class Ceil(_Rounding):
    """Round up to an integer.

    y = ceil(x)

    grad_x = grad_output

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    NaN, infinities and signed zeros stay; -0.5 gives -0.0.

    Sources: Bengio et al. 2013, arXiv:1308.3432; spikingjelly.activation_based.quantize.ceil
    """

    name: ClassVar[str] = "ceil"

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`ceil(x)`."""
        import torch

        return torch.ceil(x, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`ceil(x)`."""
        return lambda x: np.ceil(x, x)


@register
class Floor(_Rounding):
    """Round down to an integer.

    y = floor(x)

    grad_x = grad_output

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    NaN, infinities and signed zeros stay.

    Sources: Bengio et al. 2013, arXiv:1308.3432; spikingjelly.activation_based.quantize.floor
    """

    name: ClassVar[str] = "floor"

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`floor(x)`."""
        import torch

        return torch.floor(x, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`floor(x)`."""
        return lambda x: np.floor(x, x)
