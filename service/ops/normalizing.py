"""Mapping a whole tensor linearly to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from service.dtypes import DType
from service.errors import ParameterDoesNotFit
from service.ops import arithmetic
from service.ops.base import Gradients, Operator, register
from service.ops.sums import total

if TYPE_CHECKING:
    from torch import Tensor


def clamp_by_linear(x: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """`(x - x_min) / (x_max - x_min)`, with `x_max` moved up by `eps`."""
    return _normalized(x, *_x_min_and_span(x, eps), out=out)


def _normalized(x: Tensor, x_min: Tensor, span: Tensor, out: Tensor | None) -> Tensor:
    import torch

    return torch.div(torch.sub(x, x_min, out=out), span, out=out)


@register
class ClampByLinear(Operator):
    """Map a tensor linearly to [0, 1], from its least to its greatest element.

    y = (x - x_min) / (x_max - x_min), x_min = min(x), x_max = max(x) + eps

    grad_x = the true derivative, through min and max too; tied extrema share theirs evenly

    Shapes: x, y, grad_output and grad_x are all (*), any rank, at least one element; y keeps x's dtype.
    The extrema are those of the whole tensor. A NaN anywhere makes all of y NaN.

    Sources: spikingjelly.activation_based.quantize.clamp_by_linear
    """

    name: ClassVar[str] = "clamp_by_linear"
    is_elementwise: ClassVar[bool] = False
    eps: float = Field(1e-5, ge=0, allow_inf_nan=False, description="added to the greatest element, in units of x")

    @property
    def reads_x(self) -> bool:
        """The extrema are those of x."""
        return True

    def check_dtype(self, dtype: DType) -> None:
        """`eps` must stay finite in the dtype, where it is added."""
        if not arithmetic.fits(self.eps, dtype):
            raise ParameterDoesNotFit(
                f"'eps' of 'clamp_by_linear' is {self.eps!r}, which is infinite in {dtype.name}; allowed: 0 to {dtype.max!r}"
            )

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`(x - x_min) / (x_max - x_min)`."""
        return clamp_by_linear(x, self.eps, out=out)

    def pointwise(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The map to [0, 1], once the extrema of `x` are known."""
        x_min, span = _x_min_and_span(x, self.eps)
        return lambda part: _normalized(part, x_min, span, out=part)

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """The derivative as the contract writes it, every step rounded to the dtype, sums as defined."""
        import torch

        assert x is not None
        x_min, span = _x_min_and_span(x, self.eps)
        direct = grad_output / span
        of_span = total(-grad_output * (((x - x_min) / span) / span))
        of_min = (-of_span) + total(-direct)
        grad_x = direct
        for extremum, gradient in ((x_min, of_min), (x.max(), of_span)):
            ties = x == extremum
            share = gradient / ties.sum().to(x.dtype)
            grad_x = grad_x + torch.where(ties, share, 0)
        return Gradients(grad_x)


def _x_min_and_span(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x_min` and `x_max - x_min`, both 0-d."""
    x_min = x.min()
    return x_min, (x.max() + arithmetic.rounded(eps, x)) - x_min
