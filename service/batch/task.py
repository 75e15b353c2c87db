"""What a job does to every file: values only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from service.call import Kind
from service.ops import Expression
from service.wire.message import WireTensor


@dataclass(frozen=True)
class Task:
    """The expression, the tensors that it names, and the direction."""

    kind: Kind
    expression: Expression
    tensors: Mapping[str, WireTensor] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """The expression as it is written; equal expressions are written alike."""
        return str(self.expression)

    @property
    def result(self) -> str:
        """What an answer calls that which is written."""
        return "y" if self.kind == "quantize" else "grad_x"

    @cached_property
    def is_cuttable(self) -> bool:
        """Whether a tensor may be computed in pieces: no element of the result depends on another element or on its place."""
        return self.expression.elementwise and all(tensor.size == 1 for tensor in self.tensors.values())

    @cached_property
    def scalars(self) -> Mapping[str, WireTensor]:
        """The tensors of one element without dimensions, as they meet a piece of a tensor."""
        return {name: tensor._replace(shape=(), fortran=False) for name, tensor in self.tensors.items()}

    @cached_property
    def tensor_digests(self) -> Mapping[str, str]:
        """What tells two tensors of one name apart: dtype, shape and a SHA-256 of the elements."""
        return {name: _digest(tensor) for name, tensor in sorted(self.tensors.items())}


def _digest(tensor: WireTensor) -> str:
    order = "F" if tensor.fortran else "C"
    return f"{tensor.dtype.name} {tensor.shape} {order} {hashlib.sha256(tensor.data).hexdigest()}"
