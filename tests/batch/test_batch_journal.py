"""What is written is read again, all of a transaction or nothing, also when another process was killed in the middle of one."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ROOT

from service.batch.checksums import Sum
from service.batch.chunks import Extent
from service.batch.journal import Journal, Origin, Row, read_only

SOURCE = Origin("in/a.npy", 1000, 1_700_000_000_123_456_789, 0xDEADBEEF)
GRAD = Origin("grads/a.npy", 1000, -5, 0)
PARTIAL = Row("a.npy", "partial", "round()", SOURCE._replace(crc=None), chunks=2, part="x.part")
DONE = Row("b/ä.npy", "done", "clamp(min_value=0, max_value=1)", SOURCE, GRAD, Sum(7, 1128), 4)
BAD = Row("c.npz", "bad", "round()", Origin("in/c.npz", 0, 0), reason="is empty")
EXTENTS = [Extent(128, Sum(1, 64), Sum(2, 64)), Extent(192, Sum(3, 8), Sum(2**32 - 1, 8), Sum(0, 8))]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.mark.parametrize("row", [PARTIAL, DONE, BAD], ids=lambda row: row.state)
def test_a_row_is_read_as_it_was_written(journal: Journal, row: Row) -> None:
    with journal.transaction():
        journal.write(row)
    assert journal.row(row.path) == row
    assert journal.rows(row.state) == [row]
    assert journal.row("another") is None


def test_extents_are_read_as_they_were_added(journal: Journal) -> None:
    with journal.transaction():
        journal.write(PARTIAL)
        journal.add("a.npy", EXTENTS)
    assert journal.extents("a.npy") == EXTENTS
    assert journal.extents("b.npy") == []


def test_extents_stay_with_their_part_and_go_with_it(journal: Journal) -> None:
    with journal.transaction():
        journal.write(PARTIAL)
        journal.add("a.npy", EXTENTS)
    for row, left in ((PARTIAL._replace(chunks=9), EXTENTS), (PARTIAL._replace(part="y.part"), [])):
        with journal.transaction():
            journal.write(row)
        assert journal.extents("a.npy") == left
    with journal.transaction():
        journal.add("a.npy", EXTENTS)
        journal.write(PARTIAL._replace(state="sealed", output=Sum(0, 0), part="y.part"))
    assert journal.extents("a.npy") == []


def test_a_transaction_that_fails_leaves_nothing(journal: Journal) -> None:
    def write(*rows: Row | None) -> None:
        with journal.transaction():
            for row in rows:
                journal.write(row)  # type: ignore[arg-type]

    with pytest.raises(AttributeError):
        write(DONE, None)
    assert journal.row(DONE.path) is None


def test_what_was_made_of_a_file_is_known_by_its_length_and_time() -> None:
    assert DONE.is_of(SOURCE._replace(crc=None, path="elsewhere"), GRAD)
    assert not DONE.is_of(SOURCE._replace(mtime_ns=1), GRAD)
    assert not DONE.is_of(SOURCE, None)
    assert not DONE.is_of(SOURCE, GRAD._replace(nbytes=1))
    assert DONE.has_lengths_of(SOURCE._replace(mtime_ns=1), GRAD)
    assert not DONE.has_lengths_of(SOURCE, None)


KILLED_IN_A_TRANSACTION = """
import os, signal, sys
from pathlib import Path
from test_batch_journal import DONE, PARTIAL
from service.batch.journal import Journal
journal = Journal(Path(sys.argv[1]))
with journal.transaction():
    journal.write(DONE)
journal._database.execute("PRAGMA cache_size = 1")  # so that it spills into the file before the end
with journal.transaction():
    for number in range(5000):
        journal.write(PARTIAL._replace(path=f"{number}.npy"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_kill_left_half_written_is_undone_also_by_one_who_only_reads(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_TRANSACTION, str(path)],
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{Path(__file__).parents[1] / 'e2e'}"},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before["journal.sqlite-journal"]) > 1000, "the kill came too early or too late to test anything"
    with read_only(path) as journal:
        assert journal.rows("done") == [DONE]
        assert journal.rows("partial") == []
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    journal = Journal(path)
    assert (journal.rows("done"), journal.rows("partial")) == ([DONE], [])
    journal.close()


def test_one_who_only_reads_cannot_write(tmp_path: Path, journal: Journal) -> None:
    with read_only(tmp_path / "journal.sqlite") as other, pytest.raises(sqlite3.OperationalError), other.transaction():
        other.write(DONE)
