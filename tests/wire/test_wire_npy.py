"""npy, held to files that NumPy wrote and to what NumPy reads."""

from __future__ import annotations

import io
import itertools
import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_values import ARRAYS, array_of, arrays, assert_is, golden, little_endian, wire_tensor

from service.dtypes import DTYPES
from service.errors import (
    MalformedBody,
    NotAcceptable,
    OddArrayCount,
    RequestError,
    StructureMismatch,
    TooManyTensors,
    UnsupportedDtype,
)
from service.wire import npy
from service.wire.message import Bundle, WireTensor

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"
THREE = np.array([1, 2, 3], "<f4")


def saved(*arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    for array in arrays:
        np.save(stream, array)
    return stream.getvalue()


def file(header: str | bytes = HEADER, data: bytes = THREE.tobytes(), version: int = 1) -> memoryview:
    text = header.encode("latin-1") if isinstance(header, str) else header
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return memoryview(b"\x93NUMPY" + bytes((version, 0)) + length + text + data)


def decoded(body: bytes | memoryview, fields: tuple[str, ...] = ("x",), max_tensors: int = 100) -> dict[str, Bundle]:
    return npy.decode(memoryview(body), fields, max_tensors)


def only(body: bytes | memoryview) -> WireTensor:
    bundle = decoded(body)["x"]
    assert bundle.single
    return bundle.tensors[0]


def joined(pieces: list[bytes | memoryview]) -> bytes:
    return b"".join(pieces)


@pytest.mark.parametrize("name", ARRAYS)
def test_files_that_numpy_wrote_are_read_bit_for_bit(name: str) -> None:
    tensor = only(golden(f"{name}.npy"))
    assert_is(tensor, ARRAYS[name])
    assert tensor.fortran == name.endswith("fortran")


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_written_is_what_numpy_writes(name: str) -> None:
    array = ARRAYS[name]
    written = joined(npy.encode({"y": Bundle.of(wire_tensor(array))}))
    # Answers are little-endian, whatever came in.
    expected = saved(little_endian(array)) if name.endswith("big_endian") else golden(f"{name}.npy")
    assert written == expected


@pytest.mark.parametrize("version", [2, 3])
def test_later_versions_are_read(version: int) -> None:
    assert_is(only(golden(f"version_{version}.npy")), ARRAYS["float32_c"])


def test_arrays_back_to_back_come_in_order_each_in_its_own_memory_order() -> None:
    bundle = decoded(golden("two.npy"))["x"]
    assert not bundle.single
    assert_is(bundle.tensors[0], ARRAYS["float32_c"])
    assert_is(bundle.tensors[1], ARRAYS["float64_fortran"])
    assert [tensor.fortran for tensor in bundle.tensors] == [False, True]
    assert joined(npy.encode({"y": bundle})) == golden("two.npy")


@given(arrays(), st.booleans())
def test_every_array_comes_back_and_is_written_as_numpy_writes_it(array: np.ndarray, fortran: bool) -> None:
    body = saved(array.copy(order="F" if fortran else "C"))
    message = {"y": Bundle.of(only(body))}
    assert_is(message["y"].tensors[0], array)
    assert joined(npy.encode(message)) == body


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("last", [1, 12, 123])
def test_headers_of_every_length_are_padded_as_numpy_pads_them(last: int, fortran: bool) -> None:
    texts = set()
    for ones in range(63):
        shape = (0, *(1,) * ones, last)[: ones + 2]
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": fortran, "shape": shape})
        tensor = WireTensor(DTYPES["float32"], shape, memoryview(b""), fortran)
        assert joined(npy.encode({"y": Bundle.of(tensor)})) == stream.getvalue()
        texts.add(len(stream.getvalue().rstrip()) % 64)
    # A dimension of 1 takes three characters: enough of them give nearly every remainder.
    assert len(texts) > 60


@given(st.lists(arrays(max_dims=2), min_size=2, max_size=5))
def test_streams_of_different_arrays_are_read_as_numpy_reads_them(sent: list[np.ndarray]) -> None:
    bundle = decoded(saved(*sent))["x"]
    for tensor, array in zip(bundle.tensors, sent, strict=True):
        assert_is(tensor, array)


def test_arrays_whose_headers_differ_in_the_last_digit_are_told_apart() -> None:
    sent = [np.zeros(shape, "<f4") for shape in ((1, 2), (1, 3), (1, 3), (1, 2))]
    assert [tensor.shape for tensor in decoded(saved(*sent))["x"].tensors] == [array.shape for array in sent]


def test_tensors_share_the_body_and_pieces_share_the_tensors() -> None:
    body = bytearray(saved(THREE, THREE))
    bundle = decoded(body)["x"]
    pieces = npy.encode({"y": bundle})
    body[-12:] = np.array([7, 8, 9], "<f4").tobytes()
    assert array_of(bundle.tensors[1]).tolist() == [7, 8, 9]
    assert [piece for piece in pieces if isinstance(piece, memoryview)] == [tensor.data for tensor in bundle.tensors]
    assert pieces[1] is bundle.tensors[0].data


def test_pairs_are_told_apart_and_written_in_turn() -> None:
    arrays = [np.full(2, value, "<f8") for value in range(4)]
    message = decoded(saved(*arrays), ("x", "grad_output"))
    assert [array_of(tensor)[0] for tensor in message["x"].tensors] == [0, 2]
    assert [array_of(tensor)[0] for tensor in message["grad_output"].tensors] == [1, 3]
    assert joined(npy.encode(message)) == saved(*arrays)
    assert joined(npy.encode(dict(reversed(message.items())))) == saved(*arrays)


def test_one_pair_is_single() -> None:
    message = decoded(saved(THREE, THREE), ("x", "grad_output"))
    assert message["x"].single
    assert message["grad_output"].single


def test_an_odd_number_of_arrays_is_refused_where_pairs_are_needed() -> None:
    with pytest.raises(OddArrayCount, match="3 arrays"):
        decoded(saved(THREE, THREE, THREE), ("x", "grad_output"))


def test_names_are_dropped_and_their_order_is_kept() -> None:
    bundle = Bundle((wire_tensor(THREE), wire_tensor(THREE[:1])), names=("b", "a"))
    assert joined(npy.encode({"y": bundle})) == saved(THREE, THREE[:1])


def test_a_list_of_no_tensors_is_written_as_no_bytes_and_no_bytes_are_no_body() -> None:
    assert npy.encode({"y": Bundle(())}) == []
    with pytest.raises(MalformedBody, match="empty"):
        decoded(b"")


@pytest.mark.parametrize("fields", [("grad_x", "grad_w"), ("x", "w"), ("x", "grad_output", "w"), ("grad_output",), ("grad_w",)])
def test_tensor_parameters_and_their_gradients_have_no_place(fields: tuple[str, ...]) -> None:
    message = {field: Bundle.of(wire_tensor(THREE)) for field in fields}
    with pytest.raises(NotAcceptable, match=r"gradients.*application/vnd\.msgpack and application/json can"):
        npy.encode(message)


def test_pairs_of_different_counts_cannot_be_written() -> None:
    with pytest.raises(StructureMismatch, match=r"1 tensors.*0"):
        npy.encode({"x": Bundle((wire_tensor(THREE),)), "grad_output": Bundle(())})


def test_more_arrays_than_allowed_are_refused_before_they_are_read() -> None:
    assert len(decoded(saved(THREE, THREE), max_tensors=2)["x"].tensors) == 2
    with pytest.raises(TooManyTensors, match="more than 2"):
        decoded(saved(THREE, THREE) + b"not an array", max_tensors=2)


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        "{'shape': (3,), 'descr': '<f4', 'fortran_order': False}",
        '{"descr": "<f4", "fortran_order": False, "shape": (3,)}',
        "  \t{ 'descr' :\n'<f4',\t'fortran_order':False ,'shape':( 3 , ) , }  \n \n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1,), }",
        "{'descr':\r'<f4',\f'fortran_order': False, 'shape': (1, 3)}",
    ],
)
def test_headers_that_numpy_reads_are_read(header: str) -> None:
    body = file(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of what Python 2 wrote
        expected = np.load(io.BytesIO(body))
    assert_is(only(body), expected)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [3], }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (03,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3.0,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3x,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,) }}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), } 1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\0",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }  \n  ",
        "\n{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n",
        "  \n  {'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'shape': (3,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,), }",
        "{'descr': '<f4', 'fortran_order': None, 'shape': (3,), }",
        "{'descr': '<f4', 'shape': (3,), }",
        "{'descr': 4, 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (3,), }",
        "{'descr', '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4, 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '<f4'], 'fortran_order': False, 'shape': (3,), }",
        "{'descr': [('a', '<f4')",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }",
    ],
)
def test_headers_that_numpy_never_writes_are_malformed(header: str) -> None:
    with pytest.raises(MalformedBody, match="byte 0"):
        decoded(file(header))


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("text", ["{0}{{}}", "{{}}{0}", "{0}{{}}\n"])
def test_blanks_around_the_dictionary_are_read_only_where_numpy_reads_them(text: str, version: int) -> None:
    dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"
    for blanks in map("".join, itertools.chain.from_iterable(itertools.product(" \n\t\r\f", repeat=n) for n in range(5))):
        body = file(text.format(blanks).replace("{}", dictionary), version=version)
        try:
            read = only(body)
        except MalformedBody:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of what it reads as Python 2's
            assert_is(read, np.lib.format.read_array(io.BytesIO(body)))


@pytest.mark.parametrize(
    ("shape", "allowed"),
    [
        ("(0, 2305843009213693951)", True),
        ("(0, 2305843009213693952)", False),
        ("(2305843009213693951, 0, 2)", False),
        ("(9223372036854775808,)", False),
        (f"({'9' * 9000},)", False),
        (f"({'1, ' * 64})", True),
        (f"({'1, ' * 65})", False),
    ],
)
def test_shapes_are_bounded_as_numpy_bounds_them(shape: str, allowed: bool) -> None:
    body = file(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}", b"" if "0," in shape else bytes(4))
    if allowed:
        assert only(body).shape == np.load(io.BytesIO(body)).shape
    else:
        with pytest.raises(MalformedBody):
            decoded(body)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, np.int32),
        np.zeros(2, np.complex64),
        np.zeros(2, bool),
        np.zeros(2, "S3"),
        np.zeros(2, "U3"),
        np.zeros(2, "V3"),
        np.zeros(2, [("a", "<f4"), ("b", "<i4", (2, 2))]),
        np.zeros(2, np.longdouble),
        np.zeros(2, ml_dtypes.float8_e5m2),
        np.zeros(2, "M8[s]"),
        np.array([{}]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_are_named_and_refused(array: np.ndarray) -> None:
    with pytest.raises(UnsupportedDtype, match="allowed: <f2, <V2, <f4, <f8") as refusal:
        decoded(saved(array))
    descr = array.dtype.descr if array.dtype.names else array.dtype.str
    assert str(descr) in str(refusal.value)


@pytest.mark.parametrize("descr", [">V2", "=f4", "|f4", "f4", "float32", "<f4 ", ""])
def test_descriptions_that_numpy_never_writes_are_refused(descr: str) -> None:
    with pytest.raises(UnsupportedDtype):
        decoded(file(HEADER.replace("<f4", descr)))


def test_bfloat16_is_read_from_a_plain_view_too() -> None:
    array = ARRAYS["bfloat16_c"]
    assert_is(only(saved(array.view("V2"))), array)


@given(arrays(("float16", "float32", "float64"), max_dims=2))
def test_big_endian_arrays_keep_every_bit(array: np.ndarray) -> None:
    # Bits, not values: a conversion of values would quieten a signalling NaN.
    swapped = array.reshape(-1).view(f"u{array.itemsize}").byteswap().view(array.dtype.newbyteorder(">")).reshape(array.shape)
    tensor = only(saved(swapped))
    assert tensor.data.tobytes() == array.tobytes()


@pytest.mark.parametrize("kept", range(len(saved(THREE))))
def test_a_file_that_ends_early_is_malformed(kept: int) -> None:
    with pytest.raises(MalformedBody):
        decoded(saved(THREE)[:kept])


@pytest.mark.parametrize("tail", [b"\0", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"more"])
def test_bytes_after_the_last_array_are_malformed_and_their_place_is_named(tail: bytes) -> None:
    with pytest.raises(MalformedBody, match=str(len(saved(THREE)))):
        decoded(saved(THREE) + tail)


@pytest.mark.parametrize("version", [(0, 0), (1, 1), (4, 0)])
def test_other_versions_are_malformed(version: tuple[int, int]) -> None:
    body = bytearray(saved(THREE))
    body[6:8] = bytes(version)
    with pytest.raises(MalformedBody, match=f"{version[0]}.{version[1]}"):
        decoded(body)


def test_python_2_ints_belong_to_the_versions_of_its_time() -> None:
    with pytest.raises(MalformedBody):
        decoded(file(HEADER.replace("3", "3L"), version=3))


def test_version_3_is_utf_8() -> None:
    header = "{'descr': [('é', '<f4')], 'fortran_order': False, 'shape': (3,), }"
    with pytest.raises(UnsupportedDtype, match="é"):
        decoded(file(header.encode("utf-8"), version=3))
    with pytest.raises(MalformedBody, match="UTF-8"):
        decoded(file(header.encode("latin-1"), version=3))


def test_headers_are_bounded_and_large_ones_below_the_bound_are_read() -> None:
    assert_is(only(file(HEADER.ljust(npy.MAX_HEADER_BYTES), version=2)), THREE)
    with pytest.raises(MalformedBody, match="10001"):
        decoded(file(HEADER.ljust(npy.MAX_HEADER_BYTES + 1), version=2))


def test_a_header_length_that_the_body_does_not_have_costs_nothing() -> None:
    with pytest.raises(MalformedBody, match="beyond the end"):
        decoded(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}")


@given(st.integers(0, len(saved(THREE)) - 1), st.integers(0, 255), st.binary(max_size=3))
def test_a_body_with_a_broken_byte_is_refused_or_means_what_numpy_reads(at: int, byte: int, tail: bytes) -> None:
    body = bytearray(saved(THREE) + tail)
    body[at] = byte
    try:
        tensor = only(body)
    except RequestError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.load(io.BytesIO(body))
    assert_is(tensor, expected.view(ml_dtypes.bfloat16) if expected.dtype == "V2" else expected)


@given(st.binary(max_size=60), st.text("{}()[]:,'\" \nLTrueFals0123descrfot_hpx<>V|", max_size=80))
def test_random_bytes_and_random_headers_are_refused_as_the_callers_mistake(data: bytes, header: str) -> None:
    for body in (data, b"\x93NUMPY" + data, file(header, data)):
        with pytest.raises(RequestError):
            decoded(body)
