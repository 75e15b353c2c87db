"""One request on its way through the service."""

from __future__ import annotations

import itertools
import math
import os
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.ahead import Ahead
    from service.core import Admitted

_GIVEN = re.compile(rb"[!-~]{1,128}")


class Job:
    """Who a request is, what it asks for, what it has reserved, and when it went from stage to stage.

    The four times are seconds of `time.perf_counter`: `started` with the head, `received` with the last
    byte of the body, `began` and `ended` with the work. After `deadline`, on the same clock, nobody waits
    for the answer any more. `terms` are None until it is admitted. `ahead` is there while its body arrives, where it
    is computed meanwhile.
    """

    __slots__ = ("ahead", "began", "deadline", "ended", "received", "request_id", "reserved_bytes", "started", "terms")

    def __init__(self, request_id: bytes) -> None:
        self.request_id = request_id
        self.terms: Admitted | None = None
        self.ahead: Ahead | None = None
        self.reserved_bytes = 0
        self.deadline = math.inf
        self.started = self.received = self.began = self.ended = time.perf_counter()

    def is_received(self) -> None:
        """The body is there."""
        self.received = self.began = self.ended = time.perf_counter()

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def timing(self) -> bytes:
        """The value of `Server-Timing`, in milliseconds: the stages that took any time."""
        compute = compute_timing(self.ended - self.began)
        if self.received == self.started:
            return compute  # the body came with its head
        return b"read;dur=%.3f, queue;dur=%.3f, %b" % (
            (self.received - self.started) * 1e3,
            (self.began - self.received) * 1e3,
            compute,
        )


def compute_timing(seconds: float) -> bytes:
    """`Server-Timing` of a call whose body came with its head."""
    return b"compute;dur=%.3f" % (seconds * 1e3)


class Identities:
    """Names for requests: the caller's own, else one that is used once.

    A name starts with four random bytes, which are the process's, and ends with a number.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(4).hex().encode()
        self._numbers = itertools.count(1)

    def of(self, given: bytes | None) -> bytes:
        """The name of a request that calls itself `given`."""
        return b"%b-%x" % (self._prefix, next(self._numbers)) if given is None else given


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The `X-Request-Id` of a request, where it is 1 to 128 visible characters: it goes into headers and logs as it is."""
    for name, value in headers:
        if name == b"x-request-id":
            return value if _GIVEN.fullmatch(value) else None
    return None
