"""Whether a device can be trusted: well until a fault that does not pass, then failed for good."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from service.device.faults import is_out_of_memory, is_sticky
from service.device.watchdog import Watchdog
from service.errors import DeviceFault, OutOfMemory


class Health:
    """The state of a device, and the context in which everything on it is done.

    Within `with health:` what torch raises when the device fails comes out as `OutOfMemory` or as
    `DeviceFault`; the latter ends the device's life, and every later entry raises it again. Where
    `timeout_s` is given, so does a block that takes longer, though its thread may never return.
    """

    def __init__(self, name: str, timeout_s: float | None) -> None:
        self._name = name
        self._detail: str | None = None
        self._callbacks: list[Callable[[DeviceFault], None]] = []
        self._lock = threading.Lock()
        self._watchdog = None if timeout_s is None else Watchdog(timeout_s, self._overdue)

    @property
    def fault(self) -> DeviceFault | None:
        """Why the device cannot be used any more; a new error each time, so that each may be raised."""
        return None if self._detail is None else DeviceFault(self._detail)

    def on_failure(self, callback: Callable[[DeviceFault], None]) -> None:
        """Call `callback` when the device fails, once, on the thread that notices; at once if it has failed already."""
        with self._lock:
            if self._detail is None:
                self._callbacks.append(callback)
                return
        callback(DeviceFault(self._detail))

    def fail(self, what: str) -> None:
        """Declare the device failed. Only the first reason counts."""
        with self._lock:
            if self._detail is not None:
                return
            self._detail = detail = f"{self._name} {what}"
        for callback in self._callbacks:
            callback(DeviceFault(detail))

    def judge(self, error: BaseException) -> None:
        """Raise `OutOfMemory` or `DeviceFault` if that is what this error means; else do nothing."""
        if is_out_of_memory(error):
            raise OutOfMemory(f"{self._name} has no memory left for this call; try again, or send smaller tensors") from error
        if is_sticky(error):
            self.fail(f"failed: {str(error).partition(chr(10))[0]}")
            raise DeviceFault(self._detail or "") from error

    def close(self) -> None:
        """End the watch over the device."""
        if self._watchdog is not None:
            self._watchdog.close()

    def __enter__(self) -> None:
        if self._detail is not None:
            raise DeviceFault(self._detail)
        if self._watchdog is not None:
            self._watchdog.enter()

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if self._watchdog is not None:
            self._watchdog.leave()
        if error is not None:
            self.judge(error)

    def _overdue(self) -> None:
        assert self._watchdog is not None
        self.fail(f"has not come back from a call for {self._watchdog.timeout_s:g} s")
