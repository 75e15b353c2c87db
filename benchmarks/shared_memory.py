"""`tritonclient` with shared memory beside itself over the socket: from an array of the caller's to one with the answer.

Both call `k_bit_quantize(k=4)` of the same server with the same float32 array, in turns. Over the socket the client
makes bytes of the array, joins them with the JSON, sends and receives; with shared memory it copies the array into a
region, and finds the answer in another.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.payloads import SEED
from benchmarks.servers import Kind, Server
from benchmarks.stats import median, ratio, spread
from benchmarks.units import MIB, size_name

SIZES_BYTES = (64 * 1024, MIB, 16 * MIB, 64 * MIB)
QUICK_BYTES = (64 * MIB,)
MODEL, PARAMETERS = "k_bit_quantize", {"k": 4}
# Enough calls in a round that its clock is read seldom, few enough that rounds alternate every second or so.
ROUND_BYTES = 256 * MIB
MOST_CALLS = 200

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Compared:
    """Bytes of tensors a second, round by round; answers count as little as requests: x alone is counted."""

    size_bytes: int
    socket: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)

    def as_text(self) -> str:
        """For people."""
        rows = [
            f"{size_name(self.size_bytes):>8} {name:<14} {median(rates) / 1e6:8.0f} MB/s (spread {spread(rates):.0%})"
            for name, rates in (("socket", self.socket), ("shared memory", self.shared))
        ]
        return "\n".join([*rows, f"{size_name(self.size_bytes):>8} ratio          {ratio(self.shared, self.socket):8.2f}"])


def run(*, rounds: int, quick: bool, device: str, say: Callable[[str], None]) -> list[Compared]:
    """Both ways in turns, against one server."""
    found = []
    with TemporaryDirectory(prefix="stequant-shm-") as name, _serving(Path(name), device) as address:
        for size_bytes in QUICK_BYTES if quick else SIZES_BYTES:
            found.append(_compare(address, size_bytes, rounds))
            say(f"{size_name(size_bytes)}: ratio {ratio(found[-1].shared, found[-1].socket):.2f}")
    return found


@contextmanager
def _serving(folder: Path, device: str) -> Iterator[str]:
    def command(address: str) -> list[str]:
        host, _, port = address.rpartition(":")
        flags = ["--device", device, "--log-level", "warning", "--shared-memory-names", f"{_prefix()}*"]
        return [sys.executable, "-m", "service", "serve", "--host", host, "--port", port, *flags]

    server = Server(Kind("ours", command, "/readyz"), folder)
    try:
        yield server.address
    finally:
        server.stop()


def _prefix() -> str:
    return f"stequant-bench-{os.getpid()}-"


def _compare(address: str, size_bytes: int, rounds: int) -> Compared:
    x = np.random.default_rng(SEED).random(size_bytes // 4, dtype=np.float32)
    calls = min(MOST_CALLS, max(1, ROUND_BYTES // size_bytes))
    compared = Compared(size_bytes)
    with _ways(address, x) as (over_socket, over_memory):
        expected = over_socket(x).copy()
        if not np.array_equal(over_memory(x).view(np.uint32), expected.view(np.uint32)):
            raise ValueError("the two ways gave different bits")
        for number in range(rounds):
            turns = [(over_socket, compared.socket), (over_memory, compared.shared)]
            for call, rates in turns if number % 2 else reversed(turns):
                begin = time.perf_counter()
                for _ in range(calls):
                    call(x)
                rates.append(calls * size_bytes / (time.perf_counter() - begin))
    return compared


@contextmanager
def _ways(address: str, x: Array) -> Iterator[tuple[Callable[[Array], Array], Callable[[Array], Array]]]:
    """A call over the socket, and one through two regions of shared memory, with one client."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import shared_memory

    names = ("in", "out")
    regions = {
        name: shared_memory.create_shared_memory_region(name, f"/{_prefix()}{name}", x.nbytes, create_only=True) for name in names
    }
    client = InferenceServerClient(address)

    def over_socket(array: Array) -> Array:
        given = InferInput("x", array.shape, "FP32").set_data_from_numpy(array)
        answer: Array = client.infer(MODEL, [given], parameters=PARAMETERS).as_numpy("y")
        return answer

    def over_memory(array: Array) -> Array:
        shared_memory.set_shared_memory_region(regions["in"], [array])
        given = InferInput("x", array.shape, "FP32").set_shared_memory("in", array.nbytes)
        wanted = InferRequestedOutput("y")
        wanted.set_shared_memory("out", array.nbytes)
        client.infer(MODEL, [given], outputs=[wanted], parameters=PARAMETERS)
        answer: Array = shared_memory.get_contents_as_numpy(regions["out"], np.float32, array.shape)
        return answer

    try:
        for name in names:
            client.register_system_shared_memory(name, f"/{_prefix()}{name}", x.nbytes)
        yield over_socket, over_memory
        client.unregister_system_shared_memory()
    finally:
        client.close()
        for region in regions.values():
            shared_memory.destroy_shared_memory_region(region)
