"""The safetensors format, held to its library: each reads what the other writes; we accept nothing that it refuses."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from examples import DTYPES, assert_same_bits, interesting
from hypothesis import example, given
from hypothesis import strategies as st

from service.device import memory
from service.dtypes import DTYPES as WIRE_DTYPES
from service.errors import MalformedBody, RequestError, StructureMismatch, TooManyTensors, UnsupportedDtype
from service.wire import safetensors as codec
from service.wire.message import Bundle, WireTensor

MANY = 1000
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def file_of(header: Any, data: bytes = b"") -> bytes:
    """A file with this header: text as it is, else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def decode(body: bytes, fields: tuple[str, ...] = ("x", "grad_output"), max_tensors: int = MANY) -> dict[str, Bundle]:
    return codec.decode(memoryview(bytearray(body)), fields, max_tensors)


def wire(x: torch.Tensor) -> WireTensor:
    return WireTensor(WIRE_DTYPES[str(x.dtype).removeprefix("torch.")], tuple(x.shape), memory.data_of(x.contiguous()))


def tensor_of(one: WireTensor) -> torch.Tensor:
    return memory.shaped(memory.shared_flat(one)[0], one)


def library_reads(body: bytes) -> bool:
    try:
        safetensors.deserialize(body)
    except safetensors.SafetensorError:
        return False
    return True


# What the library writes is read ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (2, 0, 3), (1, 1, 4, 1)], ids=str)
def test_a_tensor_of_the_library_is_read_with_its_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    x = interesting(dtype)[:count].reshape(shape).clone()
    message = decode(safetensors.torch.save({"x": x}, metadata={"format": "pt"}))
    assert set(message) == {"x"}
    assert message["x"].single
    assert_same_bits(tensor_of(message["x"].tensors[0]), x)


def test_fields_are_read_by_name_and_tensor_parameters_alone() -> None:
    x, w = torch.randn(3), torch.randn(2)
    message = decode(safetensors.torch.save({"x.a": x, "x.b.c": x + 1, "x.": x + 2, "w": w, "w.x": w + 1}))
    assert set(message) == {"x", "w", "w.x"}
    assert set(message["x"].names or ()) == {"a", "b.c", ""}
    assert not message["x"].single
    named = dict(zip(message["x"].names or (), message["x"].tensors, strict=True))
    assert_same_bits(tensor_of(named["b.c"]), x + 1)
    assert_same_bits(tensor_of(message["w.x"].tensors[0]), w + 1)


def test_names_are_in_the_order_in_which_their_data_lie() -> None:
    header = {
        "x.late": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        "x.first": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "x.empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [8, 8]},
    }
    body = file_of(header, np.float32([1, 2, 3]).tobytes())
    message = decode(body)
    assert message["x"].names == ("first", "empty", "late")
    assert [one.shape for one in message["x"].tensors] == [(2,), (0, 5), (1,)]
    with_library = {name: entry["shape"] for name, entry in safetensors.deserialize(body)}
    assert with_library == {"x.first": [2], "x.empty": [0, 5], "x.late": [1]}


def test_tensors_share_the_memory_of_the_body() -> None:
    body = bytearray(file_of({"x": ONE}, bytes(4)))
    message = codec.decode(memoryview(body), ("x",), MANY)
    body[-4:] = np.float32(7).tobytes()
    assert tensor_of(message["x"].tensors[0]).item() == 7


def test_a_header_of_any_length_is_read_wherever_its_data_then_lie() -> None:
    for blanks in range(8):
        text = json.dumps({"x": ONE}).encode() + b" " * blanks
        assert tensor_of(decode(file_of(text, np.float32(3).tobytes()))["x"].tensors[0]).item() == 3


# What we write the library reads ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_reads_what_is_written_with_its_bits(dtype: torch.dtype) -> None:
    x = interesting(dtype)
    message = {"y": Bundle((wire(x), wire(x[:0]), wire(x[3])), ("a", "", "é")), "grad_w": Bundle.of(wire(x[:6].reshape(2, 3)))}
    read = safetensors.torch.load(b"".join(codec.encode(message)))
    assert set(read) == {"y.a", "y.", "y.é", "grad_w"}
    for name, expected in {"y.a": x, "y.": x[:0], "y.é": x[3], "grad_w": x[:6].reshape(2, 3)}.items():
        assert_same_bits(read[name], expected, name)


def test_one_tensor_is_written_as_the_library_writes_it() -> None:
    x = torch.randn(4, 5)
    assert b"".join(codec.encode({"y": Bundle.of(wire(x))})) == safetensors.torch.save({"y": x})


def test_a_list_is_written_by_number_and_an_empty_one_as_a_file_without_tensors() -> None:
    x = torch.randn(3)
    assert set(safetensors.torch.load(b"".join(codec.encode({"y": Bundle((wire(x), wire(x)))})))) == {"y.0", "y.1"}
    assert b"".join(codec.encode({"y": Bundle(())})) == file_of(b"{}      ")


def test_fortran_order_becomes_c_order() -> None:
    x = torch.randn(3, 4)
    fortran = WireTensor(WIRE_DTYPES["float32"], (3, 4), memory.data_of(x.t().contiguous()), fortran=True)
    assert_same_bits(safetensors.torch.load(b"".join(codec.encode({"y": Bundle.of(fortran)})))["y"], x)


def test_every_tensor_is_written_aligned_to_its_elements() -> None:
    tensors = [torch.randn(3).to(dtype) for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32)]
    body = b"".join(codec.encode({"y": Bundle(tuple(map(wire, tensors)), ("h", "d", "b", "s"))}))
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert int.from_bytes(body[:8], "little") % 8 == 0
    for name, itemsize in {"y.h": 2, "y.d": 8, "y.b": 2, "y.s": 4}.items():
        assert header[name]["data_offsets"][0] % itemsize == 0
    assert all(torch.equal(safetensors.torch.load(body)[f"y.{name}"], x) for name, x in zip("hdbs", tensors, strict=True))


def test_what_is_written_is_read_again() -> None:
    message = {"x": Bundle((wire(torch.randn(3)), wire(torch.randn(2, 2))), ("p", "q")), "w": Bundle.of(wire(torch.randn(1)))}
    again = decode(b"".join(codec.encode(message)))
    assert {name: (bundle.names, [bytes(one.data) for one in bundle.tensors]) for name, bundle in again.items()} == {
        name: (bundle.names, [bytes(one.data) for one in bundle.tensors]) for name, bundle in message.items()
    }


# What is refused --------------------------------------------------------------------------------------

F32 = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
MALFORMED: Mapping[str, bytes] = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a length and no header": (8).to_bytes(8, "little"),
    "an empty header": file_of(b""),
    "a header beyond the body": (100).to_bytes(8, "little") + b"{}",
    "a header beyond its bound": (codec.MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}" + b" " * codec.MAX_HEADER_BYTES,
    "the largest length there is": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"{x}"),
    "a cut header": file_of(b'{"x":{' + F32),
    "a list": file_of(b"[]"),
    "a blank first": file_of(b' {"x":{' + F32 + b"}}", bytes(4)),
    "no UTF-8": file_of(b'{"\xff":{' + F32 + b"}}", bytes(4)),
    "half a surrogate pair": file_of(b'{"\\ud800":{' + F32 + b"}}", bytes(4)),
    "half a surrogate pair in the metadata": file_of(b'{"__metadata__":{"a":"\\udfff"}}'),
    "something behind the map": file_of(b"{}{}"),
    "a key twice": file_of(b'{"x":{' + F32 + b'},"x":{' + F32 + b"}}", bytes(4)),
    "a part twice": file_of(b'{"x":{"dtype":"F32",' + F32 + b"}}", bytes(4)),
    "metadata twice": file_of(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata that are no texts": file_of({"__metadata__": {"a": 1}}),
    "metadata that are null": file_of({"__metadata__": None}),
    "metadata nested deeply": file_of(b'{"__metadata__":' + b"[" * 100_000),
    "a tensor that is a number": file_of({"x": 1}),
    "a tensor that is null": file_of({"x": None}),
    "a part missing": file_of({"x": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a part too many": file_of({"x": {**ONE, "order": "C"}}, bytes(4)),
    "a dtype that is a number": file_of({"x": {**ONE, "dtype": 1}}, bytes(4)),
    "a shape that is a number": file_of({"x": {**ONE, "shape": 1}}, bytes(4)),
    "a dimension that is true": file_of({"x": {**ONE, "shape": [True]}}, bytes(4)),
    "a dimension that is negative": file_of({"x": {**ONE, "shape": [-1]}}, bytes(4)),
    "a dimension that is minus zero": file_of(b'{"x":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
    "a dimension with a point": file_of({"x": {**ONE, "shape": [1.0]}}, bytes(4)),
    "a dimension that is NaN": file_of({"x": {**ONE, "shape": [float("nan")]}}, bytes(4)),
    "a dimension of 5000 digits": file_of(b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', bytes(4)),
    "a shape beyond all memory": file_of({"x": {**ONE, "shape": [2**40, 2**40]}}, bytes(4)),
    "an empty shape beyond all memory": file_of({"x": {**ONE, "shape": [0, 2**64], "data_offsets": [0, 0]}}),
    "65 dimensions": file_of({"x": {**ONE, "shape": [1] * 65}}, bytes(4)),
    "one offset": file_of({"x": {**ONE, "data_offsets": [4]}}, bytes(4)),
    "three offsets": file_of({"x": {**ONE, "data_offsets": [0, 4, 4]}}, bytes(4)),
    "offsets backwards": file_of({"x": {**ONE, "data_offsets": [4, 0]}}, bytes(4)),
    "an offset beyond the body": file_of({"x": {**ONE, "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "a hole before": file_of({"x": {**ONE, "data_offsets": [4, 8]}}, bytes(8)),
    "a hole between": file_of({"x": ONE, "w": {**ONE, "data_offsets": [8, 12]}}, bytes(12)),
    "an overlap": file_of({"x": ONE, "w": {**ONE, "data_offsets": [2, 6]}}, bytes(6)),
    "the same bytes twice": file_of({"x": ONE, "w": ONE}, bytes(4)),
    "less data than the shape has": file_of({"x": {**ONE, "shape": [2]}}, bytes(4)),
    "more data than the shape has": file_of({"x": {**ONE, "shape": []}}, bytes(8)),
    "bytes behind the data": file_of({"x": ONE}, bytes(5)),
    "bytes behind no data": file_of({}, bytes(1)),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_such_file_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        decode(body)


@pytest.mark.parametrize("dtype", ["I32", "U8", "BOOL", "F8_E4M3", "C64", "f32", "FOO", ""])
def test_other_dtypes_are_named(dtype: str) -> None:
    with pytest.raises(UnsupportedDtype, match="allowed: F16, BF16, F32, F64"):
        decode(file_of({"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}, bytes(4)))


def test_a_field_is_one_tensor_or_several() -> None:
    header = {"x": ONE, "x.a": {**ONE, "data_offsets": [4, 8]}}
    with pytest.raises(StructureMismatch, match=r"'x' and 'x\.a'"):
        decode(file_of(header, bytes(8)))


def test_more_tensors_than_allowed_are_refused() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    body = file_of({f"x.{i}": empty for i in range(11)})
    assert len(decode(body, max_tensors=11)["x"].tensors) == 11
    with pytest.raises(TooManyTensors, match=r"11 tensors; at most 10"):
        decode(body, max_tensors=10)


@pytest.mark.parametrize("item", [b"[],", b"{},", b'"":0,', b"1,", b'"a",', b"[[],[]],"], ids=repr)
def test_a_header_of_many_values_takes_a_bounded_multiple_of_its_size(item: bytes) -> None:
    header = b'{"x":[' + item * (2**20 // len(item))
    tracemalloc.start()
    with pytest.raises(MalformedBody):
        decode(file_of(header))
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


GOOD = file_of({"__metadata__": {"a": "b"}, "x.a": ONE, "x.b": {"dtype": "F16", "shape": [2, 1], "data_offsets": [4, 8]}}, bytes(8))


@given(st.data())
def test_what_is_accepted_the_library_accepts_too(data: st.DataObject) -> None:
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        position = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "remove"])):
            case "set":
                body[position] = data.draw(st.sampled_from(b'0123456789,:{}[]"\\ex. -\x00\xff'))
            case "cut":
                del body[position:]
            case "insert":
                body[position:position] = data.draw(st.sampled_from([b"0", b" ", b'"', b",", b'"x":1,']))
            case "remove":
                del body[position]
        if not body:
            break
    try:
        decode(bytes(body))
    except RequestError:
        return
    assert library_reads(bytes(body))


@given(st.binary(max_size=200))
@example(GOOD)
def test_no_bytes_give_anything_but_tensors_or_a_refusal(body: bytes) -> None:
    try:
        message = decode(body)
    except RequestError:
        return
    assert library_reads(body)
    assert all(one.data.nbytes == one.size * one.dtype.itemsize for bundle in message.values() for one in bundle.tensors)
