"""The one thread that writes the journal, in groups: a sync costs about as much for a hundred files as for one.

The order is the promise of a job. Bytes are durable before a row says that they are there; a row says that a file is
sealed before it gets its final name; and it says done after that name is durable. Killed at any instant, a job
repeats at most what was computed since the last group.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from service.batch.chunks import Extent
from service.batch.dest import Dest, publish, sync_file, sync_folder
from service.batch.journal import Journal, Row
from service.batch.work import Work

# What happens in so long is recorded together, or less where it is much: it is computed again after a crash.
GROUP_S = 0.2
GROUP_EVENTS = 512
GROUP_BYTES = 64 * 2**20
MOST_BYTES_BEHIND = 4 * GROUP_BYTES
# File systems commit what several wait for together (ext4, small files: 3.8 ms each one after the other, 1.2 ms four at once).
SYNCS = 8


class _Stored(NamedTuple):
    """A chunk of a file was stored, not yet durably."""

    work: Work
    extent: Extent


@dataclass
class _Group:
    """What is recorded together: chunks of files that are not complete, and rows of files that are done with."""

    stored: dict[str, list[_Stored]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    events: int = 0
    nbytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.events >= GROUP_EVENTS or self.nbytes >= GROUP_BYTES

    def add(self, event: _Stored | Row) -> None:
        self.events += 1
        if isinstance(event, _Stored):
            self.nbytes += event.extent.y.nbytes
            self.stored.setdefault(event.work.item.output, []).append(event)
            return
        # Its chunks are of no interest any more.
        self.stored.pop(event.path, None)
        self.rows.append(event)


class Recorder:
    """Records in the background what threads report, until `close`.

    `on_settled` hears of every file that got its final name or was found bad, `on_failure` of what kept the
    recorder from going on.
    """

    def __init__(
        self, dest: Dest, journal: Journal, on_settled: Callable[[Row], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._dest = dest
        self._journal = journal
        self._on_settled = on_settled
        self._on_failure = on_failure
        self._events: queue.SimpleQueue[_Stored | Row | None] = queue.SimpleQueue()
        self._published: list[Row] = []
        self._bytes_behind = 0.0
        self._behind = threading.Condition()
        self._syncs = ThreadPoolExecutor(SYNCS, thread_name_prefix="sync")
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stored(self, work: Work, extent: Extent) -> None:
        """A chunk of a file was stored. Waits while the disk is too far behind."""
        with self._behind:
            self._behind.wait_for(lambda: self._bytes_behind < MOST_BYTES_BEHIND)
            self._bytes_behind += extent.y.nbytes
        self._events.put(_Stored(work, extent))

    def settled(self, row: Row) -> None:
        """A file was sealed, was found bad, or, where it was done already, is to be known by another time."""
        self._events.put(row)

    def close(self) -> None:
        """Record everything that was reported so far."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            more = True
            while more:
                group, more = self._gather()
                self._record(group)
                self._catch_up(group.nbytes)
            self._record(_Group())  # the names that the last group has given
        except BaseException as error:
            self._on_failure(error)
        finally:
            self._catch_up(math.inf)
            self._syncs.shutdown(wait=False)

    def _catch_up(self, nbytes: float) -> None:
        with self._behind:
            self._bytes_behind -= nbytes
            self._behind.notify_all()

    def _gather(self) -> tuple[_Group, bool]:
        """The next group, and whether more may come."""
        group = _Group()
        end = time.monotonic() + GROUP_S
        while not group.is_full and (left_s := end - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left_s)
            except queue.Empty:
                break
            if event is None:
                return group, False
            group.add(event)
        return group, True

    def _record(self, group: _Group) -> None:
        sealed = [row for row in group.rows if row.state == "sealed"]
        published, self._published = self._published, []
        stored = self._make_durable(sealed, list(group.stored.values()))
        if stored or group.rows or published:
            self._write(published + group.rows, stored)
        publish((self._dest.parts / str(row.part), self._dest.output(row.path)) for row in sealed)
        self._published = [row._replace(state="done", part=None) for row in sealed]
        for row in (*self._published, *(row for row in group.rows if row.state == "bad")):
            self._on_settled(row)

    def _make_durable(self, sealed: list[Row], stored: list[list[_Stored]]) -> list[list[_Stored]]:
        """Wait for the disk; what was stored in parts that are still there."""
        rows = [*sealed, *(events[0].work.row() for events in stored)]
        is_there = list(self._syncs.map(sync_file, (self._dest.parts / str(row.part) for row in rows)))
        if rows:
            sync_folder(self._dest.parts)
        return [events for events, there in zip(stored, is_there[len(sealed) :], strict=True) if there]

    def _write(self, rows: list[Row], stored: list[list[_Stored]]) -> None:
        with self._journal.transaction():
            for row in rows:
                self._journal.write(row)
            for events in stored:
                work = events[0].work
                self._journal.write(work.row())
                self._journal.add(work.item.output, [event.extent for event in events])
