"""Laws that every registered operator obeys, whatever it computes."""

from __future__ import annotations

import math

import pytest
import torch
from examples import DTYPES, ELEMENTWISE, EXAMPLES, assert_same_bits, bits, finite, interesting, moderate, tensors_for
from plain import plain
from torch import Tensor

from service.ops import (
    REGISTRY,
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

CHAIN = Clamp(min_value=0, max_value=1) | KBitQuantize(k=4)
LONG_CHAIN = ClampByLinear() | AffineKBitQuantize(k=4, w="w", b=0.1) | Clamp(min_value=-1, max_value=1) | Round()
EXPRESSIONS: list[Expression] = [*EXAMPLES, CHAIN, LONG_CHAIN]

every_expression = pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
every_elementwise = pytest.mark.parametrize("expression", [*ELEMENTWISE, CHAIN], ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def test_every_registered_operator_has_an_example() -> None:
    assert {type(op) for op in EXAMPLES} == set(REGISTRY.values())


def test_every_tensor_parameter_has_an_example_as_a_number_and_as_a_tensor() -> None:
    kinds = {type(getattr(op, name)) for op in EXAMPLES for name in ("w", "b") if hasattr(op, name)}
    assert kinds == {float, str}


@every_expression
@every_dtype
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (1, 1, 1, 1)], ids=str)
def test_y_and_the_gradient_have_the_shape_and_dtype_of_x(
    expression: Expression, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, grad_output = moderate(dtype, *shape), moderate(dtype, *shape, seed=1)
    tensors = tensors_for(expression, x)
    y = expression.forward(x, tensors)
    gradients = expression.backward(x, grad_output, tensors)
    for result in (y, gradients.grad_x):
        assert (result.dtype, result.shape) == (dtype, x.shape)
    assert set(gradients.by_name()) == set(expression.tensor_names)
    for name, gradient in gradients.by_name().items():
        assert (gradient.dtype, gradient.shape) == (dtype, tensors[name].shape)


@every_elementwise
@every_dtype
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)], ids=str)
def test_an_empty_tensor_gives_an_empty_tensor(expression: Expression, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=dtype)
    tensors = tensors_for(expression, x)
    gradients = expression.backward(x, torch.empty_like(x), tensors)
    assert expression.forward(x, tensors).shape == gradients.grad_x.shape == x.shape
    assert all(gradient == 0 for gradient in gradients.by_name().values())


@pytest.mark.parametrize("operator", [Round(), StepQuantize(step=1), KBitQuantize(k=1)], ids=str)
@every_dtype
def test_ties_round_to_even(operator: Operator, dtype: torch.dtype) -> None:
    x = torch.tensor([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], dtype=dtype)
    expected = torch.tensor([-4.0, -2.0, -2.0, -0.0, 0.0, 2.0, 2.0, 4.0], dtype=dtype)
    assert_same_bits(operator.forward(x), expected)


@every_dtype
def test_the_greatest_number_below_a_half_rounds_to_zero(dtype: torch.dtype) -> None:
    """Where `floor(x + 0.5)` gives 1."""
    x = torch.nextafter(torch.tensor(0.5, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    assert Round().forward(x) == 0


@pytest.mark.parametrize("operator", ELEMENTWISE, ids=str)
@every_dtype
def test_nan_stays_nan_and_touches_no_neighbour(operator: Operator, dtype: torch.dtype) -> None:
    x = finite(dtype)
    tensors = tensors_for(operator, x)
    with_nan = torch.stack([x, torch.full_like(x, math.nan)], dim=1).flatten()
    y = operator.forward(with_nan, tensors).reshape(-1, 2)
    assert_same_bits(y[:, 0].contiguous(), operator.forward(x, tensors))
    assert y[:, 1].isnan().all()


@pytest.mark.parametrize("operator", EXAMPLES, ids=str)
@every_dtype
def test_special_values_come_out_as_the_plain_expression_gives_them(operator: Operator, dtype: torch.dtype) -> None:
    for x in (interesting(dtype), finite(dtype), moderate(dtype, 33)):
        tensors = tensors_for(operator, x)
        assert_same_bits(operator.forward(x, tensors), plain(operator, x, tensors), operator)


@pytest.mark.parametrize(
    ("operator", "at_infinity"),
    [
        (Round(), math.inf),
        (Ceil(), math.inf),
        (Floor(), math.inf),
        (Clamp(min_value=-1, max_value=2), 2),
        (Clamp(min_value=-math.inf, max_value=math.inf), math.inf),
        (StepQuantize(step=0.25), math.inf),
        (KBitQuantize(k=4), math.inf),
        (AffineKBitQuantize(k=4, w=-2, b=1), -math.inf),
    ],
    ids=str,
)
@every_dtype
def test_infinities_are_data(operator: Operator, at_infinity: float, dtype: torch.dtype) -> None:
    assert operator.forward(torch.tensor(math.inf, dtype=dtype)).item() == at_infinity


@pytest.mark.parametrize(
    "operator",
    [Round(), Ceil(), Floor(), Clamp(min_value=0, max_value=0), StepQuantize(step=0.1), KBitQuantize(k=3)],
    ids=str,
)
@every_dtype
@pytest.mark.parametrize("size", [1, 8, 33])
def test_zeros_keep_their_sign(operator: Operator, dtype: torch.dtype, size: int) -> None:
    for zero in (0.0, -0.0):
        x = torch.full((size,), zero, dtype=dtype)
        assert_same_bits(operator.forward(x), x)


@every_dtype
def test_small_negative_numbers_round_up_to_minus_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([-0.5, -0.25, -torch.finfo(dtype).tiny], dtype=dtype)
    minus_zero = torch.full_like(x, -0.0)
    assert_same_bits(Round().forward(x), minus_zero)
    assert_same_bits(Ceil().forward(x), minus_zero)


@pytest.mark.parametrize("operator", ELEMENTWISE, ids=str)
@every_dtype
def test_the_position_of_an_element_does_not_matter(operator: Operator, dtype: torch.dtype) -> None:
    """A piece of 1 goes through scalar code, one of 64 through vectors, one of 7 or 1000 through both."""
    x = interesting(dtype).repeat(8)[:2500]
    tensors = tensors_for(operator, x)
    whole = operator.forward(x, tensors)
    gradient = operator.backward(x, x, tensors).grad_x
    for size in (1, 7, 64, 1000):
        pieces = x.split(size)
        assert_same_bits(torch.cat([operator.forward(piece, tensors) for piece in pieces]), whole, f"pieces of {size}")
        assert_same_bits(torch.cat([operator.backward(piece, piece, tensors).grad_x for piece in pieces]), gradient)
    for element, expected in zip(x[:200], whole[:200], strict=True):
        assert_same_bits(operator.forward(element.clone(), tensors), expected, "0-d")


def _strided(x: Tensor) -> Tensor:
    return torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(-2)[..., ::2]


LAYOUTS = {
    "Fortran": lambda x: x.t().contiguous().t(),
    "strided": _strided,
    "misaligned": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].reshape(x.shape),
}


@every_expression
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_order_does_not_matter(expression: Expression, dtype: torch.dtype, layout: str) -> None:
    x, grad_output = moderate(dtype, 9, 13), moderate(dtype, 9, 13, seed=1)
    tensors = tensors_for(expression, x)
    moved_x, moved_grad_output = LAYOUTS[layout](x), LAYOUTS[layout](grad_output)
    assert torch.equal(moved_x, x)
    assert_same_bits(expression.forward(moved_x, tensors), expression.forward(x, tensors))
    expected = expression.backward(x, grad_output, tensors)
    got = expression.backward(moved_x, moved_grad_output, tensors)
    assert_same_bits(got.grad_x, expected.grad_x)
    for name, gradient in expected.by_name().items():
        assert_same_bits(got.by_name()[name], gradient, name)


@every_expression
@every_dtype
@pytest.mark.parametrize("shape", [(), (5,), (4, 9)], ids=str)
def test_out_receives_what_would_be_returned(expression: Expression, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = moderate(dtype, *shape)
    tensors = tensors_for(expression, x)
    expected = expression.forward(x, tensors)
    fresh, same = torch.full_like(x, 7), x.clone()
    assert expression.forward(x, tensors, out=fresh) is fresh
    assert expression.forward(same, tensors, out=same) is same
    assert_same_bits(fresh, expected)
    assert_same_bits(same, expected)


@every_expression
@every_dtype
@pytest.mark.parametrize("tensor_shape", [(), (1,), (9,), (4, 1), (4, 9)], ids=str)
@pytest.mark.parametrize("out", ["fresh", "grad_output"])
def test_gradients_are_the_same_with_out(
    expression: Expression, dtype: torch.dtype, tensor_shape: tuple[int, ...], out: str
) -> None:
    """Also those of the tensor parameters, which must not be overwritten through `out`."""
    x, grad_output = moderate(dtype, 4, 9), moderate(dtype, 4, 9, seed=1)
    tensors = tensors_for(expression, x, tensor_shape)
    expected = expression.backward(x, grad_output.clone(), tensors)
    expected_by_name = {name: gradient.clone() for name, gradient in expected.by_name().items()}
    buffer = grad_output if out == "grad_output" else torch.full_like(x, 7)
    got = expression.backward(x, grad_output, tensors, out=buffer)
    assert_same_bits(got.grad_x, expected.grad_x)
    for name, gradient in expected_by_name.items():
        assert_same_bits(got.by_name()[name], gradient, name)


@every_expression
@every_dtype
def test_nothing_that_was_given_is_modified_without_out(expression: Expression, dtype: torch.dtype) -> None:
    x, grad_output = moderate(dtype, 4, 9), moderate(dtype, 4, 9, seed=1)
    tensors = tensors_for(expression, x, (4, 1))
    given = [x, grad_output, *tensors.values()]
    before = [bits(tensor).clone() for tensor in given]
    y = expression.forward(x, tensors)
    expression.backward(x, grad_output, tensors)
    assert all(torch.equal(bits(tensor), copy) for tensor, copy in zip(given, before, strict=True))
    assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("expression", [e for e in EXPRESSIONS if not e.backward_reads_x], ids=str)
@every_dtype
def test_x_may_be_left_out_where_the_gradient_does_not_read_it(expression: Expression, dtype: torch.dtype) -> None:
    x, grad_output = moderate(dtype, 4, 9), moderate(dtype, 4, 9, seed=1)
    tensors = tensors_for(expression, x)
    got, expected = expression.backward(None, grad_output, tensors), expression.backward(x, grad_output, tensors)
    assert_same_bits(got.grad_x, expected.grad_x)


@every_expression
def test_an_expression_says_when_its_gradient_is_grad_output_itself(expression: Expression) -> None:
    x, grad_output = moderate(torch.float32, 4, 9), moderate(torch.float32, 4, 9, seed=1)
    gradients = expression.backward(x, grad_output, tensors_for(expression, x))
    assert expression.backward_is_identity == (gradients.grad_x is grad_output and not gradients.terms)


def test_the_gradient_reads_x_only_for_a_mask_an_extremum_or_a_tensor_weight() -> None:
    assert {str(e) for e in EXPRESSIONS if e.backward_reads_x} == {
        str(e)
        for e in EXPRESSIONS
        if any(op.name in ("clamp", "clamp_by_linear") or isinstance(getattr(op, "w", 0), str) for op in e.operators)
    }


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"'shift'.*given: w"):
        AffineKBitQuantize(k=4, w="w", b="shift").forward(torch.ones(2), {"w": torch.tensor(1.0)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 4, 8, 11, 20])
def test_k_bit_values_lie_on_the_grid(k: int, dtype: torch.dtype) -> None:
    s = 2**k - 1
    y = KBitQuantize(k=k).forward(torch.linspace(0, 1, 4097, dtype=dtype))
    codes = y.double() * s
    assert torch.equal(y, (codes.round() / s).to(dtype))
    assert codes.round().min() == 0
    assert codes.round().max() == s


@every_dtype
@pytest.mark.parametrize("step", [0.125, 0.5, 1, 4])
def test_step_quantized_values_are_multiples_of_the_step(step: float, dtype: torch.dtype) -> None:
    """Powers of two: every multiple in this range can be represented."""
    x = moderate(dtype, 500)
    y = StepQuantize(step=step).forward(x)
    assert torch.equal(y / step, (y / step).round())
    assert (y - x).abs().max() <= step / 2


@every_dtype
def test_clamp_rounds_its_bounds_to_the_dtype(dtype: torch.dtype) -> None:
    operator = Clamp(min_value=-0.1, max_value=1 / 3)
    low, high = torch.tensor(-0.1, dtype=dtype), torch.tensor(1 / 3, dtype=dtype)
    x = torch.stack([low, torch.nextafter(low, low - 1), high, torch.nextafter(high, high + 1)])
    assert_same_bits(operator.forward(x), torch.stack([low, low, high, high]))
    assert_same_bits(operator.backward(x, torch.ones_like(x)).grad_x, torch.tensor([1, 0, 1, 0], dtype=dtype))
