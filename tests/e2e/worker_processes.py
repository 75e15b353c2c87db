"""Servers with several workers, and the processes that they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from server_process import ServerProcess, eventually


def workers_of(server: ServerProcess) -> set[int]:
    """The worker processes that live."""
    return {pid for pid in _children(server.pid) if is_alive(pid) and _is_worker(pid)}


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def said(server: ServerProcess, *words: str) -> list[str]:
    """The lines of the log that hold all these words."""
    return [line for line in list(server.lines) if all(word in line for word in words)]


class Starts:
    """How many workers have said on which device they compute; each look reads the log on from the last one."""

    def __init__(self, server: ServerProcess) -> None:
        self._lines = server.lines
        self._seen = self._count = 0

    def reach(self, count: int) -> None:
        """Wait until there were this many in all."""
        eventually(lambda: self._look() >= count, f"{count} workers have started")

    def _look(self) -> int:
        lines = self._lines[self._seen :]
        self._seen += len(lines)
        self._count += sum("device cpu" in line for line in lines)
        return self._count


@contextmanager
def several_workers(*flags: str, workers: int = 2, variables: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """A server whose workers are all ready; it must end well, with all of them."""
    server = ServerProcess("--workers", str(workers), *flags, variables=variables)
    try:
        Starts(server).reach(workers)
        yield server
        pids = workers_of(server)
        assert server.stop() == 0, server.lines[-10:]
        assert not [pid for pid in pids if is_alive(pid)]
        assert not said(server, "Traceback")
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.stop()


def _children(pid: int) -> list[int]:
    if not is_alive(pid):
        return []
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_worker(pid: int) -> bool:
    # multiprocessing has a process of its own beside them.
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
