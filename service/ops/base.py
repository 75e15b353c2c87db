"""What an operator is: a frozen value with parameters, a forward and a backward; and how operators chain.

Nothing here, nor in any module of this package, imports torch when it is imported: a client without
torch can name operators, print and parse them. The functions that do arithmetic import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, reduce
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from service.dtypes import DType
from service.errors import ChainTooLong
from service.ops import parameters

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

MAX_CHAIN_LENGTH = 32
RESERVED_NAMES = frozenset({"x", "y", "grad_output", "inf", "nan"})
TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def tensor_name(name: str) -> str:
    """`name`, when a tensor may be called so; else `ValueError`."""
    if not TENSOR_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise ValueError(f"{name!r} cannot name a tensor")
    return name


class Gradients(NamedTuple):
    """The gradient with respect to `x`, and one term for each use of a named tensor, in chain order."""

    grad_x: Tensor
    terms: tuple[tuple[str, Tensor], ...] = ()

    def by_name(self) -> dict[str, Tensor]:
        """One gradient for each named tensor: its terms added left to right, in their dtype."""
        totals: dict[str, Tensor] = {}
        for name, term in self.terms:
            totals[name] = totals[name] + term if name in totals else term
        return totals


class Expression:
    """An operator or a chain of operators; what both can do.

    Two expressions are equal when they print the same: `-0.0` and `0.0` are different bounds, because
    they give different bits.
    """

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The operators, in the order in which they are applied."""
        raise NotImplementedError

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """`y`, of x's dtype and shape, written into `out` where it is given (`out` may be `x`)."""
        raise NotImplementedError

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """The gradients; `out` (which may be `grad_output`) may be used for `grad_x`.

        `x` may be None where `backward_reads_x` is false. An identity returns `grad_output` itself.
        """
        raise NotImplementedError

    def passes(self, x: Tensor) -> Tensor:
        """The mask outside which `grad_x` is 0 and inside which it is `grad_output`; for gradients that are masks."""
        raise NotImplementedError

    @cached_property
    def elementwise(self) -> bool:
        """Whether each element of `y` depends on the same element of `x` alone."""
        return all(operator.is_elementwise for operator in self.operators)

    @cached_property
    def backward_reads_x(self) -> bool:
        """Whether the gradients depend on `x`."""
        return any(operator.reads_x for operator in self.operators)

    @cached_property
    def segments(self) -> tuple[Chain | Operator, ...]:
        """The expression cut into elementwise chains, and single operators that are not elementwise."""
        parts: list[Chain | Operator] = []
        for elementwise, group in groupby(self.operators, lambda operator: operator.is_elementwise):
            operators = tuple(group)
            parts += [Chain(operators)] if elementwise else operators
        return tuple(parts)

    @cached_property
    def backward_is_identity(self) -> bool:
        """Whether `grad_x` is `grad_output` itself, and there is no other gradient."""
        return all(operator.is_straight_through for operator in self.operators)

    @cached_property
    def gradient_is_mask(self) -> bool:
        """Whether `grad_x` is `grad_output` where a mask that depends on `x` alone is set, and 0 elsewhere."""
        return all(operator.gradient_is_masked for operator in self.operators)

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of the tensors that travel with a call, each once, in the order of the chain."""
        return tuple(dict.fromkeys(name for operator in self.operators for name in operator.own_tensor_names))

    def check(self, dtype: DType) -> None:
        """Raise `ParameterDoesNotFit` when a parameter cannot be represented in this dtype."""
        if dtype.name not in self._fitting:
            for operator in self.operators:
                operator.check_dtype(dtype)
            self._fitting.add(dtype.name)

    @cached_property
    def _fitting(self) -> set[str]:
        """The dtypes that were checked and found to fit: the same expression meets the same dtype again and again."""
        return set()

    def __or__(self, other: Expression) -> Chain:
        if not isinstance(other, Expression):
            return NotImplemented
        return Chain((*self.operators, *other.operators))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.operators)

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Expression) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


class Operator(Expression, BaseModel):
    """One operator. A subclass is its parameters (fields), its mathematics and its documentation.

    The docstring is read by the catalogue: its first line, the paragraph that starts with `y =`, the
    one that starts with `grad_x =`, and the one that starts with `Sources:`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    is_elementwise: ClassVar[bool] = True
    is_straight_through: ClassVar[bool] = False
    gradient_is_masked: ClassVar[bool] = False
    has_codes: ClassVar[bool] = False

    def __init__(self, *values: object, **keywords: object) -> None:
        """Parameters by position or by keyword.

        Raises `UnknownParameter`, `MissingParameter`, `RepeatedParameter` and `BadParameter`, as a call
        over HTTP would be answered.
        """
        given = parameters.matched(type(self), values, keywords.items())
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise parameters.refusal(type(self), given, error) from None

    @property
    def operators(self) -> tuple[Operator, ...]:
        """An operator is a chain of one."""
        return (self,)

    @property
    def reads_x(self) -> bool:
        """Whether this operator's backward reads its own input."""
        return False

    def pointwise(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """What overwrites a part of `x` with that part of `y`, after whatever has to be reduced over all of `x`.

        For operators that are not elementwise.
        """
        raise NotImplementedError

    def vectorized(self, dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], object] | None:
        """What overwrites a NumPy array of this dtype with `y`; None where NumPy has nothing like it.

        Used by `service.ops.vectors`, which also says what for.
        """
        return None

    @property
    def code_bits(self) -> int | None:
        """In how many bits the codes of inputs in [0, 1] fit; None where that is not what the operator is about."""
        return None

    def codes(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The integers before scaling, in x's dtype, written into `out` where it is given (`out` may be `x`).

        For operators that have codes: `decoded(codes(x))` is `forward(x)`, bit for bit.
        """
        raise NotImplementedError

    def decoded(self, codes: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """`y` of its codes, for operators that have them."""
        raise NotImplementedError

    @property
    def own_tensor_names(self) -> tuple[str, ...]:
        """The tensors this operator names, in the order of its parameters."""
        return tuple(value for name in self.parameters() if isinstance(value := getattr(self, name), str))

    def check_dtype(self, dtype: DType) -> None:
        """Raise `ParameterDoesNotFit` when a parameter cannot be represented in this dtype."""

    @classmethod
    def parameters(cls) -> dict[str, FieldInfo]:
        """The parameters by name, in their order."""
        return cls.model_fields

    def __str__(self) -> str:
        inner = ", ".join(f"{name}={format_value(getattr(self, name))}" for name in self.parameters())
        return f"{self.name}({inner})"

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.parameters())
        return f"{type(self).__name__}({inner})"

    # pydantic gives a model an __eq__, a __hash__ and an __iter__ of its own.
    __eq__ = Expression.__eq__
    __hash__ = Expression.__hash__
    __iter__ = Expression.__iter__  # type: ignore[assignment]


class Chain(Expression):
    """Operators applied left to right; its gradient is the chain rule over theirs."""

    def __init__(self, operators: Iterable[Operator]) -> None:
        self._operators = tuple(operators)
        if not 1 <= len(self._operators) <= MAX_CHAIN_LENGTH:
            raise ChainTooLong(f"a chain has 1 to {MAX_CHAIN_LENGTH} operators, this one has {len(self._operators)}")

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The operators, in the order in which they are applied."""
        return self._operators

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None) -> Tensor:
        """Apply every operator in turn; after the first, in place."""
        first, *rest = self._operators
        y = first.forward(x, tensors, out=out)
        for operator in rest:
            y = operator.forward(y, tensors, out=y)
        return y

    def backward(
        self, x: Tensor | None, grad_output: Tensor, tensors: Mapping[str, Tensor] | None = None, *, out: Tensor | None = None
    ) -> Gradients:
        """The chain rule, from the last operator to the first.

        Only the inputs that a backward reads are computed, and nothing after the last of them.
        """
        inputs = self._inputs_that_are_read(x, tensors)
        gradient = grad_output
        terms: tuple[tuple[str, Tensor], ...] = ()
        for index in reversed(range(len(self._operators))):
            step = self._operators[index].backward(inputs.get(index), gradient, tensors, out=out)
            gradient, terms = step.grad_x, (*step.terms, *terms)
        return Gradients(gradient, terms)

    def passes(self, x: Tensor) -> Tensor:
        """Where every operator of the chain lets the gradient pass."""
        import torch

        masks = [self._operators[index].passes(value) for index, value in self._inputs_that_are_read(x, None).items()]
        return reduce(torch.logical_and, masks) if masks else torch.ones_like(x, dtype=torch.bool)

    def _inputs_that_are_read(self, x: Tensor | None, tensors: Mapping[str, Tensor] | None) -> dict[int, Tensor]:
        read = [index for index, operator in enumerate(self._operators) if operator.reads_x]
        if not read:
            return {}
        if x is None:
            raise ValueError(f"the gradient of {self} depends on x")
        values = accumulate(self._operators[: read[-1]], lambda value, operator: operator.forward(value, tensors), initial=x)
        return {index: value for index, value in enumerate(values) if index in read}

    def __str__(self) -> str:
        return " | ".join(map(str, self._operators))

    def __repr__(self) -> str:
        return " | ".join(map(repr, self._operators))


REGISTRY: dict[str, type[Operator]] = {}
AnyOperator = TypeVar("AnyOperator", bound=type[Operator])


def register(cls: AnyOperator) -> AnyOperator:
    """Make the operator known to the parser, the catalogue, the server and the command line."""
    if cls.name in REGISTRY:
        raise ValueError(f"two operators are called {cls.name!r}")
    REGISTRY[cls.name] = cls
    return cls


def format_value(value: float | int | str) -> str:
    """A parameter's value as the expression syntax writes it: shortest digits that read back the same."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
