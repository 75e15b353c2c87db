"""`plan()`: a message and an expression become a call, or the error that says what does not fit. Pure values."""

from __future__ import annotations

import math

import pytest

from service.call import fields, plan
from service.dtypes import DTYPES
from service.errors import (
    BadTensor,
    DtypeMismatch,
    EmptyTensor,
    MissingTensor,
    NotAllowed,
    ParameterDoesNotFit,
    ShapeMismatch,
    StructureMismatch,
    SurplusTensor,
)
from service.ops import parse
from service.wire.message import Bundle, WireTensor


def tensor(*shape: int, dtype: str = "float32") -> WireTensor:
    """A tensor of this shape; planning does not look at its elements."""
    return WireTensor(DTYPES[dtype], shape, memoryview(bytes(math.prod(shape) * DTYPES[dtype].itemsize)))


def one(*shape: int, dtype: str = "float32") -> Bundle:
    """One tensor."""
    return Bundle.of(tensor(*shape, dtype=dtype))


def several(*tensors: WireTensor) -> Bundle:
    """A list of tensors."""
    return Bundle(tensors)


def named(**tensors: WireTensor) -> Bundle:
    """Tensors by name."""
    return Bundle(tuple(tensors.values()), names=tuple(tensors))


AFFINE = parse("affine_k_bit_quantize(4, w, b)")


def test_the_operands_of_each_kind_in_their_order() -> None:
    assert fields("quantize") == ("x",)
    assert fields("grad") == ("x", "grad_output")


def test_a_call_holds_what_was_sent() -> None:
    x, g, w, b = one(2, 3), one(2, 3), one(3), one()
    call = plan("grad", AFFINE, {"x": x, "grad_output": g, "w": w, "b": b})
    assert (call.kind, call.expression, call.x, call.grad_output) == ("grad", AFFINE, x, g)
    assert call.tensors == {"w": w.tensors[0], "b": b.tensors[0]}
    assert call.operand is x


def test_without_x_the_gradient_is_what_the_answer_resembles() -> None:
    g = one(2, 3)
    call = plan("grad", parse("round"), {"grad_output": g})
    assert call.x is None
    assert call.operand is g


def test_gradients_by_name_are_put_in_the_order_of_x() -> None:
    x = named(a=tensor(1), b=tensor(2))
    call = plan("grad", parse("round"), {"x": x, "grad_output": named(b=tensor(2), a=tensor(1))})
    assert call.grad_output is not None
    assert call.grad_output.names == ("a", "b")
    assert [one.shape for one in call.grad_output.tensors] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("w", "x"),
    [
        ((), ()),
        ((), (2, 3)),
        ((3,), (2, 3)),
        ((1,), (2, 3)),
        ((2, 1), (2, 3)),
        ((2, 3), (2, 3)),
        ((1, 1, 3), (4, 2, 3)),
        ((0,), (2, 0)),
        ((1,), (0,)),
    ],
)
def test_a_parameter_may_broadcast_to_x(w: tuple[int, ...], x: tuple[int, ...]) -> None:
    plan("quantize", AFFINE, {"x": one(*x), "w": one(*w), "b": one()})


@pytest.mark.parametrize(
    ("w", "x"),
    [
        ((1,), ()),
        ((2,), (3,)),
        ((3,), (1,)),
        ((1, 3), (3,)),
        ((2, 3), (3,)),
        ((3, 1), (2, 3)),
        ((2,), (2, 3)),
        ((0,), (1,)),
        ((3,), (0,)),
    ],
)
def test_a_parameter_may_not_enlarge_x(w: tuple[int, ...], x: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="'w'") as error:
        plan("quantize", AFFINE, {"x": one(*x), "w": one(*w), "b": one()})
    assert str(w) in str(error.value)
    assert str(x) in str(error.value)


ROUND, CLAMP, LINEAR, K16 = (parse(text) for text in ("round", "clamp(0, 1)", "clamp_by_linear", "k_bit_quantize(16)"))
HALF = tensor(3, dtype="float16")


@pytest.mark.parametrize(
    ("kind", "expression", "message", "error", "word"),
    [
        ("quantize", ROUND, {}, MissingTensor, "'x'"),
        ("quantize", ROUND, {"x": one(3), "w": one()}, SurplusTensor, "'w'"),
        ("quantize", ROUND, {"x": one(3), "grad_output": one(3)}, SurplusTensor, "'grad_output'"),
        ("quantize", AFFINE, {"x": one(3), "w": one()}, MissingTensor, "'b'"),
        ("quantize", AFFINE, {"x": one(3), "w": several(tensor()), "b": one()}, BadTensor, "'w'"),
        ("quantize", AFFINE, {"x": one(3), "w": one(dtype="float64"), "b": one()}, DtypeMismatch, "float64"),
        ("quantize", AFFINE, {"x": several(tensor(3), HALF), "w": one(), "b": one()}, DtypeMismatch, "float16"),
        ("quantize", K16, {"x": one(3, dtype="float16")}, ParameterDoesNotFit, "'k'"),
        ("quantize", K16, {"x": several(tensor(3), HALF)}, ParameterDoesNotFit, "float16"),
        ("quantize", LINEAR, {"x": one(0)}, EmptyTensor, "'x'"),
        ("quantize", LINEAR, {"x": several(tensor(1), tensor(2, 0))}, EmptyTensor, r"x\[1\]"),
        ("quantize", LINEAR, {"x": named(a=tensor(1), b=tensor(0))}, EmptyTensor, r"x\['b'\]"),
        ("grad", ROUND, {"x": one(3)}, MissingTensor, "'grad_output'"),
        ("grad", CLAMP, {"grad_output": one(3)}, MissingTensor, "'x'"),
        ("grad", CLAMP, {"x": one(3), "grad_output": one(2)}, ShapeMismatch, "grad_output"),
        ("grad", CLAMP, {"x": one(3), "grad_output": one(3, 1)}, ShapeMismatch, "grad_output"),
        ("grad", CLAMP, {"x": one(3), "grad_output": one(3, dtype="float64")}, DtypeMismatch, "float64"),
        ("grad", CLAMP, {"x": one(3), "grad_output": several(tensor(3))}, StructureMismatch, "list"),
        ("grad", CLAMP, {"x": several(tensor(3)), "grad_output": several()}, StructureMismatch, "1"),
        ("grad", CLAMP, {"x": several(tensor(3)), "grad_output": named(a=tensor(3))}, StructureMismatch, "names"),
        ("grad", CLAMP, {"x": named(a=tensor(3)), "grad_output": named(b=tensor(3))}, StructureMismatch, "'a'"),
        ("grad", ROUND, {"x": one(2), "grad_output": one(3)}, ShapeMismatch, "grad_output"),
        ("grad", K16, {"grad_output": one(3, dtype="float16")}, ParameterDoesNotFit, "'k'"),
    ],
)
def test_what_does_not_fit_is_named(kind, expression, message, error, word) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=word) as raised:
        plan(kind, expression, message)
    assert isinstance(raised.value, NotAllowed)
    assert raised.value.status == 422


def test_names_from_outside_do_not_fill_a_message() -> None:
    with pytest.raises(SurplusTensor) as raised:
        plan("quantize", ROUND, {"x": one(1), "n" * 100_000: one(1)})
    assert len(str(raised.value)) < 500


def test_no_tensor_is_a_call_too() -> None:
    for expression in (ROUND, LINEAR, K16):
        assert plan("quantize", expression, {"x": several()}).operand.tensors == ()
    call = plan("grad", AFFINE, {"x": several(), "grad_output": several(), "w": one(3), "b": one()})
    assert set(call.tensors) == {"w", "b"}


def test_sixteen_thousand_tensors_are_planned_quickly() -> None:
    import time

    x = several(*(tensor(2, 3) for _ in range(16_384)))
    started = time.perf_counter()
    plan("grad", parse("clamp(0, 1)"), {"x": x, "grad_output": x})
    assert time.perf_counter() - started < 2
