"""One tensor, several in a list, or several by name: taken apart for the wire and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from service.client.tensors import Array, Tensors
from service.errors import StructureMismatch

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Structure:
    """The shape that a caller gave a number of tensors, and expects back."""

    kind: Literal["single", "list", "tuple", "dict"]
    count: int
    names: tuple[str, ...] | None = None

    @classmethod
    def of(cls, value: Tensors, field: str) -> Structure:
        """The structure of what a caller passed as `field`; `TypeError` for names that are not strings."""
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise TypeError(f"{field!r} has the key {name!r}; the names of tensors are strings")
            return cls("dict", len(value), tuple(value))
        if isinstance(value, list | tuple):
            return cls("tuple" if isinstance(value, tuple) else "list", len(value))
        return cls("single", 1)

    def split(self, value: Tensors, field: str) -> list[tuple[str, Array]]:
        """The tensors of `value`, in this structure's order, each with the label that a message calls it by.

        Raises `StructureMismatch` where `value` is structured otherwise; a list and a tuple are the same.
        """
        other = Structure.of(value, field)
        if (self.is_sequence, self.count, set(self.names or ())) != (other.is_sequence, other.count, set(other.names or ())):
            raise StructureMismatch(f"{field!r} is {other}, but 'x' is {self}")
        if isinstance(value, Mapping):
            return [(f"{field}[{name!r}]", value[name]) for name in self.names or ()]
        if isinstance(value, list | tuple):
            return [(f"{field}[{index}]", tensor) for index, tensor in enumerate(value)]
        return [(field, value)]  # type: ignore[list-item]  # a tensor: neither a mapping nor a sequence

    def join(self, tensors: Iterable[Item]) -> Item | list[Item] | tuple[Item, ...] | dict[str, Item]:
        """The tensors, or what came of them, in this structure's order, as the caller gave his."""
        match self.kind:
            case "dict":
                return dict(zip(self.names or (), tensors, strict=True))
            case "list":
                return list(tensors)
            case "tuple":
                return tuple(tensors)
            case "single":
                (tensor,) = tensors
                return tensor

    @property
    def is_sequence(self) -> bool:
        """Whether the tensors stand in an order, without names."""
        return self.kind in ("list", "tuple")

    def __str__(self) -> str:
        match self.kind:
            case "single":
                return "one tensor"
            case "dict":
                return f"a dict of {sorted(self.names or ())}"
        return f"a {self.kind} of {self.count}"
