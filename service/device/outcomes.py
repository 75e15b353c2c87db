"""Results that are waited for: a thread brings them, or a failure that the thread will never tell of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from service.errors import CapacityError

Result = TypeVar("Result")


class Outcomes:
    """All results that are still to come."""

    def __init__(self) -> None:
        self._open: set[Future[Any]] = set()
        self._failure: tuple[type[CapacityError], str] | None = None
        self._lock = threading.Lock()

    def open(self) -> Future[Any]:
        """A result to wait for. After `fail` the error that was given there is raised instead."""
        outcome: Future[Any] = Future()
        with self._lock:
            if self._failure is not None:
                kind, detail = self._failure
                raise kind(detail)
            self._open.add(outcome)
        outcome.add_done_callback(self._closed)
        return outcome

    def fail(self, kind: type[CapacityError], detail: str) -> None:
        """Give all that wait this error, and all that come later."""
        with self._lock:
            self._failure = (kind, detail)
            waiting = tuple(self._open)
        for outcome in waiting:
            # It may be settled at this very moment.
            with contextlib.suppress(InvalidStateError):
                outcome.set_exception(kind(detail))

    def _closed(self, outcome: Future[Any]) -> None:
        with self._lock:
            self._open.discard(outcome)


def settle(outcome: Future[Result], work: Callable[[], Result]) -> None:
    """Do the work, unless nobody waits for it any more, and leave its result or its error in `outcome`."""
    if outcome.done():
        return
    try:
        result = work()
    except BaseException as error:
        deliver(outcome.set_exception, error)
        # The error knows this frame, and the outcome the error: a circle that would keep the call's memory until the
        # garbage collector comes (60 MiB of a 30 MiB body, seen).
        del outcome, work
    else:
        deliver(outcome.set_result, result)


def deliver(setter: Callable[[Result], None], value: Result) -> None:
    """Set a future's result or error, where it has not failed, or been cancelled, in the meantime."""
    with contextlib.suppress(InvalidStateError):
        setter(value)
