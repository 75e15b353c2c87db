"""What a supervisor decides, without a process: fakes that beat and end when a test says so, and a clock that it sets."""

from __future__ import annotations

import itertools
import signal

import pytest

from service.processes.member import Limits
from service.processes.place import FIRST_PAUSE_S, HEALTHY_S, LONGEST_PAUSE_S, Place
from service.processes.signals import RETIRE
from service.processes.supervisor import Clock, Supervisor
from service.processes.worker import CANNOT_SERVE

LIMITS = Limits(start_s=20, silence_s=5, drain_delay_s=2, grace_s=10)


class Fake:
    """A worker process that does what it is told to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_status: int | None = None
        self.beats = False
        self.signals: list[int] = []
        self.is_closed = False

    def has_beaten(self) -> bool:
        return self.beats and self.exit_status is None

    def send(self, sig: int) -> None:
        self.signals.append(sig)
        if sig == signal.SIGKILL:
            self.exit_status = -sig

    def close(self) -> None:
        assert self.exit_status is not None
        self.is_closed = True


class World:
    """A supervisor, its places, the processes that they have hired, and the time."""

    def __init__(self, places: int = 1) -> None:
        self.hired: list[Fake] = []
        pids = itertools.count(100)

        self.nobody_can_be_hired = False

        def hire(_index: int) -> Fake:
            if self.nobody_can_be_hired:
                raise OSError("no more processes")
            self.hired.append(Fake(next(pids)))
            return self.hired[-1]

        self.supervisor = Supervisor([Place(index, hire, LIMITS) for index in range(places)])
        self.now = 0.0
        self.look()

    def look(self) -> None:
        self.supervisor.look(self.now)

    def pass_time(self, seconds: float, step_s: float = 0.1) -> None:
        """Look on while time passes."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step_s, end)
            self.look()

    def make_ready(self) -> None:
        """Let everyone who was hired beat."""
        for fake in self.hired:
            fake.beats = True
        self.pass_time(0.1)

    def ask_to_reload(self) -> None:
        self.supervisor.reload(self.now)
        self.pass_time(0.1)


def pause_after(world: World) -> float:
    """How long it takes until another worker is hired after the last one ends now."""
    before = len(world.hired)
    world.hired[-1].exit_status = 1
    world.look()
    ended = world.now
    while len(world.hired) == before:
        world.pass_time(0.1)
        assert world.now - ended < 100
    return world.now - ended


# Workers that end by themselves ----------------------------------------------------------------------------


def test_a_worker_that_ends_again_and_again_is_started_ever_more_slowly() -> None:
    world = World()
    pauses = [pause_after(world) for _ in range(9)]
    expected = [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)]
    assert pauses == pytest.approx(expected, abs=0.15)
    assert expected[-1] == LONGEST_PAUSE_S == 30
    assert all(fake.is_closed for fake in world.hired[:-1])


def test_after_a_minute_of_health_the_pause_is_short_again() -> None:
    world = World()
    for _ in range(4):
        pause_after(world)
    world.make_ready()
    world.pass_time(HEALTHY_S - 1)
    assert pause_after(world) == pytest.approx(FIRST_PAUSE_S * 2**4, abs=0.15)
    world.make_ready()
    world.pass_time(HEALTHY_S + 1)
    assert pause_after(world) == pytest.approx(FIRST_PAUSE_S, abs=0.15)
    assert pause_after(world) == pytest.approx(2 * FIRST_PAUSE_S, abs=0.15)


def test_time_without_readiness_is_no_health() -> None:
    world = World()
    world.pass_time(LIMITS.start_s - 1)
    pause_after(world)
    world.pass_time(LIMITS.start_s - 1)
    assert pause_after(world) == pytest.approx(2 * FIRST_PAUSE_S, abs=0.15)


def test_when_no_worker_can_start_there_is_nothing_to_supervise() -> None:
    world = World(places=2)
    first, second = world.hired
    first.exit_status = CANNOT_SERVE
    world.look()
    assert not world.supervisor.cannot_serve
    world.pass_time(2)  # the first one has been started again meanwhile
    second.exit_status = CANNOT_SERVE
    world.look()
    assert world.supervisor.cannot_serve


@pytest.mark.parametrize("status", [CANNOT_SERVE, 1, -9])
def test_a_service_that_has_once_served_goes_on_trying(status: int) -> None:
    world = World()
    if status == CANNOT_SERVE:
        world.make_ready()
    world.hired[0].exit_status = status
    world.look()
    assert not world.supervisor.cannot_serve


def test_where_no_process_can_be_made_the_others_go_on_and_it_is_tried_again() -> None:
    world = World(places=2)
    world.make_ready()
    world.nobody_can_be_hired = True
    world.ask_to_reload()
    world.pass_time(60)
    assert [fake.signals for fake in world.hired] == [[signal.SIGHUP]] * 2
    world.hired[0].exit_status = -9
    world.pass_time(60)
    world.nobody_can_be_hired = False
    world.pass_time(LONGEST_PAUSE_S)
    assert len(world.hired) == 3
    assert world.hired[1].signals == [signal.SIGHUP]


# Workers that do not do what they should -------------------------------------------------------------------


def test_a_worker_that_does_not_become_ready_is_killed_and_started_again() -> None:
    world = World()
    (slow,) = world.hired
    world.pass_time(LIMITS.start_s - 0.5)
    assert slow.signals == []
    world.pass_time(1)
    assert slow.signals == [signal.SIGKILL]
    world.pass_time(FIRST_PAUSE_S)
    assert len(world.hired) == 2
    assert slow.is_closed


def test_a_worker_whose_loop_stands_still_is_killed_and_started_again() -> None:
    world = World()
    (wedged,) = world.hired
    world.make_ready()
    world.pass_time(10 * LIMITS.silence_s)
    assert wedged.signals == []
    wedged.beats = False
    world.pass_time(LIMITS.silence_s - 0.5)
    assert wedged.signals == []
    world.pass_time(1)
    assert wedged.signals == [signal.SIGKILL]
    world.pass_time(1)
    assert len(world.hired) == 2


def test_a_supervisor_that_was_itself_stopped_does_not_take_its_workers_for_silent() -> None:
    real = iter([0.0, 0.1, 3600.1, 3600.2])
    clock = Clock(lambda: next(real))
    assert [clock.tick() for _ in range(3)] == pytest.approx([0.1, 1.1, 1.2])


# Replacing workers that are well ---------------------------------------------------------------------------


def test_a_reload_replaces_one_worker_after_the_other_and_only_by_one_that_is_ready() -> None:
    world = World(places=2)
    old = world.hired[:]
    world.make_ready()
    world.ask_to_reload()
    assert [fake.signals for fake in old] == [[signal.SIGHUP]] * 2
    world.pass_time(5)
    assert len(world.hired) == 3
    assert not any(RETIRE in fake.signals for fake in old)
    world.hired[2].beats = True
    world.pass_time(0.2)
    assert [RETIRE in fake.signals for fake in old] == [True, False]
    world.pass_time(5)
    assert len(world.hired) == 4
    world.hired[3].beats = True
    world.pass_time(0.2)
    assert [RETIRE in fake.signals for fake in old] == [True, True]
    for fake in old:
        fake.exit_status = 0
    world.pass_time(120)
    assert len(world.hired) == 4
    assert all(fake.is_closed for fake in old)
    assert [fake.signals for fake in world.hired[2:]] == [[], []]


def test_a_worker_that_does_not_leave_in_time_is_killed() -> None:
    world = World()
    world.make_ready()
    world.ask_to_reload()
    world.make_ready()
    old = world.hired[0]
    world.pass_time(LIMITS.grace_s)
    assert old.signals == [signal.SIGHUP, RETIRE]
    world.pass_time(6)
    assert old.signals[-1] == signal.SIGKILL
    assert old.is_closed


@pytest.mark.parametrize("fails", ["ends", "never ready"])
def test_a_successor_that_fails_leaves_the_old_workers_where_they_are(fails: str) -> None:
    world = World(places=2)
    world.make_ready()
    world.ask_to_reload()
    successor = world.hired[2]
    if fails == "ends":
        successor.exit_status = CANNOT_SERVE
        world.pass_time(0.1)
    else:
        world.pass_time(LIMITS.start_s + 1)
    world.pass_time(120)
    assert successor.is_closed
    assert len(world.hired) == 3
    assert [fake.signals for fake in world.hired[:2]] == [[signal.SIGHUP]] * 2
    assert not world.supervisor.cannot_serve


def test_a_second_reload_replaces_those_who_were_started_before_it() -> None:
    """They may have read their keys before the file was changed."""
    world = World()
    world.make_ready()
    world.ask_to_reload()
    world.ask_to_reload()
    world.make_ready()
    world.pass_time(0.5)
    assert len(world.hired) == 3
    assert world.hired[1].signals == [signal.SIGHUP]
    world.make_ready()
    assert world.hired[1].signals == [signal.SIGHUP, RETIRE]
    world.pass_time(120)
    assert len(world.hired) == 3


def test_a_worker_that_dies_while_its_successor_starts_is_followed_by_it_at_once() -> None:
    world = World()
    world.make_ready()
    world.ask_to_reload()
    world.hired[0].exit_status = -9
    world.pass_time(3)
    assert len(world.hired) == 2
    world.make_ready()
    world.pass_time(60)
    assert len(world.hired) == 2
    assert world.hired[1].signals == []


# The end -----------------------------------------------------------------------------------------------------


def test_a_stop_reaches_everyone_and_nobody_is_started_again() -> None:
    world = World(places=3)
    world.make_ready()
    world.ask_to_reload()
    dead, *_ = world.hired
    world.supervisor.stop(world.now)
    assert all(fake.signals[-1] == signal.SIGTERM for fake in world.hired)
    dead.exit_status = 0
    world.pass_time(5)
    world.supervisor.reload(world.now)
    world.pass_time(5)
    assert len(world.hired) == 4
    assert not world.supervisor.has_ended
    for fake in world.hired:
        fake.exit_status = 0
    world.look()
    assert world.supervisor.has_ended


def test_who_does_not_stop_within_delay_and_grace_is_killed() -> None:
    world = World()
    world.make_ready()
    world.supervisor.stop(world.now)
    world.pass_time(LIMITS.drain_delay_s + LIMITS.grace_s)
    assert not world.supervisor.has_ended
    world.pass_time(6)
    assert world.hired[0].signals == [signal.SIGTERM, signal.SIGKILL]
    assert world.supervisor.has_ended


def test_a_second_stop_ends_at_once() -> None:
    world = World()
    world.make_ready()
    world.supervisor.stop(world.now)
    world.supervisor.stop(world.now)
    assert world.hired[0].signals == [signal.SIGTERM] * 2
    world.pass_time(3)
    assert world.hired[0].signals[-1] == signal.SIGKILL
    assert world.supervisor.has_ended
