"""Calls of the Open Inference Protocol: what is accepted, `json` and NumPy read as the same tensors; and it round-trips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from fuzz_checks import NUMPY_DTYPES, assert_same, contents, unless_refused

from service.oip.request import InferRequest, Input, read

MAX_TENSORS = 64
_DTYPES = {
    "FP16": NUMPY_DTYPES["float16"],
    "BF16": NUMPY_DTYPES["bfloat16"],
    "FP32": NUMPY_DTYPES["float32"],
    "FP64": NUMPY_DTYPES["float64"],
}
_NAMES = {dtype.name: name for name, dtype in _DTYPES.items()}


def check_oip(data: bytes) -> None:
    """A body: JSON, then, behind a NUL that is not sent, the bytes of tensors."""
    text, nul, binary = data.partition(b"\0")
    request = unless_refused(lambda: read(memoryview(text + binary), len(text) if nul else None, MAX_TENSORS))
    if request is None:
        return
    document = json.loads(text.decode("utf-8"), parse_int=_integer)
    _assert_inputs(request, document["inputs"], binary)
    _assert_outputs(request, document)
    _assert_round_trip(request)


def _integer(literal: str) -> int | float:
    return -0.0 if literal == "-0" else int(literal)  # an integer of Python has no such sign


def _assert_inputs(request: InferRequest, described: list[Any], binary: bytes) -> None:
    at = 0
    for one, value in zip(request.inputs, described, strict=True):
        parameters = value.get("parameters") or {}
        assert (one.name, _NAMES[one.tensor.dtype.name]) == (value["name"], value["datatype"])
        assert list(one.tensor.shape) == value["shape"]
        size = math.prod(value["shape"]) * _DTYPES[value["datatype"]].itemsize
        if "data" in value:
            assert_same(one.tensor, _array(value))
        elif one.shared is not None:
            place = parameters["shared_memory_region"], parameters.get("shared_memory_offset") or 0
            assert tuple(one.shared) == (*place, parameters["shared_memory_byte_size"])
            assert one.shared.byte_size == size
        else:
            assert parameters["binary_data_size"] == size
            assert_same(one.tensor, np.frombuffer(binary[at : at + size], _DTYPES[value["datatype"]]).reshape(value["shape"]))
            at += size
    assert at == len(binary), "bytes are left over"
    assert request.has_json_data == any("data" in value for value in described)


def _array(value: Mapping[str, Any]) -> np.ndarray:
    """The tensor of JSON numbers: flat, or in lists of its shape."""
    with np.errstate(over="ignore"):
        return np.array(_floats(value["data"]), np.float64).reshape(value["shape"]).astype(_DTYPES[value["datatype"]])


def _floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_floats(item) for item in value]
    assert not isinstance(value, bool | None), value
    try:
        return float(value)  # of the three strings, too
    except OverflowError:
        return math.copysign(math.inf, value)


def _assert_outputs(request: InferRequest, document: Mapping[str, Any]) -> None:
    parameters = document.get("parameters") or {}
    assert request.request_id == document.get("id")
    assert request.binary_output == bool(parameters.get("binary_data_output"))
    for name, value in request.parameters.items():
        assert repr(value) == repr(parameters[name])
    for one, value in zip(request.outputs, document.get("outputs") or [], strict=True):
        own = value.get("parameters") or {}
        binary = own.get("binary_data")
        assert one.name == value["name"]
        assert one.binary == (request.binary_output if binary is None else binary)
        assert (one.shared is None) == (own.get("shared_memory_region") is None)


def _assert_round_trip(request: InferRequest) -> None:
    """The inputs, sent as bytes, are read as the same inputs."""
    described = [_described(one) for one in request.inputs]
    text = json.dumps({"inputs": described}).encode()
    binary = b"".join(bytes(one.tensor.data) for one in request.inputs if one.shared is None)
    again = read(memoryview(text + binary), len(text), MAX_TENSORS)
    assert [_content(one) for one in again.inputs] == [_content(one) for one in request.inputs]


def _described(one: Input) -> dict[str, object]:
    names = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
    bytes_at = {"binary_data_size": one.tensor.data.nbytes} if one.shared is None else dict(zip(names, one.shared, strict=True))
    return {
        "name": one.name,
        "datatype": _NAMES[one.tensor.dtype.name],
        "shape": list(one.tensor.shape),
        "parameters": bytes_at,
    }


def _content(one: Input) -> tuple[object, ...]:
    """An input as a value that can be compared; what lies in shared memory is not read here."""
    tensor = one.tensor
    return (one.name, *(contents(tensor) if one.shared is None else (tensor.dtype.name, tensor.shape, one.shared)))
