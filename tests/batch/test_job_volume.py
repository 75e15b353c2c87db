"""Two thousand files of 4 GiB in bounded memory, computed here and on a server, beside a client that sends the same bytes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from job_harness import Ended, JobProcess, arguments_of, peak_memory_bytes
from job_trees import digest, elementwise, inputs, outputs
from server_process import ROOT, serving

sys.path.insert(0, str(ROOT))

from benchmarks.batch import FULL, Requests, write_tree

MOST_MEMORY_BYTES = 500_000_000
# A job that has come to a standstill, no more: the disk and whoever else uses the machine decide the rest (0.3 was seen
# on two shared cores). What the share really is, `python -m benchmarks batch` measures.
LEAST_SHARE_OF_THE_CLIENT = 0.1
PATIENCE_S = 900.0
CHECKED_BELOW_BYTES = 32 * 2**20


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files; they are removed in the end, for pytest keeps folders."""
    folder = tmp_path_factory.mktemp("volume")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < FULL.disk_bytes:
        pytest.skip(f"{FULL.disk_bytes / 2**30:.0f} GiB of disk are needed, {free_bytes / 2**30:.1f} are left")
    write_tree(folder / "in", FULL.sizes())
    yield folder
    shutil.rmtree(folder)


def run(source: Path, dest: Path, *flags: str) -> tuple[Ended, float, int]:
    """A job: its end, how long it took, and the most memory that it held."""
    began = time.monotonic()
    job = JobProcess(arguments_of(source, dest, "--json", *flags))
    ended = job.wait(PATIENCE_S)
    return ended.expect(0), time.monotonic() - began, job.peak_bytes


@pytest.mark.slow
def test_two_thousand_files_take_bounded_memory_here_and_on_a_server(volume: Path) -> None:
    source, dest = volume / "in", volume / "out"
    sizes = FULL.sizes()
    assert (len(sizes), min(sizes), max(sizes)) == (2000, 128, 2**30)

    ended, seconds, here_bytes = run(source, dest)
    report("in this process", sum(sizes) / seconds, here_bytes)
    assert ended.summary.files.done == 2000
    check(source, dest)
    computed_here = digest(dest)
    shutil.rmtree(dest)

    with serving() as server:
        client = sum(sizes) / Requests.of(sizes).send(f"127.0.0.1:{server.port}")
        ended, seconds, there_bytes = run(source, dest, "--url", server.url)
        rate = sum(sizes) / seconds
        report("on a server", rate, there_bytes)
        report("the server", rate, peak_memory_bytes(server.pid))
        print(f"the client: {client / 2**20:.0f} MiB/s; the job: {rate / client:.2f} of it")
    assert ended.summary.files.done == 2000
    assert digest(dest) == computed_here
    assert here_bytes < MOST_MEMORY_BYTES
    assert there_bytes < MOST_MEMORY_BYTES
    assert rate > LEAST_SHARE_OF_THE_CLIENT * client


def report(what: str, per_s: float, peak_bytes: int) -> None:
    print(f"{what}: {per_s / 2**20:.0f} MiB/s, {peak_bytes / 1e6:.0f} MB at the peak")


def check(source: Path, dest: Path) -> None:
    """The outputs are what NumPy computes: all of the smaller ones, and of the others the ends."""
    assert [path.relative_to(dest) for path in outputs(dest)] == [path.relative_to(source) for path in inputs(source)]
    for path in inputs(source):
        x, y = np.load(path, mmap_mode="r"), np.load(dest / path.relative_to(source), mmap_mode="r")
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        ends = slice(None) if x.nbytes < CHECKED_BELOW_BYTES else np.r_[0:100_000, len(x) - 100_000 : len(x)]
        assert y[ends].tobytes() == elementwise(x[ends]).tobytes(), path
