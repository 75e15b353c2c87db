"""The rules for bad input hold on every way in: a safetensors file, a call of the inference protocol, a compact answer.

A rule that says nothing of bytes is one row, asked on every way; a rule about bytes is asked where these are read.
The status and the code are the contract's, whatever the way.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
import torch
from http_app import Service
from http_bodies import MSGPACK, NPY, SAFETENSORS, encode, npy
from torch import Tensor

MAX_BODY_BYTES = 65_536
MAX_TENSORS = 8
X = torch.tensor([0.1, 0.4, 0.9])
DATATYPES = {torch.float16: "FP16", torch.float32: "FP32"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The application with limits that a test can reach."""
    with Service(max_body_bytes=MAX_BODY_BYTES, max_tensors=MAX_TENSORS) as running:
        yield running


def refused(response: Any) -> tuple[int, str]:
    """The status and the code of a problem document, which says what is wrong in a line that can be read."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == response.status_code
    assert 10 < len(problem["detail"]) < 1500
    return response.status_code, problem["code"]


# Every way in -------------------------------------------------------------------------------------------

Ask = Callable[[Service, str, Mapping[str, Tensor]], Any]


def over_http(kind: str, form: str, media_type: str, output: str = "", accept: str | None = None) -> Ask:
    """A call of `/quantize` or `/grad` whose tensors travel in this format."""

    def ask(service: Service, expression: str, tensors: Mapping[str, Tensor]) -> Any:
        own = dict(tensors)
        if kind == "grad" and not output:
            own.setdefault("grad_output", tensors["x"])
        headers = {"accept": accept} if accept else {}
        return service.post(f"/{kind}?op={quote(expression)}{output}", encode(form, own), media_type, headers=headers)

    return ask


def inferred(model: str, *, binary: bool) -> Ask:
    """A call of the inference protocol, its tensors behind the JSON or in it."""

    def ask(service: Service, expression: str, tensors: Mapping[str, Tensor]) -> Any:
        own = dict(tensors)
        if model == "chain.grad":
            own.setdefault("grad_output", tensors["x"])
        inputs, data = [], b""
        for name, x in own.items():
            raw = x.numpy().tobytes()
            how = {"parameters": {"binary_data_size": len(raw)}} if binary else {"data": x.flatten().tolist()}
            inputs.append({"name": name, "datatype": DATATYPES[x.dtype], "shape": list(x.shape), **how})
            data += raw if binary else b""
        text = json.dumps({"parameters": {"op": expression}, "inputs": inputs}).encode()
        headers = {"inference-header-content-length": str(len(text))} if binary else {}
        return service.request("POST", f"/v2/models/{model}/infer", content=text + data, headers=headers)

    return ask


WAYS: Mapping[str, Ask] = {
    "safetensors": over_http("quantize", "safetensors", SAFETENSORS),
    "safetensors, gradient": over_http("grad", "safetensors", SAFETENSORS),
    "inference protocol": inferred("chain", binary=False),
    "inference protocol, binary": inferred("chain", binary=True),
    "inference protocol, gradient": inferred("chain.grad", binary=True),
    "codes of safetensors": over_http("quantize", "safetensors", SAFETENSORS, "&output=codes"),
    "codes of msgpack, in npy": over_http("quantize", "msgpack", MSGPACK, "&output=codes", NPY),
    "packed of msgpack": over_http("quantize", "msgpack", MSGPACK, "&output=packed"),
    "mask of safetensors": over_http("grad", "safetensors", SAFETENSORS, "&output=mask"),
    "mask of msgpack": over_http("grad", "msgpack", MSGPACK, "&output=mask"),
}

# All end with an operator that has codes and begin with one that has a mask, so that only the rule is broken.
RULES: Mapping[str, tuple[str, int, str]] = {
    "an unknown operator": ("sigmoid|k_bit_quantize(4)", 422, "unknown_operator"),
    "an unknown parameter": ("k_bit_quantize(k=4, bits=4)", 422, "unknown_parameter"),
    "a surplus parameter": ("k_bit_quantize(4, 5)", 422, "unknown_parameter"),
    "a missing parameter": ("k_bit_quantize", 422, "missing_parameter"),
    "a repeated parameter": ("k_bit_quantize(k=4, k=4)", 422, "repeated_parameter"),
    "k=4.5": ("k_bit_quantize(k=4.5)", 422, "bad_parameter"),
    "k=true": ("k_bit_quantize(k=true)", 422, "bad_parameter"),
    "k=1e9": ("k_bit_quantize(k=1e9)", 422, "bad_parameter"),
    "k=1000000000": ("k_bit_quantize(k=1000000000)", 422, "bad_parameter"),
    "k=0": ("k_bit_quantize(k=0)", 422, "bad_parameter"),
    "k=128 for float32": ("k_bit_quantize(k=128)|k_bit_quantize(4)", 422, "parameter_does_not_fit"),
    "step=0": ("step_quantize(step=0)|k_bit_quantize(4)", 422, "bad_parameter"),
    "step=nan": ("step_quantize(step=nan)|k_bit_quantize(4)", 422, "bad_parameter"),
    "step=inf": ("step_quantize(step=inf)|k_bit_quantize(4)", 422, "bad_parameter"),
    "a step that becomes 0": ("step_quantize(step=1e-60)|k_bit_quantize(4)", 422, "parameter_does_not_fit"),
    "min_value > max_value": ("clamp(1, 0)|k_bit_quantize(4)", 422, "bad_parameter"),
    "a bound of nan": ("clamp(nan, 1)|k_bit_quantize(4)", 422, "bad_parameter"),
    "a bound beyond float32": ("clamp(0, 1e300)|k_bit_quantize(4)", 422, "parameter_does_not_fit"),
    "33 operators": ("|".join(["k_bit_quantize(4)"] * 33), 422, "chain_too_long"),
    "syntax": ("clamp(0, 1)|", 422, "bad_expression"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_operators_and_parameters_holds_on_every_way_in(service: Service, way: str, rule: str) -> None:
    expression, status, code = RULES[rule]
    response = WAYS[way](service, expression, {"x": X})
    assert refused(response) == (status, code), response.text
    if code == "unknown_operator":
        assert "'sigmoid'" in response.json()["detail"]
        assert "k_bit_quantize" in response.json()["detail"]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_breaks_no_rule_is_answered_on_every_way_in(service: Service, way: str) -> None:
    response = WAYS[way](service, "clamp(0, 1)|k_bit_quantize(4)", {"x": X})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("way", WAYS)
def test_a_bound_that_float16_cannot_hold_is_refused_on_every_way_in(service: Service, way: str) -> None:
    response = WAYS[way](service, "clamp(0, 70000)|k_bit_quantize(4)", {"x": X.half()})
    assert refused(response) == (422, "parameter_does_not_fit")


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_tensor_has_no_extrema_on_any_way_in(service: Service, way: str) -> None:
    if "mask" in way:
        expression, code = "clamp_by_linear", "not_representable"  # refused before its data are looked at
    else:
        expression, code = "clamp_by_linear|k_bit_quantize(4)", "empty_tensor"
    assert refused(WAYS[way](service, expression, {"x": X[:0]})) == (422, code)


TENSORS: Mapping[str, tuple[Mapping[str, Tensor], str]] = {
    "a w that would enlarge x": ({"w": torch.ones(2, 3)}, "shape_mismatch"),
    "a w that does not broadcast": ({"w": torch.ones(2)}, "shape_mismatch"),
    "a w of another dtype": ({"w": torch.ones(3, dtype=torch.float16)}, "dtype_mismatch"),
    "no w": ({}, "missing_tensor"),
    "a tensor too many": ({"w": torch.ones(3), "z": torch.ones(3)}, "surplus_tensor"),
}


@pytest.mark.parametrize("way", [way for way in WAYS if "mask" not in way])
@pytest.mark.parametrize("case", TENSORS)
def test_a_rule_of_tensor_parameters_holds_on_every_way_in(service: Service, way: str, case: str) -> None:
    tensors, code = TENSORS[case]
    response = WAYS[way](service, "affine_k_bit_quantize(k=4, w=w, b=0)", {"x": X, **tensors})
    assert refused(response) == (422, code), response.text


PARTNERS: Mapping[str, tuple[Tensor, str]] = {
    "another shape": (torch.ones(4), "shape_mismatch"),
    "another rank": (torch.ones(1, 3), "shape_mismatch"),
    "another dtype": (torch.ones(3, dtype=torch.float16), "dtype_mismatch"),
}


@pytest.mark.parametrize("way", ["safetensors, gradient", "inference protocol, gradient", "mask of safetensors", "mask of msgpack"])
@pytest.mark.parametrize("case", PARTNERS)
def test_a_gradient_must_agree_with_its_x_on_every_way_in(service: Service, way: str, case: str) -> None:
    grad_output, code = PARTNERS[case]
    assert refused(WAYS[way](service, "clamp(0, 1)", {"x": X, "grad_output": grad_output})) == (422, code)


# safetensors --------------------------------------------------------------------------------------------


def post(service: Service, body: bytes, query: str = "/quantize?op=round", **headers: str) -> Any:
    """A body that is said to be a file of safetensors."""
    return service.post(query, body, SAFETENSORS, headers=headers)


@pytest.mark.parametrize(
    "grad_output",
    [{"a": X}, {"a": X, "b": X, "c": X}, {"a": X, "c": X}, X],
    ids=["too few", "too many", "other names", "one alone"],
)
def test_gradients_of_safetensors_have_the_structure_of_their_x(service: Service, grad_output: Any) -> None:
    body = encode("safetensors", {"x": {"a": X, "b": X}, "grad_output": grad_output})
    assert refused(post(service, body, "/grad?op=clamp(0,1)")) == (422, "structure_mismatch")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_a_tensor_of_safetensors_that_is_not_floating_is_refused(service: Service, dtype: torch.dtype) -> None:
    assert refused(post(service, encode("safetensors", {"x": torch.zeros(8).to(dtype)}))) == (422, "unsupported_dtype")


def test_a_file_of_safetensors_cut_anywhere_or_followed_by_anything_is_refused(service: Service) -> None:
    body = encode("safetensors", {"x": X})
    assert post(service, body).status_code == 200
    for end in range(len(body)):
        assert refused(post(service, body[:end])) == (400, "malformed_body")
    for tail in (b"\0", b" ", b"\n", body):
        assert refused(post(service, body + tail)) == (400, "malformed_body")


@pytest.mark.parametrize(
    "body",
    [pickle.dumps({"x": [1.0]}), npy(X), encode("msgpack", {"x": X}), encode("json", {"x": X})],
    ids=["pickle", "npy", "msgpack", "json"],
)
def test_another_format_is_no_file_of_safetensors(service: Service, body: bytes) -> None:
    assert refused(post(service, body)) == (400, "malformed_body")


def test_more_tensors_or_bytes_than_allowed_are_refused_in_safetensors(service: Service) -> None:
    many = encode("safetensors", {"x": [X] * (MAX_TENSORS + 1)})
    assert refused(post(service, many)) == (413, "too_many_tensors")
    assert refused(post(service, encode("safetensors", {"x": torch.zeros(MAX_BODY_BYTES)}))) == (413, "body_too_large")


def test_other_media_types_than_those_of_the_contract_are_refused(service: Service) -> None:
    body = encode("safetensors", {"x": X})
    for media_type in ("application/safetensors", "application/vnd.safetensors2", "application/octet-stream"):
        assert refused(service.post("/quantize?op=round", body, media_type)) == (415, "unsupported_media_type")
    assert refused(post(service, body, accept="text/html")) == (406, "not_acceptable")
    assert refused(post(service, body, accept="application/vnd.safetensors;q=0")) == (406, "not_acceptable")


def test_npy_cannot_hold_gradients_of_tensor_parameters_that_came_in_safetensors(service: Service) -> None:
    body = encode("safetensors", {"x": X, "grad_output": X, "w": torch.ones(3)})
    url = f"/grad?op={quote('affine_k_bit_quantize(k=4, w=w, b=0)')}"
    assert refused(post(service, body, url, accept=NPY)) == (406, "not_acceptable")


# Compact answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["codes", "packed"])
@pytest.mark.parametrize("media_type", [NPY, MSGPACK, SAFETENSORS])
def test_a_compact_answer_excuses_no_broken_body(service: Service, output: str, media_type: str) -> None:
    url = f"/quantize?op=k_bit_quantize(4)&output={output}"
    form = {NPY: "npy", MSGPACK: "msgpack", SAFETENSORS: "safetensors"}[media_type]
    body = encode(form, {"x": X})
    for broken in (b"", body[:-1], body + b"\0", pickle.dumps([1.0])):
        assert refused(service.post(url, broken, media_type)) == (400, "malformed_body")
