"""Uniform quantizers: by a step, by a number of bits, and with an affine map behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainValidator, WithJsonSchema

from service.dtypes import DTYPES, ROUNDS_TO_ZERO, DType
from service.errors import ParameterDoesNotFit
from service.ops import arithmetic
from service.ops.base import Gradients, Operator, register, tensor_name
from service.ops.rounding import _StraightThrough
from service.ops.sums import sum_to_shape

if TYPE_CHECKING:
    from torch import Tensor


def largest_k(dtype: DType) -> int:
    """The largest k for which `2**k - 1` stays finite in the dtype."""
    return LARGEST_K[dtype.name]


def step_quantize(x: Tensor, step: float, out: Tensor | None = None) -> Tensor:
    """`round(x / step) * step`."""
    import torch

    return torch.mul(step_codes(x, step, out=out), step, out=out)


def step_codes(x: Tensor, step: float, out: Tensor | None = None) -> Tensor:
    """`round(x / step)`."""
    import torch

    return torch.round(arithmetic.divide(x, step, out=out), out=out)


def k_bit_quantize(x: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """`round(x * s) / s` with `s = 2**k - 1`."""
    return arithmetic.divide(k_bit_codes(x, k, out=out), largest_code(k), out=out)


def k_bit_codes(x: Tensor, k: int, out: Tensor | None = None) -> Tensor:
    """`round(x * s)` with `s = 2**k - 1`."""
    import torch

    return torch.round(torch.mul(x, largest_code(k), out=out), out=out)


def largest_code(k: int) -> float:
    """`s = 2**k - 1`, the code of 1."""
    return float(1 << k) - 1.0


def affine(q: Tensor, w: float | Tensor, b: float | Tensor, out: Tensor | None = None) -> Tensor:
    """`w * q + b`, the product rounded to the dtype before the sum."""
    import torch

    # The order counts: PyTorch rounds a 0-d float32 tensor to float16 where it comes first, and only there.
    product = torch.mul(q, w, out=out) if isinstance(w, Real) else torch.mul(w, q, out=out)
    return torch.add(product, arithmetic.rounded(b, product), out=out)


@register
class StepQuantize(_StraightThrough):
    """Quantize to the nearest multiple of a step.

    y = round(x / step) * step

    grad_x = grad_output

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    Ties of x / step go to even; NaN stays NaN, infinities stay.

    Sources: Bengio et al. 2013, arXiv:1308.3432; spikingjelly.activation_based.quantize.step_quantize
    """

    name: ClassVar[str] = "step_quantize"
    has_codes: ClassVar[bool] = True
    step: float = Field(gt=0, allow_inf_nan=False, description="distance between neighbouring values of y, in units of x")

    def check_dtype(self, dtype: DType) -> None:
        """`step` must be neither 0 nor infinite in the arithmetic it enters."""
        _check_number("step", self, self.step, DTYPES[dtype.arithmetic], dtype)
        if self.step <= ROUNDS_TO_ZERO[dtype.arithmetic]:
            raise ParameterDoesNotFit(
                f"'step' of 'step_quantize' is {self.step!r}, which is 0 in the {dtype.arithmetic} arithmetic of {dtype.name}; "
                f"allowed: more than {ROUNDS_TO_ZERO[dtype.arithmetic]!r}"
            )

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`round(x / step) * step`."""
        return step_quantize(x, self.step, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`round(x / step) * step`."""
        step = np.array(self.step, dtype)  # of no dimensions: NumPy takes half a microsecond to make one of a scalar

        def run(x: npt.NDArray[Any]) -> None:
            np.divide(x, step, x)
            np.rint(x, x)
            np.multiply(x, step, x)

        return run

    def codes(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`round(x / step)`."""
        return step_codes(x, self.step, out=out)

    def decoded(self, codes: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """`codes * step`."""
        import torch

        return torch.mul(codes, self.step)


Bits = Annotated[int, Field(ge=1, le=1023)]


def _check_k(operator: KBitQuantize | AffineKBitQuantize, dtype: DType) -> None:
    if operator.k > largest_k(dtype):
        raise ParameterDoesNotFit(
            f"'k' of {operator.name!r} is {operator.k}; {dtype.name} allows 1 to {largest_k(dtype)}, so that 2**k - 1 is finite"
        )


@register
class KBitQuantize(_StraightThrough):
    """Quantize to the k-bit grid of DoReFa-Net: multiples of 1 / (2**k - 1).

    y = round(x * s) / s, s = 2**k - 1

    grad_x = grad_output, outside [0, 1] too

    Shapes: x, y, grad_output and grad_x are all (*), any rank; y keeps x's dtype.
    Nothing is clamped: values outside [0, 1] extrapolate. Ties of x * s go to even.

    Sources: Zhou et al. 2016 (DoReFa-Net), arXiv:1606.06160; spikingjelly.activation_based.quantize.k_bit_quantize
    """

    name: ClassVar[str] = "k_bit_quantize"
    has_codes: ClassVar[bool] = True
    k: Bits = Field(description="code width, in bits; at most 15 for float16, 127 for bfloat16 and float32, 1023 for float64")

    def check_dtype(self, dtype: DType) -> None:
        """`2**k - 1` must be finite in the dtype."""
        _check_k(self, dtype)

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`round(x * s) / s`."""
        return k_bit_quantize(x, self.k, out=out)

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object]:
        """`round(x * s) / s`."""
        s = np.array(largest_code(self.k), dtype)

        def run(x: npt.NDArray[Any]) -> None:
            np.multiply(x, s, x)
            np.rint(x, x)
            np.divide(x, s, x)

        return run

    @property
    def code_bits(self) -> int:
        """`k`."""
        return self.k

    def codes(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`round(x * s)`."""
        return k_bit_codes(x, self.k, out=out)

    def decoded(self, codes: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """`codes / s`."""
        return arithmetic.divide(codes, largest_code(self.k))


def _number_or_name(value: Any) -> float | str:
    """A finite number, or the name of a tensor that travels with the call."""
    if isinstance(value, str):
        return tensor_name(value)
    # An int may be too large for float(); comparing it with the largest float is exact.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= DTYPES["float64"].max:
        raise ValueError(f"{value!r} is neither a finite number nor the name of a tensor")
    return float(value)


NumberOrTensorName = Annotated[
    float | str,
    PlainValidator(_number_or_name),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "description": "name of a tensor in the body"}]}),
]


@register
class AffineKBitQuantize(Operator):
    """Quantize to the k-bit grid, then scale and shift.

    y = w * k_bit_quantize(x, k) + b

    grad_x = w * grad_output; for tensors grad_w = sum(grad_output * k_bit_quantize(x, k)), grad_b = sum(grad_output),
    each summed to the parameter's own shape

    Shapes: x, y, grad_output and grad_x are all (*), any rank; tensors w and b broadcast to x's shape and have x's dtype.
    A number w is kept in the arithmetic (float32 for float16 and bfloat16), a number b is rounded to the dtype.

    Sources: Zhou et al. 2016 (DoReFa-Net), arXiv:1606.06160; spikingjelly.activation_based.quantize.affine_k_bit_quantize
    """

    name: ClassVar[str] = "affine_k_bit_quantize"
    has_codes: ClassVar[bool] = True
    k: Bits = Field(description="code width, in bits; at most 15 for float16, 127 for bfloat16 and float32, 1023 for float64")
    w: NumberOrTensorName = Field(description="weight")
    b: NumberOrTensorName = Field(description="bias")

    @property
    def reads_x(self) -> bool:
        """Only the gradient of a tensor w depends on x."""
        return isinstance(self.w, str)

    def check_dtype(self, dtype: DType) -> None:
        """`2**k - 1`, `w` and `b` must be finite in the arithmetic they enter."""
        _check_k(self, dtype)
        if not isinstance(self.w, str):
            _check_number("w", self, self.w, DTYPES[dtype.arithmetic], dtype)
        if not isinstance(self.b, str):
            _check_number("b", self, self.b, dtype, dtype)

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`w * k_bit_quantize(x, k) + b`."""
        return affine(k_bit_quantize(x, self.k, out=out), _value(self.w, tensors), _value(self.b, tensors), out=out)

    @property
    def code_bits(self) -> int:
        """`k`."""
        return self.k

    def codes(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """`round(x * s)`."""
        return k_bit_codes(x, self.k, out=out)

    def decoded(self, codes: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """`w * (codes / s) + b`."""
        return affine(arithmetic.divide(codes, largest_code(self.k)), _value(self.w, tensors), _value(self.b, tensors))

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """`w * grad_output`, and the sums for the parameters that are tensors."""
        import torch

        terms = []
        if isinstance(self.w, str):
            assert x is not None
            terms.append((self.w, sum_to_shape(grad_output * k_bit_quantize(x, self.k), _value(self.w, tensors).shape)))
        if isinstance(self.b, str):
            terms.append((self.b, sum_to_shape(grad_output, _value(self.b, tensors).shape)))
        return Gradients(torch.mul(grad_output, _value(self.w, tensors), out=out), tuple(terms))


def _value(parameter: float | str, tensors: Mapping[str, Tensor] | None) -> Any:
    if not isinstance(parameter, str):
        return parameter
    if tensors is None or parameter not in tensors:
        raise ValueError(f"the tensor {parameter!r} is not among those given: {', '.join(tensors or {}) or 'none'}")
    return tensors[parameter]


def _check_number(parameter: str, operator: Operator, value: float, entered: DType, dtype: DType) -> None:
    if not arithmetic.fits(value, entered):
        raise ParameterDoesNotFit(
            f"{parameter!r} of {operator.name!r} is {value!r}, which is infinite in the {entered.name} "
            f"arithmetic it enters beside {dtype.name}; allowed: magnitudes up to {entered.max!r}"
        )


LARGEST_K = {dtype.name: max(k for k in range(1, 1024) if dtype.holds(float(2**k - 1))) for dtype in DTYPES.values()}
