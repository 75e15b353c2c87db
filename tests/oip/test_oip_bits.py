"""Bit for bit: every operator, chain and gradient, called with an unmodified `tritonclient`, against the contract's table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from examples import assert_same_bits, same_but_for_zero_signs
from http_cases import CASES, DTYPES, Case, clamp_by_linear, operands_of
from server_process import ServerProcess, serving
from torch import Tensor
from triton_calls import CLIENTS, WAYS, Triton

from service.ops import REGISTRY

KINDS = ("quantize", "grad")
TABLE = list(product(CASES, KINDS, DTYPES, WAYS, CLIENTS))
# Each is called with several operands: hard values, ties, 0-d, empty, three dimensions.
assert len(TABLE) > 1300


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that offers shared memory."""
    with serving("--shared-memory-names", "stequant-test-*") as running:
        yield running


@pytest.fixture(scope="module", params=CLIENTS)
def triton(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Triton]:
    """Both clients, one after the other."""
    with Triton(CLIENTS[request.param](server)) as client:
        yield client


def number(text: str) -> float | str:
    """A parameter as the client sends it: a number, or a string where JSON has no number for it."""
    if text.lstrip("-").isdigit():
        return int(text)
    return text if "inf" in text else float(text)


def model_and_parameters(case: Case, kind: str) -> tuple[str, dict[str, float | str]]:
    """The model that a case calls; a tensor that has its parameter's name needs no word about it."""
    ending = ".grad" if kind == "grad" else ""
    if len(case.steps) > 1:
        return f"chain{ending}", {"op": case.expression}
    (step,) = case.steps
    given = {key: text if text in case.tensors else number(text) for key, text in step.parameters.items()}
    return step.name + ending, {key: value for key, value in given.items() if key != value}


def test_every_operator_is_in_the_table() -> None:
    assert set().union(*(case.operators for case in CASES)) == set(REGISTRY)


def check(triton: Triton, case: Case, kind: str, way: str, x: Tensor, grad_output: Tensor) -> None:
    tensors = case.tensors_for(x)
    model, parameters = model_and_parameters(case, kind)
    if kind == "quantize":
        expected = {"y": case.forward(x, tensors)}
        answer = triton.infer(model, parameters, {"x": x, **tensors}, expected, way)
    else:
        grad_x, gradients = case.backward(x, grad_output, tensors)
        expected = {"grad_x": grad_x, **{f"grad_{name}": gradient for name, gradient in gradients.items()}}
        answer = triton.infer(model, parameters, {"x": x, "grad_output": grad_output, **tensors}, expected, way)
    for name, got in answer.items():
        # Where a clamp cut a gradient, the sign of its zero is free.
        like = same_but_for_zero_signs if kind == "grad" and "clamp" in case.operators else lambda same: same
        assert_same_bits(like(got), like(expected[name]), f"{case} {way} {name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_gives_the_bits_of_the_plain_expression(triton: Triton, case: Case, kind: str, dtype: str) -> None:
    for name, (x, grad_output) in operands_of(case, DTYPES[dtype]).items():
        for way in WAYS if name in ("hard", "0-d", "empty") else WAYS[:1]:
            check(triton, case, kind, way, x, grad_output)


def test_what_is_computed_on_a_thread_has_the_same_bits(triton: Triton) -> None:
    case = Case([clamp_by_linear()])
    for way, dtype, kind in product(("binary", "JSON"), DTYPES.values(), KINDS):
        x = torch.linspace(-4, 4, 300_000 // dtype.itemsize if way == "binary" else 5_001, dtype=torch.float64).to(dtype)
        check(triton, case, kind, way, x, x)
