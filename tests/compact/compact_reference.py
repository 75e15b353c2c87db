"""Compact answers read as docs/compact.md says, by another implementation: ml_dtypes for the dtypes, Python's ints for the bits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from http_bodies import to_numpy, to_torch
from torch import Tensor

from service.call import plan
from service.device import memory
from service.device.engine import Engine
from service.dtypes import DTYPES
from service.ops import parse
from service.ops.codes import Output, check_output
from service.wire.compact import CompactTensor
from service.wire.message import Bundle, WireTensor

Array = np.ndarray[Any, Any]
NUMPY = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
ARITHMETIC = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}


def wire(x: Tensor) -> WireTensor:
    """A tensor of the wire, in memory of its own: engines overwrite their operands."""
    return WireTensor(DTYPES[str(x.dtype).removeprefix("torch.")], tuple(x.shape), memory.data_of(x.contiguous().clone()))


def values(engine: Engine, expression: str, x: Tensor, **tensors: Tensor) -> Tensor:
    """`y`, as the engine gives it."""
    message = {"x": Bundle.of(wire(x))} | {name: Bundle.of(wire(one)) for name, one in tensors.items()}
    (y,) = engine.run(plan("quantize", parse(expression), message))["y"].tensors
    return memory.shaped(memory.shared_flat(y)[0], y)


def compact(engine: Engine, expression: str, output: Output, x: Tensor, **tensors: Tensor) -> CompactTensor:
    """The compact answer for one tensor."""
    message = {"x": Bundle.of(wire(x))} | {name: Bundle.of(wire(one)) for name, one in tensors.items()}
    check_output(parse(expression), output)
    call = plan("grad" if output == "mask" else "quantize", parse(expression), message, output)
    (result,) = engine.condense(call).tensors
    return result


def as_map(result: CompactTensor) -> dict[str, Any]:
    """The answer as msgpack's map."""
    elements, *exceptions = result.parts()
    written = result.description() | {elements.name: bytes(elements.data)}
    return written | {"exceptions": {part.name.rpartition(".")[2]: bytes(part.data) for part in exceptions}}


def unpacked(stream: bytes, bits: int, count: int) -> list[int]:
    """Codes of so many bits each: eight of them are so many bytes, which are one number, its lowest bits first.

    The bits behind the last code are zero.
    """
    assert len(stream) == -(-count * bits // 8)
    numbers = (int.from_bytes(stream[at : at + bits], "little") for at in range(0, len(stream), bits))
    codes = [number >> (i * bits) & (2**bits - 1) for number in numbers for i in range(8)]
    assert not any(codes[count:])
    return codes[:count]


def decoded(answer: Mapping[str, Any], **tensors: Tensor) -> Tensor:
    """The values of msgpack's map of codes or packed codes."""
    shape, dtype = tuple(answer["shape"]), NUMPY[answer["dtype"]]
    count = int(np.prod(shape))
    if "packed" in answer:
        integers = np.array(unpacked(answer["packed"], answer["bits"], count), np.uint64)
    else:
        integers = np.frombuffer(answer["codes"], np.dtype(answer["code_dtype"]).newbyteorder("<"))
    with np.errstate(all="ignore"):
        # The integers that are not exact in float32 are as large as its, where one rounding more does not matter.
        codes = integers.astype(np.float64 if dtype == np.float64 else np.float32).astype(dtype)
        if integers.dtype.kind == "i":
            codes[integers == np.iinfo(integers.dtype).min] = -0.0
        y = _scaled(answer["operator"], codes.reshape(shape), dtype, tensors).reshape(-1)
    index = np.frombuffer(answer["exceptions"]["index"], "<u4")
    assert list(index) == sorted(set(index.tolist()))
    assert not integers[index].any(), "the code of an exception is 0"
    y[index] = np.frombuffer(answer["exceptions"]["value"], dtype)
    return to_torch(y.reshape(shape))


def _scaled(
    operator: str, codes: np.ndarray[Any, Any], dtype: np.dtype[Any], tensors: Mapping[str, Tensor]
) -> np.ndarray[Any, Any]:
    name, inside = re.fullmatch(r"(\w+)\((.*)\)", operator).groups()  # type: ignore[union-attr]
    given = dict(item.split("=") for item in inside.split(", ") if item)
    number = ARITHMETIC[dtype.name]

    def operand(text: str) -> Any:
        return to_numpy(tensors[text]).astype(number) if text in tensors else number(text)

    wide = codes.astype(number)
    if name in ("round", "ceil", "floor"):
        return codes.copy()
    if name == "step_quantize":
        return (wide * number(given["step"])).astype(dtype)
    q = (wide / number(2 ** int(given["k"]) - 1)).astype(dtype)
    if name == "k_bit_quantize":
        return q
    product = (operand(given["w"]) * q.astype(number)).astype(dtype)
    b = np.asarray(operand(given["b"])).astype(dtype)
    return (product.astype(number) + b.astype(number)).astype(dtype)


def every_pattern(dtype: torch.dtype) -> Tensor:
    """All 65 536 values of a dtype of two bytes."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def random_patterns(dtype: torch.dtype, count: int, seed: int = 0) -> Tensor:
    """Random bits: numbers of all magnitudes, subnormals, infinities and NaN."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(integers)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(info.min, info.max, (count,), dtype=integers, generator=generator).view(dtype)
