"""What a request may be, and how long it may take, by the settings."""

from __future__ import annotations

import math

from service.errors import HeadersTooLarge, RequestTimeout, StequantError, UriTooLong
from service.job import Job
from service.settings import Settings


def too_large(limits: Settings, url: bytes) -> StequantError:
    """The error of a head that is too large, whose URL has come so far."""
    if len(url) > limits.max_url_bytes:
        return UriTooLong(f"the URL has more than {limits.max_url_bytes} bytes")
    return HeadersTooLarge(f"the headers have more than {limits.max_header_bytes} bytes or {limits.max_headers} lines")


def announced_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """The length of the body, when `Content-Length` alone announces it."""
    length = None
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            return None
    return length


def body_time_s(limits: Settings, length: int, job: Job) -> float:
    """How long a body may take: in all, at the least rate, and until the call's own deadline."""
    time_s: float = limits.body_timeout_s
    if limits.min_body_bytes_per_s:
        time_s = min(time_s, limits.body_idle_timeout_s + length / limits.min_body_bytes_per_s)
    return time_s if job.deadline == math.inf else min(time_s, job.left_s())


def body_timeout(limits: Settings) -> RequestTimeout:
    """The error of a body that took longer."""
    return RequestTimeout(
        f"the body was not complete in time; allowed: pauses of {limits.body_idle_timeout_s:g} s, "
        f"{limits.body_timeout_s:g} s in all, {limits.min_body_bytes_per_s} bytes a second on average"
    )
