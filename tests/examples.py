"""Example operators, dtypes and values: the cases that laws over the registry are tried on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from service.ops import (
    AffineKBitQuantize,
    Ceil,
    Clamp,
    ClampByLinear,
    Expression,
    Floor,
    KBitQuantize,
    Operator,
    Round,
    StepQuantize,
)

# At least one for every registered operator, and every kind of value its parameters may take.
EXAMPLES: list[Operator] = [
    Round(),
    Ceil(),
    Floor(),
    Clamp(min_value=0, max_value=1),
    Clamp(min_value=-1.5, max_value=0.1),
    Clamp(min_value=-0.0, max_value=0.0),
    Clamp(min_value=-math.inf, max_value=2),
    Clamp(min_value=-math.inf, max_value=math.inf),
    StepQuantize(step=0.25),
    StepQuantize(step=0.1),
    StepQuantize(step=3),
    KBitQuantize(k=1),
    KBitQuantize(k=4),
    KBitQuantize(k=15),
    AffineKBitQuantize(k=4, w=0.5, b=-1),
    AffineKBitQuantize(k=2, w=-1.7, b=0.1),
    AffineKBitQuantize(k=4, w="w", b="b"),
    AffineKBitQuantize(k=8, w="scale", b=0.3),
    AffineKBitQuantize(k=3, w=0.1, b="shift"),
    AffineKBitQuantize(k=3, w="w", b="w"),
    ClampByLinear(),
    ClampByLinear(eps=0),
    ClampByLinear(eps=0.5),
]

ELEMENTWISE: list[Operator] = [op for op in EXAMPLES if op.elementwise]

DTYPES: list[torch.dtype] = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def interesting(dtype: torch.dtype) -> Tensor:
    """Ties and their neighbours, both zeros, the ends of the dtype's range, infinities, NaN; 1-d."""
    return torch.cat([finite(dtype), torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)])


def finite(dtype: torch.dtype) -> Tensor:
    """The finite ones among the interesting values, both zeros and both ends of the range included; 1-d."""
    info = torch.finfo(dtype)
    ends = [0.0, info.tiny, info.smallest_normal / 2, info.eps, 1 - info.eps, 1 + info.eps, info.max, info.max / 2]
    ties = [n + 0.5 for n in range(6)] + [n / 15 + 1 / 30 for n in range(15)]
    grid = [n / 16 for n in range(33)]
    positive = torch.tensor(ends + ties + grid, dtype=dtype)
    beside = [torch.nextafter(positive, torch.full_like(positive, to)) for to in (0.0, 4.0)]
    x = torch.cat([positive, *beside])
    return torch.cat([x, -x])


def moderate(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Values around [-2, 2] that no operator carries out of the dtype's range."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 4 - 2).to(dtype)


def tensors_for(expression: Expression, x: Tensor, shape: Sequence[int] = ()) -> dict[str, Tensor]:
    """A tensor of this shape for each name in the expression, of x's dtype and device."""
    return {name: moderate(x.dtype, *shape, seed=100 + index).to(x.device) for index, name in enumerate(expression.tensor_names)}


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """The elements of `x` as integers: what `==` cannot tell apart, `0.0` and `-0.0`, differs here."""
    return x.contiguous().view(_INTEGERS[x.element_size()])


def assert_same_bits(got: Tensor, expected: Tensor, case: object = "") -> None:
    """The same dtype, shape and bits; any NaN equals any NaN."""
    assert got.dtype == expected.dtype, f"{case}: {got.dtype} instead of {expected.dtype}"
    assert got.shape == expected.shape, f"{case}: {tuple(got.shape)} instead of {tuple(expected.shape)}"
    got, expected = got.detach().cpu(), expected.detach().cpu()
    differ = (bits(got) != bits(expected)) & ~(got.isnan() & expected.isnan())
    if differ.any():
        index = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{case}: {int(differ.sum())} of {differ.numel()} differ, first at {index}: "
            f"{got[index].item()!r} instead of {expected[index].item()!r}"
        )


def same_but_for_zero_signs(x: Tensor) -> Tensor:
    """`x` with every zero positive: where a mask cut a gradient, the sign of the zero is free."""
    return torch.where(x == 0, torch.zeros_like(x), x)
