"""The operators as the engine runs them, for measuring them alone.

The only place of the benchmarks that knows how the service walks over a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from service.device import tiles
from service.device.devices import Cpu
from service.ops import Expression, Operator

_CPU = Cpu("measured")


def run_in_place(expression: Expression, x: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """Replace `x`, of any shape, by `y`; tensor parameters broadcast to it."""
    for segment in expression.segments:
        if isinstance(segment, Operator):
            tiles.forward_reduced(_CPU, segment, x)
        else:
            tiles.forward_with_tensors(_CPU, segment, x, tensors or {})
    return x
