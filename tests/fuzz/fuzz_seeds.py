"""Valid inputs, written by NumPy, msgpack, json and safetensors, from which fuzzing starts; and words that it may put in."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import ml_dtypes
import msgpack
import msgpack_numpy
import numpy as np
from safetensors.numpy import save

_ARRAYS = [
    np.array([0.6, -0.4], "<f4"),
    np.array(0.5, "<f8"),
    np.zeros((0, 3), "<f2"),
    np.array([[1, 2, 3], [4, 5, np.nan]], "<f4"),
    np.asfortranarray(np.array([[1, 2], [3, -np.inf]], "<f8")),
    np.array([1, 2], ">f4"),
    np.array([1.5, -2], ml_dtypes.bfloat16),
]


def _npy(*arrays: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    for array in arrays:
        np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def npy() -> list[bytes]:
    """Single arrays, several, and each version."""
    versions = [_npy(_ARRAYS[0], version=version) for version in ((1, 0), (2, 0), (3, 0))]
    return [*versions, *(_npy(array) for array in _ARRAYS), _npy(*_ARRAYS[:2]), _npy(*[_ARRAYS[0]] * 4)]


def _plain(array: np.ndarray) -> dict[str, object]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}


def messages() -> list[bytes]:
    """Maps of tensors in msgpack: single, in a list, by name, as msgpack-numpy writes them."""
    single, other = _ARRAYS[0], _ARRAYS[3]
    plain = [
        *({"x": _plain(array)} for array in _ARRAYS if array.dtype.byteorder != ">"),
        {"x": [_plain(single), _plain(other)], "grad_output": [_plain(single), _plain(other)]},
        {"x": {"a": _plain(single), "b": _plain(other)}, "w": _plain(single)},
        {"x": []},
    ]
    bfloat16 = {b"nd": True, b"type": [["", "<V2"]], b"kind": b"V", b"shape": [2], b"data": _ARRAYS[-1].tobytes()}
    arrays = [{"x": single}, {"x": [single, other]}, {"x": bfloat16}, {"x": _ARRAYS[5]}]
    return [*map(msgpack.packb, plain), *(msgpack.packb(one, default=msgpack_numpy.encode) for one in arrays)]


def documents() -> list[bytes]:
    """Maps of tensors in JSON."""
    tensor = {"dtype": "float16", "shape": [2, 1], "data": [0.5, "NaN"]}
    return [
        json.dumps(one).encode()
        for one in (
            {"x": [0.6, -0.4]},
            {"x": [[1, 2], [3, -0.0]], "grad_output": [[1, 1], [1, "-Infinity"]]},
            {"x": 0.5},
            {"x": []},
            {"x": tensor, "w": tensor | {"dtype": "bfloat16"}},
            {"x": [tensor, tensor | {"dtype": "float64", "data": [1e300, 1e-320]}]},
            {"x": {"a": [1], "\u00e9": tensor}},
        )
    ]


def files() -> list[bytes]:
    """Files of safetensors."""
    single, other = _ARRAYS[0], _ARRAYS[3]
    half = np.array([1.5, -2], np.float16)
    return [
        save(one, metadata)
        for one, metadata in (
            ({"x": single}, None),
            ({"x": single, "grad_output": single}, {"from": "a seed"}),
            ({"x.0": single, "x.1": other, "w": half}, None),
            ({"x.a": np.zeros((0, 2), "f8"), "x.b": np.array(1.0)}, None),
            ({"x": half.view(ml_dtypes.bfloat16)}, None),
            ({}, None),
        )
    ]


def calls() -> list[bytes]:
    """Calls of the Open Inference Protocol: JSON, then, behind a NUL, bytes."""
    numbers = {"name": "x", "datatype": "FP32", "shape": [2, 1], "data": [-0.0, "NaN"]}
    sent = {"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}
    half = {"name": "w", "datatype": "BF16", "shape": [], "parameters": {"binary_data_size": 2}}
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    shared = {"name": "x", "datatype": "FP16", "shape": [2, 2], "parameters": place}
    wanted = [{"name": "y", "parameters": {"binary_data": True}}, {"name": "grad_w", "parameters": place}]
    described = (
        ({"inputs": [numbers], "parameters": {"k": 4}}, None),
        ({"id": "one", "inputs": [numbers | {"data": [[1], [1e300]]}], "outputs": []}, None),
        ({"inputs": [sent, half], "outputs": wanted, "parameters": {"binary_data_output": True}}, 10),
        ({"inputs": [shared, numbers | {"name": "w"}], "parameters": {"op": "round", "sequence_id": 1}}, 0),
    )
    return [json.dumps(one).encode() + (b"" if size is None else bytes(1 + size)) for one, size in described]


_EXPRESSIONS = (
    "round",
    "round() | floor|ceil()",
    "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)",
    "clamp(-inf,1e-3)|step_quantize(0.25)",
    "affine_k_bit_quantize(k=8, w=scale, b=-0.0)",
    "clamp_by_linear(eps=1E-5)\t|\nround",
    "affine_k_bit_quantize(2, w, w)",
    "k_bit_quantize(k=1000000000)",
)


def expressions() -> list[bytes]:
    """Expressions."""
    return [text.encode() for text in _EXPRESSIONS]


def queries() -> list[bytes]:
    """Query strings."""
    beside = [b"op=k_bit_quantize&k=4", b"op=clamp&min_value=-inf&max_value=1e+5", b"op=affine_k_bit_quantize&k=2&w=w&b=0.5"]
    return [*beside, *(f"op={quote(text)}".encode() for text in _EXPRESSIONS), b"op=round&&", b"%6fp=%72ound"]


def heads() -> list[bytes]:
    """A query string, then header lines."""
    usual = b"op=round\nHost: a:80\nContent-Type: application/x-npy\nContent-Length: 136\n"
    return [
        usual + b"Inference-Header-Content-Length: 64\n",
        usual,
        usual + b"Accept: application/json;q=0.5, application/msgpack\nX-Request-Timeout: 1.5\n",
        usual + b"Accept: */*;q=0.1, application/x-npy;q=0\nAuthorization: Bearer key\n",
        b"0\nContent-Type: Application/JSON; charset=utf-8\nTransfer-Encoding: chunked\nContent-Encoding: identity\n",
        b"op=round\nHost: [::1]:8000\nAccept: text/html\nAccept: application/*\n",
    ]


NPY_WORDS = [b"\x93NUMPY\x01\x00", b"\x02\x00", b"'descr': ", b"'fortran_order': ", b"'shape': ", b"True", b"False"]
NPY_WORDS += [
    b"'<f4'",
    b"'<V2'",
    b"'|V2'",
    b"'>f8'",
    b"'|O'",
    b"(2,)",
    b"()",
    b"(0, 3)",
    b"9223372036854775807",
    b"[('a', '<f4')]",
    b"2L",
]
KEY_WORDS = [b"x", b"grad_output", b"dtype", b"shape", b"data", b"float32", b"float16", b"bfloat16", b"float64"]
MSGPACK_WORDS = [bytes([len(word) | 0xA0]) + word for word in [*KEY_WORDS, b"nd", b"type", b"kind"]]
MSGPACK_WORDS += [
    b"\x82",
    b"\x83",
    b"\x85",
    b"\x92",
    b"\xc0",
    b"\xc2",
    b"\xc3",
    b"\xc4\x08",
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
]
MSGPACK_WORDS += [
    b"\xc4\x02nd",
    b"\xc4\x04type",
    b"\xc4\x04kind",
    b"\xc4\x05shape",
    b"\xc4\x04data",
    b"\xa3<f4",
    b"\xa3<V2",
    b"\xd6\xff\0\0\0\0",
]
JSON_WORDS = [b'"%b":' % word for word in KEY_WORDS] + [b'"NaN"', b'"Infinity"', b'"-Infinity"', b"NaN", b"null", b"true", b"-0"]
JSON_WORDS += [
    b"[[1],[2]]",
    b"[]",
    b"{}",
    b"1e999",
    b"1e-400",
    b"\\ud800",
    b"\\u0000",
    b"\xef\xbb\xbf",
    b'"bfloat16"',
    b'"float64"',
    b"0.1",
]
FILE_WORDS = [
    *JSON_WORDS,
    b'"F32"',
    b'"BF16"',
    b'"F16"',
    b'"F64"',
    b'"I8"',
    b'"data_offsets":[0,8]',
    b'"shape":[2]',
    b'"__metadata__":{}',
]
CALL_WORDS = [b'"%b":' % word for word in (b"name", b"datatype", b"inputs", b"outputs", b"parameters", b"id")]
CALL_WORDS += [b'"%b":' % word for word in (b"binary_data", b"binary_data_size", b"binary_data_output", b"classification")]
CALL_WORDS += [b'"shared_memory_%b":' % word for word in (b"region", b"offset", b"byte_size")]
CALL_WORDS += [*JSON_WORDS, b'"FP16"', b'"BF16"', b'"FP32"', b'"FP64"', b'"INT8"', b"Infinity", b"true", b"\0"]
OP_WORDS = [word.encode() for text in _EXPRESSIONS for word in text.replace("|", " | ").split()]
OP_WORDS += [
    b"inf",
    b"-inf",
    b"nan",
    b"1e308",
    b"1e309",
    b"5e-324",
    b"-0",
    b"9" * 18,
    b"None",
    b"k=",
    b"min_value=",
    b"\xc2\xa0",
    b"w",
]
QUERY_WORDS = [*OP_WORDS, b"&", b"op=", b"%7C", b"%28", b"%29", b"%2C", b"%3D", b"%00", b"%ff", b"%2B", b"+", b";"]
HEAD_WORDS = [
    b"\nHost: ",
    b"\nAccept: ",
    b"\nContent-Type: ",
    b"\nContent-Length: ",
    b"\nTransfer-Encoding: ",
    b"\nX-Request-Timeout: ",
    b"\nInference-Header-Content-Length: ",
]
HEAD_WORDS += [
    b"application/x-npy",
    b"application/json",
    b"application/*",
    b"*/*",
    b";q=0",
    b";q=0.5",
    b";q=nan",
    b"chunked",
    b"identity",
    b", ",
]
