"""Request bytes and answer checks in the formats of the peers: the same tensor, as each of them takes it fastest."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.payloads import Array, Payload, WrongBits

Form = Literal["raw", "triton"]
OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class RawPayload:
    """The tensor's bytes and nothing else, there and back; `Bench` takes it as it takes a `Payload`."""

    tensor: Payload
    path: str

    def __str__(self) -> str:
        return f"{self.path} {self.tensor}"

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.tensor.size_bytes

    def array(self) -> Array:
        """The tensor that is sent."""
        return np.load(io.BytesIO(self.tensor.body()))

    def body(self) -> bytes:
        """The body of the request."""
        return self.array().tobytes()

    def headers(self) -> dict[str, str]:
        """The headers of the request, but for its length."""
        return {"Host": "benchmark", "Content-Type": OCTETS}

    def request(self) -> bytes:
        """The whole request."""
        body = self.body()
        lines = [f"{name}: {value}" for name, value in {**self.headers(), "Content-Length": str(len(body))}.items()]
        return "\r\n".join([f"POST {self.path} HTTP/1.1", *lines, "", ""]).encode() + body

    def check(self, answer: bytes) -> None:
        """Raise `WrongBits` unless the answer holds the expected tensor, bit for bit."""
        (wanted,) = self.tensor.expected()
        if self.tensor_bytes(answer) != wanted.tobytes():
            raise WrongBits(f"{self}: the tensor is not what NumPy computes")

    def tensor_bytes(self, answer: bytes) -> bytes:
        """The part of an answer that is the tensor."""
        return answer


@dataclass(frozen=True)
class TritonPayload(RawPayload):
    """A JSON object that describes the tensors, and their bytes behind it, there and back."""

    def body(self) -> bytes:
        """The body of the request."""
        return self.description() + super().body()

    def headers(self) -> dict[str, str]:
        """The headers of the request, but for its length."""
        return {**super().headers(), "Inference-Header-Content-Length": str(len(self.description()))}

    def description(self) -> bytes:
        """The JSON object in front of the bytes."""
        elements = self.size_bytes // 4
        x = {"name": "x", "shape": [elements], "datatype": "FP32", "parameters": {"binary_data_size": self.size_bytes}}
        y = {"name": "y", "parameters": {"binary_data": True}}
        return json.dumps({"inputs": [x], "outputs": [y]}, separators=(",", ":")).encode()

    def tensor_bytes(self, answer: bytes) -> bytes:
        """The bytes behind the JSON object, which has to describe one output of the right type and shape."""
        head = answer[: len(answer) - self.size_bytes]
        try:
            (output,) = json.loads(head)["outputs"]
            described = (output["name"], output["datatype"], output["shape"], output["parameters"]["binary_data_size"])
        except (ValueError, KeyError, TypeError) as error:
            raise WrongBits(f"{self}: no description of one binary output: {head[:200]!r}") from error
        if described != ("y", "FP32", [self.size_bytes // 4], self.size_bytes):
            raise WrongBits(f"{self}: not the output that was asked for: {described}")
        return answer[len(head) :]


PAYLOADS: dict[Form, type[RawPayload]] = {"raw": RawPayload, "triton": TritonPayload}
