"""The ASGI way in: an application in front of FastAPI that answers the hot paths itself.

FastAPI's routing, validation and response classes cost more than a small call. What they would do for
the hot paths is done by `Core`, in the same way for the protocol class; FastAPI serves the rest.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from service.answer import CALLER_GONE, Answer, problem
from service.core import Admitted, Core, check_length, unexpected
from service.device.buffers import allocate
from service.errors import BadFraming, MalformedBody, StequantError
from service.head import Head
from service.job import Job
from service.logs import log_exchange
from service.metrics import Exchange

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A chunked body says nothing of its size: memory is reserved in steps of this many bytes.
_CHUNKED_STEP_BYTES = 2**20


# Where in the scope an answer that is a problem leaves its code, for the log and the metrics.
PROBLEM_CODE = "stequant.problem_code"


class CallerGone(Exception):
    """The connection was closed before the request was complete; there is nobody to answer."""


class HotPaths:
    """Answers calls; hands everything else on, after the checks that hold for every path."""

    def __init__(self, app: App, core: Core) -> None:
        self.app = app
        self.core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = Head(scope["method"], scope["path"], scope["query_string"], scope["headers"], scope["http_version"])
        if head.path in self.core.routes:
            await self._hot(head, receive, send)
        else:
            await self._other(head, scope, receive, send)

    async def _hot(self, head: Head, receive: Receive, send: Send) -> None:
        job = self.core.job(head)
        received_bytes = 0
        answer = CALLER_GONE
        try:
            try:
                terms = self.core.admit(job, head)
                body = await _read(self.core, job, terms, receive)
                received_bytes = body.nbytes
                answer = await self.core.answer(job, body)
            except StequantError as error:
                answer = problem(error, head.path)
            except MemoryError as error:
                answer = problem(unexpected(error, f"a call of {head.path}"), head.path)
            await _write(answer, send, job)
        except CallerGone:
            answer = CALLER_GONE
        finally:
            self.core.done(head, answer, job, received_bytes)

    async def _other(self, head: Head, scope: Scope, receive: Receive, send: Send) -> None:
        job = self.core.job(head)
        status, sent_bytes = 500, 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                job.ended = time.perf_counter()
                message["headers"] = [*message.get("headers", ()), *_trace(job)]
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            try:
                self.core.check(head)
                await self.app(scope, receive, counted)
            except StequantError as error:
                scope[PROBLEM_CODE] = error.code
                await _write(problem(error, head.path), counted, None)
        except Exception as error:
            failure = unexpected(error, f"{head.method} {head.path}")
            if status != 500:
                raise  # an answer has begun; the server closes the connection
            scope[PROBLEM_CODE] = failure.code
            await _write(problem(failure, head.path), counted, None)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            exchange = Exchange(
                head.method,
                head.path,
                route,
                status,
                0,
                sent_bytes,
                time.perf_counter() - job.started,
                job.request_id,
                code=scope.get(PROBLEM_CODE, ""),
            )
            if self.core.spans is not None:
                exchange = self.core.spans.traced(head, exchange)
            self.core.metrics.count(exchange)
            log_exchange(exchange)


async def _read(core: Core, job: Job, terms: Admitted, receive: Receive) -> memoryview:
    """The body, in memory that its tensors can keep; checked against its announced length and the limit."""
    length = terms.length
    if length is None:
        return await _read_chunked(core, job, terms, receive)
    body = allocate(length)
    filled = 0
    async for piece in _pieces(receive):
        if filled + len(piece) > length:
            raise MalformedBody(f"the body is longer than its 'Content-Length' of {length}")
        body[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled < length:
        raise MalformedBody(f"the body has {filled} bytes, its 'Content-Length' says {length}")
    return body


async def _read_chunked(core: Core, job: Job, terms: Admitted, receive: Receive) -> memoryview:
    body = bytearray()
    async for piece in _pieces(receive):
        check_length(len(body) + len(piece), terms.limit_bytes, terms.format)
        while job.reserved_bytes < len(body) + len(piece):
            core.reserve(job, min(_CHUNKED_STEP_BYTES, terms.limit_bytes - job.reserved_bytes))
        body += piece
    return memoryview(body)


async def _pieces(receive: Receive) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        if body := message.get("body"):
            yield body
        if not message.get("more_body"):
            return


def _trace(job: Job) -> tuple[tuple[bytes, bytes], ...]:
    return (b"x-request-id", job.request_id), (b"server-timing", job.timing())


async def _write(answer: Answer, send: Send, job: Job | None) -> None:
    """Send an answer, with the headers that trace its job, where nobody adds them later."""
    headers = [*answer.header_pairs(), *(_trace(job) if job is not None else ())]
    if answer.code == BadFraming.code:
        # What follows a request whose framing is in doubt might be a part of it.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    pieces = answer.pieces or (b"",)
    for index, piece in enumerate(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces) - 1})
