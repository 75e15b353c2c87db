"""Compact answers over HTTP: their bytes in each format, their sizes, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgpack
import numpy as np
import pytest
import safetensors.torch
import torch
from compact_reference import decoded, unpacked
from examples import DTYPES, assert_same_bits, moderate
from http_app import Service
from http_bodies import JSON, MEDIA_TYPES, MSGPACK, NPY, SAFETENSORS, decode, encode, npy, read_npy
from jsonschema import Draft202012Validator

X = torch.tensor([[0.0, 0.3, 1.0], [0.5, 0.9, 0.1]])
CHAIN = "clamp(0,1)|k_bit_quantize(4)"
# round(x * 15) of the elements of X.
CODES = [0, 4, 15, 8, 14, 2]
ODD = torch.tensor([0.25, float("nan"), -0.0, 1.0])


def target(kind: str, expression: str, output: str | None) -> str:
    return f"/{kind}?op={quote(expression)}" + ("" if output is None else f"&output={output}")


def ask(service: Service, expression: str, output: str, x: Any, accept: str, kind: str = "quantize", **tensors: Any) -> Any:
    body = encode("msgpack", {"x": x} | tensors)
    response = service.post(target(kind, expression, output), body, MSGPACK, headers={"accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == accept
    return response


# Bytes --------------------------------------------------------------------------------------------------


def test_msgpack_holds_maps_with_bins(service: Service) -> None:
    got = msgpack.unpackb(ask(service, CHAIN, "codes", X, MSGPACK).content)
    nothing = {"index": b"", "value": b""}
    common = {"dtype": "float32", "shape": [2, 3], "operator": "k_bit_quantize(k=4)"}
    assert got == {"y": common | {"code_dtype": "uint8", "codes": bytes(CODES), "exceptions": nothing}}
    got = msgpack.unpackb(ask(service, CHAIN, "packed", X, MSGPACK).content)
    assert got == {"y": common | {"bits": 4, "packed": bytes([0x40, 0x8F, 0x2E]), "exceptions": nothing}}
    got = msgpack.unpackb(ask(service, "clamp(0.3, 0.9)", "mask", X, MSGPACK, "grad").content)
    assert got == {"grad_x": {"dtype": "float32", "shape": [2, 3], "mask": bytes([0b011010])}}


def test_json_holds_flat_lists(service: Service) -> None:
    got = ask(service, CHAIN, "codes", ODD, JSON).json()["y"]
    assert got["codes"] == [4, 0, 0, 15]
    assert got["exceptions"] == {"index": [1, 2], "value": ["NaN", 0]}
    assert "-0.0" in ask(service, CHAIN, "codes", ODD, JSON).text
    assert ask(service, CHAIN, "packed", ODD, JSON).json()["y"]["packed"] == [0x04, 0xF0]
    assert ask(service, "clamp(0,1)", "mask", ODD, JSON, "grad").json()["grad_x"]["mask"] == [0b1101]


def test_safetensors_holds_parts_by_name_and_describes_them_in_its_metadata(service: Service) -> None:
    content = ask(service, CHAIN, "codes", {"a": ODD, "b.c": X}, SAFETENSORS).content
    parts = safetensors.torch.load(content)
    assert set(parts) == {f"y.{name}.{part}" for name in ("a", "b.c") for part in ("codes", "exceptions.index", "exceptions.value")}
    assert parts["y.b.c.codes"].tolist() == [CODES[:3], CODES[3:]]
    assert parts["y.a.exceptions.index"].tolist() == [1, 2]
    assert parts["y.a.exceptions.index"].dtype == torch.uint32
    assert_same_bits(parts["y.a.exceptions.value"], ODD[1:3])
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    described = {"dtype": "float32", "shape": [4], "operator": "k_bit_quantize(k=4)", "code_dtype": "uint8"}
    assert json.loads(header["__metadata__"]["y.a"]) == described
    packed = safetensors.torch.load(ask(service, CHAIN, "packed", [X, X], SAFETENSORS).content)
    assert packed["y.0.packed"].tolist() == packed["y.1.packed"].tolist() == [0x40, 0x8F, 0x2E]
    mask = safetensors.torch.load(ask(service, "clamp(0.3, 0.9)", "mask", X, SAFETENSORS, "grad").content)
    assert {name: part.tolist() for name, part in mask.items()} == {"grad_x.mask": [0b011010]}


def test_npy_holds_the_elements_and_a_header_says_whose_codes_they_are(service: Service) -> None:
    response = ask(service, CHAIN, "codes", [X, X[0]], NPY)
    first, second = read_npy(response.content)
    assert first.dtype == np.uint8
    assert first.tolist() == [CODES[:3], CODES[3:]]
    assert second.tolist() == CODES[:3]
    assert response.headers["x-stequant-decode"] == "k_bit_quantize(k=4)"
    (packed,) = read_npy(ask(service, CHAIN, "packed", X, NPY).content)
    assert packed.tolist() == [0x40, 0x8F, 0x2E]
    response = ask(service, "clamp(0.3, 0.9)", "mask", X, NPY, "grad")
    assert read_npy(response.content)[0].tolist() == [0b011010]
    assert "x-stequant-decode" not in response.headers


def test_npy_is_written_as_numpy_writes_it(service: Service) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array(CODES, np.uint8).reshape(2, 3))
    assert ask(service, CHAIN, "codes", X, NPY).content == stream.getvalue()


@pytest.mark.parametrize("accept", [MSGPACK, JSON, SAFETENSORS])
@pytest.mark.parametrize("form", MEDIA_TYPES)
@pytest.mark.parametrize("structure", ["one", "list", "names"])
def test_the_answer_has_the_structure_of_x(service: Service, form: str, structure: str, accept: str) -> None:
    x: Any = {"one": X, "list": [X, X[0]], "names": {"p": X, "q": X[0]}}[structure]
    body = encode(form, {"x": x if form != "npy" or structure != "names" else list(x.values())})
    response = service.post(target("quantize", CHAIN, "codes"), body, MEDIA_TYPES[form], headers={"accept": accept})
    assert response.status_code == 200, response.text
    by_number = structure == "list" or (structure == "names" and form == "npy")
    if accept == SAFETENSORS:
        names = {"one": ["y"], "list": ["y.0", "y.1"], "names": ["y.0", "y.1"] if by_number else ["y.p", "y.q"]}[structure]
        assert {name for name in safetensors.torch.load(response.content) if name.endswith(".codes")} == {
            f"{n}.codes" for n in names
        }
        return
    y = (msgpack.unpackb(response.content) if accept == MSGPACK else response.json())["y"]
    if structure == "one":
        assert y["shape"] == [2, 3]
    elif by_number and form != "safetensors":
        assert [one["shape"] for one in y] == [[2, 3], [3]]
    else:
        # A list has numbers for names in safetensors, from where it comes as a map.
        assert {name: one["shape"] for name, one in y.items()} == dict(zip(y, [[2, 3], [3]], strict=True))
        assert list(y) == (["0", "1"] if structure == "list" else ["p", "q"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 8, 13])
def test_answers_have_the_computed_number_of_bytes(service: Service, dtype: torch.dtype, k: int) -> None:
    x = moderate(dtype, 10_000).abs() + 0.001
    expression = f"clamp(0,1)|k_bit_quantize({k})"
    body = npy(x)
    overhead = 128  # the header of an npy file
    sizes = {}
    for output in ("values", "codes", "packed"):
        response = service.post(target("quantize", expression, output), body, NPY)
        assert response.status_code == 200, response.text
        sizes[output] = len(response.content) - overhead
    assert sizes == {
        "values": 10_000 * dtype.itemsize,
        "codes": 10_000 * (1 if k <= 8 else 2),
        "packed": 10_000 * k // 8,
    }
    mask = service.post(target("grad", "clamp(0,1)", "mask"), body, NPY)
    assert len(mask.content) - overhead == 1250


def test_a_mask_needs_x_alone_and_takes_a_gradient_that_agrees(service: Service) -> None:
    alone = service.post(target("grad", "clamp(0,1)", "mask"), encode("msgpack", {"x": X}), MSGPACK)
    both = service.post(target("grad", "clamp(0,1)", "mask"), encode("msgpack", {"x": X, "grad_output": X}), MSGPACK)
    assert alone.status_code == both.status_code == 200
    assert alone.content == both.content


def test_values_are_what_is_answered_without_a_word(service: Service) -> None:
    for kind, message in (("quantize", {"x": X}), ("grad", {"x": X, "grad_output": X})):
        body = encode("npy", message)
        plain, asked = (service.post(target(kind, CHAIN, output), body, NPY) for output in (None, "values"))
        assert plain.content == asked.content
        assert plain.status_code == 200


def test_output_stands_beside_a_bare_name_too(service: Service) -> None:
    response = service.post("/quantize?output=packed&op=k_bit_quantize&k=4", npy(X), NPY)
    assert read_npy(response.content)[0].tolist() == [0x40, 0x8F, 0x2E]


def test_tensor_parameters_are_named_for_who_decodes(service: Service) -> None:
    w, b = torch.tensor([[0.5], [2.0]]), torch.tensor(-1.0)
    x = X.clone()
    x[1, 1] = float("nan")
    expression = "affine_k_bit_quantize(k=4,w=w,b=b)"
    answer = msgpack.unpackb(ask(service, expression, "codes", x, MSGPACK, w=w, b=b).content)["y"]
    assert answer["operator"] == "affine_k_bit_quantize(k=4, w=w, b=b)"
    body = encode("msgpack", {"x": x, "w": w, "b": b})
    values = decode(MSGPACK, service.post(target("quantize", expression, None), body, MSGPACK).content, "y")["y"]
    assert_same_bits(decoded(answer, w=w, b=b), values)


def test_large_answers_are_computed_beside_the_event_loop_and_are_the_same(service: Service) -> None:
    x = moderate(torch.float32, 400_000)
    answer = msgpack.unpackb(ask(service, CHAIN, "packed", x, MSGPACK).content)["y"]
    assert answer["packed"][:100] == msgpack.unpackb(ask(service, CHAIN, "packed", x[:200], MSGPACK).content)["y"]["packed"]
    assert unpacked(answer["packed"], 4, 400_000)[-3:] == (x[-3:].clamp(0, 1) * 15).round().int().tolist()


def test_repeated_calls_are_answered_alike(service: Service) -> None:
    for x in (X, X.flip(0), X, ODD.repeat(2)[:6].reshape(2, 3)):
        for output in ("values", "packed", "codes"):
            answer = service.post(target("quantize", CHAIN, output), encode("msgpack", {"x": x}), MSGPACK)
            expected = service.post(target("quantize", CHAIN, "values"), encode("msgpack", {"x": x}), MSGPACK)
            values = decode(MSGPACK, expected.content, "y")["y"]
            got = msgpack.unpackb(answer.content)["y"]
            assert_same_bits(values if output == "values" else decoded(got), values)


def test_the_api_document_describes_compact_answers(service: Service) -> None:
    document = service.get("/openapi.json").json()
    for kind, expression, outputs in (
        ("quantize", CHAIN, ("values", "codes", "packed")),
        ("grad", "clamp(0,1)", ("values", "mask")),
    ):
        operation = document["paths"][f"/{kind}"]["post"]
        (parameter,) = (one for one in operation["parameters"] if one["name"] == "output")
        assert tuple(parameter["schema"]["enum"]) == outputs
        schema = operation["responses"]["200"]["content"][JSON]["schema"]
        for output in outputs[1:]:
            for x in (ODD, [ODD, X], {"a": X}):
                answer = ask(service, expression, output, x, JSON, kind).json()
                Draft202012Validator(schema | {"components": document["components"]}).validate(answer)


# Refusals -----------------------------------------------------------------------------------------------

MANY_NAN = torch.full((100,), float("nan"))
BAD: Mapping[str, tuple[str, Mapping[str, Any], str, int, str, tuple[str, ...]]] = {
    "unknown": (target("quantize", CHAIN, "bits"), {"x": X}, MSGPACK, 422, "bad_parameter", ("'bits'", "values, codes, packed")),
    "empty": (target("quantize", CHAIN, ""), {"x": X}, MSGPACK, 422, "bad_parameter", ("''", "values, codes, packed")),
    "in capitals": (target("quantize", CHAIN, "CODES"), {"x": X}, MSGPACK, 422, "bad_parameter", ("'CODES'",)),
    "a mask of values": (
        target("quantize", CHAIN, "mask"),
        {"x": X},
        MSGPACK,
        422,
        "bad_parameter",
        ("'mask'", "values, codes, packed"),
    ),
    "codes of a gradient": (target("grad", CHAIN, "codes"), {"x": X}, MSGPACK, 422, "bad_parameter", ("'codes'", "values, mask")),
    "twice": (target("quantize", CHAIN, "codes&output=codes"), {"x": X}, MSGPACK, 422, "repeated_parameter", ("'output'",)),
    "codes of clamp": (target("quantize", "round|clamp(0,1)", "codes"), {"x": X}, MSGPACK, 422, "not_representable", ("'clamp'",)),
    "codes of clamp_by_linear": (
        target("quantize", "clamp_by_linear", "codes"),
        {"x": X},
        MSGPACK,
        422,
        "not_representable",
        ("'clamp_by_linear'", "allowed last: round"),
    ),
    "packed steps": (
        target("quantize", "clamp(0,1)|step_quantize(0.1)", "packed"),
        {"x": X},
        MSGPACK,
        422,
        "not_representable",
        ("step_quantize(step=0.1)", "k_bit_quantize and affine_k_bit_quantize"),
    ),
    "packed too wide": (target("quantize", "k_bit_quantize(33)", "packed"), {"x": X}, MSGPACK, 422, "not_representable", ("32",)),
    "a mask of affine": (
        target("grad", "affine_k_bit_quantize(4,1,0)|round", "mask"),
        {"x": X},
        MSGPACK,
        422,
        "not_representable",
        ("'affine_k_bit_quantize'",),
    ),
    "a mask of clamp_by_linear": (
        target("grad", "clamp_by_linear", "mask"),
        {"x": X},
        MSGPACK,
        422,
        "not_representable",
        ("'clamp_by_linear'",),
    ),
    "too many exceptions": (
        target("quantize", CHAIN, "codes"),
        {"x": MANY_NAN},
        MSGPACK,
        422,
        "not_representable",
        ("more than 64 of the 100", "output=values"),
    ),
    "outside": (
        target("quantize", "k_bit_quantize(4)", "packed"),
        {"x": torch.full((100,), 1.5)},
        MSGPACK,
        422,
        "not_representable",
        ("clamp(0, 1)",),
    ),
    "exceptions in npy": (target("quantize", CHAIN, "codes"), {"x": ODD}, NPY, 406, "not_acceptable", ("2 elements", "msgpack")),
    "a mask without x": (target("grad", "round", "mask"), {"grad_output": X}, MSGPACK, 422, "missing_tensor", ("'x'",)),
    "a mask with another gradient": (
        target("grad", "round", "mask"),
        {"x": X, "grad_output": X[0]},
        MSGPACK,
        422,
        "shape_mismatch",
        ("grad_output",),
    ),
    "a mask with something else": (target("grad", "round", "mask"), {"x": X, "w": X}, MSGPACK, 422, "surplus_tensor", ("'w'",)),
    "a k that does not fit": (
        target("quantize", "k_bit_quantize(16)", "packed"),
        {"x": X.half()},
        MSGPACK,
        422,
        "parameter_does_not_fit",
        ("'k'", "float16"),
    ),
    "an expression that is none": (
        target("quantize", "nothing", "codes"),
        {"x": X},
        MSGPACK,
        422,
        "unknown_operator",
        ("'nothing'",),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_what_is_allowed(service: Service, case: str) -> None:
    url, message, accept, status, code, named = BAD[case]
    response = service.post(url, encode("msgpack", message), MSGPACK, headers={"accept": accept})
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    for word in named:
        assert word in response.json()["detail"]


def test_pairs_of_arrays_are_two_tensors_where_a_mask_is_asked_for(service: Service) -> None:
    response = service.post(target("grad", "clamp(0,1)", "mask"), npy(X, X[0], X[1]), NPY)
    assert [array.nbytes for array in read_npy(response.content)] == [1, 1, 1]


def test_a_large_answer_in_json_is_refused_as_it_is_for_values(service: Service) -> None:
    body = encode("msgpack", {"x": torch.zeros(2 * 2**20)})
    response = service.post(target("quantize", CHAIN, "codes"), body, MSGPACK, headers={"accept": JSON})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")


def test_a_compact_tensor_is_no_tensor_to_send(service: Service) -> None:
    answer = ask(service, CHAIN, "codes", X, MSGPACK).content.replace(b"\x81\xa1y", b"\x81\xa1x", 1)
    response = service.post("/quantize?op=round", answer, MSGPACK)
    assert (response.status_code, response.json()["code"]) == (422, "bad_tensor")
