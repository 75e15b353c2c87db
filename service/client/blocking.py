"""The client for code that waits: every request is sent from the calling thread."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
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


class Client:
    """Calls to one stequant server; NumPy in, NumPy out, torch in, torch out.

    May be shared by threads: it holds a pool of connections and nothing that changes.

    Arguments:
        base_url: where the server listens; a path in front of the service is allowed.
        timeout: seconds for one step (connecting, at most 5 of them; sending or receiving the next
            piece); an `httpx.Timeout` sets each step; None waits for ever.
        retries: how often a call is sent again after a connection that failed, a 429 or a 503; or a
            `RetryPolicy`. Every call is a pure function, so that sending it again is safe.
        deadline_s: seconds for one call in all, with its retries and waits; None for no such limit.
        api_key: sent as a bearer key; by default the variable STEQUANT_API_KEY, if there is one.
        format: 'npy', 'msgpack' or 'safetensors'; by default npy where it can hold the call, else msgpack.
            Compact answers always come as safetensors.
        max_connections: calls beyond this many at once wait for a connection.
        uds: path of the Unix socket to connect to, in place of the host and port of `base_url`.
        verify: for https: whether to check certificates, or an `ssl.SSLContext` to check them with.
        trust_env: whether httpx may take proxies and certificates from the environment.
        transport: what carries the requests, in place of sockets: for tests, an `httpx.MockTransport`.
        sleep: what waits between attempts; seconds.

    Raises `ValueError` for arguments that are not allowed.

    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     y = client.quantize("k_bit_quantize(k=4)", np.float32([0.1, 0.5]))

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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
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
            transport = httpx.HTTPTransport(uds=uds, verify=verify, limits=config.http["limits"], trust_env=trust_env)
        self._http = httpx.Client(transport=transport, **config.http)
        self._sleep = sleep

    @overload
    def quantize(
        self, expression: str | Expression, /, x: SomeTensors, *, output: Literal["values"] | Array = "values", **tensors: Array
    ) -> SomeTensors: ...

    @overload
    def quantize(self, expression: str | Expression, /, x: Array, *, output: Literal["codes"], **tensors: Array) -> Codes: ...

    @overload
    def quantize(self, expression: str | Expression, /, x: Array, *, output: Literal["packed"], **tensors: Array) -> Packed: ...

    @overload
    def quantize(
        self, expression: str | Expression, /, x: Tensors, *, output: Literal["codes", "packed"], **tensors: Array
    ) -> AnyCodes: ...

    def quantize(
        self,
        expression: str | Expression,
        /,
        x: Tensors,
        *,
        output: Literal["values", "codes", "packed"] | Array = "values",
        **tensors: Array,
    ) -> Tensors | AnyCodes:
        """Quantize `x` with an operator or a chain of them.

        Arguments:
            expression: such as "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)", sent as it is;
                or the same as a value, `Clamp(min_value=0, max_value=1) | KBitQuantize(k=4)`.
            x: an array or tensor of any shape, or a list, tuple or dict of them, each quantized on its
                own: float16, bfloat16 (torch, or NumPy with ml_dtypes), float32 or float64.
            output: 'codes' for the integers before scaling (`Codes`), 'packed' for those in k bits each
                (`Packed`): a half to a thirty-second of the bytes come back, and `decode()` gives the same bits.
            tensors: those that the expression names, by their names: of x's dtype, broadcasting to its shape.

        Returns:
            `y`: dtype, shape and structure are those of `x`. NumPy's are writable, native in byte order,
            and in x's memory order where they travelled as npy; torch's are on the device of `x`.
            The tensors of one call share one piece of memory: keep a copy of one rather than one of many.

        Raises:
            TypeError: `x` is neither array nor tensor, nor a list, tuple or dict of them.
            RequestError: the call has to change; its classes (`BadParameter`, `UnsupportedDtype`, …) say where.
            CapacityError: it may succeed later (`Overloaded`, `NotReady`, `ConnectionFailed`, `TimedOut`, …),
                after `retry_after_s` where the server said so.
            ProtocolError: the answer is not one to this call.

        >>> client.quantize("k_bit_quantize(k=2)", np.float32([0.2, 0.7]))  # doctest: +SKIP
        array([0.33333334, 0.6666667 ], dtype=float32)

        """
        form, tensors = calls.form_of(output, tensors, "codes", "packed")
        if form != "values":
            codes: AnyCodes = self._call(calls.quantize_compactly(expression, x, tensors, self._config.wire, form))
            return codes
        return self._call(calls.quantize(expression, x, tensors, self._config.wire))

    @overload
    def grad(self, expression: str | Expression, /, x: Array, *, output: Literal["mask"]) -> Mask: ...

    @overload
    def grad(self, expression: str | Expression, /, x: Tensors, *, output: Literal["mask"]) -> AnyMask: ...

    @overload
    def grad(self, expression: str | Expression, /, x: Tensors | None, grad_output: SomeTensors) -> SomeTensors: ...

    @overload
    def grad(
        self,
        expression: str | Expression,
        /,
        x: Tensors | None,
        grad_output: SomeTensors,
        *,
        output: Literal["values"] | Array = "values",
        **tensors: Array,
    ) -> tuple[SomeTensors, dict[str, Array]]: ...

    def grad(
        self,
        expression: str | Expression,
        /,
        x: Tensors | None,
        grad_output: Tensors | None = None,
        *,
        output: Literal["values", "mask"] | Array = "values",
        **tensors: Array,
    ) -> Tensors | AnyMask | tuple[Tensors, dict[str, Array]]:
        """Carry `grad_output`, the gradient of a loss with respect to `y`, back to `x`.

        Arguments:
            expression: as for `quantize`.
            x: what was quantized; None where no operator of the chain needs it.
            grad_output: in the structure of `x`, each of the dtype and shape of its `x`.
            output: 'mask' for where the gradient passes (`Mask`), one bit an element; then `x` alone is given.
            tensors: as for `quantize`.

        Returns:
            `grad_x`, with dtypes, shapes and structure of `x` (of `grad_output` where `x` is None). With
            tensor parameters: `(grad_x, {name: gradient})`, each gradient of its parameter's shape.

        Raises:
            StructureMismatch: `x` and `grad_output` differ in count, names or nesting; else as `quantize`.

        >>> client.grad("clamp(min_value=0, max_value=1)", np.float32([0.5, 2]), np.float32([3, 3]))  # doctest: +SKIP
        array([3., 0.], dtype=float32)

        """
        form, tensors = calls.form_of(output, tensors, "mask")
        if form == "mask":
            return self._call(calls.mask(expression, x, grad_output, tensors, self._config.wire))
        if grad_output is None:
            raise TypeError("grad_output is missing; only a mask needs x alone")
        grad_x, grads = self._call(calls.grad(expression, x, grad_output, tensors, self._config.wire))
        return (grad_x, grads) if tensors else grad_x

    def exchange(self, kind: Kind, expression: str | Expression, message: Message) -> Message:
        """The same calls on described bytes, for callers who hold no arrays: bundles in, bundles out.

        Arguments:
            kind: 'quantize' or 'grad'.
            expression: as for `quantize`.
            message: `x`, `grad_output` and the tensor parameters, by these names.

        Returns:
            `y`, or `grad_x` and `grad_<name>` for each tensor parameter; dtypes, shapes and names are
            those of what was sent.

        Raises:
            MissingTensor: there is nothing to quantize or to carry back; else as `quantize`.

        """
        return self._call(calls.exchange(kind, expression, message, self._config.wire, lambda results: results))

    def operators(self) -> list[dict[str, object]]:
        """The operators that the server knows, described: name, parameters with bounds, formula, gradient, sources."""
        return self._call(calls.operators())

    def healthy(self) -> bool:
        """Whether the server answers; asked once. Raises `RequestError` where there is another kind of server."""
        return self._failure("/healthz") is None

    def ready(self) -> bool:
        """Whether the server takes calls: its device is ready and it is not draining; asked once."""
        return self._failure("/readyz") is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the server is ready; `TimedOut`, with the last reason, after `timeout_s` seconds."""
        clock = self._config.policy.clock
        end = clock() + timeout_s
        while (failure := self._failure("/readyz", timeout_s=end - clock())) is not None:
            if clock() + READINESS_POLL_S >= end:
                raise TimedOut(f"not ready within {timeout_s} s: {failure}", retry_after_s=None) from failure
            self._sleep(READINESS_POLL_S)

    def close(self) -> None:
        """Close the connections; the client cannot be used any more."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.base_url!r})"

    def _failure(self, path: Literal["/healthz", "/readyz"], *, timeout_s: float | None = None) -> StequantError | None:
        try:
            self._call(calls.probe(path), self._config.one_attempt(timeout_s))
        except RequestError:
            raise
        except StequantError as error:
            return error
        return None

    def _call(self, exchange: Exchange[Result], attempts: Attempts | None = None) -> Result:
        attempts = attempts or self._config.attempts()
        while True:
            try:
                return exchange.read(self._send(exchange, attempts))
            except StequantError as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _send(self, exchange: Exchange[Result], attempts: Attempts) -> Answer:
        request = self._config.request(exchange, attempts)
        content = _watched(exchange.pieces(), attempts) if exchange.body else None
        with translated(request["method"], request["url"]), self._http.stream(content=content, **request) as response:
            received = AnswerBuffer(response.status_code, response.headers, exchange.max_answer_bytes)
            for piece in response.iter_bytes():
                attempts.check()
                received.write(piece)
            return self._config.answer(response, received)


def _watched(pieces: Iterator[Piece], attempts: Attempts) -> Iterator[bytes]:
    for piece in pieces:
        attempts.check()
        # httpx says bytes, and hands on whatever has a length and a buffer.
        yield piece  # type: ignore[misc]
