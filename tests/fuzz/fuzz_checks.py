"""What every target holds its inputs to: refused in the problem class, in time, or the same as the oracle says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import ml_dtypes
import numpy as np

from service.answer import problem
from service.errors import RequestError
from service.wire.message import Message, WireTensor

Result = TypeVar("Result")

# Inputs have at most this size; what an input costs may grow with it, but not faster.
MAX_INPUT_BYTES = 4096
# Processor time for one input; a thousand times what the slowest takes.
MOST_CPU_S = 5.0
# A problem document tells the caller what is wrong; it does not send the body back.
_MOST_PROBLEM_BYTES = 4096

NUMPY_DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def unless_refused(read: Callable[[], Result]) -> Result | None:
    """What `read` gives, or None where it refuses; any other exception than a refusal is a finding."""
    started = time.process_time()
    try:
        return read()
    except RequestError as error:
        answer = problem(error)
        assert 400 <= answer.status < 500, answer
        assert answer.length <= _MOST_PROBLEM_BYTES, f"a problem of {answer.length} bytes"
        return None
    finally:
        spent_s = time.process_time() - started
        assert spent_s < MOST_CPU_S, f"{spent_s} s"


def array_of(tensor: WireTensor) -> np.ndarray:
    """The array that a tensor of the wire is."""
    flat = np.frombuffer(tensor.data, np.uint8).view(NUMPY_DTYPES[tensor.dtype.name])
    return flat.reshape(tensor.shape, order="F" if tensor.fortran else "C")


def assert_same(tensor: WireTensor, array: np.ndarray) -> None:
    """Dtype, shape and every bit are those of the oracle's array."""
    expected = array if array.dtype.kind != "V" or array.dtype == ml_dtypes.bfloat16 else array.view(ml_dtypes.bfloat16)
    assert tensor.dtype.name == expected.dtype.name, (tensor.dtype, expected.dtype)
    assert tensor.shape == expected.shape, (tensor.shape, expected.shape)
    little = expected.astype(expected.dtype.newbyteorder("<")) if expected.dtype.kind == "f" else expected
    assert array_of(tensor).tobytes() == little.tobytes()


def content(message: Message) -> dict[str, tuple[object, ...]]:
    """A message as a value that can be compared: all but in which order its bytes lie."""
    return {field: (bundle.names, bundle.single, *map(contents, bundle.tensors)) for field, bundle in message.items()}


def contents(tensor: WireTensor) -> tuple[object, ...]:
    """A tensor as a value that can be compared."""
    return tensor.dtype.name, tensor.shape, array_of(tensor).tobytes()
