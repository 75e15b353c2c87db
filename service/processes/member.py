"""A worker process by what it shows of itself: whether it is ready, well, or to be killed."""

from __future__ import annotations

import signal
from typing import NamedTuple, Protocol


class Process(Protocol):
    """What is seen of a worker process, and done to it; `worker.Worker` is the real one."""

    pid: int

    @property
    def exit_status(self) -> int | None:
        """None while it lives; negative, the number of the signal that ended it."""

    def has_beaten(self) -> bool:
        """Whether its event loop has turned since the last look."""

    def send(self, sig: int) -> None:
        """Send it a signal."""

    def close(self) -> None:
        """Let go of an ended process; nothing may be asked of it afterwards."""


class Limits(NamedTuple):
    """How long a worker may be starting, without a beat, and on its way out; seconds."""

    start_s: float
    silence_s: float
    drain_delay_s: float
    grace_s: float


class Member:
    """A worker process, with the times that decide about it."""

    def __init__(self, process: Process, now: float) -> None:
        self.process = process
        self.started = now
        self.ready_since: float | None = None
        self._last_beat = now
        self._end_at = float("inf")

    @property
    def has_ended(self) -> bool:
        """Whether there is no such process any more."""
        return self.process.exit_status is not None

    def listen(self, now: float) -> None:
        """Hear whether its heart has beaten; the first beat says that it is ready."""
        if self.process.has_beaten():
            self._last_beat = now
            if self.ready_since is None:
                self.ready_since = now

    def fault(self, now: float, limits: Limits) -> str | None:
        """What is wrong with a worker that lives and has not been told to end."""
        if self.ready_since is None:
            return f"was not ready within {limits.start_s:g} s" if now - self.started > limits.start_s else None
        return f"has not turned its event loop for {limits.silence_s:g} s" if now - self._last_beat > limits.silence_s else None

    def tell_to_end(self, sig: int, end_at: float) -> None:
        """Send a signal, and note when its time is over."""
        self.process.send(sig)
        self._end_at = end_at

    def is_overdue(self, now: float) -> bool:
        """Whether it was told to end, and has not in time."""
        return now >= self._end_at

    def kill(self) -> None:
        """End it; nothing more is expected of it."""
        self.process.send(signal.SIGKILL)
        self._end_at = float("inf")
