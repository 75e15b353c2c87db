"""Several workers on one socket: started, watched, replaced one after the other, and stopped together.

Everything is decided in `Supervisor.look`, some ten times a second, from what the processes show of
themselves and from a clock. Who makes the processes is an argument, so that a test needs none.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Sequence

from service import __version__
from service.logs import configure, log
from service.processes.errors import CannotServe
from service.processes.member import Limits, Member, Process
from service.processes.place import Place
from service.processes.shared_metrics import metrics_folder
from service.processes.signals import Hangups, Stops
from service.processes.sockets import address_of
from service.processes.worker import Worker
from service.settings import Settings

_LOOK_S = 0.1
_LONGEST_LOOK_S = 1.0


class Clock:
    """Seconds, of which the time between two looks counts for one at most.

    Where the supervisor itself was stopped, as in a container that was paused, all workers would seem to be silent.
    """

    def __init__(self, real: Callable[[], float] = time.monotonic) -> None:
        self._real = real
        self._last = real()
        self._now = 0.0

    def tick(self) -> float:
        """The time now."""
        last, self._last = self._last, self._real()
        self._now += min(self._last - last, _LONGEST_LOOK_S)
        return self._now


class Supervisor:
    """All places, and what is asked of them together."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._reload_asked_at: float | None = None
        self._is_stopping = False

    @property
    def members(self) -> list[Member]:
        """All processes of all places."""
        return [member for place in self._places for member in place.members]

    @property
    def has_ended(self) -> bool:
        """Whether everything was stopped."""
        return self._is_stopping and not self.members

    @property
    def cannot_serve(self) -> bool:
        """Whether every worker failed to start."""
        return all(place.cannot_serve for place in self._places)

    def look(self, now: float) -> None:
        """See what has happened, and do what is due."""
        for place in self._places:
            place.look(now)
        if self._reload_asked_at is not None:
            self._roll(self._reload_asked_at, now)

    def _roll(self, asked_at: float, now: float) -> None:
        """Replace the workers that are older than the wish for it: one at a time, so that all others serve meanwhile."""
        went_well = all(place.go_on_with_succession(now) for place in self._places)
        if went_well and not any(place.successor for place in self._places):
            outdated = next((place for place in self._places if place.is_from_before(asked_at)), None)
            if outdated is None:
                log.info("all workers were replaced")
                self._reload_asked_at = None
            else:
                went_well = outdated.begin_succession(now)
        if not went_well:
            log.error("the workers are not replaced; those that serve go on")
            self._reload_asked_at = None

    def reload(self, now: float) -> None:
        """Let the workers read keys and certificate again at once; then replace them."""
        for member in self.members:
            member.process.send(signal.SIGHUP)
        if not self._is_stopping:
            self._reload_asked_at = now

    def stop(self, now: float) -> None:
        """The first time: let everyone answer what has begun, and end. The second: at once."""
        for place in self._places:
            if self._is_stopping:
                place.stop_at_once(now)
            else:
                place.stop(now)
        self._is_stopping = True
        self._reload_asked_at = None

    def kill(self) -> None:
        """Leave no process behind, whatever has happened."""
        for member in self.members:
            member.kill()


def supervise(settings: Settings, sock: socket.socket, hire: Callable[[Settings, socket.socket, int], Process] = Worker) -> None:
    """Run `settings.workers` processes on a listening socket until told to stop.

    Raises `CannotServe` when every worker failed to start.
    """
    configure(settings.log_level, settings.log_format)
    stops, hangups = Stops(), Hangups()
    limits = Limits(settings.worker_start_timeout_s, settings.worker_timeout_s, settings.drain_delay_s, settings.grace_s)
    with metrics_folder():
        supervisor = Supervisor(
            [Place(index, lambda index: hire(settings, sock, index), limits) for index in range(settings.workers)]
        )
        address = address_of(sock, encrypted=settings.tls_cert_file is not None)
        log.info("stequant %s serves on %s with %d workers", __version__, address, settings.workers)
        try:
            _look_until_the_end(supervisor, stops, hangups)
        finally:
            supervisor.kill()
    log.info("all workers have stopped")


def _look_until_the_end(supervisor: Supervisor, stops: Stops, hangups: Hangups) -> None:
    clock = Clock()
    while not supervisor.has_ended:
        now = clock.tick()
        supervisor.look(now)
        if supervisor.cannot_serve:
            raise CannotServe("no worker could start; the lines above say why")
        # After the look: who was started in it may have read its keys before the signal.
        if hangups.take():
            if hangups.terminal_has_gone():
                supervisor.stop(now)
            else:
                supervisor.reload(now)
        for _ in range(stops.take()):
            supervisor.stop(now)
        time.sleep(_LOOK_S)
