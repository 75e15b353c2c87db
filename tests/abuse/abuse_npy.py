"""npy bodies that lie: headers that say what is not there, or what nobody may ask for."""

from __future__ import annotations

import pickle

import numpy as np
from abuse_case import SMALL, Case
from http_bodies import npy
from server_process import post

BROKEN, NO_DTYPE, SPARE = "400 malformed_body", "422 unsupported_dtype", b"\0" * 8
BOMB = pickle.dumps([object], protocol=4)


def array(header: str | bytes, data: bytes = SPARE, *, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """An array with this header, whose length may be another than its own."""
    text = header.encode("latin-1") if isinstance(header, str) else header
    width = 2 if version[0] == 1 else 4
    announced = len(text) if length is None else length
    return b"\x93NUMPY" + version + announced.to_bytes(width, "little") + text + data


def literal(*, descr: str = "'<f4'", order: str = "False", shape: str = "(2,)", more: str = "") -> str:
    """A header whose values are these Python literals."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


def body(claim: str, content: bytes, answers: str = BROKEN, path: str = "/quantize") -> Case:
    return Case(claim, post(content, path=path), answers)


def shape(claim: str, text: str, answers: str = BROKEN) -> Case:
    return body(claim, array(literal(shape=text)), answers)


def descr(claim: str, text: str, answers: str = NO_DTYPE) -> Case:
    return body(claim, array(literal(descr=text)), answers)


def header(claim: str, text: str | bytes, answers: str = BROKEN) -> Case:
    return body(claim, array(text), answers)


SHAPES = [
    shape("a negative dimension is refused", "(-2,)"),
    shape("two negative dimensions, whose product is right, are refused", "(-2, -1)"),
    shape("minus one is no dimension to be guessed", "(-1,)"),
    shape("a dimension of 2**63 is refused", f"({2**63},)"),
    shape("a dimension of 2**64 and two is refused", f"({2**64 + 2},)"),
    shape("dimensions whose product overflows to the right number are refused", f"({2**32}, {2**32}, 2)"),
    shape("dimensions of a product above 2**63 bytes are refused", f"({2**62}, 1)"),
    shape("an empty tensor with impossible dimensions is refused", f"(0, {2**62}, 4)"),
    shape("a dimension of a thousand digits is refused", f"({'9' * 1000},)"),
    shape("a terabyte that is not there is refused", f"({2**38},)"),
    shape("65 dimensions are refused", f"({'1, ' * 64}2)"),
    shape("a dimension with a point is refused", "(2.0,)"),
    shape("a dimension with an exponent is refused", "(2e0,)"),
    shape("a dimension in hexadecimal is refused", "(0x2,)"),
    shape("a dimension with an underscore is refused", "(0_2,)"),
    shape("a dimension with leading zeros is refused", "(02,)"),
    shape("a dimension with a plus is refused", "(+2,)"),
    shape("True is no dimension", "(True, 2)"),
    shape("None is no dimension", "(None,)"),
    shape("a string is no dimension", "('2',)"),
    shape("a shape that is a list is refused", "[2]"),
    shape("a shape that is a number is refused", "2"),
    shape("a shape in brackets that make no tuple is refused", "(2)"),
    shape("a shape within a shape is refused", "((2,),)"),
    shape("a sum for a dimension is refused", "(1+1,)"),
    shape("a product for a dimension is refused", "(2*1,)"),
    shape("a call for a dimension is refused", "(int('2'),)"),
    shape("a shape without its end is refused", "(2,"),
    shape("two commas in a shape are refused", "(2,,)"),
    shape("a comma alone is no shape", "(,)"),
]

DTYPES = [
    descr("an array of objects is refused", "'|O'"),
    body("an array of objects with its pickle is refused", array(literal(descr="'|O'"), BOMB), NO_DTYPE),
    body("a pickle is no array", BOMB),
    descr("a structured dtype is refused", "[('a', '<f4')]"),
    descr("a dtype of nested structures is refused", "[('a', [('b', [('c', '<f4')])])]"),
    descr("a structure of objects is refused", "[('a', '|O')]"),
    descr("a sub-array as a dtype is refused", "('<f4', (2,))"),
    descr("bool is refused", "'|b1'"),
    descr("int8 is refused", "'|i1'"),
    descr("int64 is refused", "'<i8'"),
    descr("uint16, of bfloat16's size, is refused", "'<u2'"),
    descr("float128 is refused", "'<f16'"),
    descr("complex64 is refused", "'<c8'"),
    descr("dates are refused", "'<M8[ns]'"),
    descr("text is refused", "'<U2'"),
    descr("void of three bytes is refused", "'<V3'"),
    descr("big-endian void is refused", "'>V2'"),
    descr("a dtype without its byte order is refused", "'f4'"),
    descr("a dtype of native byte order is refused", "'=f4'"),
    descr("a dtype by name is refused", "'float32'"),
    descr("an empty dtype is refused", "''"),
    descr("a dtype of 8 KiB is refused", f"'{'f' * 8192}'"),
    descr("a dtype with an escape is refused", r"'<\x664'"),
    descr("a number as a dtype is refused", "4", BROKEN),
    descr("None as a dtype is refused", "None", BROKEN),
    descr("a map as a dtype is refused", "{'names': ['a'], 'formats': ['<f4']}", BROKEN),
    descr("bytes as a dtype are refused", "b'<f4'", BROKEN),
    descr("brackets that do not match are refused", "[('a', '<f4'])", BROKEN),
    descr("brackets that do not end are refused", "[" * 3000, BROKEN),
    descr("a dtype of 4 000 nested lists is refused", f"{'[' * 4000}{']' * 4000}"),
]

HEADERS = [
    header("an empty header is refused", ""),
    header("a header of blanks is refused", " " * 117 + "\n"),
    header("a header that is a list is refused", "['<f4', False, (2,)]\n"),
    header("a header without descr is refused", "{'fortran_order': False, 'shape': (2,), }\n"),
    header("a header without fortran_order is refused", "{'descr': '<f4', 'shape': (2,), }\n"),
    header("a header without shape is refused", "{'descr': '<f4', 'fortran_order': False, }\n"),
    header("an empty map is refused", "{}\n"),
    header("another key is refused", literal(more="'extra': 1, ")),
    header("a key twice is refused", literal(more="'shape': (2,), ")),
    header("another dtype under the same key is refused", literal(more="'descr': '<f8', ")),
    header("a key that is no string is refused", "{1: '<f4', 'fortran_order': False, 'shape': (2,)}\n"),
    header("a key in other letters is refused", literal().replace("shape", "Shape")),
    header("an order that is a number is refused", literal(order="0")),
    header("an order that is None is refused", literal(order="None")),
    header("an order that is a string is refused", literal(order="'False'")),
    header("an order in small letters is refused", literal(order="false")),
    header("a call in a header is not made", "__import__('os').system('true')\n"),
    header("a call beside a value is not made", literal(more="'extra': open('/etc/passwd'), ")),
    header("an expression in a header is not computed", literal(shape="(9**9**9,)")),
    header("a comprehension in a header is not computed", literal(shape="tuple(2 for _ in (1,))")),
    header("5 000 brackets are not followed", "(" * 5000),
    header("5 000 minus signs are not followed", literal(shape="(" + "-" * 5000 + "2,)")),
    header("a comment behind the map is refused", literal().rstrip() + "# end\n"),
    header("a second map behind the first is refused", literal() * 2),
    header("a NUL within the header is refused", literal().replace(" ", "\0", 1)),
    header("a newline within a string is refused", literal(descr="'<f\n4'")),
    header("a string without its end is refused", "{'descr': '<f4"),
    header("letters beyond ASCII between the values are refused", literal().replace(" ", "\xa0", 1)),
    body("UTF-8 in version 3 that is none is refused", array(b"{'descr': '\xff'}\n", version=b"\x03\x00")),
    body("digits of another script are refused", array(literal(shape="(\u0662,)").encode(), version=b"\x03\x00")),
    body("version 0 is refused", array(literal(), version=b"\x00\x00")),
    body("version 1.1 is refused", array(literal(), version=b"\x01\x01")),
    body("version 4 is refused", array(literal(), version=b"\x04\x00")),
    body("version 255 is refused", array(literal(), version=b"\xff\xff")),
    body("another magic is refused", SMALL.replace(b"\x93", b"\x94", 1)),
    body("a magic in other letters is refused", SMALL.replace(b"NUMPY", b"numpy", 1)),
    body("a length of the header beyond the body is refused", array(literal(), length=60_000)),
    body("a length of the header of 4 GiB is refused", array(literal(), version=b"\x02\x00", length=2**32 - 1)),
    body("a length of the header that cuts it is refused", array(literal(), length=20)),
    body("a length of the header that takes data in is refused", array(literal(), length=len(literal()) + 4)),
    body("a header of 11 000 bytes is refused", array(literal() + " " * 11_000)),
    body("an npz file is refused", b"PK\x03\x04" + bytes(100)),
    body("a gzip file is refused", b"\x1f\x8b\x08\x00" + bytes(100)),
]

DATA = [
    body("an empty body is refused", b""),
    body("a body that ends within the magic is refused", SMALL[:3]),
    body("a body that ends within the version is refused", SMALL[:7]),
    body("a body that ends within the header's length is refused", SMALL[:9]),
    body("a body that ends within the header is refused", SMALL[:60]),
    body("a body that ends with the header is refused", SMALL[:-8]),
    body("a body that lacks its last byte is refused", SMALL[:-1]),
    body("a body with one byte too many is refused", SMALL + b"\0"),
    body("an array and half of another is refused", SMALL + SMALL[:-1]),
    body("blanks between two arrays are refused", SMALL + b"\n" + SMALL),
    body("data of a hundred times the size are refused", SMALL + bytes(800)),
    body("a mebibyte of zeros is refused", bytes(2**20)),
    body("a mebibyte of magics is refused", b"\x93NUMPY\x01\x00" * 2**17),
    body("an array twice is one pair of gradients", SMALL * 2, "200", path="/grad"),
    body("one array has no gradient", SMALL, "422 odd_array_count", path="/grad"),
    body("three arrays are no pairs", SMALL * 3, "422 odd_array_count", path="/grad"),
    body("a pair of two shapes is refused", SMALL + npy(np.zeros(3, "f4")), "422 shape_mismatch", path="/grad"),
    body("a pair of two dtypes is refused", SMALL + npy(np.zeros(2, "f8")), "422 dtype_mismatch", path="/grad"),
    body("16 385 arrays are too many", npy(np.float32(1)) * 16_385, "413 too_many_tensors"),
    body("big-endian data are read", npy(np.array([0.6, -0.4], ">f4")), "200"),
    body("Fortran order is read", npy(np.ones((2, 3), "f4"), fortran=True), "200"),
    body("version 2 is read", array(literal(), version=b"\x02\x00"), "200"),
    body("version 3 is read", array(literal(), version=b"\x03\x00"), "200"),
]

CASES = [*SHAPES, *DTYPES, *HEADERS, *DATA]
