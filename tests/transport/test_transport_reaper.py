"""The reaper's clock, which stands still while there is no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.transport.reaper import INTERVAL_S, Reaper


class Clock(asyncio.AbstractEventLoop):
    """A loop whose time passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.seconds

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def]
        self.due.append((self.seconds + delay, callback))
        return asyncio.TimerHandle(self.seconds + delay, callback, args, self)

    def get_debug(self) -> bool:
        return False

    def advance(self, seconds: float) -> None:
        end = self.seconds + seconds
        while self.due and min(self.due)[0] <= end:
            self.due.sort()
            self.seconds, callback = self.due.pop(0)
            callback()
        self.seconds = end


class Watched:
    """A connection that is reaped once."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.expired_at: list[float] = []

    def expired(self, now: float) -> None:
        self.expired_at.append(now)
        self.deadline = float("inf")


def test_a_connection_is_reaped_soon_after_its_deadline_and_not_before() -> None:
    clock = Clock()
    reaper, watched = Reaper(clock), Watched(10.0)
    reaper.watch(watched)
    clock.advance(9.9)
    assert not watched.expired_at
    clock.advance(10)
    (at,) = watched.expired_at
    assert 10.0 <= at <= 10.0 + 2 * INTERVAL_S


def test_the_first_connection_after_a_long_silence_is_given_the_time_of_now() -> None:
    clock = Clock()
    reaper = Reaper(clock)
    first = Watched(1000.0)
    reaper.watch(first)
    clock.advance(5)
    reaper.forget(first)
    clock.advance(3600)
    assert not clock.due, "an idle reaper costs nothing"
    reaper.watch(Watched(float("inf")))
    assert reaper.now == clock.time()
