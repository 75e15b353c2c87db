"""msgpack bodies that lie: lengths, depths, kinds and keys."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import numpy as np
from abuse_case import Case
from server_process import post

MEDIA_TYPE = "application/vnd.msgpack"
BROKEN, NO_TENSOR, NO_DTYPE = "400 malformed_body", "422 bad_tensor", "422 unsupported_dtype"
DATA = np.array([0.6, -0.4], "<f4").tobytes()
T = {"dtype": "float32", "shape": [2], "data": DATA}
N = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": DATA}
X = b"\x81\xa1x"  # a map of one entry, whose key is x
PACKED_T = msgpack.packb(T)


def body(claim: str, content: bytes, answers: str = BROKEN, *, path: str = "/quantize", query: str = "op=round") -> Case:
    return Case(claim, post(content, query, media_type=MEDIA_TYPE, path=path), answers)


def value(claim: str, message: object, answers: str = BROKEN) -> Case:
    """A body that is what the msgpack library makes of this."""
    return body(claim, msgpack.packb(message), answers)


def tensor(claim: str, answers: str = BROKEN, **changed: Any) -> Case:
    """A tensor with other values under these keys."""
    return value(claim, {"x": T | changed}, answers)


def numpy_tensor(claim: str, answers: str = BROKEN, **changed: Any) -> Case:
    """A tensor as msgpack-numpy writes it, with other values under these keys."""
    return value(claim, {"x": N | {key.encode(): one for key, one in changed.items()}}, answers)


def after_x(claim: str, content: bytes, answers: str = BROKEN) -> Case:
    """A map whose `x` is these bytes."""
    return body(claim, X + content, answers)


TENSORS = [
    tensor("data that are too short are refused", data=DATA[:-1]),
    tensor("data that are too long are refused", data=DATA + b"\0"),
    tensor("no data are refused", data=b""),
    tensor("text for data is refused", data="12345678"),
    tensor("a list for data is refused", data=[0.6, -0.4]),
    tensor("nil for data is refused", data=None),
    tensor("a negative dimension is refused", shape=[-2]),
    tensor("two negative dimensions are refused", shape=[-2, -1]),
    tensor("a dimension of 2**63 is refused", shape=[2**63]),
    tensor("dimensions whose product overflows are refused", shape=[2**32, 2**32, 2]),
    tensor("an empty tensor with impossible dimensions is refused", shape=[0, 2**62, 4], data=b""),
    tensor("a dimension with a point is refused", shape=[2.0]),
    tensor("true for a dimension is refused", shape=[True, 2]),
    tensor("text for a dimension is refused", shape=["2"]),
    tensor("a number for a shape is refused", shape=2),
    tensor("text for a shape is refused", shape="2"),
    tensor("nil for a shape is refused", shape=None),
    tensor("a list in a shape is refused", shape=[[2]]),
    tensor("65 dimensions are refused", shape=[1] * 64 + [2]),
    tensor("100 000 dimensions are refused", NO_TENSOR, shape=[1] * 100_000),
    tensor("a dtype that nobody knows is refused", NO_DTYPE, dtype="float8"),
    tensor("integers are refused", NO_DTYPE, dtype="int32"),
    tensor("objects are refused", NO_DTYPE, dtype="object"),
    tensor("a dtype as NumPy writes it is refused", NO_DTYPE, dtype="<f4"),
    tensor("a dtype of 64 KiB is refused", NO_DTYPE, dtype="f" * 65536),
    tensor("a number for a dtype is refused", dtype=4),
    tensor("nil for a dtype is refused", dtype=None),
    tensor("bytes for a dtype are refused", dtype=b"float32"),
    tensor("another key makes it no tensor", NO_TENSOR, more=1),
    value("a missing key makes it no tensor", {"x": {"dtype": "float32", "shape": [2]}}, NO_TENSOR),
    value("keys in bytes make it no tensor", {"x": {key.encode(): one for key, one in T.items()}}, NO_TENSOR),
]

NUMPY_TENSORS = [
    numpy_tensor("msgpack-numpy's own map is read", "200"),
    numpy_tensor("an array of objects is not unpickled", NO_DTYPE, kind=b"O", data=b"\x80\x04K\x01."),
    numpy_tensor("an array of objects by its type is not unpickled", NO_DTYPE, type="|O", kind=b"O"),
    numpy_tensor("a kind that does not exist is refused", NO_DTYPE, kind=b"Z"),
    numpy_tensor("a structured type is refused", NO_DTYPE, kind=b"V", type=[["a", "<f4"]]),
    numpy_tensor("a float that calls itself of kind V is refused", NO_DTYPE, kind=b"V"),
    numpy_tensor("a type of many fields is refused", NO_DTYPE, kind=b"V", type=[[f"f{i}", "<f4"] for i in range(50)]),
    numpy_tensor("a scalar is no array", nd=False),
    numpy_tensor("a number for nd is refused", nd=1),
    numpy_tensor("integers of msgpack-numpy are refused", NO_DTYPE, type="<i4"),
    numpy_tensor("complex numbers are refused", NO_DTYPE, type="<c8"),
    numpy_tensor("a number for a type is refused", NO_DTYPE, type=4),
    numpy_tensor("a shape of negative dimensions is refused", shape=[-2]),
    numpy_tensor("data of msgpack-numpy that are too short are refused", data=DATA[:-1]),
]

STRUCTURE = [
    body("an empty body is refused", b""),
    value("a list is no message", [T], NO_TENSOR),
    value("a number is no message", 1, NO_TENSOR),
    value("nil is no message", None, NO_TENSOR),
    value("an empty map lacks x", {}, "422 missing_tensor"),
    value("another name is surplus", {"x": T, "z": T}, "422 surplus_tensor"),
    value("another name alone is surplus", {"y": T}, "422 surplus_tensor"),
    value("a key that is a number is refused", {1: T}, NO_TENSOR),
    value("a key that is NaN is refused", {float("nan"): T}, NO_TENSOR),
    value("a key that is bytes is refused", {b"x": T}, NO_TENSOR),
    value("a key that is nil is refused", {None: T}, NO_TENSOR),
    value("a number is no tensor", {"x": 1}, NO_TENSOR),
    value("numbers are no tensor", {"x": [1.0, 2.0]}, NO_TENSOR),
    value("bytes are no tensor", {"x": DATA}, NO_TENSOR),
    value("nil is no tensor", {"x": None}, NO_TENSOR),
    value("a list of lists of tensors is refused", {"x": [[T]]}, NO_TENSOR),
    value("a map of lists of tensors is refused", {"x": {"a": [T]}}, NO_TENSOR),
    value("16 385 tensors are too many", {"x": [T] * 16_385}, "413 too_many_tensors"),
    value("16 385 names are too many", {"x": {str(i): T for i in range(16_385)}}, "413 too_many_tensors"),
    value("a key of 64 KiB is told in short", {"x": T, "k" * 65536: T}, "422 surplus_tensor"),
    body("a list in x and a tensor in grad_output do not match", msgpack.packb({"x": [T], "grad_output": T}), "422 structure_mismatch", path="/grad"),
    body("a tensor parameter that is a list is refused", msgpack.packb({"x": T, "w": [T]}), NO_TENSOR, query="op=affine_k_bit_quantize&k=2&w=w&b=0"),
    body("a tensor parameter of another dtype is refused", msgpack.packb({"x": T, "w": T | {"dtype": "float16", "shape": [4]}}), "422 dtype_mismatch", query="op=affine_k_bit_quantize&k=2&w=w&b=0"),
]  # fmt: skip

BYTES = [
    body("a key twice is refused", b"\x82\xa1x" + PACKED_T + b"\xa1x" + PACKED_T),
    body("a name twice is refused", X + b"\x82\xa1a" + PACKED_T + b"\xa1a" + PACKED_T),
    after_x("a tensor's key twice makes it no tensor", b"\x83\xa5dtype\xa7float32\xa5shape\x91\x02\xa5shape\x91\x02"),
    after_x("the byte that msgpack never uses is refused", b"\xc1"),
    after_x("an extension is refused", b"\xd4\x01\x00", NO_TENSOR),
    after_x("a timestamp is refused", b"\xd6\xff\x00\x00\x00\x00", NO_TENSOR),
    after_x("an extension of 4 GiB is refused", b"\xc9\xff\xff\xff\xff\x01"),
    after_x("a bin of 4 GiB is refused", b"\xc6\xff\xff\xff\xff"),
    after_x("a str of 4 GiB is refused", b"\xdb\xff\xff\xff\xff"),
    after_x("a list of four thousand million entries is refused", b"\xdd\xff\xff\xff\xff"),
    after_x("a map of four thousand million entries is refused", b"\xdf\xff\xff\xff\xff"),
    body("a message of four thousand million entries is refused", b"\xdf\xff\xff\xff\xff"),
    body("a message that is a list of four thousand million is refused", b"\xdd\xff\xff\xff\xff"),
    after_x("data of 4 GiB that are not there are refused", PACKED_T.replace(b"\xc4\x08", b"\xc6\xff\xff\xff\xff")),
    after_x("100 000 nested lists are refused", b"\x91" * 100_000),
    after_x("100 000 nested maps are refused", b"\x81\xa1a" * 100_000),
    after_x("100 000 nested lists in a dtype are refused", b"\x83\xa5dtype" + b"\x91" * 100_000),
    after_x("four million empty maps are refused", b"\xdd" + struct.pack(">I", 4_000_000) + b"\x80" * 4_000_000, "413 too_many_tensors"),
    after_x("four million empty maps in a shape are refused", b"\x83\xa5shape\xdd" + struct.pack(">I", 4_000_000) + b"\x80" * 4_000_000, NO_TENSOR),
    after_x("a tensor of 16 000 empty maps is refused", b"\xdc\x3e\x80" + b"\x80" * 16_000, NO_TENSOR),
    after_x("a name that is no UTF-8 is refused", b"\x81\xa2\xff\xfe" + PACKED_T),
    after_x("a name that is half a surrogate is refused", b"\x81\xa3\xed\xa0\x80" + PACKED_T),
    after_x("one byte too many is refused", PACKED_T + b"\0"),
    after_x("a second message is refused", PACKED_T + X + PACKED_T),
    after_x("a mebibyte of nil behind the message is refused", PACKED_T + b"\xc0" * 2**20),
    body("the byte that msgpack never uses is no message", b"\xc1"),
    body("a mebibyte of 0xc1 is no message", b"\xc1" * 2**20),
    body("JSON is no msgpack", b'{"x": [1, 2]}'),
]  # fmt: skip

WHOLE = msgpack.packb({"x": T})
TRUNCATED = [
    body(f"a message of which the last {len(WHOLE) - cut} bytes are missing is refused", WHOLE[:cut])
    for cut in range(1, len(WHOLE), 3)
]

CASES = [*TENSORS, *NUMPY_TENSORS, *STRUCTURE, *BYTES, *TRUNCATED]
