"""Bodies of the protocol written by hand, as its text describes them: neither by the service nor by a client of it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
from http_app import Service

JSON_LENGTH = "inference-header-content-length"
# The limits of the application that the tests in this process ask.
MAX_BODY_BYTES = 2**20
MAX_JSON_BYTES = 2**14
MAX_TENSORS = 16

X = np.array([0.0, 0.25, 0.5, 0.75], np.float32)


def tensor(name: str = "x", array: np.ndarray[Any, Any] = X, **members: Any) -> dict[str, Any]:
    """A tensor as JSON; `members` are put over its own, those that are None are taken away."""
    datatype = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}[array.dtype.name]
    own = {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.reshape(-1).tolist()}
    return {key: value for key, value in (own | members).items() if value is not None}


def binary(name: str = "x", array: np.ndarray[Any, Any] = X, **members: Any) -> dict[str, Any]:
    """A tensor whose bytes follow the JSON."""
    return tensor(name, array, **({"data": None, "parameters": {"binary_data_size": array.nbytes}} | members))


def shared(
    name: str = "x", array: np.ndarray[Any, Any] = X, *, region: str = "r", offset: int = 0, **members: Any
) -> dict[str, Any]:
    """A tensor whose bytes lie in shared memory."""
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": array.nbytes, "shared_memory_offset": offset}
    return tensor(name, array, **({"data": None, "parameters": parameters} | members))


def document(*inputs: Any, **members: Any) -> dict[str, Any]:
    """A call of `k_bit_quantize(k=4)` with these inputs."""
    return {"inputs": list(inputs), "parameters": {"k": 4}, **members}


def call(service: Service, model: str, body: Any, data: bytes = b"", headers: dict[str, str] | None = None) -> httpx.Response:
    """One call: `body` is JSON, as text or as what is written so; the length of the JSON is told where bytes follow it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {JSON_LENGTH: str(len(text))} if data else {}
    return service.post(f"/v2/models/{model}/infer", text + data, None, headers=own | (headers or {}))
