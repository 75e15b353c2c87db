"""An operator's parameters: how values are matched to them, and what they may be, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from annotated_types import Ge, Gt, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from service.errors import BadParameter, MissingParameter, RepeatedParameter, UnknownParameter

if TYPE_CHECKING:
    from service.ops.base import Operator

Value = int | float | str


def matched(cls: type[Operator], positional: Sequence[object], keywords: Iterable[tuple[str, object]]) -> dict[str, object]:
    """The values by parameter name; `UnknownParameter`, `RepeatedParameter` or `MissingParameter` if they do not match."""
    parameters = cls.parameters()
    if len(positional) > len(parameters):
        raise UnknownParameter(f"{cls.name!r} takes {_allowed(cls)}, got {len(positional)} values")
    values: dict[str, object] = dict(zip(parameters, positional, strict=False))
    for key, value in keywords:
        if key not in parameters:
            raise UnknownParameter(f"{cls.name!r} has no parameter {key[:80]!r}; allowed: {_allowed(cls)}")
        if key in values:
            raise RepeatedParameter(f"parameter {key!r} of {cls.name!r} is given more than once")
        values[key] = value
    for key, field in parameters.items():
        if field.is_required() and key not in values:
            raise MissingParameter(f"parameter {key!r} of {cls.name!r} is missing; it takes {_allowed(cls)}")
    return values


def refusal(cls: type[Operator], values: dict[str, object], error: ValidationError) -> BadParameter:
    """What pydantic found wrong with the values, said in our words."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return BadParameter(f"{cls.name}: {first['msg'].removeprefix('Value error, ')}")
    key = str(first["loc"][0])
    return BadParameter(f"parameter {key!r} of {cls.name!r} is {_show(values[key])}; allowed: {allowed_values(cls, key)}")


def allowed_values(cls: type[Operator], parameter: str) -> str:
    """What a parameter may be, in words: for errors, help texts and tables."""
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
    limits = " and ".join(f"{signs[word]} {limit:g}" for word, limit in bounds(cls.parameters()[parameter]).items())
    kind = type_name(cls, parameter)
    words = {"int": "an int", "float": "a finite number", "float or tensor": "a finite number or the name of a tensor"}[kind]
    if kind == "float" and not limits:
        words = "a number, inf or -inf"
    return f"{words} {limits}".rstrip()


def type_name(cls: type[Operator], parameter: str) -> str:
    """`int`, `float` or `float or tensor`."""
    annotation = cls.parameters()[parameter].annotation
    return {int: "int", float: "float"}.get(annotation, "float or tensor")  # type: ignore[arg-type]


def bounds(field: FieldInfo) -> dict[str, float]:
    """The bounds of a parameter in the words of JSON Schema."""
    words = {Ge: ("minimum", "ge"), Gt: ("exclusiveMinimum", "gt"), Le: ("maximum", "le")}
    return {words[type(m)][0]: getattr(m, words[type(m)][1]) for m in field.metadata if type(m) in words}


def _allowed(cls: type[Operator]) -> str:
    return ", ".join(f"{name!r} ({allowed_values(cls, name)})" for name in cls.parameters()) or "no parameters"


def _show(value: object) -> str:
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}…"
