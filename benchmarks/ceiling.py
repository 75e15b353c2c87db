"""The ceiling: an echo of the same bytes, blocking `recv_into` and `sendall`, one thread a connection, no HTTP library.

The first request of a connection says how long it is; every later one is taken to be as long, so that
nothing but the two calls is left. `POST /quantize` is answered with the body, `POST /grad` with its second half.
`native/echo.c` is the same in C, without the interpreter lock.

Run as `python -m benchmarks.ceiling ADDRESS`.
"""

from __future__ import annotations

import socket
import sys
import threading

from benchmarks.exchange import HEAD_ROOM, content_length


def echo(connection: socket.socket) -> None:
    """Answer requests until the client closes."""
    first = bytearray()
    while (end := first.find(b"\r\n\r\n")) < 0:
        piece = connection.recv(HEAD_ROOM)
        if not piece:
            return
        first += piece
    head = end + 4
    body = content_length(bytes(first[:head])) or 0
    answered = body // 2 if first.startswith(b"POST /grad") else body
    answer_head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % answered

    if len(answer_head) > head:
        return

    total, have = head + body, len(first)
    view = memoryview(bytearray(total))
    view[:have] = first
    # The head of the answer is written over the end of what precedes it, so that one call sends both.
    answer = view[total - answered - len(answer_head) :]
    while True:
        while have < total:
            got = connection.recv_into(view[have:])
            if not got:
                return
            have += got
        answer[: len(answer_head)] = answer_head
        connection.sendall(answer)
        have = 0


def serve(listener: socket.socket) -> None:
    """Accept connections for ever, or until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo_and_close, args=(connection,), daemon=True).start()


def listen(address: str) -> socket.socket:
    """A listening socket; the address is `127.0.0.1:8000` or `unix:/path`."""
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.removeprefix("unix:"))
        listener.listen(128)
        return listener
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)), backlog=128)


def _echo_and_close(connection: socket.socket) -> None:
    with connection:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            echo(connection)
        except ConnectionError:
            return


if __name__ == "__main__":
    serve(listen(sys.argv[1]))
