"""When something is sent again, how long is waited, and when it is given up; clock and dice are the test's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from test_batch_fleet import Clock

from service.batch.errors import BadInput, BadUsage, GaveUp, Stopped
from service.batch.pace import Pace
from service.batch.persistence import Persistence
from service.batch.stopping import Stop
from service.client.errors import ConnectionFailed, ProtocolError, TimedOut
from service.errors import (
    BY_CODE,
    BodyTooLarge,
    CapacityError,
    DeadlineExceeded,
    NotAllowed,
    OutOfMemory,
    Overloaded,
    RequestError,
    StequantError,
    Unauthorized,
)


class Waits(Stop):
    """A stop that does not wait, but notes how long it was to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.clock.now += seconds
        self.check()


def persistence(*, retries: int = 3, give_up_after_s: float = 60, dice: float = 1.0) -> tuple[Persistence, Waits, Pace, list[int]]:
    clock = Clock()
    waits, pace, retried = Waits(clock), Pace(8), []
    made = Persistence(
        pace,
        waits,
        lambda: retried.append(1),
        retries=retries,
        give_up_after_s=give_up_after_s,
        clock=clock,
        dice=lambda: dice,
    )
    return made, waits, pace, retried


def failing(*failures: StequantError) -> Callable[[], str]:
    """Something to send that fails so, and then succeeds."""
    left: Iterator[StequantError] = iter(failures)

    def send() -> str:
        for failure in left:
            raise failure
        return "sent"

    return send


def test_what_succeeds_is_sent_once() -> None:
    made, waits, _, retried = persistence()
    assert made.attempt(failing()) == "sent"
    assert (waits.seconds, retried) == ([], [])


def test_a_time_that_the_server_names_is_waited_and_a_little_more() -> None:
    made, waits, _, retried = persistence(dice=0.4)
    assert made.attempt(failing(Overloaded("full", retry_after_s=2.0))) == "sent"
    assert waits.seconds == [pytest.approx(2.2)]
    assert len(retried) == 1


def test_without_one_waits_double_up_to_ten_seconds() -> None:
    made, waits, _, _ = persistence()
    failures = [Overloaded("full", retry_after_s=None) for _ in range(10)]
    assert made.attempt(failing(*failures)) == "sent"
    assert waits.seconds == [pytest.approx(min(10, 0.1 * 2**n)) for n in range(10)]


@pytest.mark.parametrize(
    "failure", [Overloaded("full"), CapacityError("later"), ConnectionFailed("gone", retry_after_s=1.0)], ids=repr
)
def test_lack_of_capacity_is_waited_out_however_often(failure: StequantError) -> None:
    made, _, _, _ = persistence(retries=0, give_up_after_s=1000)
    assert made.attempt(failing(*[failure] * 50)) == "sent"


@pytest.mark.parametrize(
    "failure",
    [TimedOut("slow"), DeadlineExceeded("slow"), ProtocolError("odd"), OutOfMemory("large"), StequantError("bug")],
    ids=lambda failure: failure.code,
)
def test_other_failures_are_tried_as_often_as_was_asked(failure: StequantError) -> None:
    made, _, _, retried = persistence(retries=3)
    assert made.attempt(failing(*[failure] * 3)) == "sent"
    assert len(retried) == 3
    with pytest.raises(BadInput, match=f"4 attempts: {failure}"):
        made.attempt(failing(*[failure] * 4))


def test_the_job_gives_up_when_nothing_was_answered_for_so_long() -> None:
    made, waits, _, _ = persistence(give_up_after_s=5)
    with pytest.raises(GaveUp, match="5 s; last: full"):
        made.attempt(failing(*[Overloaded("full", retry_after_s=1.0)] * 100))
    assert 5 <= waits.clock.now < 7


def test_an_answer_to_anyone_begins_the_time_anew() -> None:
    made, _, _, _ = persistence(give_up_after_s=5)
    for _ in range(10):
        assert made.attempt(failing(*[Overloaded("full", retry_after_s=1.0)] * 3)) == "sent"
        assert made.trouble is None


def test_what_is_waited_for_can_be_told() -> None:
    made, _, _, _ = persistence()
    seen = []

    def send() -> str:
        seen.append(made.trouble)
        if len(seen) == 1:
            raise Overloaded("full")
        return "sent"

    made.attempt(send)
    assert seen == [None, "full"]


def test_capacity_lowers_the_pace_and_a_lost_connection_does_not() -> None:
    made, _, pace, _ = persistence()
    made.attempt(failing(ConnectionFailed("gone", retry_after_s=0.0)))
    assert pace.bound == 8
    made.attempt(failing(Overloaded("full")))
    assert pace.bound == 4


@pytest.mark.parametrize(
    "error", [NotAllowed("no"), BY_CODE["parameter_does_not_fit"]("no"), BY_CODE["malformed_body"]("no")], ids=repr
)
def test_a_refusal_of_what_was_sent_is_a_bad_input(error: RequestError) -> None:
    made, _, _, retried = persistence()
    with pytest.raises(BadInput, match=rf"no \[{error.code}\]"):
        made.attempt(failing(error))
    assert retried == []


@pytest.mark.parametrize("error", [Unauthorized("who"), BodyTooLarge("large"), BY_CODE["uri_too_long"]("long")], ids=repr)
def test_a_refusal_that_every_file_would_meet_is_wrong_usage(error: RequestError) -> None:
    made, _, _, _ = persistence()
    with pytest.raises(BadUsage, match=error.detail):
        made.attempt(failing(error))


def test_a_stop_ends_a_wait_at_once_and_sends_nothing_more() -> None:
    stop = Stop()
    made = Persistence(Pace(1), stop, lambda: None, retries=0, give_up_after_s=1000)
    ended: list[type[BaseException]] = []

    def work() -> None:
        try:
            made.attempt(failing(Overloaded("full", retry_after_s=1000.0)))
        except Stopped as error:
            ended.append(type(error))

    thread = threading.Thread(target=work)
    began = time.monotonic()
    thread.start()
    stop.set()
    thread.join(30)
    assert ended == [Stopped]
    assert time.monotonic() - began < 30
    with pytest.raises(Stopped):
        made.attempt(lambda: pytest.fail("sent after the stop"))
