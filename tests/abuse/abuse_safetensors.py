"""safetensors files whose header lies about what follows it, or about itself."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import safetensors.numpy
from abuse_case import Case
from http_bodies import SAFETENSORS
from server_process import post

BAD = "400 malformed_body"
X = np.array([0.6, -0.4], "<f4")
FILE = safetensors.numpy.save({"x": X})


def raw(claim: str, content: bytes, answers: str = BAD, query: str = "op=round") -> Case:
    """A body as it stands."""
    return Case(claim, post(content, query, media_type=SAFETENSORS), answers)


def file(claim: str, header: Any, data: bytes = X.tobytes(), answers: str = BAD, query: str = "op=round") -> Case:
    """A header, written as JSON unless it is text, and the data behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(claim, struct.pack("<Q", len(text)) + text + data, answers, query)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LENGTHS = [
    raw("a file of safetensors is read", FILE, "200"),
    raw("an empty file of safetensors is refused", b""),
    raw("seven bytes of a length are refused", FILE[:7]),
    raw("a header of all bytes there can be costs nothing", b"\xff" * 8 + FILE[8:]),
    raw("a header of a terabyte costs nothing", struct.pack("<Q", 2**40) + FILE[8:]),
    raw("a header of a negative length costs nothing", struct.pack("<q", -1) + FILE[8:]),
    raw("a header that ends behind the body is refused", struct.pack("<Q", len(FILE)) + FILE[8:]),
    raw("a header without a byte is refused", struct.pack("<Q", 0) + FILE[8:]),
    raw("a file cut in its header is refused", FILE[:20]),
    raw("a file cut in its data is refused", FILE[:-1]),
    raw("a byte behind the data is refused", FILE + b"\0"),
    raw("two files one after the other are refused", FILE * 2),
    raw("a file of npy is refused", b"\x93NUMPY\x01\x00" + FILE),
]

HEADERS = [
    file("a header that is a list is refused", []),
    file("a header that is no JSON is refused", b"{'x': 1}"),
    file("a header of bytes that are no UTF-8 is refused", b'{"\xff": 1}'),
    file("a header of half a surrogate is refused", b'{"x": {"dtype": "\\ud800", "shape": [2], "data_offsets": [0, 8]}}'),
    file("a header of nothing but brackets is refused", b'{"x":' + b"[" * 4000),
    file("a header of a number without end is refused", b'{"x": ' + b"9" * 100_000 + b"}"),
    file("a header of 4 MiB of blanks costs nothing", b"{" + b" " * 2**22 + b"}"),
    file("a key twice is refused in safetensors", b'{"x": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "x": {}}'),
    file("a tensor that is a number is refused", {"x": 1}),
    file("a tensor that lacks its shape is refused", {"x": {"dtype": "F32", "data_offsets": [0, 8]}}),
    file("a tensor with a key more is refused", {"x": entry() | {"pickle": "cos"}}),
    file("metadata that are no strings are refused", {"__metadata__": {"a": 1}, "x": entry()}),
    file("metadata are read over", {"__metadata__": {"a": "b"}, "x": entry()}, answers="200"),
    file("2 000 tensors that share their bytes are refused", {f"x.{i}": entry() for i in range(2000)}),
]

TENSORS = [
    file("a negative dimension is refused in safetensors", {"x": entry(shape=[-2])}),
    file("a fraction as dimension is refused in safetensors", {"x": entry(shape=[2.0])}),
    file("a bool as dimension is refused in safetensors", {"x": entry(shape=[True, 2])}),
    file("dimensions whose product overflows are refused", {"x": entry(shape=[2**33, 2**33])}),
    file("65 dimensions are refused in safetensors", {"x": entry(shape=[1] * 64 + [2])}),
    file("100 000 dimensions are refused in safetensors", {"x": entry(shape=[1] * 100_000)}),
    file("a shape of more bytes than there are is refused", {"x": entry(shape=[3])}),
    file("a dtype that is a list is refused", {"x": entry(dtype=["F32"])}),
    file("a tensor that begins behind its end is refused", {"x": entry(offsets=[8, 0])}),
    file("offsets below zero are refused", {"x": entry(offsets=[-8, 0])}),
    file("three offsets are refused", {"x": entry(offsets=[0, 4, 8])}),
    file("a hole before the data is refused", {"x": entry(offsets=[4, 12])}, bytes(12)),
    file("tensors that overlap are refused", {"x.a": entry(), "x.b": entry(offsets=[4, 12])}, bytes(12)),
    file("offsets of 2**64 are refused", {"x": entry(offsets=[2**64 - 8, 2**64])}),
    *(
        file(
            f"the dtype {name} is refused in safetensors",
            {"x": entry(dtype=name, shape=[8 // size])},
            answers="422 unsupported_dtype",
        )
        for name, size in (("I32", 4), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1), ("I64", 8))
    ),
    file("a dtype in small letters is refused", {"x": entry(dtype="f32")}, answers="422 unsupported_dtype"),
]

FIELDS = [
    file("a field that is none is refused", {"z": entry()}, answers="422 surplus_tensor"),
    file("a field of both kinds is refused", {"x": entry(), "x.a": entry(offsets=[8, 16])}, bytes(16), "422 structure_mismatch"),
    file("no tensor at all is refused", {}, b"", "422 missing_tensor"),
    file("a grad_output that nobody wants is refused", {"grad_output": entry()}, answers="422 surplus_tensor"),
    Case(
        "a gradient without grad_output is refused in safetensors",
        post(FILE, "op=round", path="/grad", media_type=SAFETENSORS),
        "422 missing_tensor",
    ),
    Case(
        "a gradient under another name is refused in safetensors",
        post(safetensors.numpy.save({"x.a": X, "grad_output.b": X}), "op=clamp(0,1)", path="/grad", media_type=SAFETENSORS),
        "422 structure_mismatch",
    ),
    Case(
        "a gradient without its x is refused in safetensors",
        post(safetensors.numpy.save({"grad_output": X}), "op=clamp(0,1)", path="/grad", media_type=SAFETENSORS),
        "422 missing_tensor",
    ),
    Case(
        "a gradient of another dtype is refused in safetensors",
        post(
            safetensors.numpy.save({"x": X, "grad_output": X.astype("f8")}), "op=clamp(0,1)", path="/grad", media_type=SAFETENSORS
        ),
        "422 dtype_mismatch",
    ),
    file("an X in large letters is surplus", {"X": entry()}, answers="422 surplus_tensor"),
    file(
        "16 385 tensors are too many in safetensors",
        {f"x.{i}": entry(shape=[0], offsets=[0, 0]) for i in range(16_385)},
        b"",
        "413 too_many_tensors",
    ),
    file("a name of 60 000 letters is refused in short", {"x" * 60_000: entry()}, answers="422 surplus_tensor"),
]

CASES = [*LENGTHS, *HEADERS, *TENSORS, *FIELDS]
