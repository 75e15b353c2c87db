"""What a call's answer is, computed on a device.

Operands are overwritten: an answer lies in the memory of the request wherever that is possible. What the
device reads must stay as it is, and what it writes must not be read, until it has been synchronized; that
is done once for each call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from service.call import Call, Kind
from service.device import gathering, memory, tiles
from service.device.devices import Device
from service.ops import Expression
from service.wire.message import Bundle, Message, WireTensor


def compute(device: Device, call: Call) -> Message:
    """The answer to a call."""
    return _quantize(device, call) if call.kind == "quantize" else _grad(device, call)


def _quantize(device: Device, call: Call) -> Message:
    assert call.x is not None
    tensors = parameters(call)
    results: list[WireTensor] = []
    if call.expression.elementwise and all(tensor.dim() == 0 for tensor in tensors.values()):
        for run in gathering.runs(call.x.tensors):
            if gathering.goes_through_tiles(device, call.x.tensors[run]):
                _overwrite(device, call, (call.x.tensors[run],), tensors)
                results += call.x.tensors[run]
                continue
            elements, placed = gathering.gather(device, call.x.tensors[run])
            tiles.forward(device, call.expression, elements, tensors)
            results += placed
    else:
        for tensor in call.x.tensors:
            elements, placed = gathering.gather(device, (tensor,))
            tiles.forward_by_segments(device, call.expression, memory.shaped(elements, tensor), tensors)
            results += placed
    device.synchronize()
    return {"y": Bundle(tuple(results), call.x.names, call.x.single)}


def _grad(device: Device, call: Call) -> Message:
    assert call.grad_output is not None
    totals: dict[str, Tensor] = {}
    if call.expression.backward_is_identity:
        results: Sequence[WireTensor] = call.grad_output.tensors
    elif call.expression.elementwise and not call.tensors and _lie_alike(call):
        results = _elementwise_gradients(device, call, _inputs(call), call.grad_output.tensors)
    else:
        results, totals = _whole_gradients(device, call)
    operand = call.operand
    laid_out = tuple(map(in_order_of, operand.tensors, results))
    answer = {"grad_x": Bundle(laid_out, operand.names, operand.single)}
    for name, parameter in call.tensors.items():
        dtype = memory.TORCH_DTYPES[parameter.dtype.name]
        gradient = totals[name].cpu() if name in totals else torch.zeros(parameter.shape, dtype=dtype)
        style = operand.tensors[0].style if operand.tensors else parameter.style
        answer[f"grad_{name}"] = Bundle.of(memory.to_wire(gradient, parameter.dtype, style))
    return answer


def _elementwise_gradients(
    device: Device, call: Call, inputs: Sequence[WireTensor] | None, grad_outputs: Sequence[WireTensor]
) -> list[WireTensor]:
    results: list[WireTensor] = []
    gathered: list[Tensor | None] = []
    for run in gathering.runs(grad_outputs):
        if gathering.goes_through_tiles(device, grad_outputs[run]):
            _overwrite(device, call, (grad_outputs[run],) if inputs is None else (inputs[run], grad_outputs[run]))
            results += grad_outputs[run]
            continue
        elements, placed = gathering.gather(device, grad_outputs[run])
        gathered.append(None if inputs is None else gathering.gather(device, inputs[run])[0])
        tiles.backward(device, call.expression, gathered[-1], elements)
        results += placed
    device.synchronize()
    return results


def _overwrite(
    device: Device, call: Call, operands: Sequence[Sequence[WireTensor]], tensors: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    datas = [_divided(operand) for operand in operands]
    cut = gathering.tiles(list(map(len, datas[-1])))
    overwrite(device, call.kind, call.expression, operands[-1][0].dtype.name, cut, datas, tensors)


def _divided(tensors: Sequence[WireTensor]) -> list[memoryview]:
    if max(tensor.data.nbytes for tensor in tensors) <= gathering.TILE_BYTES:
        return [tensor.data for tensor in tensors]
    return [tensor.data[piece] for tensor in tensors for piece in gathering.pieces(tensor.data.nbytes)]


def overwrite(
    device: Device,
    kind: Kind,
    expression: Expression,
    dtype: str,
    cut: Iterable[gathering.Tile],
    operands: Sequence[Sequence[memoryview]],
    tensors: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Overwrite the tensors of the last operand with the values of an elementwise expression, or with its gradients.

    On a device that computes in place. `operands` are those that are needed; tensor parameters have one element each.
    """

    def work(*elements: Tensor) -> None:
        if kind == "quantize":
            tiles.forward(device, expression, elements[-1], tensors)
        else:
            tiles.backward(device, expression, elements[0] if len(elements) > 1 else None, elements[-1])

    gathering.overwrite(memory.TORCH_DTYPES[dtype], cut, operands, work)


def _whole_gradients(device: Device, call: Call) -> tuple[list[WireTensor], dict[str, Tensor]]:
    """`grad_x` of each tensor, and the gradient of each tensor parameter, summed over them from left to right."""
    assert call.grad_output is not None
    tensors = {name: device.lift(tensor) for name, tensor in parameters(call).items()}
    inputs: Sequence[WireTensor | None] = _inputs(call) or [None] * len(call.grad_output.tensors)
    results = []
    totals: dict[str, Tensor] = {}
    for x, grad_output in zip(inputs, call.grad_output.tensors, strict=True):
        elements, (placed,) = gathering.gather(device, (grad_output,))
        gradients = tiles.backward_whole(
            device, call.expression, None if x is None else _on_host(x), memory.shaped(elements, placed), tensors
        )
        results.append(placed)
        for name, gradient in gradients.items():
            totals[name] = totals[name] + gradient if name in totals else gradient
    device.synchronize()
    return results, totals


def parameters(call: Call) -> dict[str, Tensor]:
    """The tensor parameters on the host; those of one element 0-d, so that they meet flat operands."""
    tensors = {}
    for name, parameter in call.tensors.items():
        tensor = _on_host(parameter)
        one_for_all = parameter.size == 1 and call.kind == "quantize"
        tensors[name] = tensor.view(()) if one_for_all else tensor
    return tensors


def _on_host(tensor: WireTensor) -> Tensor:
    return memory.shaped(memory.shared_flat(tensor)[0], tensor)


def _inputs(call: Call) -> Sequence[WireTensor] | None:
    """The tensors of `x`, where the gradient depends on them."""
    return call.x.tensors if call.x is not None and call.expression.backward_reads_x else None


def _lie_alike(call: Call) -> bool:
    inputs = _inputs(call)
    assert call.grad_output is not None
    return inputs is None or all(x.fortran == g.fortran for x, g in zip(inputs, call.grad_output.tensors, strict=True))


def in_order_of(like: WireTensor, tensor: WireTensor) -> WireTensor:
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
    memory.shaped(elements, target).copy_(_on_host(tensor))
    return target
