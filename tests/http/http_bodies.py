"""Bodies as callers write them: by NumPy, msgpack, msgpack-numpy and json, never by the service's own codecs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import msgpack
import msgpack_numpy
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

NPY, MSGPACK, JSON = "application/x-npy", "application/vnd.msgpack", "application/json"
SAFETENSORS = "application/vnd.safetensors"
MEDIA_TYPES = {"npy": NPY, "msgpack": MSGPACK, "json": JSON, "safetensors": SAFETENSORS}

Bundle = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
NUMPY_DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """The same elements as an array; bfloat16 as that of ml_dtypes."""
    x = x.contiguous()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def to_torch(array: np.ndarray[Any, Any]) -> Tensor:
    """The same elements as a tensor."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def npy(*arrays: np.ndarray[Any, Any] | Tensor, fortran: bool = False) -> bytes:
    """What repeated `np.save` to one file writes."""
    stream = io.BytesIO()
    for array in arrays:
        one = to_numpy(array) if isinstance(array, Tensor) else array
        np.save(stream, np.asfortranarray(one) if fortran else one, allow_pickle=False)
    return stream.getvalue()


def tensor_map(x: Tensor) -> dict[str, object]:
    """Msgpack's `T`."""
    array = to_numpy(x)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes()}


def json_map(x: Tensor) -> dict[str, object]:
    """JSON's `T`."""
    numbers = x.reshape(-1).double().tolist()
    data = [
        number if np.isfinite(number) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(number)] for number in numbers
    ]
    return {"dtype": to_numpy(x).dtype.name, "shape": list(x.shape), "data": data}


def _structured(bundle: Bundle, write: Any) -> Any:
    if isinstance(bundle, Tensor):
        return write(bundle)
    if isinstance(bundle, Mapping):
        return {name: write(x) for name, x in bundle.items()}
    return [write(x) for x in bundle]


def encode(form: str, message: Mapping[str, Bundle]) -> bytes:
    """The body of a message in a format; npy takes `x`, and `grad_output` in turn."""
    if form == "msgpack":
        return bytes(msgpack.packb({name: _structured(bundle, tensor_map) for name, bundle in message.items()}))
    if form == "msgpack-numpy":
        arrays = {name: _structured(bundle, to_numpy) for name, bundle in message.items()}
        return bytes(msgpack.packb(arrays, default=msgpack_numpy.encode))
    if form == "json":
        return json.dumps({name: _structured(bundle, json_map) for name, bundle in message.items()}).encode()
    if form == "safetensors":
        return safetensors.torch.save(dict(_flat(message)))
    lists = [[bundle] if isinstance(bundle, Tensor) else list(bundle) for bundle in message.values()]
    return npy(*(x for turn in zip(*lists, strict=True) for x in turn))


def _flat(message: Mapping[str, Bundle]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as a file of safetensors names them; the library wants each in memory of its own."""
    for field, bundle in message.items():
        if isinstance(bundle, Tensor):
            yield field, bundle.contiguous().clone()
            continue
        named = bundle.items() if isinstance(bundle, Mapping) else enumerate(bundle)
        yield from ((f"{field}.{name}", x.contiguous().clone()) for name, x in named)


def read_npy(body: bytes) -> list[np.ndarray[Any, Any]]:
    """All arrays of a stream, bfloat16 as what it is; in the order in which they lie."""
    stream, arrays = io.BytesIO(body), []
    while stream.tell() < len(body):
        array = np.load(stream, allow_pickle=False)
        arrays.append(array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array)
    return arrays


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of a file by field; those of `field.name` by name."""
    message: dict[str, Any] = {}
    for called, x in tensors.items():
        field, dot, name = called.partition(".")
        if dot:
            message.setdefault(field, {})[name] = x
        else:
            message[field] = x
    return message


def from_map(value: Mapping[str, Any]) -> Tensor:
    """The tensor of a `T` of msgpack or JSON."""
    assert set(value) == {"dtype", "shape", "data"}
    dtype = NUMPY_DTYPES[value["dtype"]]
    data = value["data"]
    flat = (
        np.frombuffer(data, dtype) if isinstance(data, bytes) else np.array([float(one) for one in data], np.float64).astype(dtype)
    )
    return to_torch(flat.reshape(value["shape"]))


def from_nested(value: Any) -> Tensor:
    """The float32 tensor of nested lists."""
    return torch.from_numpy(np.array(value, dtype=np.float64).astype(np.float32))


def _read(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return to_torch(value)
    if isinstance(value, Mapping) and set(value) == {"dtype", "shape", "data"}:
        return from_map(value)
    if isinstance(value, Mapping):
        return {name: _read(one) for name, one in value.items()}
    if isinstance(value, list) and all(isinstance(one, Mapping | np.ndarray) for one in value):
        return [_read(one) for one in value]
    return from_nested(value)


def decode(media_type: str, body: bytes, result: str) -> dict[str, Any]:
    """The answer by name; an npy answer is a tensor, or a list of several, under `result`."""
    match media_type:
        case "application/x-npy" | "application/vnd.numpy":
            tensors = [to_torch(array) for array in read_npy(body)]
            return {result: tensors[0] if len(tensors) == 1 else tensors}
        case "application/vnd.safetensors":
            return nested(safetensors.torch.load(body))
        case "application/json":
            document = json.loads(body)
        case "application/vnd.msgpack" | "application/msgpack" | "application/x-msgpack":
            document = msgpack.unpackb(body, object_hook=msgpack_numpy.decode, strict_map_key=False)
        case _:
            raise AssertionError(f"an answer in {media_type}")
    return {name: _read(value) for name, value in document.items()}
