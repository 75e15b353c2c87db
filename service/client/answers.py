"""From status, headers and bytes to what the call returns or raises; no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx
import numpy as np

from service.client.errors import ProtocolError
from service.errors import BY_CODE, CapacityError, RequestError, StequantError
from service.wire import parse_content_type

# A problem document is a few hundred bytes; of another server's error page the beginning is enough.
MAX_ERROR_BYTES = 64 * 1024
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end. `received_at_s` counts seconds since 1970."""

    status: int
    headers: httpx.Headers
    body: memoryview
    received_at_s: float

    @property
    def media_type(self) -> str:
        """The `Content-Type` without its parameters, in lower case."""
        return parse_content_type(self.headers.get("content-type", ""))


class AnswerBuffer:
    """The one piece of memory into which an answer is received, and in which its tensors stay.

    An answer announces its length; one whose length a proxy has taken away is received into
    `limit_bytes` of address space, of which only what is written becomes memory. Beyond `limit_bytes`
    a success is refused with `ProtocolError`, and an error is cut.
    """

    def __init__(self, status: int, headers: httpx.Headers, limit_bytes: int) -> None:
        self._is_success = status == httpx.codes.OK
        self._announced = _announced_bytes(headers)
        self._limit = limit_bytes if self._is_success else MAX_ERROR_BYTES
        if self._is_success and (self._announced or 0) > self._limit:
            raise ProtocolError(f"the answer announces {self._announced} bytes; at most {self._limit} can be one to this call")
        # Not a bytearray: that would write zeros into memory that is about to be written.
        size = self._limit if self._announced is None else min(self._announced, self._limit)
        self._memory = np.empty(size, np.uint8).data
        self._filled = 0

    def write(self, piece: bytes) -> None:
        """Append what came next."""
        stop = self._filled + len(piece)
        if stop > len(self._memory):
            if self._is_success:
                raise ProtocolError(f"the answer goes on after {len(self._memory)} bytes")
            piece = piece[: len(self._memory) - self._filled]
            stop = len(self._memory)
        self._memory[self._filled : stop] = piece
        self._filled = stop

    def body(self) -> memoryview:
        """What was written; `ProtocolError` where a success announced more."""
        if self._is_success and self._announced is not None and self._filled != self._announced:
            raise ProtocolError(f"the answer announces {self._announced} bytes, {self._filled} came")
        return self._memory[: self._filled]


def _announced_bytes(headers: httpx.Headers) -> int | None:
    length = headers.get("content-length", "")
    # The length of an encoded answer is not that of its content.
    return int(length) if length.isdecimal() and headers.get("content-encoding", "identity") == "identity" else None


def expect_success(answer: Answer) -> None:
    """Return for a 200; else raise the server's error, or what comes closest to another server's."""
    if answer.status != httpx.codes.OK:
        raise failure(answer)


def failure(answer: Answer) -> StequantError:
    """The error that an answer stands for: the class of its `code`, else the family of its status.

    The error's `status` is that of the answer, and its `request_id` what the server calls the request
    in its log, or None.
    """
    problem = _problem(answer)
    code = problem.get("code")
    known = BY_CODE.get(code) if isinstance(code, str) else None
    detail = problem.get("detail") or problem.get("title")
    if not isinstance(detail, str):
        detail = f"{answer.status} {answer.media_type or 'without Content-Type'}: {_beginning(answer)}"
    error = (known or _family(answer.status))(detail, retry_after_s=_retry_after_s(answer))
    own = {"status": answer.status, "request_id": problem.get("request_id") or answer.headers.get("x-request-id")}
    if isinstance(code, str):
        own["code"] = code
    vars(error).update(own)
    return error


def _family(status: int) -> type[StequantError]:
    match status:
        case 429 | 503 | 504:
            return CapacityError
        case _ if 400 <= status < 500:
            return RequestError
        case _ if 500 <= status < 600:
            return StequantError
    return ProtocolError


def _problem(answer: Answer) -> dict[str, object]:
    if answer.media_type not in ("application/problem+json", "application/json"):
        return {}
    try:
        problem = json.loads(bytes(answer.body))
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _beginning(answer: Answer) -> str:
    where = answer.headers.get("location")
    text = str(answer.body[: 4 * SHOWN_CHARACTERS], "utf-8", "replace")[:SHOWN_CHARACTERS]
    return f"to {where!r}" if where else repr(text)


def _retry_after_s(answer: Answer) -> float | None:
    """Seconds to wait, from either form of `Retry-After`; None where it says nothing that can be read."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    then_s = _date_s(text)
    if then_s is None:
        return None
    # The answer's own date comes from the same clock as `then`; ours may differ from it.
    now_s = _date_s(answer.headers.get("date", ""))
    return max(0.0, then_s - (answer.received_at_s if now_s is None else now_s))


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
