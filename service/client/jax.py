"""Quantizers on a server as functions in JAX: `POST /quantize` forward, `POST /grad` backward.

`RemoteQuantizer` is the function of one expression, `quantize` that of any. Both work under `jit`, `grad`
and `vmap`, for they are a `jax.custom_vjp` around callbacks to the host; the bits are those of the server.

What can be checked of a call without its elements is checked where JAX traces it, with the errors of
`service.errors`; compiled code can only report that a callback failed. float64 needs JAX's own switch,
`jax_enable_x64`, without which JAX makes float32 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from service.call import plan
from service.client.blocking import Client
from service.client.differentiation import client_of, expression_of, is_diagonal
from service.dtypes import dtype
from service.ops import Expression
from service.wire.message import Bundle, WireTensor

__all__ = ["RemoteQuantizer", "quantize"]

Tree = TypeVar("Tree")
HostArray = npt.NDArray[Any]
Row = tuple[jax.Array, ...]
_NO_BYTES = memoryview(b"")


def quantize(expression: str | Expression, client: Client, /, x: Tree, **tensors: jax.typing.ArrayLike) -> Tree:
    """Quantize `x` on a server: `client.quantize`, with `client.grad` as its gradient.

    Arguments:
        expression: such as "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)", or the same as a value.
        client: whom to ask, in the forward and in the backward pass.
        x: an array of any shape, or a pytree of them, which is one call.
        tensors: those that the expression names, by their names; they have gradients as `x` has.

    Returns:
        `y`, a pytree as `x`; dtypes and shapes are those of `x`.

    Under `vmap` an elementwise chain without tensors is one call, any other expression one call for each
    example. Such a chain is differentiable any number of times, as its straight-through surrogate is;
    others are once, and then raise NotImplementedError. There is no forward mode (`jvp`, `jacfwd`).

    Raises:
        TypeError: an argument is of another type.
        RequestError: the call has to change (`BadExpression`, `UnsupportedDtype`, `ShapeMismatch`, …).
        jax.errors.JaxRuntimeError: the server cannot be reached, or refused; the message says why.

    >>> jax.grad(lambda x: quantize("clamp(0, 1)", Client(), x).sum())(jnp.ones(3))  # doctest: +SKIP

    """
    return RemoteQuantizer(expression, client)(x, **tensors)


class RemoteQuantizer:
    """A quantizer on a server as a function of `x` and its tensors: `quantize` for one expression and one client.

    >>> quantizer = RemoteQuantizer("affine_k_bit_quantize(k=4, w=scale, b=0)", Client())
    >>> jax.jit(quantizer)(x, scale=jnp.float32(2))  # doctest: +SKIP

    """

    def __init__(self, expression: str | Expression, client: Client, /) -> None:
        self.expression = expression_of(expression)
        self.client = client_of(client)

    def __call__(self, x: Tree, /, **tensors: jax.typing.ArrayLike) -> Tree:
        """`y`, a pytree as `x`; see `quantize`."""
        leaves, tree = jax.tree.flatten(x)
        xs = tuple(map(jnp.asarray, leaves))
        named = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
        _check(self.expression, xs, named)
        ys = _quantize(_Remote(self.client, self.expression, tuple(named)), xs, tuple(named.values()))
        y: Tree = jax.tree.unflatten(tree, ys)
        return y

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.expression)!r}, client={self.client!r})"


def _check(expression: Expression, xs: Row, named: dict[str, jax.Array]) -> None:
    """Raise what the server would answer, as far as dtypes, shapes and names decide it."""
    x = Bundle(tuple(_described(one) for one in xs), single=len(xs) == 1)
    plan("quantize", expression, {"x": x} | {name: Bundle.of(_described(tensor)) for name, tensor in named.items()})


def _described(array: jax.Array) -> WireTensor:
    return WireTensor(dtype(array.dtype.name), array.shape, _NO_BYTES)


# A call --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Remote:
    """An expression on a server, and the names of the tensors that go with it.

    Compared by its fields: JAX compiles anew for every callback that is not equal to an earlier one.
    """

    client: Client
    expression: Expression
    names: tuple[str, ...]

    @property
    def is_diagonal(self) -> bool:
        """See `differentiation.is_diagonal`."""
        return is_diagonal(self.expression, self.names)

    @property
    def vmap_method(self) -> Literal["broadcast_all", "sequential"]:
        """How `pure_callback` takes a batch: whole, or example by example."""
        return "broadcast_all" if self.is_diagonal else "sequential"


@dataclass(frozen=True, slots=True)
class _Values:
    """The callback of the forward pass: `y` for each x."""

    remote: _Remote

    def __call__(self, xs: Row, named: Row) -> tuple[HostArray, ...]:
        sent = tuple(map(np.asarray, xs))
        return self.remote.client.quantize(self.remote.expression, sent, **_by_name(self.remote, named))


@dataclass(frozen=True, slots=True)
class _Gradients:
    """The callback of the backward pass: `grad_x` for each x, and the gradients of the named tensors."""

    remote: _Remote

    def __call__(self, xs: Row | None, grad_outputs: Row, named: Row) -> tuple[tuple[HostArray, ...], tuple[Any, ...]]:
        sent = None if xs is None else tuple(map(np.asarray, xs)), tuple(map(np.asarray, grad_outputs))
        if not named:
            return self.remote.client.grad(self.remote.expression, *sent), ()
        grad_xs, grads = self.remote.client.grad(self.remote.expression, *sent, **_by_name(self.remote, named))
        return grad_xs, tuple(grads[name] for name in self.remote.names)


def _by_name(remote: _Remote, named: Row) -> dict[str, HostArray]:
    return dict(zip(remote.names, map(np.asarray, named), strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantize(remote: _Remote, xs: Row, named: Row) -> Row:
    ys: Row = jax.pure_callback(_Values(remote), _like(xs), xs, named, vmap_method=remote.vmap_method)
    return ys


def _quantize_forward(remote: _Remote, xs: Row, named: Row) -> tuple[Row, tuple[Row | None, Row]]:
    return _quantize(remote, xs, named), (xs if remote.expression.backward_reads_x else None, named)


def _quantize_backward(remote: _Remote, kept: tuple[Row | None, Row], grad_outputs: Row) -> tuple[Row, Row]:
    if remote.expression.backward_is_identity:
        return grad_outputs, ()
    xs, named = kept
    return _grad(remote, xs, grad_outputs, named)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grad(remote: _Remote, xs: Row | None, grad_outputs: Row, named: Row) -> tuple[Row, Row]:
    shapes = _like(grad_outputs), _like(named)
    grads: tuple[Row, Row] = jax.pure_callback(_Gradients(remote), shapes, xs, grad_outputs, named, vmap_method=remote.vmap_method)
    return grads


def _grad_forward(remote: _Remote, xs: Row | None, grad_outputs: Row, named: Row) -> tuple[tuple[Row, Row], Row | None]:
    if not remote.is_diagonal:
        raise NotImplementedError(f"a server gives the first derivative of '{remote.expression}', not the second")
    return _grad(remote, xs, grad_outputs, named), xs


def _grad_backward(remote: _Remote, xs: Row | None, grad_outputs: tuple[Row, Row]) -> tuple[None, Row, Row]:
    again, _ = _grad(remote, xs, grad_outputs[0], ())
    return None, again, ()


_quantize.defvjp(_quantize_forward, _quantize_backward)
_grad.defvjp(_grad_forward, _grad_backward)


def _like(arrays: Sequence[jax.Array]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)  # type: ignore[no-untyped-call]
