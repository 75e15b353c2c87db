"""A relay between a job and a server: it says what was sent, lets through only so much, and may vanish."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NamedTuple, Self

from server_process import PATIENCE_S

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Sent(NamedTuple):
    """One request that came whole."""

    head: bytes
    body: bytes


class Relay:
    """Passes requests on, one after the other on each connection, to the port `upstream`.

    `allowance` is how many calls may still pass; None: all. What is beyond it waits, and so do calls that `holds` is
    true of, until `let_pass`. Questions that send no body (`Expect: 100-continue`) are no calls. Bodies are kept where
    `keeps` says how much of each.
    """

    def __init__(
        self, upstream: int, *, allowance: int | None = None, keeps: int = 0, holds: Callable[[Sent], bool] = lambda _: False
    ) -> None:
        self.upstream = upstream
        self.calls: list[Sent] = []
        self._allowance = allowance
        self._keeps = keeps
        self._holds = holds
        self._drops = 0
        self._is_closed = False
        self._condition = threading.Condition()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._serving: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(PATIENCE_S)
        self.settle()

    def let_pass(self, allowance: int | None) -> None:
        """Let so many more calls pass, or all; none is held any more."""
        with self._condition:
            self._allowance = allowance
            self._holds = lambda _: False
            self._condition.notify_all()

    def drop(self) -> None:
        """Break all connections, as a server that is killed does; what waited on them never passes."""
        with self._condition:
            self._drops += 1
            self._condition.notify_all()
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def settle(self) -> None:
        """Break all connections, and wait until nothing more can come through them."""
        self.drop()
        for thread in self._serving:
            thread.join(PATIENCE_S)
        self._serving.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._serving.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        # Either side may vanish at any moment: then the other is let go of too.
        with (
            suppress(OSError, EOFError),
            self._kept(client),
            self._kept(socket.create_connection(("127.0.0.1", self.upstream))) as server,
        ):
            while True:
                head, left = _head(client)
                if _EXPECT.search(head):
                    server.sendall(head)
                    client.sendall(server.recv(65536))
                    continue
                body = _body(client, left, _length(head))
                if not self._may_pass(Sent(head, bytes(body[: self._keeps]))):
                    return
                server.sendall(head)
                server.sendall(body)
                head, left = _head(server)
                answer = _body(server, left, _length(head))
                client.sendall(head)
                client.sendall(answer)

    @contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[socket.socket]:
        """A connection that `drop` breaks."""
        with connection:
            with self._condition:
                self._open.add(connection)
            try:
                yield connection
            finally:
                with self._condition:
                    self._open.discard(connection)

    def _may_pass(self, call: Sent) -> bool:
        with self._condition:
            self.calls.append(call)
            drops = self._drops
            self._condition.wait_for(lambda: self._is_closed or self._drops > drops or self._is_allowed(call))
            if self._is_closed or self._drops > drops:
                return False
            if self._allowance is not None:
                self._allowance -= 1
            return True

    def _is_allowed(self, call: Sent) -> bool:
        return (self._allowance is None or self._allowance > 0) and not self._holds(call)


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """A head with its empty line, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise EOFError
        data += more
    head, end, left = data.partition(b"\r\n\r\n")
    return head + end, left


def _length(head: bytes) -> int:
    match = _LENGTH.search(head)
    return 0 if match is None else int(match[1])


def _body(connection: socket.socket, beginning: bytes, nbytes: int) -> bytearray:
    body = bytearray(nbytes)
    body[: len(beginning)] = beginning
    filled = len(beginning)
    view = memoryview(body)
    while filled < nbytes:
        count = connection.recv_into(view[filled:])
        if not count:
            raise EOFError
        filled += count
    return body
