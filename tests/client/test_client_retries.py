"""What is sent again, how often and when: a table, and laws about the waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounding_server import Clock, RoundingServer, Scripted, answering, problem, raising

from service.client import AsyncClient, Client, ConnectionFailed, RetryPolicy, TimedOut
from service.client.retries import RETRIED_STATUSES
from service.errors import BY_CODE, CapacityError, DeadlineExceeded, NotReady, Overloaded, StequantError

X = np.float32([0.4, 1.6])

RETRIED: dict[str, Scripted] = {
    "connection refused": raising(httpx.ConnectError("refused")),
    "no route": raising(httpx.ConnectTimeout("no route")),
    "reset while reading": raising(httpx.ReadError("reset")),
    "reset while writing": raising(httpx.WriteError("reset")),
    "disconnected": raising(httpx.RemoteProtocolError("Server disconnected without sending a response.")),
    "429 of a proxy": answering(status=429, content=b"slow down", content_type="text/plain"),
    "503 of a proxy": answering(status=503, content=b"<html>", content_type="text/html"),
}
NOT_RETRIED: dict[str, Scripted] = {
    "read timeout": raising(httpx.ReadTimeout("slow")),
    "write timeout": raising(httpx.WriteTimeout("slow")),
    "pool timeout": raising(httpx.PoolTimeout("full")),
    "502 of a proxy": answering(status=502, content=b"<html>", content_type="text/html"),
    "504 of a proxy": answering(status=504, content=b"<html>", content_type="text/html"),
    "redirection": answering(status=307, content=b"", location="/"),
    "no answer to the call": answering(content=b"no npy"),
}
for code, cls in BY_CODE.items():
    table = RETRIED if cls.status in (429, 503) else NOT_RETRIED
    table[code] = lambda _, cls=cls: problem(cls("detail", retry_after_s=0))  # type: ignore[misc]


def called(kind: type, server: RoundingServer, clock: Clock, **arguments: object) -> np.ndarray:
    """One call by the one or the other client."""
    arguments.setdefault("retries", policy(clock))
    if kind is Client:
        with Client(transport=server.transport, sleep=clock.sleep, **arguments) as client:  # type: ignore[arg-type]
            return client.quantize("round", X)

    async def call() -> np.ndarray:
        async with AsyncClient(transport=server.transport, sleep=clock.sleep_async, **arguments) as client:  # type: ignore[arg-type]
            return await client.quantize("round", X)

    return asyncio.run(call())


def policy(clock: Clock, *, random: Callable[[], float] = lambda: 1.0, **arguments: float) -> RetryPolicy:
    return RetryPolicy(clock=clock, random=random, **arguments)  # type: ignore[arg-type]


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
@pytest.mark.parametrize("failure", RETRIED.values(), ids=list(RETRIED))
def test_what_may_pass_is_sent_again(kind: type, failure: Scripted) -> None:
    server = RoundingServer([failure, failure])
    np.testing.assert_array_equal(called(kind, server, Clock()), [0, 2])
    assert [request.content for request in server.requests] == [server.requests[0].content] * 3


@both
@pytest.mark.parametrize("failure", NOT_RETRIED.values(), ids=list(NOT_RETRIED))
def test_what_would_come_out_the_same_is_sent_once(kind: type, failure: Scripted) -> None:
    server = RoundingServer([failure])
    with pytest.raises(StequantError):
        called(kind, server, Clock())
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_last_attempt_raises_what_it_met(kind: type, retries: int) -> None:
    server = RoundingServer([RETRIED["connection refused"]] * retries + [RETRIED["not_ready"]])
    with pytest.raises(NotReady):
        called(kind, server, Clock(), retries=retries)
    assert len(server.requests) == retries + 1


@both
def test_the_bounds_of_the_waits_double_up_to_a_maximum(kind: type) -> None:
    clock = Clock()
    with pytest.raises(ConnectionFailed):
        called(kind, RoundingServer([RETRIED["disconnected"]] * 9), clock, retries=policy(clock, max_attempts=9, max_backoff_s=5))
    assert clock.slept_s == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])


@both
def test_retry_after_is_waited_for_and_spread(kind: type) -> None:
    clock = Clock()
    server = RoundingServer([lambda _: problem(Overloaded("full", retry_after_s=3))] * 2)
    called(kind, server, clock, retries=policy(clock, random=lambda: 0.5))
    assert clock.slept_s == pytest.approx([3.1, 3.2])


@both
def test_a_retry_after_beyond_patience_is_left_to_the_caller(kind: type) -> None:
    clock = Clock()
    server = RoundingServer([lambda _: problem(Overloaded("full", retry_after_s=61))])
    with pytest.raises(Overloaded) as caught:
        called(kind, server, clock)
    assert caught.value.retry_after_s == 61
    assert clock.slept_s == []


@both
def test_no_wait_goes_beyond_the_deadline(kind: type) -> None:
    """The error that is raised is the server's reason, not the passing of time."""
    clock = Clock()
    server = RoundingServer([lambda _: problem(Overloaded("full", retry_after_s=3))] * 9)
    with pytest.raises(Overloaded):
        called(kind, server, clock, deadline_s=8)
    assert len(server.requests) == 3
    assert sum(clock.slept_s) < 8


@both
def test_steps_are_bounded_by_what_is_left_of_the_deadline(kind: type) -> None:
    clock = Clock()
    server = RoundingServer([lambda _: problem(Overloaded("full", retry_after_s=3))])
    called(kind, server, clock, deadline_s=8, timeout=6)
    first, second = (request.extensions["timeout"] for request in server.requests)
    assert first == {"connect": 5, "read": 6, "write": 6, "pool": 8}
    assert second == pytest.approx({"connect": 4.8, "read": 4.8, "write": 4.8, "pool": 4.8})


def test_without_a_deadline_only_a_step_is_bounded() -> None:
    server = RoundingServer()
    called(Client, server, Clock())
    called(Client, server, Clock(), timeout=None)
    called(Client, server, Clock(), timeout=httpx.Timeout(1, read=2))
    assert [request.extensions["timeout"] for request in server.requests] == [
        {"connect": 5, "read": 60, "write": 60, "pool": None},
        {"connect": None, "read": None, "write": None, "pool": None},
        {"connect": 1, "read": 2, "write": 1, "pool": 1},
    ]


@both
def test_a_deadline_ends_a_call_that_trickles(kind: type) -> None:
    """Every step is quick, all of them together are not."""
    clock = Clock()
    answer = RoundingServer().computed

    class Trickling(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self.content = content

        def __iter__(self):
            for byte in self.content:
                clock.now_s += 1
                yield bytes([byte])

        async def __aiter__(self):
            for piece in self:
                yield piece

    def trickle(request: httpx.Request) -> httpx.Response:
        whole = answer(request)
        return httpx.Response(200, headers=whole.headers, stream=Trickling(whole.content))

    with pytest.raises(TimedOut, match="within its deadline of 20 s"):
        called(kind, RoundingServer([trickle]), clock, deadline_s=20)
    assert clock.now_s == pytest.approx(1020, abs=1)


def test_a_deadline_that_has_passed_is_not_tried_against() -> None:
    """A 504 is the server's word for the same."""
    server = RoundingServer([lambda _: problem(DeadlineExceeded("late", retry_after_s=0))])
    with pytest.raises(DeadlineExceeded):
        called(Client, server, Clock())
    assert len(server.requests) == 1


@given(
    failed=st.integers(1, 100_000),
    dice=st.floats(0, 1, exclude_max=True),
    asked_s=st.none() | st.floats(0, 60),
    status=st.sampled_from(sorted(RETRIED_STATUSES)),
)
def test_no_wait_is_shorter_than_asked_for_or_longer_than_bounded(
    failed: int, dice: float, asked_s: float | None, status: int
) -> None:
    error = CapacityError("later", retry_after_s=asked_s)
    vars(error)["status"] = status
    patience = RetryPolicy(max_attempts=failed + 1, random=lambda: dice)
    wait_s = patience.wait_s(failed, error)
    assert wait_s is not None
    assert (asked_s or 0) <= wait_s <= (asked_s or 0) + patience.max_backoff_s
    assert patience.wait_s(failed + 1, error) is None


@pytest.mark.parametrize(
    "arguments",
    [{"max_attempts": 0}, {"first_backoff_s": -1}, {"max_backoff_s": -0.1}, {"max_retry_after_s": float("nan")}],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RetryPolicy(**arguments)  # type: ignore[arg-type]
