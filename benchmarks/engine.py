"""The operators as the engine runs them, for measuring them alone.

The only place of the benchmarks that knows how the service walks over a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from service.ops import Expression

BLOCK_ELEMENTS = 2**18  # 1 MiB of float32: x and y of a block stay in a core's cache


def run_in_place(expression: Expression, x: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """Replace `x`, of shape (rows, columns), by `y`.

    A tensor parameter with as many rows is cut into the same blocks, any other is used whole.
    """
    tensors = tensors or {}
    if not expression.elementwise:
        return expression.forward(x, tensors, out=x)
    rows = max(1, BLOCK_ELEMENTS // x.shape[1])
    for start in range(0, x.shape[0], rows):
        block = x[start : start + rows]
        parts = {name: t[start : start + rows] if t.dim() == 2 and len(t) == len(x) else t for name, t in tensors.items()}
        expression.forward(block, parts, out=block)
    return x
