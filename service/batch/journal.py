"""What a job has done, in SQLite: one journal for an undivided job, one for each shard.

    files   a row for each file that was begun: what it was read from, and what became of it
    chunks  the pieces of files that are not complete yet

A file's `state` is `partial` (chunks are there, in `parts/<part>`), `sealed` (all of it is there, durable, in
`parts/<part>`, or already under its final name), `done` (it stands under its final name, durable) or `bad`.
Rows are written after the bytes they speak of are durable, never before; a crash at any instant leaves rows that
are true. Rollback journals, not a write-ahead log: they also work on network file systems.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple
from urllib.parse import quote

from service.batch.checksums import Sum, sum_of
from service.batch.chunks import Extent
from service.batch.errors import BadInput

State = Literal["partial", "sealed", "done", "bad"]

# Another process may be reading, or rolling back what a crash has left.
_BUSY_TIMEOUT_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY,           -- of the output, relative to DEST
    state TEXT NOT NULL,
    expression TEXT NOT NULL,
    source TEXT NOT NULL,
    source_bytes INTEGER NOT NULL,
    source_mtime_ns INTEGER NOT NULL,
    source_crc32 INTEGER,
    grad TEXT,
    grad_bytes INTEGER,
    grad_mtime_ns INTEGER,
    grad_crc32 INTEGER,
    output_bytes INTEGER,
    output_crc32 INTEGER,
    chunks INTEGER NOT NULL,
    part TEXT,
    reason TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    path TEXT NOT NULL,
    start INTEGER NOT NULL,          -- in the output, or in the unpacked members of an archive
    bytes INTEGER NOT NULL,
    source_crc32 INTEGER NOT NULL,
    grad_crc32 INTEGER,
    output_crc32 INTEGER NOT NULL,
    PRIMARY KEY (path, start)
) WITHOUT ROWID;
"""


class Origin(NamedTuple):
    """A file that was read: where, how long, and when it was last changed."""

    path: str
    nbytes: int
    mtime_ns: int
    crc: int | None = None


class Row(NamedTuple):
    """What the journal knows of one file."""

    path: str
    state: State
    expression: str
    source: Origin
    grad: Origin | None = None
    output: Sum | None = None
    chunks: int = 0
    part: str | None = None
    reason: str | None = None

    @property
    def bytes_read(self) -> int:
        """The length of the source and its gradient."""
        return self.source.nbytes + (0 if self.grad is None else self.grad.nbytes)

    def is_of(self, source: Origin, grad: Origin | None) -> bool:
        """Whether it was made of these, judged by length and time."""
        return [_stamp(self.source), _stamp(self.grad)] == [_stamp(source), _stamp(grad)]

    def at_times_of(self, source: Origin, grad: Origin | None) -> Row:
        """The same, made of files that have other times now, or lie elsewhere."""
        of_grad = None if self.grad is None or grad is None else grad._replace(crc=self.grad.crc)
        return self._replace(source=source._replace(crc=self.source.crc), grad=of_grad)

    def has_lengths_of(self, source: Origin, grad: Origin | None) -> bool:
        """Whether it was made of files as long as these."""
        return [_length(self.source), _length(self.grad)] == [_length(source), _length(grad)]


def has_same_bytes(row: Row, source: Origin, grad: Origin | None) -> bool:
    """Whether a file was made of what these hold now; they are read. `BadInput` where that fails."""
    try:
        return all(
            now is not None and before is not None and sum_of(Path(now.path)).crc == before.crc
            for now, before in ((source, row.source), (grad, row.grad))
            if now is not None or before is not None
        )
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error


def _stamp(origin: Origin | None) -> tuple[int, int] | None:
    return None if origin is None else (origin.nbytes, origin.mtime_ns)


def _length(origin: Origin | None) -> int | None:
    return None if origin is None else origin.nbytes


class Journal:
    """One journal; may be shared by threads. Raises `sqlite3.Error`, and `OSError` never."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._lock = threading.RLock()
        self._database = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rwc'}",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        if not read_only:
            self._database.execute("PRAGMA journal_mode = TRUNCATE")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is durable afterwards, or nothing of it."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def row(self, path: str) -> Row | None:
        """What is known of a file."""
        with self._lock:
            found = self._database.execute("SELECT * FROM files WHERE path = ?", (path,)).fetchone()
        return None if found is None else _row(found)

    def rows(self, state: State) -> list[Row]:
        """The files in a state, by path."""
        with self._lock:
            found = self._database.execute("SELECT * FROM files WHERE state = ? ORDER BY path", (state,)).fetchall()
        return [_row(one) for one in found]

    def extents(self, path: str) -> list[Extent]:
        """The chunks of a partial file that are there."""
        with self._lock:
            found = self._database.execute("SELECT * FROM chunks WHERE path = ? ORDER BY start", (path,)).fetchall()
        return [
            Extent(start, Sum(y, nbytes), Sum(x, nbytes), None if grad is None else Sum(grad, nbytes))
            for _, start, nbytes, x, grad, y in found
        ]

    def write(self, row: Row) -> None:
        """Set what is known of a file. Chunks of it are forgotten unless it is the same partial file still."""
        before = self.row(row.path)
        if row.state != "partial" or before is None or before.part != row.part:
            self._database.execute("DELETE FROM chunks WHERE path = ?", (row.path,))
        source, grad, output = row.source, row.grad or (None,) * 4, row.output or (None, None)
        self._database.execute(
            f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * 16)})",
            (row.path, row.state, row.expression, *source, *grad, output[1], output[0], row.chunks, row.part, row.reason),
        )

    def add(self, path: str, extents: Iterable[Extent]) -> None:
        """Add chunks to a partial file."""
        self._database.executemany(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
            [
                (
                    path,
                    extent.y_start,
                    extent.y.nbytes,
                    extent.x.crc,
                    None if extent.grad is None else extent.grad.crc,
                    extent.y.crc,
                )
                for extent in extents
            ],
        )

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()


@contextmanager
def read_only(path: Path) -> Iterator[Journal]:
    """A journal that is only read. What a kill has left half written is undone in a copy, so that the journal stays as it is."""
    with ExitStack() as stack:
        journal = Journal(path, read_only=True)
        stack.callback(journal.close)
        try:
            journal.rows("sealed")
        except sqlite3.OperationalError:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="stequant-")))
            for one in path.parent.glob(f"{path.name}*"):
                shutil.copyfile(one, folder / one.name)
            journal = Journal(folder / path.name)
            stack.callback(journal.close)
        yield journal


def _row(found: tuple[object, ...]) -> Row:
    path, state, expression, *rest = found
    source, grad, output = Origin(*rest[:4]), rest[4:8], rest[8:10]  # type: ignore[arg-type]
    chunks, part, reason = rest[10:]
    return Row(
        path,  # type: ignore[arg-type]
        state,  # type: ignore[arg-type]
        expression,  # type: ignore[arg-type]
        source,
        None if grad[0] is None else Origin(*grad),  # type: ignore[arg-type]
        None if output[1] is None else Sum(output[1], output[0]),  # type: ignore[arg-type]
        chunks,  # type: ignore[arg-type]
        part,  # type: ignore[arg-type]
        reason,  # type: ignore[arg-type]
    )
