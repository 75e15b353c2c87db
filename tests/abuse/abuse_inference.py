"""Calls of the Open Inference Protocol whose JSON, sizes, shapes and names lie."""

from __future__ import annotations

import json
from typing import Any

from abuse_case import Case
from server_process import get, post

BAD, FRAMING = "400 malformed_body", "400 bad_framing"
LENGTH = "Inference-Header-Content-Length"


def tensor(**members: Any) -> dict[str, Any]:
    """An input of two numbers; members that are None are left out."""
    own = {"name": "x", "datatype": "FP32", "shape": [2], "data": [0.6, -0.4]}
    return {key: value for key, value in (own | members).items() if value is not None}


def binary(size: Any = 8, **members: Any) -> dict[str, Any]:
    """An input whose bytes follow the JSON."""
    return tensor(data=None, parameters={"binary_data_size": size}, **members)


def infer(claim: str, body: Any, answers: str = BAD, *lines: str, model: str = "round", data: bytes = b"") -> Case:
    """A call: `body` is text, or written as JSON; its length is told where bytes follow it."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = [f"{LENGTH}: {len(text)}"] if data else []
    return Case(claim, post(text + data, "", *own, *lines, path=f"/v2/models/{model}/infer", media_type=None), answers)


def inputs(claim: str, *tensors: Any, answers: str = BAD, data: bytes = b"", model: str = "round", **members: Any) -> Case:
    """A call with these inputs."""
    return infer(claim, {"inputs": list(tensors), **members}, answers, model=model, data=data)


SHARED, REGION = "/v2/systemsharedmemory", b'{"key": "/a", "offset": 0, "byte_size": 8}'
CALL = {"inputs": [tensor()]}

LENGTHS = [
    infer("a call of the protocol is answered", CALL, "200"),
    infer("a negative length of JSON is refused", CALL, FRAMING, f"{LENGTH}: -1"),
    infer("a length of JSON that is no number is refused", CALL, FRAMING, f"{LENGTH}: all"),
    infer("a length of JSON of 30 digits is refused", CALL, FRAMING, f"{LENGTH}: {'9' * 30}"),
    infer("an empty length of JSON is refused", CALL, FRAMING, f"{LENGTH}:"),
    infer("two lengths of JSON are refused", CALL, FRAMING, f"{LENGTH}: 10", f"{LENGTH}: 10"),
    infer("a length of JSON beyond the body is refused", CALL, BAD, f"{LENGTH}: 100000"),
    infer("a length of JSON that ends within it is refused", CALL, BAD, f"{LENGTH}: 9"),
    infer("two lengths of JSON in one line are refused", CALL, FRAMING, f"{LENGTH}: 10, 10"),
    infer("a length of JSON that has a point is refused", CALL, FRAMING, f"{LENGTH}: 10.0"),
    infer("a length of JSON of nothing is refused", CALL, BAD, f"{LENGTH}: 0"),
]

TEXTS = [
    infer("no JSON is refused in the protocol", b"\x93NUMPY"),
    infer("nothing is refused in the protocol", b""),
    infer("half a document is refused", b'{"inputs": ['),
    infer("two documents are refused", b"{} {}"),
    infer("a list is no call", b"[]"),
    infer("brackets without end are refused in the protocol", b'{"inputs":' + b"[" * 100_000),
    infer("a number of 100 000 digits is refused in the protocol", b'{"inputs": [' + b"9" * 100_000 + b"]}"),
    infer("bytes that are no UTF-8 are refused in the protocol", b'{"id": "\xff"}'),
    infer("a key twice is refused in the protocol", b'{"id": "a", "id": "b", "inputs": []}'),
    infer("an id that is a list is refused", CALL | {"id": []}),
    infer("no inputs are refused", {}),
    infer("inputs that are a map are refused", {"inputs": {}}),
    inputs("an input that is null is refused", None),
]

TENSORS = [
    inputs("a negative dimension is refused in the protocol", tensor(shape=[-2])),
    inputs("a fraction as dimension is refused in the protocol", tensor(shape=[2.0])),
    inputs("dimensions of 2**62 are refused", tensor(shape=[2**62, 2**62], data=[])),
    inputs("65 dimensions are refused in the protocol", tensor(shape=[1] * 65, data=[1])),
    inputs("fewer numbers than the shape says are refused", tensor(data=[1])),
    inputs("lists within lists without end are refused", tensor(data=json.loads("[" * 200 + "]" * 200))),
    inputs("text among numbers is refused", tensor(data=["1", "2"]), answers="422 bad_tensor"),
    inputs("null among numbers is refused in the protocol", tensor(data=[1, None]), answers="422 bad_tensor"),
    inputs("data that are a map are refused", tensor(data={})),
    *(
        inputs(f"the datatype {name} is refused", tensor(datatype=name), answers="422 unsupported_dtype")
        for name in ("INT64", "BOOL", "BYTES", "fp32", "FP32\0", "")
    ),
    inputs("an input twice is refused", tensor(), tensor()),
    inputs("an input too many is refused", tensor(), tensor(name="z"), answers="422 surplus_tensor"),
    inputs("no input is refused", answers="422 missing_tensor"),
    inputs("a gradient without its input is refused", tensor(), answers="422 missing_tensor", model="round.grad"),
    inputs("an output that is none is refused in the protocol", tensor(), answers="422 unknown_output", outputs=[{"name": "z"}]),
]

BYTES = [
    inputs("bytes are answered", binary(), answers="200", data=bytes(8)),
    inputs("a size below that of the shape is refused", binary(4), data=bytes(4)),
    inputs("a size beyond the body is refused", binary(), data=bytes(4)),
    inputs("bytes of nobody are refused", tensor(), data=bytes(8)),
    inputs("a negative size is refused", binary(-8), data=bytes(8)),
    inputs("a size of 2**64 is refused", binary(2**64, shape=[2**62]), data=bytes(8)),
    inputs("a size that is text is refused", binary("8"), data=bytes(8)),
    inputs("two inputs that share their bytes are refused", binary(), binary(name="w"), data=bytes(8)),
]

PARAMETERS = [
    inputs("a thousand million bits cost nothing in the protocol", tensor(), answers="422 bad_parameter", model="k_bit_quantize", parameters={"k": 10**9}),
    inputs("bits of 400 digits cost nothing in the protocol", tensor(), answers="422 bad_parameter", model="k_bit_quantize", parameters={"k": 10**400}),
    inputs("bits that are true are refused", tensor(), answers="422 bad_parameter", model="k_bit_quantize", parameters={"k": True}),
    inputs("a parameter that is none is refused", tensor(), answers="422 unknown_parameter", parameters={"__class__": 1}),
    inputs("an answer into shared memory that nobody allowed is refused", tensor(), answers="422 bad_region", outputs=[{"name": "y", "parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 8}}]),
    inputs("a region at a negative offset is refused", tensor(data=None, parameters={"shared_memory_region": "a", "shared_memory_offset": -1, "shared_memory_byte_size": 8})),
    inputs("a chain of 33 is refused", tensor(), answers="422 chain_too_long", model="chain", parameters={"op": "|".join(["round"] * 33)}),
    inputs("a chain of brackets is refused", tensor(), answers="422 bad_expression", model="chain", parameters={"op": "(" * 1000}),
    inputs("a region of shared memory that nobody allowed is refused", tensor(data=None, parameters={"shared_memory_region": "../etc/passwd", "shared_memory_byte_size": 8}), answers="422 bad_region"),
]  # fmt: skip

PATHS = [
    infer("a model that is none is not found", CALL, "404 not_found", model="sign"),
    infer("a model of dots is not found", CALL, "404 not_found", model=".."),
    infer("a version of a model is only described", CALL, "405 method_not_allowed", model="round/versions"),
    infer("a model with an encoded slash is not found", CALL, "404 not_found", model="..%2f..%2fetc"),
    infer("the gradient of a gradient is not found", CALL, "404 not_found", model="round.grad.grad"),
    infer("a model of 1 000 letters is not found", CALL, "404 not_found", model="r" * 1000),
    Case("a call by GET is refused", get("/v2/models/round/infer"), "405 method_not_allowed"),
    *(
        Case(
            f"shared memory is off: POST {path} is not found",
            post(REGION, "", path=f"{SHARED}/{path}", media_type=None),
            "404 not_found",
        )
        for path in ("region/a/register", "region/a/unregister", "unregister", "region/..%2fa/register")
    ),
    *(
        Case(f"shared memory is off: GET {path} is not found", get(f"{SHARED}/{path}"), "404 not_found")
        for path in ("status", "region/a/status")
    ),
    Case(
        "CUDA memory is not found",
        post(REGION, "", path="/v2/cudasharedmemory/region/a/register", media_type=None),
        "404 not_found",
    ),
    Case("an index of models that is no JSON is refused", post(b"{", "", path="/v2/repository/index", media_type=None), BAD),
    Case(
        "an index of models of 1 MiB is refused",
        post(b" " * 2**20, "", path="/v2/repository/index", media_type=None),
        "413 body_too_large",
    ),
    Case("what a model that is none is like is not found", get("/v2/models/sign/config"), "404 not_found"),
    Case("another version of a model is not found", get("/v2/models/round/versions/2"), "404 not_found"),
    Case("a file of the page that is none is not found", get("/page/unknown"), "404 not_found"),
    Case("the page takes no bodies", post(b"{}", "", path="/page/main.js", media_type=None), "405 method_not_allowed"),
    Case("files beside the page are not served", get("/page/../app.py"), "404 not_found"),
    Case("files beside the page are not served when dots are encoded", get("/page/%2e%2e/app.py"), "404 not_found"),
    Case("files beside the page are not served when all is encoded", get("/page/..%2fapp.py"), "404 not_found"),
    Case("files of the system are not served", get("/page//etc/passwd"), "404 not_found"),
    Case("the source of the page's code is not served", get("/page/__init__.py"), "404 not_found"),
    Case("a file with a NUL is not served", get("/page/index.html%00.js"), "404 not_found"),
]

CASES = [*LENGTHS, *TEXTS, *TENSORS, *BYTES, *PARAMETERS, *PATHS]
