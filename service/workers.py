"""Several worker processes on one listening socket, started, watched and stopped together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from multiprocessing.process import BaseProcess
from types import FrameType

from prometheus_client import multiprocess

from service import __version__
from service.logs import configure, log
from service.server import CannotServe, address_of, end_with_parent, serve
from service.settings import Settings

# A worker that dies at once, again and again, is started again ever more slowly.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
# One that lived this long was well; the next pause is short again.
_HEALTHY_S = 30.0
_POLL_S = 0.1


class _Worker:
    """One place among the workers, and the process that fills it at the moment."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: BaseProcess | None = None
        self.started = 0.0
        self.start_at = 0.0
        self.pause_s = _FIRST_PAUSE_S


def supervise(settings: Settings, sock: socket.socket) -> None:
    """Run `settings.workers` processes until SIGTERM or SIGINT; start those again that die.

    Raises `CannotServe` when every worker failed to start.
    """
    configure(settings.log_level, settings.log_format)
    stopping = False

    def stop(_sig: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for worker in workers:
            if worker.process is not None and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGTERM)

    with _metrics_directory():
        workers = [_Worker(index) for index in range(settings.workers)]
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, stop)
        log.info("stequant %s serves on %s with %d workers", __version__, address_of(sock), settings.workers)
        while not stopping:
            for worker in workers:
                _keep_alive(worker, settings, sock)
            if all(worker.process is not None and worker.process.exitcode == _CANNOT_SERVE for worker in workers):
                raise CannotServe("no worker could start; the lines above say why")
            time.sleep(_POLL_S)
        for worker in workers:
            if worker.process is not None:
                worker.process.join(settings.drain_delay_s + settings.grace_s + 5)
                if worker.process.is_alive():
                    worker.process.kill()


_CANNOT_SERVE = 3


def _keep_alive(worker: _Worker, settings: Settings, sock: socket.socket) -> None:
    now = time.monotonic()
    if worker.process is not None and worker.process.exitcode is not None and worker.start_at <= worker.started:
        pid, code = worker.process.pid, worker.process.exitcode
        worker.pause_s = _FIRST_PAUSE_S if now - worker.started > _HEALTHY_S else min(2 * worker.pause_s, _LONGEST_PAUSE_S)
        worker.start_at = now + worker.pause_s
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        log.error("worker %d (pid %s) ended with %s; starting it again in %.1f s", worker.index, pid, code, worker.pause_s)
    if worker.process is None or (worker.process.exitcode is not None and now >= worker.start_at):
        worker.process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings, sock, worker.index))
        worker.process.start()
        worker.started = worker.start_at = now


def _work(settings: Settings, sock: socket.socket, index: int) -> None:
    """The main function of a worker process."""
    end_with_parent()
    try:
        serve(settings, sock, worker=index)
    except CannotServe as error:
        log.error("%s", error)
        raise SystemExit(_CANNOT_SERVE) from None


@contextlib.contextmanager
def _metrics_directory():  # type: ignore[no-untyped-def]
    """A folder through which the workers' metrics are summed, unless the environment names one."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="stequant-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
