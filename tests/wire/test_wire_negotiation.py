"""Which format a body has, and which ones an answer may have."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from service.errors import NotAcceptable, UnsupportedMediaType
from service.wire import BY_MEDIA_TYPE, FORMATS, negotiate, of_content_type, parse_content_type

MEDIA_TYPES = {
    "npy": ("application/x-npy", "application/vnd.numpy"),
    "msgpack": ("application/vnd.msgpack", "application/msgpack", "application/x-msgpack"),
    "json": ("application/json",),
    "safetensors": ("application/vnd.safetensors",),
}


def answers(accept: str | None, request: str = "npy") -> list[str]:
    return [media_type for _, media_type in negotiate(accept, FORMATS[request])]


def test_the_media_types_are_those_of_the_contract() -> None:
    assert {name: form.media_types for name, form in FORMATS.items()} == MEDIA_TYPES
    assert {name: form.name for name, form in FORMATS.items()} == {name: name for name in MEDIA_TYPES}
    assert list(BY_MEDIA_TYPE) == [media_type for media_types in MEDIA_TYPES.values() for media_type in media_types]


def test_npy_alone_has_no_place_for_names() -> None:
    assert [form.name for form in FORMATS.values() if not form.holds_names] == ["npy"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("accept", [None, "", "  ", "*/*", "*/*;q=0.1", "application/*", "text/html, */*"])
def test_where_accept_says_nothing_the_answer_is_in_the_format_of_the_request(name: str, accept: str | None) -> None:
    assert answers(accept, name)[0] == FORMATS[name].media_type
    assert set(answers(accept, name)) == {form.media_type for form in FORMATS.values()}


@pytest.mark.parametrize("media_type", BY_MEDIA_TYPE)
@pytest.mark.parametrize("request_name", FORMATS)
def test_a_media_type_that_is_asked_for_is_answered_by_that_name(media_type: str, request_name: str) -> None:
    assert answers(media_type, request_name) == [media_type]
    assert negotiate(media_type, FORMATS[request_name])[0][0] is BY_MEDIA_TYPE[media_type]


NPY, NUMPY, MSGPACK, SHORT_MSGPACK, JSON, SAFETENSORS = (
    "application/x-npy",
    "application/vnd.numpy",
    "application/vnd.msgpack",
    "application/msgpack",
    "application/json",
    "application/vnd.safetensors",
)


@pytest.mark.parametrize(
    ("accept", "request_name", "expected"),
    [
        (f"{JSON};q=0.5, {NPY}", "json", [NPY, JSON]),
        (f"{JSON}, {MSGPACK}", "npy", [JSON, MSGPACK]),
        (f"{MSGPACK}, {JSON}", "npy", [MSGPACK, JSON]),
        (f"{JSON}, {NPY}", "npy", [NPY, JSON]),
        (f"{SHORT_MSGPACK}, {MSGPACK}", "msgpack", [SHORT_MSGPACK, MSGPACK]),
        (f"{JSON}, */*;q=0.1", "npy", [JSON, NPY, MSGPACK, SAFETENSORS]),
        (f"{JSON}, text/plain, */*", "npy", [NPY, JSON, MSGPACK, SAFETENSORS]),
        (f"*/*, {NPY};q=0", "npy", [MSGPACK, JSON, SAFETENSORS]),
        (f"application/*;q=0, */*, {JSON};q=0.2", "npy", [JSON]),
        (f"*/*;q=0.3, application/*;q=0.9, {JSON};q=0.1", "npy", [NPY, MSGPACK, SAFETENSORS, JSON]),
        (f"{NUMPY};q=0.5, */*;q=0.4", "json", [NUMPY, JSON, NPY, MSGPACK, SAFETENSORS]),
        ("Application/JSON;Q=0.9;charset=utf-8", "npy", [JSON]),
        (f" {JSON} ; charset=utf-8 ; q=0.9 , text/html", "npy", [JSON]),
        (f"{JSON};q=high, {MSGPACK};q=0.9", "npy", [JSON, MSGPACK]),
        (f"{JSON};q=0.5, {MSGPACK};q=nan", "npy", [MSGPACK, JSON]),
        (f"{JSON};q=0.5, {MSGPACK};q=-1", "npy", [MSGPACK, JSON]),
        (f",;,/,application,{JSON};q,=", "npy", [JSON]),
        (f"{JSON};q=0.2, {JSON};q=0.8, {NPY};q=0.5", "json", [NPY, JSON]),
    ],
)
def test_the_best_is_first(accept: str, request_name: str, expected: list[str]) -> None:
    assert answers(accept, request_name) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "*/*;q=0.0", "garbage", "*", "text/*", "application/*;q=0"]
)
def test_where_nothing_is_left_the_offers_are_named(accept: str) -> None:
    with pytest.raises(NotAcceptable, match=r"offered: application/x-npy, .*application/json"):
        negotiate(accept, FORMATS["npy"])


def test_a_long_header_costs_little() -> None:
    started = time.process_time()
    for item in ("application/json,", ",", ";", "q=", "*/*;q=1;", "a/b;q=" + "9" * 100 + ","):
        accept = item * (16 * 1024 // len(item)) + ",application/json"
        assert answers(accept)[0] in ("application/json", "application/x-npy")
    # All of them take about 10 ms; a quadratic one alone would take seconds.
    assert time.process_time() - started < 1


@pytest.mark.parametrize("media_type", BY_MEDIA_TYPE)
def test_a_content_type_names_a_format_whatever_its_case_and_parameters(media_type: str) -> None:
    form = BY_MEDIA_TYPE[media_type]
    assert of_content_type(media_type) is form
    assert of_content_type(f" {media_type.upper()} ; charset=utf-8") is form
    assert parse_content_type(f" {media_type.upper()} ; charset=utf-8") == media_type


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/*", "*/*", "application/json2", ";application/json"])
def test_any_other_content_type_is_refused_with_those_that_are_read(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"allowed: application/x-npy, .*application/json"):
        of_content_type(content_type)


def test_the_codecs_need_no_torch_and_no_framework() -> None:
    code = (
        "import sys, service.wire; print([name for name in ('torch', 'fastapi', 'ml_dtypes', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
