"""Bit for bit: every operator, chain and tensor parameter, in every format and dtype, against the contract's table."""

from __future__ import annotations

from itertools import product
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import torch
from examples import assert_same_bits, same_but_for_zero_signs
from http_app import Service
from http_bodies import MEDIA_TYPES, MSGPACK, NPY, decode, encode, npy, read_npy, to_numpy, to_torch
from http_cases import CASES, DTYPES, Case, affine, clamp_by_linear, hard, k_bit_quantize, moderate, operands_of
from torch import Tensor

from service.ops import REGISTRY

KINDS = ("quantize", "grad")
TABLE = [
    (case, kind, form, dtype)
    for case, kind, form, dtype in product(CASES, KINDS, MEDIA_TYPES, DTYPES)
    if form != "npy" or not case.tensors
]
# Each is sent with several operands: hard values, ties, 0-d, empty, three dimensions.
assert len(TABLE) > 600


def check_gradient(got: Tensor, expected: Tensor, case: Case) -> None:
    """Bit for bit; where a clamp cut a gradient, the sign of its zero is free."""
    if "clamp" in case.operators:
        got, expected = same_but_for_zero_signs(got), same_but_for_zero_signs(expected)
    assert_same_bits(got, expected, case)


def check_gradients(answer: dict[str, Tensor], case: Case, x: Tensor, grad_output: Tensor, tensors: dict[str, Tensor]) -> None:
    grad_x, grads = case.backward(x, grad_output, tensors)
    assert set(answer) == {"grad_x", *(f"grad_{name}" for name in grads)}
    check_gradient(answer["grad_x"], grad_x, case)
    for name, expected in grads.items():
        check_gradient(answer[f"grad_{name}"], expected, case)


def test_every_operator_is_in_the_table() -> None:
    assert set().union(*(case.operators for case in CASES)) == set(REGISTRY)


@pytest.mark.parametrize(("case", "kind", "form", "dtype"), TABLE, ids=lambda value: str(value))
def test_every_call_gives_the_bits_of_the_plain_expression(service: Service, case: Case, kind: str, form: str, dtype: str) -> None:
    for x, grad_output in operands_of(case, DTYPES[dtype]).values():
        tensors = case.tensors_for(x)
        message = {"x": x} if kind == "quantize" else {"x": x, "grad_output": grad_output}
        url = f"/{kind}?{urlencode(case.query)}"
        response = service.post(url, encode(form, message | tensors), MEDIA_TYPES[form])
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == MEDIA_TYPES[form]
        answer = decode(MEDIA_TYPES[form], response.content, "y" if kind == "quantize" else "grad_x")
        if kind == "quantize":
            assert set(answer) == {"y"}
            assert_same_bits(answer["y"], case.forward(x, tensors), case)
        else:
            check_gradients(answer, case, x, grad_output, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if not case.tensors], ids=str)
def test_arrays_in_fortran_order_come_back_so_with_the_same_bits(service: Service, case: Case, dtype: str) -> None:
    x, grad_output = hard(DTYPES[dtype]), moderate(DTYPES[dtype], hard(DTYPES[dtype]).shape)
    url = f"?op={quote(case.expression)}"
    body = npy(x, fortran=True)
    (y,) = read_npy(service.post("/quantize" + url, body, NPY).content)
    assert y.flags.f_contiguous
    assert not y.flags.c_contiguous
    assert_same_bits(to_torch(y), case.forward(x, {}), case)
    # The answer lies as x does, whatever the order of grad_output.
    for fortran in (False, True):
        body = npy(x, fortran=fortran) + npy(grad_output, fortran=True)
        (grad_x,) = read_npy(service.post("/grad" + url, body, NPY).content)
        assert grad_x.flags.f_contiguous is fortran
        assert grad_x.flags.c_contiguous is not fortran
        check_gradient(to_torch(grad_x), case.backward(x, grad_output, {})[0], case)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_big_endian_arrays_are_answered_little_endian(service: Service, dtype: str) -> None:
    x = hard(DTYPES[dtype])
    case = Case([k_bit_quantize(4)])
    swapped = to_numpy(x).astype(np.dtype(dtype).newbyteorder(">"))
    (y,) = read_npy(service.post("/quantize?op=k_bit_quantize(4)", npy(swapped), NPY).content)
    assert y.dtype.str == np.dtype(dtype).newbyteorder("<").str
    assert_same_bits(to_torch(y), case.forward(x, {}))


def test_bfloat16_is_v2_as_ml_dtypes_saves_it(service: Service) -> None:
    x = hard(torch.bfloat16)
    body = npy(x)
    assert b"'<V2'" in body
    answers = [service.post("/quantize?op=round", one, NPY).content for one in (body, body.replace(b"'<V2'", b"'|V2'"))]
    assert b"'<V2'" in answers[0]
    assert answers[0] == answers[1]
    assert_same_bits(to_torch(read_npy(answers[0])[0]), torch.round(x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_of_msgpack_numpy_are_read_and_written(service: Service, kind: str, dtype: str) -> None:
    case = Case([affine(4, "w", "b")], {"w": "row", "b": "0-d"})
    x, grad_output = hard(DTYPES[dtype]), moderate(DTYPES[dtype], hard(DTYPES[dtype]).shape)
    tensors = case.tensors_for(x)
    message = ({"x": x} if kind == "quantize" else {"x": x, "grad_output": grad_output}) | tensors
    response = service.post(f"/{kind}?op={quote(case.expression)}", encode("msgpack-numpy", message), MSGPACK)
    assert b"kind" in response.content
    answer = decode(MSGPACK, response.content, "")
    if kind == "quantize":
        assert_same_bits(answer["y"], case.forward(x, tensors))
    else:
        check_gradients(answer, case, x, grad_output, tensors)


MANY = {f"t{i}": shape for i, shape in enumerate([(3, 4), (), (0,), (7,), (2, 0, 3), (1, 5), (2, 2, 2)])}


@pytest.mark.parametrize(
    ("form", "structure"), [("npy", "list"), ("msgpack", "list"), ("msgpack", "map"), ("json", "list"), ("json", "map")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_several_tensors_of_any_shape_and_dtype_come_back_as_they_came(
    service: Service, kind: str, form: str, structure: str
) -> None:
    case = Case([k_bit_quantize(4)])
    xs = {name: moderate(list(DTYPES.values())[i % 4], shape, seed=i) for i, (name, shape) in enumerate(MANY.items())}
    gs = {name: moderate(x.dtype, x.shape, seed=50) for name, x in xs.items()}
    named = structure == "map"
    message = {"x": xs if named else list(xs.values())}
    if kind == "grad":
        # Names say what belongs together, whatever their order.
        message["grad_output"] = dict(reversed(gs.items())) if named else list(gs.values())
    response = service.post(f"/{kind}?op=k_bit_quantize&k=4", encode(form, message), MEDIA_TYPES[form])
    result = "y" if kind == "quantize" else "grad_x"
    answer = decode(MEDIA_TYPES[form], response.content, result)[result]
    if named:
        assert list(answer) == list(xs)
        answer = list(answer.values())
    for got, x, g in zip(answer, xs.values(), gs.values(), strict=True):
        assert_same_bits(got, case.forward(x, {}) if kind == "quantize" else g)


@pytest.mark.parametrize("structure", ["list", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_tensors_of_mixed_shapes_travel_in_one_call(service: Service, kind: str, structure: str) -> None:
    case = Case([k_bit_quantize(4)])
    shapes = list(MANY.values())
    xs = [moderate(list(DTYPES.values())[i % 3], shapes[i % 7], seed=i) for i in range(1000)]
    gs = [moderate(x.dtype, x.shape, seed=2000 + i) for i, x in enumerate(xs)]
    names = [f"layer.{i}" for i in range(1000)]
    shaped = (lambda values: dict(zip(names, values, strict=True))) if structure == "map" else list
    message = {"x": shaped(xs)} | ({"grad_output": shaped(gs)} if kind == "grad" else {})
    response = service.post(f"/{kind}?op=k_bit_quantize&k=4", encode("msgpack", message), MSGPACK)
    answer = decode(MSGPACK, response.content, "")["y" if kind == "quantize" else "grad_x"]
    if structure == "map":
        assert list(answer) == names
        answer = list(answer.values())
    else:
        assert isinstance(answer, list)
    for got, x, g in zip(answer, xs, gs, strict=True):
        assert_same_bits(got, case.forward(x, {}) if kind == "quantize" else g)


def test_every_tensor_has_its_own_extrema(service: Service) -> None:
    case = Case([clamp_by_linear()])
    xs = [moderate(torch.float32, shape, seed=i) for i, shape in enumerate([(5,), (2, 3), (1,)])]
    answer = decode(NPY, service.post("/quantize?op=clamp_by_linear", npy(*xs), NPY).content, "y")["y"]
    for got, x in zip(answer, xs, strict=True):
        assert_same_bits(got, case.forward(x, {}))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_tensor_parameter_are_summed_over_the_tensors_of_the_call(service: Service, dtype: str) -> None:
    """Each tensor's own sum, rounded, then added left to right in the dtype."""
    case = Case([affine(4, "w", "b")], {"w": "row", "b": "0-d"})
    xs = [moderate(DTYPES[dtype], (rows, 9), seed=rows) for rows in (3, 5, 8, 13)]
    gs = [moderate(DTYPES[dtype], x.shape, seed=30 + i) for i, x in enumerate(xs)]
    tensors = case.tensors_for(xs[0])
    response = service.post(
        f"/grad?op={quote(case.expression)}", encode("msgpack", {"x": xs, "grad_output": gs, **tensors}), MSGPACK
    )
    answer = decode(MSGPACK, response.content, "")
    totals: dict[str, Tensor] = {}
    for got, x, g in zip(answer["grad_x"], xs, gs, strict=True):
        grad_x, grads = case.backward(x, g, tensors)
        assert_same_bits(got, grad_x)
        totals = {name: totals[name] + grad if name in totals else grad for name, grad in grads.items()}
    for name, total in totals.items():
        assert_same_bits(answer[f"grad_{name}"], total, name)


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_an_empty_list_gives_an_empty_list(service: Service, form: str) -> None:
    body = encode(form, {"x": []})
    assert decode(MEDIA_TYPES[form], service.post("/quantize?op=round", body, MEDIA_TYPES[form]).content, "")["y"] == []
    w = torch.tensor([1.0, 2.0])
    body = encode(form, {"x": [], "grad_output": [], "w": w})
    answer = decode(MEDIA_TYPES[form], service.post("/grad?op=affine_k_bit_quantize(4,w,0)", body, MEDIA_TYPES[form]).content, "")
    assert answer["grad_x"] == []
    assert_same_bits(answer["grad_w"], torch.zeros(2))


@pytest.mark.parametrize("form", ["msgpack", "json"])
@pytest.mark.parametrize(
    "expression", ["round", "k_bit_quantize(4)", "affine_k_bit_quantize(4, 0.5, 1)", "affine_k_bit_quantize(4, 2, b)"]
)
def test_x_may_be_left_out_where_no_operator_needs_it(service: Service, form: str, expression: str) -> None:
    grad_output = moderate(torch.float32, (4, 5))
    tensors = {"b": torch.tensor(0.5)} if "b)" in expression else {}
    answers = []
    for x in ({}, {"x": moderate(torch.float32, (4, 5), seed=9)}):
        body = encode(form, {**x, "grad_output": grad_output, **tensors})
        response = service.post(f"/grad?op={quote(expression)}", body, MEDIA_TYPES[form])
        assert response.status_code == 200, response.text
        answers.append(response.content)
    assert answers[0] == answers[1]
    weight = {"affine_k_bit_quantize(4, 0.5, 1)": 0.5, "affine_k_bit_quantize(4, 2, b)": 2.0}.get(expression, 1.0)
    assert_same_bits(decode(MEDIA_TYPES[form], answers[0], "")["grad_x"], weight * grad_output)


@pytest.mark.parametrize("form", ["msgpack", "json"])
@pytest.mark.parametrize("expression", ["clamp(0, 1)", "clamp_by_linear", "affine_k_bit_quantize(4, w, 0)", "round | clamp(0, 1)"])
def test_x_is_asked_for_where_an_operator_needs_it(service: Service, form: str, expression: str) -> None:
    grad_output = moderate(torch.float32, (4, 5))
    body = encode(form, {"grad_output": grad_output} | ({"w": torch.tensor(2.0)} if "w," in expression else {}))
    response = service.post(f"/grad?op={quote(expression)}", body, MEDIA_TYPES[form])
    assert (response.status_code, response.json()["code"]) == (422, "missing_tensor")
    assert "'x'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("op=round", "op=round()"),
        ("op=round", "op=%20round%20"),
        ("op=k_bit_quantize&k=4", "k=4&op=k_bit_quantize"),
        ("op=k_bit_quantize&k=4", "op=k_bit_quantize(4)"),
        ("op=k_bit_quantize&k=4", "op=k_bit_quantize+(+k+=+4+)"),
        ("op=clamp&min_value=-1&max_value=1", "op=clamp(-1,max_value=1)"),
        ("op=clamp&min_value=-1&max_value=1", "op=clamp(max_value=1.0,min_value=-1e0)"),
        ("op=clamp(-1,1)%7Ck_bit_quantize(4)", "op=clamp(-1,1)+%7C+k_bit_quantize(4)"),
        ("op=clamp_by_linear", "op=clamp_by_linear&eps=1e-5"),
        ("op=clamp_by_linear", "op=clamp_by_linear(0.00001)"),
        ("op=clamp&min_value=-inf&max_value=1", "op=clamp(-inf,1)"),
        ("op=step_quantize&step=0.25", "op=step_quantize(2.5e-1)"),
        ("op=affine_k_bit_quantize&k=4&w=2&b=0.5", "op=affine_k_bit_quantize(4,2,b=0.5)"),
    ],
)
def test_a_query_may_be_written_in_several_ways(service: Service, query: str, same: str) -> None:
    body = npy(hard(torch.float32))
    answers = [service.post(f"/quantize?{one}", body, NPY) for one in (query, same)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize(("dtype", "k"), [("float16", 15), ("bfloat16", 127), ("float32", 127), ("float64", 1023)])
def test_the_largest_k_of_a_dtype_is_allowed(service: Service, dtype: str, k: int) -> None:
    x = hard(DTYPES[dtype])
    case = Case([k_bit_quantize(k)])
    response = service.post(f"/quantize?op=k_bit_quantize&k={k}", npy(x), NPY)
    assert_same_bits(to_torch(read_npy(response.content)[0]), case.forward(x, {}))


def test_nested_lists_are_one_float32_tensor(service: Service) -> None:
    for value in ([[0.1, 0.5], [0.9, 1.5]], [0.2], 0.7, [[[]]], [["NaN", "-Infinity"]]):
        response = service.request("POST", "/quantize?op=k_bit_quantize&k=4", json={"x": value})
        y = decode("application/json", response.content, "y")["y"]
        x = torch.from_numpy(np.array(value, np.float64).astype(np.float32))
        assert_same_bits(y, Case([k_bit_quantize(4)]).forward(x, {}))


def test_a_body_in_any_pieces_gives_the_same_bits(service: Service) -> None:
    """Small ones are computed on the event loop, large ones on the device's thread; chunked ones come without a length."""
    for elements in (1, 1000, 65_504, 65_536, 65_600, 300_000):
        x = moderate(torch.float32, (elements,), seed=elements)
        body = npy(x)

        async def pieces(body: bytes = body):  # type: ignore[no-untyped-def]
            for start in range(0, len(body), 100_003):
                yield body[start : start + 100_003]

        expected = torch.round(x * 15) / 15
        for content in (body, pieces()):
            response = service.request("POST", "/quantize?op=k_bit_quantize&k=4", content=content, headers={"content-type": NPY})
            assert_same_bits(to_torch(read_npy(response.content)[0]), expected)
