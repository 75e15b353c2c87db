"""Operators as values: equal when they print the same, frozen, strict, described, and usable without torch."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import DTYPES, EXAMPLES
from pydantic import ValidationError

import service
from service.dtypes import DTYPES as DTYPE_BY_NAME
from service.dtypes import DType
from service.errors import NotAllowed, ParameterDoesNotFit
from service.ops import (
    REGISTRY,
    AffineKBitQuantize,
    Clamp,
    ClampByLinear,
    KBitQuantize,
    Operator,
    Round,
    StepQuantize,
    catalogue,
    register,
)
from service.ops.catalogue import summary

TORCH_DTYPE = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
every_dtype = pytest.mark.parametrize("dtype", DTYPE_BY_NAME.values(), ids=lambda dtype: dtype.name)
CHAIN = Clamp(min_value=0, max_value=1) | KBitQuantize(k=4)


def test_expressions_are_equal_when_they_print_the_same() -> None:
    assert Clamp(min_value=0, max_value=1) == Clamp(min_value=0.0, max_value=1.0)
    assert hash(Clamp(min_value=0, max_value=1)) == hash(Clamp(min_value=0.0, max_value=1.0))
    assert Clamp(min_value=0, max_value=1) | KBitQuantize(k=4) == CHAIN
    assert hash(CHAIN) == hash(Clamp(min_value=0, max_value=1) | KBitQuantize(k=4))
    assert len({*EXAMPLES, *copy.deepcopy(EXAMPLES)}) == len(EXAMPLES)


def test_expressions_with_different_bits_are_different() -> None:
    assert Clamp(min_value=0.0, max_value=1) != Clamp(min_value=-0.0, max_value=1)
    assert KBitQuantize(k=4) != KBitQuantize(k=5)
    assert KBitQuantize(k=4) != AffineKBitQuantize(k=4, w=1, b=0)
    assert KBitQuantize(k=4) | Clamp(min_value=0, max_value=1) != CHAIN
    assert Round() != "round()"


@pytest.mark.parametrize("operator", EXAMPLES, ids=str)
def test_an_operator_cannot_be_changed(operator: Operator) -> None:
    before = str(operator)
    for name in [*operator.parameters(), "surplus", "name", "operators"]:
        with pytest.raises((ValidationError, AttributeError)):
            setattr(operator, name, 1)
    assert str(operator) == before


def test_a_chain_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        CHAIN.operators = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        CHAIN.operators[0] = Round()  # type: ignore[index]


@pytest.mark.parametrize("expression", [*EXAMPLES, CHAIN], ids=str)
def test_an_expression_survives_pickle_and_copy(expression: Operator) -> None:
    for again in (pickle.loads(pickle.dumps(expression)), copy.copy(expression), copy.deepcopy(expression)):
        assert again == expression
        assert type(again) is type(expression)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (Round, {"x": 1}),
        (Clamp, {"min_value": 0}),
        (Clamp, {"min_value": 0, "max_value": 1, "step": 1}),
        (Clamp, {"min_value": "0", "max_value": 1}),
        (Clamp, {"min_value": None, "max_value": 1}),
        (Clamp, {"min_value": True, "max_value": 1}),
        (Clamp, {"min_value": math.nan, "max_value": 1}),
        (Clamp, {"min_value": 1, "max_value": 0}),
        (Clamp, {"min_value": -(10**400), "max_value": 0}),
        (StepQuantize, {"step": 0}),
        (StepQuantize, {"step": -1}),
        (StepQuantize, {"step": math.inf}),
        (StepQuantize, {"step": math.nan}),
        (KBitQuantize, {"k": 0}),
        (KBitQuantize, {"k": 1024}),
        (KBitQuantize, {"k": 10**400}),
        (KBitQuantize, {"k": 4.0}),
        (KBitQuantize, {"k": True}),
        (KBitQuantize, {"k": "4"}),
        (AffineKBitQuantize, {"k": 4, "w": math.inf, "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": math.nan, "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": 10**400, "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": 0, "b": False}),
        (AffineKBitQuantize, {"k": 4, "w": 0, "b": None}),
        (AffineKBitQuantize, {"k": 4, "w": "x", "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": "", "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": "w" * 65, "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": "1w", "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": "\u00e9", "b": 0}),
        (AffineKBitQuantize, {"k": 4, "w": "w\n", "b": 0}),
        (ClampByLinear, {"eps": -1e-9}),
        (ClampByLinear, {"eps": math.inf}),
    ],
)
def test_a_value_outside_its_bounds_is_refused(cls: type[Operator], values: dict[str, Any]) -> None:
    with pytest.raises(NotAllowed):
        cls(**values)


def test_two_operators_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="'round'"):
        register(Round)


@every_dtype
def test_dtypes_say_what_pytorch_says(dtype: DType) -> None:
    info = torch.finfo(TORCH_DTYPE[dtype.name])
    assert dtype.max == info.max
    assert dtype.itemsize * 8 == info.bits


def _refusal(operator: Operator, dtype: DType) -> str | None:
    try:
        operator.check(dtype)
    except ParameterDoesNotFit as error:
        return str(error)
    return None


def _fits(operator: Operator, dtype: DType) -> bool:
    """Whether the dtype is accepted; a refusal names operator, parameter, dtype and what is allowed."""
    refusal = _refusal(operator, dtype)
    if refusal is None:
        return True
    assert any(f"'{name}' of '{operator.name}'" in refusal for name in operator.parameters())
    assert dtype.name in refusal
    assert "allow" in refusal
    return False


def _neighbourhood(center: float) -> list[float]:
    """Numbers at and on both sides of `center`, by steps from one float64 to a thousandth."""
    steps = [math.ulp(center), 1e-12 * center, 1e-10 * center, 1e-8 * center, 3e-8 * center, 1e-6 * center, 1e-3 * center]
    return [center, *(center + sign * step for step in steps for sign in (1, -1))]


LARGE = [
    value
    for center in (
        65504.0,
        65520.0,
        65520.0 - 2.0**-9,
        2.0**128 - 2.0**120,
        2.0**128 - 2.0**119,
        2.0**128 - 2.0**119 - 2.0**103,
        2.0**128 - 2.0**104,
        2.0**128 - 2.0**103,
        1e300,
    )
    for value in _neighbourhood(center)
]
SMALL = [value for center in (2.0**-150, 2.0**-149, 2.0**-133, 2.0**-24, 2.0**-25, 1e-300) for value in _neighbourhood(center)]


def _rounds_to(value: float, dtype: DType) -> float:
    return float(torch.tensor(value, dtype=TORCH_DTYPE[dtype.name]))


@every_dtype
def test_a_number_is_refused_exactly_when_it_becomes_infinite_where_it_enters(dtype: DType) -> None:
    arithmetic = DTYPE_BY_NAME["float64" if dtype.name == "float64" else "float32"]
    for value in LARGE:
        for signed in (value, -value):
            in_arithmetic = math.isfinite(_rounds_to(signed, arithmetic))
            in_dtype = math.isfinite(_rounds_to(signed, dtype))
            assert _fits(AffineKBitQuantize(k=1, w=signed, b=0), dtype) == in_arithmetic, signed
            assert _fits(AffineKBitQuantize(k=1, w="w", b=signed), dtype) == in_dtype, signed
        assert _fits(StepQuantize(step=value), dtype) == in_arithmetic, value
        assert _fits(ClampByLinear(eps=value), dtype) == in_dtype, value


@every_dtype
def test_a_step_is_refused_exactly_when_it_becomes_zero_where_it_enters(dtype: DType) -> None:
    arithmetic = DTYPE_BY_NAME["float64" if dtype.name == "float64" else "float32"]
    for value in [*SMALL, 5e-324]:
        assert _fits(StepQuantize(step=value), dtype) == (_rounds_to(value, arithmetic) != 0), value
        assert _fits(AffineKBitQuantize(k=1, w=value, b=value), dtype), value
        assert _fits(ClampByLinear(eps=value), dtype), value


@every_dtype
def test_a_bound_is_refused_exactly_when_it_lies_beyond_the_finite_range(dtype: DType) -> None:
    x = torch.zeros(3, dtype=TORCH_DTYPE[dtype.name])
    for value in [*LARGE, math.inf]:
        fits = value == math.inf or value <= torch.finfo(x.dtype).max
        for operator in (Clamp(min_value=-value, max_value=0), Clamp(min_value=0, max_value=value)):
            assert _fits(operator, dtype) == fits, value
            if fits:
                assert torch.equal(operator.forward(x), x)


@pytest.mark.parametrize(("name", "largest"), [("float16", 15), ("bfloat16", 127), ("float32", 127), ("float64", 1023)])
def test_k_is_refused_exactly_when_two_to_the_k_minus_one_is_infinite(name: str, largest: int) -> None:
    dtype = DTYPE_BY_NAME[name]
    for k in range(1, 1024):
        fits = math.isfinite(_rounds_to(float(2**k - 1), dtype))
        assert fits == (k <= largest)
        assert _fits(KBitQuantize(k=k), dtype) == fits
        assert _fits(AffineKBitQuantize(k=k, w="w", b=0), dtype) == fits


@pytest.mark.parametrize("operator", EXAMPLES, ids=str)
@every_dtype
def test_the_examples_fit_every_dtype(operator: Operator, dtype: DType) -> None:
    assert _fits(operator, dtype)


def test_a_chain_checks_all_its_operators() -> None:
    with pytest.raises(ParameterDoesNotFit, match="'k'"):
        (Round() | KBitQuantize(k=16)).check(DTYPE_BY_NAME["float16"])
    (Round() | KBitQuantize(k=16)).check(DTYPE_BY_NAME["bfloat16"])


def test_the_catalogue_describes_every_operator() -> None:
    described = {entry["name"]: entry for entry in catalogue()}
    assert list(described) == list(REGISTRY)
    for name, entry in described.items():
        assert summary(REGISTRY[name]).endswith(".")
        assert entry["formula"].startswith("y = ")
        assert entry["gradient"].startswith("grad_x = ")
        assert f"spikingjelly.activation_based.quantize.{name}" in entry["sources"]
        assert entry["elementwise"] == (name != "clamp_by_linear")
        assert [parameter["name"] for parameter in entry["parameters"]] == list(REGISTRY[name].parameters())
        assert all(parameter["description"] for parameter in entry["parameters"])


def test_the_catalogue_gives_types_bounds_and_defaults() -> None:
    parameters = {(entry["name"], p["name"]): p for entry in catalogue() for p in entry["parameters"]}
    assert parameters["k_bit_quantize", "k"].items() >= {"type": "int", "required": True, "minimum": 1, "maximum": 1023}.items()
    assert parameters["step_quantize", "step"].items() >= {"type": "float", "exclusiveMinimum": 0, "default": None}.items()
    assert parameters["clamp_by_linear", "eps"].items() >= {"required": False, "default": 1e-5, "minimum": 0}.items()
    assert parameters["affine_k_bit_quantize", "w"].items() >= {"type": "float or tensor", "required": True}.items()
    assert parameters["clamp", "min_value"]["type"] == "float"


WITHOUT_TORCH = """
import importlib, pkgutil, sys
sys.modules["torch"] = None
import service.dtypes, service.ops
for module in pkgutil.walk_packages(service.ops.__path__, "service.ops."):
    importlib.import_module(module.name)
chain = service.ops.Clamp(min_value=0, max_value=1) | service.ops.AffineKBitQuantize(k=4, w="w", b=0.5)
assert service.ops.parse(str(chain)) == chain
assert {entry["name"] for entry in service.ops.catalogue()} == set(service.ops.REGISTRY)
chain.check(service.dtypes.dtype("float16"))
print(chain)
"""


def test_operators_can_be_imported_built_printed_and_parsed_without_torch() -> None:
    root = Path(service.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == (
        "clamp(min_value=0, max_value=1) | affine_k_bit_quantize(k=4, w=w, b=0.5)",
        0,
    ), done.stderr
