"""What there is to do: the sources as they are now, beside what the journals say of them.

The list of files lies in a temporary database, which SQLite keeps on disk when it grows: memory does not
grow with the number of files.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from service.batch.dest import Dest
from service.batch.errors import BadUsage
from service.batch.journal import Journal, Origin, Row
from service.batch.shards import Shard
from service.batch.sources import Found, Unreadable
from service.batch.stopping import Stop

Standing = Literal["todo", "changed", "continue", "recheck", "done", "bad"]

# The standings of files that a run opens.
TO_OPEN: tuple[Standing, ...] = ("todo", "changed", "continue", "recheck")
# What a row can save, from least to most.
_WORTH: tuple[Standing, ...] = ("todo", "changed", "recheck", "continue", "done")

_PAGE = 256
_SCHEMA = """
CREATE TABLE found (
    output TEXT PRIMARY KEY,
    standing TEXT NOT NULL,
    reason TEXT,
    source TEXT NOT NULL,
    source_bytes INTEGER NOT NULL,
    source_mtime_ns INTEGER NOT NULL,
    grad TEXT,
    grad_bytes INTEGER,
    grad_mtime_ns INTEGER
) WITHOUT ROWID
"""


class Item(NamedTuple):
    """A file of the job.

    `standing` says what the journal makes of it: `todo` where there is nothing of it; `changed` where the source is not
    what it was; `continue` where a part of it is there; `recheck` where the source has another time than it had, and
    may have other bytes; `done`; or `bad`, for a `reason`.
    """

    output: str
    standing: Standing
    source: Origin
    grad: Origin | None = None
    reason: str | None = None

    @property
    def nbytes(self) -> int:
        """The length of the source and its gradient."""
        return self.source.nbytes + (0 if self.grad is None else self.grad.nbytes)


class Count(NamedTuple):
    """How many files are in one standing, and how many bytes their sources and gradients have."""

    files: int = 0
    nbytes: int = 0


class Survey:
    """The files of a job, or of one shard of it. Shared by threads.

    `elsewhere` counts those of other shards.
    """

    def __init__(self) -> None:
        self.elsewhere = 0
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(_SCHEMA)

    def add(self, item: Item) -> None:
        """Add a file; `BadUsage` where another source has the same output."""
        grad = item.grad or (None, None, None)
        row = (item.output, item.standing, item.reason, *item.source[:3], *grad[:3])
        try:
            self._database.execute(f"INSERT INTO found VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.IntegrityError:
            (other,) = self._database.execute("SELECT source FROM found WHERE output = ?", (item.output,)).fetchone()
            raise BadUsage(f"{other!r} and {item.source.path!r} would both be written to {item.output!r}") from None

    def mark(self, item: Item, standing: Standing) -> None:
        """Say how a file stands."""
        with self._lock:
            self._database.execute("UPDATE found SET standing = ? WHERE output = ?", (standing, item.output))

    def counts(self) -> dict[Standing, Count]:
        """Files and bytes in each standing."""
        found = self._database.execute(
            "SELECT standing, count(*), sum(source_bytes + coalesce(grad_bytes, 0)) FROM found GROUP BY standing"
        )
        return {standing: Count() for standing in get_args(Standing)} | {row[0]: Count(*row[1:]) for row in found}

    def items(self, *standings: Standing) -> Iterator[Item]:
        """The files that are in these standings when they are reached, by the paths of their outputs."""
        marks = ", ".join("?" * len(standings))
        query = f"SELECT * FROM found WHERE standing IN ({marks}) AND output > ? ORDER BY output LIMIT {_PAGE}"
        last = ""
        while True:
            with self._lock:
                page = self._database.execute(query, (*standings, last)).fetchall()
            for output, standing, reason, *origins in page:
                grad = None if origins[3] is None else Origin(*origins[3:])
                yield Item(output, standing, Origin(*origins[:3]), grad, reason)
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def close(self) -> None:
        """Let go of the list."""
        self._database.close()


class History:
    """What the journals of a DEST know: first of all one's own, then those of other shards, or of other counts of them."""

    def __init__(self, own: Journal | None, others: Sequence[Journal]) -> None:
        self._own = own
        self._journals = [*([] if own is None else [own]), *others]

    def best(self, item: Item, dest: Dest) -> tuple[Row, Journal] | None:
        """The row that saves most work, with the journal that has it: one's own, where two save the same."""
        known = [(row, journal) for journal in self._journals if (row := journal.row(item.output)) is not None]
        return max(known, key=lambda pair: _WORTH.index(standing_of(pair[0], item, dest)), default=None)

    def adopt(self, row: Row, journal: Journal) -> None:
        """Take over what another journal knows of a file."""
        if self._own is not None and journal is not self._own:
            with self._own.transaction():
                self._own.write(row)
                self._own.add(row.path, journal.extents(row.path))


def standing_of(row: Row, item: Item, dest: Dest) -> Standing:
    """What is to be done about a file of which a journal knows this."""
    if row.state == "bad":
        return "todo"
    is_same = row.is_of(item.source, item.grad)
    if not _is_there(row, dest):
        return "todo" if is_same else "changed"
    if row.state == "partial":
        return "continue" if is_same else "changed"
    if is_same:
        return "done"
    return "recheck" if row.has_lengths_of(item.source, item.grad) else "changed"


def _is_there(row: Row, dest: Dest) -> bool:
    """Whether what a row speaks of is there: a part, or an output of the length that the journal says."""
    if row.part is not None and (dest.parts / row.part).exists():
        return True
    try:
        return row.output is not None and dest.output(row.path).stat().st_size == row.output.nbytes
    except OSError:
        return False


def listed(found: Iterable[Found | Unreadable], shard: Shard | None, grads: Path | None, stop: Stop) -> Survey:
    """The sources as they are now: all of them to do, or bad. Raises `BadUsage`, and `Stopped` where that was asked for."""
    files = Survey()
    for one in found:
        stop.check()
        if isinstance(one, Found) and shard is not None and not shard.owns(one.output):
            files.elsewhere += 1
        else:
            files.add(_unreadable(one) if isinstance(one, Unreadable) else _item(one, grads))
    return files


def compare(files: Survey, dest: Dest, history: History, stop: Stop, *, adopt: bool) -> None:
    """Say of each file how it stands; with `adopt`, take over what other journals know."""
    for item in files.items("todo"):
        stop.check()
        best = history.best(item, dest)
        if best is None:
            continue
        row, journal = best
        if adopt:
            history.adopt(row, journal)
        files.mark(item, standing_of(row, item, dest))


def _unreadable(folder: Unreadable) -> Item:
    return Item(f"{folder.path}/", "bad", Origin(folder.path, 0, 0), reason=folder.reason)


def _item(found: Found, grads: Path | None) -> Item:
    try:
        (found.source + found.output).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(found.source).decode("utf-8", "backslashreplace")
        return Item(shown, "bad", Origin(shown, 0, 0), reason="its name is not UTF-8")
    try:
        source = origin(found.source)
        grad = None if grads is None else origin(str(grads / found.output))
    except _Unfit as error:
        return Item(found.output, "bad", Origin(found.source, 0, 0), reason=str(error))
    return Item(found.output, "todo", source, grad)


class _Unfit(Exception):
    """What stands at a path cannot be read as a file."""


def origin(path: str) -> Origin:
    """Length and time of a file now."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _Unfit(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise _Unfit(f"{path}: not a regular file")
    return Origin(path, status.st_size, status.st_mtime_ns)
