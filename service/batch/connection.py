"""One connection to a server, for bodies of many megabytes: received into memory that the caller owns.

`service.client` receives through httpx, which hands a body on in small pieces that have to be put together (16 MiB over
loopback: 51 ms of processor time a call; here 10 ms). A job does nothing else for hours, so it has a connection of its
own; what is sent, how answers are read, and what errors are called, is the client's.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from service.batch.rooms import Room
from service.client.answers import MAX_ERROR_BYTES, Answer, expect_success
from service.client.calls import JOINED_BELOW_BYTES, Exchange
from service.client.configuration import CONNECT_TIMEOUT_S, configure
from service.client.errors import ConnectionFailed, ProtocolError, TimedOut

Result = TypeVar("Result")
Response = TypeVar("Response")

_PORTS = {"http": 80, "https": 443}
_CONTINUE = b"HTTP/1.1 100"


class Address:
    """Where a server listens, checked: `ValueError` for what cannot be an address, or a key that cannot be sent."""

    def __init__(self, url: str, uds: str | None = None) -> None:
        config = configure(url, retries=0)
        parts = urlsplit(config.base_url)
        self.name = uds or config.base_url
        self._uds = uds
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path
        self._headers = {"Host": parts.netloc, **config.http["headers"]}

    def connect(self, timeout_s: float) -> socket.socket:
        """A new connection; `OSError` where there is none in time."""
        try:
            if self._uds is not None:
                return _connected_to(self._uds, timeout_s)
            stream = socket.create_connection((self._host, self._port), timeout_s)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream if self._tls is None else self._tls.wrap_socket(stream, server_hostname=self._host)
        except TimeoutError as error:
            raise ConnectionError(f"no connection within {timeout_s:g} s") from error

    def head(self, exchange: Exchange[Result], headers: Mapping[str, str]) -> bytes:
        """The head of a request, as it is sent."""
        lines = [f"{exchange.method} {self._path}{exchange.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (*self._headers.items(), *headers.items())]
        return "\r\n".join((*lines, "", "")).encode("latin-1")


def _connected_to(path: str, timeout_s: float) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout_s)
        stream.connect(path)
    except BaseException:
        stream.close()
        raise
    return stream


class Connection:
    """A connection that is made when it is needed and kept; of one thread.

    Raises `ConnectionFailed` and `TimedOut`, as the client does, and connects anew after either. `timeout_s` bounds
    connecting (at most 5 s of it), each write, and each wait for more of an answer. Proxies are not used.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None

    def call(self, exchange: Exchange[Result], room: Room, elements_nbytes: int) -> Result:
        """Send a request, and read its answer into `room`; `elements_nbytes` of it are elements."""
        with self._translated():
            response = self._once_more_if_stale(lambda stream: self._ask(stream, exchange))
            answer = self._read(response, exchange, room, elements_nbytes)
        return exchange.read(answer)

    def probe(self, exchange: Exchange[Result], nbytes: int) -> None:
        """Ask whether this request would be taken with `nbytes` more; nothing of its body is sent. Raises its refusal."""
        length = str(int(exchange.headers["Content-Length"]) + nbytes)
        with self._translated():
            response = self._once_more_if_stale(lambda stream: self._announce(stream, exchange, length))
            answer = None if response is None else self._read(response, exchange, Room(), 0)
            self.close()  # the server waits for the body
        if answer is not None:
            expect_success(answer)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._response is not None:
            self._response.close()  # it keeps the socket open too
            self._response = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise what goes wrong on the way as the client's errors; the connection is then not used again."""
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise TimedOut(f"{self._address.name}: no answer within {self._timeout_s:g} s", retry_after_s=None) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise ConnectionFailed(f"{self._address.name}: {reason}", retry_after_s=None) from error
        except BaseException:
            self.close()
            raise

    def _once_more_if_stale(self, ask: Callable[[socket.socket], Response]) -> Response:
        """Ask; and again, on a new connection, where one that was kept turns out to have been closed meanwhile."""
        if self._socket is not None:
            try:
                return ask(self._socket)
            except ConnectionError:
                self.close()
        self._socket = self._address.connect(min(self._timeout_s, CONNECT_TIMEOUT_S))
        self._socket.settimeout(self._timeout_s)
        return ask(self._socket)

    def _ask(self, stream: socket.socket, exchange: Exchange[Result]) -> http.client.HTTPResponse:
        head = self._address.head(exchange, exchange.headers)
        pieces = exchange.pieces()
        response = self._response = http.client.HTTPResponse(stream, method=exchange.method)
        try:
            first = next(pieces, b"")
            # In one packet, where both are small.
            if len(first) < JOINED_BELOW_BYTES:
                stream.sendall(b"".join((head, first)))
            else:
                stream.sendall(head)
                stream.sendall(first)
            for piece in pieces:
                stream.sendall(piece)
        except ConnectionError:
            # Refused before all of it was taken: the answer that says why may be here already.
            response.begin()
            return response
        response.begin()
        return response

    def _announce(self, stream: socket.socket, exchange: Exchange[Result], length: str) -> http.client.HTTPResponse | None:
        """Send a head alone. The refusal; None where the server asks for the body."""
        headers = {**exchange.headers, "Content-Length": length, "Expect": "100-continue"}
        response = self._response = http.client.HTTPResponse(stream, method=exchange.method)
        stream.sendall(self._address.head(exchange, headers))
        if response.fp.peek(len(_CONTINUE)).startswith(_CONTINUE):
            return None
        response.begin()
        return response

    def _read(self, response: http.client.HTTPResponse, exchange: Exchange[Result], room: Room, elements_nbytes: int) -> Answer:
        if response.status == http.client.OK:
            body = _received(response, exchange.max_answer_bytes, room, elements_nbytes)
        else:
            body = memoryview(response.read(MAX_ERROR_BYTES))
        if not response.isclosed() or response.will_close:
            self.close()
        return Answer(response.status, httpx.Headers(response.getheaders()), body, time.time())


def _received(response: http.client.HTTPResponse, most_bytes: int, room: Room, elements_nbytes: int) -> memoryview:
    """The body of a success, in `room` where it fits."""
    length = response.length
    if length is None:
        # Some proxy sends it in chunks: its length is known at its end.
        body = bytearray(response.read(most_bytes + 1))
        if len(body) > most_bytes:
            raise ProtocolError(f"the answer has more than {most_bytes} bytes; no answer to this call can")
        return memoryview(body)
    if length > most_bytes:
        raise ProtocolError(f"the answer announces {length} bytes; at most {most_bytes} can be one to this call")
    memory = room.answer(length, elements_nbytes)
    filled = 0
    while filled < length:
        count = response.readinto(memory[filled:])
        if not count:
            raise http.client.IncompleteRead(b"", length - filled)
        filled += count
    response.read()  # nothing is left; being told so, http.client keeps the connection
    return memory
