"""Which format a body is read in and an answer is written in: `Content-Type` and `Accept`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import assert_same_bits
from http_app import Raw, Service, body_messages
from http_bodies import JSON, MSGPACK, NPY, decode, encode, npy, read_npy, to_torch

X = torch.tensor([[0.1, -0.5], [2.5, 1.5]])
Y = torch.round(X)
BODIES = {
    NPY: npy(X),
    "application/vnd.numpy": npy(X),
    MSGPACK: encode("msgpack", {"x": X}),
    "application/msgpack": encode("msgpack", {"x": X}),
    "application/x-msgpack": encode("msgpack", {"x": X}),
    JSON: encode("json", {"x": X}),
}
CANONICAL = {
    NPY: NPY,
    "application/vnd.numpy": NPY,
    MSGPACK: MSGPACK,
    "application/msgpack": MSGPACK,
    "application/x-msgpack": MSGPACK,
    JSON: JSON,
}


def check(answer: bytes, media_type: str) -> None:
    assert_same_bits(decode(media_type, answer, "y")["y"], Y)


@pytest.mark.parametrize("accept", [None, "*/*", "", "*/*;q=0.1", "text/html, */*;q=0.5"])
@pytest.mark.parametrize("content_type", BODIES)
def test_without_a_wish_the_answer_has_the_format_of_the_request(service: Service, content_type: str, accept: str | None) -> None:
    headers = [("host", "a"), ("content-type", content_type), ("content-length", str(len(BODIES[content_type])))]
    if accept is not None:
        headers.append(("accept", accept))
    answer = service.raw(Raw(headers=headers, receive=body_messages(BODIES[content_type])))
    assert answer.status == 200
    assert answer.headers["content-type"] == CANONICAL[content_type]
    check(answer.body, answer.headers["content-type"])


@pytest.mark.parametrize("accept", BODIES)
@pytest.mark.parametrize("content_type", BODIES)
def test_any_format_may_be_answered_in_any_other_under_the_name_that_was_asked_for(
    service: Service, content_type: str, accept: str
) -> None:
    response = service.post("/quantize?op=round", BODIES[content_type], content_type, headers={"accept": accept})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == accept
    check(response.content, accept)


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("application/json;q=0.5, application/msgpack", "application/msgpack"),
        ("application/json, application/msgpack;q=0.9", JSON),
        (f"{NPY};q=0.1, {JSON};q=0.2", JSON),
        (f"{NPY};q=0, */*", None),
        ("application/*", NPY),
        ("text/html, application/xhtml+xml, application/json;q=0.9, */*;q=0.1", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/json ; q=0.3 , application/vnd.numpy ; q=0.7", "application/vnd.numpy"),
        (", ,application/json,", JSON),
        ("image/png, application/x-msgpack", "application/x-msgpack"),
        ("application/json;q=1.0, application/x-npy;q=0.001", JSON),
    ],
)
def test_the_most_welcome_format_is_answered(service: Service, accept: str, answered: str | None) -> None:
    response = service.post("/quantize?op=round", BODIES[NPY], NPY, headers={"accept": accept})
    assert response.status_code == 200, response.text
    if answered is None:
        assert response.headers["content-type"] in (MSGPACK, JSON)
    else:
        assert response.headers["content-type"] == answered
    check(response.content, response.headers["content-type"])


def test_several_accept_lines_are_one_list(service: Service) -> None:
    body = BODIES[NPY]
    head = [("host", "a"), ("content-type", NPY), ("content-length", str(len(body)))]
    for lines, answered in [
        ((f"{NPY};q=0.2", f"{JSON};q=0.8"), JSON),
        (("text/html", "application/msgpack"), "application/msgpack"),
        ((f"{JSON};q=0.2, image/png", f"{NPY};q=0.3"), NPY),
    ]:
        answer = service.raw(Raw(headers=[*head, *(("accept", line) for line in lines)], receive=body_messages(body)))
        assert (answer.status, answer.headers["content-type"]) == (200, answered)
    answer = service.raw(Raw(headers=[*head, ("accept", "text/html"), ("accept", "image/png")], receive=body_messages(body)))
    assert answer.status == 406


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        " application/json ",
        'application/json; profile="a;b"',
    ],
)
def test_parameters_and_case_of_a_content_type_do_not_matter(service: Service, content_type: str) -> None:
    answer = service.raw(
        Raw(
            headers=[("host", "a"), ("content-type", content_type), ("content-length", str(len(BODIES[JSON])))],
            receive=body_messages(BODIES[JSON]),
        )
    )
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)


def test_an_identity_encoding_is_none(service: Service) -> None:
    assert service.post("/quantize?op=round", BODIES[NPY], NPY, headers={"content-encoding": "identity"}).status_code == 200


def test_a_map_of_names_is_answered_in_npy_as_its_values_in_order(service: Service) -> None:
    xs = {"b": X, "a": X[0], "c": X[0, 0]}
    for form, content_type in (("msgpack", MSGPACK), ("json", JSON)):
        response = service.post("/quantize?op=round", encode(form, {"x": xs}), content_type, headers={"accept": NPY})
        assert response.status_code == 200, response.text
        for got, x in zip(read_npy(response.content), xs.values(), strict=True):
            assert_same_bits(to_torch(got), torch.round(x))


def test_npy_can_answer_calls_whose_parameters_are_tensors_unless_their_gradients_are_asked_for(service: Service) -> None:
    body = encode("msgpack", {"x": X, "w": torch.tensor(2.0)})
    response = service.post("/quantize?op=affine_k_bit_quantize(1,w,0)", body, MSGPACK, headers={"accept": NPY})
    assert response.status_code == 200
    assert_same_bits(to_torch(read_npy(response.content)[0]), 2 * Y + 0)
    body = encode("msgpack", {"x": X, "grad_output": X, "w": torch.tensor(2.0)})
    for accept, status in [(NPY, 406), (f"{NPY}, {JSON};q=0.1", 200), ("*/*", 200)]:
        response = service.post("/grad?op=affine_k_bit_quantize(1,w,0)", body, MSGPACK, headers={"accept": accept})
        assert response.status_code == status
    body = encode("msgpack", {"x": X, "grad_output": X})
    response = service.post("/grad?op=clamp(0,1)", body, MSGPACK, headers={"accept": NPY})
    np.testing.assert_array_equal(read_npy(response.content)[0], torch.where((X >= 0) & (X <= 1), X, 0).numpy())


def test_tensors_are_answered_in_the_kind_in_which_x_came(service: Service) -> None:
    """Nested lists stay nested lists, maps stay maps; other formats answer in their canonical maps."""
    nested = service.request("POST", "/quantize?op=round", json={"x": X.tolist()})
    assert nested.json() == {"y": Y.tolist()}
    by_name = service.request("POST", "/quantize?op=round", json={"x": {"a": [0.4], "b": 1.6}})
    assert by_name.json() == {"y": {"a": [0.0], "b": 2.0}}
    plain = service.post("/quantize?op=round", BODIES[JSON], JSON)
    assert plain.json() == {"y": {"dtype": "float32", "shape": [2, 2], "data": Y.reshape(-1).tolist()}}
    non_finite = service.request("POST", "/quantize?op=round", json={"x": ["NaN", "Infinity", "-Infinity", -0.4]})
    assert non_finite.text == '{"y":["NaN","Infinity","-Infinity",-0.0]}'
    grad = service.request(
        "POST", "/grad?op=affine_k_bit_quantize(1,w,0)", json={"x": [1.0, 2.0], "grad_output": [3.0, 4.0], "w": 2}
    )
    assert grad.json() == {"grad_x": [6.0, 8.0], "grad_w": 11.0}


def test_answers_announce_their_length_and_are_not_chunked(service: Service) -> None:
    for content_type, body in BODIES.items():
        response = service.post("/quantize?op=round", body, content_type)
        assert int(response.headers["content-length"]) == len(response.content)
        assert "transfer-encoding" not in response.headers


def test_only_small_calls_are_answered_in_json() -> None:
    """A body of the limit for JSON, and one byte's worth more: the next format that is welcome, else 406."""
    x = torch.full((100,), 0.25)
    body = npy(x)
    for limit, answered in ((len(body), JSON), (len(body) - 1, MSGPACK)):
        with Service(max_json_bytes=limit) as service:
            both = service.post("/quantize?op=round", body, NPY, headers={"accept": f"{JSON}, {MSGPACK};q=0.5"})
            assert (both.status_code, both.headers["content-type"]) == (200, answered)
            assert_same_bits(decode(answered, both.content, "y")["y"], torch.round(x))
            alone = service.post("/grad?op=round", body + body, NPY, headers={"accept": JSON})
            assert (alone.status_code, alone.json()["code"]) == (406, "not_acceptable")
            assert str(limit) in alone.json()["detail"]
