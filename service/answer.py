"""An answer as a value: status, headers and the pieces of its body; and errors as problem documents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from service.errors import MethodNotAllowed, StequantError, Unauthorized

PROBLEM_MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:stequant:problem:"
# Where clients speak the Open Inference Protocol, which look for what went wrong under `error`.
_INFERENCE_PREFIX = "/v2"

Piece = bytes | bytearray | memoryview


class Answer(NamedTuple):
    """What goes back: `pieces` are sent one after the other, as they are."""

    status: int
    media_type: str
    pieces: Sequence[Piece]
    length: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    code: str = ""

    @classmethod
    def of(cls, status: int, media_type: str, pieces: Sequence[Piece]) -> Answer:
        """An answer without further headers; its length is that of the pieces, which are all of bytes."""
        return cls(status, media_type, pieces, sum(map(len, pieces)))

    def header_pairs(self) -> list[tuple[bytes, bytes]]:
        """All headers of the answer."""
        return [
            (b"content-type", self.media_type.encode()),
            (b"content-length", b"%d" % self.length),
            *self.headers,
        ]


# Nobody was there to take the answer; counted under the status that nginx made customary for it.
CALLER_GONE = Answer(499, "", (), 0)


def problem(error: StequantError, path: str = "") -> Answer:
    """An error of a request to `path` as a problem document (RFC 9457), with the headers that its status asks for."""
    document: dict[str, object] = {
        "type": _TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
    }
    if path.startswith(_INFERENCE_PREFIX):
        document["error"] = error.detail
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b'Bearer realm="stequant"'))
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Answer(error.status, PROBLEM_MEDIA_TYPE, (body,), len(body), tuple(headers), error.code)
