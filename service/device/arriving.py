"""Calls that can be computed while their last operand is still on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from service.call import Call
from service.device import memory, tiles
from service.device.compute import in_order_of
from service.device.condense import bundle, condenser
from service.device.devices import Device
from service.wire.compact import CompactBundle
from service.wire.layout import in_c_order
from service.wire.message import Bundle, Message

# Pieces of a call begin at elements whose codes begin in a byte of their own, whatever bits they have.
PIECE_ELEMENTS = 8


class Arriving(NamedTuple):
    """A call to be computed from its first element to its last.

    `data` are the bytes that may still be on their way; everything else has come. `step(start, stop)` computes
    these elements of them; steps follow each other, and begin at multiples of `PIECE_ELEMENTS`. `result()` is the
    answer after the last one: what `compute` or `condense` would give, bit for bit.
    """

    data: memoryview
    itemsize: int
    step: Callable[[int, int], None]
    result: Callable[[], Message | CompactBundle]


def arriving(device: Device, call: Call) -> Arriving | None:
    """How to compute a call while it arrives; None where that is not possible.

    It is for elementwise expressions without tensor parameters over one tensor that can be computed where it lies.
    """
    expression, operand = call.expression, call.operand
    if not device.computes_in_place or call.tensors or not expression.elementwise or not operand.single:
        return None
    if call.output != "values":
        return _condensed(device, call)
    return _quantized(device, call) if call.kind == "quantize" else _differentiated(device, call)


def _quantized(device: Device, call: Call) -> Arriving | None:
    x = call.operand.tensors[0]
    elements = memory.in_place(x)
    if elements is None:
        return None

    def step(start: int, stop: int) -> None:
        tiles.forward(device, call.expression, elements[start:stop], {})

    return Arriving(x.data, x.dtype.itemsize, step, lambda: {"y": call.operand})


def _differentiated(device: Device, call: Call) -> Arriving | None:
    assert call.grad_output is not None
    grad_output = call.grad_output.tensors[0]
    gradients = memory.in_place(grad_output)
    x = call.x.tensors[0] if call.x is not None and call.expression.backward_reads_x else None
    if gradients is None or call.expression.backward_is_identity or (x is not None and x.fortran != grad_output.fortran):
        return None

    def step(start: int, stop: int) -> None:
        part = None
        if x is not None:
            part, _ = memory.shared_flat(memory.between(x, start, stop))
        tiles.backward(device, call.expression, part, gradients[start:stop])

    def result() -> Message:
        return {"grad_x": Bundle.of(in_order_of(call.operand.tensors[0], grad_output))}

    return Arriving(grad_output.data, grad_output.dtype.itemsize, step, result)


def _condensed(device: Device, call: Call) -> Arriving | None:
    x = call.operand.tensors[0]
    if memory.in_place(x) is None or in_c_order(x) is not x.data:
        return None
    one = condenser(device, call)
    if one is None:
        return None

    def step(start: int, stop: int) -> None:
        tiles.for_each(device, one.elements[start:stop], lambda tile, at: one.write(tile, start + at))

    return Arriving(x.data, x.dtype.itemsize, step, lambda: bundle(call, [one.finish()]))
