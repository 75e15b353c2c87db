"""The application in this process, its lifespan run, spoken to in HTTP or in ASGI; nothing is patched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings

Result = TypeVar("Result")
Message = dict[str, Any]
Headers = Mapping[str, str]


def settings(**given: object) -> Settings:
    """Settings for a test: the CPU, whatever the machine has."""
    return Settings(**({"device": "cpu"} | given))  # type: ignore[arg-type]


@asynccontextmanager
async def running(**given: object) -> AsyncIterator[FastAPI]:
    """An application whose device is open and warm."""
    app = create_app(settings(**given))
    async with app.router.lifespan_context(app):
        yield app


class Service:
    """An application on an event loop of its own; its methods wait for the answer."""

    def __init__(self, **given: object) -> None:
        self._given = given

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._context = running(**self._given)
        self.app = self.run(self._context.__aenter__())
        self.transport = httpx.ASGITransport(app=self.app)
        self._client = httpx.AsyncClient(transport=self.transport, base_url="http://service.test")
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._client.aclose())
        self.run(self._context.__aexit__(None, None, None))
        self._runner.close()

    def run(self, work: Awaitable[Result]) -> Result:
        """Wait for a coroutine on the application's loop."""

        async def waited() -> Result:
            return await work

        return self._runner.run(waited())

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """One request of any kind."""
        return self.run(self._client.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        """One GET."""
        return self.request("GET", url, **options)

    def post(self, url: str, body: bytes, content_type: str | None, **options: Any) -> httpx.Response:
        """One body of this type, or of none."""
        headers = dict(options.pop("headers", {}))
        if content_type is not None:
            headers["content-type"] = content_type
        return self.request("POST", url, content=body, headers=headers, **options)

    def raw(self, request: Raw) -> RawAnswer:
        """Speak ASGI: what no HTTP client lets through."""
        return self.run(exchange(self.app, request))


@dataclass(frozen=True)
class Raw:
    """A request as an ASGI server hands it on."""

    method: str = "POST"
    path: str = "/quantize"
    query: bytes = b"op=round"
    headers: Iterable[tuple[str, str]] = ()
    receive: Callable[[], Awaitable[Message]] | None = None
    http_version: str = "1.1"


@dataclass
class RawAnswer:
    """What an application sent back."""

    status: int
    headers: dict[str, str]
    body: bytes


def messages(*given: Message) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives these messages in turn, and fails the test when it is asked for more."""
    left = iter(given)

    async def receive() -> Message:
        try:
            return next(left)
        except StopIteration:
            raise AssertionError("the application asked for more than there is") from None

    return receive


def body_messages(*pieces: bytes) -> Callable[[], Awaitable[Message]]:
    """A body in pieces."""
    return messages(
        *({"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1} for index, piece in enumerate(pieces))
    )


async def exchange(app: FastAPI, request: Raw) -> RawAnswer:
    """One request and its answer."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version,
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": request.query,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, request.receive or messages(), send)
    if not sent:
        return RawAnswer(0, {}, b"")
    start, *rest = sent
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return RawAnswer(start["status"], headers, b"".join(bytes(message.get("body", b"")) for message in rest))
