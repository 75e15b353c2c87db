"""Calls that differ from an earlier one in nothing but their data.

On a kept connection most calls repeat head and body header byte for byte. What decoding, planning and
encoding gave for the first of them holds for the others; only the elements have to be computed. At
4 KiB that is a third of the work of a call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from service.answer import Answer
from service.call import Call
from service.device import memory
from service.device.engine import Engine
from service.ops import Expression


class Shortcut(NamedTuple):
    """How to answer a body that begins with `prefix` and has `length` bytes."""

    length: int
    prefix: bytes
    expression: Expression
    dtype: torch.dtype
    answer_prefix: bytes
    media_type: str

    def fits(self, body: memoryview) -> bool:
        """Whether this body is like the one the shortcut was learned from."""
        return body.nbytes == self.length and body[: len(self.prefix)].tobytes() == self.prefix

    def answer(self, engine: Engine, body: memoryview) -> Answer:
        """What the long way would answer, bit for bit. `body` is aligned like all memory of `device.buffers`."""
        start = len(self.prefix)
        engine.run_in_place(self.expression, torch.frombuffer(body, dtype=self.dtype, offset=start))
        pieces = (self.answer_prefix, body[start:])
        return Answer(200, self.media_type, pieces, len(self.answer_prefix) + body.nbytes - start)


def learn(call: Call, body: memoryview, answer: Answer) -> Shortcut | None:
    """The shortcut for calls like this one; None where there is none.

    There is one for elementwise expressions without tensor parameters over a single tensor whose data
    ends the body, was computed in place and ends the answer.
    """
    if call.kind != "quantize" or call.tensors or not call.expression.elementwise or len(answer.pieces) != 2:
        return None
    assert call.x is not None
    data = call.x.tensors[0].data
    if not call.x.single or not data.nbytes or answer.pieces[1] is not data or _end(data) != _end(body):
        return None
    prefix = body[: body.nbytes - data.nbytes].tobytes()
    dtype = memory.TORCH_DTYPES[call.x.tensors[0].dtype.name]
    return Shortcut(body.nbytes, prefix, call.expression, dtype, bytes(answer.pieces[0]), answer.media_type)


def _end(data: memoryview) -> int:
    """The address behind the last byte."""
    return torch.frombuffer(data, dtype=torch.uint8).data_ptr() + data.nbytes
