"""A call as the protocol writes it: JSON that describes the tensors, then their bytes, those of JSON tensors left out.

Numbers as JSON or as bytes of the body become tensors here; those in shared memory stay where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import BadFraming, BodyTooLarge, MalformedBody, NotAllowed, TooManyTensors
from service.head import Head
from service.oip.models import datatype
from service.oip.regions import Range
from service.wire import json
from service.wire.json_lists import Limits, NumberList
from service.wire.json_numbers import NON_FINITE
from service.wire.layout import byte_length
from service.wire.message import WireTensor

JSON_LENGTH_HEADER = b"inference-header-content-length"
# What clients send by themselves, for schedulers of another kind than ours. `binary_data_output` is read.
_TOLERATED = frozenset({"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"})
_TOLERATED_PREFIX = "triton_"
# Members that are not read.
_SURPLUS = 1024


class Input(NamedTuple):
    """A tensor of a call. Its data are empty where they are to be read from `shared`."""

    name: str
    tensor: WireTensor
    shared: Range | None


class Output(NamedTuple):
    """A tensor that the caller wants, and how: as bytes, as JSON, or written to `shared`."""

    name: str
    binary: bool
    shared: Range | None


class InferRequest(NamedTuple):
    """What a call says. `outputs` is empty where all are wanted, then as bytes if `binary_output`.

    `has_json_data` says whether tensors came as JSON numbers.
    """

    request_id: str | None
    parameters: Mapping[str, json.Value]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    binary_output: bool
    has_json_data: bool

    @property
    def shared_bytes(self) -> int:
        """How many bytes are to be read from shared memory."""
        return sum(one.shared.byte_size for one in self.inputs if one.shared is not None)


def json_length(head: Head) -> int | None:
    """How many bytes of the body are JSON; None where all of it is. `BadFraming` for what is no length."""
    values = [value for name, value in head.headers if name == JSON_LENGTH_HEADER]
    if not values:
        return None
    text = b", ".join(values).strip().decode("latin-1")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadFraming(f"'Inference-Header-Content-Length' is {text[:40]!r}; allowed: digits, once")
    return int(text)


def check_json_length(nbytes: int, limit_bytes: int) -> None:
    """`BodyTooLarge` for more JSON than is read."""
    if nbytes > limit_bytes:
        raise BodyTooLarge(f"the JSON of the call has {nbytes} bytes; allowed: {limit_bytes} (binary data have no such limit)")


def read(body: memoryview, json_bytes: int | None, max_tensors: int) -> InferRequest:
    """The call that a body holds; tensors that came as bytes share its memory.

    Raises `MalformedBody` for what is no JSON, duplicate keys and names, members of a wrong type, and sizes that
    contradict shapes or the body; `UnsupportedDtype`, `BadTensor` and `NotAllowed` for what is not taken;
    `TooManyTensors`.
    """
    if json_bytes is None:
        json_bytes = body.nbytes
    if json_bytes > body.nbytes:
        raise MalformedBody(f"'Inference-Header-Content-Length' is {json_bytes}; the body has {body.nbytes} bytes")
    document = _member_map(json.parsed(body[:json_bytes], NON_FINITE.__getitem__, limits=_limits(max_tensors)), "the call")
    parameters = _map(document, "parameters", "")
    described = _list(document, "inputs", max_tensors)
    if described is None:
        raise MalformedBody("the call has no 'inputs'; they are a list of tensors")
    inputs = _inputs(described, body[json_bytes:])
    wanted = _list(document, "outputs", max_tensors) or ()
    outputs = tuple(_output(one, f"outputs[{i}]", parameters) for i, one in enumerate(wanted))
    _check_names([one.name for one in inputs], "inputs")
    _check_names([one.name for one in outputs], "outputs")
    return InferRequest(
        text_at(document, "id", ""),
        {name: value for name, value in parameters.items() if not _is_tolerated(name)},
        inputs,
        outputs,
        _flag(parameters, "binary_data_output", "") or False,
        any(isinstance(one, dict) and "data" in one for one in described),
    )


def _limits(max_tensors: int) -> Limits:
    """The maps and keys of so many inputs and outputs, and of as much beside them as anyone may need."""
    return Limits(maps=_SURPLUS + 4 * max_tensors, keys=_SURPLUS + 14 * max_tensors)


def _is_tolerated(name: str) -> bool:
    return name in _TOLERATED or name.startswith(_TOLERATED_PREFIX)


# Tensors ---------------------------------------------------------------------------------------------


def _inputs(described: list[json.Value], binary: memoryview) -> tuple[Input, ...]:
    inputs = []
    at = 0
    for i, value in enumerate(described):
        one, nbytes = _input(_member_map(value, f"inputs[{i}]"), f"inputs[{i}]", binary[at:])
        inputs.append(one)
        at += nbytes
    if at != binary.nbytes:
        raise MalformedBody(f"{binary.nbytes} bytes follow the JSON; the binary inputs have {at}")
    return tuple(inputs)


def _input(value: dict[str, json.Value], where: str, binary: memoryview) -> tuple[Input, int]:
    """A tensor, and how many of the bytes are its own."""
    name = _needed(text_at(value, "name", where), "name", where)
    dtype = datatype(_needed(text_at(value, "datatype", where), "datatype", where), f"{where}.datatype")
    if "shape" not in value:
        raise MalformedBody(f"{where} has no 'shape'")
    shape = json.shape_of(value["shape"], f"{where}.shape")
    nbytes = byte_length(shape, dtype)
    parameters = _map(value, "parameters", where)
    binary_bytes = size_at(parameters, "binary_data_size", where)
    shared = shared_range(parameters, where)
    if [binary_bytes is not None, shared is not None, "data" in value].count(True) != 1:
        raise MalformedBody(f"{where} must have exactly one of 'data', 'binary_data_size' and 'shared_memory_region'")
    if "data" in value:
        data = json.rounded(_numbers(value["data"], shape, f"{where}.data"), dtype)
        return Input(name, WireTensor(dtype, shape, data), None), 0
    given_bytes = shared.byte_size if shared is not None else binary_bytes
    if given_bytes != nbytes:
        raise MalformedBody(f"{where} has {given_bytes} bytes; {value['datatype']} of shape {list(shape)} has {nbytes}")
    if shared is not None:
        return Input(name, WireTensor(dtype, shape, memoryview(b"")), shared), 0
    if nbytes > binary.nbytes:
        raise MalformedBody(f"{where} has {nbytes} bytes; {binary.nbytes} are left of the body")
    return Input(name, WireTensor(dtype, shape, binary[:nbytes]), None), nbytes


def _numbers(value: json.Value, shape: tuple[int, ...], where: str) -> NDArray[np.float64]:
    """The elements of a flat list, or of nested lists of this shape."""
    given, values = json.flattened(value, where)
    size = math.prod(shape)
    if given != shape and given != (size,):
        raise MalformedBody(f"{where} has the shape {list(given)}; allowed: {list(shape)}, or a flat list of {size} numbers")
    return json.numbers(values, lambda i: f"{where}, element {i},")


def _output(value: json.Value, where: str, request_parameters: Mapping[str, json.Value]) -> Output:
    described = _member_map(value, where)
    parameters = _map(described, "parameters", where)
    if parameters.get("classification"):
        raise NotAllowed(f"{where}.parameters has 'classification', which these models do not offer")
    binary = _flag(parameters, "binary_data", where)
    if binary is None:
        binary = _flag(request_parameters, "binary_data_output", "") or False
    return Output(_needed(text_at(described, "name", where), "name", where), binary, shared_range(parameters, where))


def shared_range(parameters: Mapping[str, json.Value], where: str) -> Range | None:
    """The range of shared memory that a tensor's parameters name."""
    region = text_at(parameters, "shared_memory_region", where)
    byte_size = size_at(parameters, "shared_memory_byte_size", where)
    offset = size_at(parameters, "shared_memory_offset", where)
    if region is None and byte_size is None and offset is None:
        return None
    if region is None or byte_size is None:
        raise MalformedBody(f"{where} must have 'shared_memory_region' and 'shared_memory_byte_size', or neither")
    return Range(region, offset or 0, byte_size)


def _check_names(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MalformedBody(f"{name[:80]!r} stands twice in {where}")
        seen.add(name)


# Members ---------------------------------------------------------------------------------------------


def _member_map(value: json.Value, where: str) -> dict[str, json.Value]:
    if not isinstance(value, dict):
        raise MalformedBody(f"{where} must be a JSON object")
    return value


def _list(document: Mapping[str, json.Value], key: str, most: int) -> list[json.Value] | None:
    value = document.get(key)
    length = value.length if isinstance(value, NumberList) else len(value) if isinstance(value, list) else 0
    if length > most:
        raise TooManyTensors(f"{key!r} has {length} tensors; allowed: {most}")
    if isinstance(value, NumberList):
        raise MalformedBody(f"{key}[0] must be a JSON object")
    if value is not None and not isinstance(value, list):
        raise MalformedBody(f"{key!r} must be a list")
    return value


def _map(document: Mapping[str, json.Value], key: str, where: str) -> dict[str, json.Value]:
    value = document.get(key)
    return {} if value is None else _member_map(value, _place(where, key))


def text_at(document: Mapping[str, json.Value], key: str, where: str) -> str | None:
    """The string under a key, None where there is none; `MalformedBody` for anything else."""
    value = document.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedBody(f"{_place(where, key)} must be a string")
    return value


def _flag(document: Mapping[str, json.Value], key: str, where: str) -> bool | None:
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise MalformedBody(f"{_place(where, key)} must be true or false")
    return value


def size_at(document: Mapping[str, json.Value], key: str, where: str) -> int | None:
    """The number of bytes under a key, None where there is none; `MalformedBody` for anything else."""
    value = document.get(key)
    if value is None:
        return None
    # `type`, not `isinstance`: true is no number of bytes.
    if type(value) is not int or value < 0:
        raise MalformedBody(f"{_place(where, key)} must be an int of at least 0")
    return value


def _needed(text: str | None, key: str, where: str) -> str:
    if text is None:
        raise MalformedBody(f"{where} has no {key!r}")
    return text


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else repr(key)
