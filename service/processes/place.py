"""One place among the workers: who serves there, who is to follow, and who is on the way out."""

from __future__ import annotations

import signal
from collections.abc import Callable

from service.logs import log
from service.processes.member import Limits, Member, Process
from service.processes.signals import RETIRE
from service.processes.worker import CANNOT_SERVE

# A worker that ends again and again is started again ever more slowly.
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# One that was ready for this long was well; the next pause is short again.
HEALTHY_S = 60.0
# Beyond its grace a worker closes its device; one that was told to end at once does little else.
_MARGIN_S = 5.0
_AT_ONCE_S = 2.0


class Place:
    """Keeps one worker serving. `hire` starts a process, or raises `OSError`; `look` is called often, with the time."""

    def __init__(self, index: int, hire: Callable[[int], Process], limits: Limits) -> None:
        self.serving: Member | None = None
        self.successor: Member | None = None
        self.leaving: list[Member] = []
        # Whether the last worker failed to start, and none ever did.
        self.cannot_serve = False
        self._has_served = False
        self._index = index
        self._hire = hire
        self._limits = limits
        self._next_pause_s = FIRST_PAUSE_S
        self._start_at = 0.0

    @property
    def members(self) -> list[Member]:
        """All processes of this place."""
        return [member for member in (self.serving, self.successor, *self.leaving) if member is not None]

    def look(self, now: float) -> None:
        """See to it that someone serves here, and that those who leave do."""
        for member in self.members:
            member.listen(now)
        self.leaving = [member for member in self.leaving if not self._has_left(member, now)]
        if self.serving is not None:
            self._has_served |= self.serving.ready_since is not None
            self._watch(self.serving, now)
        elif now >= self._start_at:
            self.serving = self._start(now)
            if self.serving is None:
                self._fill(now, self._next_pause_s)

    def _start(self, now: float) -> Member | None:
        try:
            return Member(self._hire(self._index), now)
        except OSError as error:  # too many processes or files, or no memory
            log.error("worker %d cannot be started: %s", self._index, error)
            return None

    def _has_left(self, member: Member, now: float) -> bool:
        if member.has_ended:
            member.process.close()
            return True
        if member.is_overdue(now):
            log.error("worker %d (pid %d) did not end in time and is killed", self._index, member.process.pid)
            member.kill()
        return False

    def _watch(self, member: Member, now: float) -> None:
        if member.has_ended:
            self._replace(member, now)
        elif (fault := member.fault(now, self._limits)) is not None:
            log.error("worker %d (pid %d) %s and is killed", self._index, member.process.pid, fault)
            self._leave(member, signal.SIGKILL, now + _AT_ONCE_S)
            self._fill(now, self._pause_s(member, now))

    def _replace(self, member: Member, now: float) -> None:
        pause_s = self._pause_s(member, now)
        self.cannot_serve = member.process.exit_status == CANNOT_SERVE and not self._has_served
        log.error("worker %d (pid %d) ended with %s", self._index, member.process.pid, _named(member.process.exit_status))
        member.process.close()
        self._fill(now, pause_s)

    def _pause_s(self, member: Member, now: float) -> float:
        was_well = member.ready_since is not None and now - member.ready_since >= HEALTHY_S
        return FIRST_PAUSE_S if was_well else self._next_pause_s

    def _fill(self, now: float, pause_s: float) -> None:
        """Let the successor take an empty place, if there is one, or another worker after a pause."""
        self.serving, self.successor = self.successor, None
        if self.serving is None:
            log.info("worker %d is started again in %g s", self._index, pause_s)
            self._start_at = now + pause_s
            self._next_pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    # Replacing a worker that is well -----------------------------------------------------------------------

    def is_from_before(self, moment: float) -> bool:
        """Whether who serves here was started by then."""
        return self.serving is not None and self.serving.started <= moment

    def begin_succession(self, now: float) -> bool:
        """Start a successor; who serves goes on until it is ready. False when it cannot be started."""
        self.successor = self._start(now)
        return self.successor is not None

    def go_on_with_succession(self, now: float) -> bool:
        """Let the successor take over as soon as it is ready; false when it failed, and the old worker stays."""
        successor = self.successor
        if successor is None:
            return True
        pid = successor.process.pid
        if successor.has_ended:
            log.error("the successor of worker %d (pid %d) ended with %s", self._index, pid, _named(successor.process.exit_status))
            successor.process.close()
            self.successor = None
        elif (fault := successor.fault(now, self._limits)) is not None:
            log.error("the successor of worker %d (pid %d) %s and is killed", self._index, pid, fault)
            self._leave(successor, signal.SIGKILL, now + _AT_ONCE_S)
            self.successor = None
        elif successor.ready_since is not None:
            log.info("worker %d has a successor (pid %d)", self._index, pid)
            if self.serving is not None:
                self._leave(self.serving, RETIRE, now + self._limits.grace_s + _MARGIN_S)
            self.serving, self.successor = successor, None
        else:
            return True
        return self.serving is successor

    # The end ---------------------------------------------------------------------------------------------

    def stop(self, now: float) -> None:
        """Let everyone answer what has begun, and end; nobody follows."""
        end_at = now + self._limits.drain_delay_s + self._limits.grace_s + _MARGIN_S
        for member in self.leaving:
            member.process.send(signal.SIGTERM)
        for staying in (self.serving, self.successor):
            if staying is not None:
                self._leave(staying, signal.SIGTERM, end_at)
        self.serving = self.successor = None
        self._start_at = float("inf")

    def stop_at_once(self, now: float) -> None:
        """Let everyone end without answering, after `stop`."""
        for member in self.leaving:
            member.tell_to_end(signal.SIGTERM, now + _AT_ONCE_S)

    def _leave(self, member: Member, sig: int, end_at: float) -> None:
        member.tell_to_end(sig, end_at)
        self.leaving.append(member)


def _named(exit_status: int | None) -> str:
    """An exit status as a person knows it."""
    if exit_status is None or exit_status >= 0:
        return f"status {exit_status}"
    return f"signal {-exit_status} ({signal.strsignal(-exit_status)})"
