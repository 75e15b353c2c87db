"""The head of an answer, as it is sent."""

from __future__ import annotations

from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.head import header_lines


@lru_cache(maxsize=256)
def fixed_lines(status: int, media_type: str, headers: tuple[tuple[bytes, bytes], ...] = (), *, keep_alive: bool) -> bytes:
    """The lines that are the same in every answer of a kind."""
    last = () if keep_alive else ((b"connection", b"close"),)
    return STATUS_LINE[status] + header_lines(((b"content-type", media_type.encode()), *headers, *last))


def answer_head(fixed: bytes, default: bytes, request_id: bytes, timing: bytes, length: int) -> bytes:
    """The whole head, up to the body of `length` bytes; `default` are the server's lines, with the date."""
    return b"%b%bx-request-id: %b\r\nserver-timing: %b\r\ncontent-length: %d\r\n\r\n" % (fixed, default, request_id, timing, length)
