"""All 2**32 float32 patterns through the engine, in place and in tiles, against the plain expressions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from examples import bits
from torch import Tensor

from service.call import Call
from service.device import memory
from service.device.devices import Cpu
from service.device.engine import Engine
from service.dtypes import DTYPES
from service.ops import Ceil, Clamp, Expression, Floor, KBitQuantize, Round
from service.wire.message import Bundle, WireTensor

CHUNK = 2**24
# Odd, so that the two sides never meet at the same vector or block boundary.
PLAIN_BLOCK = 3 * 2**16 + 5

CASES: dict[Expression, Callable[[Tensor], Tensor]] = {
    Round(): torch.round,
    Ceil(): torch.ceil,
    Floor(): torch.floor,
    Clamp(min_value=0, max_value=1): lambda x: torch.clamp(x, 0, 1),
    KBitQuantize(k=4): lambda x: torch.round(x * 15.0) / 15.0,
}


def through_the_engine(expression: Expression, x: Tensor) -> Tensor:
    """The expression applied as a server does it: by the engine, in place."""
    wire = WireTensor(DTYPES["float32"], tuple(x.shape), memory.data_of(x))
    (y,) = Engine(Cpu("test")).run(Call("quantize", expression, Bundle.of(wire)))["y"].tensors
    assert y.data is wire.data
    return x


def mismatches(apply: Callable[[Expression, Tensor], Tensor], expression: Expression, patterns: Tensor, scratch: Tensor) -> int:
    """In how many of these int32 patterns `apply` and the plain expression differ, one NaN being like another."""
    y = apply(expression, scratch.copy_(patterns).view(torch.float32))
    count = 0
    for block, got in zip(patterns.split(PLAIN_BLOCK), y.split(PLAIN_BLOCK), strict=True):
        expected = CASES[expression](block.view(torch.float32))
        if not torch.equal(bits(got), bits(expected)):
            count += int(((bits(got) != bits(expected)) & ~(got.isnan() & expected.isnan())).sum())
    return count


def mismatches_of_all(apply: Callable[[Expression, Tensor], Tensor], expression: Expression) -> int:
    """`mismatches` over all 2**32 patterns, chunk by chunk in the same memory: fresh pages cost more than the arithmetic."""
    steps = torch.arange(CHUNK, dtype=torch.int32)
    patterns, scratch = torch.empty_like(steps), torch.empty_like(steps)
    starts = range(-(2**31), 2**31, CHUNK)
    return sum(mismatches(apply, expression, torch.add(steps, start, out=patterns), scratch) for start in starts)


def sample() -> Tensor:
    """A prime stride through the patterns: about a million, of every exponent and both signs."""
    return torch.arange(-(2**31), 2**31, 4093).to(torch.int32)


@pytest.mark.slow
@pytest.mark.parametrize("expression", CASES, ids=str)
def test_every_float32_pattern_has_the_bits_of_the_plain_expression(expression: Expression) -> None:
    assert mismatches_of_all(through_the_engine, expression) == 0


@pytest.mark.parametrize("expression", CASES, ids=str)
def test_a_sample_of_float32_patterns_has_the_bits_of_the_plain_expression(expression: Expression) -> None:
    patterns = sample()
    assert mismatches(through_the_engine, expression, patterns, torch.empty_like(patterns)) == 0


def test_the_comparison_sees_one_wrong_bit_and_the_sign_of_zero_but_no_nan_payload() -> None:
    def spoiled(expression: Expression, x: Tensor) -> Tensor:
        y = through_the_engine(expression, x)
        zeros = (y == 0).nonzero().flatten()
        y[zeros[0]] = -y[zeros[0]]
        ones = (y == 1).nonzero().flatten()
        y[ones[-1]] = torch.nextafter(y[ones[-1]], torch.tensor(2.0))
        y[y.isnan()] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)
        return y

    patterns = sample()
    assert mismatches(spoiled, Round(), patterns, torch.empty_like(patterns)) == 2
