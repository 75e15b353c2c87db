"""The service as anyone writes it: the whole body, `np.load`, three torch operations, `np.save`, `Response`.

Nothing here is slow on purpose, and nothing is tuned.
"""

from __future__ import annotations

import io

import msgpack
import numpy as np
import torch
from fastapi import FastAPI, Request, Response

NPY, MSGPACK = "application/x-npy", "application/vnd.msgpack"

app = FastAPI()


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process lives."""
    return {"status": "ok"}


@app.post("/quantize")
async def quantize(request: Request, k: int) -> Response:
    """Quantize one array to k bits."""
    body = await request.body()
    s = 2**k - 1
    if request.headers.get("content-type") == MSGPACK:
        x = from_msgpack(msgpack.unpackb(body)["x"])
        y = torch.round(x * s) / s
        return Response(msgpack.packb({"y": to_msgpack(y)}), media_type=MSGPACK)
    x = torch.from_numpy(np.load(io.BytesIO(body)))
    y = torch.round(x * s) / s
    return Response(to_npy(y), media_type=NPY)


@app.post("/grad")
async def grad(request: Request, min_value: float, max_value: float) -> Response:
    """The straight-through gradient of a clamp."""
    body = io.BytesIO(await request.body())
    x = torch.from_numpy(np.load(body))
    grad_output = torch.from_numpy(np.load(body))
    grad_x = grad_output * ((x >= min_value) & (x <= max_value))
    return Response(to_npy(grad_x), media_type=NPY)


def to_npy(tensor: torch.Tensor) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, tensor.numpy())
    return file.getvalue()


def from_msgpack(packed: dict[str, object]) -> torch.Tensor:
    """The tensor of a map of dtype, shape and data."""
    array = np.frombuffer(packed["data"], dtype=packed["dtype"]).reshape(packed["shape"])  # type: ignore[call-overload]
    return torch.from_numpy(array.copy())


def to_msgpack(tensor: torch.Tensor) -> dict[str, object]:
    """The map of dtype, shape and data of a tensor."""
    array = tensor.numpy()
    return {"dtype": str(array.dtype), "shape": array.shape, "data": array.tobytes()}
