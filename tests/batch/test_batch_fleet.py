"""Whose turn it is among several servers, by a clock that the test turns."""

from __future__ import annotations

from service.batch.connection import Address
from service.batch.fleet import Fleet


class Clock:
    """A clock that stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def fleet(count: int) -> tuple[Fleet, Clock]:
    clock = Clock()
    return Fleet([Address(f"http://host{index}") for index in range(count)], timeout_s=1, clock=clock), clock


def test_servers_take_turns() -> None:
    servers, _ = fleet(3)
    assert [servers.next() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_lost_server_is_left_out_for_longer_each_time_until_it_answers() -> None:
    servers, clock = fleet(2)
    absences = []
    for _ in range(9):
        assert servers.lost(1) == 0.0, "the other one can be asked at once"
        began = clock.now
        while True:
            asked = {servers.next(), servers.next()}
            if 1 in asked:
                break
            assert asked == {0}
            clock.now += 0.05
        absences.append(round(clock.now - began, 3))
    assert absences == sorted(absences)
    assert absences[0] < 0.5
    assert 9 < absences[-1] < 11
    servers.answered(1)
    servers.lost(1)
    clock.now += 0.25
    assert {servers.next(), servers.next()} == {0, 1}


def test_where_all_are_lost_the_wait_is_that_of_the_first_to_be_asked_again() -> None:
    servers, clock = fleet(2)
    servers.lost(0)
    clock.now += 0.15
    wait_s = servers.lost(1)
    assert 0.0 < wait_s < 0.1
    assert servers.next() == 0
    clock.now += wait_s
    assert servers.next() == 0


def test_failures_of_calls_that_were_under_way_count_once() -> None:
    servers, clock = fleet(1)
    first_s = servers.lost(0)
    assert [servers.lost(0) for _ in range(5)] == [first_s] * 5
    clock.now += first_s
    assert servers.lost(0) > first_s
