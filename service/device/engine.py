"""The engine: owns the device and the thread that large calls run on, and computes calls.

Callers give it a `Call` and get a `Message`. Operands are overwritten: an answer lies in the memory of
the request wherever that is possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from service.call import Call
from service.device import memory, tiles
from service.device.devices import Device
from service.dtypes import DTYPES
from service.errors import DeviceFault, OutOfMemory
from service.ops import REGISTRY, Expression, Gradients, parse
from service.ops.catalogue import example
from service.wire.message import Bundle, Message, WireTensor

Result = TypeVar("Result")


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
            with torch.inference_mode():
                answer = self._quantize(call) if call.kind == "quantize" else self._grad(call)
                self.device.synchronize()
                return answer
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{self.device.name} has no memory left for this call; try again, or send smaller tensors") from error
        except torch.AcceleratorError as error:
            raise DeviceFault(f"{self.device.name} failed: {str(error).partition(chr(10))[0]}") from error

    def _quantize(self, call: Call) -> Message:
        assert call.x is not None
        tensors = self._parameters(call)
        in_storage_order = call.expression.elementwise and all(tensor.dim() == 0 for tensor in tensors.values())
        results = []
        for tensor in call.x.tensors:
            elements, shared = memory.shared_flat(tensor)
            if in_storage_order:
                tiles.forward(self.device, call.expression, elements, tensors)
            else:
                on_device = self.device.lift(elements)
                x = memory.shaped(on_device, tensor)
                call.expression.forward(x, tensors, out=x)
                self.device.lower(on_device, elements)
            results.append(tensor if shared else _like(tensor, elements))
        return {"y": Bundle(tuple(results), call.x.names, call.x.single)}

    def _grad(self, call: Call) -> Message:
        assert call.grad_output is not None
        operand = call.operand
        inputs = call.x.tensors if call.x is not None and call.expression.backward_reads_x else (None,) * len(operand.tensors)
        tensors = self._parameters(call)
        results = []
        totals: dict[str, Tensor] = {}
        for like, x, grad_output in zip(operand.tensors, inputs, call.grad_output.tensors, strict=True):
            if call.expression.elementwise and not call.tensors and (x is None or _lie_alike(x, grad_output)):
                elements, shared = memory.shared_flat(grad_output)
                tiles.backward(self.device, call.expression, None if x is None else memory.flat(x), elements)
                result = grad_output if shared else _like(grad_output, elements)
            else:
                gradients = self._whole_gradients(call.expression, x, grad_output, tensors)
                result = _like(grad_output, self._lowered(gradients.grad_x, grad_output))
                for name, gradient in gradients.by_name().items():
                    totals[name] = totals[name] + gradient if name in totals else gradient
            results.append(_in_order_of(like, result))
        answer = {"grad_x": Bundle(tuple(results), operand.names, operand.single)}
        for name, parameter in call.tensors.items():
            total = (
                totals[name].cpu()
                if name in totals
                else torch.zeros(parameter.shape, dtype=memory.TORCH_DTYPES[parameter.dtype.name])
            )
            style = operand.tensors[0].style if operand.tensors else parameter.style
            answer[f"grad_{name}"] = Bundle.of(memory.to_wire(total, parameter.dtype, style))
        return answer

    def _whole_gradients(
        self, expression: Expression, x: WireTensor | None, grad_output: WireTensor, tensors: dict[str, Tensor]
    ) -> Gradients:
        x_on_device = None if x is None else memory.shaped(self.device.lift(memory.flat(x)), x)
        g_on_device = memory.shaped(self.device.lift(memory.flat(grad_output)), grad_output)
        return expression.backward(x_on_device, g_on_device, tensors)

    def _lowered(self, result: Tensor, like: WireTensor) -> Tensor:
        """`result` on the host, its elements lying as those of `like` do."""
        elements = memory.flat(like)
        memory.shaped(elements, like).copy_(result)
        return elements

    def _parameters(self, call: Call) -> dict[str, Tensor]:
        """The tensor parameters on the device; those of one element 0-d, so that they meet flat operands."""
        lifted = {}
        for name, parameter in call.tensors.items():
            on_device = self.device.lift(memory.flat(parameter))
            one_for_all = parameter.size == 1 and call.kind == "quantize"
            lifted[name] = on_device.view(()) if one_for_all else memory.shaped(on_device, parameter)
        return lifted


def _lie_alike(one: WireTensor, other: WireTensor) -> bool:
    return one.fortran == other.fortran


def _like(tensor: WireTensor, elements: Tensor) -> WireTensor:
    """`tensor` with other elements; its own memory again where they lie in it."""
    if not elements.numel():
        return tensor
    return WireTensor(tensor.dtype, tensor.shape, memory.data_of(elements), tensor.fortran, tensor.style)


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
    memory.shaped(elements, target).copy_(memory.shaped(memory.flat(tensor), tensor))
    return target
