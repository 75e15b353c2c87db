"""The folder through which the metrics of several workers are summed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from prometheus_client import multiprocess

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextlib.contextmanager
def metrics_folder() -> Iterator[None]:
    """A folder for all processes that are started meanwhile, unless the environment names one."""
    if _VARIABLE in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="stequant-metrics-")
    os.environ[_VARIABLE] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def forget_process(pid: int) -> None:
    """Count an ended process as such: what it has counted stays, what it was doing (bytes in flight) does not."""
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
