"""Cutting values to a range, with a gradient that passes inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, model_validator

from service.dtypes import DType
from service.errors import ParameterDoesNotFit
from service.ops import arithmetic
from service.ops.base import Gradients, Operator, register

if TYPE_CHECKING:
    from torch import Tensor


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must not be NaN")
    return value


Bound = Annotated[float, AfterValidator(_not_nan)]


@register
class Clamp(Operator):
    """Cut values to a range; the gradient passes where nothing was cut.

    y = min(max(x, min_value), max_value)

    grad_x = grad_output where min_value <= x <= max_value, exactly 0 elsewhere

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    The bounds are rounded to x's dtype. NaN in x stays NaN and has gradient 0; -0.0 at a bound stays.

    Sources: Courbariaux et al. 2016, arXiv:1602.02830; spikingjelly.activation_based.quantize.clamp
    """

    name: ClassVar[str] = "clamp"
    gradient_is_masked: ClassVar[bool] = True
    min_value: Bound = Field(description="lower bound, in units of x")
    max_value: Bound = Field(description="upper bound, in units of x")

    @model_validator(mode="after")
    def _ordered(self) -> Clamp:
        if self.min_value > self.max_value:
            raise ValueError(f"min_value must be <= max_value, got {self.min_value!r} > {self.max_value!r}")
        return self

    @property
    def reads_x(self) -> bool:
        """The mask depends on x."""
        return True

    def check_dtype(self, dtype: DType) -> None:
        """The finite bounds must lie within the dtype's finite range."""
        for name in ("min_value", "max_value"):
            value = getattr(self, name)
            if math.isfinite(value) and abs(value) > dtype.max:
                raise ParameterDoesNotFit(
                    f"{name!r} of 'clamp' is {value!r}; {dtype.name} allows -{dtype.max!r} to {dtype.max!r}, -inf and inf"
                )

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`min(max(x, min_value), max_value)`."""
        return arithmetic.between(x, self.min_value, self.max_value, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`min(max(x, min_value), max_value)`."""
        low, high = np.array(self.min_value, dtype), np.array(self.max_value, dtype)
        return lambda x: x.clip(low, high, x)

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """`grad_output` inside the bounds, 0 outside and at NaN."""
        assert x is not None
        return Gradients(masked(grad_output, x, self.min_value, self.max_value, out=out))

    def passes(self, x: Tensor) -> Tensor:
        """Inside the bounds."""
        import torch

        return arithmetic.ones_inside(x, self.min_value, self.max_value).to(torch.int8).view(torch.bool)


def masked(grad_output: Tensor, x: Tensor, min_value: float, max_value: float, out: Tensor | None = None) -> Tensor:
    """`grad_output` where `min_value <= x <= max_value`, exactly 0 elsewhere, also where it is NaN there.

    Differentiable in `grad_output` where `out` is not given.
    """
    import torch

    if out is None:
        return torch.where(arithmetic.inside(x, min_value, max_value), grad_output, 0)
    if out is not grad_output:
        out.copy_(grad_output)
    ones = arithmetic.ones_inside(x, min_value, max_value)
    out.view(ones.dtype).mul_(ones)  # the bits as they are, or all of them 0
    return out
