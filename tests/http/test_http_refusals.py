"""Bad input: each gets its status, its code and a problem document that names the field, the value and what is allowed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
from dataclasses import dataclass, field
from itertools import product
from typing import Any
from urllib.parse import quote

import msgpack
import numpy as np
import pytest
import torch
from http_app import Raw, RawAnswer, Service, body_messages, messages
from http_bodies import JSON, MSGPACK, NPY, encode, npy, tensor_map

from service.ops import REGISTRY

X = torch.tensor([0.25, 0.5, 2.0])
BODY = npy(X)
HALF = npy(X.half())
DOUBLE = npy(X.double())
OPERATORS = list(REGISTRY)


@dataclass(frozen=True)
class Bad:
    """A request that is refused, and what its refusal says."""

    name: str
    status: int
    code: str
    words: tuple[str, ...]
    query: str = "op=round"
    body: bytes = BODY
    content_type: str | None = NPY
    path: str = "/quantize"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def query(name: str, code: str, text: str, *words: str, body: bytes = BODY) -> Bad:
    return Bad(name, 422, code, words, query=text, body=body)


def op(name: str, code: str, expression: str, *words: str, body: bytes = BODY) -> Bad:
    return query(name, code, f"op={quote(expression)}", *words, body=body)


# What stands in the query --------------------------------------------------------------------------------

QUERIES = [
    Bad("no query", 422, "missing_parameter", ("'op'", *OPERATORS), query=""),
    query("no op", "missing_parameter", "k=4", "'op'", *OPERATORS),
    query("empty op", "bad_expression", "op=", "name of an operator"),
    query("op twice", "repeated_parameter", "op=round&op=floor", "'op'", "once"),
    op("unknown operator", "unknown_operator", "rounded", "'rounded'", *OPERATORS),
    op("operator in capitals", "unknown_operator", "Round", "'Round'", *OPERATORS),
    op("unknown operator in a chain", "unknown_operator", "round | nothing(1)", "'nothing'", *OPERATORS),
    op("attribute of a class", "unknown_operator", "__class__", "'__class__'"),
    query("unknown parameter", "unknown_parameter", "op=k_bit_quantize&k=4&bits=4", "'bits'", "'k'"),
    op("unknown parameter inside", "unknown_parameter", "k_bit_quantize(k=4, bits=4)", "'bits'", "'k'"),
    query("parameter of another operator", "unknown_parameter", "op=round&k=4", "'k'", "no parameters"),
    query("something beside that is no parameter", "unknown_parameter", "op=round&utm_source=mail", "'utm_source'"),
    query("a name without a value beside", "unknown_parameter", "op=round&verbose", "'verbose'"),
    query("parameter beside an expression", "unknown_parameter", "op=k_bit_quantize(4)&k=4", "'k'", "expression"),
    query("parameter beside a chain", "unknown_parameter", "op=round|ceil&k=4", "'k'"),
    op("surplus positional", "unknown_parameter", "k_bit_quantize(4, 5)", "'k'", "2"),
    op("positional for an operator without", "unknown_parameter", "round(1)", "'round'"),
    query("missing parameter", "missing_parameter", "op=k_bit_quantize", "'k'", "'k_bit_quantize'"),
    op("missing second parameter", "missing_parameter", "clamp(0)", "'max_value'"),
    op("missing tensor parameter", "missing_parameter", "affine_k_bit_quantize(4, 1)", "'b'"),
    query("repeated parameter", "repeated_parameter", "op=k_bit_quantize&k=4&k=4", "'k'"),
    op("repeated keyword", "repeated_parameter", "k_bit_quantize(k=4, k=4)", "'k'"),
    op("position and keyword", "repeated_parameter", "k_bit_quantize(4, k=4)", "'k'"),
    *(
        query(
            f"k is {value}", code, f"op=k_bit_quantize&k={value}", "'k'", {"1e9": "1000000000.0", "1e1": "10.0"}.get(value, value)
        )
        for value, code in [
            ("4.5", "bad_parameter"),
            ("4.0", "bad_parameter"),
            ("true", "bad_parameter"),
            ("1e9", "bad_parameter"),
            ("1e1", "bad_parameter"),
            ("0", "bad_parameter"),
            ("-1", "bad_parameter"),
            ("-0", "bad_parameter"),
            ("inf", "bad_parameter"),
            ("1000000000", "bad_parameter"),
            ("1024", "bad_parameter"),
            ("four", "bad_parameter"),
            ("null", "bad_parameter"),
            ("04", "bad_expression"),
            ("0x4", "bad_expression"),
            ("4_0", "bad_expression"),
            ("", "bad_expression"),
            ("4,5", "bad_expression"),
        ]
    ),
    query("k is nan", "bad_parameter", "op=k_bit_quantize&k=nan", "nan"),
    query("k in Arabic digits", "bad_expression", "op=k_bit_quantize&k=%D9%A4", "'k'"),
    query("k of four thousand digits", "bad_parameter", f"op=k_bit_quantize&k={'9' * 4000}"),
    *(
        query(f"step is {value}", code, f"op=step_quantize&step={value}", value)
        for value, code in [
            ("0", "bad_parameter"),
            ("-0.25", "bad_parameter"),
            ("inf", "bad_parameter"),
            ("nan", "bad_parameter"),
            ("1e400", "bad_parameter"),
            ("NaN", "bad_parameter"),
            ("Infinity", "bad_parameter"),
            ("true", "bad_parameter"),
            (".5", "bad_expression"),
            ("5.", "bad_expression"),
            ("1e", "bad_expression"),
        ]
    ),
    query("bounds in the wrong order", "bad_parameter", "op=clamp&min_value=1&max_value=0", "min_value", "max_value", "1", "0"),
    query("a bound is NaN", "bad_parameter", "op=clamp&min_value=nan&max_value=0", "nan"),
    query("a bound is a tensor", "bad_parameter", "op=clamp&min_value=low&max_value=0", "'min_value'", "low"),
    query("eps is negative", "bad_parameter", "op=clamp_by_linear&eps=-1e-5", "'eps'", "-1e-05", ">= 0"),
    query("eps is infinite", "bad_parameter", "op=clamp_by_linear&eps=inf", "'eps'", "inf"),
    *(
        op(f"w is {value}", "bad_parameter", f"affine_k_bit_quantize(4, {value}, 0)", value)
        for value in ("inf", "-inf", "nan", "x", "y", "grad_output", "1e999")
    ),
    op("b is reserved", "bad_parameter", "affine_k_bit_quantize(4, w=1, b=grad_output)", "grad_output"),
    op("a name of 65 letters", "bad_parameter", f"affine_k_bit_quantize(4, {'w' * 65}, 0)", "64"),
    # Syntax.
    op("no closing parenthesis", "bad_expression", "clamp(0, 1", "')'", "the end"),
    op("a comma too many", "bad_expression", "clamp(0, 1,)", "')'"),
    op("nothing after the bar", "bad_expression", "round |", "the end"),
    op("two bars", "bad_expression", "round || ceil", "'|'"),
    op("two names", "bad_expression", "round ceil", "'ceil'"),
    op("a position after a keyword", "bad_expression", "clamp(min_value=0, 1)", "'1'", "character 20"),
    op("quotes", "bad_expression", "affine_k_bit_quantize(4, 'w', 0)", "character"),
    op("code", "unknown_operator", "__import__('os').system('true')", "'__import__'"),
    op("arithmetic", "bad_expression", "clamp(0, 1+1)", "character"),
    op("a semicolon", "bad_expression", "round; ceil", "';'"),
    op("a letter that is none", "unknown_operator", "rоund", "'r'"),  # a Cyrillic o
    query("bytes that are no UTF-8", "bad_expression", "op=%FF%FE", "UTF-8"),
    query("a percent sign alone", "bad_expression", "op=round%", "'%'"),
    op("33 operators", "chain_too_long", " | ".join(["round"] * 33), "32"),
    op("1000 operators", "chain_too_long", "|".join(["ceil"] * 1000), "32"),
    op("one parenthesis after another", "bad_expression", "(" * 3000, "name of an operator"),
]

# What does not fit the dtype -----------------------------------------------------------------------------

DTYPES = [
    query("k of float16", "parameter_does_not_fit", "op=k_bit_quantize&k=16", "'k'", "16", "15", "float16", body=HALF),
    query("k of bfloat16", "parameter_does_not_fit", "op=k_bit_quantize&k=128", "128", "127", "bfloat16", body=npy(X.bfloat16())),
    query("k of float32", "parameter_does_not_fit", "op=k_bit_quantize&k=128", "'k'", "128", "127", "float32"),
    op("k of affine", "parameter_does_not_fit", "affine_k_bit_quantize(128, 1, 0)", "'k'", "128", "127", "float32"),
    op("a bound of float16", "parameter_does_not_fit", "clamp(0, 65505)", "'max_value'", "65505", "65504", "float16", body=HALF),
    op("a bound of float32", "parameter_does_not_fit", "clamp(-1e39, 0)", "'min_value'", "-1e+39", "float32"),
    op("a step that vanishes", "parameter_does_not_fit", "step_quantize(1e-46)", "'step'", "1e-46", "float32"),
    op(
        "a step that vanishes in float16", "parameter_does_not_fit", "step_quantize(1e-46)", "'step'", "1e-46", "float16", body=HALF
    ),
    op("a step that overflows", "parameter_does_not_fit", "step_quantize(1e39)", "'step'", "1e+39", "float32"),
    op("a weight that overflows", "parameter_does_not_fit", "affine_k_bit_quantize(4, 1e39, 0)", "'w'", "1e+39", body=HALF),
    op(
        "a bias that overflows",
        "parameter_does_not_fit",
        "affine_k_bit_quantize(4, 1, 65520)",
        "'b'",
        "65520",
        "float16",
        body=HALF,
    ),
    op("an eps that overflows", "parameter_does_not_fit", "clamp_by_linear(70000)", "'eps'", "70000", "float16", body=HALF),
    op("within a chain", "parameter_does_not_fit", "round | k_bit_quantize(16)", "'k'", "16", "float16", body=HALF),
    query("one tensor of several", "parameter_does_not_fit", "op=k_bit_quantize&k=16", "float16", body=BODY + HALF),
]

# Bodies: npy -------------------------------------------------------------------------------------------


def header(descr: str = "<f4", shape: str = "(3,)", order: str = "False", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def malformed(name: str, body: bytes, *words: str, content_type: str = NPY, path: str = "/quantize") -> Bad:
    return Bad(name, 400, "malformed_body", words, body=body, content_type=content_type, path=path)


def refused(
    name: str, code: str, body: bytes, *words: str, content_type: str = NPY, path: str = "/quantize", text: str = "op=round"
) -> Bad:
    return Bad(name, 422, code, words, body=body, content_type=content_type, path=path, query=text)


def saved(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


class Trap:
    """Unpickled, it would end the tests."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exit, (3,))


NPY_BODIES = [
    malformed("no bytes", b"", "empty"),
    malformed("one byte", b"\x93", "byte 0"),
    malformed("text", b"[1, 2, 3]", "byte 0"),
    malformed("a pickle", pickle.dumps(Trap()), "byte 0"),
    malformed("a zip file", b"PK\x03\x04" + bytes(100), "byte 0"),
    malformed("version 4", b"\x93NUMPY\x04\x00" + BODY[8:], "4.0", "3.0"),
    malformed("one byte short", BODY[:-1], "12", "11"),
    malformed("one element short", BODY[:-4], "12", "8"),
    malformed("no data", BODY[:128], "12", "0"),
    malformed("cut within the header", BODY[:60], "header"),
    malformed("one byte more", BODY + b"\0", "140"),
    malformed("a second array cut short", BODY + BODY[:-1], "12", "11"),
    malformed("rubbish between arrays", BODY + b"....." + BODY, "byte 140"),
    malformed("a negative dimension", header(shape="(-3,)") + bytes(12), "header"),
    malformed("a dimension of 2**64", header(shape="(18446744073709551616,)") + bytes(12), "18446744073709551616"),
    malformed("a dimension of 2**63", header(shape="(9223372036854775808,)") + bytes(12)),
    malformed("dimensions whose product is 2**64", header(shape="(4294967296, 4294967296)") + bytes(12), "4294967296"),
    malformed("an empty tensor of an impossible shape", header(shape="(0, 9223372036854775807, 4)"), "9223372036854775807"),
    malformed("65 dimensions", header(shape="(" + "1, " * 65 + ")") + bytes(4), "64"),
    malformed("a shape that is no tuple", header(shape="3") + bytes(12)),
    malformed("a shape in parentheses", header(shape="(3)") + bytes(12), "tuple"),
    malformed("a fractional dimension", header(shape="(3.0,)") + bytes(12)),
    malformed("an expression as a shape", header(shape="(2+1,)") + bytes(12)),
    malformed("a number as memory order", header(order="1") + bytes(12), "fortran_order"),
    malformed("a header that is no dictionary", b"\x93NUMPY\x01\x00\x10\x00" + b"print('hello')\n "),
    malformed("a header of 60 KB", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b" " * 60000, "60000", "10000"),
    malformed("a header that promises 4 GB", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}", "header"),
    malformed(
        "a key twice",
        b"\x93NUMPY\x01\x00\x5b\x00"
        + b"{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (3,), }".ljust(91)
        + bytes(12),
        "'descr'",
    ),
    *(
        refused(f"{name} array", "unsupported_dtype", saved(array), "<f2", "<f4", "<f8", "<V2")
        for name, array in {
            "int32": np.arange(3, dtype=np.int32),
            "int64": np.arange(3),
            "uint8": np.arange(3, dtype=np.uint8),
            "bool": np.array([True, False]),
            "complex64": np.array([1j], np.complex64),
            "complex128": np.array([1j]),
            "str": np.array(["a", "bc"]),
            "bytes": np.array([b"a", b"bc"]),
            "datetime": np.array(["2020-01-01"], "datetime64[D]"),
            "longdouble": np.arange(3, dtype=np.longdouble),
            "void": np.zeros(3, "V4"),
            "object": np.array([Trap()], dtype=object),
            "structured": np.zeros(3, [("a", "<f4"), ("b", "<i2")]),
            "structured with one field": np.zeros(3, [("a", "<f4")]),
            "nested": np.zeros(3, [("a", "<f4", (2, 2))]),
        }.items()
    ),
    refused("a dtype that is none", "unsupported_dtype", header(descr="<f5") + bytes(12), "<f5", "<f4"),
    refused("an odd number of arrays", "odd_array_count", BODY, "1", "grad_output", path="/grad"),
    refused("three arrays", "odd_array_count", BODY * 3, "3", "grad_output", path="/grad"),
    refused("tensor parameters in npy", "missing_tensor", BODY, "'w'", text="op=affine_k_bit_quantize(4,w,0)"),
    refused("tensor parameters as a second array", "missing_tensor", BODY * 2, "'w'", text="op=affine_k_bit_quantize(4,w,0)"),
]

# Bodies: msgpack ---------------------------------------------------------------------------------------


def packed(value: object) -> bytes:
    return bytes(msgpack.packb(value))


T = tensor_map(X)


def changed(**entries: object) -> bytes:
    return packed({"x": {**T, **entries}})


MSGPACK_BODIES = [
    *(
        malformed(f"msgpack: {name}", body, *words, content_type=MSGPACK)
        for name, body, words in [
            ("no bytes", b"", ("byte 0",)),
            ("one byte short", packed({"x": T})[:-1], ()),
            ("half of it", packed({"x": T})[:10], ()),
            ("a byte more", packed({"x": T}) + b"\x00", ("1 byte",)),
            ("two maps", packed({"x": T}) * 2, ("follow",)),
            ("a byte that starts nothing", b"\xc1", ("0xc1",)),
            ("a key twice", b"\x82\xa1x" + packed(T) + b"\xa1x" + packed(T), ("'x'", "twice")),
            ("a name twice", b"\x81\xa1x\x82\xa1a" + packed(T) + b"\xa1a" + packed(T), ("'a'", "twice")),
            ("a key that is no UTF-8", b"\x81\xa1\xff" + packed(T), ("UTF-8",)),
            ("data too short", changed(data=bytes(8)), ("'x'", "8", "12")),
            ("data too long", changed(data=bytes(16)), ("'x'", "16", "12")),
            ("a negative dimension", changed(shape=[-3]), ()),
            ("a dimension of 2**64 - 1", changed(shape=[2**64 - 1]), ("18446744073709551615",)),
            ("dimensions of 2**32", changed(shape=[2**32, 2**32]), ("4294967296",)),
            ("65 dimensions", changed(shape=[1] * 65, data=bytes(4)), ("65", "64")),
            ("a bool as a dimension", changed(shape=[True]), ()),
            ("a float as a dimension", changed(shape=[3.0]), ()),
            ("a str as a shape", changed(shape="3"), ("'shape'",)),
            ("a str as data", changed(data="0" * 12), ("'data'", "bin")),
            ("an array of 4 billion", b"\x81\xa1x\xdd\xff\xff\xff\xff", ("4294967295",)),
            ("a bin of 4 GB", packed({"x": {"dtype": "float32", "shape": [2**30]}})[:-1] + b"\xc6\xff\xff\xff\xff", ()),
            (
                "a map of maps of maps",
                b"\x81\xa1x\x83\xa5dtype" + b"\x81\xa1a" * 30 + b"\xc0\xa5shape\x90\xa4data\xc4\x00",
                ("deeper",),
            ),
            ("a pickle", pickle.dumps(Trap()), ()),
        ]
    ),
    *(
        refused(f"msgpack: {name}", code, body, *words, content_type=MSGPACK, path=path)
        for name, code, body, words, path in [
            ("a list", "bad_tensor", packed([T]), ("map", "array"), "/quantize"),
            ("a number", "bad_tensor", packed(5), ("map",), "/quantize"),
            ("x is a number", "bad_tensor", packed({"x": 5}), ("'x'", "int"), "/quantize"),
            ("x is nil", "bad_tensor", packed({"x": None}), ("'x'", "nil"), "/quantize"),
            ("x is a list of numbers", "bad_tensor", packed({"x": [1.0, 2.0]}), ("'x'",), "/quantize"),
            ("x is a list of lists", "bad_tensor", packed({"x": [[T]]}), ("'x'",), "/quantize"),
            ("x is a map of lists", "bad_tensor", packed({"x": {"a": [T]}}), ("'x'",), "/quantize"),
            ("x is an ext", "bad_tensor", packed({"x": msgpack.ExtType(5, b"....")}), ("'x'", "ext"), "/quantize"),
            ("x is a timestamp", "bad_tensor", packed({"x": msgpack.Timestamp(5)}), ("'x'",), "/quantize"),
            ("a key too many", "bad_tensor", changed(order="C"), ("'x'",), "/quantize"),
            ("a key is missing", "bad_tensor", packed({"x": {"dtype": "float32", "shape": [0]}}), ("'x'",), "/quantize"),
            ("a key is a number", "bad_tensor", packed({1: T}), ("int",), "/quantize"),
            ("dtype int32", "unsupported_dtype", changed(dtype="int32"), ("'int32'", "float16", "bfloat16"), "/quantize"),
            ("dtype float", "unsupported_dtype", changed(dtype="float"), ("'float'", "float32"), "/quantize"),
            ("dtype <f4", "unsupported_dtype", changed(dtype="<f4"), ("'<f4'", "float32"), "/quantize"),
            ("dtype object", "unsupported_dtype", changed(dtype="object"), ("'object'", "float32"), "/quantize"),
            ("no x", "missing_tensor", packed({}), ("'x'",), "/quantize"),
            ("a tensor that nobody asked for", "surplus_tensor", packed({"x": T, "w": T}), ("'w'", "'x'"), "/quantize"),
            ("grad_output for /quantize", "surplus_tensor", packed({"x": T, "grad_output": T}), ("'grad_output'",), "/quantize"),
            ("no grad_output", "missing_tensor", packed({"x": T}), ("'grad_output'",), "/grad"),
            ("y for /grad", "surplus_tensor", packed({"x": T, "grad_output": T, "y": T}), ("'y'",), "/grad"),
        ]
    ),
    *(
        refused(
            f"msgpack-numpy: {name}",
            "unsupported_dtype",
            encode("msgpack-numpy", {"x": X}).replace(b"<f4", descr),
            descr.decode(),
            "<f4",
            content_type=MSGPACK,
        )
        for name, descr in [("ints", b"<i4"), ("objects", b"|O8"), ("complex", b"<c8")]
    ),
]

# Bodies: JSON ------------------------------------------------------------------------------------------


def json_of(value: object) -> bytes:
    return json.dumps(value).encode()


J = {"dtype": "float32", "shape": [3], "data": [1, 2, 3]}

JSON_BODIES = [
    *(
        malformed(f"JSON: {name}", body, *words, content_type=JSON)
        for name, body, words in [
            ("no bytes", b"", ()),
            ("blanks", b"  \n", ()),
            ("cut", b'{"x": [1, 2', ()),
            ("a comma too many", b'{"x": [1, 2,]}', ()),
            ("trailing", b'{"x": [1]} {}', ()),
            ("no UTF-8", b'{"x": "\xff"}', ("utf-8",)),
            ("UTF-16", '{"x": [1]}'.encode("utf-16"), ()),
            ("NaN as a bare word", b'{"x": [NaN]}', ("NaN",)),
            ("Infinity as a bare word", b'{"x": -Infinity}', ("Infinity",)),
            ("a key twice", b'{"x": [1], "x": [2]}', ("'x'", "twice")),
            ("single quotes", b"{'x': [1]}", ()),
            ("a number of 10 000 digits", b'{"x": [' + b"9" * 10_000 + b"]}", ()),
            ("100 000 levels", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ("deep",)),
            ("65 dimensions", b'{"x": ' + b"[" * 65 + b"]" * 65 + b"}", ("64",)),
            ("too few data", json_of({"x": {**J, "data": [1, 2]}}), ("x.data", "2", "3")),
            ("too many data", json_of({"x": {**J, "data": [1, 2, 3, 4]}}), ("x.data", "4", "3")),
            ("a negative dimension", json_of({"x": {**J, "shape": [-3]}}), ("x.shape",)),
            ("a dimension of 2**64", json_of({"x": {**J, "shape": [2**64]}}), ("18446744073709551616",)),
            ("true as a dimension", json_of({"x": {**J, "shape": [True]}}), ("x.shape",)),
            ("a fraction as a dimension", json_of({"x": {**J, "shape": [3.0]}}), ("x.shape",)),
        ]
    ),
    *(
        refused(f"JSON: {name}", code, json_of(value), *words, content_type=JSON, path=path)
        for name, code, value, words, path in [
            ("a list", "bad_tensor", [1, 2], ("map", "a list"), "/quantize"),
            ("null", "bad_tensor", None, ("map", "null"), "/quantize"),
            ("ragged lists", "bad_tensor", {"x": [[1, 2], [3]]}, ("x", "ragged"), "/quantize"),
            ("lists beside numbers", "bad_tensor", {"x": [[1], 2]}, ("x", "ragged"), "/quantize"),
            ("a string as a number", "bad_tensor", {"x": [1, "2"]}, ("x[1]", "'2'", "NaN"), "/quantize"),
            ("nan in the wrong case", "bad_tensor", {"x": ["nan"]}, ("x[0]", "'nan'", "NaN"), "/quantize"),
            ("null as a number", "bad_tensor", {"x": [None]}, ("x[0]", "null"), "/quantize"),
            ("true as a number", "bad_tensor", {"x": [1, True]}, ("x[1]", "true"), "/quantize"),
            ("a string", "bad_tensor", {"x": "1"}, ("x", "'1'"), "/quantize"),
            ("tensors beside lists", "bad_tensor", {"x": [J, [1, 2]]}, ("x[1]",), "/quantize"),
            ("a key too many", "bad_tensor", {"x": {**J, "order": "C"}}, ("x",), "/quantize"),
            ("int32", "unsupported_dtype", {"x": {**J, "dtype": "int32"}}, ("'int32'", "float32"), "/quantize"),
            ("no x", "missing_tensor", {}, ("'x'",), "/quantize"),
            ("a surplus name", "surplus_tensor", {"x": [1], "scale": [1]}, ("'scale'",), "/quantize"),
            ("no grad_output", "missing_tensor", {"x": [1]}, ("'grad_output'",), "/grad"),
            ("parameters in the body", "surplus_tensor", {"x": [1], "k": 4}, ("'k'",), "/quantize"),
        ]
    ),
]

# Tensors that must agree ---------------------------------------------------------------------------------

OTHER_SHAPE, OTHER_DTYPE = torch.zeros(2), X.double()
AFFINE = "op=affine_k_bit_quantize(4,w,0)"

AGREEMENT = [
    *(
        refused(name, code, encode(form, message), *words, content_type=content_type, path="/grad", text=text)
        for name, code, form, message, words, text in [
            (
                "shapes, npy",
                "shape_mismatch",
                "npy",
                {"x": X, "grad_output": OTHER_SHAPE},
                ("grad_output", "(2,)", "(3,)"),
                "op=round",
            ),
            (
                "shapes, msgpack",
                "shape_mismatch",
                "msgpack",
                {"x": X, "grad_output": OTHER_SHAPE},
                ("grad_output", "(2,)", "(3,)"),
                "op=round",
            ),
            (
                "shapes, JSON",
                "shape_mismatch",
                "json",
                {"x": X, "grad_output": OTHER_SHAPE},
                ("grad_output", "(2,)", "(3,)"),
                "op=round",
            ),
            ("as many elements", "shape_mismatch", "npy", {"x": X, "grad_output": X.reshape(3, 1)}, ("(3, 1)", "(3,)"), "op=round"),
            (
                "one that would broadcast",
                "shape_mismatch",
                "npy",
                {"x": X, "grad_output": torch.tensor(1.0)},
                ("()", "(3,)"),
                "op=clamp(0,1)",
            ),
            (
                "dtypes, npy",
                "dtype_mismatch",
                "npy",
                {"x": X, "grad_output": OTHER_DTYPE},
                ("grad_output", "float64", "float32"),
                "op=round",
            ),
            (
                "dtypes, msgpack",
                "dtype_mismatch",
                "msgpack",
                {"x": X.half(), "grad_output": X.bfloat16()},
                ("bfloat16", "float16"),
                "op=round",
            ),
            (
                "the second pair",
                "shape_mismatch",
                "npy",
                {"x": [X, X], "grad_output": [X, OTHER_SHAPE]},
                ("grad_output[1]", "(2,)"),
                "op=round",
            ),
            ("counts", "structure_mismatch", "msgpack", {"x": [X, X], "grad_output": [X]}, ("2", "1", "grad_output"), "op=round"),
            ("one and a list", "structure_mismatch", "msgpack", {"x": X, "grad_output": [X]}, ("one tensor", "list"), "op=round"),
            ("a list and a map", "structure_mismatch", "json", {"x": [X], "grad_output": {"a": X}}, ("list", "map"), "op=round"),
            ("names", "structure_mismatch", "msgpack", {"x": {"a": X}, "grad_output": {"b": X}}, ("'a'",), "op=round"),
            (
                "a name too many",
                "structure_mismatch",
                "msgpack",
                {"x": {"a": X}, "grad_output": {"a": X, "b": X}},
                ("1", "2"),
                "op=round",
            ),
            (
                "x given where it is not needed",
                "shape_mismatch",
                "msgpack",
                {"x": OTHER_SHAPE, "grad_output": X},
                ("(2,)",),
                "op=round",
            ),
            (
                "w enlarges x",
                "shape_mismatch",
                "msgpack",
                {"x": X, "grad_output": X, "w": torch.zeros(2, 3)},
                ("'w'", "(2, 3)", "(3,)"),
                AFFINE,
            ),
            (
                "w does not match",
                "shape_mismatch",
                "msgpack",
                {"x": X, "grad_output": X, "w": torch.zeros(2)},
                ("'w'", "(2,)", "(3,)"),
                AFFINE,
            ),
            (
                "w of another dtype",
                "dtype_mismatch",
                "msgpack",
                {"x": X, "grad_output": X, "w": X.half()},
                ("'w'", "float16", "float32"),
                AFFINE,
            ),
            ("w is missing", "missing_tensor", "msgpack", {"x": X, "grad_output": X}, ("'w'",), AFFINE),
            ("w is a list", "bad_tensor", "msgpack", {"x": X, "grad_output": X, "w": [X]}, ("'w'", "list"), AFFINE),
            ("w has another name", "surplus_tensor", "json", {"x": X, "grad_output": X, "w": X, "v": X}, ("'v'", "'w'"), AFFINE),
            (
                "an empty tensor",
                "empty_tensor",
                "npy",
                {"x": X[:0], "grad_output": X[:0]},
                ("'x'", "(0,)", "one element"),
                "op=clamp_by_linear",
            ),
        ]
        for content_type in ({"npy": NPY, "msgpack": MSGPACK, "json": JSON}[form],)
    ),
    *(
        refused(f"/quantize: {name}", code, encode(form, message), *words, content_type=content_type, text=text)
        for name, code, form, message, words, text in [
            ("w enlarges x", "shape_mismatch", "msgpack", {"x": X, "w": torch.zeros(2, 1)}, ("'w'", "(2, 1)", "(3,)"), AFFINE),
            (
                "w enlarges a dimension of 1",
                "shape_mismatch",
                "json",
                {"x": X[:1], "w": torch.zeros(3)},
                ("'w'", "(3,)", "(1,)"),
                AFFINE,
            ),
            ("w enlarges a 0-d x", "shape_mismatch", "json", {"x": X[0], "w": torch.zeros(1)}, ("'w'", "(1,)", "()"), AFFINE),
            ("w fits one of two", "shape_mismatch", "msgpack", {"x": [X, torch.zeros(2)], "w": X}, ("'w'", "(3,)", "(2,)"), AFFINE),
            ("an empty tensor", "empty_tensor", "msgpack", {"x": [X, torch.zeros(2, 0)]}, ("x[1]", "(2, 0)"), "op=clamp_by_linear"),
            ("an empty tensor by name", "empty_tensor", "json", {"x": {"a": X[:0]}}, ("'a'", "(0,)"), "op=round|clamp_by_linear"),
        ]
        for content_type in ({"npy": NPY, "msgpack": MSGPACK, "json": JSON}[form],)
    ),
]

# Too many ----------------------------------------------------------------------------------------------

ONE = torch.tensor(1.0)


def too_many(name: str, body: bytes, content_type: str) -> Bad:
    return Bad(name, 413, "too_many_tensors", ("16384",), body=body, content_type=content_type)


TOO_MANY = [
    too_many("16 385 arrays", npy(ONE) * 16_385, NPY),
    too_many("a list of 16 385", packed({"x": [tensor_map(ONE)] * 16_385}), MSGPACK),
    too_many("a map of 16 385", packed({"x": {str(i): tensor_map(ONE) for i in range(16_385)}}), MSGPACK),
    too_many("16 385 names", packed({str(i): tensor_map(ONE) for i in range(16_385)}), MSGPACK),
    too_many("16 385 numbers by name", json_of({"x": {str(i): 1 for i in range(16_385)}}), JSON),
]

# Media types -----------------------------------------------------------------------------------------------


def unread(name: str, content_type: str | None, *words: str, **headers: str) -> Bad:
    return Bad(name, 415, "unsupported_media_type", words, content_type=content_type, headers=headers)


def unacceptable(accept: str, *words: str, **given: Any) -> Bad:
    return Bad(f"Accept: {accept}", 406, "not_acceptable", words, headers={"accept": accept}, **given)


W_BODY = encode("msgpack", {"x": X, "grad_output": X, "w": X})

MEDIA = [
    unread("no Content-Type", None, "Content-Type", NPY, MSGPACK, JSON),
    unread("an empty Content-Type", "", NPY, MSGPACK, JSON),
    unread("text/plain", "text/plain", "'text/plain'", NPY, MSGPACK, JSON),
    unread("application/octet-stream", "application/octet-stream", "'application/octet-stream'", NPY),
    unread("a form", "application/x-www-form-urlencoded", "form-urlencoded", NPY),
    unread("multipart", "multipart/form-data; boundary=x", "multipart/form-data", NPY),
    unread("a pickle", "application/python-pickle", "application/python-pickle", NPY),
    unread("almost JSON", "application/jsonl", "application/jsonl", JSON),
    unread("a range", "*/*", "'*/*'", NPY),
    unread("gzip", NPY, "Content-Encoding", "'gzip'", "identity", **{"content-encoding": "gzip"}),
    unread("br", JSON, "Content-Encoding", "'br'", **{"content-encoding": "br"}),
    unacceptable("text/html", "text/html", NPY, MSGPACK, JSON),
    unacceptable("image/*", "image/*", NPY),
    unacceptable("application/octet-stream", "application/octet-stream", NPY),
    unacceptable("*/*;q=0", NPY),
    unacceptable("application/x-npy;q=0", NPY),
    unacceptable("application/*;q=0", NPY),
    unacceptable(NPY, "tensor parameters", MSGPACK, JSON, path="/grad", query=AFFINE, body=W_BODY, content_type=MSGPACK),
    unacceptable(f"{NPY}, image/png", "tensor parameters", MSGPACK, path="/grad", query=AFFINE, body=W_BODY, content_type=MSGPACK),
]

# Paths and methods -------------------------------------------------------------------------------------------

PATHS = [
    *(
        Bad(
            f"{method} {path}",
            405,
            "method_not_allowed",
            (path, method),
            path=path,
            method=method,
            query="",
            body=b"",
            content_type=None,
        )
        for method, path in [
            ("GET", "/quantize"),
            ("PUT", "/quantize"),
            ("DELETE", "/grad"),
            ("PATCH", "/grad"),
            ("OPTIONS", "/quantize"),
            ("BREW", "/quantize"),
            ("POST", "/operators"),
            ("POST", "/healthz"),
            ("DELETE", "/metrics"),
            ("PUT", "/docs"),
            ("POST", "/"),
            ("POST", "/openapi.json"),
        ]
    ),
    *(
        Bad(f"{method} {path}", 404, "not_found", (path,), path=path, method=method, body=b"" if method == "GET" else BODY)
        for method, path in product(
            ("GET", "POST"), ["/quantise", "/quantize/float32", "/QUANTIZE", "/v1/quantize", "/redoc", "/.env"]
        )
    ),
    Bad("an asset that is none", 404, "not_found", (), path="/docs/assets/nothing.js", method="GET", body=b""),
    Bad("a file outside", 404, "not_found", (), path="/docs/assets/..%2f__init__.py", method="GET", body=b""),
    Bad("a module of the page's package", 404, "not_found", (), path="/page/__init__.py", method="GET", body=b""),
    Bad("a file outside of the page", 404, "not_found", (), path="/page/..%2fpy.typed", method="GET", body=b""),
]

TABLE = QUERIES + DTYPES + NPY_BODIES + MSGPACK_BODIES + JSON_BODIES + AGREEMENT + TOO_MANY + MEDIA + PATHS


def check_problem(status: int, headers: Any, content: bytes, bad: Bad) -> None:
    """The problem document, whole."""
    document = json.loads(content)
    assert (status, document.get("code")) == (bad.status, bad.code), document
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(content)
    assert set(document) >= {"type", "title", "status", "detail", "code"}
    assert document["status"] == status
    assert isinstance(document["type"], str)
    assert document["type"]
    assert isinstance(document["title"], str)
    assert document["title"]
    for word in bad.words:
        assert word in document["detail"], document["detail"]
    assert document["detail"]
    # It is written for a person: no list of 2 000 numbers, no traceback, no module names of the libraries inside.
    assert len(document["detail"]) < 1500
    for inner in ("Traceback", "pydantic", "msgpack.exceptions", "File "):
        assert inner not in document["detail"]


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_every_bad_request_is_refused_with_a_problem_document(service: Service, bad: Bad) -> None:
    url = f"{bad.path}?{bad.query}" if bad.query else bad.path
    response = service.request(
        bad.method,
        url,
        content=bad.body,
        headers=bad.headers | ({} if bad.content_type is None else {"content-type": bad.content_type}),
    )
    check_problem(response.status_code, response.headers, response.content, bad)


def test_nothing_that_was_refused_stays_in_flight(service: Service) -> None:
    """Runs after the table, on the same application."""
    assert service.app.state.core.budget.in_flight_bytes == 0


def test_an_enormous_k_costs_nothing(service: Service) -> None:
    for k in ("1000000000", "9" * 18, "9" * 4000):
        started = time.perf_counter()
        for path in ("/quantize", "/grad"):
            assert service.post(f"{path}?op=k_bit_quantize&k={k}", BODY, NPY).status_code == 422
        assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("path", "allowed"), [("/quantize", "POST"), ("/grad", "POST"), ("/operators", "GET"), ("/healthz", "GET"), ("/docs", "GET")]
)
def test_a_wrong_method_is_told_the_right_one(service: Service, path: str, allowed: str) -> None:
    response = service.request("DELETE", path)
    assert response.status_code == 405
    assert allowed in [method.strip() for method in response.headers["allow"].split(",")]


@pytest.mark.parametrize("path", ["/operators", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_head_is_answered_without_a_body_or_refused(service: Service, path: str) -> None:
    response = service.request("HEAD", path)
    assert response.status_code in (200, 405)
    if response.status_code == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/quantize", "/operators", "/nothing"])
def test_a_preflight_is_no_error_of_the_server(service: Service, path: str) -> None:
    headers = {"origin": "http://elsewhere.test", "access-control-request-method": "POST"}
    response = service.request("OPTIONS", path, headers=headers)
    assert response.status_code in (200, 204, 404, 405)
    assert "access-control-allow-origin" not in response.headers


# Limits ----------------------------------------------------------------------------------------------------


def raw_problem(answer: RawAnswer, bad: Bad) -> None:
    check_problem(answer.status, answer.headers, answer.body, bad)


def test_too_large_a_body_is_refused_before_it_is_read() -> None:
    with Service(max_body_bytes=1000, max_json_bytes=100) as small:
        for content_type, length, limit in [(NPY, 1001, 1000), (MSGPACK, 10**17, 1000), (JSON, 101, 100)]:
            headers = [("host", "a"), ("content-type", content_type), ("content-length", str(length))]
            # `receive` fails the test when it is called.
            answer = small.raw(Raw(headers=headers, receive=messages()))
            raw_problem(answer, Bad("", 413, "body_too_large", (str(length), str(limit))))
        padded = b'{"x": [1.5]}'.ljust(100)
        assert small.post("/quantize?op=round", padded, JSON).status_code == 200
        assert small.post("/quantize?op=round", padded + b" ", JSON).json()["code"] == "body_too_large"
        body = npy(torch.zeros(218))
        assert len(body) == 1000
        assert small.post("/quantize?op=round", body, NPY).status_code == 200
        assert small.app.state.core.budget.in_flight_bytes == 0


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    with Service(max_body_bytes=1000) as small:
        piece = {"type": "http.request", "body": bytes(400), "more_body": True}
        headers = [("host", "a"), ("content-type", NPY), ("transfer-encoding", "chunked")]
        # The third piece is over the limit; a fourth is not asked for.
        answer = small.raw(Raw(headers=headers, receive=messages(piece, piece, piece)))
        raw_problem(answer, Bad("", 413, "body_too_large", ("1000",)))
        assert small.app.state.core.budget.in_flight_bytes == 0


def test_json_has_a_limit_of_its_own(service: Service) -> None:
    limit = 4 * 2**20
    headers = [("host", "a"), ("content-type", JSON), ("content-length", str(limit + 1))]
    raw_problem(service.raw(Raw(headers=headers, receive=messages())), Bad("", 413, "body_too_large", (str(limit), str(limit + 1))))


def test_the_number_of_tensors_can_be_set() -> None:
    with Service(max_tensors=3) as small:
        assert small.post("/quantize?op=round", BODY * 3, NPY).status_code == 200
        assert small.post("/quantize?op=round", BODY * 4, NPY).json()["code"] == "too_many_tensors"
        for message, status in [({"x": [X, X, X]}, 200), ({"x": [X, X, X], "w": X}, 413)]:
            assert small.post("/quantize?op=round", encode("msgpack", message), MSGPACK).status_code == status


# Framing, as an ASGI server hands it on ----------------------------------------------------------------------


def framed(*headers: tuple[str, str], body: bytes = BODY, http_version: str = "1.1") -> Raw:
    return Raw(headers=headers, receive=body_messages(body), http_version=http_version)


LENGTH = ("content-length", str(len(BODY)))
TYPE = ("content-type", NPY)
HOST = ("host", "a")


@pytest.mark.parametrize(
    ("request_", "status", "code", "word"),
    [
        (framed(TYPE, LENGTH), 400, "bad_framing", "Host"),
        (framed(HOST, HOST, TYPE, LENGTH), 400, "bad_framing", "host"),
        (framed(HOST, ("host", "b"), TYPE, LENGTH), 400, "bad_framing", "host"),
        (framed(HOST, TYPE, TYPE, LENGTH), 400, "bad_framing", "content-type"),
        (framed(HOST, TYPE, ("content-type", JSON), LENGTH), 400, "bad_framing", "content-type"),
        (framed(HOST, TYPE, LENGTH, LENGTH), 400, "bad_framing", "content-length"),
        (framed(HOST, TYPE, ("content-length", "-1")), 400, "bad_framing", "'-1'"),
        (framed(HOST, TYPE, ("content-length", "1e3")), 400, "bad_framing", "'1e3'"),
        (framed(HOST, TYPE, ("content-length", "+140")), 400, "bad_framing", "'+140'"),
        (framed(HOST, TYPE, ("content-length", "9" * 30)), 400, "bad_framing", "'999"),
        (framed(HOST, TYPE), 411, "length_required", "Content-Length"),
        (framed(HOST, TYPE, ("content-length", str(len(BODY) + 1))), 400, "malformed_body", str(len(BODY) + 1)),
        (framed(HOST, TYPE, ("content-length", str(len(BODY) - 1))), 400, "malformed_body", str(len(BODY) - 1)),
    ],
    ids=lambda value: None if isinstance(value, Raw) else str(value),
)
def test_framing_that_http_forbids_is_refused(service: Service, request_: Raw, status: int, code: str, word: str) -> None:
    raw_problem(service.raw(request_), Bad("", status, code, (word,)))


@pytest.mark.parametrize("path", ["/healthz", "/operators", "/nothing"])
def test_framing_is_checked_on_every_path(service: Service, path: str) -> None:
    for headers in ((), (HOST, HOST)):
        raw_problem(service.raw(Raw("GET", path, b"", headers, body_messages(b""))), Bad("", 400, "bad_framing", ()))


def test_a_later_http_needs_no_host_and_no_length(service: Service) -> None:
    """HTTP/2 has `:authority`, and says where a body ends; HTTP/1.0 had no Host."""
    assert service.raw(framed(TYPE, LENGTH, http_version="2")).status == 200
    assert service.raw(framed(TYPE, http_version="2")).status == 200
    assert service.raw(framed(TYPE, LENGTH, http_version="1.0")).status == 200


@pytest.mark.parametrize("raw_query", [b"op=\xff", b"op=%80", b"op=round%C3", b"%FF=1&op=round", b"op=round&%00=1", b"op=%00"])
def test_a_query_that_is_no_text_is_the_callers_mistake(service: Service, raw_query: bytes) -> None:
    answer = service.raw(Raw(query=raw_query, headers=(HOST, TYPE, LENGTH), receive=body_messages(BODY)))
    assert answer.status == 422, answer.body
    assert json.loads(answer.body)["code"] in ("bad_expression", "unknown_parameter")


def test_a_disconnect_in_the_middle_of_a_body_is_answered_to_nobody(service: Service) -> None:
    piece = {"type": "http.request", "body": BODY[:50], "more_body": True}
    answer = service.raw(Raw(headers=(HOST, TYPE, LENGTH), receive=messages(piece, {"type": "http.disconnect"})))
    assert answer.status == 0
    assert service.app.state.core.budget.in_flight_bytes == 0


# Keys ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """An application that asks for keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# two keys\nfirst-key\n\n  second-key  \n")
    with Service(api_keys_file=file) as running:
        yield running


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_a_known_key_may_call(locked: Service, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {key}"}
        assert locked.post("/quantize?op=round", BODY, NPY, headers=headers).status_code == 200
        assert locked.get("/operators", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first-ke",
        "Bearer first-keyy",
        "Basic first-key",
        "first-key",
        "Bearer # two keys",
        "Bearer FIRST-KEY",
    ],
)
def test_any_other_key_is_refused(locked: Service, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for url in ("/quantize?op=round", "/grad?op=round", "/quantize?op=nothing"):
        response = locked.post(url, BODY, NPY, headers=headers)
        check_problem(response.status_code, response.headers, response.content, Bad("", 401, "unauthorized", ()))
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert "first-key" not in response.text
    assert locked.get("/operators", headers=headers).status_code == 401


def test_keys_are_checked_before_anything_is_told_about_paths_and_bodies(locked: Service) -> None:
    for method, path in [("GET", "/quantize"), ("GET", "/nothing"), ("POST", "/operators")]:
        assert locked.request(method, path).status_code == 401
    headers = [HOST, TYPE, ("content-length", str(10**12))]
    assert locked.raw(Raw(headers=headers, receive=messages())).status == 401


def test_probes_need_no_key(locked: Service) -> None:
    assert locked.get("/healthz").status_code == 200
    assert locked.get("/readyz").status_code == 200
