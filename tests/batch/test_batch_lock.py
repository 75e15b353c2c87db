"""One job on one DEST, or the shards of one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from service.batch.errors import Locked
from service.batch.lock import DestLock
from service.batch.shards import Shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out/.stequant"
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(None, None), (None, Shard(0, 2)), (Shard(0, 2), None), (Shard(0, 2), Shard(0, 2)), (Shard(0, 2), Shard(1, 3))],
    ids=str,
)
def test_a_second_job_is_refused_with_who_holds_the_lock(folder: Path, held: Shard | None, wanted: Shard | None) -> None:
    with DestLock(folder, held):
        with pytest.raises(Locked) as refused:
            DestLock(folder, wanted)
        for word in (str(folder.parent), f"pid {os.getpid()}", socket.gethostname(), "since 20"):
            assert word in str(refused.value)
    DestLock(folder, wanted).release()


def test_shards_of_one_job_work_side_by_side(folder: Path) -> None:
    with DestLock(folder, Shard(0, 3)), DestLock(folder, Shard(1, 3)), DestLock(folder, Shard(2, 3)):
        pass


def test_a_refused_job_holds_nothing(folder: Path) -> None:
    with DestLock(folder, Shard(0, 2)):
        with pytest.raises(Locked):
            DestLock(folder, Shard(0, 3))
        DestLock(folder, Shard(1, 2)).release()
    DestLock(folder, None).release()


def test_a_lock_file_that_says_nothing_is_still_a_lock(folder: Path) -> None:
    with DestLock(folder, None):
        (folder / "lock").write_text("not json")
        with pytest.raises(Locked, match="has not said who"):
            DestLock(folder, None)
