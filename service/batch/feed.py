"""What the threads of a job do next: a chunk of an open file, or another file to be opened."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from service.batch.chunks import Chunk
from service.batch.stopping import Stop
from service.batch.survey import Item
from service.batch.work import Work


@dataclass
class _Open:
    """A file whose chunks are being handed out."""

    work: Work
    chunks: Iterator[Chunk]
    upcoming: Chunk | None
    handed_out: int = 0


class Feed:
    """Hands out work. Chunks of open files come first, so that few files are open at once. Shared by threads."""

    def __init__(self, items: Iterator[Item], stop: Stop, chunk_bytes: int) -> None:
        self._items = items
        self._stop = stop
        self._chunk_bytes = chunk_bytes
        self._condition = threading.Condition()
        self._waiting: deque[_Open] = deque()
        self._open: dict[int, _Open] = {}
        self._opening = 0

    def take(self) -> Item | tuple[Work, Chunk] | None:
        """A file to be opened (then `opened` is to be called), a chunk (then `returned`), or None when all is handed out."""
        with self._condition:
            while not self._stop.is_set:
                if self._waiting:
                    return self._next_chunk()
                if (item := next(self._items, None)) is not None:
                    self._opening += 1
                    return item
                if not self._opening:
                    return None
                # Whoever opens a file may have chunks for us, and wakes us. The stop does not: it is looked at now and then.
                self._condition.wait(0.1)
            return None

    def opened(self, work: Work | None) -> bool:
        """A file was opened, or there was nothing to do with it (None). Whether it has no chunks: then it is to be sealed."""
        with self._condition:
            self._opening -= 1
            self._condition.notify_all()
            if work is None:
                return False
            chunks = work.chunks(self._chunk_bytes)
            first = next(chunks, None)
            if first is None:
                return True
            self._open[id(work)] = one = _Open(work, chunks, first)
            self._waiting.append(one)
            return False

    def returned(self, work: Work) -> bool:
        """A chunk has ended. Whether it was the last of its file: then that is to be sealed, or given up."""
        with self._condition:
            one = self._open[id(work)]
            one.handed_out -= 1
            if work.failure is not None:
                one.upcoming = None
            if one.upcoming is None and one in self._waiting:
                self._waiting.remove(one)
            if one.upcoming is not None or one.handed_out:
                return False
            del self._open[id(work)]
            return True

    def open_files(self) -> list[Work]:
        """The files that have chunks left."""
        with self._condition:
            return [one.work for one in self._open.values()]

    def _next_chunk(self) -> tuple[Work, Chunk]:
        one = self._waiting[0]
        chunk = one.upcoming
        assert chunk is not None
        one.handed_out += 1
        one.upcoming = next(one.chunks, None)
        if one.upcoming is None:
            self._waiting.popleft()
        return one.work, chunk
