"""Gradients against autograd of independent surrogates, and bit for bit where the contract gives a formula."""

from __future__ import annotations

import math

import numpy_model
import pytest
import torch
from examples import DTYPES, EXAMPLES, assert_same_bits, finite, interesting, moderate, tensors_for
from plain import PLAIN, SURROGATE

from service.ops import REGISTRY, AffineKBitQuantize, Ceil, Clamp, ClampByLinear, Floor, KBitQuantize, Operator, Round, StepQuantize

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
STRAIGHT_THROUGH = [Round(), Ceil(), Floor(), StepQuantize(step=0.3), KBitQuantize(k=4)]
EPS = [0.0, 1e-5, 0.5]


def test_every_registered_operator_has_an_oracle() -> None:
    assert set(PLAIN) == set(SURROGATE) == set(REGISTRY)


@pytest.mark.parametrize("operator", EXAMPLES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tensor_shape", [(), (1,), (6, 1), (7,), (6, 7)], ids=str)
def test_backward_is_the_gradient_of_the_surrogate(operator: Operator, dtype: torch.dtype, tensor_shape: tuple[int, ...]) -> None:
    """Straight-through means: the ordinary gradient of a smoother function."""
    x, grad_output = moderate(dtype, 6, 7), moderate(dtype, 6, 7, seed=1)
    x[0, :4] = torch.tensor([0.0, 1.0, -1.5, 2.0], dtype=dtype)  # on the bounds of clamp
    x.requires_grad_()
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors_for(operator, x.detach(), tensor_shape).items()}
    expected = torch.autograd.grad(SURROGATE[operator.name](operator, x, tensors), [x, *tensors.values()], grad_output)
    with torch.no_grad():
        got = operator.backward(x, grad_output, tensors)
    torch.testing.assert_close([got.grad_x, *(got.by_name()[name] for name in tensors)], list(expected))


@pytest.mark.parametrize("operator", STRAIGHT_THROUGH, ids=str)
@every_dtype
def test_a_straight_through_gradient_is_grad_output_itself(operator: Operator, dtype: torch.dtype) -> None:
    grad_output = interesting(dtype)
    gradients = operator.backward(interesting(dtype), grad_output)
    assert gradients.grad_x is grad_output
    assert gradients.terms == ()


@every_dtype
def test_k_bit_quantize_passes_gradients_outside_the_unit_interval_too(dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, 1.5, 7.0], dtype=dtype)
    assert torch.equal(KBitQuantize(k=4).backward(x, torch.ones_like(x)).grad_x, torch.ones_like(x))


@every_dtype
@pytest.mark.parametrize("grad", [math.nan, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("with_out", [False, True])
def test_clamp_cuts_the_gradient_to_exactly_zero_whatever_it_was(dtype: torch.dtype, grad: float, with_out: bool) -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, math.nan, math.inf, -math.inf, -0.0], dtype=dtype)
    grad_output = torch.full_like(x, grad)
    out = grad_output.clone() if with_out else None
    got = Clamp(min_value=0, max_value=1).backward(x, grad_output, out=out).grad_x
    passes = torch.tensor([False, True, True, True, False, False, False, False, True])
    assert (got[~passes] == 0).all()
    assert_same_bits(got[passes], grad_output[passes])


@every_dtype
def test_clamp_without_bounds_cuts_at_nan_only(dtype: torch.dtype) -> None:
    x = torch.tensor([-math.inf, -1.0, math.inf, math.nan], dtype=dtype)
    got = Clamp(min_value=-math.inf, max_value=math.inf).backward(x, torch.ones_like(x)).grad_x
    assert got.tolist() == [1, 1, 1, 0]


@every_dtype
@pytest.mark.parametrize("w", [0.1, -1.7, 1 / 3, 0.0])
def test_affine_scales_the_gradient_by_a_number_kept_in_the_arithmetic(dtype: torch.dtype, w: float) -> None:
    grad_output = interesting(dtype)
    got = AffineKBitQuantize(k=4, w=w, b=0).backward(None, grad_output).grad_x
    arithmetic = numpy_model.Arithmetic(numpy_model.NUMPY_DTYPES[dtype])
    with numpy_model.np.errstate(all="ignore"):
        expected = numpy_model.to_torch(arithmetic.mul(numpy_model.to_numpy(grad_output), w))
    assert_same_bits(got, expected)


@every_dtype
@pytest.mark.parametrize("tensor_shape", [(), (1,), (5, 1), (13,), (1, 13), (5, 13)], ids=str)
def test_sums_for_tensor_parameters_are_those_of_the_contract(dtype: torch.dtype, tensor_shape: tuple[int, ...]) -> None:
    """The product is rounded to the dtype before it is summed."""
    operator = AffineKBitQuantize(k=3, w="w", b="b")
    x, grad_output = moderate(dtype, 5, 13), moderate(dtype, 5, 13, seed=1)
    tensors = tensors_for(operator, x, tensor_shape)
    got = operator.backward(x, grad_output, tensors)
    q = torch.round(x * 7.0) / 7.0
    assert [name for name, _ in got.terms] == ["w", "b"]
    assert_same_bits(got.by_name()["w"], numpy_model.sum_to_shape(grad_output * q, tensor_shape))
    assert_same_bits(got.by_name()["b"], numpy_model.sum_to_shape(grad_output, tensor_shape))
    assert_same_bits(got.grad_x, tensors["w"] * grad_output)


@every_dtype
def test_the_terms_of_a_shared_name_are_added_in_the_order_of_the_chain(dtype: torch.dtype) -> None:
    operator = AffineKBitQuantize(k=3, w="w", b="w")
    x, grad_output = moderate(dtype, 501), moderate(dtype, 501, seed=1)
    tensors = tensors_for(operator, x)
    of_w = numpy_model.sum_to_shape(grad_output * (torch.round(x * 7.0) / 7.0), ())
    of_b = numpy_model.sum_to_shape(grad_output, ())
    assert_same_bits(operator.backward(x, grad_output, tensors).by_name()["w"], of_w + of_b)


def _normalized_cases(dtype: torch.dtype) -> list[torch.Tensor]:
    x = moderate(dtype, 37, 11)
    tied = x.clamp(-1, 1)
    return [
        x,
        tied,
        x.flatten()[:1],
        torch.ones((), dtype=dtype),
        torch.full((5,), 3.0, dtype=dtype),
        torch.tensor([0.0, -0.0, 1.0, 1.0, -0.0], dtype=dtype),
        torch.arange(4097).to(dtype) % 97,
        finite(dtype) / 8,
        interesting(dtype),
        torch.tensor([1.0, math.inf, 2.0], dtype=dtype),
    ]


@every_dtype
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("case", range(10))
def test_the_gradient_of_clamp_by_linear_has_the_bits_of_the_contracts_formula(dtype: torch.dtype, eps: float, case: int) -> None:
    x = _normalized_cases(dtype)[case]
    grad_output = moderate(dtype, *x.shape, seed=1)
    got = ClampByLinear(eps=eps).backward(x, grad_output).grad_x
    assert_same_bits(got, numpy_model.clamp_by_linear_gradient(x, grad_output, eps))


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("case", range(7))
def test_the_gradient_of_clamp_by_linear_is_autograds_also_at_tied_extrema(eps: float, case: int) -> None:
    x = _normalized_cases(torch.float64)[case].requires_grad_()
    grad_output = moderate(torch.float64, *x.shape, seed=1)
    y = (x - x.min()) / (x.max() + eps - x.min())
    (expected,) = torch.autograd.grad(y, x, grad_output)
    torch.testing.assert_close(ClampByLinear(eps=eps).backward(x.detach(), grad_output).grad_x, expected, rtol=1e-9, atol=1e-9)


def test_clamp_by_linear_divides_by_a_count_that_was_rounded_to_the_dtype() -> None:
    """2049 tied minima are 2048 in float16."""
    x = torch.cat([torch.zeros(2049), torch.ones(3)]).half()
    grad_output = moderate(torch.float16, 2052)
    got = ClampByLinear(eps=0.5).backward(x, grad_output).grad_x
    assert_same_bits(got, numpy_model.clamp_by_linear_gradient(x, grad_output, 0.5))


@every_dtype
@pytest.mark.parametrize("bounds", [(-0.5, 1.5), (0.0, 1.0), (-0.0, 0.0), (0.1, 0.1), (-0.3, math.inf), (-math.inf, 0.3)], ids=str)
@pytest.mark.parametrize("out", [None, "fresh", "grad_output"])
def test_a_masked_gradient_has_the_bits_of_grad_output_inside(
    dtype: torch.dtype, bounds: tuple[float, float], out: str | None
) -> None:
    low, high = (torch.tensor(bound, dtype=dtype) for bound in bounds)
    x = torch.cat([interesting(dtype), torch.stack([low, -low, high, -high, low.nextafter(high), high.nextafter(low)])])
    grad_output = x.flip(0)
    passes = (x >= low) & (x <= high)
    expected = torch.where(passes, grad_output, torch.zeros_like(x))
    clamp = Clamp(*bounds)
    buffer = {None: None, "fresh": torch.full_like(x, 7), "grad_output": grad_output.clone()}[out]
    got = clamp.backward(x, grad_output if buffer is None or out == "fresh" else buffer, out=buffer).grad_x
    assert buffer is None or got is buffer
    assert_same_bits(got, expected)
    assert clamp.passes(x).equal(passes)
