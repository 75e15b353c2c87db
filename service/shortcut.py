"""Calls that differ from an earlier one in nothing but their data.

On a kept connection most calls repeat head and body header byte for byte. What decoding, planning and
encoding gave for the first of them holds for the others; only the elements have to be computed. At
4 KiB that is a third of the work of a call. Computing them is another; on the CPU, `service.ops.vectors`
does it in a third of the time. A body that is still on its way can be overwritten as far as it has come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from service.answer import Answer
from service.call import Call
from service.device import memory
from service.device.devices import Device
from service.device.engine import Engine
from service.dtypes import DType
from service.ops import Expression, vectors

# Overwrites elements, of which a body holds some or all, with those of the answer.
Overwrite = Callable[[Engine, memoryview], None]


class Shortcut(NamedTuple):
    """How to answer a body that begins with `prefix` and has `length` bytes; the rest are elements of `itemsize` bytes."""

    length: int
    prefix: bytes
    itemsize: int
    overwrite: Overwrite
    answer_prefix: bytes
    media_type: str

    def fits(self, body: memoryview) -> bool:
        """Whether this body is like the one the shortcut was learned from."""
        return body.nbytes == self.length and body[: len(self.prefix)].tobytes() == self.prefix

    def answer(self, engine: Engine, body: memoryview) -> Answer:
        """What the long way would answer, bit for bit. `body` is aligned like all memory of `device.buffers`."""
        self.overwrite(engine, body[len(self.prefix) :])
        return self.answer_of(body)

    def answer_of(self, body: memoryview) -> Answer:
        """The answer that lies in a body, all of whose elements were overwritten."""
        elements = body[len(self.prefix) :]
        return Answer(200, self.media_type, (self.answer_prefix, elements), len(self.answer_prefix) + elements.nbytes)


def learn(call: Call, body: memoryview, answer: Answer, device: Device) -> Shortcut | None:
    """The shortcut for calls like this one; None where there is none.

    There is one for elementwise expressions without tensor parameters over a single tensor whose data
    ends the body, was computed in place and ends the answer.
    """
    if call.kind != "quantize" or call.tensors or not call.expression.elementwise or len(answer.pieces) != 2:
        return None
    assert call.x is not None
    data = call.x.tensors[0].data
    if not call.x.single or not data.nbytes or answer.pieces[1] is not data or memory.end_of(data) != memory.end_of(body):
        return None
    prefix = body[: body.nbytes - data.nbytes].tobytes()
    dtype = call.x.tensors[0].dtype
    overwrite = _overwrite(call.expression, dtype, device)
    return Shortcut(body.nbytes, prefix, dtype.itemsize, overwrite, bytes(answer.pieces[0]), answer.media_type)


def _overwrite(expression: Expression, dtype: DType, device: Device) -> Overwrite:
    """What computes the values of an elementwise expression where its operands lie."""
    kernel = vectors.kernel(expression, dtype.name) if device.computes_in_place else None
    if kernel is not None:
        array_dtype = np.dtype(dtype.name)
        return lambda _, elements: kernel(np.frombuffer(elements, array_dtype))
    torch_dtype = memory.TORCH_DTYPES[dtype.name]
    return lambda engine, elements: engine.run_in_place(expression, torch.frombuffer(elements, dtype=torch_dtype))
