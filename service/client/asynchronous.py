"""The client for asyncio: `Client` with `await`; one for any number of calls at once."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

import httpx

from service.client import calls
from service.client.answers import Answer, AnswerBuffer
from service.client.calls import AnyCodes, AnyMask, Exchange, Kind, Piece, Wire
from service.client.compact import Codes, Mask, Packed
from service.client.configuration import (
    DEFAULT_BASE_URL,
    DEFAULT_CONNECTIONS,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT_S,
    READINESS_POLL_S,
    configure,
)
from service.client.errors import TimedOut, translated
from service.client.retries import Attempts, RetryPolicy
from service.client.tensors import Array, Tensors
from service.errors import RequestError, StequantError
from service.ops import Expression
from service.wire.message import Message

Result = TypeVar("Result")
SomeTensors = TypeVar("SomeTensors", bound=Tensors)


class AsyncClient:
    """`Client` with `await`: the same arguments, results and errors, and any number of calls at once.

    The arguments are those of `Client`; `transport` is an asynchronous one (`httpx.MockTransport`,
    `httpx.ASGITransport`), `sleep` a coroutine function. One client belongs to one event loop. NumPy and
    torch work in the loop's thread: a copy is made there where memory is not contiguous.

    >>> async with AsyncClient() as client:  # doctest: +SKIP
    ...     first, second = await asyncio.gather(client.quantize("round", a), client.quantize("round", b))
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        *,
        timeout: float | httpx.Timeout | None = DEFAULT_TIMEOUT_S,
        retries: int | RetryPolicy = DEFAULT_RETRIES,
        deadline_s: float | None = None,
        api_key: str | None = None,
        format: Wire | None = None,  # noqa: A002  # the caller's word for it
        max_connections: int = DEFAULT_CONNECTIONS,
        uds: str | None = None,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._config = config = configure(
            base_url,
            timeout=timeout,
            retries=retries,
            deadline_s=deadline_s,
            api_key=api_key,
            format=format,
            max_connections=max_connections,
            trust_env=trust_env,
            verify=verify,
        )
        if uds is not None:
            if transport is not None:
                raise ValueError("uds and transport exclude each other")
            transport = httpx.AsyncHTTPTransport(uds=uds, verify=verify, limits=config.http["limits"], trust_env=trust_env)
        self._http = httpx.AsyncClient(transport=transport, **config.http)
        self._sleep = sleep

    @overload
    async def quantize(
        self, expression: str | Expression, /, x: SomeTensors, *, output: Literal["values"] | Array = "values", **tensors: Array
    ) -> SomeTensors: ...

    @overload
    async def quantize(self, expression: str | Expression, /, x: Array, *, output: Literal["codes"], **tensors: Array) -> Codes: ...

    @overload
    async def quantize(
        self, expression: str | Expression, /, x: Array, *, output: Literal["packed"], **tensors: Array
    ) -> Packed: ...

    @overload
    async def quantize(
        self, expression: str | Expression, /, x: Tensors, *, output: Literal["codes", "packed"], **tensors: Array
    ) -> AnyCodes: ...

    async def quantize(
        self,
        expression: str | Expression,
        /,
        x: Tensors,
        *,
        output: Literal["values", "codes", "packed"] | Array = "values",
        **tensors: Array,
    ) -> Tensors | AnyCodes:
        """Quantize `x` with an operator or a chain of them; see `Client.quantize`."""
        form, tensors = calls.form_of(output, tensors, "codes", "packed")
        if form != "values":
            codes: AnyCodes = await self._call(calls.quantize_compactly(expression, x, tensors, self._config.wire, form))
            return codes
        return await self._call(calls.quantize(expression, x, tensors, self._config.wire))

    @overload
    async def grad(self, expression: str | Expression, /, x: Array, *, output: Literal["mask"]) -> Mask: ...

    @overload
    async def grad(self, expression: str | Expression, /, x: Tensors, *, output: Literal["mask"]) -> AnyMask: ...

    @overload
    async def grad(self, expression: str | Expression, /, x: Tensors | None, grad_output: SomeTensors) -> SomeTensors: ...

    @overload
    async def grad(
        self,
        expression: str | Expression,
        /,
        x: Tensors | None,
        grad_output: SomeTensors,
        *,
        output: Literal["values"] | Array = "values",
        **tensors: Array,
    ) -> tuple[SomeTensors, dict[str, Array]]: ...

    async def grad(
        self,
        expression: str | Expression,
        /,
        x: Tensors | None,
        grad_output: Tensors | None = None,
        *,
        output: Literal["values", "mask"] | Array = "values",
        **tensors: Array,
    ) -> Tensors | AnyMask | tuple[Tensors, dict[str, Array]]:
        """Carry `grad_output`, the gradient of a loss with respect to `y`, back to `x`; see `Client.grad`."""
        form, tensors = calls.form_of(output, tensors, "mask")
        if form == "mask":
            return await self._call(calls.mask(expression, x, grad_output, tensors, self._config.wire))
        if grad_output is None:
            raise TypeError("grad_output is missing; only a mask needs x alone")
        grad_x, grads = await self._call(calls.grad(expression, x, grad_output, tensors, self._config.wire))
        return (grad_x, grads) if tensors else grad_x

    async def exchange(self, kind: Kind, expression: str | Expression, message: Message) -> Message:
        """The same calls on described bytes, for callers who hold no arrays; see `Client.exchange`."""
        return await self._call(calls.exchange(kind, expression, message, self._config.wire, lambda results: results))

    async def operators(self) -> list[dict[str, object]]:
        """The operators that the server knows, described: name, parameters with bounds, formula, gradient, sources."""
        return await self._call(calls.operators())

    async def healthy(self) -> bool:
        """Whether the server answers; asked once. Raises `RequestError` where there is another kind of server."""
        return await self._failure("/healthz") is None

    async def ready(self) -> bool:
        """Whether the server takes calls: its device is ready and it is not draining; asked once."""
        return await self._failure("/readyz") is None

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the server is ready; `TimedOut`, with the last reason, after `timeout_s` seconds."""
        clock = self._config.policy.clock
        end = clock() + timeout_s
        while (failure := await self._failure("/readyz", timeout_s=end - clock())) is not None:
            if clock() + READINESS_POLL_S >= end:
                raise TimedOut(f"not ready within {timeout_s} s: {failure}", retry_after_s=None) from failure
            await self._sleep(READINESS_POLL_S)

    async def close(self) -> None:
        """Close the connections; the client cannot be used any more."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.base_url!r})"

    async def _failure(self, path: Literal["/healthz", "/readyz"], *, timeout_s: float | None = None) -> StequantError | None:
        try:
            await self._call(calls.probe(path), self._config.one_attempt(timeout_s))
        except RequestError:
            raise
        except StequantError as error:
            return error
        return None

    async def _call(self, exchange: Exchange[Result], attempts: Attempts | None = None) -> Result:
        attempts = attempts or self._config.attempts()
        while True:
            try:
                return exchange.read(await self._send(exchange, attempts))
            except StequantError as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def _send(self, exchange: Exchange[Result], attempts: Attempts) -> Answer:
        request = self._config.request(exchange, attempts)
        content = _watched(exchange.pieces(), attempts) if exchange.body else None
        with translated(request["method"], request["url"]):
            async with self._http.stream(content=content, **request) as response:
                received = AnswerBuffer(response.status_code, response.headers, exchange.max_answer_bytes)
                async for piece in response.aiter_bytes():
                    attempts.check()
                    received.write(piece)
                return self._config.answer(response, received)


async def _watched(pieces: Iterator[Piece], attempts: Attempts) -> AsyncIterator[bytes]:
    for piece in pieces:
        attempts.check()
        # httpx says bytes, and hands on whatever has a length and a buffer.
        yield piece  # type: ignore[misc]
