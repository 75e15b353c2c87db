"""Results that are waited for: a thread brings them, or a failure that the thread will never tell of."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
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
        # The error knows this frame and those below, and the outcome the error: a circle that would keep the call's memory
        # until the garbage collector comes (60 MiB after two calls of 30 MiB, seen).
        del outcome, work
    else:
        deliver(outcome.set_result, result)


def waiter(outcome: Future[Result]) -> asyncio.Future[Result]:
    """What a coroutine awaits for an outcome; cancelled, it cancels the outcome.

    `asyncio.wrap_future` does the same and leaves a circle: the outcome, its callback, and the outcome in it. The call's
    memory would stay until the garbage collector comes.
    """
    loop = asyncio.get_running_loop()
    mine: asyncio.Future[Result] = loop.create_future()
    mine.add_done_callback(partial(_give_up, outcome))
    outcome.add_done_callback(partial(_hand_over, loop, mine))
    return mine


def _give_up(outcome: Future[Result], mine: asyncio.Future[Result]) -> None:
    if mine.cancelled():
        outcome.cancel()


def _hand_over(loop: asyncio.AbstractEventLoop, mine: asyncio.Future[Result], outcome: Future[Result]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_copy, outcome, mine)


def _copy(outcome: Future[Result], mine: asyncio.Future[Result]) -> None:
    if mine.done():
        return
    if outcome.cancelled():
        mine.cancel()
    elif (error := outcome.exception()) is not None:
        mine.set_exception(error)
    else:
        mine.set_result(outcome.result())


def deliver(setter: Callable[[Result], None], value: Result) -> None:
    """Set a future's result or error, where it has not failed, or been cancelled, in the meantime."""
    with contextlib.suppress(InvalidStateError):
        setter(value)
