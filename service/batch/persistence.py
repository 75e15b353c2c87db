"""Sending again: what is worth it, how long to wait, and when the job gives up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from service.batch.errors import BadInput, BadUsage, GaveUp
from service.batch.pace import Pace
from service.batch.stopping import Stop
from service.client.errors import ConnectionFailed
from service.errors import (
    BodyTooLarge,
    CapacityError,
    HeadersTooLarge,
    LengthRequired,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    OutOfMemory,
    RequestError,
    StequantError,
    Unauthorized,
    UnsupportedMediaType,
    UntrustedHost,
    UriTooLong,
)

Result = TypeVar("Result")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 10.0
# These speak of the server or of the command, not of the file that happened to be sent.
_FOR_ALL_FILES = (
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    LengthRequired,
    UriTooLong,
    UnsupportedMediaType,
    UntrustedHost,
    HeadersTooLarge,
)


class Persistence:
    """How one job deals with failures; shared by its threads.

    A refusal of the input is a `BadInput`; one that every file would meet, a `BadUsage`. A lack of capacity, and a
    server that cannot be reached, are waited out until nothing has been answered for `give_up_after_s`: `GaveUp`. Any
    other failure (a timeout, a 500, an answer that is none) is tried `retries` times more: `BadInput`.
    """

    def __init__(
        self,
        pace: Pace,
        stop: Stop,
        on_retry: Callable[[], None],
        *,
        retries: int,
        give_up_after_s: float,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._pace = pace
        self._stop = stop
        self._on_retry = on_retry
        self._retries = retries
        self._give_up_after_s = give_up_after_s
        self._clock = clock
        self._dice = dice
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._last_failure: StequantError | None = None

    @property
    def trouble(self) -> str | None:
        """Why nothing is answered at the moment, or None."""
        failure = self._last_failure
        return None if failure is None else str(failure)

    def attempt(self, send: Callable[[], Result]) -> Result:
        """What `send` returns, sooner or later; it is called once for each attempt. `Stopped` when the job stops meanwhile."""
        failures = errors = 0
        while True:
            outcome = self._try(send)
            if not isinstance(outcome, StequantError):
                return outcome
            failures += 1
            errors += not is_waited_out(outcome)
            if errors > self._retries:
                raise BadInput(f"no result after {failures} attempts: {outcome}") from outcome
            self._check_patience(outcome)
            self._stop.wait(self._wait_s(failures, outcome))
            self._on_retry()

    def _try(self, send: Callable[[], Result]) -> Result | StequantError:
        """One attempt: its result, or a failure after which another may do better."""
        with self._pace.slot() as current:
            self._stop.check()
            try:
                result = send()
            except RequestError as error:
                raise _refusal(error) from error
            except StequantError as error:
                if isinstance(error, CapacityError) and not isinstance(error, ConnectionFailed):
                    self._pace.refused(current)
                return error
        self._pace.answered()
        with self._lock:
            self._failing_since = self._last_failure = None
        return result

    def _wait_s(self, failures: int, failure: StequantError) -> float:
        if failure.retry_after_s is not None:
            return failure.retry_after_s * (1 + self._dice() / 4)
        return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16)) * self._dice()

    def _check_patience(self, failure: StequantError) -> None:
        with self._lock:
            now = self._clock()
            self._last_failure = failure
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since >= self._give_up_after_s:
                raise GaveUp(f"nothing was answered for {self._give_up_after_s:g} s; last: {failure}") from failure


def is_waited_out(failure: StequantError) -> bool:
    """Whether a failure says nothing about what was sent: too much to do, or nobody there."""
    return failure.status in (429, 503) and not isinstance(failure, OutOfMemory)


def _refusal(error: RequestError) -> BadInput | BadUsage:
    if isinstance(error, BodyTooLarge):
        return BadUsage(f"a chunk is too large for the server: {error}; choose a smaller --chunk-bytes")
    if isinstance(error, _FOR_ALL_FILES):
        return BadUsage(f"the server refuses the job: {error} [{error.code}]")
    return BadInput(f"{error} [{error.code}]")
