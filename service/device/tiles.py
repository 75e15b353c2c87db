"""Expressions over large operands, a tile at a time.

On the CPU a tile stays in cache while the chain passes over it; on CUDA tiles let a tensor larger than
the device's memory through. Every element goes through the same operations as in one piece, so the
bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from service.device.devices import Device
from service.ops import Expression, Operator


def forward(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the 1-d host tensor `x` with `expression(x)`; tensor parameters have one element each."""
    if device.computes_in_place and x.nbytes <= device.tile_bytes:
        expression.forward(x, tensors, out=x)
        return
    for tile in _split(device, x):
        on_device = device.lift(tile)
        device.lower(expression.forward(on_device, tensors, out=on_device), tile)


def forward_with_tensors(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the host tensor `x`, of any shape and layout, with `expression(x)`.

    Tensor parameters, which are on the device, broadcast to it and are cut along with it.
    """
    for tile, parts in _cut(x, tensors, device.tile_bytes):
        on_device = device.lift(tile)
        device.lower(expression.forward(on_device, parts, out=on_device), tile)


def forward_reduced(device: Device, operator: Operator, x: Tensor) -> None:
    """Overwrite the host tensor `x` with `operator(x)`, for an operator that first reduces over all of it."""
    on_device = device.lift(x)
    overwrite = operator.pointwise(on_device)
    for tile, _ in _cut(on_device, {}, device.tile_bytes):
        overwrite(tile)
    device.lower(on_device, x)


def backward(device: Device, expression: Expression, x: Tensor | None, grad_output: Tensor) -> None:
    """Overwrite the 1-d host tensor `grad_output` with `grad_x`; the expression names no tensor."""
    tiles = _split(device, grad_output)
    inputs = [None] * len(tiles) if x is None else _split(device, x)
    for tile, input_tile in zip(tiles, inputs, strict=True):
        on_device = device.lift(tile)
        input_on_device = None if input_tile is None else device.lift(input_tile)
        gradients = expression.backward(input_on_device, on_device, out=on_device)
        if gradients.grad_x is not tile:
            device.lower(gradients.grad_x, tile)


def _split(device: Device, x: Tensor) -> Sequence[Tensor]:
    length = device.tile_bytes // x.element_size()
    return (x,) if x.numel() <= length else torch.split(x, length)


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
    for start in range(0, size, step):
        length = min(step, size - start)
        parts = {name: _narrow(tensor, axis - x.dim(), start, length) for name, tensor in tensors.items()}
        yield from _cut(x.narrow(axis, start, length), parts, tile_bytes)


def _narrow(tensor: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The part of a broadcasting tensor that meets a slice along `axis`, which counts from the end."""
    if tensor.dim() < -axis or tensor.shape[axis] == 1:
        return tensor
    return tensor.narrow(axis, start, length)
