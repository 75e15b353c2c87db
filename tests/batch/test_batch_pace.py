"""What is in flight falls when it is refused, and rises again; never below one, never above the most."""

from __future__ import annotations

import threading

from server_process import eventually

from service.batch.pace import Pace


def refuse(pace: Pace) -> None:
    with pace.slot() as current:
        pace.refused(current)


def test_a_refusal_halves_and_answers_add_one_a_round() -> None:
    pace = Pace(16)
    refuse(pace)
    assert pace.bound == 8
    refuse(pace)
    assert pace.bound == 4
    for _ in range(5):
        pace.answered()
    assert pace.bound == 5


def test_the_bound_stays_between_one_and_the_most() -> None:
    pace = Pace(4)
    for _ in range(10):
        refuse(pace)
    assert pace.bound == 1
    for _ in range(100):
        pace.answered()
    assert pace.bound == 4


def test_refusals_of_one_round_count_once() -> None:
    pace = Pace(8)
    with pace.slot() as one, pace.slot() as two, pace.slot() as three:
        for current in (one, two, three):
            pace.refused(current)
    assert pace.bound == 4
    refuse(pace)
    assert pace.bound == 2


def test_no_more_are_in_flight_than_the_bound_allows() -> None:
    pace = Pace(4)
    refuse(pace)  # 2
    going, at_once, most = threading.Event(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal at_once, most
        with pace.slot():
            with lock:
                at_once += 1
                most = max(most, at_once)
            going.wait(30)
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: at_once == 2, "two in flight")
    pace.answered()
    pace.answered()
    pace.answered()  # 3: one more may go
    eventually(lambda: at_once == 3, "three in flight")
    going.set()
    for thread in threads:
        thread.join(30)
    assert most == 3
