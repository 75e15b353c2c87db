"""The oracle in PyTorch: each operator's expression as one writes it by hand, run eagerly on the CPU.

`PLAIN` holds the forward, `SURROGATE` a function whose ordinary gradient the operator's backward is.
"""

# ruff: noqa: ARG005, all formulas take the same arguments
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from service.ops import Operator

Formula = Callable[[Any, Tensor, dict[str, Tensor]], Tensor]


def levels(k: int) -> float:
    """`2**k - 1`."""
    return float(2**k - 1)


def _of(value: float | str, tensors: dict[str, Tensor]) -> Any:
    return tensors[value] if isinstance(value, str) else value


PLAIN: dict[str, Formula] = {
    "round": lambda op, x, t: torch.round(x),
    "ceil": lambda op, x, t: torch.ceil(x),
    "floor": lambda op, x, t: torch.floor(x),
    "clamp": lambda op, x, t: torch.clamp(x, op.min_value, op.max_value),
    "step_quantize": lambda op, x, t: torch.round(x / op.step) * op.step,
    "k_bit_quantize": lambda op, x, t: torch.round(x * levels(op.k)) / levels(op.k),
    "affine_k_bit_quantize": lambda op, x, t: _of(op.w, t) * (torch.round(x * levels(op.k)) / levels(op.k)) + _of(op.b, t),
    "clamp_by_linear": lambda op, x, t: (x - torch.min(x)) / (torch.max(x) + op.eps - torch.min(x)),
}


def plain(op: Operator, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The operator's value by the expression written out."""
    return PLAIN[op.name](op, x, tensors)


def _straight(op: Any, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    return x.clone()


def _affine(op: Any, x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    q = torch.round(x.detach() * levels(op.k)) / levels(op.k)
    return _of(op.w, tensors) * (x + (q - x).detach()) + _of(op.b, tensors)


SURROGATE: dict[str, Formula] = {
    "round": _straight,
    "ceil": _straight,
    "floor": _straight,
    "step_quantize": _straight,
    "k_bit_quantize": _straight,
    # PyTorch's own gradient of clamp passes at the bounds; those of maximum() and relu() do not.
    "clamp": PLAIN["clamp"],
    "affine_k_bit_quantize": _affine,
    "clamp_by_linear": PLAIN["clamp_by_linear"],
}
