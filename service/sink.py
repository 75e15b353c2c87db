"""Where the log's lines go: standard error, written without ever waiting for who reads it.

A pipe that nobody reads is full after 64 KiB, a terminal stops at Ctrl-S, and a server that waited for either would
answer nobody. A line that cannot be written now is dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from functools import partial

Write = Callable[[bytes], int]


class LineHandler(logging.Handler):
    """Writes each record as a line to a descriptor; `dropped_lines` of them found no room, or a reader who had gone."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped_lines = 0
        self._write = writer(descriptor)
        # What was left of a line when the room ended: it comes first, or two lines would become one.
        self._rest = b""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or drop it."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        data = self._rest + line
        try:
            written = self._write(data)
        except OSError:  # no room, a full disk, a reader who has gone
            self.dropped_lines += 1
        else:
            self._rest = data[written:]


def writer(descriptor: int) -> Write:
    """A function like `os.write` to a descriptor that raises `BlockingIOError` where that would wait."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        return partial(_send, socket.socket(fileno=os.dup(descriptor)))
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # Opened again: O_NONBLOCK on the descriptor that was inherited would hold for everyone who shares it, shells included.
        with contextlib.suppress(OSError):
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
            return partial(os.write, own)
        # Not Linux, or another user's pipe. Of several processes that find the last room at once, one may still wait.
        return partial(_write_where_there_is_room, descriptor)
    return partial(os.write, descriptor)


def _send(sock: socket.socket, data: bytes) -> int:
    return sock.send(data, socket.MSG_DONTWAIT)


def _write_where_there_is_room(descriptor: int, data: bytes) -> int:
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError
    return os.write(descriptor, data[: select.PIPE_BUF])
