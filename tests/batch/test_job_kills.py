"""A job that is killed over and over, with its server, ends with the bytes of one that was left alone."""

from __future__ import annotations

import math
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from job_harness import JobProcess, arguments_of, run, started
from job_relay import Relay, Sent
from job_trees import Array, check_tree, corrupt, digest, outputs, write_npy, write_npz, write_safetensors
from server_process import ServerProcess, eventually

KILLS = 50
SERVER_KILLS = 6
FILES = 300
LARGE_BYTES = (60_000_000, 40_000_000, 20_000_000, 10_000_000)
CHUNK_BYTES = 256 * 1024
FLAGS = ("--chunk-bytes", str(CHUNK_BYTES), "--give-up-after", "600")
# This file stays undone until the kills are over: a fast machine would be through with all of them before.
HELD = FILES - 1
# Long enough for whatever a job does; longer waits are for progress that cannot come any more.
LONGEST_MOMENT_S = 3
# The beginning of a body: an npy header and two elements.
KEPT_BYTES = 4096

# Where an element keeps the number of its file: dtype of its bits, and how many of them are the mantissa's (at most 10).
_MARKS = {
    np.dtype(np.float16): (np.uint16, 10),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 7),
    np.dtype(np.float32): (np.uint32, 10),
    np.dtype(np.float64): (np.uint64, 10),
}
_DTYPES_BY_DESCR = {b"'<f2'": np.dtype(np.float16), b"'<V2'": np.dtype(ml_dtypes.bfloat16), b"'<f4'": np.dtype(np.float32)}
_DTYPES_BY_DESCR[b"'<f8'"] = np.dtype(np.float64)


def marked(generator: np.random.Generator, nbytes: int, dtype: np.dtype[Any], number: int) -> Array:
    """Random finite values, each of which tells the number of its file."""
    x = generator.standard_normal(max(1, nbytes // dtype.itemsize), dtype=np.float32).astype(dtype)
    unsigned, width = _MARKS[dtype]
    assert number < 1 << width
    bits = x.view(unsigned)
    bits &= unsigned(-(1 << width) % (1 << 8 * dtype.itemsize))
    bits |= unsigned(number)
    return x


def number_of(call: Sent) -> int:
    """The number of the file from which a chunk was sent."""
    assert call.body.startswith(b"\x93NUMPY\x01\x00"), call
    (length,) = struct.unpack("<H", call.body[8:10])
    header, elements = call.body[10 : 10 + length], call.body[10 + length :]
    dtype = next(dtype for descr, dtype in _DTYPES_BY_DESCR.items() if descr in header)
    unsigned, width = _MARKS[dtype]
    return int(np.frombuffer(elements, unsigned, 1)[0]) & ((1 << width) - 1)


def write_marked_tree(root: Path) -> list[Path]:
    """Files of all formats and dtypes; those that share a place in the list share a number with their elements."""
    generator = np.random.default_rng(31)
    paths = []
    for number in range(FILES):
        nbytes = LARGE_BYTES[number] if number < len(LARGE_BYTES) else int(math.exp(generator.uniform(0, math.log(500_000))))
        dtypes = [dtype for dtype, (_, width) in _MARKS.items() if number < 1 << width]
        dtype = dtypes[number % len(dtypes)]
        stem = root / str(number % 7) / f"{number:03}"
        match number % 5:
            case 0 if number:
                write_npz(path := stem.with_suffix(".npz"), compressed=False, a=marked(generator, nbytes, dtype, number))
            case 1:
                halves = [marked(generator, nbytes // 2, dtype, number) for _ in range(2)]
                write_safetensors(path := stem.with_suffix(".safetensors"), w=halves[0], b=halves[1])
            case 2:
                write_npz(path := stem.with_suffix(".npz"), compressed=True, a=marked(generator, nbytes, dtype, number))
            case _:
                write_npy(path := stem.with_suffix(".npy"), marked(generator, nbytes, dtype, number))
        paths.append(path)
    return paths


def progress_bytes(dest: Path) -> int:
    """What lies on the disk of outputs, complete or not."""
    total = 0
    for path in dest.rglob("*"):
        if path.suffix in (".npy", ".npz", ".safetensors", ".part", ".raw"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue  # renamed meanwhile
    return total


class Chaos:
    """Runs a job again and again, and kills it, and sometimes its server."""

    def __init__(self, source: Path, dest: Path, total_bytes: int) -> None:
        self.dest = dest
        self.kills = self.server_kills = 0
        self.server = ServerProcess()
        self._dice = random.Random(32)
        self._total_bytes = total_bytes
        self._source = source

    def run(self, relay: Relay, on_killed: Callable[[], None]) -> None:
        """Kill it until it was killed often enough."""
        while self.kills < KILLS:
            with started(self._source, self.dest, "--url", relay.url, *FLAGS) as job:
                self._wait_for_the_moment(job)
                if self.server_kills < SERVER_KILLS * (self.kills + 1) // KILLS:
                    self._kill_server()
                    if self._dice.random() < 0.5:
                        self._restart_server()
                        self._wait_for_the_moment(job)
                assert job.is_running, f"the job ended after {self.kills} kills: {job.said}"
                job.kill()
            if self.server.process.poll() is not None:
                self._restart_server()
            self.kills += 1
            relay.settle()
            on_killed()

    def _wait_for_the_moment(self, job: JobProcess) -> None:
        """Until the job has made some progress, so much that it lasts for all kills; or for some time from its start."""
        before = progress_bytes(self.dest)
        share = self._dice.uniform(0, 1.5) * (self._total_bytes - before) / (KILLS + 1 - self.kills)
        longest = self._dice.uniform(0, 1) if self._dice.random() < 0.3 else LONGEST_MOMENT_S
        end = time.monotonic() + longest
        eventually(
            lambda: not job.is_running or time.monotonic() >= end or progress_bytes(self.dest) >= before + share,
            "the moment has come",
        )

    def _kill_server(self) -> None:
        self.server.process.kill()
        self.server.stop()
        self.server_kills += 1

    def _restart_server(self) -> None:
        self.server = ServerProcess("--port", str(self.server.port))


@pytest.mark.slow
def test_a_job_killed_fifty_times_gives_the_tree_of_one_left_alone(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    paths = write_marked_tree(source)
    spoilt = [paths[number] for number in range(50, FILES, FILES // 3)]
    for way, path in enumerate(spoilt):
        corrupt(path, way)
    numbers = {path.relative_to(source): number for number, path in enumerate(paths)}
    done_at: list[tuple[int, set[int]]] = []
    chaos = Chaos(source, dest, sum(path.stat().st_size for path in paths if path not in spoilt))
    began = time.monotonic()
    try:
        with Relay(chaos.server.port, keeps=KEPT_BYTES, holds=lambda call: number_of(call) == HELD) as relay:

            def note() -> None:
                done_at.append((len(relay.calls), {numbers[path.relative_to(dest)] for path in outputs(dest)}))

            chaos.run(relay, note)
            relay.let_pass(None)
            last = JobProcess(arguments_of(source, dest, "--json", "--url", relay.url, *FLAGS)).wait().expect(1).summary
            seconds = time.monotonic() - began
            calls = [number_of(call) for call in relay.calls]
        undisturbed = run(source, tmp_path / "undisturbed", "--url", chaos.server.url, *FLAGS).expect(1).summary
    finally:
        chaos.server.stop()
    print(
        f"{chaos.kills} kills of the job and {chaos.server_kills} of its server in {seconds:.0f} s; "
        f"{len(calls)} chunks sent, {undisturbed.chunks.sent} when left alone; {last.chunks.sent} of them in the last run"
    )
    assert digest(dest) == digest(tmp_path / "undisturbed")
    check_tree(source, dest, without=spoilt)
    assert set(last.bad) == set(undisturbed.bad) == {str(path) for path in spoilt}
    assert set(calls) == set(range(FILES)) - {paths.index(path) for path in spoilt}, "every chunk tells its file"
    for first, done in done_at:
        again = done & set(calls[first:])
        assert not again, f"chunks of finished files were sent again: {sorted(again)}"
    passed = {sum(number != HELD for number in calls[:first]) for first, _ in done_at}
    assert len(passed) > KILLS // 2, "most kills fell on a job that was sending"
