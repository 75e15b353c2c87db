"""The drop-in module: upstream's names, signatures, values and gradients, against expressions written here."""

# ruff: noqa: ARG004, autograd prescribes the functions and hands them a ctx
from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from examples import DTYPES, assert_same_bits, finite, interesting, moderate
from torch import Tensor

from service import quantize

SIGNATURES: dict[str, str] = {
    "round_atgf": "(ctx, x)",
    "round": "(x)",
    "ceil_atgf": "(ctx, x)",
    "ceil": "(x)",
    "floor_atgf": "(ctx, x)",
    "floor": "(x)",
    "clamp_backward": "(grad_output, x, min_value, max_value)",
    "clamp_atgf": "(ctx, x, min_value, max_value)",
    "clamp": "(x, min_value, max_value)",
    "step_quantize_forward": "(x, step)",
    "step_quantize_atgf": "(ctx, x, step)",
    "step_quantize": "(x, step)",
    "k_bit_quantize_forward": "(x, k)",
    "k_bit_quantize_atgf": "(ctx, x, k)",
    "k_bit_quantize": "(x, k)",
    "affine_k_bit_quantize": "(x, k, w, b)",
    "clamp_by_linear": "(x, eps=1e-05)",
}


def _signature(value: Any) -> str:
    parameters = inspect.signature(value.forward if isinstance(value, type) else value).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(bare))


def test_all_names_of_upstream_are_there_and_no_others() -> None:
    assert sorted(quantize.__all__) == sorted(SIGNATURES)
    assert len(SIGNATURES) == 17


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_upstream(name: str) -> None:
    value = getattr(quantize, name)
    assert _signature(value) == SIGNATURES[name]
    if name.endswith("_atgf"):
        assert issubclass(value, torch.autograd.Function)
        assert list(inspect.signature(value.backward).parameters) == ["ctx", "grad_output"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_name_is_documented(name: str) -> None:
    documented = inspect.getdoc(getattr(quantize, name)) or ""
    assert documented
    if not name.endswith("_atgf"):
        assert "Shapes:" in documented
        assert "Sources:" in documented


def plain_k_bit(x: Tensor, k: int) -> Tensor:
    s = float(2 ** int(k) - 1)
    return torch.round(x * s) / s


def like(x: Tensor, value: Any) -> Tensor:
    """A tensor of x's dtype and device; of the default dtype beside integers."""
    return torch.tensor(value, dtype=x.dtype if x.is_floating_point() else None, device=x.device)


Call = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]

# The drop-in beside the expression it stands for, both of one tensor.
CALLS: dict[str, Call] = {
    "round": (quantize.round, torch.round),
    "ceil": (quantize.ceil, torch.ceil),
    "floor": (quantize.floor, torch.floor),
    "round_atgf": (quantize.round_atgf.apply, torch.round),
    "ceil_atgf": (quantize.ceil_atgf.apply, torch.ceil),
    "floor_atgf": (quantize.floor_atgf.apply, torch.floor),
    "clamp 0 1": (lambda x: quantize.clamp(x, 0, 1), lambda x: torch.clamp(x, 0, 1)),
    "clamp 0.1 0.3": (lambda x: quantize.clamp(x, 0.1, 0.3), lambda x: torch.clamp(x, 0.1, 0.3)),
    "clamp keywords": (lambda x: quantize.clamp(x=x, min_value=-1, max_value=1), lambda x: torch.clamp(x, -1, 1)),
    "clamp_atgf": (lambda x: quantize.clamp_atgf.apply(x, -1, 1.0), lambda x: torch.clamp(x, -1, 1.0)),
    "clamp min above max": (lambda x: quantize.clamp(x, 2, 1), lambda x: torch.clamp(x, 2, 1)),
    "clamp without min": (lambda x: quantize.clamp(x, None, 1), lambda x: torch.clamp(x, None, 1)),
    "clamp without max": (lambda x: quantize.clamp(x, 0.5, None), lambda x: torch.clamp(x, 0.5, None)),
    "clamp to infinity": (lambda x: quantize.clamp(x, -math.inf, math.inf), lambda x: torch.clamp(x, -math.inf, math.inf)),
    "clamp NaN": (lambda x: quantize.clamp(x, math.nan, 1), lambda x: torch.clamp(x, math.nan, 1)),
    "clamp NumPy": (lambda x: quantize.clamp(x, np.float32(0.1), np.int64(1)), lambda x: torch.clamp(x, float(np.float32(0.1)), 1)),
    "clamp tensors": (lambda x: quantize.clamp(x, like(x, -0.1), like(x, 1)), lambda x: torch.clamp(x, like(x, -0.1), like(x, 1))),
    "step 0.1": (lambda x: quantize.step_quantize(x, 0.1), lambda x: torch.round(x / 0.1) * 0.1),
    "step 3": (lambda x: quantize.step_quantize(x, 3), lambda x: torch.round(x / 3) * 3),
    "step negative": (lambda x: quantize.step_quantize(x, -0.3), lambda x: torch.round(x / -0.3) * -0.3),
    "step 0": (lambda x: quantize.step_quantize(x, 0), lambda x: torch.round(x / 0) * 0),
    "step NumPy": (lambda x: quantize.step_quantize(x, np.float64(0.1)), lambda x: torch.round(x / 0.1) * 0.1),
    "step tensor": (lambda x: quantize.step_quantize(x, like(x, 0.1)), lambda x: torch.round(x / like(x, 0.1)) * like(x, 0.1)),
    "step_quantize_forward": (lambda x: quantize.step_quantize_forward(x, 0.7), lambda x: torch.round(x / 0.7) * 0.7),
    "step_quantize_atgf": (lambda x: quantize.step_quantize_atgf.apply(x, 0.7), lambda x: torch.round(x / 0.7) * 0.7),
    "k 1": (lambda x: quantize.k_bit_quantize(x, 1), lambda x: plain_k_bit(x, 1)),
    "k 4": (lambda x: quantize.k_bit_quantize(x, k=4), lambda x: plain_k_bit(x, 4)),
    "k 16": (lambda x: quantize.k_bit_quantize(x, 16), lambda x: plain_k_bit(x, 16)),
    "k NumPy": (lambda x: quantize.k_bit_quantize(x, np.int64(8)), lambda x: plain_k_bit(x, 8)),
    "k tensor": (lambda x: quantize.k_bit_quantize(x, torch.tensor(8)), lambda x: plain_k_bit(x, 8)),
    "k_bit_quantize_forward": (lambda x: quantize.k_bit_quantize_forward(x, 3), lambda x: plain_k_bit(x, 3)),
    "k_bit_quantize_forward 0": (lambda x: quantize.k_bit_quantize_forward(x, 0), lambda x: plain_k_bit(x, 0)),
    "k_bit_quantize_atgf": (lambda x: quantize.k_bit_quantize_atgf.apply(x, 3), lambda x: plain_k_bit(x, 3)),
    "affine numbers": (lambda x: quantize.affine_k_bit_quantize(x, 4, 0.1, -0.3), lambda x: 0.1 * plain_k_bit(x, 4) + -0.3),
    "affine NumPy": (
        lambda x: quantize.affine_k_bit_quantize(x, 4, np.float32(0.1), np.float64(0.3)),
        lambda x: plain_k_bit(x, 4) * float(np.float32(0.1)) + 0.3,
    ),
    "affine 0-d": (
        lambda x: quantize.affine_k_bit_quantize(x, k=4, w=like(x, 0.1), b=like(x, 0.3)),
        lambda x: like(x, 0.1) * plain_k_bit(x, 4) + like(x, 0.3),
    ),
    "affine tensors": (
        lambda x: quantize.affine_k_bit_quantize(x, 4, like(x, [[[0.1]], [[-2]]]), like(x, [0.3])),
        lambda x: like(x, [[[0.1]], [[-2]]]) * plain_k_bit(x, 4) + like(x, [0.3]),
    ),
    "clamp_by_linear": (quantize.clamp_by_linear, lambda x: (x - x.min()) / (x.max() + 1e-5 - x.min())),
    "clamp_by_linear eps": (lambda x: quantize.clamp_by_linear(x, eps=0.3), lambda x: (x - x.min()) / (x.max() + 0.3 - x.min())),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
def test_values_are_those_of_the_plain_expression(call: Call, device: torch.device) -> None:
    ours, plain = call
    for dtype in DTYPES:
        for x in (interesting(dtype), finite(dtype).abs() + 1, moderate(dtype, 5, 7), moderate(dtype, 1), moderate(dtype)):
            assert_same_bits(ours(x.to(device)), plain(x), dtype)


@every_call
def test_integer_tensors_are_taken_forward(call: Call, device: torch.device) -> None:
    ours, plain = call
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64):
        x = torch.arange(7).to(dtype)
        try:
            expected = plain(x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                ours(x.to(device))
        else:
            assert_same_bits(ours(x.to(device)), expected, dtype)
            assert expected.numel() >= 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_zero_dimensional_float32_tensors_beside_16_bits_count_as_they_do_in_pytorch(dtype: torch.dtype) -> None:
    """PyTorch rounds them to 16 bits on the left of a product, and keeps them as float32 on the right."""
    x, number = moderate(dtype, 500), torch.tensor(0.1)
    assert_same_bits(quantize.affine_k_bit_quantize(x, 4, number, number), number * plain_k_bit(x, 4) + number)
    assert_same_bits(quantize.step_quantize(x, number), torch.round(x / number) * number)
    assert_same_bits(quantize.clamp(x, -number, number), torch.clamp(x, -number, number))
    assert_same_bits(quantize.clamp_by_linear(x, number), (x - x.min()) / (x.max() + number - x.min()))
    assert (number * x != x * number).any()


@every_call
def test_memory_order_does_not_matter(call: Call, device: torch.device) -> None:
    ours, plain = call
    x = moderate(torch.float32, 6, 10)
    for view in (x.t().contiguous().t(), x[:, ::2], x.t()):
        assert_same_bits(ours(view.to(device)), plain(view))


@pytest.mark.parametrize("k", [0, -1, np.int64(0), False])
@pytest.mark.parametrize(
    "function", [lambda x, k: quantize.k_bit_quantize(x, k), lambda x, k: quantize.affine_k_bit_quantize(x, k, x, x)]
)
def test_k_below_one_is_a_value_error_that_names_it(function: Callable[[Tensor, int], Tensor], k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; allowed"):
        function(torch.ones(2), k)


def test_empty_tensors_are_taken_by_all_but_clamp_by_linear(device: torch.device) -> None:
    x = torch.empty(2, 0, device=device)
    for ours, plain in CALLS.values():
        try:
            expected = plain(x.cpu())
        except RuntimeError:
            with pytest.raises(RuntimeError):
                ours(x)
        else:
            assert_same_bits(ours(x), expected)


# Gradients ------------------------------------------------------------------------------------------

STRAIGHT_THROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "round": quantize.round,
    "ceil": quantize.ceil,
    "floor": quantize.floor,
    "step_quantize": lambda x: quantize.step_quantize(x, 0.3),
    "step_quantize tensor": lambda x: quantize.step_quantize(x, torch.tensor(0.3, device=x.device)),
    "k_bit_quantize": lambda x: quantize.k_bit_quantize(x, 3),
}


@pytest.mark.parametrize("function", STRAIGHT_THROUGH.values(), ids=STRAIGHT_THROUGH.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_straight_through_gradients_are_grad_output(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    x = interesting(dtype).to(device).requires_grad_()
    grad_output = interesting(dtype).flip(0).to(device)
    (grad_x,) = torch.autograd.grad(function(x), x, grad_output)
    assert_same_bits(grad_x, grad_output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bounds", [(0, 1), (-1.5, 0.1), (-math.inf, 0.7), (2, 1), (0.5, 0.5)], ids=str)
def test_clamp_passes_the_gradient_inside_and_exactly_zero_elsewhere(
    dtype: torch.dtype, bounds: tuple[float, float], device: torch.device
) -> None:
    low, high = bounds
    x = interesting(dtype)
    for grad_output in (interesting(dtype).flip(0), torch.full_like(x, math.nan), torch.full_like(x, -math.inf)):
        leaf = x.to(device).requires_grad_()
        (grad_x,) = torch.autograd.grad(quantize.clamp(leaf, low, high), leaf, grad_output.to(device))
        inside = (x >= low) & (x <= high)
        assert (grad_x.cpu()[~inside] == 0).all()
        assert_same_bits(grad_x.cpu()[inside], grad_output[inside])
        assert_same_bits(quantize.clamp_backward(grad_output.to(device), leaf.detach(), low, high), grad_x)


def test_clamp_backward_broadcasts_and_takes_tensor_bounds(device: torch.device) -> None:
    x = torch.tensor([[-1.0, 0.5], [2.0, 1.0]], device=device)
    bounds = torch.tensor([0.0], device=device), torch.tensor([1.0], device=device)
    assert quantize.clamp_backward(torch.tensor([3.0, 4.0], device=device), x, *bounds).tolist() == [[0, 4], [0, 4]]
    x.requires_grad_()
    (grad_x,) = torch.autograd.grad(quantize.clamp(x, *bounds).sum(), x)
    assert grad_x.tolist() == [[0, 1], [0, 1]]


def test_clamp_without_a_bound_has_no_gradient_as_upstream() -> None:
    x = torch.ones(2, requires_grad=True)
    y = quantize.clamp(x, None, 1)
    with pytest.raises(TypeError):
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (5, 7)], ids=str)
def test_affine_gradients_are_those_of_the_surrogate(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    x, grad_output = (moderate(dtype, 5, 7, seed=seed).to(device) for seed in (0, 1))
    w, b = (moderate(dtype, *shape, seed=seed).to(device) for seed in (2, 3))
    leaves = [tensor.requires_grad_() for tensor in (x, w, b)]
    got = torch.autograd.grad(quantize.affine_k_bit_quantize(x, 3, w, b), leaves, grad_output)
    q = plain_k_bit(x.detach(), 3)
    expected = [w * grad_output, (grad_output * q).sum_to_size(shape), grad_output.sum_to_size(shape)]
    torch.testing.assert_close(list(got), expected)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_clamp_by_linear_has_the_true_gradient(eps: float, device: torch.device) -> None:
    """Away from ties the function is smooth: finite differences agree."""
    x = moderate(torch.float64, 11).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: quantize.clamp_by_linear(x, eps), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamp_by_linear_has_the_bits_of_autograd_through_the_plain_expression(dtype: torch.dtype) -> None:
    for seed in range(20):
        ours, plain = ((moderate(dtype, 5, 7, seed=seed)).clamp(-1.9, 1.9).requires_grad_() for _ in range(2))
        grad_output = moderate(dtype, 5, 7, seed=100 + seed)
        top = torch.max(plain) + 0.7
        low = torch.min(plain)
        (got,) = torch.autograd.grad(quantize.clamp_by_linear(ours, 0.7), ours, grad_output)
        (expected,) = torch.autograd.grad((plain - low) / (top - low), plain, grad_output)
        assert_same_bits(got, expected)


def test_forward_functions_are_plain_expressions_under_autograd(device: torch.device) -> None:
    """As upstream: the gradient of rounding is zero there."""
    for function in (lambda x: quantize.step_quantize_forward(x, 0.3), lambda x: quantize.k_bit_quantize_forward(x, 3)):
        x = moderate(torch.float32, 5).to(device).requires_grad_()
        (grad_x,) = torch.autograd.grad(function(x).sum(), x)
        assert (grad_x == 0).all()


@pytest.mark.parametrize("name", ["round", "ceil", "floor", "clamp", "step_quantize", "k_bit_quantize"])
def test_the_second_derivative_goes_through(name: str, device: torch.device) -> None:
    """d(sum(grad_x**2)) / d(grad_output) is 2 * grad_x, through the mask where there is one."""
    arguments = {"clamp": (0, 1), "step_quantize": (0.3,), "k_bit_quantize": (3,)}.get(name, ())
    x = moderate(torch.float64, 20).to(device).requires_grad_()
    upstream = moderate(torch.float64, 20, seed=1).to(device).requires_grad_()
    (grad_x,) = torch.autograd.grad(getattr(quantize, name)(x, *arguments), x, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad_x.pow(2).sum(), upstream)
    mask = (x >= 0) & (x <= 1) if name == "clamp" else torch.ones_like(x)
    torch.testing.assert_close(second, 2 * upstream.detach() * mask)


def test_the_second_derivative_of_a_composition_reaches_x(device: torch.device) -> None:
    """The derivative of clamp(x)**2 is 2 * clamp(x) * mask, and of that 2 * mask."""
    x = moderate(torch.float64, 20).to(device).requires_grad_()
    (first,) = torch.autograd.grad(quantize.clamp(x, 0, 1).pow(2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, 2.0 * ((x >= 0) & (x <= 1)))


def test_the_second_derivative_of_clamp_by_linear_is_right(device: torch.device) -> None:
    x = moderate(torch.float64, 6).to(device).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: quantize.clamp_by_linear(x, 0.5), x)


@every_call
def test_a_tensor_without_requires_grad_gives_one_without(call: Call, device: torch.device) -> None:
    ours, _ = call
    assert not ours(moderate(torch.float32, 2, 3).to(device)).requires_grad
    with torch.no_grad():
        assert not ours(moderate(torch.float32, 2, 3).to(device).requires_grad_()).requires_grad
    with torch.inference_mode():
        assert ours(moderate(torch.float32, 2, 3).to(device)).is_inference()


@pytest.mark.parametrize("function", STRAIGHT_THROUGH.values(), ids=STRAIGHT_THROUGH.keys())
def test_gradients_flow_to_the_leaf_behind_a_non_leaf(function: Callable[[Tensor], Tensor], device: torch.device) -> None:
    leaf = moderate(torch.float32, 4, 6).to(device).requires_grad_()
    function((leaf * 3)[:, ::2].t()).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [[3, 0, 3, 0, 3, 0]] * 4


def test_nothing_that_was_given_is_modified(device: torch.device) -> None:
    for ours, _ in CALLS.values():
        x = moderate(torch.float32, 2, 3).to(device)
        before = x.clone()
        y = ours(x)
        y.zero_()
        assert torch.equal(x, before)


# A network -------------------------------------------------------------------------------------------


def divided(x: Tensor, divisor: float) -> Tensor:
    """`x / divisor`, divided on every device: eager PyTorch on CUDA multiplies by a number's reciprocal."""
    return x / torch.tensor(divisor, dtype=x.dtype, device=x.device)


class StraightThroughKBit(torch.autograd.Function):
    """k bits, written once more for this test."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
        return divided(torch.round(x * float(2**k - 1)), 2**k - 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class StraightThroughClamp(torch.autograd.Function):
    """Clamping with a multiplied mask, as gradients are finite here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x >= low) & (x <= high))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return grad_output * ctx.saved_tensors[0], None, None


class StraightThroughStep(torch.autograd.Function):
    """A step, written once more for this test."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float) -> Tensor:
        return torch.round(divided(x, step)) * step

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


def with_the_drop_in(x: Tensor, weights: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
    hidden = x @ quantize.affine_k_bit_quantize(quantize.clamp_by_linear(weights[0]), 4, w, b)
    spikes = quantize.k_bit_quantize(quantize.clamp(hidden, 0, 1), 2)
    return spikes @ quantize.step_quantize(weights[1], 0.05)


def with_plain_expressions(x: Tensor, weights: list[Tensor], w: Tensor, b: Tensor) -> Tensor:
    first = weights[0]
    top = torch.max(first) + 1e-5
    low = torch.min(first)
    hidden = x @ (w * StraightThroughKBit.apply((first - low) / (top - low), 4) + b)
    spikes = StraightThroughKBit.apply(StraightThroughClamp.apply(hidden, 0, 1), 2)
    return spikes @ StraightThroughStep.apply(weights[1], 0.05)


def trained(network: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """All parameters after 20 steps of gradient descent."""
    x, target = moderate(dtype, 32, 8).to(device), moderate(dtype, 32, 3, seed=1).to(device)
    weights = [moderate(dtype, 8, 16, seed=2), moderate(dtype, 16, 3, seed=3)]
    w, b = torch.tensor(0.7, dtype=dtype), torch.full((16,), -0.3, dtype=dtype)
    parameters = [tensor.to(device).requires_grad_() for tensor in (*weights, w, b)]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        (network(x, parameters[:2], *parameters[2:]) - target).pow(2).mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_network_trains_to_the_same_weights_as_with_plain_expressions(dtype: torch.dtype, device: torch.device) -> None:
    """Bit for bit, after 20 steps through every kind of gradient."""
    got, expected = (trained(network, dtype, device) for network in (with_the_drop_in, with_plain_expressions))
    starts = [moderate(dtype, 8, 16, seed=2), moderate(dtype, 16, 3, seed=3), torch.tensor(0.7), torch.full((16,), -0.3)]
    for a, b, start in zip(got, expected, starts, strict=True):
        assert_same_bits(a, b)
        assert not torch.allclose(a.cpu(), start.to(dtype), atol=1e-3)


@pytest.mark.parametrize("b", [0.1, 1e-5, 70000.0])
def test_a_weight_of_a_wider_dtype_widens_the_sum_too(b: float) -> None:
    x = torch.linspace(-2, 2, 64, dtype=torch.float16).view(8, 8)
    w = torch.linspace(0.5, 3, 8, dtype=torch.float32)
    y = quantize.affine_k_bit_quantize(x, 3, w, b)
    expected = w * (torch.round(x * 7.0) / 7.0) + b
    assert y.dtype is expected.dtype is torch.float32
    assert torch.equal(y, expected)
