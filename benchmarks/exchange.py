"""One request and its answer over a blocking socket, with as little HTTP as that takes."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from types import TracebackType

ANSWER_TIMEOUT_S = 60.0
HEAD_ROOM = 8192  # longest head either side may send, in bytes

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class BadAnswer(Exception):
    """The server answered something else than a whole 200."""


def connect(address: str) -> socket.socket:
    """A connected socket; the address is `127.0.0.1:8000` or `unix:/path`."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def content_length(head: bytes) -> int | None:
    """The value of Content-Length in a complete head."""
    match = _CONTENT_LENGTH.search(head)
    return int(match.group(1)) if match else None


class Connection:
    """A connection on which one request after another is sent; answers share one buffer."""

    def __init__(self, address: str, capacity: int) -> None:
        self._socket = connect(address)
        self._buffer = bytearray(HEAD_ROOM + capacity)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> memoryview:
        """The body of the answer, which the next exchange overwrites; `BadAnswer` unless it is a whole 200."""
        with suppress(ConnectionError):  # refused before all was sent: the answer says why
            self._socket.sendall(request)
        view = memoryview(self._buffer)
        have, end = 0, -1
        while end < 0:
            got = self._receive(view[have:])
            have += got
            end = self._buffer.find(b"\r\n\r\n", 0, min(have, HEAD_ROOM))
            if end < 0 and have >= HEAD_ROOM:
                raise BadAnswer(f"the head of the answer is longer than {HEAD_ROOM} bytes")
        start = end + 4
        head = bytes(view[:start])
        if not head.startswith(b"HTTP/1.1 200"):
            raise BadAnswer(f"the answer is not 200: {head.splitlines()[0].decode('latin-1')} {bytes(view[start:have])[:300]!r}")
        length = content_length(head)
        if length is None:
            raise BadAnswer("the answer has no Content-Length")
        if not have <= start + length <= len(view):
            raise BadAnswer(f"the answer has an unexpected length: {length}")
        while have < start + length:
            have += self._receive(view[have : start + length])
        return view[start : start + length]

    def _receive(self, view: memoryview) -> int:
        try:
            got = self._socket.recv_into(view)
        except OSError as error:
            raise BadAnswer(f"no answer: {error}") from error
        if not got:
            raise BadAnswer("the server closed the connection")
        return got


def exchange(address: str, request: bytes, capacity: int) -> bytes:
    """The body of the answer to one request on a connection of its own."""
    with Connection(address, capacity) as connection:
        return bytes(connection.exchange(request))
