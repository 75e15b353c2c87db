"""The decoders: what they accept, NumPy, msgpack, json and safetensors accept with the same values; and it round-trips."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import ml_dtypes
import msgpack
import msgpack_numpy
import numpy as np
import safetensors
from fuzz_checks import NUMPY_DTYPES, array_of, assert_same, content, contents, unless_refused

from service.errors import NotAcceptable
from service.wire import FORMATS, Format, json_lists, json_text
from service.wire import json as wire_json
from service.wire.message import Message, WireTensor

MAX_TENSORS = 64
_PAIR = ("x", "grad_output")
_PLAIN_KEYS = {"dtype", "shape", "data"}


def _decoded(one: Format, data: bytes, fields: tuple[str, ...]) -> Message | None:
    return unless_refused(lambda: one.decode(memoryview(data), fields, MAX_TENSORS))


def _assert_round_trip(
    one: Format, message: Message, fields: tuple[str, ...], value: Callable[[Message], object] = content
) -> None:
    """What is written of a message reads as the same value; a format may say that it cannot hold it."""
    try:
        written = b"".join(one.encode(message))
    except NotAcceptable:
        return
    again = one.decode(memoryview(written), fields, MAX_TENSORS)
    assert value(again) == value(message), "encode and decode change the message"


# npy --------------------------------------------------------------------------------------------------


def check_npy(data: bytes) -> None:
    """As `np.load` reads the arrays of a file one after the other."""
    one = FORMATS["npy"]
    message = _decoded(one, data, ("x",))
    pairs = _decoded(one, data, _PAIR)
    if message is None:
        assert pairs is None
        return
    tensors = message["x"].tensors
    stream = io.BytesIO(data)
    for tensor in tensors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote
            array = np.lib.format.read_array(stream, allow_pickle=False)
        assert_same(tensor, array)
    assert stream.tell() == len(data), "NumPy reads on"
    assert (pairs is not None) == (len(tensors) % 2 == 0)
    if pairs is not None:
        assert [*pairs["x"].tensors, *pairs["grad_output"].tensors] == [*tensors[::2], *tensors[1::2]]
    _assert_round_trip(one, message, ("x",))


# msgpack ------------------------------------------------------------------------------------------------


def check_msgpack(data: bytes) -> None:
    """As the msgpack library and msgpack-numpy read it."""
    one = FORMATS["msgpack"]
    message = _decoded(one, data, _PAIR)
    if message is None:
        return
    library = msgpack.unpackb(data, strict_map_key=False)
    assert list(library) == list(message)
    for field, bundle in message.items():
        _assert_bundle(library[field], bundle.names, bundle.single, bundle.tensors, _msgpack_array)
    _assert_round_trip(one, message, _PAIR)


def _assert_bundle(value: Any, names: Any, single: bool, tensors: Any, array: Any) -> None:
    values = [value] if single else list(value.values()) if names is not None else list(value)
    if names is not None:
        assert tuple(value) == names
    assert len(values) == len(tensors)
    for tensor, one in zip(tensors, values, strict=True):
        assert_same(tensor, array(one))


def _msgpack_array(value: Mapping[Any, Any]) -> np.ndarray:
    if set(value) == _PLAIN_KEYS:
        return np.frombuffer(value["data"], NUMPY_DTYPES[value["dtype"]]).reshape(value["shape"])
    as_bytes = {key if isinstance(key, bytes) else key.encode(): one for key, one in value.items()}
    kind, described = as_bytes[b"kind"], as_bytes[b"type"]
    as_bytes[b"kind"] = kind.encode() if isinstance(kind, str) else kind
    if as_bytes[b"kind"] == b"V" and not isinstance(described, list):
        as_bytes[b"type"] = [["", described]]  # a view without fields, which msgpack-numpy itself would not write
    array = msgpack_numpy.decode(as_bytes)
    assert isinstance(array, np.ndarray)
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


# JSON -----------------------------------------------------------------------------------------------------


def check_json(data: bytes) -> None:
    """As `json.loads` reads it, and NumPy rounds its numbers."""
    one = FORMATS["json"]
    message = _decoded(one, data, _PAIR)
    with _every_list_is_long():
        by_lists = _decoded(one, data, _PAIR)
    if by_lists is None and message is not None and _has_shape_of_many(message):
        by_lists = message
    assert (message is None) == (by_lists is None), "a short body and a long one are read differently"
    if message is None or by_lists is None:
        return
    assert content(message) == content(by_lists), "a long body has other values"
    library = json.loads(data.decode("utf-8"), parse_constant=_no_constant, parse_int=float)
    assert list(library) == list(message)
    for field, bundle in message.items():
        _assert_bundle(library[field], bundle.names, bundle.single, bundle.tensors, _json_array)
    _assert_round_trip(one, message, _PAIR)


@contextmanager
def _every_list_is_long() -> Iterator[None]:
    """Bodies of any length are read as long ones are, in many parts, and all but the shortest lists cut out of them."""
    with ExitStack() as changed:
        for module, name, value in (
            (wire_json, "_SHORT_BYTES", -1),
            (json_lists, "_LONG", 9),
            (json_text, "_PART_BYTES", 7),
            (json_text, "_MANY_QUOTES", 6),
        ):
            changed.enter_context(patch.object(module, name, value))
        yield


def _has_shape_of_many(message: Message) -> bool:
    """Whether a shape is a list that counts as long in `_every_list_is_long`, and nowhere else: it is no list of data."""
    tensors = (tensor for bundle in message.values() for tensor in bundle.tensors)
    return any(tensor.style == "plain" and len(tensor.shape) > 2 for tensor in tensors)


def _no_constant(literal: str) -> float:
    raise AssertionError(f"{literal} is accepted")


def _json_array(value: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        if isinstance(value, dict):
            assert set(value) == _PLAIN_KEYS
            shape = [int(dimension) for dimension in value["shape"]]
            numbers = np.array([_json_number(item) for item in value["data"]], np.float64)
            return numbers.reshape(shape).astype(NUMPY_DTYPES[value["dtype"]])
        return np.array(_json_numbers(value), np.float64).astype(np.float32)


def _json_numbers(value: Any) -> Any:
    return [_json_numbers(item) for item in value] if isinstance(value, list) else _json_number(value)


def _json_number(value: Any) -> float:
    if isinstance(value, str):
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    assert type(value) is float, value
    return value


# safetensors ------------------------------------------------------------------------------------------------

_TAGS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def check_safetensors(data: bytes) -> None:
    """As the safetensors library reads it."""
    one = FORMATS["safetensors"]
    message = _decoded(one, data, _PAIR)
    if message is None:
        return
    library = dict(safetensors.deserialize(data))
    ours = _by_name(message)
    assert set(ours) == set(library)
    for name, tensor in ours.items():
        entry = library[name]
        assert (tensor.dtype.name, list(tensor.shape)) == (_TAGS[entry["dtype"]], list(entry["shape"]))
        assert array_of(tensor).tobytes() == bytes(entry["data"])
    # Names have no order in such a file: the widest elements lie first.
    _assert_round_trip(one, message, _PAIR, lambda read: {name: contents(tensor) for name, tensor in _by_name(read).items()})


def _by_name(message: Message) -> dict[str, WireTensor]:
    """The tensors under the names that they have in a file."""
    tensors: dict[str, WireTensor] = {}
    for field, bundle in message.items():
        names = [field] if bundle.single else [f"{field}.{name}" for name in bundle.names or ()]
        tensors |= dict(zip(names, bundle.tensors, strict=True))
    return tensors
