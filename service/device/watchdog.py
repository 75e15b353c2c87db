"""A thread that notices when another one does not come back from the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# How often it looks, in parts of the time that is allowed, and at least.
_LOOKS = 8
_LONGEST_PAUSE_S = 1.0


class Watchdog:
    """Calls `overdue`, once, when a thread has been between `enter` and `leave` for more than `timeout_s`."""

    def __init__(self, timeout_s: float, overdue: Callable[[], None]) -> None:
        self.timeout_s = timeout_s
        self._overdue = overdue
        self._since: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def enter(self) -> None:
        """The calling thread turns to the device. The first time starts the watch."""
        self._since[threading.get_ident()] = time.monotonic()
        if self._thread is None:
            self._start()

    def leave(self) -> None:
        """The calling thread has come back."""
        del self._since[threading.get_ident()]

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="device-watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        pause_s = min(self.timeout_s / _LOOKS, _LONGEST_PAUSE_S)
        while not self._closed.wait(pause_s):
            oldest = min(tuple(self._since.values()), default=None)
            if oldest is not None and time.monotonic() - oldest > self.timeout_s:
                self._overdue()
                return
