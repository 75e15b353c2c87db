"""What is raised: the server's own classes by their codes, families for the rest, three of the client's own."""

from __future__ import annotations

import email.utils
import json
import pickle

import httpx
import numpy as np
import pytest
from rounding_server import Clock, RoundingServer, answering, problem, raising

from service.client import Client, ConnectionFailed, ProtocolError, RetryPolicy, TimedOut
from service.errors import BY_CODE, CapacityError, DeviceFault, NotFound, Overloaded, RequestError, StequantError, UriTooLong

X = np.float32([0.4, 1.6])


def raised(script: object, **arguments: object) -> StequantError:
    """What a call raises that is attempted once and answered so."""
    server = RoundingServer([script])  # type: ignore[list-item]
    with pytest.raises(StequantError) as caught:
        Client(transport=server.transport, retries=0, **arguments).quantize("round", X)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("cls", BY_CODE.values(), ids=list(BY_CODE))
def test_every_error_of_the_server_is_raised_as_its_own_class(cls: type[StequantError]) -> None:
    error = raised(lambda _: problem(cls("what is wrong", retry_after_s=7), **{"x-request-id": "r-1"}))
    assert type(error) is cls
    assert str(error) == error.detail == "what is wrong"
    assert (error.code, error.status, error.retry_after_s) == (cls.code, cls.status, 7)
    assert vars(error)["request_id"] == "r-1"


@pytest.mark.parametrize("cls", [ConnectionFailed, TimedOut, ProtocolError])
def test_the_clients_own_errors_are_of_the_family_and_no_code_of_the_server(cls: type[StequantError]) -> None:
    assert issubclass(cls, StequantError)
    assert cls.code not in BY_CODE
    copy = pickle.loads(pickle.dumps(cls("detail", retry_after_s=2)))
    assert (str(copy), copy.retry_after_s) == ("detail", 2)


def test_our_transport_errors_are_pythons_too() -> None:
    assert issubclass(ConnectionFailed, ConnectionError)
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(ConnectionFailed, CapacityError)
    assert issubclass(TimedOut, CapacityError)


FAMILIES = [
    (400, RequestError),
    (401, RequestError),
    (422, RequestError),
    (499, RequestError),
    (429, CapacityError),
    (503, CapacityError),
    (504, CapacityError),
    (500, StequantError),
    (502, StequantError),
    (599, StequantError),
    (204, ProtocolError),
    (307, ProtocolError),
    (600, ProtocolError),
]


@pytest.mark.parametrize(("status", "family"), FAMILIES)
def test_a_code_of_a_newer_server_is_raised_as_the_family_of_its_status(status: int, family: type[StequantError]) -> None:
    document = json.dumps({"code": "from_the_future", "detail": "new", "status": status, "request_id": "r-2"}).encode()
    error = raised(answering(status=status, content=document, content_type="application/problem+json; charset=utf-8"))
    assert type(error) is family
    assert (str(error), error.code, error.status, vars(error)["request_id"]) == ("new", "from_the_future", status, "r-2")


@pytest.mark.parametrize(("status", "family"), FAMILIES)
def test_a_page_of_a_proxy_is_shown_with_its_status_and_beginning(status: int, family: type[StequantError]) -> None:
    page = f"<html><body>nginx{'é' * 10_000}</body></html>".encode()
    error = raised(answering(status=status, content=page, content_type="text/html"))
    assert type(error) is family
    assert error.status == status
    assert str(error).startswith(f"{status} text/html: '<html><body>nginxéé")
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"3",
        b"null",
        b"{}",
        b'{"code": 3}',
        b'{"detail": 4}',
        b'{"code": [], "detail": {}}',
        b"[" * 60_000,
        b"\xff\xfe",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_problem_document_that_is_none_is_an_error_all_the_same(content: bytes) -> None:
    error = raised(answering(status=422, content=content, content_type="application/problem+json"))
    assert type(error) is RequestError
    assert str(error).startswith("422 application/problem+json")


def test_a_title_stands_in_for_a_detail() -> None:
    document = b'{"code": "not_found", "title": "There is nothing here"}'
    error = raised(answering(status=404, content=document, content_type="application/problem+json"))
    assert type(error) is NotFound
    assert str(error) == "There is nothing here"


def test_an_error_page_without_end_is_cut() -> None:
    assert len(str(raised(answering(status=500, content=bytes(10_000_000), content_type="text/plain")))) < 1000


def test_a_redirection_is_not_followed_and_says_where_to() -> None:
    error = raised(answering(status=307, content=b"", location="https://elsewhere/"), api_key="s3cret")
    assert type(error) is ProtocolError
    assert "to 'https://elsewhere/'" in str(error)


NOW_S = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": email.utils.formatdate(NOW_S + 5, usegmt=True)}, 5.0),
        ({"retry-after": email.utils.formatdate(NOW_S - 5, usegmt=True)}, 0.0),
        (
            {
                "retry-after": email.utils.formatdate(NOW_S + 3605, usegmt=True),
                "date": email.utils.formatdate(NOW_S + 3600, usegmt=True),
            },
            5.0,
        ),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
    ids=["seconds", "none", "date", "past date", "by the server's clock", "word", "negative", "fraction", "blank", "absent"],
)
def test_retry_after_is_read_in_both_its_forms(headers: dict[str, str], expected_s: float | None) -> None:
    policy = RetryPolicy(max_attempts=1, wall_clock=lambda: NOW_S)
    server = RoundingServer([answering(status=429, content=b"", **headers)])
    with pytest.raises(CapacityError) as caught:
        Client(transport=server.transport, retries=policy).quantize("round", X)
    assert caught.value.retry_after_s == expected_s


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed),
        (httpx.ConnectTimeout("no route"), ConnectionFailed),
        (httpx.ReadError(""), ConnectionFailed),
        (httpx.WriteError("broken pipe"), ConnectionFailed),
        (httpx.CloseError("closed"), ConnectionFailed),
        (httpx.RemoteProtocolError("Server disconnected"), ConnectionFailed),
        (httpx.ProxyError("407"), ConnectionFailed),
        (httpx.ReadTimeout("slow"), TimedOut),
        (httpx.WriteTimeout("slow"), TimedOut),
        (httpx.PoolTimeout(""), TimedOut),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_failures_of_the_transport_are_raised_as_ours(theirs: Exception, ours: type[StequantError]) -> None:
    error = raised(raising(theirs))
    assert type(error) is ours
    assert error.__cause__ is theirs
    assert str(error).startswith(f"POST http://127.0.0.1:8000/quantize: {type(theirs).__name__}")


def test_an_answer_that_cannot_be_decompressed_is_none() -> None:
    headers = {"content-type": "application/x-npy", "content-encoding": "gzip"}
    server = RoundingServer([lambda _: httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"no gzip"))])
    with pytest.raises(ProtocolError, match="DecodingError"):
        Client(transport=server.transport).quantize("round", X)


def test_an_expression_that_no_url_can_hold_is_refused() -> None:
    with pytest.raises(UriTooLong, match="URL"):
        Client(transport=RoundingServer().transport).quantize("round" + " " * 70_000, X)


def test_families_can_be_caught() -> None:
    assert isinstance(raised(lambda _: problem(BY_CODE["out_of_memory"]("no memory"))), DeviceFault)
    assert isinstance(raised(lambda _: problem(BY_CODE["bad_parameter"]("k"))), ValueError)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (answering(content=b"ok", content_type="text/plain"), True),
        (lambda _: problem(BY_CODE["draining"]("soon gone")), False),
        (answering(status=502, content=b"bad gateway"), False),
        (answering(status=307, content=b"", location="/login"), False),
        (raising(httpx.ConnectError("refused")), False),
        (raising(httpx.ReadTimeout("slow")), False),
    ],
    ids=["200", "503", "502", "307", "refused", "timeout"],
)
def test_health_and_readiness_are_asked_once(answer: object, expected: bool) -> None:
    clock = Clock()
    server = RoundingServer([answer, answer])  # type: ignore[list-item]
    client = Client(transport=server.transport, sleep=clock.sleep)
    assert client.healthy() is expected
    assert client.ready() is expected
    assert [request.url.path for request in server.requests] == ["/healthz", "/readyz"]
    assert clock.slept_s == []


def test_another_kind_of_server_is_not_just_unhealthy() -> None:
    server = RoundingServer([answering(status=404, content=b"nothing here")])
    with pytest.raises(RequestError, match="404"):
        Client(transport=server.transport).healthy()


def test_waiting_for_readiness_ends_with_it() -> None:
    clock = Clock()
    not_yet = [raising(httpx.ConnectError("refused")), lambda _: problem(BY_CODE["not_ready"]("warming up"))]
    server = RoundingServer([*not_yet, *not_yet])
    Client(transport=server.transport, retries=RetryPolicy(clock=clock), sleep=clock.sleep).wait_until_ready(10)
    assert len(server.requests) == 5
    assert len(clock.slept_s) == 4


def test_waiting_for_readiness_ends_in_time_with_the_reason() -> None:
    clock = Clock()
    server = RoundingServer([lambda _: problem(BY_CODE["not_ready"]("warming up"))] * 100)
    with pytest.raises(TimedOut, match="not ready within 2 s: warming up") as caught:
        Client(transport=server.transport, retries=RetryPolicy(clock=clock), sleep=clock.sleep).wait_until_ready(2)
    assert sum(clock.slept_s) <= 2
    assert isinstance(caught.value.__cause__, BY_CODE["not_ready"])


def test_overload_says_when_to_come_back() -> None:
    error = raised(lambda _: problem(Overloaded("too much", retry_after_s=3)))
    assert isinstance(error, CapacityError)
    assert error.retry_after_s == 3
