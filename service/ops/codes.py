"""What a caller may ask for instead of values: the codes of a quantizer, packed or not, and the mask of a gradient."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from service.errors import NotRepresentable
from service.ops.base import Chain, Expression, Operator

if TYPE_CHECKING:
    import torch

Output = Literal["values", "codes", "packed", "mask"]

# Wider codes are not packed: they would take more room than their values in most dtypes.
MAX_PACKED_BITS = 32


class Interval(NamedTuple):
    """From the smallest to the largest of what codes can be."""

    low: float
    high: float


def check_output(expression: Expression, output: Output) -> None:
    """Raise `NotRepresentable` where the results of an expression have no such form."""
    last = expression.operators[-1]
    if output == "mask" and not expression.gradient_is_mask:
        culprit = next(operator for operator in expression.operators if not operator.gradient_is_masked)
        raise NotRepresentable(
            f"'output' is 'mask', but the gradient of {culprit.name!r} is not 'grad_output' or 0; "
            "allowed with round, ceil, floor, clamp, step_quantize, k_bit_quantize and chains of them"
        )
    if output in ("codes", "packed") and not last.has_codes:
        raise NotRepresentable(
            f"'output' is {output!r}, but {last.name!r}, the last operator of '{expression}', has no codes; "
            "allowed last: round, ceil, floor, step_quantize, k_bit_quantize, affine_k_bit_quantize"
        )
    if output == "packed" and (last.code_bits is None or last.code_bits > MAX_PACKED_BITS):
        raise NotRepresentable(
            f"'output' is 'packed', but the last operator is '{last}'; "
            f"allowed last: k_bit_quantize and affine_k_bit_quantize with k of at most {MAX_PACKED_BITS}"
        )


def prefix(expression: Expression) -> Expression | None:
    """What comes before the last operator; None where that is alone."""
    return Chain(expression.operators[:-1]) if len(expression.operators) > 1 else None


@lru_cache(maxsize=1024)
def code_interval(expression: Expression, dtype: torch.dtype) -> Interval | None:
    """Where all codes lie, whatever the input (NaN apart); None where nothing bounds them.

    Every operator is monotone, also as it rounds: what becomes of -inf and inf bounds what becomes of anything.
    """
    import torch

    ends = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    for operator in expression.operators[:-1]:
        ends = _image(operator, ends)
    low, high = expression.operators[-1].codes(ends).sort().values.tolist()
    return Interval(low, high) if -torch.inf < low <= high < torch.inf else None


def _image(operator: Operator, ends: torch.Tensor) -> torch.Tensor:
    """What bounds the values of an operator, given what bounds its input."""
    if not operator.is_elementwise:
        return ends.new_tensor([0, 1])  # clamp_by_linear, which NaN apart leaves nothing else
    if operator.own_tensor_names:
        return ends.new_tensor([-float("inf"), float("inf")])
    image = operator.forward(ends)
    return ends.new_tensor([-float("inf"), float("inf")]) if image.isnan().any() else image
