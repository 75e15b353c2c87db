"""The engine: owns the device and the thread that large calls run on, and computes calls.

Callers give it a `Call` and get a `Message`. Operands are overwritten: an answer lies in the memory of
the request wherever that is possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from service.call import Call
from service.device import gathering, memory, tiles
from service.device.devices import Device
from service.dtypes import DTYPES
from service.errors import DeviceFault, OutOfMemory, StequantError
from service.ops import REGISTRY, Expression, Operator, parse
from service.ops.catalogue import example
from service.wire.message import Bundle, Message, WireTensor

Result = TypeVar("Result")

_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError)


class Engine:
    """Runs calls on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def warm_up(self) -> None:
        """Run every operator once in every dtype: the first call of anything is slow."""
        # More threads than one fight over shared cores (ten times slower in the tail); workers use the other cores.
        torch.set_num_threads(1)
        for name in REGISTRY:
            expression = parse(example(name))
            for dtype in DTYPES.values():
                for kind in ("quantize", "grad"):
                    x, grad_output = (
                        Bundle.of(WireTensor(dtype, (4,), memoryview(bytearray(4 * dtype.itemsize)))) for _ in range(2)
                    )
                    self.run(Call(kind, expression, x, grad_output if kind == "grad" else None))

    async def submit(self, work: Callable[[], Result]) -> Result:
        """Run `work`, which calls `run`, on the device's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let go of the thread, after the work that it has begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def run(self, call: Call) -> Message:
        """Compute a call, and wait for it.

        Raises `OutOfMemory` when the device has no room for it, `DeviceFault` when the device failed.
        """
        try:
            answer = self._quantize(call) if call.kind == "quantize" else self._grad(call)
            self.device.synchronize()
            return answer
        except _FAULTS as error:
            raise _fault(self.device.name, error) from error

    def run_in_place(self, expression: Expression, elements: Tensor) -> None:
        """Overwrite 1-d host elements with `expression(elements)`; for elementwise expressions without tensors."""
        try:
            tiles.forward(self.device, expression, elements, {})
            self.device.synchronize()
        except _FAULTS as error:
            raise _fault(self.device.name, error) from error

    def _quantize(self, call: Call) -> Message:
        assert call.x is not None
        tensors = self._parameters(call)
        results: list[WireTensor] = []
        if call.expression.elementwise and all(tensor.dim() == 0 for tensor in tensors.values()):
            for run in gathering.runs(call.x.tensors):
                elements, placed = gathering.gather(call.x.tensors[run])
                tiles.forward(self.device, call.expression, elements, tensors)
                results += placed
        else:
            for tensor in call.x.tensors:
                elements, placed = gathering.gather((tensor,))
                self._forward_by_segments(call.expression, memory.shaped(elements, tensor), tensors)
                results += placed
        return {"y": Bundle(tuple(results), call.x.names, call.x.single)}

    def _forward_by_segments(self, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the host tensor `x` with `expression(x)`, in as few passes over it as its reductions allow."""
        for segment in expression.segments:
            if isinstance(segment, Operator):
                tiles.forward_reduced(self.device, segment, x)
            else:
                tiles.forward_with_tensors(self.device, segment, x, tensors)

    def _grad(self, call: Call) -> Message:
        assert call.grad_output is not None
        totals: dict[str, Tensor] = {}
        if call.expression.backward_is_identity:
            results: Sequence[WireTensor] = call.grad_output.tensors
        elif call.expression.elementwise and not call.tensors and _lie_alike(call):
            results = self._elementwise_gradients(call.expression, _inputs(call), call.grad_output.tensors)
        else:
            results, totals = self._whole_gradients(call)
        operand = call.operand
        laid_out = tuple(map(_in_order_of, operand.tensors, results))
        answer = {"grad_x": Bundle(laid_out, operand.names, operand.single)}
        for name, parameter in call.tensors.items():
            dtype = memory.TORCH_DTYPES[parameter.dtype.name]
            gradient = totals[name].cpu() if name in totals else torch.zeros(parameter.shape, dtype=dtype)
            style = operand.tensors[0].style if operand.tensors else parameter.style
            answer[f"grad_{name}"] = Bundle.of(memory.to_wire(gradient, parameter.dtype, style))
        return answer

    def _elementwise_gradients(
        self, expression: Expression, inputs: Sequence[WireTensor] | None, grad_outputs: Sequence[WireTensor]
    ) -> list[WireTensor]:
        results: list[WireTensor] = []
        for run in gathering.runs(grad_outputs):
            elements, placed = gathering.gather(grad_outputs[run])
            x = None if inputs is None else gathering.gather(inputs[run])[0]
            tiles.backward(self.device, expression, x, elements)
            results += placed
        return results

    def _whole_gradients(self, call: Call) -> tuple[list[WireTensor], dict[str, Tensor]]:
        """`grad_x` of each tensor, and the gradient of each tensor parameter, summed over them from left to right."""
        assert call.grad_output is not None
        tensors = self._parameters(call)
        inputs: Sequence[WireTensor | None] = _inputs(call) or [None] * len(call.grad_output.tensors)
        results = []
        totals: dict[str, Tensor] = {}
        for x, grad_output in zip(inputs, call.grad_output.tensors, strict=True):
            elements, (placed,) = gathering.gather((grad_output,))
            gradients = call.expression.backward(
                None if x is None else self._shaped_on_device(x),
                memory.shaped(self.device.lift(elements), grad_output),
                tensors,
            )
            memory.shaped(elements, placed).copy_(gradients.grad_x)
            results.append(placed)
            for name, gradient in gradients.by_name().items():
                totals[name] = totals[name] + gradient if name in totals else gradient
        return results, totals

    def _shaped_on_device(self, tensor: WireTensor) -> Tensor:
        return memory.shaped(self.device.lift(memory.shared_flat(tensor)[0]), tensor)

    def _parameters(self, call: Call) -> dict[str, Tensor]:
        """The tensor parameters on the device; those of one element 0-d, so that they meet flat operands."""
        lifted = {}
        for name, parameter in call.tensors.items():
            on_device = self._shaped_on_device(parameter)
            one_for_all = parameter.size == 1 and call.kind == "quantize"
            lifted[name] = on_device.view(()) if one_for_all else on_device
        return lifted


def _fault(device_name: str, error: Exception) -> StequantError:
    """The service's error for what torch raises when the device fails."""
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(f"{device_name} has no memory left for this call; try again, or send smaller tensors")
    return DeviceFault(f"{device_name} failed: {str(error).partition(chr(10))[0]}")


def _inputs(call: Call) -> Sequence[WireTensor] | None:
    """The tensors of `x`, where the gradient depends on them."""
    return call.x.tensors if call.x is not None and call.expression.backward_reads_x else None


def _lie_alike(call: Call) -> bool:
    inputs = _inputs(call)
    assert call.grad_output is not None
    return inputs is None or all(x.fortran == g.fortran for x, g in zip(inputs, call.grad_output.tensors, strict=True))


def _in_order_of(like: WireTensor, tensor: WireTensor) -> WireTensor:
    """`tensor` in the memory order and the style of `like`."""
    if like.fortran == tensor.fortran:
        return (
            tensor
            if like.style == tensor.style
            else WireTensor(tensor.dtype, tensor.shape, tensor.data, tensor.fortran, like.style)
        )
    # `like` has the same shape: lay the elements out as a new tensor that lies as it does.
    elements = torch.empty(tensor.size, dtype=memory.TORCH_DTYPES[tensor.dtype.name])
    target = WireTensor(tensor.dtype, tensor.shape, memory.data_of(elements), like.fortran, like.style)
    memory.shaped(elements, target).copy_(memory.shaped(memory.shared_flat(tensor)[0], tensor))
    return target
