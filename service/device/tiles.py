"""Expressions over large operands, a tile at a time.

On the CPU a tile stays in cache while the chain passes over it; on CUDA tiles let a tensor larger than
the device's memory through, and grow smaller where that is short. Every element goes through the same
operations as in one piece, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from service.device.devices import Device
from service.device.faults import is_out_of_memory
from service.ops import Expression, Operator, vectors

Result = TypeVar("Result")
# Does something to a tile, given what of other tensors meets it. It must not have changed the tile when it
# finds that memory is short.
Step = Callable[[Tensor, Mapping[str, Tensor]], None]

# Below this size it takes longer to find the kernel than it saves.
_VECTORS_FROM_BYTES = 64 * 1024
# How much smaller the next tiles are where memory was short.
_SHRINK = 4


def forward(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the 1-d host tensor `x` with `expression(x)`; tensor parameters have one element each."""
    if device.computes_in_place and not tensors and x.nbytes >= _VECTORS_FROM_BYTES:
        kernel = vectors.kernel(expression, str(x.dtype).removeprefix("torch."))
        if kernel is not None:
            kernel(x.numpy())
            return
    if device.computes_in_place and x.nbytes <= device.tile_bytes:
        expression.forward(x, tensors, out=x)
        return
    lifted = {name: device.lift(tensor) for name, tensor in tensors.items()}

    def step(tile: Tensor, _: Mapping[str, Tensor]) -> None:
        on_device = device.lift(tile)
        device.lower(expression.forward(on_device, lifted, out=on_device), tile)

    _for_each_tile(device, x, {}, step)


def forward_with_tensors(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the host tensor `x`, of any shape and layout, with `expression(x)`.

    Tensor parameters, which are on the host as well, broadcast to it and are cut along with it.
    """

    def step(tile: Tensor, parts: Mapping[str, Tensor]) -> None:
        on_device = device.lift(tile)
        lifted = {name: device.lift(part) for name, part in parts.items()}
        device.lower(expression.forward(on_device, lifted, out=on_device), tile)

    _for_each_tile(device, x, tensors, step)


def forward_by_segments(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the host tensor `x` with `expression(x)`, in as few passes over it as its reductions allow."""
    for segment in expression.segments:
        if isinstance(segment, Operator):
            forward_reduced(device, segment, x)
        else:
            forward_with_tensors(device, segment, x, tensors)


def forward_reduced(device: Device, operator: Operator, x: Tensor) -> None:
    """Overwrite the host tensor `x` with `operator(x)`, for an operator that first reduces over all of it."""

    def whole() -> None:
        on_device = device.lift(x)
        overwrite = operator.pointwise(on_device)
        for tile, _ in _cut(on_device, {}, device.tile_bytes):
            overwrite(tile)
        device.lower(on_device, x)

    _again_where_memory_was_short(device, whole)


def backward(device: Device, expression: Expression, x: Tensor | None, grad_output: Tensor) -> None:
    """Overwrite the 1-d host tensor `grad_output` with `grad_x`; the expression names no tensor."""

    def step(tile: Tensor, inputs: Mapping[str, Tensor]) -> None:
        on_device = device.lift(tile)
        input_on_device = device.lift(inputs["x"]) if inputs else None
        device.lower(expression.backward(input_on_device, on_device, out=on_device).grad_x, tile)

    _for_each_tile(device, grad_output, {} if x is None else {"x": x}, step)


def backward_whole(
    device: Device, expression: Expression, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Overwrite the host tensor `grad_output` with `grad_x`; the gradients of tensor parameters, on the device.

    In one piece, because of the sums over it. `tensors` are on the device.
    """

    def whole() -> dict[str, Tensor]:
        gradients = expression.backward(None if x is None else device.lift(x), device.lift(grad_output), tensors)
        device.lower(gradients.grad_x, grad_output)
        return gradients.by_name()

    return _again_where_memory_was_short(device, whole)


def for_each(device: Device, x: Tensor, work: Callable[[Tensor, int], None]) -> None:
    """Do `work` on every tile of the 1-d host tensor `x`, in order; it gets the tile, and at which element that starts.

    All tiles but the last have a multiple of eight elements. It is done again, in smaller tiles, where memory was short.
    """
    start = x.storage_offset()
    _for_each_tile(device, x, {}, lambda tile, _: work(tile, int(tile.storage_offset() - start)))


def _for_each_tile(device: Device, x: Tensor, tensors: Mapping[str, Tensor], step: Step) -> None:
    for tile, parts in _cut(x, tensors, device.tile_bytes):
        _fit(device, tile, parts, step, device.tile_bytes)


def _fit(device: Device, tile: Tensor, parts: Mapping[str, Tensor], step: Step, tile_bytes: int) -> None:
    """Do a step on a tile; where the device has no memory for it, on ever smaller parts of it."""
    try:
        step(tile, parts)
        return
    except Exception as error:
        if tile_bytes <= device.least_tile_bytes or not _can_try_again(device, error):
            raise
    # Behind the handler nothing refers any more to the frames of the error, and to the tensors in them.
    device.release()
    smaller_bytes = max(tile_bytes // _SHRINK, device.least_tile_bytes)
    for smaller, its_parts in _cut(tile, parts, smaller_bytes):
        _fit(device, smaller, its_parts, step, smaller_bytes)


def _again_where_memory_was_short(device: Device, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Exception as error:
        if not _can_try_again(device, error):
            raise
    device.release()
    return work()


def _can_try_again(device: Device, error: Exception) -> bool:
    """Whether memory was short, and the operands are as they were: in place, some of it may be done already."""
    return is_out_of_memory(error) and not device.computes_in_place


def _cut(x: Tensor, tensors: Mapping[str, Tensor], tile_bytes: int) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    """Tiles of `x` of about `tile_bytes`, and what of the tensors broadcasts to each.

    Cut along the dimension in which neighbours lie farthest apart, and within a slice of it again where
    one slice is still too large.
    """
    if x.nbytes <= tile_bytes:
        yield x, tensors
        return
    axis = max((axis for axis in range(x.dim()) if x.shape[axis] > 1), key=x.stride)
    size = x.shape[axis]
    step = max(1, size * tile_bytes // x.nbytes)
    for start, part in zip(range(0, size, step), torch.split(x, step, axis), strict=True):
        parts = {name: _narrow(tensor, axis - x.dim(), start, part.shape[axis]) for name, tensor in tensors.items()}
        yield from _cut(part, parts, tile_bytes)


def _narrow(tensor: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The part of a broadcasting tensor that meets a slice along `axis`, which counts from the end."""
    if tensor.dim() < -axis or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, start, length)
