"""The clients over real sockets: what httpx and the operating system make of the requests."""

from __future__ import annotations

import asyncio
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from rounding_server import RoundingServer

from service.client import AsyncClient, Client, ConnectionFailed, TimedOut
from service.errors import BodyTooLarge

LARGE = np.arange(2_000_000, dtype=np.float32)


class Handler(BaseHTTPRequestHandler):
    """The double behind a socket. `/quantize?op=…` of a name it does not know does something else."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        """Refuse, keep silent, drop the connection or answer."""
        assert "Transfer-Encoding" not in self.headers
        if self.path.endswith("op=too_large"):
            return self.answer(413, "application/problem+json", b'{"code": "body_too_large", "detail": "too large"}')
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("op=silence"):
            self.close_connection = True
            self.server.stopping.wait(5)  # type: ignore[attr-defined]
            return None
        if self.path.endswith("op=drop_once") and self.server.dropped < 1:  # type: ignore[attr-defined]
            self.server.dropped += 1  # type: ignore[attr-defined]
            self.close_connection = True
            return None
        path = self.path.replace("drop_once", "round")
        answer = RoundingServer().computed(httpx.Request("POST", f"http://a{path}", headers=dict(self.headers), content=body))
        return self.answer(200, answer.headers["content-type"], answer.content)

    def answer(self, status: int, content_type: str, content: bytes) -> None:
        """Answer; a refusal closes the connection, for the body was not read."""
        self.close_connection = status != 200
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""


class Tcp(socketserver.ThreadingTCPServer):
    """On a port."""

    daemon_threads = True
    request_queue_size = 200


class Unix(socketserver.ThreadingUnixStreamServer):
    """On a path."""

    daemon_threads = True
    request_queue_size = 200


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    server.dropped = 0  # type: ignore[attr-defined]
    server.stopping = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    with server:
        thread.start()
        try:
            yield
        finally:
            server.stopping.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Tcp(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    # The path of a socket has about a hundred characters at most: pytest's own folders may be longer.
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s")
        with serving(Unix(path, Handler)):
            yield path


def test_large_bodies_travel_both_ways(url: str) -> None:
    with Client(url) as client:
        for _ in range(2):
            np.testing.assert_array_equal(client.quantize("round", LARGE + 0.25), LARGE)
        y = client.quantize("round", {"a": torch.from_numpy(LARGE), "b": torch.zeros(3, dtype=torch.bfloat16)})
        assert torch.equal(y["a"], torch.from_numpy(LARGE))


def test_a_unix_socket_can_be_used(socket_path: str) -> None:
    with Client(uds=socket_path) as client:
        np.testing.assert_array_equal(client.quantize("round", LARGE), LARGE)

    async def call() -> np.ndarray:
        async with AsyncClient(uds=socket_path) as client:
            return await client.quantize("round", LARGE)

    np.testing.assert_array_equal(asyncio.run(call()), LARGE)


def test_a_hundred_calls_at_once_share_the_connections_there_are(url: str) -> None:
    async def call() -> list[np.ndarray]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.quantize("round", np.full(n, n, np.float32)) for n in range(100)))

    for n, y in enumerate(asyncio.run(call())):
        np.testing.assert_array_equal(y, np.full(n, n))


def test_a_connection_that_breaks_is_made_again(url: str) -> None:
    with Client(url, sleep=lambda _: None) as client:
        np.testing.assert_array_equal(client.quantize("drop_once", LARGE[:10]), LARGE[:10])


def test_an_answer_that_comes_before_the_body_was_sent_is_read(url: str) -> None:
    """A server that refuses a length does not wait for the bytes."""
    with Client(url, retries=0) as client, pytest.raises(BodyTooLarge, match="too large"):
        client.quantize("too_large", LARGE[:10])


def test_silence_is_a_timeout(url: str) -> None:
    with Client(url, timeout=0.1) as client, pytest.raises(TimedOut, match="ReadTimeout"):
        client.quantize("silence", LARGE[:10])
    with Client(url, deadline_s=0.1) as client, pytest.raises(TimedOut):
        client.quantize("silence", LARGE[:10])


def test_where_nobody_listens_the_connection_fails() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client:
        with pytest.raises(ConnectionFailed, match=r"POST http://127\.0\.0\.1:9/quantize: ConnectError"):
            client.quantize("round", LARGE[:10])
        assert not client.healthy()
