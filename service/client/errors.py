"""What can go wrong on the way to the server and back; the server's own errors keep their classes.

The statuses are those that a gateway in between would have answered with, so that one rule by status
says what is worth sending again (`service.client.retries`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from service.errors import CapacityError, StequantError, UriTooLong


class ConnectionFailed(CapacityError, ConnectionError):
    """No connection could be made, or it broke before the answer was complete."""

    code, status, title = "connection_failed", 503, "The server cannot be reached"


class TimedOut(CapacityError, TimeoutError):
    """The server took longer than `timeout` for one step, or the call longer than `deadline_s`."""

    code, status, title = "timed_out", 504, "The answer did not come in time"


class ProtocolError(StequantError):
    """What was answered is not an answer to this call: not by this kind of server, broken, or not what was asked for."""

    code, status, title = "protocol_error", 502, "The answer is not one to this call"


# First match wins: httpx derives its own classes from one another.
_OURS: tuple[tuple[type[httpx.RequestError], type[StequantError]], ...] = (
    (httpx.ConnectTimeout, ConnectionFailed),
    (httpx.TimeoutException, TimedOut),
    (httpx.TransportError, ConnectionFailed),
    (httpx.RequestError, ProtocolError),
)


@contextmanager
def translated(method: str, url: str) -> Iterator[None]:
    """Raise httpx's errors as ours; the message says what was asked of whom."""
    try:
        yield
    except httpx.InvalidURL as error:
        # The address was checked before, the expression is quoted: only its length is left.
        raise UriTooLong(f"the URL has {len(url)} characters: {error}") from error
    except httpx.RequestError as error:
        ours = next(ours for theirs, ours in _OURS if isinstance(error, theirs))
        target = url.partition("?")[0]
        raise ours(f"{method} {target}: {type(error).__name__} {error}".rstrip(), retry_after_s=None) from error
