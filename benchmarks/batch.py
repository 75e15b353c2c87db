"""A job over HTTP beside clients that send the same bytes from memory: what files, sums and the journal cost.

All send the chunks of the same files to the same server, four at a time. The job reads them from disk and writes the
results durably. The two others do neither: the generator of `make bench`, whose requests were made beforehand, in
four processes; and `service.client`, as anyone uses it, in four threads.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.exchange import Connection
from benchmarks.payloads import SEED
from benchmarks.processes import PeakMemory
from benchmarks.servers import ROOT, Server, kinds
from benchmarks.stats import median, ratio, spread
from benchmarks.units import MIB
from service.client import Client

EXPRESSION = "k_bit_quantize(4)"
QUERY = "op=k_bit_quantize&k=4"
# What the command takes by default.
CHUNK_BYTES = 16 * MIB
CONNECTIONS = 4
HEADER_BYTES = 128  # of a .npy file with one dimension
BLOCK_ELEMENTS = 2**20  # random elements that files are made of

_ROOM_BYTES = 9 * 2**30 // 4  # disk for each GiB of inputs: they, the results of one job, and some air


@dataclass(frozen=True)
class Volume:
    """So many tensors with so many bytes together, from `smallest_bytes` to `largest_bytes` each."""

    files: int = 2000
    total_bytes: int = 4 * 2**30
    smallest_bytes: int = 128
    largest_bytes: int = 2**30

    @property
    def disk_bytes(self) -> int:
        """What inputs and outputs need."""
        return self.total_bytes * _ROOM_BYTES // 2**30

    def sizes(self) -> list[int]:
        """Six large ones, each half as large as the one before; the others in a geometric row, with the sum that is left."""
        large = [self.largest_bytes >> halvings for halvings in range(6)]
        left_bytes = self.total_bytes - sum(large)
        low, high = self.smallest_bytes, self.largest_bytes
        while high - low > 1:
            top = (low + high) // 2
            low, high = (top, high) if sum(self._row(top, self.files - len(large))) <= left_bytes else (low, top)
        return self._row(low, self.files - len(large)) + large[::-1]

    def _row(self, top_bytes: int, files: int) -> list[int]:
        span = top_bytes / self.smallest_bytes
        return [int(self.smallest_bytes * span ** (index / (files - 1))) // 4 * 4 for index in range(files)]


FULL = Volume()
QUICK = Volume(files=200, total_bytes=256 * MIB, largest_bytes=64 * MIB)


@dataclass
class Compared:
    """Bytes of tensors a second, round by round, and the most memory that a job held."""

    job: list[float] = field(default_factory=list)
    generator: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def as_text(self) -> str:
        """For people."""
        rows = [
            f"{name:<10}{median(rates) / MIB:8.0f} MiB/s (spread {spread(rates):.0%} of {len(rates)} rounds), "
            f"the job {ratio(self.job, rates):.2f} of it"
            for name, rates in (("job", self.job), ("generator", self.generator), ("client", self.client))
        ]
        return "\n".join([*rows, f"the job's memory at its peak: {self.peak_bytes / MIB:.0f} MiB"])


def run(volume: Volume, *, rounds: int, device: str, say: Callable[[str], None]) -> Compared:
    """Job and client in turns, against one server. Raises `OSError` where the disk is too small."""
    compared = Compared()
    with TemporaryDirectory(prefix="stequant-batch-") as name:
        folder = Path(name)
        check_room(folder, volume)
        sizes = volume.sizes()
        write_tree(folder / "in", sizes)
        requests = Requests.of(sizes)
        server = Server(kinds(folder, device)["ours"], folder)
        try:
            for number in range(rounds):
                compared.generator.append(requests.nbytes / requests.send(server.address))
                compared.client.append(requests.nbytes / send_by_client(requests.order, server.address))
                begin = time.perf_counter()
                peak_bytes = run_job(folder / "in", folder / "out", server.address)
                compared.job.append(requests.nbytes / (time.perf_counter() - begin))
                compared.peak_bytes = max(compared.peak_bytes, peak_bytes)
                shutil.rmtree(folder / "out")
                rates = (f"{name} {getattr(compared, name)[-1] / MIB:.0f}" for name in ("job", "generator", "client"))
                say(f"round {number + 1}: {', '.join(rates)} MiB/s")
        finally:
            server.stop()
    return compared


def check_room(folder: Path, volume: Volume) -> None:
    """Raises `OSError` where the disk is too small for the files and one set of results."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < volume.disk_bytes:
        raise OSError(f"{folder} has {free_bytes / 2**30:.1f} GiB left, {volume.disk_bytes / 2**30:.1f} GiB are needed")


def run_job(source: Path, dest: Path, address: str) -> int:
    """One job to its end; the most memory it held."""
    command = [
        sys.executable,
        "-m",
        "service",
        "batch",
        str(source),
        str(dest),
        "--op",
        EXPRESSION,
        "--quiet",
        "--url",
        f"http://{address}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    with PeakMemory(process.pid) as watched:
        status = process.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)
    return watched.peak_bytes


def write_tree(folder: Path, sizes: Sequence[int]) -> None:
    """A float32 `.npy` file with a tensor of each length, in folders of a hundred; large and small ones mixed."""
    block = np.random.default_rng(SEED).random(BLOCK_ELEMENTS, dtype=np.float32)
    for number, nbytes in enumerate(random.Random(SEED).sample(list(sizes), len(sizes))):
        path = folder / f"{number // 100:02}" / f"{number:05}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned = np.roll(block, number).data.cast("B")
        with path.open("wb") as file:
            file.write(_header(nbytes // 4))
            for start in range(0, nbytes, len(turned)):
                file.write(turned[: nbytes - start])


def _header(elements: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (elements,)})
    return file.getvalue()


@dataclass(frozen=True)
class Requests:
    """The calls of a job, made beforehand: for each chunk its request, chunks of one length sharing theirs."""

    order: Sequence[int]
    made: dict[int, bytes]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Requests:
        """Those of files with tensors of these lengths, in a random order."""
        order = [chunk for nbytes in sizes for chunk in _chunks(nbytes)]
        random.Random(SEED).shuffle(order)
        block = np.random.default_rng(SEED).random(CHUNK_BYTES // 4, dtype=np.float32).tobytes()
        return cls(order, {nbytes: _request(block[:nbytes]) for nbytes in set(order)})

    @property
    def nbytes(self) -> int:
        """The elements of all calls."""
        return sum(self.order)

    def send(self, address: str) -> float:
        """Seconds that all of them take on four connections, one process each, as `benchmarks.loadgen` sends."""
        context = multiprocessing.get_context("fork")
        turn = context.Value("l", 0)
        processes = [context.Process(target=self._drive, args=(address, turn)) for _ in range(CONNECTIONS)]
        begin = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - begin
        if any(process.exitcode for process in processes):
            raise ChildProcessError("a connection of the client failed")
        return seconds

    def _drive(self, address: str, turn: Any) -> None:
        with Connection(address, CHUNK_BYTES + HEADER_BYTES) as connection:
            while True:
                with turn.get_lock():
                    index = turn.value
                    turn.value += 1
                if index >= len(self.order):
                    os._exit(0)
                connection.exchange(self.made[self.order[index]])


def send_by_client(order: Sequence[int], address: str) -> float:
    """Seconds that tensors of these lengths take through `service.client`, in four threads."""
    block = np.random.default_rng(SEED).random(CHUNK_BYTES // 4, dtype=np.float32)
    with Client(f"http://{address}") as client, ThreadPoolExecutor(CONNECTIONS) as threads:
        begin = time.perf_counter()
        for answer in threads.map(lambda nbytes: client.quantize(EXPRESSION, block[: nbytes // 4]).nbytes, order):
            assert answer
        return time.perf_counter() - begin


def _chunks(nbytes: int) -> Iterator[int]:
    for start in range(0, nbytes, CHUNK_BYTES):
        yield min(CHUNK_BYTES, nbytes - start)


def _request(elements: bytes) -> bytes:
    body = _header(len(elements) // 4) + elements
    head = (
        f"POST /quantize?{QUERY} HTTP/1.1\r\nHost: benchmark\r\n"
        f"Content-Type: application/x-npy\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
