"""When a call is sent again, and when it is given up: values and arithmetic, no I/O.

Every call is a pure function of its request, so sending it again is always safe; the question is only
whether another attempt may end differently.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from service.client.errors import TimedOut
from service.errors import StequantError

# 503 covers a connection that failed (`ConnectionFailed`). A 504 says that the deadline has passed: what
# was too slow once is slow again, and would only add to the load that made it slow.
RETRIED_STATUSES = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how long apart, one call is attempted.

    The wait before attempt `n + 1` is drawn evenly from 0 to `first_backoff_s * 2**(n - 1)`, at most
    `max_backoff_s` ("full jitter": callers that failed together do not come back together). Where the
    server names a time (`Retry-After`), the wait is that time and the draw on top of it; a time beyond
    `max_retry_after_s` is not waited for: the error is raised, and holds it as `retry_after_s`.

    The clocks and the dice are arguments, so that a test needs no patience: `clock` is any monotonic
    one, `wall_clock` counts seconds since 1970 and is asked only where an answer has no date of its own.
    """

    max_attempts: int = 6
    first_backoff_s: float = 0.2
    max_backoff_s: float = 10.0
    max_retry_after_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; allowed: at least 1")
        for name in ("first_backoff_s", "max_backoff_s", "max_retry_after_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at least 0")

    def wait_s(self, failed_attempts: int, error: StequantError) -> float | None:
        """Seconds until the next attempt, after this many that failed; None where there is none."""
        asked_s = error.retry_after_s or 0.0
        if failed_attempts >= self.max_attempts or error.status not in RETRIED_STATUSES or asked_s > self.max_retry_after_s:
            return None
        # The exponent stops where the bound has long been reached: 2.0**1024 would overflow.
        backoff_s = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** min(failed_attempts - 1, 64))
        return asked_s + self.random() * backoff_s


class Attempts:
    """The attempts of one call: how many there were, and the time that is left for all of them."""

    def __init__(self, policy: RetryPolicy, deadline_s: float | None, *, retried: bool = True) -> None:
        self._policy = policy
        self._deadline_s = deadline_s
        self._retried = retried
        self._end = None if deadline_s is None else policy.clock() + deadline_s
        self._failed = 0

    def wait_s(self, error: StequantError) -> float | None:
        """Seconds to wait before sending again after `error`; None: raise it, no later attempt can help in time."""
        self._failed += 1
        wait_s = self._policy.wait_s(self._failed, error) if self._retried else None
        if wait_s is None or (self._end is not None and self._policy.clock() + wait_s >= self._end):
            return None
        return wait_s

    def check(self) -> None:
        """Raise `TimedOut` once the deadline has passed; asked between the pieces of a body, where nothing else looks."""
        self._remaining_s()

    def timeout(self, timeout: httpx.Timeout) -> httpx.Timeout:
        """These timeouts, none of them beyond the deadline."""
        remaining_s = self._remaining_s()
        if remaining_s is None:
            return timeout
        return httpx.Timeout(
            **{step: remaining_s if limit_s is None else min(limit_s, remaining_s) for step, limit_s in timeout.as_dict().items()}
        )

    def _remaining_s(self) -> float | None:
        if self._end is None:
            return None
        remaining_s = self._end - self._policy.clock()
        if remaining_s <= 0:
            raise TimedOut(f"the call was not answered within its deadline of {self._deadline_s} s", retry_after_s=None)
        return remaining_s
