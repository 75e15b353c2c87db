"""What became of a job: counted while it runs, and said at its end."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from service.batch.chunks import Extent
from service.batch.journal import Row
from service.batch.options import Options
from service.batch.quantities import duration, size
from service.batch.survey import Item

Status = Literal["done", "bad_inputs", "gave_up", "stopped"]

DONE, BAD_INPUTS, USAGE, GAVE_UP = 0, 1, 2, 3

_HEADLINES: dict[Status, str] = {
    "done": "done",
    "bad_inputs": "done but for bad inputs",
    "gave_up": "gave up",
    "stopped": "stopped",
}


class Bad(NamedTuple):
    """A file that could not be processed, or did not stand a check, and why."""

    path: str
    reason: str


@dataclass
class Tally:
    """What was done so far. Shared by threads.

    `bytes_passed` of the `bytes_todo` of sources and gradients are done with, in one way or another.
    """

    files_total: int = 0
    files_todo: int = 0
    files_done: int = 0
    files_skipped: int = 0
    bytes_todo: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    chunks_sent: int = 0
    chunks_retried: int = 0
    chunks_skipped: int = 0
    bad: list[Bad] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _bytes_settled: int = 0
    _bytes_of_open: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def bytes_passed(self) -> int:
        """How much of `bytes_todo` is done with."""
        with self._lock:
            return self._bytes_settled + self._bytes_of_open.total()

    def chunk(self, path: str, extent: Extent) -> None:
        """A chunk of a file was computed and stored."""
        with self._lock:
            self.chunks_sent += 1
            self.bytes_in += extent.bytes_read
            self.bytes_out += extent.y.nbytes
            self._bytes_of_open[path] += extent.bytes_read

    def retry(self) -> None:
        """A chunk is sent again."""
        with self._lock:
            self.chunks_retried += 1

    def skip_chunks(self, path: str, extents: Sequence[Extent]) -> None:
        """Chunks of a file were there already."""
        with self._lock:
            self.chunks_skipped += len(extents)
            self._bytes_of_open[path] += sum(extent.bytes_read for extent in extents)

    def skip_file(self, item: Item) -> None:
        """A file that was to be looked at again needs nothing."""
        with self._lock:
            self.files_skipped += 1
            self._bytes_settled += item.nbytes

    def settle(self, row: Row) -> None:
        """A file got its final name, or was found bad."""
        with self._lock:
            del self._bytes_of_open[row.path]
            self._bytes_settled += row.bytes_read
            if row.state == "bad":
                self.bad.append(Bad(row.source.path, row.reason or ""))
            else:
                self.files_done += 1


class Outcome(NamedTuple):
    """The end of a job: its exit code, and in words what ended it early."""

    status: Status
    exit_code: int
    seconds: float
    reason: str | None = None


def outcome_of(tally: Tally, reason: str | None, signal_exit_code: int | None, seconds: float) -> Outcome:
    """How a job has ended: given up for a `reason`, stopped by a signal before all was done, or through."""
    if reason is not None:
        return Outcome("gave_up", GAVE_UP, seconds, reason)
    is_through = tally.files_done + tally.files_skipped + len(tally.bad) >= tally.files_total > 0
    if signal_exit_code is not None and not is_through:
        return Outcome("stopped", signal_exit_code, seconds)
    return Outcome("bad_inputs", BAD_INPUTS, seconds) if tally.bad else Outcome("done", DONE, seconds)


def as_text(tally: Tally, outcome: Outcome) -> str:
    """The summary for people: one line."""
    rate = tally.bytes_in / outcome.seconds if outcome.seconds else 0.0
    text = f"{_HEADLINES[outcome.status]}: {_files(tally.files_done)}"
    if tally.files_done or tally.bytes_in:
        text += f", {size(tally.bytes_in)} in {duration(outcome.seconds)} ({size(rate)}/s)"
    if tally.files_skipped:
        text += f"; {_files(tally.files_skipped)} done before"
    if tally.bad:
        text += f"; {_files(len(tally.bad))} bad"
    return text


def verified_as_text(tally: Tally, outcome: Outcome) -> str:
    """The summary of a verification for people: one line."""
    return f"verified in {duration(outcome.seconds)}: {_files(tally.files_done)} as recorded, {len(tally.bad)} not"


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def as_json(options: Options, tally: Tally, outcome: Outcome) -> str:
    """The summary for machines: one object."""
    summary = {
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "expression": options.task.text,
        "kind": options.task.kind,
        "files": {"total": tally.files_total, "done": tally.files_done, "skipped": tally.files_skipped, "bad": len(tally.bad)},
        "bytes": {"in": tally.bytes_in, "out": tally.bytes_out},
        "chunks": {"sent": tally.chunks_sent, "retried": tally.chunks_retried, "skipped": tally.chunks_skipped},
        "seconds": round(outcome.seconds, 3),
        "bad": [bad._asdict() for bad in sorted(tally.bad)],
        "shard": None if options.shard is None else str(options.shard),
    }
    return json.dumps(summary)
