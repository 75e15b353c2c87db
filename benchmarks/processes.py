"""A server as the machine sees it: its processes and their memory."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType

SAMPLE_EVERY_S = 0.02

_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold blanks: the parent is the second field behind it.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # ended meanwhile
        children[parent].append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found.extend(children[one])
    return found


def resident_bytes(pid: int) -> int:
    """Proportional set size of the whole tree: shared pages are counted once, divided among their users."""
    total = 0
    for one in tree(pid):
        try:
            match = _PSS.search(Path(f"/proc/{one}/smaps_rollup").read_text())
        except OSError:
            continue  # ended meanwhile
        total += int(match.group(1)) * 1024 if match else 0
    return total


class PeakMemory:
    """Watches a tree of processes from a thread; `peak_bytes` is the most it was seen to hold."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid))
            if self._stop.wait(SAMPLE_EVERY_S):
                return
