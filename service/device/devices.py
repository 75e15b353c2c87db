"""The devices an engine can own, and how one is chosen.

An engine sees a device through three verbs: `lift` brings host elements to the device, `lower` brings
results back, `synchronize` waits until they are there. On the CPU all three do nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from service.errors import DeviceFault


class Device(Protocol):
    """What an engine needs of a device.

    `tile_bytes` is how much of an operand it takes at a time; where it `computes_in_place`, nothing needs
    lifting or lowering.
    """

    name: str
    reason: str
    tile_bytes: int
    computes_in_place: bool
    small_calls_are_instant: bool

    def lift(self, host: Tensor) -> Tensor:
        """`host` on the device; on the CPU `host` itself."""

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Write `result` into `host`, which has the same shape."""

    def synchronize(self) -> None:
        """Wait until everything lifted, computed and lowered so far is done."""

    def memory(self) -> dict[str, int]:
        """Bytes of device memory, by kind."""


class Cpu:
    """The CPU: operands stay where they are and are overwritten in place."""

    name = "cpu"
    # A tile of 1 MiB stays in cache through all passes of a chain; smaller ones lost more to the calls than they won
    # (float32 k_bit_quantize over 64 MiB: 1.13 times a memcpy with 1 MiB, 1.33 with 256 KiB, 2.3 with 64 KiB).
    tile_bytes = 2**20
    computes_in_place = True
    small_calls_are_instant = True

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def lift(self, host: Tensor) -> Tensor:
        """`host` itself."""
        return host

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Nothing to do when the result was computed in place; else copy it."""
        if result.data_ptr() != host.data_ptr():
            host.copy_(result)

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def memory(self) -> dict[str, int]:
        """The CPU has no memory of its own."""
        return {}


class Cuda:
    """One CUDA device: operands are copied to it, computed there, and copied back, on one stream a thread."""

    # Large enough that the copies run at the bus's speed, small enough that any tensor fits in tiles.
    tile_bytes = 64 * 2**20
    computes_in_place = False
    small_calls_are_instant = False

    def __init__(self, index: int, reason: str) -> None:
        self.name = f"cuda:{index}"
        self.reason = reason
        self._device = torch.device("cuda", index)

    def lift(self, host: Tensor) -> Tensor:
        """A copy of `host` on the device."""
        return host.to(self._device, non_blocking=True)

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Copy `result` back into `host`."""
        host.copy_(result, non_blocking=True)

    def synchronize(self) -> None:
        """Wait for the current stream, so that an error surfaces here and not after a 200."""
        torch.cuda.current_stream(self._device).synchronize()

    def memory(self) -> dict[str, int]:
        """Bytes allocated by tensors and reserved by the allocator."""
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
        }


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
