"""How far a job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from service.batch.quantities import duration, size
from service.batch.report import Tally

BAR_EVERY_S = 0.2
LINE_EVERY_S = 5.0
_BAR_COLUMNS = 26
_LEAST_COLUMNS = 5


class Progress:
    """Writes how far a job is, as often as is of use; `tick` may be called as often as one likes.

    `trouble` says why nothing is answered at the moment, or None.
    """

    def __init__(
        self, tally: Tally, stream: TextIO, trouble: Callable[[], str | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tally = tally
        self._stream = stream
        self._trouble = trouble
        self._clock = clock
        self._is_bar = stream.isatty()
        self._began = clock()
        self._next = self._began + (0 if self._is_bar else LINE_EVERY_S)

    def tick(self) -> None:
        """Write, if it is time."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (BAR_EVERY_S if self._is_bar else LINE_EVERY_S)
        text = state(self._tally, now - self._began)
        if (trouble := self._trouble()) is not None:
            text += f"; waiting: {trouble}"
        if self._is_bar:
            columns = shutil.get_terminal_size().columns - 1
            drawn = bar(self._tally, min(_BAR_COLUMNS, columns - len(text) - 1))
            self._stream.write(f"\r\x1b[K{drawn} {text}"[: columns + len("\r\x1b[K")])
        else:
            self._stream.write(f"stequant: {text}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Take the bar away, so that what follows begins on a clean line."""
        if self._is_bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def bar(tally: Tally, columns: int) -> str:
    """The part that is done, drawn in so many columns; in none, where they are too few to see anything."""
    inside = columns - len("[]")
    if inside < _LEAST_COLUMNS:
        return ""
    share = min(1.0, tally.bytes_passed / tally.bytes_todo) if tally.bytes_todo else 1.0
    filled = int(inside * share)
    return f"[{'#' * filled}{'.' * (inside - filled)}]"


def state(tally: Tally, seconds: float) -> str:
    """Bytes, files, the rate of this run, and the remaining time at that rate."""
    passed = tally.bytes_passed
    files = tally.files_done + tally.files_skipped + len(tally.bad)
    text = f"{size(passed)} of {size(tally.bytes_todo)}, {files} of {tally.files_total} files"
    rate = tally.bytes_in / seconds if seconds > 0 else 0.0
    if not rate:
        return text
    remaining = max(0.0, tally.bytes_todo - passed) / rate
    return f"{text}, {size(rate)}/s, {duration(remaining)} left"
