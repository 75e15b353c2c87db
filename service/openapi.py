"""The OpenAPI document of the hot paths, described from the operators, the formats and the errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service import wire
from service.answer import PROBLEM_MEDIA_TYPE
from service.call import OUTPUTS, Kind
from service.dtypes import DTYPES
from service.errors import BY_CODE, StequantError
from service.ops import REGISTRY
from service.ops.catalogue import describe, example, summary
from service.settings import Settings

Schema = dict[str, Any]

_ABOUT = """\
Straight-through-estimator quantizers: `POST /quantize` gives the values, `POST /grad` the gradients.
The operator and its numbers stand in the query string, the tensors in the body.
Every caller gets the same bits: those of the plain PyTorch expression run eagerly on the CPU.
"""

_TENSOR: Schema = {
    "type": "object",
    "description": "A tensor; in JSON `data` is a flat list, in msgpack a bin of little-endian bytes in C order.",
    "required": ["dtype", "shape", "data"],
    "additionalProperties": False,
    "properties": {
        "dtype": {"type": "string", "enum": list(DTYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/Number"}},
    },
}
_NUMBER: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]}
_NESTED: Schema = {
    "description": "Nested lists of numbers: one float32 tensor. A bare number is 0-d.",
    "anyOf": [
        {"$ref": "#/components/schemas/Number"},
        {"type": "array", "items": {"$ref": "#/components/schemas/NestedLists"}},
    ],
}
_OPERAND: Schema = {
    "description": "One tensor, a list of tensors, or tensors by name; the answer has the same structure.",
    "anyOf": [
        {"$ref": "#/components/schemas/Tensor"},
        {"$ref": "#/components/schemas/NestedLists"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [{"$ref": "#/components/schemas/Tensor"}, {"$ref": "#/components/schemas/NestedLists"}]
            },
        },
    ],
}
_INTEGERS: Schema = {"type": "array", "items": {"type": "integer"}}
_COMPACT: Schema = {
    "type": "object",
    "description": "A tensor as codes, packed codes or a mask: in JSON flat lists, in msgpack bins; docs/compact.md has the bytes.",
    "required": ["dtype", "shape"],
    "properties": {
        "dtype": {"type": "string", "enum": list(DTYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64},
        "operator": {"type": "string", "description": "the operator that makes values of the codes"},
        "code_dtype": {"type": "string"},
        "bits": {"type": "integer", "minimum": 1, "maximum": 32},
        "codes": _INTEGERS,
        "packed": _INTEGERS,
        "mask": _INTEGERS,
        "exceptions": {
            "type": "object",
            "description": "The flat positions that no code stands for, and the values there.",
            "required": ["index", "value"],
            "properties": {"index": _INTEGERS, "value": {"type": "array", "items": {"$ref": "#/components/schemas/Number"}}},
        },
    },
    "oneOf": [{"required": ["codes", "exceptions"]}, {"required": ["packed", "exceptions"]}, {"required": ["mask"]}],
}
_COMPACT_OPERAND: Schema = {
    "description": "The answer where `output` asks for a compact form, in the structure of `x`.",
    "anyOf": [
        {"$ref": "#/components/schemas/Compact"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Compact"}},
        {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Compact"}},
    ],
}
_PROBLEM: Schema = {
    "type": "object",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "the field, what was sent, what is allowed"},
        "code": {"type": "string", "enum": sorted(BY_CODE)},
        "error": {"type": "string", "description": "`detail` once more, below /v2 only"},
    },
}
_PROBLEM_CONTENT: Schema = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_OTHER: Schema = {"default": {"description": "Why the request was refused, or what went wrong", "content": _PROBLEM_CONTENT}}


def install(app: FastAPI, settings: Settings, others: Mapping[str, Schema]) -> None:
    """Make `app.openapi()` describe every path: the hot ones included, and `others`, which FastAPI does not know either."""

    def document() -> Schema:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
            schema["paths"] = {
                "/quantize": {"post": _operation("quantize", settings)},
                "/grad": {"post": _operation("grad", settings)},
            } | {path: _with_problems(item) for path, item in schema["paths"].items()}
            schema["paths"] |= {
                path: {"post": {**post, "responses": post["responses"] | _problems()}} for path, post in others.items()
            }
            schemas: dict[str, Schema] = {}
            schema["components"] = {"schemas": schemas}
            schemas |= {"Tensor": _TENSOR, "Number": _NUMBER, "NestedLists": _NESTED, "Operand": _OPERAND, "Problem": _PROBLEM}
            schemas |= {"Compact": _COMPACT, "CompactOperand": _COMPACT_OPERAND}
            if settings.api_keys_file is not None:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _operation(kind: Kind, settings: Settings) -> Schema:
    quantize = kind == "quantize"
    return {
        "operationId": kind,
        "tags": ["tensors"],
        "summary": "Quantize tensors" if quantize else "Push gradients back through a quantizer",
        "description": _table_of_operators(quantize),
        "parameters": [_op_parameter(), _output_parameter(kind), *_number_parameters()],
        "requestBody": {
            "required": True,
            "content": {name: content for one in wire.FORMATS.values() for name, content in _request(one, kind, settings)},
        },
        "responses": {"200": _answer(kind), **_problems()},
    }


def _table_of_operators(quantize: bool) -> str:
    rows = (
        f"| `{name}` | {summary(cls)} | `{describe(cls)['formula' if quantize else 'gradient']}` |"
        for name, cls in REGISTRY.items()
    )
    return "\n".join(("| operator | | formula |" if quantize else "| operator | | gradient |", "|---|---|---|", *rows))


def _op_parameter() -> Schema:
    chain = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)"
    return {
        "name": "op",
        "in": "query",
        "required": True,
        "description": "An operator's bare name, with its parameters beside it; or an expression, operators joined by `|`.",
        "schema": {"type": "string", "maxLength": 8192},
        "examples": {name: {"value": example(name)} for name in REGISTRY} | {"chain": {"value": chain}},
    }


def _output_parameter(kind: Kind) -> Schema:
    return {
        "name": "output",
        "in": "query",
        "required": False,
        "description": "The form of the answer: values, or a compact one that decodes to the same bits.",
        "schema": {"type": "string", "enum": list(OUTPUTS[kind]), "default": "values"},
    }


def _number_parameters() -> list[Schema]:
    """The parameters that may stand beside a bare name; one that several operators share is listed once."""
    shared: dict[str, list[str]] = defaultdict(list)
    described: dict[str, Schema] = {}
    for name, cls in REGISTRY.items():
        for parameter in describe(cls)["parameters"]:
            shared[parameter["name"]].append(name)
            described[parameter["name"]] = parameter
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{parameter['description']} (of {', '.join(shared[name])}, when `op` is a bare name)",
            "schema": _number_schema(parameter),
        }
        for name, parameter in described.items()
    ]


def _number_schema(parameter: Schema) -> Schema:
    bounds: Schema = {word: parameter[word] for word in ("minimum", "exclusiveMinimum", "maximum") if word in parameter}
    if parameter["type"] == "int":
        return {"type": "integer", **bounds}
    number: Schema = {"type": "number", **bounds}
    if parameter["type"] == "float or tensor":
        return {"anyOf": [number, {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"}]}
    return number if bounds else {"anyOf": [number, {"type": "string", "enum": ["inf", "-inf"]}]}


def _request(one: wire.Format, kind: Kind, settings: Settings) -> list[tuple[str, Schema]]:
    limit = f"At most {settings.limit_of(one.name)} bytes."
    if one.name == "npy":
        what = (
            "One `.npy` array, or several back to back." if kind == "quantize" else "Pairs of `.npy` arrays: `x`, `grad_output`, …"
        )
        content: Schema = {"schema": {"type": "string", "format": "binary", "description": f"{what} {limit}"}}
    elif one.name == "msgpack":
        content = {
            "schema": {"type": "string", "format": "binary", "description": f"A map, as in JSON, with bins for `data`. {limit}"}
        }
    elif one.name == "safetensors":
        what = f"Tensors under the names of the JSON format's keys; several as `x.<name>`. {limit}"
        content = {"schema": {"type": "string", "format": "binary", "description": what}}
    else:
        operands = ["x"] if kind == "quantize" else ["x", "grad_output"]
        content = {
            "schema": {
                "type": "object",
                "description": f"The operands, and a tensor for each name that the expression uses. {limit}",
                "required": operands[-1:],
                "properties": {name: {"$ref": "#/components/schemas/Operand"} for name in operands},
                "additionalProperties": {"$ref": "#/components/schemas/Operand"},
            },
            "examples": _json_examples(operands),
        }
    return [(name, content) for name in (one.media_type, *one.aliases)]


def _json_examples(operands: list[str]) -> Schema:
    nested = {name: [[0.1, 0.5], [0.9, 1.5]] for name in operands}
    plain = {name: {"dtype": "float16", "shape": [3], "data": [0.1, 0.5, "NaN"]} for name in operands}
    named = {name: {"first": [0.25], "second": [0.5, 0.75]} for name in operands}
    return {"nested lists": {"value": nested}, "a tensor": {"value": plain}, "tensors by name": {"value": named}}


def _answer(kind: Kind) -> Schema:
    result = "y" if kind == "quantize" else "grad_x"
    forms = [{"$ref": "#/components/schemas/Operand"}, {"$ref": "#/components/schemas/CompactOperand"}]
    json_schema: Schema = {"type": "object", "required": [result], "properties": {result: {"anyOf": forms}}}
    if kind == "grad":
        json_schema["patternProperties"] = {"^grad_(?!x$)": {"$ref": "#/components/schemas/Operand"}}
    binary: Schema = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": "`y`, in the structure of `x`"
        if kind == "quantize"
        else "`grad_x`, in the structure of `x`, and `grad_<name>` for each tensor parameter",
        "headers": {
            "X-Stequant-Decode": {
                "description": "With `output=codes` or `packed`: the operator whose codes these are.",
                "schema": {"type": "string"},
            }
        },
        "content": {one.media_type: {"schema": json_schema} if one.name == "json" else binary for one in wire.FORMATS.values()},
    }


def _with_problems(path: Schema) -> Schema:
    """A path of FastAPI's, with the problems that it is answered with; FastAPI's own refusal, a 422, is never sent."""
    return {method: {**operation, "responses": _own(operation["responses"]) | _OTHER} for method, operation in path.items()}


def _own(responses: Schema) -> Schema:
    return {status: answer for status, answer in responses.items() if status != "422"}


def _problems() -> Schema:
    """Every error by status, with its codes as examples."""
    by_status: dict[int, list[type[StequantError]]] = defaultdict(list)
    for error in BY_CODE.values():
        by_status[error.status].append(error)
    return {
        str(status): {
            "description": "; ".join(f"`{error.code}`: {error.title}" for error in errors),
            "content": _PROBLEM_CONTENT,
        }
        for status, errors in sorted(by_status.items())
    }
