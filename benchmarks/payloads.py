"""What is sent, and what has to come back: request bytes made once, answers compared bit for bit."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import msgpack
import numpy as np
from numpy.typing import NDArray

from benchmarks.units import size_name

Endpoint = Literal["quantize", "grad"]
Wire = Literal["npy", "msgpack"]
Array = NDArray[np.float32]

MEDIA_TYPES: Mapping[Wire, str] = {"npy": "application/x-npy", "msgpack": "application/vnd.msgpack"}
K_BIT = "op=k_bit_quantize&k=4"
CLAMP = "op=clamp&min_value=0&max_value=1"
SEED = 20240229


class WrongBits(Exception):
    """An answer is not what NumPy computes."""


@dataclass(frozen=True)
class Payload:
    """`tensors` float32 tensors that hold `size_bytes` together, for one endpoint in one format."""

    endpoint: Endpoint
    wire: Wire
    size_bytes: int
    query: str = K_BIT
    tensors: int = 1

    def __str__(self) -> str:
        what = size_name(self.size_bytes) if self.tensors == 1 else f"{self.tensors} × {size_name(self.size_bytes // self.tensors)}"
        return f"/{self.endpoint} {self.wire} {what}"

    def body(self) -> bytes:
        """The body of the request: the tensors, each with its gradient behind it where the endpoint takes one."""
        inputs, gradients = _arrays(self.size_bytes, self.tensors)
        pairs = [inputs, gradients] if self.endpoint == "grad" else [inputs]
        if self.wire == "npy":
            return _npy(array for arrays in zip(*pairs, strict=True) for array in arrays)
        packed: bytes = msgpack.packb({key: _packed(arrays) for key, arrays in zip(("x", "grad_output"), pairs, strict=False)})
        return packed

    def request(self) -> bytes:
        """The whole request. Its Host is any name, so that every server gets the same bytes."""
        body = self.body()
        head = (
            f"POST /{self.endpoint}?{self.query} HTTP/1.1\r\nHost: benchmark\r\n"
            f"Content-Type: {MEDIA_TYPES[self.wire]}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def expected(self) -> list[Array]:
        """What NumPy computes."""
        inputs, gradients = _arrays(self.size_bytes, self.tensors)
        if self.query == K_BIT:
            s = np.float32(15)
            return gradients if self.endpoint == "grad" else [np.rint(x * s) / s for x in inputs]
        if self.endpoint == "grad":
            return [np.where((x >= 0) & (x <= 1), g, np.float32(0)) for x, g in zip(inputs, gradients, strict=True)]
        return [np.clip(x, np.float32(0), np.float32(1)) for x in inputs]

    def check(self, answer: bytes) -> None:
        """Raise `WrongBits` unless the answer of a service holds the expected tensors; the sign of zero may differ in a mask."""
        got = _decode(answer, self.wire)
        wanted = self.expected()
        if len(got) != len(wanted):
            raise WrongBits(f"{self}: {len(got)} tensors came back, {len(wanted)} expected")
        for index, (one, other) in enumerate(zip(got, wanted, strict=True)):
            same = np.array_equal(one, other) if self.endpoint == "grad" else one.tobytes() == other.tobytes()
            if one.dtype != np.float32 or one.shape != other.shape or not same:
                raise WrongBits(f"{self}: tensor {index} is not what NumPy computes")

    def check_echo(self, answer: bytes) -> None:
        """Raise `WrongBits` unless the answer of a ceiling is the body, or for a gradient its second half."""
        body = memoryview(self.body())
        if answer != (body[len(body) // 2 :] if self.endpoint == "grad" else body):
            raise WrongBits(f"{self}: the echo is not what was sent")


@cache
def _arrays(size_bytes: int, tensors: int) -> tuple[list[Array], list[Array]]:
    """Inputs, and gradients to go with them; half of the inputs lie outside [0, 1]."""
    random = np.random.default_rng(SEED)
    elements = size_bytes // tensors // 4
    inputs = [random.random(elements, dtype=np.float32) * np.float32(2) - np.float32(0.5) for _ in range(tensors)]
    gradients = [random.random(elements, dtype=np.float32) - np.float32(0.5) for _ in range(tensors)]
    return inputs, gradients


def _npy(arrays: object) -> bytes:
    file = io.BytesIO()
    for array in arrays:  # type: ignore[attr-defined]
        np.save(file, array)
    return file.getvalue()


def _packed(arrays: Sequence[Array]) -> object:
    maps = [{"dtype": "float32", "shape": list(array.shape), "data": array.tobytes()} for array in arrays]
    return maps[0] if len(maps) == 1 else maps


def _decode(answer: bytes, wire: Wire) -> list[Array]:
    if wire == "npy":
        file, arrays = io.BytesIO(answer), []
        while file.tell() < len(answer):
            arrays.append(np.load(file))
        return arrays
    message = msgpack.unpackb(answer)
    (value,) = message.values()
    maps = value if isinstance(value, list) else [value]
    return [np.frombuffer(one["data"], dtype=one["dtype"]).reshape(one["shape"]) for one in maps]
