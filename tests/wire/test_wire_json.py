"""JSON, held to NumPy's and ml_dtypes' conversions and to the standard library's grammar."""

from __future__ import annotations

import json as library
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_values import NUMPY_DTYPES, array_of, arrays, assert_is, content, messages, tensors, wire_tensor

from service.dtypes import DTYPES
from service.errors import BadTensor, MalformedBody, NotAcceptable, RequestError, TooManyTensors, UnsupportedDtype
from service.wire import json
from service.wire.message import Bundle, Message, WireTensor

T = {"dtype": "float32", "shape": [2], "data": [1, 2]}
MANY_DIGITS = "9" * 5000


def decoded(body: str | bytes, max_tensors: int = 100) -> dict[str, Bundle]:
    return json.decode(memoryview(body.encode() if isinstance(body, str) else body), ("x",), max_tensors)


def sent(value: object, max_tensors: int = 100) -> Bundle:
    return decoded(library.dumps({"x": value}), max_tensors)["x"]


def joined(message: Message) -> str:
    return b"".join(json.encode(message)).decode("ascii")


def plain(dtype: str, numbers: list[object]) -> dict[str, object]:
    return {"dtype": dtype, "shape": [len(numbers)], "data": numbers}


def assert_same_values(tensor: WireTensor, array: np.ndarray) -> None:
    """Same bits, but that any NaN is as good as any other."""
    array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    found = array_of(tensor)
    assert_is(wire_tensor(np.where(np.isnan(found), np.array(np.nan, found.dtype), found)), array)


@given(arrays())
def test_every_value_of_every_dtype_comes_back(array: np.ndarray) -> None:
    message = decoded(joined({"y": Bundle.of(wire_tensor(array))}))
    assert message["y"].tensors[0].style == "plain"
    assert_same_values(message["y"].tensors[0], array)


@given(arrays(("float32",)))
def test_nested_lists_come_back_as_nested_lists(array: np.ndarray) -> None:
    message = decoded(joined({"y": Bundle.of(wire_tensor(array, "nested"))}))
    assert_same_values(message["y"].tensors[0], array)
    # Nested lists cannot say what lies inside an empty dimension; there the tensor says it in full.
    assert message["y"].tensors[0].style == ("plain" if 0 in array.shape[:-1] or array.shape == (0,) else "nested")


@given(arrays(("float32",), finite=True))
def test_nested_lists_are_those_that_numpy_makes(array: np.ndarray) -> None:
    text = joined({"y": Bundle((wire_tensor(array, "nested"),), names=("a",))})
    if 0 not in array.shape[:-1]:
        assert text == library.dumps({"y": {"a": array.tolist()}}, separators=(",", ":"))
        assert_is(decoded(text)["y"].tensors[0], array)


@given(messages(tensors()))
def test_every_message_comes_back_in_its_structure(message: Message) -> None:
    text = joined(message)
    found = decoded(text)
    assert [(field, bundle.names, bundle.single) for field, bundle in found.items()] == [
        (field, bundle.names, bundle.single) for field, bundle in message.items()
    ]
    assert joined(found) == text


@given(arrays(max_dims=3))
def test_a_tensor_in_fortran_order_is_written_in_c_order(array: np.ndarray) -> None:
    assert joined({"y": Bundle.of(wire_tensor(array.copy(order="F")))}) == joined({"y": Bundle.of(wire_tensor(array))})


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.floats(width=64, allow_nan=False, allow_infinity=False)))
def test_numbers_round_as_numpy_rounds_them(dtype: str, numbers: list[float]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array(numbers, np.float64).astype(NUMPY_DTYPES[dtype])
    assert_is(sent(plain(dtype, numbers)).tensors[0], expected)


def test_bfloat16_rounds_every_float32_boundary_to_even() -> None:
    halves = np.arange(2**16, dtype=np.uint32) << 16
    words = np.concatenate([halves | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    singles = words.view(np.float32)
    singles = singles[np.isfinite(singles)]
    found = json.rounded(singles.astype(np.float64), DTYPES["bfloat16"])
    assert found == singles.astype(ml_dtypes.bfloat16).view(np.uint8).data


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_numbers_are_strings_both_ways(dtype: str) -> None:
    text = library.dumps({"y": plain(dtype, ["NaN", "Infinity", "-Infinity", -0.0, 0.5])}, separators=(",", ":"))
    tensor = decoded(text)["y"].tensors[0]
    assert_same_values(tensor, np.array([np.nan, np.inf, -np.inf, -0.0, 0.5]).astype(NUMPY_DTYPES[dtype]))
    assert joined({"y": Bundle.of(tensor)}) == text


def test_minus_zero_keeps_its_sign_in_every_spelling() -> None:
    assert np.signbit(array_of(decoded('{"x": [-0, -0.0, -0e5, 0]}')["x"].tensors[0])).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("dtype", "number"), [("float16", "65520"), ("bfloat16", "3.4e38"), ("float32", "1e39"), ("float64", "1e400")]
)
def test_numbers_too_large_become_infinite(dtype: str, number: str) -> None:
    body = f'{{"x": {{"dtype": "{dtype}", "shape": [3], "data": [{number}, -{number}, {10**400}]}}}}'
    assert array_of(decoded(body)["x"].tensors[0]).tolist() == [math.inf, -math.inf, math.inf]


def test_what_is_written_is_compact_and_exact() -> None:
    y = Bundle((wire_tensor(np.float16([0.1])), wire_tensor(np.float64([0.1]))), names=("a", "é"))
    assert joined({"y": y}) == (
        '{"y":{"a":{"dtype":"float16","shape":[1],"data":[0.0999755859375]},'
        '"\\u00e9":{"dtype":"float64","shape":[1],"data":[0.1]}}}'
    )
    assert joined({"y": Bundle.of(wire_tensor(np.float32(2), "nested"))}) == '{"y":2.0}'


@pytest.mark.parametrize(
    ("value", "shape"),
    [(1, ()), (1.5, ()), ("NaN", ()), ([1], (1,)), ([[1, 2, 3], [4, 5, 6]], (2, 3)), ([[], []], (2, 0)), ([[[]]], (1, 1, 0))],
)
def test_nested_lists_and_bare_numbers_are_one_float32_tensor(value: object, shape: tuple[int, ...]) -> None:
    bundle = sent(value)
    assert bundle.single
    assert bundle.tensors[0].style == "nested"
    assert_same_values(bundle.tensors[0], np.array(value, np.float32).reshape(shape))


def test_an_empty_list_is_a_list_of_no_tensors_but_a_tensor_under_a_name() -> None:
    assert sent([]) == Bundle(())
    assert sent({}) == Bundle((), names=())
    assert sent({"a": []}).tensors[0].shape == (0,)
    assert joined({"y": Bundle(())}) == '{"y":[]}'
    assert joined({"y": sent({"a": []})}) == '{"y":{"a":[]}}'


def test_a_list_of_tensors_is_a_list_and_names_may_hold_either_kind() -> None:
    assert [tensor.shape for tensor in sent([T, T]).tensors] == [(2,), (2,)]
    assert not sent([T]).single
    named = sent({"a": T, "b": [[1.0]], "c": 3})
    assert (named.names, [tensor.style for tensor in named.tensors]) == (("a", "b", "c"), ["plain", "nested", "nested"])


def test_a_list_never_holds_nested_lists_which_would_read_as_one_tensor() -> None:
    nested = wire_tensor(np.float32([1]), "nested")
    assert decoded(joined({"y": Bundle((nested, nested))}))["y"].tensors[0].style == "plain"
    double = wire_tensor(np.float64([1]), "nested")
    assert content(decoded(joined({"y": Bundle.of(double)})))["y"][2][0] == "float64"


def test_names_that_are_those_of_a_tensors_own_map_cannot_be_written() -> None:
    with pytest.raises(NotAcceptable, match="such a map is one tensor"):
        json.encode({"y": Bundle((wire_tensor(np.float32(1)),) * 3, names=("data", "dtype", "shape"))})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (None, "x"),
        (True, "x"),
        ("text", "x"),
        ("nan", "x"),
        ([1, None], r"x\[1\]"),
        ([[1, 2], [3, True]], r"x\[1\]\[1\]"),
        ([[1], ["inf"]], r"x\[1\]\[0\]"),
        ([[1, 2], [3]], "ragged"),
        ([[1], []], "ragged"),
        ([1, [2]], "ragged"),
        ([[[1], [2]], [[3], [4, 5]]], "dimension 2"),
        ([T, 1], r"x\[1\]"),
        ([1, T], r"x\[0\]"),
        ([T, {}], r"x\[1\]"),
        ([T, [T]], r"x\[1\]"),
        ([[T]], r"x\[0\]\[0\]"),
        ({"a": {"b": T}}, "x.a"),
        ({"a": {}}, "x.a"),
        ({"a": [T]}, "x.a"),
        ({"a": None}, "x.a"),
        ({"dtype": "float32", "shape": [1]}, "x.dtype"),
        ({**T, "more": 1}, "x.dtype"),
        ({**T, "data": [1, "2"]}, r"x.data\[1\]"),
        ({**T, "data": [[1], 2]}, r"x.data\[0\]"),
        ({**T, "data": [1, False]}, r"x.data\[1\]"),
    ],
    ids=repr,
)
def test_what_is_no_tensor_is_not_allowed_and_its_place_is_named(value: object, where: str) -> None:
    with pytest.raises(BadTensor, match=where):
        sent(value)


@pytest.mark.parametrize("body", ["[]", "1", "null", '"x"', "true"])
def test_a_body_that_is_no_map_is_not_allowed(body: str) -> None:
    with pytest.raises(BadTensor, match="must be a map"):
        decoded(body)


@pytest.mark.parametrize(
    "value",
    [
        T | {"dtype": 1},
        T | {"dtype": None},
        T | {"shape": 2},
        T | {"shape": [2.0]},
        T | {"shape": [True, 2]},
        T | {"shape": [-2]},
        T | {"shape": ["2"]},
        T | {"shape": [3]},
        T | {"shape": []},
        T | {"shape": [2] + [1] * 64},
        T | {"shape": [0, 2**62], "data": []},
        T | {"shape": [10**4000] * 64},
        T | {"data": [1]},
        T | {"data": "AAAA"},
        T | {"data": {"a": 1}},
    ],
    ids=lambda value: repr(value)[:80],
)
def test_a_tensor_that_contradicts_itself_is_malformed(value: object) -> None:
    with pytest.raises(MalformedBody) as refusal:
        sent(value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "{",
        '{"x": [1}',
        '{"x": [1]} 2',
        '{"x": [1],}',
        "{'x': [1]}",
        '{"x": [01]}',
        '{"x": [1.]}',
        '{"x": NaN}',
        '{"x": [Infinity]}',
        '{"x": [-Infinity]}',
        '{"x": [1], "x": [1]}',
        '{"x": {"a": 1, "a": 1}}',
        '{"x": {"dtype": "float32", "dtype": "float32", "shape": [], "data": [1]}}',
        f'{{"x": {MANY_DIGITS}}}',
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        '{"x": ' + "[" * 65 + "1" + "]" * 65 + "}",
        '{"\\ud800": [1]}',
        '{"x": {"\\udc00": [1]}}',
        "\ufeff{}",
        b'{"\xff": 1}',
        '{"x": [1]}'.encode("utf-16"),
        b"\x93NUMPY\x01\x00",
    ],
    ids=lambda body: repr(body)[:40],
)
def test_what_json_does_not_allow_is_malformed(body: str | bytes) -> None:
    with pytest.raises(MalformedBody):
        decoded(body)


def test_as_many_dimensions_as_numpy_has_can_be_nested() -> None:
    body = '{"x":' + "[" * 64 + "1.0" + "]" * 64 + "}"
    message = decoded(body)
    assert message["x"].tensors[0].shape == (1,) * 64
    assert joined(message) == body


@pytest.mark.parametrize("dtype", ["int32", "float8", "Float32", "<f4", ""])
def test_other_dtypes_are_named_and_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedDtype, match="allowed: float16, bfloat16, float32, float64") as refusal:
        sent({**T, "dtype": dtype})
    assert repr(dtype) in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "count"),
    [(T, 1), (1, 1), ([[1], [2], [3]], 1), ([T, T], 2), ({"a": 1, "b": 2, "c": 3}, 3), ([{}, {}], 2)],
    ids=repr,
)
def test_tensors_are_counted_before_they_are_read(value: object, count: int) -> None:
    with pytest.raises(TooManyTensors, match=f"more than {2 * count - 1} tensors"):
        decoded(library.dumps({"x": [T] * count, "grad_output": value}), max_tensors=2 * count - 1)
    if value != [{}, {}]:
        assert len(decoded(library.dumps({"x": value, "grad_output": value}), max_tensors=2 * count)) == 2


@given(st.text('{}[]",:-+.eE0123456789 \\untfalsx', max_size=30))
def test_random_text_is_read_only_if_the_standard_library_reads_it(text: str) -> None:
    for body in (text, f'{{"x": {text}}}'):
        try:
            found = decoded(body)
        except RequestError:
            continue
        assert library.loads(body).keys() == found.keys()
