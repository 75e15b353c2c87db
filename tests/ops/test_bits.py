"""Bit for bit: every 16-bit pattern, and hard cases in 32 and 64 bits, against two oracles written apart.

`plain` is the eager PyTorch expression, `numpy_model` computes in NumPy and rounds explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy_model
import pytest
import torch
from examples import DTYPES, assert_same_bits, same_but_for_zero_signs
from hypothesis import given
from hypothesis import strategies as st
from plain import plain
from torch import Tensor

from service.dtypes import DTYPES as DTYPE_BY_NAME
from service.errors import ParameterDoesNotFit
from service.ops import AffineKBitQuantize, Ceil, Clamp, ClampByLinear, Floor, KBitQuantize, Operator, Round, StepQuantize

SIXTEEN_BITS = [torch.float16, torch.bfloat16]
LARGEST_EXHAUSTIVE_K = {torch.float16: 15, torch.bfloat16: 16, torch.float32: 16, torch.float64: 16}
BOUNDS = [
    (0, 1),
    (-1, 1),
    (-1.5, 0.1),
    (0.1, 1 / 3),
    (-0.0, 0.0),
    (0, 0),
    (3, 3),
    (-math.inf, 0.7),
    (1e-5, math.inf),
    (-65504, 65504),
]
STEPS = [1, 0.5, 0.25, 0.1, 1 / 3, 0.7, 3, 1e-3, 1e-5, 1e-8, 1000, 70000.0, 1e-40, 1e38]
WEIGHTS = [1.0, 0.1, -1.7, 1 / 3, 0.0, -0.0, 1e-5, 70000.0]
BIASES = [0.0, -0.0, 0.1, -1 / 3, 1e-5, 2049.0, -65504.0]
EPS = [1e-5, 0.0, 0.1, 1e-8, 1000.0]
TENSOR_SHAPES: list[tuple[int, ...]] = [(), (1,), (256,), (256, 1), (1, 256), (256, 256)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both_16_bit_dtypes = pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)


def every_pattern(dtype: torch.dtype) -> Tensor:
    """All 65536 of them, NaNs, infinities and subnormals included, as a square."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(256, 256)


def elementwise(dtype: torch.dtype) -> dict[str, list[Operator]]:
    """Operators with numbers only, by name, with the parameters that fit the dtype."""
    ks = range(1, LARGEST_EXHAUSTIVE_K[dtype] + 1)
    candidates: list[Operator] = [
        Round(),
        Ceil(),
        Floor(),
        *(Clamp(min_value=low, max_value=high) for low, high in BOUNDS),
        *(StepQuantize(step=step) for step in STEPS),
        *(KBitQuantize(k=k) for k in ks),
        *(AffineKBitQuantize(k=k, w=w, b=b) for k in (1, 4, 15) for w in WEIGHTS for b in BIASES),
    ]
    by_name: dict[str, list[Operator]] = {}
    for operator in candidates:
        if _fits(operator, dtype):
            by_name.setdefault(operator.name, []).append(operator)
    return by_name


def _fits(operator: Operator, dtype: torch.dtype) -> bool:
    try:
        operator.check(DTYPE_BY_NAME[str(dtype).removeprefix("torch.")])
    except ParameterDoesNotFit:
        return False
    return True


def agree(operator: Operator, x: Tensor, tensors: dict[str, Tensor], device: torch.device) -> None:
    """`operator`, computed on `device`, has the bits of both oracles, which compute on the CPU."""
    got = operator.forward(x.to(device), {name: tensor.to(device) for name, tensor in tensors.items()})
    by_pytorch, by_numpy = plain(operator, x, tensors), numpy_model.forward(operator, x, tensors)
    if operator.name == "clamp_by_linear" and _least_is_a_zero_of_either_sign(x):
        if device.type == "cpu":
            assert_same_bits(got, by_pytorch, f"{operator} against PyTorch")
        got, by_pytorch, by_numpy = map(same_but_for_zero_signs, (got.cpu(), by_pytorch, by_numpy))
    assert_same_bits(got, by_pytorch, f"{operator} against PyTorch")
    assert_same_bits(got, by_numpy, f"{operator} against NumPy")


def _least_is_a_zero_of_either_sign(x: Tensor) -> bool:
    """Which of the two zeros is then the minimum depends, in PyTorch, on their positions and the vector width.

    It decides the sign of `x - x_min` where that is zero, and nothing else.
    """
    return bool(x.min() == 0) and len(torch.signbit(x[x == 0]).unique()) == 2


@both_16_bit_dtypes
@pytest.mark.parametrize("name", ["round", "ceil", "floor", "clamp", "step_quantize", "k_bit_quantize", "affine_k_bit_quantize"])
def test_every_sixteen_bit_pattern(name: str, dtype: torch.dtype, device: torch.device) -> None:
    x = every_pattern(dtype)
    for operator in elementwise(dtype)[name]:
        agree(operator, x, {}, device)


@both_16_bit_dtypes
@pytest.mark.parametrize("shape", TENSOR_SHAPES, ids=str)
def test_every_sixteen_bit_pattern_with_tensor_parameters(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """A 0-d tensor `w` is rounded to the dtype, where a number is not."""
    x = every_pattern(dtype)
    generator = torch.Generator().manual_seed(5)
    w, b = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    for k in (1, 4, 15):
        for parameters in ({"w": "w", "b": "b"}, {"w": "w", "b": 0.1}, {"w": 0.1, "b": "b"}):
            agree(AffineKBitQuantize(k=k, **parameters), x, {"w": w, "b": b}, device)


def test_a_number_and_a_tensor_weight_can_be_told_apart() -> None:
    """Else the test above could not see the difference."""
    x = every_pattern(torch.float16)
    number = AffineKBitQuantize(k=4, w=0.1, b=0).forward(x)
    tensor = AffineKBitQuantize(k=4, w="w", b=0).forward(x, {"w": torch.tensor(0.1).half()})
    assert (number != tensor).sum() > 1000


@both_16_bit_dtypes
def test_every_sixteen_bit_pattern_backwards(dtype: torch.dtype, device: torch.device) -> None:
    """Every pattern as x with gradients that include NaN and infinities; and every pattern as gradient."""
    patterns = every_pattern(dtype)
    for x, grad_output in ((patterns, patterns.flip(0, 1)), (patterns.flip(1), patterns)):
        for low, high in BOUNDS:
            operator = Clamp(min_value=low, max_value=high)
            if _fits(operator, dtype):
                got = operator.backward(x.to(device), grad_output.to(device)).grad_x.cpu()
                mask = (x >= low) & (x <= high)
                assert (got[~mask] == 0).all()
                assert_same_bits(got[mask], grad_output[mask], operator)
        for w in WEIGHTS:
            got = AffineKBitQuantize(k=4, w=w, b=0).backward(None, grad_output.to(device)).grad_x
            assert_same_bits(got, w * grad_output, w)


def _finite_slices(dtype: torch.dtype) -> Iterator[Tensor]:
    patterns = every_pattern(dtype).flatten()
    for greatest in (math.inf, 1000.0, 4.0, 1.0, 0.01, 1e-6):
        for least in (-math.inf, -2.0, 0.0, 0.5):
            x = patterns[patterns.isfinite() & (patterns >= least) & (patterns <= greatest)]
            if x.numel():
                yield x


@both_16_bit_dtypes
def test_every_finite_sixteen_bit_pattern_mapped_linearly(dtype: torch.dtype, device: torch.device) -> None:
    for x in [*_finite_slices(dtype), every_pattern(dtype)]:
        for eps in EPS:
            agree(ClampByLinear(eps=eps), x, {}, device)


@both_16_bit_dtypes
def test_every_finite_sixteen_bit_pattern_mapped_linearly_backwards(dtype: torch.dtype, device: torch.device) -> None:
    for x in list(_finite_slices(dtype))[::5]:
        generator = torch.Generator().manual_seed(x.numel())
        grad_output = torch.randn(x.shape, generator=generator).to(dtype)
        for eps in (1e-5, 0.1):
            got = ClampByLinear(eps=eps).backward(x.to(device), grad_output.to(device)).grad_x
            assert_same_bits(got, numpy_model.clamp_by_linear_gradient(x, grad_output, eps), f"eps={eps}")


def _beside(x: Tensor) -> Tensor:
    """`x` and the next number on either side."""
    return torch.cat([x, torch.nextafter(x, torch.full_like(x, math.inf)), torch.nextafter(x, torch.full_like(x, -math.inf))])


@every_dtype
def test_every_tie_of_k_bit_quantize_and_its_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    for k in range(1, LARGEST_EXHAUSTIVE_K[dtype] + 1):
        s = 2**k - 1
        ties = ((torch.arange(-s, 2 * s, dtype=torch.float64) + 0.5) / s).to(dtype)
        agree(KBitQuantize(k=k), _beside(ties), {}, device)


@every_dtype
def test_ties_of_step_quantize_and_their_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    for step in STEPS[:11]:
        ties = ((torch.arange(-5000, 5000, dtype=torch.float64) + 0.5) * step).to(dtype)
        agree(StepQuantize(step=step), _beside(ties), {}, device)


@every_dtype
def test_ties_of_rounding_and_their_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    """Up to where the spacing of the dtype passes a half, and beyond."""
    digits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}[dtype]
    near = [2.0**e + offset for e in range(digits + 2) for offset in (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)]
    x = torch.tensor(near, dtype=torch.float64).to(dtype)
    for operator in (Round(), Ceil(), Floor()):
        agree(operator, _beside(torch.cat([x, -x])), {}, device)


def _floats(dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    width = 32 if dtype == torch.float32 else 64
    anywhere, near_one = st.floats(width=width), st.floats(-4, 4, width=width)
    return st.lists(anywhere | near_one, min_size=1, max_size=40).map(lambda values: torch.tensor(values, dtype=dtype))


def _all(operators: dict[str, list[Operator]]) -> Iterable[Operator]:
    return [operator for group in operators.values() for operator in group]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_any_wide_values_through_any_operator(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(_floats(dtype))
    operator = data.draw(st.sampled_from(_all(elementwise(dtype))))
    agree(operator, x, {}, torch.device("cpu"))
    agree(ClampByLinear(eps=data.draw(st.sampled_from(EPS))), x, {}, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_any_wide_parameters_on_any_wide_values(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(_floats(dtype))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    low, high = sorted([data.draw(numbers), data.draw(numbers)])
    drawn: list[Operator] = [
        Clamp(min_value=low, max_value=high),
        StepQuantize(step=data.draw(st.floats(0, exclude_min=True, allow_infinity=False))),
        KBitQuantize(k=data.draw(st.integers(1, 1023))),
        AffineKBitQuantize(k=data.draw(st.integers(1, 40)), w=data.draw(numbers), b=data.draw(numbers)),
        ClampByLinear(eps=data.draw(st.floats(0, allow_infinity=False))),
    ]
    for operator in drawn:
        if _fits(operator, dtype):
            agree(operator, x, {}, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_any_wide_tensor_parameters(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(_floats(dtype))
    w, b = (data.draw(_floats(dtype))[:1] for _ in range(2))
    agree(AffineKBitQuantize(k=data.draw(st.integers(1, 24)), w="w", b="b"), x, {"w": w, "b": b}, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_any_wide_values_through_the_gradient_of_clamp_by_linear(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(_floats(dtype))
    grad_output = data.draw(_floats(dtype).filter(lambda g: g.numel() >= 1))
    grad_output = grad_output.repeat(x.numel())[: x.numel()]
    eps = data.draw(st.sampled_from(EPS))
    got = ClampByLinear(eps=eps).backward(x, grad_output).grad_x
    expected = numpy_model.clamp_by_linear_gradient(x, grad_output, eps)
    assert_same_bits(same_but_for_zero_signs(got), same_but_for_zero_signs(expected))
