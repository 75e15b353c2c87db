"""Shortcuts of calls with one tensor.

At 4 KiB what they save is a third of the work of a call. Computing the elements is another; on the CPU,
`service.ops.vectors` does it in a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from service.wire.message import WireTensor

# Overwrites elements with those of the answer, where they lie.
Overwrite = Callable[[], object]
# What overwrites the elements of the last of these operands, of which they are some or all.
Bind = Callable[[Engine, Sequence[memoryview]], Overwrite]


class Shortcut(NamedTuple):
    """How to answer a body of `length` bytes that is like an earlier one in all but the elements of its operands.

    `constants` are the bytes around those, and where each lies. Every operand begins at one of the `starts`, and has `elements`
    of `itemsize` bytes. Those of the last one, overwritten, end the answer, behind `answer_prefix`.
    `bind` is None where the answer has them as they came.
    """

    length: int
    constants: tuple[tuple[int, bytes], ...]
    starts: tuple[int, ...]
    elements: int
    itemsize: int
    bind: Bind | None
    answer_prefix: bytes
    media_type: str

    @property
    def nbytes(self) -> int:
        """The bytes of each operand."""
        return self.elements * self.itemsize

    @property
    def arrives_at(self) -> int:
        """Where the operand begins that comes last."""
        return max(self.starts)

    def fits(self, body: memoryview) -> bool:
        """Whether this body is like the one the shortcut was learned from."""
        return body.nbytes == self.length and all(body[at : at + len(same)].tobytes() == same for at, same in self.constants)

    def overwrite(self, engine: Engine, body: memoryview, first: int, stop: int) -> None:
        """Compute these elements of a body that fits, aligned like all memory of `device.buffers`."""
        if self.bind is not None:
            self.bind(engine, self._parts(body, first, stop))()

    def bound(self, engine: Engine, body: memoryview) -> Overwrite:
        """What computes all elements of a body that lies there, and fits, whenever it is called."""
        return _nothing if self.bind is None else self.bind(engine, self._parts(body, 0, self.elements))

    def _parts(self, body: memoryview, first: int, stop: int) -> list[memoryview]:
        return [body[start + first * self.itemsize : start + stop * self.itemsize] for start in self.starts]

    def answer(self, engine: Engine, body: memoryview) -> Answer:
        """What the long way would answer, bit for bit."""
        self.overwrite(engine, body, 0, self.elements)
        return self.answer_of(body)

    def answer_of(self, body: memoryview) -> Answer:
        """The answer that lies in a body, all of whose elements were overwritten."""
        elements = body[self.starts[-1] : self.starts[-1] + self.nbytes]
        return Answer(200, self.media_type, (self.answer_prefix, elements), len(self.answer_prefix) + elements.nbytes)


def learn(call: Call, body: memoryview, answer: Answer, device: Device) -> Shortcut | None:
    """The shortcut for calls like this one; None where there is none.

    There is one for elementwise expressions without tensor parameters over a single tensor that was computed in place and
    ends the answer; beside it, a gradient has `x`.
    """
    if call.tensors or not call.expression.elementwise or not call.operand.single or len(answer.pieces) != 2:
        return None
    operands = [bundle.tensors[0] for bundle in (call.x, call.grad_output) if bundle is not None]
    dtype, nbytes = operands[-1].dtype, operands[-1].data.nbytes
    if not nbytes or answer.pieces[1] is not operands[-1].data:
        return None
    starts = tuple(_start_in(body, operand) for operand in operands)
    if min(starts) < 0 or max(starts) + nbytes > body.nbytes:
        return None  # one was copied, as it came in another byte order
    bind = _binding(call, dtype, device)
    if bind is None and not _is_as_it_came(call):
        return None
    constants = tuple(_around(body, starts, nbytes))
    elements = nbytes // dtype.itemsize
    return Shortcut(body.nbytes, constants, starts, elements, dtype.itemsize, bind, bytes(answer.pieces[0]), answer.media_type)


def _nothing() -> None:
    """Overwrite nothing."""


def _start_in(body: memoryview, operand: WireTensor) -> int:
    """Where in the body an operand begins."""
    return body.nbytes - (memory.end_of(body) - memory.end_of(operand.data)) - operand.data.nbytes


def _around(body: memoryview, starts: Sequence[int], nbytes: int) -> Iterator[tuple[int, bytes]]:
    """What lies before each operand and behind the last one, and where."""
    at = 0
    for start in (*sorted(starts), body.nbytes):
        if start > at:
            yield at, body[at:start].tobytes()
        at = start + nbytes


def _is_as_it_came(call: Call) -> bool:
    return call.kind == "grad" and call.expression.backward_is_identity


def _binding(call: Call, dtype: DType, device: Device) -> Bind | None:
    """What computes the values or the gradients of an elementwise expression where its operands lie."""
    if call.kind == "quantize":
        return _quantizing(call.expression, dtype, device)
    if _is_as_it_came(call) or not device.computes_in_place:
        return None
    return _differentiating(call.expression, dtype)


def _quantizing(expression: Expression, dtype: DType, device: Device) -> Bind:
    kernel = vectors.kernel(expression, dtype.name) if device.computes_in_place else None
    if kernel is not None:
        array_dtype = np.dtype(dtype.name)
        return lambda _, operands: partial(kernel, np.frombuffer(operands[0], array_dtype))
    torch_dtype = memory.TORCH_DTYPES[dtype.name]
    return lambda engine, operands: partial(engine.run_in_place, expression, torch.frombuffer(operands[0], dtype=torch_dtype))


def _differentiating(expression: Expression, dtype: DType) -> Bind:
    """The gradients take the place of `grad_output`, which is the last operand."""
    torch_dtype = memory.TORCH_DTYPES[dtype.name]

    def bind(engine: Engine, operands: Sequence[memoryview]) -> Overwrite:
        grad_output = torch.frombuffer(operands[-1], dtype=torch_dtype)
        if not expression.backward_reads_x:
            return partial(engine.differentiate_in_place, expression, None, grad_output)
        x = WireTensor(dtype, (grad_output.numel(),), operands[0])
        return lambda: engine.differentiate_in_place(expression, memory.shared_flat(x)[0], grad_output)

    return bind
