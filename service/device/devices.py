"""What an engine needs of a device, the CPU as one, and how a device is chosen.

An engine sees a device through three verbs: `lift` brings host elements to the device, `lower` brings
results back, `synchronize` waits until they are there. On the CPU all three do nothing.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from service.device.buffers import Room, pageable
from service.device.cuda import Cuda
from service.errors import DeviceFault

_STATM = Path("/proc/self/statm")


class Device(Protocol):
    """What an engine needs of a device.

    `tile_bytes` is how much of an operand it takes at a time, down to `least_tile_bytes` where its memory
    is short. Where it `computes_in_place` it is the host itself: nothing needs lifting or lowering, and it
    cannot hang. Calls run on `lanes` threads at a time, unless `small_calls_are_instant`, which the caller
    may compute on the spot.
    """

    name: str
    reason: str
    tile_bytes: int
    least_tile_bytes: int
    computes_in_place: bool
    small_calls_are_instant: bool
    lanes: int

    def enter_lane(self) -> None:
        """Prepare the calling thread, which computes from now on."""

    def allocate(self, nbytes: int) -> Room:
        """Host memory, uninitialised, of the kind that `lift` and `lower` are fastest with."""

    def lift(self, host: Tensor) -> Tensor:
        """`host` on the device; on the CPU `host` itself. It may be read until the next `synchronize`."""

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Write `result` into `host`, which has the same shape; it is there after the next `synchronize`."""

    def release(self) -> None:
        """Let go of memory that is kept for later, because some is missing now."""

    def synchronize(self) -> None:
        """Wait until everything that this thread has lifted, computed and lowered is done."""

    def memory(self) -> dict[str, int]:
        """Bytes of device memory, by kind."""


class Cpu:
    """The CPU: operands stay where they are and are overwritten in place."""

    name = "cpu"
    # A tile of 1 MiB stays in cache through all passes of a chain; smaller ones lost more to the calls than they won
    # (float32 k_bit_quantize over 64 MiB: 1.13 times a memcpy with 1 MiB, 1.33 with 256 KiB, 2.3 with 64 KiB).
    tile_bytes = 2**20
    least_tile_bytes = tile_bytes
    computes_in_place = True
    small_calls_are_instant = True
    # Cores are shared with the event loop; a process more brings more than a thread more.
    lanes = 1

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def enter_lane(self) -> None:
        """Any thread will do."""

    def allocate(self, nbytes: int) -> Room:
        """Ordinary memory."""
        return pageable(nbytes)

    def lift(self, host: Tensor) -> Tensor:
        """`host` itself."""
        return host

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Nothing to do when the result was computed in place; else copy it."""
        if result.data_ptr() != host.data_ptr():
            host.copy_(result)

    def release(self) -> None:
        """Nothing is kept."""

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def memory(self) -> dict[str, int]:
        """What this process has in memory, where Linux tells it."""
        try:
            pages = int(_STATM.read_bytes().split()[1])
        except OSError:
            return {}
        return {"resident": pages * mmap.PAGESIZE}


def choose(wanted: str, worker: int = 0) -> Device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` stands for; workers are spread over the devices.

    Raises `DeviceFault` when a CUDA device is asked for by name and is not there.
    """
    if wanted == "cpu":
        return Cpu("asked for")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    build = f"torch {torch.__version__}" + ("" if torch.version.cuda else ", a build without CUDA")
    if wanted == "auto":
        if not count:
            return Cpu(f"no CUDA device is visible to {build}")
        return Cuda(worker % count, f"auto: {torch.cuda.get_device_name(worker % count)}")
    if wanted == "cuda" and count:
        return Cuda(worker % count, f"asked for: {torch.cuda.get_device_name(worker % count)}")
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        raise DeviceFault(
            f"device {wanted!r} is not there: {build}, sees {count} CUDA devices; the README says how to install a build with CUDA"
        )
    return Cuda(index, f"asked for: {torch.cuda.get_device_name(index)}")
