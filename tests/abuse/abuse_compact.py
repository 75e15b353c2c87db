"""Compact answers that there are not: of what has no codes, in what cannot hold them, of data that have none."""

from __future__ import annotations

import numpy as np
from abuse_case import SMALL, Case
from http_bodies import JSON, MSGPACK, npy
from server_process import post

VALUE, NONE = "422 bad_parameter", "422 not_representable"
INSIDE = "op=clamp(0,1)|k_bit_quantize(4)"
NAN = npy(np.full(1000, np.nan, "<f4"))


def output(claim: str, form: str, answers: str = VALUE, query: str = INSIDE, content: bytes = SMALL) -> Case:
    """A call of /quantize that asks for this form."""
    return Case(claim, post(content, f"{query}&output={form}"), answers)


def mask(claim: str, query: str, answers: str, content: bytes = SMALL) -> Case:
    """A call of /grad."""
    return Case(claim, post(content, query, path="/grad"), answers)


CASES = [
    output("codes are answered", "codes", "200"),
    output("packed codes are answered", "packed", "200"),
    output("values are what is answered anyway", "values", "200"),
    output("an output that is none is refused", "pickle"),
    output("an empty output is refused", ""),
    output("an output in large letters is refused", "CODES"),
    output("a mask of values is refused", "mask"),
    output("an output with a NUL is refused", "codes%00"),
    output("an output of 4 000 letters is refused in short", "c" * 4000),
    output("an output twice is refused", "codes&output=codes", "422 repeated_parameter"),
    output("codes of a clamp are refused", "codes", NONE, "op=clamp(0,1)"),
    output("packed codes without a number of bits are refused", "packed", NONE, "op=round"),
    output("packed codes of NaN are refused", "packed", NONE, content=NAN),
    output("codes of NaN are refused", "codes", NONE, content=NAN),
    output("codes with exceptions do not go into npy", "codes", "406 not_acceptable", content=npy(np.array([np.nan, 0.5], "<f4"))),
    Case("codes of JSON are no operand", post(b'{"x": {"dtype": "float32", "codes": "uint8", "shape": [1], "data": [1]}}', f"{INSIDE}&output=codes", media_type=JSON), "422 bad_tensor"),
    Case("codes are no body", post(b"\x81\xa1x\x81\xa5codes\xc4\x01\x01", f"{INSIDE}&output=codes", media_type=MSGPACK), "422 bad_tensor"),
    output("packed codes of steps are refused", "packed", NONE, "op=step_quantize(0.1)"),
    output("packed codes of 33 bits are refused", "packed", NONE, "op=k_bit_quantize(33)"),
    output("codes of a thousand million bits cost nothing", "codes", VALUE, "op=k_bit_quantize(1000000000)"),
    output("codes of an operator that is none are refused", "codes", "422 unknown_operator", "op=nothing"),
    output("codes of half an array are refused", "codes", "400 malformed_body", content=SMALL[:-1]),
    mask("a packed gradient is refused", "op=clamp(0,1)&output=packed", VALUE),
    mask("a mask of clamp_by_linear is refused", "op=clamp_by_linear&output=mask", NONE),
    mask("a mask twice is refused", "op=clamp(0,1)&output=mask&output=mask", "422 repeated_parameter"),
    mask("a mask is answered", "op=clamp(0,1)&output=mask", "200"),
    mask("codes of a gradient are refused", "op=clamp(0,1)&output=codes", VALUE),
    mask("a mask of a gradient that is none is refused", "op=affine_k_bit_quantize(4,2,0)&output=mask", NONE),
    mask("two arrays are two masks", "op=clamp(0,1)&output=mask", "200", SMALL * 2),
]  # fmt: skip
