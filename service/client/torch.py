"""Quantizers on a server as parts of a network in torch: `POST /quantize` forward, `POST /grad` backward.

`RemoteQuantizer` is the module, `quantize` the function. The bits are those of the server, which are the
drop-in's (`service.quantize`) but for sums: the gradients of broadcast tensor parameters and of
`clamp_by_linear` are summed in the order that the server defines, where the drop-in sums as PyTorch does.

Nothing is sent that is not needed: no gradient is asked for where none is wanted, `x` is neither kept nor
sent where the gradient does not depend on it, and where the gradient is `grad_output` itself there is no call.
"""

# ruff: noqa: ARG004, autograd hands every function a ctx
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from service.client.blocking import Client
from service.client.differentiation import client_of, expression_of, is_diagonal
from service.client.structure import Structure
from service.ops import Expression

__all__ = ["RemoteQuantizer", "quantize"]

Tensors: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor]"
SomeTensors = TypeVar("SomeTensors", bound=Tensors)


def quantize(expression: str | Expression, client: Client, /, x: SomeTensors, **tensors: Tensor) -> SomeTensors:
    """Quantize `x` on a server, differentiably: `client.quantize`, with `client.grad` as its backward.

    Arguments:
        expression: such as "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)", or the same as a value.
        client: whom to ask, in the forward and in the backward pass.
        x: a tensor of any shape, on any device, or a list, tuple or dict of them, which are one call.
        tensors: those that the expression names, by their names; they receive gradients as `x` does.

    Returns:
        `y`, in the structure of `x`; dtypes, shapes and devices are those of `x`.

    Works under `torch.func` too: under `vmap` an elementwise chain without tensors is one call, any other
    expression one call for each example. Such a chain is differentiable any number of times, as its
    straight-through surrogate is; others are once, and then raise NotImplementedError. There is no forward
    mode. `torch.compile` leaves the call out of its graphs; with `fullgraph=True` it says so and fails.

    Raises:
        TypeError: an argument is of another type.
        StequantError: as `Client.quantize` does; in the backward pass, as `Client.grad` does.

    >>> quantize("clamp(0, 1)", Client(), torch.ones(3, requires_grad=True)).sum().backward()  # doctest: +SKIP

    """
    return cast(SomeTensors, _call_server(expression, client, x, tensors))


class RemoteQuantizer(torch.nn.Module):
    """A quantizer on a server as a layer: `quantize` with its expression, its client and tensors of its own.

    Arguments:
        expression: as for `quantize`. A wrong one is refused here.
        client: as for `quantize`; copies of the module share it.
        tensors: those that the expression names and the module holds, as attributes of these names: an
            `nn.Parameter` is learned, another tensor is a buffer. The rest is given in each call, where a
            tensor takes the place of one that the module holds.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the expression does not name such a tensor, or a module has another attribute of its name.
        RequestError: the expression cannot be read (`BadExpression`, `BadParameter`, …).

    >>> scale = torch.nn.Parameter(torch.tensor(2.0))
    >>> RemoteQuantizer("affine_k_bit_quantize(k=4, w=scale, b=0)", Client(), scale=scale)
    RemoteQuantizer('affine_k_bit_quantize(k=4, w=scale, b=0)', client=Client('http://127.0.0.1:8000'))

    """

    def __init__(self, expression: str | Expression, client: Client, /, **tensors: Tensor) -> None:
        super().__init__()
        self.expression = expression_of(expression)
        self.client = client_of(client)
        self._held = tuple(tensors)
        for name, tensor in tensors.items():
            self._hold(name, _tensor(tensor, name))

    def forward(self, x: SomeTensors, /, **tensors: Tensor) -> SomeTensors:
        """`y`, in the structure of `x`; `tensors` as for `quantize`, beside those that the module holds."""
        held = {name: getattr(self, name) for name in self._held}
        return quantize(self.expression, self.client, x, **(held | tensors))

    def extra_repr(self) -> str:
        """The expression and the client."""
        return f"{str(self.expression)!r}, client={self.client!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Averaged models and trainers copy modules; connections cannot be copied.
        memo[id(self.client)] = self.client
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def _hold(self, name: str, tensor: Tensor) -> None:
        if name not in self.expression.tensor_names:
            raise ValueError(f"'{self.expression}' names no tensor {name!r}; it names {_listed(self.expression.tensor_names)}")
        if hasattr(self, name):
            raise ValueError(f"a module has another attribute {name!r}: name the tensor otherwise, or give it in each call")
        if isinstance(tensor, torch.nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)


# A call --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Remote:
    """An expression on a server, applied to a row of tensors: `count` to be quantized, then those of these names."""

    client: Client
    expression: Expression
    count: int
    names: tuple[str, ...]

    @property
    def is_diagonal(self) -> bool:
        """See `differentiation.is_diagonal`."""
        return is_diagonal(self.expression, self.names)

    @property
    def reads_x(self) -> bool:
        """Whether the gradients depend on what was quantized."""
        return self.expression.backward_reads_x

    def quantize(self, row: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`y` for each x; the row is `(*xs, *named)`."""
        xs, named = row[: self.count], row[self.count :]
        return self._flat(self.client.quantize(self.expression, self._joined(xs), **self._by_name(named)))

    def grad(self, row: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`grad_x` for each x, then the gradients of the named ones.

        The row is `(*xs, *grad_outputs, *named)`, without the xs where the gradients do not depend on them.
        """
        start = self.count if self.reads_x else 0
        xs, grad_outputs, named = row[:start], row[start : start + self.count], row[start + self.count :]
        operands = self._joined(xs) if xs else None, self._joined(grad_outputs)
        if not named:
            return self._flat(self.client.grad(self.expression, *operands))
        grad_xs, grads = self.client.grad(self.expression, *operands, **self._by_name(named))
        return (*self._flat(grad_xs), *(cast(Tensor, grads[name]) for name in self.names))

    def _joined(self, tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """As the client takes them. One goes alone, so that errors call it `x` and not `x[0]`."""
        return tensors[0] if self.count == 1 else tensors

    def _flat(self, tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (tensors,) if isinstance(tensors, Tensor) else tensors

    def _by_name(self, named: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip(self.names, named, strict=True))


# Dynamo would look for graphs in every function of the HTTP client. (Decorating imports the compiler, 1.9 s;
# so does every optimizer.)
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _call_server(expression: str | Expression, client: Client, x: Tensors, tensors: Mapping[str, Tensor]) -> Tensors:
    structure = Structure.of(x, "x")
    xs = [_tensor(one, label) for label, one in structure.split(x, "x")]
    named = [_tensor(one, name) for name, one in tensors.items()]
    remote = _Remote(client_of(client), expression_of(expression), len(xs), tuple(tensors))
    return cast(Tensors, structure.join(_apply(_Quantize, remote, *xs, *named)))


class _Quantize(torch.autograd.Function):
    """`_Remote.quantize`, with `_Grad` as its backward."""

    @staticmethod
    def forward(remote: _Remote, *row: Tensor) -> tuple[Tensor, ...]:
        return remote.quantize(row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        remote, *row = inputs
        ctx.remote = remote
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(row if remote.reads_x else row[remote.count :]))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        remote: _Remote = ctx.remote
        of_xs, of_named = ctx.needs_input_grad[1 : 1 + remote.count], ctx.needs_input_grad[1 + remote.count :]
        wanted = [grad_output if of_x or any(of_named) else None for grad_output, of_x in zip(grad_outputs, of_xs, strict=True)]
        if remote.expression.backward_is_identity:
            return (None, *wanted)
        start = remote.count if remote.reads_x else 0
        saved = ctx.saved_tensors
        return (None, *_gradients(remote, saved[:start], wanted, saved[start:]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        _refuse_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], remote: _Remote, *row: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _mapped(_Quantize, info.batch_size, in_dims[1:], remote, row), 0


class _Grad(torch.autograd.Function):
    """`_Remote.grad`, differentiable in `grad_output` where it is its own transpose."""

    @staticmethod
    def forward(remote: _Remote, *row: Tensor) -> tuple[Tensor, ...]:
        return remote.grad(row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        remote, *row = inputs
        ctx.remote = remote
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(row[: remote.count] if remote.reads_x else ()))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        remote: _Remote = ctx.remote
        if not remote.is_diagonal:
            raise NotImplementedError(
                f"a server gives the first derivative of '{remote.expression}', not the second; service.quantize, "
                "which computes in this process, has both"
            )
        xs = ctx.saved_tensors
        return (None, *(None for _ in xs), *_gradients(remote, xs, grad_outputs, ()))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> NoReturn:
        _refuse_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], remote: _Remote, *row: Tensor) -> tuple[tuple[Tensor, ...], int]:
        return _mapped(_Grad, info.batch_size, in_dims[1:], remote, row), 0


def _gradients(
    remote: _Remote, xs: Sequence[Tensor], grad_outputs: Sequence[Tensor | None], named: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """`grad_x` for each `grad_output`, None for None, then the gradients of the named ones."""
    present = [index for index, grad_output in enumerate(grad_outputs) if grad_output is not None]
    if not present:
        return (None,) * (remote.count + len(named))
    row = (*(xs[index] for index in present if xs), *(grad_outputs[index] for index in present), *named)
    grads = _apply(_Grad, replace(remote, count=len(present)), *row)
    grad_xs = dict(zip(present, grads[: len(present)], strict=True))
    return (*(grad_xs.get(index) for index in range(remote.count)), *grads[len(present) :])


def _mapped(
    function: type[torch.autograd.Function],
    batch_size: int,
    dims: tuple[int | None, ...],
    remote: _Remote,
    row: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """The function on every example of a batch, whose dimension in each tensor is given; results have it in front."""
    placed = zip(row, dims, strict=True)
    batched = [one.expand(batch_size, *one.shape) if dim is None else one.movedim(dim, 0) for one, dim in placed]
    if remote.is_diagonal:
        return _apply(function, remote, *batched)
    if not batch_size:
        raise ValueError(f"vmap has no examples; '{remote.expression}' is asked for one at a time, so that there must be one")
    examples = (_apply(function, remote, *example) for example in zip(*batched, strict=True))
    return tuple(map(torch.stack, zip(*examples, strict=True)))


def _refuse_forward_mode() -> NoReturn:
    raise NotImplementedError(
        "a server gives gradients (reverse mode), not directional derivatives (forward mode): "
        "use grad, vjp or jacrev in place of jvp and jacfwd, and jacrev(jacrev(f)) in place of hessian(f)"
    )


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor, ...]:
    """`function.apply`, which carries no types, with one."""
    results: tuple[Tensor, ...] = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return results


# Arguments -----------------------------------------------------------------------------------------------


def _tensor(value: object, label: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{label} is of type {type(value).__name__}; allowed: a torch tensor, and for 'x' a list or a dict of them")
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
