"""The head of an answer, as it is sent."""

from __future__ import annotations

from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from service.answer import Answer
from service.head import header_lines
from service.job import Job


class AnswerHeads:
    """The heads of one connection's answers; uvicorn makes the server's own lines, with the date, anew every second."""

    def __init__(self, server_state: ServerState) -> None:
        self._server_state = server_state
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def head(self, answer: Answer, job: Job, *, keep_alive: bool) -> bytes:
        """The head of an answer."""
        fixed = fixed_lines(answer.status, answer.media_type, answer.headers, keep_alive=keep_alive)
        return self.head_of(fixed, job.request_id, job.timing(), answer.length)

    def head_of(self, fixed: bytes, request_id: bytes, timing: bytes, length: int) -> bytes:
        """A head that begins with these `fixed_lines`, up to the body of `length` bytes."""
        if self._default_headers is not self._server_state.default_headers:
            self._default_headers = self._server_state.default_headers
            self._default_lines = header_lines(self._default_headers)
        return b"%b%bx-request-id: %b\r\nserver-timing: %b\r\ncontent-length: %d\r\n\r\n" % (
            fixed,
            self._default_lines,
            request_id,
            timing,
            length,
        )


@lru_cache(maxsize=256)
def fixed_lines(status: int, media_type: str, headers: tuple[tuple[bytes, bytes], ...] = (), *, keep_alive: bool) -> bytes:
    """The lines that are the same in every answer of a kind."""
    last = () if keep_alive else ((b"connection", b"close"),)
    return STATUS_LINE[status] + header_lines(((b"content-type", media_type.encode()), *headers, *last))
