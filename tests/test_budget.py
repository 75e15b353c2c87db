"""The budget of bytes in flight, and what it tells a caller to wait."""

from __future__ import annotations

import pytest

from service.budget import Budget
from service.errors import Overloaded

MIB = 2**20


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> Budget:
    return Budget(64 * MIB, clock)


def worked(budget: Budget, clock: Clock, nbytes: int, seconds: float) -> None:
    """Calls of `nbytes` come and go, one every quarter of a second."""
    for _ in range(int(seconds * 4)):
        budget.reserve(nbytes)
        clock.now_s += 0.25
        budget.release(nbytes)
        budget.look()


def wait_s(budget: Budget, nbytes: int) -> float:
    with pytest.raises(Overloaded) as refused:
        budget.reserve(nbytes)
    assert refused.value.retry_after_s is not None
    return refused.value.retry_after_s


def test_what_fits_is_taken_and_what_does_not_is_refused_whole(budget: Budget) -> None:
    budget.reserve(60 * MIB)
    with pytest.raises(Overloaded, match=f"{60 * MIB} bytes are in flight and this call needs {5 * MIB}; allowed: {64 * MIB}"):
        budget.reserve(5 * MIB)
    assert budget.in_flight_bytes == 60 * MIB
    budget.reserve(4 * MIB)
    budget.release(64 * MIB)
    assert budget.in_flight_bytes == 0


def test_the_wait_is_what_the_missing_bytes_take_at_the_rate_of_late(budget: Budget, clock: Clock) -> None:
    worked(budget, clock, 40 * MIB, seconds=60)  # 160 MiB/s
    budget.reserve(64 * MIB)
    budget.limit_bytes = 0
    assert wait_s(budget, 16 * 64 * MIB) == pytest.approx(17 * 64 / 160, rel=0.01)


def test_the_wait_has_bounds(budget: Budget, clock: Clock) -> None:
    budget.reserve(64 * MIB)
    assert wait_s(budget, 1) == 1  # nothing is known yet
    budget.release(64 * MIB)
    worked(budget, clock, 40 * MIB, seconds=10)
    budget.reserve(64 * MIB)
    assert wait_s(budget, 1) == 1
    for _ in range(1000):
        clock.now_s += 0.25
        budget.look()
    assert wait_s(budget, 64 * MIB) == 30


def test_idling_is_not_taken_for_slowness(budget: Budget, clock: Clock) -> None:
    worked(budget, clock, 1000, seconds=600)
    budget.reserve(64 * MIB)
    assert wait_s(budget, 64 * MIB) == 1
