"""The asynchronous client gives what the other gives, for any number of calls at once."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import numpy as np
import pytest
import torch
from rounding_server import RoundingServer, described, problem

from service.client import AsyncClient, Client
from service.errors import NotReady, UnsupportedDtype
from service.wire.message import Bundle

X = np.float32([0.4, 1.6])
PUBLIC = [name for name in vars(Client) if not name.startswith("_")]


def test_a_hundred_calls_at_once_get_each_its_own_answer() -> None:
    at_once = 0
    most = 0

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return RoundingServer()(request)

    async def call() -> list[np.ndarray]:
        async with AsyncClient(transport=httpx.MockTransport(slow)) as client:
            return await asyncio.gather(*(client.quantize("round", np.full(n, n + 0.4, np.float32)) for n in range(100)))

    answers = asyncio.run(call())
    assert most > 1
    for n, y in enumerate(answers):
        np.testing.assert_array_equal(y, np.full(n, n, np.float32))


@pytest.mark.parametrize(
    "x",
    [X, [X, X[:1]], (X,), {"a": X, "b": X[:0]}, torch.tensor([0.4, 1.6]), np.asfortranarray(np.ones((2, 3)) / 3), []],
    ids=["array", "list", "tuple", "dict", "torch", "fortran", "nothing"],
)
def test_both_clients_give_the_same(x: object) -> None:
    server = RoundingServer()

    async def call() -> tuple[object, ...]:
        async with AsyncClient(transport=server.transport) as client:
            return await client.quantize("round", x), await client.grad("clamp(0, 1)", x, x)  # type: ignore[type-var]

    with Client(transport=server.transport) as client:
        expected = (client.quantize("round", x), client.grad("clamp(0, 1)", x, x))  # type: ignore[type-var]
    assert repr(asyncio.run(call())) == repr(expected)
    mine, theirs = server.requests[:2], server.requests[2:]
    assert [request.content for request in mine] == [request.content for request in theirs]
    assert [request.headers for request in mine] == [request.headers for request in theirs]


def test_tensor_parameters_and_everything_else_work_alike() -> None:
    async def call() -> None:
        async with AsyncClient(transport=RoundingServer().transport) as client:
            grad_x, grads = await client.grad("affine_k_bit_quantize(4, w, b)", X, X, w=np.float32(3), b=np.float32(0))  # type: ignore[arg-type]
            np.testing.assert_array_equal(grad_x, 3 * X)
            assert list(grads) == ["w", "b"]
            message = {"x": Bundle.of(described(X))}
            assert bytes((await client.exchange("quantize", "round", message))["y"].tensors[0].data) == np.rint(X).tobytes()
            assert await client.operators() == [{"name": "round"}]
            assert await client.healthy()
            assert await client.ready()
            await client.wait_until_ready(1)
            with pytest.raises(UnsupportedDtype):
                await client.quantize("round", np.arange(3))

    asyncio.run(call())


def test_waiting_for_readiness_sleeps_in_between() -> None:
    slept_s: list[float] = []

    async def sleep(seconds: float) -> None:
        slept_s.append(seconds)

    async def call() -> None:
        not_ready = RoundingServer([lambda _: problem(NotReady("warming up"))] * 3)
        async with AsyncClient(transport=not_ready.transport, sleep=sleep) as client:
            await client.wait_until_ready()

    asyncio.run(call())
    assert len(slept_s) == 3


def test_the_pieces_of_a_large_body_are_the_callers_memory() -> None:
    x = np.arange(1_000_000, dtype=np.float32)
    pieces: list[memoryview] = []

    class PieceByPiece(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            pieces.extend([memoryview(piece) async for piece in request.stream])
            body = b"".join(pieces)
            assert request.headers["content-length"] == str(len(body))
            assert "transfer-encoding" not in request.headers
            return httpx.Response(200, headers={"content-type": "application/x-npy"}, content=body)

    async def call() -> np.ndarray:
        async with AsyncClient(transport=PieceByPiece()) as client:
            return await client.quantize("round", x)

    np.testing.assert_array_equal(asyncio.run(call()), x)
    start = x.ctypes.data
    shared = [piece for piece in pieces if start <= np.frombuffer(piece, np.uint8).ctypes.data < start + x.nbytes]
    assert sum(piece.nbytes for piece in shared) == x.nbytes


@pytest.mark.parametrize("name", PUBLIC)
def test_both_clients_have_the_same_methods_with_the_same_arguments(name: str) -> None:
    theirs, ours = getattr(Client, name), getattr(AsyncClient, name)
    assert inspect.iscoroutinefunction(ours)
    assert inspect.signature(theirs).parameters == inspect.signature(ours).parameters


def test_both_clients_take_the_same_arguments() -> None:
    assert list(inspect.signature(Client).parameters) == list(inspect.signature(AsyncClient).parameters)
    assert [name for name in vars(AsyncClient) if not name.startswith("_")] == PUBLIC


def test_an_asgi_application_can_stand_behind_the_client() -> None:
    """As the tests of the server do it."""

    async def echo(scope: dict, receive: object, send: object) -> None:
        body = b""
        while True:
            event = await receive()  # type: ignore[operator]
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = [(b"content-type", b"application/x-npy"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": body})  # type: ignore[operator]

    async def call() -> np.ndarray:
        async with AsyncClient(transport=httpx.ASGITransport(app=echo)) as client:  # type: ignore[arg-type]
            return await client.quantize("round", X)

    np.testing.assert_array_equal(asyncio.run(call()), X)
