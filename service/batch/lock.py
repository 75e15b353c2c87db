"""One job on one DEST: locks of the file system, which end with the process that holds them.

An undivided job holds `lock` alone. Shards share it, each holding `lock-I-of-N` alone; a shard of
another count is refused, for it would take files that are being worked on.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from service.batch.errors import Locked
from service.batch.shards import Shard

_NAME = "lock"


class DestLock:
    """The right to work on a DEST, held until `release` or the end of the process.

    Raises `Locked`, which names who holds it, at once.
    """

    def __init__(self, folder: Path, shard: Shard | None) -> None:
        self._descriptors: list[int] = []
        try:
            if shard is None:
                self._take(folder / _NAME, fcntl.LOCK_EX, folder)
            else:
                self._take(folder / _NAME, fcntl.LOCK_SH, folder)
                self._take(folder / f"{_NAME}-{shard.name}", fcntl.LOCK_EX, folder)
                _refuse_other_counts(folder, shard)
        except BaseException:
            self.release()
            raise

    def _take(self, path: Path, mode: int, folder: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._descriptors.append(descriptor)
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"another job works on {folder.parent}: {_holder(folder, path)}") from None
        if mode == fcntl.LOCK_EX:
            who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(who).encode(), 0)

    def release(self) -> None:
        """Let another job work here."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _refuse_other_counts(folder: Path, shard: Shard) -> None:
    """After our own lock is held: of two that start at once, at least one sees the other."""
    for path in sorted(folder.glob(f"{_NAME}-*-of-*")):
        if not path.name.endswith(f"-of-{shard.count}") and _is_held(path):
            raise Locked(f"shards of another count work on {folder.parent}: {path.name.removeprefix('lock-')}, {_said(path)}")


def _holder(folder: Path, path: Path) -> str:
    """Who holds a lock that we could not take: a shard that shares it, or the one that has it alone."""
    shards = [one for one in sorted(folder.glob(f"{_NAME}-*-of-*")) if _is_held(one)]
    if path.name == _NAME and shards:
        return f"shard {shards[0].name.removeprefix('lock-')}, {_said(shards[0])}"
    return _said(path)


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _said(path: Path) -> str:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its holder has not said who it is"
