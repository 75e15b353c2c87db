"""Every bad call is refused: with the right status and code, a problem document, and its detail where clients look for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from http_app import Service
from oip_bodies import JSON_LENGTH, MAX_BODY_BYTES, MAX_JSON_BYTES, MAX_TENSORS, X, binary, call, document, shared, tensor

MALFORMED = (400, "malformed_body")


@dataclass(frozen=True)
class Bad:
    """A call that must be refused, and the words that its detail must have."""

    what: str
    refusal: tuple[int, str]
    words: tuple[str, ...]
    body: Any
    data: bytes = b""
    model: str = "k_bit_quantize"
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.what


def of(model: str, parameters: dict[str, Any], *inputs: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or (tensor(),)), "parameters": parameters}


JSON_TEXTS = [
    Bad("no JSON", MALFORMED, ("JSON",), b"{"),
    Bad("nothing", MALFORMED, ("JSON",), b""),
    Bad("no UTF-8", MALFORMED, ("JSON",), b'{"id": "\xff"}'),
    Bad("more than one document", MALFORMED, ("JSON",), b"{} {}"),
    Bad("a list", MALFORMED, ("object",), b"[]"),
    Bad("a key twice", MALFORMED, ("'id'", "twice"), b'{"id": "a", "id": "b", "inputs": []}'),
    Bad("a key twice within", MALFORMED, ("'k'", "twice"), b'{"parameters": {"k": 1, "k": 2}, "inputs": []}'),
    Bad("deep nesting", MALFORMED, ("deep",), b'{"inputs":' + b"[" * 8000),
    Bad("a number of too many digits", MALFORMED, ("JSON",), b'{"inputs": [' + b"9" * 5000 + b"]}"),
    Bad("too much JSON", (413, "body_too_large"), (str(MAX_JSON_BYTES),), b" " * (MAX_JSON_BYTES + 1)),
    Bad(
        "too much JSON before bytes",
        (413, "body_too_large"),
        (str(MAX_JSON_BYTES),),
        b" " * (MAX_JSON_BYTES + 1),
        X.tobytes(),
    ),
    Bad("too large a body", (413, "body_too_large"), (str(MAX_BODY_BYTES),), document(binary()), bytes(MAX_BODY_BYTES)),
]

STRUCTURE = [
    Bad("no inputs", MALFORMED, ("inputs",), {"parameters": {"k": 4}}),
    Bad("inputs that are no list", MALFORMED, ("inputs", "list"), {"inputs": {}}),
    Bad("an input that is no object", MALFORMED, ("inputs[0]", "object"), document(1)),
    Bad("an id that is no string", MALFORMED, ("'id'", "string"), document(tensor(), id=7)),
    Bad("parameters that are no object", MALFORMED, ("'parameters'", "object"), document(tensor(), parameters=[])),
    *(
        Bad(f"an input without {key}", MALFORMED, ("inputs[0]", key), document(tensor(**{key: None})))
        for key in ("name", "datatype", "shape")
    ),
    Bad("an input without data", MALFORMED, ("inputs[0]", "exactly one"), document(tensor(data=None))),
    Bad("an input with data twice", MALFORMED, ("exactly one",), document(binary(data=[1])), X.tobytes()),
    Bad("an input with bytes and a region", MALFORMED, ("exactly one",), document(shared(data=[1, 2, 3, 4]))),
    Bad("a name that is no string", MALFORMED, ("inputs[0].name", "string"), document(tensor(name=None) | {"name": 1})),
    Bad("an input twice", MALFORMED, ("'x'", "twice"), document(tensor(), tensor())),
    Bad("an output twice", MALFORMED, ("'y'", "twice"), document(tensor(), outputs=[{"name": "y"}, {"name": "y"}])),
    Bad("outputs that are no list", MALFORMED, ("'outputs'", "list"), document(tensor(), outputs="y")),
    Bad("an output without a name", MALFORMED, ("outputs[0]", "name"), document(tensor(), outputs=[{}])),
    Bad(
        "binary_data that is no bool",
        MALFORMED,
        ("binary_data",),
        document(tensor(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
    ),
    Bad("binary_data_output that is no bool", MALFORMED, ("binary_data_output",), of("", {"k": 4, "binary_data_output": "yes"})),
    Bad(
        "too many inputs",
        (413, "too_many_tensors"),
        (str(MAX_TENSORS),),
        document(*(tensor(f"x{i}") for i in range(MAX_TENSORS + 1))),
    ),
    Bad(
        "too many outputs",
        (413, "too_many_tensors"),
        (str(MAX_TENSORS),),
        document(tensor(), outputs=[{"name": f"y{i}"} for i in range(99)]),
    ),
]

SHAPES = [
    Bad("a negative dimension", MALFORMED, ("shape",), document(tensor(shape=[-4]))),
    Bad("a bool as dimension", MALFORMED, ("shape",), document(tensor(shape=[True], data=[1]))),
    Bad("a fraction as dimension", MALFORMED, ("shape",), document(tensor(shape=[4.0]))),
    Bad("a shape that is no list", MALFORMED, ("shape",), document(tensor(shape=4))),
    Bad("65 dimensions", MALFORMED, ("65", "64"), document(tensor(shape=[1] * 65, data=[1]))),
    Bad("thousands of dimensions", MALFORMED, ("64",), document(tensor(shape=[1] * 5000, data=[1]))),
    Bad("more elements than there can be", MALFORMED, ("bytes",), document(tensor(shape=[2**62, 2**62], data=[]))),
    Bad("an impossible empty tensor", MALFORMED, ("bytes",), document(tensor(shape=[0, 2**62, 2**62], data=[]))),
    Bad("too few numbers", MALFORMED, ("data", "4"), document(tensor(data=[1, 2, 3]))),
    Bad("too many numbers", MALFORMED, ("data", "4"), document(tensor(data=[1, 2, 3, 4, 5]))),
    Bad("nested lists of another shape", MALFORMED, ("[2, 2]", "[4]"), document(tensor(data=[[1, 2], [3, 4]]))),
    Bad("a number for a list of one", MALFORMED, ("data",), document(tensor(shape=[1], data=3))),
    Bad("ragged lists", (422, "bad_tensor"), ("ragged",), document(tensor(shape=[2, 2], data=[[1, 2], [3]]))),
    Bad("a string among numbers", (422, "bad_tensor"), ("element 1",), document(tensor(data=[1, "two", 3, 4]))),
    Bad("a bool among numbers", (422, "bad_tensor"), ("element 0",), document(tensor(data=[True, 2, 3, 4]))),
    Bad("null among numbers", (422, "bad_tensor"), ("element 3",), document(tensor(data=[1, 2, 3, None]))),
    Bad("data that are a map", (422, "bad_tensor"), ("data",), document(tensor(shape=[], data={"a": 1}))),
    *(
        Bad(f"the datatype {name}", (422, "unsupported_dtype"), (name, "FP16, BF16, FP32, FP64"), document(tensor(datatype=name)))
        for name in ("INT32", "UINT8", "BOOL", "BYTES", "fp32", "FP8")
    ),
]

BINARY = [
    Bad(
        "a size that is not that of the shape",
        MALFORMED,
        ("12", "16"),
        document(binary(parameters={"binary_data_size": 12})),
        bytes(12),
    ),
    Bad("too few bytes", MALFORMED, ("16", "15"), document(binary()), X.tobytes()[:-1]),
    Bad("too many bytes", MALFORMED, ("17", "16"), document(binary()), X.tobytes() + b"\0"),
    Bad("bytes of no input", MALFORMED, ("1",), document(tensor()), b"\0"),
    Bad("no bytes at all", MALFORMED, ("16", "0"), document(binary())),
    Bad("a negative size", MALFORMED, ("binary_data_size",), document(binary(parameters={"binary_data_size": -16})), X.tobytes()),
    Bad(
        "a size that is a string",
        MALFORMED,
        ("binary_data_size",),
        document(binary(parameters={"binary_data_size": "16"})),
        X.tobytes(),
    ),
    Bad(
        "a size that is true",
        MALFORMED,
        ("binary_data_size",),
        document(binary(parameters={"binary_data_size": True})),
        X.tobytes(),
    ),
    Bad("the sum of two inputs", MALFORMED, ("16", "8"), document(binary(), binary("w")), X.tobytes() + bytes(8)),
    Bad("more JSON than body", MALFORMED, ("1000",), document(tensor()), headers={JSON_LENGTH: "1000"}),
    *(
        Bad(
            f"a length of JSON that is {text!r}",
            (400, "bad_framing"),
            ("Inference-Header",),
            document(tensor()),
            headers={JSON_LENGTH: text},
        )
        for text in ("-1", "1e3", "", "0x10", "10, 10", "9" * 30)
    ),
    Bad("a length of JSON that ends within it", MALFORMED, ("JSON",), document(tensor()), headers={JSON_LENGTH: "5"}),
    Bad("no JSON before the bytes", MALFORMED, ("JSON",), document(tensor()), headers={JSON_LENGTH: "0"}),
]

PARAMETERS = [
    Bad("no parameter", (422, "missing_parameter"), ("'k'", "int"), {"inputs": [tensor()]}),
    Bad("an unknown parameter", (422, "unknown_parameter"), ("'q'", "'k'"), of("", {"k": 4, "q": 1})),
    Bad("an unknown parameter of any kind", (422, "unknown_parameter"), ("'q'",), of("", {"k": 4, "q": [1]})),
    Bad("a fraction for an int", (422, "bad_parameter"), ("'k'", "4.0"), of("", {"k": 4.0})),
    Bad("a bool for an int", (422, "bad_parameter"), ("'k'", "true"), of("", {"k": True})),
    Bad("null", (422, "bad_parameter"), ("'k'", "null"), of("", {"k": None})),
    Bad("a list", (422, "bad_parameter"), ("'k'",), of("", {"k": [4]})),
    Bad("text", (422, "bad_parameter"), ("'k'",), of("", {"k": "four"})),
    Bad("text that is nothing", (422, "bad_expression"), ("'k'",), of("", {"k": "4 4"})),
    Bad("below the bounds", (422, "bad_parameter"), ("'k'", "0"), of("", {"k": 0})),
    Bad("a huge int", (422, "bad_parameter"), ("too large",), of("", {"k": 10**400})),
    Bad(
        "a k that float16 cannot hold",
        (422, "parameter_does_not_fit"),
        ("float16",),
        of("", {"k": 16}, tensor(array=X.astype(np.float16))),
    ),
    Bad("an infinite step", (422, "bad_parameter"), ("'step'",), of("", {"step": "inf"}), model="step_quantize"),
    Bad("NaN as a bound", (422, "bad_parameter"), ("nan",), of("", {"min_value": float("nan"), "max_value": 1}), model="clamp"),
    Bad(
        "bounds the wrong way round",
        (422, "bad_parameter"),
        ("min_value",),
        of("", {"min_value": 2, "max_value": 1}),
        model="clamp",
    ),
    Bad("a parameter where there is none", (422, "unknown_parameter"), ("'k'",), of("", {"k": 4}), model="round"),
    Bad(
        "a number and a tensor",
        (422, "repeated_parameter"),
        ("'w'",),
        of("", {"k": 4, "w": 2, "b": 0}, tensor(), tensor("w")),
        model="affine_k_bit_quantize",
    ),
    Bad(
        "a name without its tensor",
        (422, "missing_tensor"),
        ("'scale'",),
        of("", {"k": 4, "w": "scale", "b": 0}),
        model="affine_k_bit_quantize",
    ),
    Bad(
        "a name that no tensor may have",
        (422, "bad_parameter"),
        ("'y'",),
        of("", {"k": 4, "w": "y", "b": 0}),
        model="affine_k_bit_quantize",
    ),
    Bad("no chain", (422, "missing_parameter"), ("'op'",), of("", {}), model="chain"),
    Bad("a chain that is a number", (422, "bad_parameter"), ("'op'",), of("", {"op": 4}), model="chain"),
    Bad("a chain that is true", (422, "bad_parameter"), ("'op'",), of("", {"op": True}), model="chain.grad"),
    Bad(
        "a chain beside a parameter",
        (422, "unknown_parameter"),
        ("'k'",),
        of("", {"op": "k_bit_quantize(4)", "k": 4}),
        model="chain",
    ),
    Bad("a chain of the wrong syntax", (422, "bad_expression"), ("character",), of("", {"op": "round |"}), model="chain"),
    Bad("a chain that is too long", (422, "chain_too_long"), ("32",), of("", {"op": "|".join(["round"] * 33)}), model="chain"),
    Bad("an operator that is none", (422, "unknown_operator"), ("'sign'",), of("", {"op": "sign"}), model="chain"),
]

TENSORS = [
    Bad("no x", (422, "missing_tensor"), ("'x'",), document()),
    Bad("no grad_output", (422, "missing_tensor"), ("'grad_output'",), document(tensor()), model="k_bit_quantize.grad"),
    Bad(
        "no x where it is needed",
        (422, "missing_tensor"),
        ("'x'",),
        of("", {"min_value": 0, "max_value": 1}, tensor("grad_output")),
        model="clamp.grad",
    ),
    Bad("a tensor too many", (422, "surplus_tensor"), ("'z'",), document(tensor(), tensor("z"))),
    Bad("grad_output where there is none", (422, "surplus_tensor"), ("'grad_output'",), document(tensor(), tensor("grad_output"))),
    Bad(
        "two shapes",
        (422, "shape_mismatch"),
        ("'grad_output'",),
        document(tensor(), tensor("grad_output", X[:2])),
        model="k_bit_quantize.grad",
    ),
    Bad(
        "two datatypes",
        (422, "dtype_mismatch"),
        ("'grad_output'",),
        document(tensor(), tensor("grad_output", X.astype(np.float64))),
        model="k_bit_quantize.grad",
    ),
    Bad(
        "a w that does not broadcast",
        (422, "shape_mismatch"),
        ("'w'",),
        of("", {"k": 4, "b": 0}, tensor(), tensor("w", X[:3])),
        model="affine_k_bit_quantize",
    ),
    Bad(
        "an empty tensor that has no extrema",
        (422, "empty_tensor"),
        ("'x'",),
        of("", {}, tensor(array=X[:0])),
        model="clamp_by_linear",
    ),
    Bad("an output that is none", (422, "unknown_output"), ("'z'", "'y'"), document(tensor(), outputs=[{"name": "z"}])),
    Bad(
        "a gradient of a number",
        (422, "unknown_output"),
        ("'grad_w'", "'grad_x'"),
        of("", {"k": 4, "w": 1, "b": 0}, tensor("grad_output")) | {"outputs": [{"name": "grad_w"}]},
        model="affine_k_bit_quantize.grad",
    ),
    Bad(
        "a classification",
        (422, "not_allowed"),
        ("classification",),
        document(tensor(), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
    ),
    Bad(
        "an answer too large for JSON",
        (406, "not_acceptable"),
        (str(MAX_JSON_BYTES), "binary"),
        document(binary(array=np.zeros(2**13, np.float32))),
        bytes(2**15),
    ),
]

SHARED = [
    Bad("a region that is none", (422, "bad_region"), ("'r'",), document(shared())),
    Bad(
        "an output into a region that is none",
        (422, "bad_region"),
        ("'r'",),
        document(tensor(), outputs=[{"name": "y", "parameters": shared()["parameters"]}]),
    ),
    Bad(
        "a region without a size",
        MALFORMED,
        ("shared_memory_byte_size",),
        document(shared(parameters={"shared_memory_region": "r"})),
    ),
    Bad(
        "a size without a region",
        MALFORMED,
        ("shared_memory_region",),
        document(shared(parameters={"shared_memory_byte_size": 16})),
    ),
    Bad(
        "an offset without a region",
        MALFORMED,
        ("shared_memory_region",),
        document(tensor(parameters={"shared_memory_offset": 16})),
    ),
    Bad(
        "a size that is not that of the shape",
        MALFORMED,
        ("12", "16"),
        document(shared(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 12})),
    ),
    Bad("a negative offset", MALFORMED, ("offset",), document(shared(offset=-1))),
    Bad("a region that is a number", MALFORMED, ("shared_memory_region",), document(shared(region=1))),  # type: ignore[arg-type]
]

HEADS = [
    Bad("a compressed body", (415, "unsupported_media_type"), ("gzip",), document(tensor()), headers={"content-encoding": "gzip"}),
    Bad(
        "a deadline that is none",
        (400, "bad_request"),
        ("X-Request-Timeout",),
        document(tensor()),
        headers={"x-request-timeout": "-1"},
    ),
    Bad("an unknown model", (404, "not_found"), ("'sign'", "k_bit_quantize"), document(tensor()), model="sign"),
    Bad("an unknown version", (404, "not_found"), ("'2'",), document(tensor()), model="round/versions/2"),
]

TABLE = [*JSON_TEXTS, *STRUCTURE, *SHAPES, *BINARY, *PARAMETERS, *TENSORS, *SHARED, *HEADS]


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_every_bad_call_is_refused_with_a_problem_document(service: Service, bad: Bad) -> None:
    response = call(service, bad.model, bad.body, bad.data, bad.headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == bad.refusal, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == response.status_code
    assert problem["error"] == problem["detail"]
    for word in bad.words:
        assert word in problem["detail"], problem["detail"]
    assert len(problem["detail"]) < 1500
    assert service.app.state.core.budget.in_flight_bytes == 0


@pytest.mark.parametrize("bad", TABLE[:4], ids=str)
def test_no_other_path_has_the_member_of_this_protocol(service: Service, bad: Bad) -> None:
    assert "error" not in service.post("/quantize?op=round", b"{", "application/json").json()


def test_get_is_no_call(service: Service) -> None:
    response = service.get("/v2/models/round/infer")
    assert (response.status_code, response.json()["code"], response.headers["allow"]) == (405, "method_not_allowed", "POST")


@pytest.mark.parametrize("length", [None, "10"])
def test_a_body_whose_length_is_not_announced_comes_in_chunks(service: Service, length: str | None) -> None:
    text = json.dumps(document(tensor())).encode()

    async def pieces():  # type: ignore[no-untyped-def]
        yield text[:7]
        yield text[7:]

    headers = {} if length is None else {JSON_LENGTH: length}
    response = service.request("POST", "/v2/models/k_bit_quantize/infer", content=pieces(), headers=headers)
    assert response.status_code == (200 if length is None else 400), response.text


def test_a_chunked_body_is_bounded_while_it_comes(service: Service) -> None:
    async def pieces():  # type: ignore[no-untyped-def]
        for _ in range(1000):
            yield bytes(MAX_JSON_BYTES)

    response = service.request("POST", "/v2/models/round/infer", content=pieces())
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
