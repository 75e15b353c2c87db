"""What `service.client.torch` and `service.client.jax` share: their checked arguments, and a property of gradients."""

from __future__ import annotations

from collections.abc import Sequence

from service.client.blocking import Client
from service.ops import Expression, parse


def expression_of(expression: str | Expression) -> Expression:
    """The expression, read where it is text; `TypeError` where it is neither text nor a value."""
    if not isinstance(expression, str | Expression):
        raise TypeError(f"the expression is of type {type(expression).__name__}; allowed: a str or an operator of service.ops")
    return parse(expression) if isinstance(expression, str) else expression


def client_of(client: Client) -> Client:
    """The client; `TypeError` where it is another one: gradients are waited for."""
    if not isinstance(client, Client):
        raise TypeError(f"the client is of type {type(client).__name__}; allowed: a service.client.Client")
    return client


def is_diagonal(expression: Expression, names: Sequence[str]) -> bool:
    """Whether each element of `grad_x` is a multiple of that element of `grad_output`, and there is no other gradient.

    Such a map is its own transpose, and does not care how the elements are arranged. `names` are those of
    the tensors that go with the call.
    """
    return expression.elementwise and not names
