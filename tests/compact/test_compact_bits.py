"""Codes, packed codes and masks decode to the bits of `values`: every operator, every width, every kind of number."""

from __future__ import annotations

import pytest
import torch
from compact_reference import as_map, compact, decoded, every_pattern, random_patterns, unpacked, values, wire
from examples import DTYPES, assert_same_bits, interesting, moderate
from torch import Tensor

from service.call import plan
from service.device import memory
from service.device.engine import Engine
from service.dtypes import DTYPES as WIRE_DTYPES
from service.errors import NotRepresentable
from service.ops import REGISTRY, parse
from service.ops.codes import check_output, prefix
from service.ops.uniform import largest_k
from service.wire.message import Bundle, WireTensor

UNSCALED = ["round", "ceil", "floor", "step_quantize(0.1)", "step_quantize(3)", "step_quantize(0.25)"]
SCALED = ["k_bit_quantize({k})", "affine_k_bit_quantize({k}, 0.3, -1)", "affine_k_bit_quantize({k}, -1.7, 0)"]
BEFORE = ["", "clamp(0, 1) | ", "clamp(-1, 0.4) | ", "step_quantize(0.01) | clamp(0, 1) | "]
MASKED = [
    "round",
    "clamp(0, 1)",
    "clamp(-1.5, 0.1) | round | clamp(-0.0, 0.0)",
    "clamp(-inf, 2) | ceil",
    "floor | step_quantize(0.3) | clamp(0, 1) | k_bit_quantize(4)",
]


def operands(dtype: torch.dtype) -> Tensor:
    """All values where there are few enough, else random ones of all magnitudes; and ordinary ones."""
    patterns = every_pattern(dtype) if dtype.itemsize == 2 else random_patterns(dtype, 20_000)
    return torch.cat([patterns, interesting(dtype), moderate(dtype, 5000)])


def inside(expression: str, x: Tensor, low: float = -(2.0**63), high: float = 2.0**63) -> Tensor:
    """What of `x` has codes between two bounds, and so many others, and codes -0.0, that they may be exceptions."""
    before, last = prefix(parse(expression)), parse(expression).operators[-1]
    codes = last.codes(x.clone() if before is None else before.forward(x.clone())).double()
    held = (codes > low) & (codes < high) & ~((codes == 0) & codes.signbit())
    return torch.cat([x[held], x[~held][: int(held.sum()) // 8]])


def widths(dtype: torch.dtype) -> list[int]:
    """The k of 1 to 16 that a dtype allows."""
    return list(range(1, 1 + min(16, largest_k(WIRE_DTYPES[str(dtype).removeprefix("torch.")]))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("last", UNSCALED)
def test_codes_decode_to_the_values(engine: Engine, before: str, last: str, dtype: torch.dtype) -> None:
    x = inside(before + last, operands(dtype))
    answer = as_map(compact(engine, before + last, "codes", x))
    assert_same_bits(decoded(answer), values(engine, before + last, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("last", SCALED)
def test_codes_of_every_width_decode_to_the_values(engine: Engine, before: str, last: str, dtype: torch.dtype) -> None:
    everything = operands(dtype)
    for k in widths(dtype):
        expression = before + last.format(k=k)
        x = inside(expression, everything)
        assert_same_bits(decoded(as_map(compact(engine, expression, "codes", x))), values(engine, expression, x), expression)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("before", [BEFORE[0], BEFORE[1]])
@pytest.mark.parametrize("last", SCALED[:2])
def test_packed_codes_of_every_width_decode_to_the_values(engine: Engine, before: str, last: str, dtype: torch.dtype) -> None:
    everything = operands(dtype)
    for k in widths(dtype):
        expression = before + last.format(k=k)
        x = inside(expression, everything, low=-0.5, high=2**k - 0.5)[: 9001 + k]
        answer = as_map(compact(engine, expression, "packed", x))
        assert answer["bits"] == k
        assert len(answer["packed"]) == -(-len(x) * k // 8)
        assert_same_bits(decoded(answer), values(engine, expression, x), expression)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("expression", MASKED)
def test_masks_cut_as_the_gradient_does(engine: Engine, expression: str, dtype: torch.dtype) -> None:
    x = operands(dtype)[:-3]
    grad_output = x.flip(0)
    message = {"x": Bundle.of(wire(x)), "grad_output": Bundle.of(wire(grad_output))}
    (gradient,) = engine.run(plan("grad", parse(expression), message))["grad_x"].tensors
    answer = as_map(compact(engine, expression, "mask", x))
    assert set(answer) == {"dtype", "shape", "mask", "exceptions"}
    passes = torch.tensor(unpacked(answer["mask"], 1, len(x)), dtype=torch.bool)
    zero = torch.zeros((), dtype=dtype)
    assert_same_bits(torch.where(passes, grad_output, zero), memory.shaped(memory.shared_flat(gradient)[0], gradient), expression)


def test_every_operator_has_codes_or_a_mask_or_says_that_it_has_not(engine: Engine) -> None:
    last = {
        name for expression in (*UNSCALED, *(one.format(k=4) for one in SCALED)) for name in [parse(expression).operators[-1].name]
    }
    masked = {operator.name for expression in MASKED for operator in parse(expression).operators}
    examples = {
        "clamp": "clamp(0, 1)",
        "clamp_by_linear": "clamp_by_linear",
        "affine_k_bit_quantize": "affine_k_bit_quantize(4, 1, 0)",
    }
    for name in set(REGISTRY) - last:
        for output in ("codes", "packed"):
            with pytest.raises(NotRepresentable, match=f"{name!r}"):
                check_output(parse(f"round | {examples[name]}"), output)
    for name in set(REGISTRY) - masked:
        with pytest.raises(NotRepresentable, match=f"{name!r}"):
            check_output(parse(f"{examples[name]} | round"), "mask")
    for expression in UNSCALED:
        with pytest.raises(NotRepresentable, match="allowed last: k_bit_quantize and affine_k_bit_quantize"):
            check_output(parse(expression), "packed")
    with pytest.raises(NotRepresentable, match="k of at most 32"):
        check_output(parse("k_bit_quantize(33)"), "packed")


# Integers -----------------------------------------------------------------------------------------------

ORDINARY = torch.tensor([0.0, 0.3, 1.0])


@pytest.mark.parametrize("x", [ORDINARY, torch.zeros(0), ORDINARY * 0], ids=["ordinary", "empty", "zeros"])
@pytest.mark.parametrize(
    ("expression", "dtype", "integer"),
    [
        ("clamp(0, 1) | k_bit_quantize(1)", torch.float32, "uint8"),
        ("clamp(0, 1) | k_bit_quantize(8)", torch.float32, "uint8"),
        ("clamp(0, 1) | k_bit_quantize(9)", torch.float32, "uint16"),
        ("clamp(0, 1) | k_bit_quantize(16)", torch.float32, "uint16"),
        ("clamp(0, 1) | k_bit_quantize(17)", torch.float32, "uint32"),
        ("clamp(0, 1) | k_bit_quantize(32)", torch.float32, "uint32"),
        ("clamp(0, 1) | k_bit_quantize(33)", torch.float64, "int64"),
        ("clamp(0, 1) | k_bit_quantize(8)", torch.bfloat16, "uint8"),
        ("clamp(0, 1) | k_bit_quantize(16)", torch.bfloat16, "uint16"),
        ("clamp(0, 1) | k_bit_quantize(15)", torch.float16, "uint16"),
        ("clamp(-1, 1) | k_bit_quantize(7)", torch.float32, "int8"),
        ("clamp(-1, 1) | k_bit_quantize(8)", torch.float32, "int16"),
        ("clamp(0, 1) | affine_k_bit_quantize(8, -2, w)", torch.float32, "uint8"),
        ("clamp_by_linear(0.1) | k_bit_quantize(8)", torch.float32, "uint8"),
        ("affine_k_bit_quantize(4, 3, 1) | clamp(-2, 255.4) | round", torch.float32, "int16"),
        ("clamp(0, 6) | round", torch.float32, "uint8"),
        ("clamp(-0.4, 6) | round", torch.float32, "int8"),
        ("clamp(-1, 1) | step_quantize(3)", torch.float32, "int8"),
        ("clamp(0, 1) | step_quantize(0.001)", torch.float32, "uint16"),
    ],
)
def test_a_bounded_chain_has_one_integer_dtype_whatever_the_data(
    engine: Engine, expression: str, dtype: torch.dtype, integer: str, x: Tensor
) -> None:
    x = (ORDINARY if "linear" in expression else x).to(dtype)  # clamp_by_linear needs an element
    tensors = {name: torch.ones((), dtype=dtype) for name in parse(expression).tensor_names}
    answer = as_map(compact(engine, expression, "codes", x, **tensors))
    assert answer["code_dtype"] == integer
    assert len(answer["codes"]) == len(x) * torch.empty(0, dtype=getattr(torch, integer)).itemsize
    assert_same_bits(decoded(answer, **tensors), values(engine, expression, x, **tensors))


@pytest.mark.parametrize(
    ("codes", "integer"),
    [
        ([0.0, 255.0], "uint8"),
        ([0.0, 256.0], "uint16"),
        ([0.0, 65535.0], "uint16"),
        ([0.0, 65536.0], "uint32"),
        ([0.0, 2.0**32 - 1], "uint32"),
        ([0.0, 2.0**32], "int64"),
        ([-1.0, 127.0], "int8"),
        ([-127.0, 1.0], "int8"),
        ([-128.0], "int16"),
        ([-1.0, 128.0], "int16"),
        ([-32767.0], "int16"),
        ([-32768.0], "int32"),
        ([-(2.0**31 - 1)], "int32"),
        ([-(2.0**31)], "int64"),
        ([2.0**62], "int64"),
        ([-0.0], "int8"),
        ([-0.0, 127.0], "int8"),
        ([-0.0, 128.0], "int16"),
        ([], "uint8"),
        ([float("nan"), float("inf"), 5.0], "uint8"),
        ([2.0**70, -(2.0**63), 5.0], "uint8"),
        ([2.0**63], "uint8"),
    ],
)
def test_where_nothing_bounds_them_codes_have_the_smallest_dtype_that_holds_them(
    engine: Engine, codes: list[float], integer: str
) -> None:
    x = torch.tensor(codes, dtype=torch.float64)
    answer = as_map(compact(engine, "round", "codes", x))
    assert answer["code_dtype"] == integer
    assert_same_bits(decoded(answer), x)


def test_minus_zero_is_the_smallest_of_signed_integers_and_an_exception_of_unsigned_ones(engine: Engine) -> None:
    x = torch.tensor([-0.0, 1.0, -0.2, 0.0])
    signed = as_map(compact(engine, "round", "codes", x))
    assert signed["codes"] == bytes([0x80, 1, 0x80, 0])
    assert signed["exceptions"] == {"index": b"", "value": b""}
    unsigned = as_map(compact(engine, "clamp(0, 1) | k_bit_quantize(1)", "codes", x))
    assert unsigned["codes"] == bytes([0, 1, 0, 0])
    assert unsigned["exceptions"] == {"index": bytes(4), "value": bytes([0, 0, 0, 0x80])}


def test_the_largest_code_is_written_as_what_it_would_be_exactly(engine: Engine) -> None:
    """Where 2**k - 1 has more digits than the dtype, the code of 1 is 2**k: it is written as 2**k - 1, which rounds to it."""
    for dtype, k in ((torch.bfloat16, 9), (torch.bfloat16, 16), (torch.float16, 15), (torch.float32, 25), (torch.float32, 32)):
        x = torch.ones(3, dtype=dtype)
        expression = f"clamp(0, 1) | k_bit_quantize({k})"
        packed = as_map(compact(engine, expression, "packed", x))
        assert unpacked(packed["packed"], k, 3) == [2**k - 1] * 3
        codes = as_map(compact(engine, expression, "codes", x))
        assert not codes["exceptions"]["index"]
        assert_same_bits(decoded(codes), x)
        assert_same_bits(decoded(packed), x)


@pytest.mark.parametrize("output", ["codes", "packed"])
def test_too_many_exceptions_are_refused(engine: Engine, output: str) -> None:
    few, many = torch.full((8000,), 0.5), torch.full((8000,), 0.5)
    few[:1000] = float("nan")
    many[:1001] = float("nan")
    expression = "clamp(0, 1) | k_bit_quantize(4)"
    assert len(as_map(compact(engine, expression, output, few))["exceptions"]["index"]) == 4000
    with pytest.raises(NotRepresentable, match="more than 1000 of the 8000 elements"):
        compact(engine, expression, output, many)
    small = torch.full((64,), float("nan"))
    assert_same_bits(decoded(as_map(compact(engine, expression, output, small))), small)
    with pytest.raises(NotRepresentable, match="more than 64 of the 65 elements"):
        compact(engine, expression, output, torch.full((65,), float("nan")))


# Sizes and shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2**18 - 1, 2**18 + 1, 300_003])
@pytest.mark.parametrize(
    ("expression", "output"),
    [
        ("clamp(0, 1) | k_bit_quantize(3)", "packed"),
        ("clamp(0, 1) | k_bit_quantize(4)", "packed"),
        ("k_bit_quantize(9)", "codes"),
        ("clamp(0, 1) | k_bit_quantize(12)", "codes"),
        ("step_quantize(0.001)", "codes"),
        ("clamp_by_linear | k_bit_quantize(5)", "packed"),
        ("affine_k_bit_quantize(2, w, 0.5) | clamp(0, 1) | k_bit_quantize(1)", "packed"),
    ],
)
def test_what_is_cut_into_tiles_is_what_it_is_in_one_piece(engine: Engine, expression: str, output: str, count: int) -> None:
    x = moderate(torch.float32, count, seed=3)
    x[[0, 100_000, count - 1]] = torch.tensor([-0.0, float("nan") if "linear" not in expression else 0.1, 0.9])
    tensors = {"w": moderate(torch.float32, count, seed=4)} if "w" in parse(expression).tensor_names else {}
    answer = as_map(compact(engine, expression, output, x, **tensors))
    data = answer[output]
    assert len(data) == (-(-count * answer["bits"] // 8) if output == "packed" else count * 2)
    assert_same_bits(decoded(answer, **tensors), values(engine, expression, x, **tensors))


def test_codes_wider_than_their_values_have_memory_of_their_own(engine: Engine) -> None:
    x = moderate(torch.float16, 600_000) * 30_000
    answer = as_map(compact(engine, "round", "codes", x))
    assert answer["code_dtype"] == "int32"
    assert_same_bits(decoded(answer), values(engine, "round", x))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4), (5, 1, 7)], ids=str)
def test_shapes_stay(engine: Engine, shape: tuple[int, ...]) -> None:
    x = moderate(torch.float32, *shape)
    for output, expression in (("codes", "round"), ("packed", "clamp(0, 1) | k_bit_quantize(3)")):
        answer = as_map(compact(engine, expression, output, x))
        assert tuple(answer["shape"]) == shape
        assert_same_bits(decoded(answer), values(engine, expression, x))
    assert compact(engine, "clamp(0, 1)", "mask", x).elements.nbytes == -(-x.numel() // 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_parameters_meet_the_codes_that_they_belong_to(engine: Engine, dtype: torch.dtype) -> None:
    x = moderate(dtype, 6, 5)
    x[2, 3] = float("nan")
    x[0, 1] = -0.0
    w, b = moderate(dtype, 6, 1, seed=1), moderate(dtype, 5, seed=2)
    for expression in ("affine_k_bit_quantize(4, w, b)", "clamp(0, 1) | affine_k_bit_quantize(4, w, b)"):
        for output in ("codes", "packed"):
            answer = as_map(compact(engine, expression, output, x, w=w, b=b))
            assert_same_bits(decoded(answer, w=w, b=b), values(engine, expression, x, w=w, b=b), expression)
    for scalar in (w[0, 0], w[0]):
        answer = as_map(compact(engine, "affine_k_bit_quantize(4, w, -1)", "codes", x, w=scalar))
        assert_same_bits(decoded(answer, w=scalar), values(engine, "affine_k_bit_quantize(4, w, -1)", x, w=scalar))


def test_codes_of_a_tensor_in_fortran_order_are_in_c_order(engine: Engine) -> None:
    x = moderate(torch.float32, 4, 3)
    fortran = WireTensor(WIRE_DTYPES["float32"], (4, 3), memory.data_of(x.t().contiguous()), fortran=True)
    call = plan("quantize", parse("round"), {"x": Bundle.of(fortran)}, "codes")
    (answer,) = engine.condense(call).tensors
    assert_same_bits(decoded(as_map(answer)), x.round())
