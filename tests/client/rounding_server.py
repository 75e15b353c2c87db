"""A server double that does real work: it reads the wire formats, rounds, clamps and scales with NumPy, and answers.

It stands behind `httpx.MockTransport` in most tests and behind a socket in some. Scripted answers come
first, one for each request; after them it computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import httpx
import ml_dtypes
import numpy as np

from service.dtypes import DTYPES
from service.errors import NotAllowed, StequantError
from service.ops import AffineKBitQuantize, Clamp, Expression, Round, parse
from service.wire import FORMATS
from service.wire.layout import bytes_of
from service.wire.message import Bundle, WireTensor

NUMPY = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in DTYPES}
Scripted = Callable[[httpx.Request], httpx.Response]


@dataclass
class RoundingServer:
    """Answers `/quantize` and `/grad` for `round`, `clamp` and `affine_k_bit_quantize`; keeps every request."""

    script: list[Scripted] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The next scripted answer, or a computed one."""
        self.requests.append(request)
        if self.script:
            return self.script.pop(0)(request)
        if request.method == "GET":
            return httpx.Response(200, json={"operators": [{"name": "round"}]})
        try:
            return self.computed(request)
        except StequantError as error:
            return problem(error)

    @property
    def transport(self) -> httpx.MockTransport:
        """What either client takes in place of sockets."""
        return httpx.MockTransport(self)

    @property
    def expressions(self) -> list[str]:
        """What each call asked for, percent-decoded."""
        return [parse_qs(request.url.query.decode())["op"][0] for request in self.requests]

    def computed(self, request: httpx.Request) -> httpx.Response:
        """The answer to a call of tensors."""
        wire = next(wire for wire in FORMATS.values() if wire.media_type == request.headers["content-type"])
        (operator,) = parse(parse_qs(request.url.query.decode())["op"][0]).operators
        quantizing = request.url.path.endswith("/quantize")
        fields = ("x",) if quantizing else ("x", "grad_output")
        body = request.content
        assert int(request.headers["content-length"]) == len(body)
        message = wire.decode(memoryview(body), fields, 16384)
        tensors = {name: array(bundle.tensors[0]) for name, bundle in message.items() if name not in ("x", "grad_output")}
        if quantizing:
            answer = {"y": mapped(lambda x: forward(operator, x, tensors), message["x"])}
        else:
            answer = gradients(operator, message, tensors)
        return httpx.Response(200, headers={"content-type": wire.media_type}, content=b"".join(wire.encode(answer)))


def gradients(operator: Expression, message: dict[str, Bundle], tensors: dict[str, np.ndarray]) -> dict[str, Bundle]:
    inputs = message.get("x", message["grad_output"])
    outputs = iter([array(tensor) for tensor in message["grad_output"].tensors])
    terms: dict[str, Any] = {}

    def one(x: np.ndarray) -> np.ndarray:
        g = next(outputs)
        if isinstance(operator, Clamp):
            return np.where((x >= operator.min_value) & (x <= operator.max_value), g, 0).astype(x.dtype)
        if isinstance(operator, AffineKBitQuantize):
            terms["w"] = terms.get("w", 0) + (g * np.rint(x)).sum(dtype=x.dtype)
            terms["b"] = terms.get("b", 0) + g.sum(dtype=x.dtype)
            return tensors["w"] * g
        return g

    answer = {"grad_x": mapped(one, inputs)}
    return answer | {
        f"grad_{name}": Bundle.of(described(np.asarray(terms[name], tensor.dtype))) for name, tensor in tensors.items()
    }


def forward(operator: Expression, x: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    if isinstance(operator, Round):
        return np.rint(x)
    if isinstance(operator, Clamp):
        return np.clip(x, x.dtype.type(operator.min_value), x.dtype.type(operator.max_value))
    if isinstance(operator, AffineKBitQuantize):
        return tensors["w"] * np.rint(x) + tensors["b"]
    raise NotAllowed(f"the double does not know {operator}")


def mapped(function: Callable[[np.ndarray], np.ndarray], bundle: Bundle) -> Bundle:
    return Bundle(tuple(described(function(array(tensor))) for tensor in bundle.tensors), bundle.names, bundle.single)


def array(tensor: WireTensor) -> np.ndarray:
    order: Any = "F" if tensor.fortran else "C"
    return np.ndarray(tensor.shape, NUMPY[tensor.dtype.name], buffer=tensor.data, order=order)


def described(value: np.ndarray) -> WireTensor:
    value = np.asarray(value)
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    data = bytes_of(value.T if fortran else np.ascontiguousarray(value))
    return WireTensor(DTYPES[value.dtype.name], value.shape, data, fortran)


def problem(error: StequantError, **headers: str) -> httpx.Response:
    """The error as the server's problem document."""
    document = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail, "code": error.code}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(int(error.retry_after_s))
    return httpx.Response(
        error.status, headers={"content-type": "application/problem+json", **headers}, content=json.dumps(document).encode()
    )


def answering(*, content: bytes, status: int = 200, content_type: str = "application/x-npy", **headers: str) -> Scripted:
    """A scripted answer."""
    return lambda _: httpx.Response(status, headers={"content-type": content_type, **headers}, content=content)


def raising(error: Exception) -> Scripted:
    """A scripted failure of the transport."""

    def raise_it(_: httpx.Request) -> httpx.Response:
        raise error

    return raise_it


def npy(arrays: Iterable[np.ndarray]) -> bytes:
    """The arrays as an npy answer."""
    return b"".join(FORMATS["npy"].encode({"y": Bundle(tuple(map(described, arrays)))}))


@dataclass
class Clock:
    """Time that passes only where somebody sleeps, or where a test says so."""

    now_s: float = 1000.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        """Now, in seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.slept_s.append(seconds)
        self.now_s += seconds

    async def sleep_async(self, seconds: float) -> None:
        """Let time pass at once."""
        self.sleep(seconds)
