"""The OpenAPI description of calls, which FastAPI does not serve."""

from __future__ import annotations

from typing import Any

from service.oip.inference import ROUTES
from service.oip.models import DATATYPES, MODELS
from service.oip.request import JSON_LENGTH_HEADER
from service.oip.response import BINARY_MEDIA_TYPE, JSON_MEDIA_TYPE

PATH = ROUTES[0]

Schema = dict[str, Any]

_TENSOR: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 64},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data_size": {"type": "integer", "minimum": 0, "description": "its bytes follow the JSON"},
                "shared_memory_region": {"type": "string"},
                "shared_memory_byte_size": {"type": "integer", "minimum": 0},
                "shared_memory_offset": {"type": "integer", "minimum": 0},
            },
        },
        "data": {"type": "array", "description": "its elements, flat or nested, row by row", "items": {}},
    },
}
_OUTPUT: Schema = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
}
_REQUEST: Schema = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "description": "the numbers of the operator, or `op` of a chain"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_BINARY: Schema = {"schema": {"type": "string", "format": "binary", "description": "JSON, then the bytes of the binary tensors"}}
_EXAMPLE: Schema = {
    "parameters": {"k": 4},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [0.1, 0.5, 0.9]}],
}


def infer() -> Schema:
    """The operation of a call, but for its errors."""
    return {
        "operationId": "infer",
        "tags": ["open inference protocol"],
        "summary": "Call a model of the Open Inference Protocol v2",
        "parameters": [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(MODELS)}},
            {
                "name": JSON_LENGTH_HEADER.decode().title(),
                "in": "header",
                "required": False,
                "description": "How many bytes of the body are JSON; all, where it is absent.",
                "schema": {"type": "integer", "minimum": 0},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {JSON_MEDIA_TYPE: {"schema": _REQUEST, "example": _EXAMPLE}, BINARY_MEDIA_TYPE: _BINARY},
        },
        "responses": {
            "200": {
                "description": "The outputs, in the order in which they were asked for",
                "content": {JSON_MEDIA_TYPE: {"schema": _ANSWER}, BINARY_MEDIA_TYPE: _BINARY},
            }
        },
    }
