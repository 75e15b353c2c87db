"""What a server costs while it is abused: processor time, memory, and how long a probe waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from server_process import ServerProcess, Wire, get

_PROBE_PAUSE_S = 0.02


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def cpu_s(server: ServerProcess) -> float:
    """Processor time of all threads of the process tree so far, in seconds: the same on a busy machine as on an idle one."""
    tasks = (task for pid in tree(server.pid) for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def peak_bytes(server: ServerProcess) -> int:
    """The largest resident memory of each process of the tree, added up: at least what the tree ever had at once."""
    return sum(_peak_bytes_of(pid) for pid in tree(server.pid))


def _peak_bytes_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Prober(threading.Thread):
    """Asks for `/healthz` again and again, each time on a new connection; keeps how long each answer took.

    `beside` is what goes on meanwhile, as the owner of the thread says; `longest_s` has the longest wait for each.
    """

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.beside = ""
        self.waits_s: list[float] = []
        self.longest_s: dict[str, float] = {}
        self.failures: list[str] = []
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Until the end of the `with` block."""
        while not self._is_over.wait(_PROBE_PAUSE_S):
            beside, started = self.beside, time.perf_counter()
            try:
                with Wire(self.server) as wire:
                    status = wire.ask(get("/healthz")).status
                waited_s = time.perf_counter() - started
                self.waits_s.append(waited_s)
                self.longest_s[beside] = max(waited_s, self.longest_s.get(beside, 0.0))
            except OSError as error:
                self.failures.append(repr(error))
                continue
            if status != 200:
                self.failures.append(str(status))
