"""The one switch that ends a job early, and waits that it cuts short."""

from __future__ import annotations

import threading

from service.batch.errors import Stopped


class Stop:
    """Asked to stop, once, for good. Shared by threads; may be set from a signal handler."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Take no new work."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether no new work is to be taken."""
        return self._event.is_set()

    def check(self) -> None:
        """`Stopped` when the job is to end."""
        if self.is_set:
            raise Stopped("stopped")

    def wait(self, seconds: float) -> None:
        """Let time pass; `Stopped` as soon as the job is to end."""
        if self._event.wait(seconds):
            raise Stopped("stopped")
