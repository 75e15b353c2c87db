"""A call: an expression and the tensors it is applied to, checked as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from service.errors import (
    BadTensor,
    DtypeMismatch,
    EmptyTensor,
    MissingTensor,
    ShapeMismatch,
    StructureMismatch,
    SurplusTensor,
)
from service.ops import Expression
from service.ops.codes import Output
from service.wire.message import Bundle, Message, WireTensor

Kind = Literal["quantize", "grad"]

# The forms of an answer that a caller may ask for.
OUTPUTS: dict[Kind, tuple[Output, ...]] = {"quantize": ("values", "codes", "packed"), "grad": ("values", "mask")}


class Call(NamedTuple):
    """What the engine computes: `y` of `x`, or the gradients for `grad_output` at `x`.

    `x` is None where a gradient does not depend on it and it was left out. `tensors` holds the tensor
    parameters by name. `output` is the form of the answer; a mask needs `x` alone.
    """

    kind: Kind
    expression: Expression
    x: Bundle | None
    grad_output: Bundle | None = None
    tensors: Mapping[str, WireTensor] = MappingProxyType({})
    output: Output = "values"

    @property
    def operand(self) -> Bundle:
        """The bundle whose structure, shapes and dtypes the answer has."""
        bundle = self.x if self.x is not None else self.grad_output
        assert bundle is not None
        return bundle


def fields(kind: Kind, output: Output = "values") -> tuple[str, ...]:
    """The names of the operands of a call, in the order in which npy bodies hold them."""
    return ("x",) if kind == "quantize" or output == "mask" else ("x", "grad_output")


def plan(kind: Kind, expression: Expression, message: Message, output: Output = "values") -> Call:
    """The call that a message asks for, or the error that says what does not fit."""
    names = expression.tensor_names
    _check_names(kind, expression, message, output)
    x = message.get("x")
    grad_output = message.get("grad_output") if kind == "grad" else None
    if x is not None and grad_output is not None:
        grad_output = _aligned(x, grad_output)
    tensors = {name: _one(name, message[name]) for name in names}
    call = Call(kind, expression, x, grad_output, tensors, output)
    _check_tensors(call)
    return call


def _check_names(kind: Kind, expression: Expression, message: Message, output: Output) -> None:
    names = expression.tensor_names
    operands = fields(kind)
    if not names and tuple(message) == operands:
        return
    allowed = (*operands, *names)
    for name in message:
        if name not in allowed:
            raise SurplusTensor(f"the body holds {name[:80]!r}; '{expression}' takes {_quoted(allowed)}")
    if output == "mask":
        needed = ["x"]
    else:
        needed = [name for name in allowed if name != "x" or kind == "quantize" or expression.backward_reads_x]
    for name in needed:
        if name not in message:
            where = "" if name in operands else " (tensor parameters travel in msgpack or JSON, under their names)"
            raise MissingTensor(f"{name!r} is missing from the body; '{expression}' needs {_quoted(needed)}{where}")


def _aligned(x: Bundle, grad_output: Bundle) -> Bundle:
    """`grad_output` with its tensors in the order of x's; the two must have the same structure."""
    if x.single != grad_output.single or (x.names is None) != (grad_output.names is None):
        raise StructureMismatch(f"'x' is {_structure(x)}, 'grad_output' is {_structure(grad_output)}")
    if len(x.tensors) != len(grad_output.tensors):
        raise StructureMismatch(f"'x' holds {len(x.tensors)} tensors, 'grad_output' {len(grad_output.tensors)}")
    if x.names is not None and grad_output.names is not None and x.names != grad_output.names:
        by_name = dict(zip(grad_output.names, grad_output.tensors, strict=True))
        for name in x.names:
            if name not in by_name:
                raise StructureMismatch(f"'x' holds a tensor {name[:80]!r}, 'grad_output' does not")
        grad_output = Bundle(tuple(by_name[name] for name in x.names), x.names)
    for index, (one, other) in enumerate(zip(x.tensors, grad_output.tensors, strict=True)):
        if one.shape != other.shape:
            raise ShapeMismatch(f"{_place('grad_output', x, index)} has shape {other.shape}, {_place('x', x, index)} {one.shape}")
        if one.dtype is not other.dtype:
            raise DtypeMismatch(
                f"{_place('grad_output', x, index)} has dtype {other.dtype.name}, {_place('x', x, index)} {one.dtype.name}"
            )
    return grad_output


def _check_tensors(call: Call) -> None:
    if call.operand.single and not call.tensors and call.expression.elementwise:
        call.expression.check(call.operand.tensors[0].dtype)
        return
    # Many tensors of one call are mostly alike: each kind is checked once.
    kinds = {(tensor.dtype.name, tensor.shape): tensor for tensor in call.operand.tensors}
    dtypes = {tensor.dtype.name: tensor.dtype for tensor in (*kinds.values(), *call.tensors.values())}
    for dtype in dtypes.values():
        call.expression.check(dtype)
    for name, parameter in call.tensors.items():
        _check_parameter(name, parameter, kinds.values())
    if not call.expression.elementwise:
        for index, tensor in enumerate(call.operand.tensors):
            if 0 in tensor.shape:
                place = _place("x" if call.x is not None else "grad_output", call.operand, index)
                raise EmptyTensor(f"{place} has shape {tensor.shape}; '{call.expression}' needs at least one element")


def _check_parameter(name: str, parameter: WireTensor, operands: Iterable[WireTensor]) -> None:
    for operand in operands:
        if parameter.dtype is not operand.dtype:
            raise DtypeMismatch(f"{name!r} has dtype {parameter.dtype.name}, but 'x' has dtype {operand.dtype.name}")
        if not _broadcasts(parameter.shape, operand.shape):
            raise ShapeMismatch(
                f"{name!r} has shape {parameter.shape}, which does not broadcast to the shape {operand.shape} of 'x'"
            )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    tail = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in zip(shape, tail, strict=True))


def _one(name: str, bundle: Bundle) -> WireTensor:
    if not bundle.single:
        raise BadTensor(f"{name!r} must be one tensor, not {_structure(bundle)}")
    return bundle.tensors[0]


def _structure(bundle: Bundle) -> str:
    return "one tensor" if bundle.single else "a list of tensors" if bundle.names is None else "a map of names to tensors"


def _place(name: str, bundle: Bundle, index: int) -> str:
    if bundle.single:
        return f"'{name}'"
    return f"{name}[{index}]" if bundle.names is None else f"{name}[{bundle.names[index][:80]!r}]"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
