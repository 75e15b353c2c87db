"""What is seen of a job while it runs: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import io

import pytest
from test_batch_fleet import Clock

from service.batch.checksums import Sum
from service.batch.chunks import Extent
from service.batch.journal import Origin, Row
from service.batch.progress import Progress, bar
from service.batch.report import Tally
from service.batch.survey import Item

MIB = 2**20


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def extent(nbytes: int) -> Extent:
    return Extent(0, Sum(0, nbytes), Sum(0, nbytes))


def halfway() -> Tally:
    """8 of 16 MiB: a file of 4 done, one of 8 half through; one of 4 is to come, one was done before."""
    tally = Tally(files_total=4, files_todo=3, files_skipped=1, bytes_todo=16 * MIB)
    tally.chunk("a.npy", extent(4 * MIB - 128))
    tally.settle(Row("a.npy", "done", "round()", Origin("in/a.npy", 4 * MIB, 0)))
    tally.skip_chunks("b.npy", [extent(MIB)] * 2)
    tally.chunk("b.npy", extent(2 * MIB))
    return tally


def test_a_log_has_a_line_every_five_seconds() -> None:
    clock, log = Clock(), io.StringIO()
    progress = Progress(halfway(), log, lambda: None, clock)
    for clock.now in (0.0, 4.9, 4.99):
        progress.tick()
    assert log.getvalue() == ""
    for clock.now in (5.0, 9.9, 10.0):
        progress.tick()
    progress.clear()
    assert log.getvalue().splitlines() == [
        "stequant: 8.00 MiB of 16.0 MiB, 2 of 4 files, 1.20 MiB/s, 0:07 left",
        "stequant: 8.00 MiB of 16.0 MiB, 2 of 4 files, 614 KiB/s, 0:13 left",
    ]


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clock, terminal = Clock(), Terminal()
    progress = Progress(halfway(), terminal, lambda: None, clock)
    for clock.now in (1.0, 1.1, 2.0):
        progress.tick()
    progress.clear()
    first, second, last = terminal.getvalue().split("\r\x1b[K")[1:]
    assert first == "[#########..........] 8.00 MiB of 16.0 MiB, 2 of 4 files, 6.00 MiB/s, 0:01 left"
    assert len(first) == 79
    assert "3.00 MiB/s" in second
    assert last == ""
    assert "\n" not in terminal.getvalue()


def test_what_is_waited_for_is_said() -> None:
    clock, log = Clock(), io.StringIO()
    progress = Progress(halfway(), log, lambda: "nobody there", clock)
    clock.now = 5.0
    progress.tick()
    assert log.getvalue().endswith("; waiting: nobody there\n")


def test_bad_files_and_files_that_need_nothing_count_as_passed() -> None:
    tally = halfway()
    tally.settle(Row("b.npy", "bad", "round()", Origin("in/b.npy", 8 * MIB, 0), reason="broken"))
    tally.skip_file(Item("c.npy", "recheck", Origin("in/c.npy", 4 * MIB, 0)))
    assert tally.bytes_passed == tally.bytes_todo
    assert bar(tally, 26) == f"[{'#' * 24}]"


def test_a_bar_is_as_wide_as_there_is_room() -> None:
    assert bar(halfway(), 12) == "[#####.....]"
    assert bar(halfway(), 6) == bar(halfway(), -3) == ""
