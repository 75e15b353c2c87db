"""The heartbeat: bytes from a worker's event loop, down a pipe to its supervisor.

They come from the loop itself, not from a thread: what a beat says is that the loop turns, and so that calls
are answered. The first one says that the worker is ready.
"""

from __future__ import annotations

import contextlib
import os
from multiprocessing.connection import Connection

_MOST_BYTES = 4096


class Heart:
    """The worker's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)

    def beat(self) -> None:
        """Say that the loop turns. Called some ten times a second; never waits, and never fails."""
        # A full pipe: the supervisor is stopped, and will find enough in it. A broken one: it was killed, and Linux
        # tells this process in its own way.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipe.fileno(), b".")


class Listener:
    """The supervisor's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)

    def heard(self) -> bool:
        """Whether the heart has beaten since the last look."""
        try:
            return bool(os.read(self._pipe.fileno(), _MOST_BYTES))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Stop listening."""
        self._pipe.close()
