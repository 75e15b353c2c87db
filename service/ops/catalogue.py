"""The operators described as plain data: for `GET /operators`, OpenAPI, the command line and the README."""

from __future__ import annotations

import inspect
import re
from typing import Any

from service.ops.base import REGISTRY, Operator
from service.ops.parameters import bounds, type_name


def describe(cls: type[Operator]) -> dict[str, Any]:
    """One operator's name, parameters, formula, gradient and sources."""
    return {
        "name": cls.name,
        "parameters": [_describe_parameter(cls, name) for name in cls.parameters()],
        "formula": paragraph(cls, "y ="),
        "gradient": paragraph(cls, "grad_x ="),
        "elementwise": cls.is_elementwise,
        "sources": [source.strip() for source in paragraph(cls, "Sources:").removeprefix("Sources:").split(";")],
    }


def catalogue() -> list[dict[str, Any]]:
    """Every registered operator, described."""
    return [describe(cls) for cls in REGISTRY.values()]


def summary(cls: type[Operator]) -> str:
    """The first line of the operator's docstring."""
    return inspect.getdoc(cls).partition("\n")[0]  # type: ignore[union-attr]


def paragraph(cls: type[Operator], start: str) -> str:
    """The paragraph of the operator's docstring that begins with `start`, on one line."""
    for block in re.split(r"\n\s*\n", inspect.getdoc(cls) or ""):
        if block.startswith(start):
            return " ".join(block.split())
    raise LookupError(f"the docstring of {cls.__name__} has no paragraph that begins with {start!r}")


def _describe_parameter(cls: type[Operator], name: str) -> dict[str, Any]:
    field = cls.parameters()[name]
    return {
        "name": name,
        "type": type_name(cls, name),
        "required": field.is_required(),
        "default": None if field.is_required() else field.default,
        "description": field.description,
        **bounds(field),
    }


_EXAMPLE_VALUES = {"min_value": "0", "max_value": "1", "step": "0.25", "k": "4", "w": "0.5", "b": "-1"}


def example(name: str) -> str:
    """An expression of this operator with a value for each parameter that needs one."""
    cls = REGISTRY[name]
    inner = ", ".join(f"{key}={_EXAMPLE_VALUES[key]}" for key, field in cls.parameters().items() if field.is_required())
    return f"{name}({inner})"
