"""JSON bodies that are none, that mean two things, or that cost more than they say."""

from __future__ import annotations

import json
from typing import Any

from abuse_case import Case
from server_process import post

BROKEN, NO_TENSOR, NO_DTYPE = "400 malformed_body", "422 bad_tensor", "422 unsupported_dtype"
T = {"dtype": "float32", "shape": [2], "data": [0.6, -0.4]}
MIB = 2**20


def body(claim: str, content: str | bytes, answers: str = BROKEN, *, path: str = "/quantize", query: str = "op=round") -> Case:
    raw = content.encode() if isinstance(content, str) else content
    return Case(claim, post(raw, query, media_type="application/json", path=path), answers)


def x(claim: str, text: str, answers: str = BROKEN) -> Case:
    """A map whose `x` is this text."""
    return body(claim, f'{{"x": {text}}}', answers)


def tensor(claim: str, answers: str = BROKEN, **changed: Any) -> Case:
    """A tensor with other values under these keys."""
    return body(claim, json.dumps({"x": T | changed}), answers)


SYNTAX = [
    body("an empty body is refused", ""),
    body("blanks are no document", "   \n"),
    body("half a document is refused", '{"x": [1, 2'),
    body("a document and more is refused", '{"x": [1, 2]} {}'),
    body("a NUL behind the document is refused", '{"x": [1, 2]}\0'),
    body("a comma behind the last entry is refused", '{"x": [1, 2],}'),
    x("a comma behind the last number is refused", "[1, 2,]"),
    x("two commas are refused", "[1,,2]"),
    x("a comma in front is refused", "[,1]"),
    body("quotes of one stroke are refused", "{'x': [1, 2]}"),
    body("a name without quotes is refused", "{x: [1, 2]}"),
    body("a comment is refused", '{"x": [1, 2]} // done'),
    body("a comment in stars is refused", '{/* x */ "x": [1, 2]}'),
    body("a mark of byte order is refused", b"\xef\xbb\xbf" + b'{"x": [1, 2]}'),
    body("UTF-16 is refused", '{"x": [1, 2]}'.encode("utf-16")),
    body("UTF-16 without its mark is refused", '{"x": [1, 2]}'.encode("utf-16-le")),
    body("UTF-32 is refused", '{"x": [1, 2]}'.encode("utf-32-le")),
    body("Latin-1 is refused", '{"\xe9": [1, 2]}'.encode("latin-1")),
    body("UTF-8 in too many bytes is refused", b'{"\xc1\xb8": [1, 2]}'),
    body("half a surrogate as bytes is refused", b'{"\xed\xa0\x80": [1, 2]}'),
    body("half a surrogate as an escape is refused", r'{"\ud800": [1, 2]}'),
    body("half a surrogate in a tensor's name is refused", r'{"x": {"\udfff": [1, 2]}}'),
    body("an escape that does not exist is refused", r'{"\q": [1, 2]}'),
    body("half an escape is refused", r'{"\u12": [1, 2]}'),
    body("a newline within a string is refused", '{"x\n": [1, 2]}'),
    body("a NUL within a string is refused", '{"x\0": [1, 2]}'),
    body("a key twice is refused", '{"x": [1, 2], "x": [3, 4]}'),
    body("a key twice, once as an escape, is refused", r'{"x": [1, 2], "\u0078": [3, 4]}'),
    body("a name twice is refused", '{"x": {"a": [1], "a": [2]}}'),
    body("a key twice within a tensor is refused", '{"x": {"dtype": "float32", "dtype": "float64", "shape": [1], "data": [1]}}'),
    body("YAML is refused", "x: [1, 2]"),
    body("msgpack is no JSON", b"\x81\xa1x\x92\x01\x02"),
    body("100 000 opened lists are refused", "[" * 100_000),
    body("100 000 opened maps are refused", '{"x":' * 100_000),
    x("100 000 nested lists are refused", "[" * 100_000 + "]" * 100_000),
    x("65 nested lists are refused", "[" * 65 + "1" + "]" * 65),
    x("2 000 nested maps are refused", '{"a":' * 2000 + "1" + "}" * 2000),
    body("two mebibytes of opened quotes are refused", '"' * (2 * MIB)),
    body("three mebibytes of blanks are refused", " " * (3 * MIB)),
]

NUMBERS = [
    x("NaN as a literal is refused", "[NaN, 1]"),
    x("Infinity as a literal is refused", "[Infinity, 1]"),
    x("minus Infinity as a literal is refused", "-Infinity"),
    x("a plus is refused", "[+1, 2]"),
    x("a leading zero is refused", "[01, 2]"),
    x("a leading point is refused", "[.5, 2]"),
    x("a trailing point is refused", "[5., 2]"),
    x("hexadecimal is refused", "[0x10, 2]"),
    x("an underscore is refused", "[1_0, 2]"),
    x("a lonely minus is refused", "[-, 2]"),
    x("an exponent without digits is refused", "[1e, 2]"),
    x("digits of another script are refused", "[\u0661, 2]"),
    x("a number of 5 000 digits is refused", "9" * 5000),
    x("a number of a mebibyte of digits is refused", "9" * MIB),
    x("a fraction of a mebibyte of digits is a number", "0." + "3" * MIB, "200"),
    x("a number too large for a float is infinite", "[1e999, -1e999]", "200"),
    x("an integer too large for a float is infinite", "1" + "0" * 400, "200"),
    x("an exponent of a thousand digits is read", "1e-" + "9" * 1000, "200"),
    x("true is no number", "[true, 1]", NO_TENSOR),
    x("null is no number", "[null, 1]", NO_TENSOR),
    x("null is no tensor", "null", NO_TENSOR),
    x("text is no number", '["1", 2]', NO_TENSOR),
    x("nan in small letters is no number", '["nan", 2]', NO_TENSOR),
    x("plus Infinity is no number", '["+Infinity", 2]', NO_TENSOR),
    x("text is no tensor", '"float32"', NO_TENSOR),
]

TENSORS = [
    x("ragged lists are refused", "[[1, 2], [3]]", NO_TENSOR),
    x("lists beside numbers are refused", "[[1, 2], 3]", NO_TENSOR),
    x("an empty list beside a full one is refused", "[[], [1]]", NO_TENSOR),
    x("ragged lists deep down are refused", "[[[1], [2]], [[3], [4, 5]]]", NO_TENSOR),
    x("a map in a list of numbers is refused", "[1, {}]", NO_TENSOR),
    x("an empty map among tensors is refused", f"[{json.dumps(T)}, {{}}]", NO_TENSOR),
    x("a map of maps of lists is refused", '{"a": {"b": [1]}}', NO_TENSOR),
    body("a list is no message", "[1, 2]", NO_TENSOR),
    body("a number is no message", "1", NO_TENSOR),
    body("null is no message", "null", NO_TENSOR),
    body("an empty map lacks x", "{}", "422 missing_tensor"),
    body("another name is surplus", '{"x": [1], "z": [1]}', "422 surplus_tensor"),
    body("__proto__ is a surplus name like any other", '{"x": [1], "__proto__": [1]}', "422 surplus_tensor"),
    body("no grad_output is told", '{"x": [1]}', "422 missing_tensor", path="/grad"),
    body("a gradient of another shape is refused", '{"x": [1], "grad_output": [1, 2]}', "422 shape_mismatch", path="/grad"),
    tensor("too few elements are refused", data=[1]),
    tensor("too many elements are refused", data=[1, 2, 3]),
    tensor("nested elements are refused", NO_TENSOR, data=[[1], [2]]),
    tensor("text for elements is refused", data="0.6"),
    tensor("base64 for elements is refused", data="mpkZP83MzL4="),
    tensor("a map for elements is refused", data={"0": 1, "1": 2}),
    tensor("a negative dimension is refused", shape=[-2]),
    tensor("two negative dimensions are refused", shape=[-1, -2]),
    tensor("a dimension with a point is refused", shape=[2.0]),
    tensor("true for a dimension is refused", shape=[True, 2]),
    tensor("text for a dimension is refused", shape=["2"]),
    tensor("a number for a shape is refused", shape=2),
    tensor("a dimension of 2**63 is refused", shape=[2**63], data=[]),
    tensor("dimensions whose product overflows are refused", shape=[2**32, 2**32, 2]),
    tensor("an empty tensor with impossible dimensions is refused", shape=[0, 2**62, 4], data=[]),
    tensor("a dimension of a thousand digits is refused", shape=[10**999], data=[]),
    tensor("65 dimensions are refused", shape=[1] * 64 + [2]),
    tensor("100 000 dimensions are refused", shape=[1] * 100_000),
    tensor("integers are refused", NO_DTYPE, dtype="int64"),
    tensor("a dtype in large letters is refused", NO_DTYPE, dtype="FLOAT32"),
    tensor("a number for a dtype is refused", dtype=32),
    tensor("a list for a dtype is refused", dtype=["float32"]),
    body("16 385 tensors are too many", json.dumps({"x": [T] * 16_385}), "413 too_many_tensors"),
    body("a million empty maps are too many", '{"x": [' + ",".join(["{}"] * 1_000_000) + "]}", "413 too_many_tensors"),
    body("100 000 names are too many", json.dumps({"x": {str(i): 1 for i in range(100_000)}}), "413 too_many_tensors"),
    x("4 MiB of lists, of which the last is longer, are refused", "[" + "[]," * 1_390_000 + "[1]]", NO_TENSOR),
    x("4 MiB of numbers, of which the last is none, are refused", "[" + "1," * 2_000_000 + "null]", NO_TENSOR),
    x("4 MiB of numbers, each in a list, are numbers", "[" + "[1]," * 1_000_000 + "[1]]", "200"),
    x("4 MiB of numbers, one of them -0, of which the last is none, are refused", "[-0," + "1," * 2_000_000 + "true]", NO_TENSOR),
    x("4 MiB of numbers, each in a list, of which the last is longer, are refused", "[" + "[1]," * 1_000_000 + "[1,1]]", NO_TENSOR),
    x(
        "4 MiB of numbers, each in 60 lists, with one beside them, are refused",
        "[" + ("[" * 60 + "1" + "]" * 60 + ",") * 34_000 + "1]",
        NO_TENSOR,
    ),
    x("4 MiB of numbers beside a map are refused", "[" + "1," * 2_000_000 + "{}]", NO_TENSOR),
    x("4 MiB of numbers without an end are refused", "[" + "1," * 2_000_000 + "1"),
    x("4 MiB of strings are refused", "[" + '"",' * 1_300_000 + '""]', NO_TENSOR),
    body("4 MiB of names are too many", "{" + ",".join(f'"{i:x}":1' for i in range(390_000)) + "}", "413 too_many_tensors"),
    body("a body one byte above the limit is too large", b" " * (4 * MIB + 1), "413 body_too_large"),
]

CASES = [*SYNTAX, *NUMBERS, *TENSORS]
