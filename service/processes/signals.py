"""What signals mean to a server.

| signal | to a server, or to the supervisor of several workers |
| --- | --- |
| SIGTERM, SIGINT | answer what has begun and end; a second one ends at once |
| SIGHUP | read keys and certificate again; several workers are then replaced, one after the other |

A worker has SIGTERM and SIGHUP from its supervisor, and `RETIRE`: as SIGTERM, but the service goes on, so that
there is no drain delay and readiness does not change. It ignores SIGINT, which a terminal sends to all of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETIRE = signal.SIGUSR1


class Stops:
    """SIGTERM and SIGINT, counted until someone looks."""

    def __init__(self) -> None:
        self._count = 0
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._note)

    def _note(self, _sig: int, _frame: FrameType | None) -> None:
        self._count += 1

    def take(self) -> int:
        """How many have come since the last look."""
        count, self._count = self._count, 0
        return count


class Hangups:
    """SIGHUP, noted until someone looks: from the user who wants a reload, or from a terminal that has gone."""

    def __init__(self) -> None:
        self._came = False
        self._had_terminal = _has_terminal()
        # `nohup` says in this way that the server is to outlive its terminal.
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def _note(self, _sig: int, _frame: FrameType | None) -> None:
        self._came = True

    def take(self) -> bool:
        """Whether one has come since the last look."""
        came, self._came = self._came, False
        return came

    def terminal_has_gone(self) -> bool:
        """Whether there is no more terminal: a server in a window that is closed ends, as anything else there does."""
        return self._had_terminal and not self._outlives_terminal and not _has_terminal()


@contextmanager
def hangups_wait() -> Iterator[None]:
    """Hold SIGHUP back: a process that is started meanwhile gets it only when it has made its `Hangups`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
