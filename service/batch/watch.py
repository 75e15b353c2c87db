"""The main thread of a job: it waits for the others, shows how far they are, and hears signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from service.batch.progress import Progress
from service.batch.stopping import Stop

_POLL_S = 0.1
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While it is entered, SIGINT and SIGTERM stop the job, and a second one ends the process at once."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.number: int | None = None

    @property
    def exit_code(self) -> int | None:
        """What the process is to exit with because of a signal, as a shell would report it."""
        return None if self.number is None else 128 + self.number

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        self._stop.set()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Watch:
    """Waits for threads, once the job is to stop no longer than `grace_s`; `has_left_threads` says whether some still work."""

    def __init__(self, stop: Stop, grace_s: float, progress: Progress | None) -> None:
        self._stop = stop
        self._grace_s = grace_s
        self._progress = progress
        self.has_left_threads = False

    def wait(self, threads: list[threading.Thread]) -> None:
        """Return when all have ended, or are not to be waited for any more."""
        end_s: float | None = None
        while waiting := [thread for thread in threads if thread.is_alive()]:
            if end_s is None and self._stop.is_set:
                end_s = time.monotonic() + self._grace_s
            if end_s is not None and time.monotonic() >= end_s:
                self.has_left_threads = True
                break
            if self._progress is not None:
                self._progress.tick()
            waiting[0].join(_POLL_S)
        if self._progress is not None:
            self._progress.clear()
