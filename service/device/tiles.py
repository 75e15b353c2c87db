"""Elementwise expressions over large operands, a tile at a time.

On the CPU a tile stays in cache while the chain passes over it; on CUDA tiles let a tensor larger than
the device's memory through. Every element goes through the same operations as in one piece, so the
bits are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from service.device.devices import Device
from service.ops import Expression


def forward(device: Device, expression: Expression, x: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the 1-d host tensor `x` with `expression(x)`; tensor parameters have one element each."""
    if device.computes_in_place and x.nbytes <= device.tile_bytes:
        expression.forward(x, tensors, out=x)
        return
    for tile in _split(device, x):
        on_device = device.lift(tile)
        device.lower(expression.forward(on_device, tensors, out=on_device), tile)


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
