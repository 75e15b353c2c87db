"""One CUDA device: operands are copied to it, computed there, and copied back."""

from __future__ import annotations

import torch
from torch import Tensor

from service.device.buffers import Room
from service.device.faults import is_out_of_memory
from service.errors import OutOfMemory


class Cuda:
    """A CUDA device with a stream for each lane.

    On its stream a call's copy in, its kernels and its copy out follow each other; those of different
    lanes overlap, as the device has an engine for each of the three. Eager kernels: next to the bus
    they cost little, and fusing them would risk bits.
    """

    # Large enough that the copies run at the bus's speed, small enough that any tensor fits in tiles.
    tile_bytes = 64 * 2**20
    least_tile_bytes = 2**20
    computes_in_place = False
    small_calls_are_instant = False
    # One copies in, one computes, one copies out.
    lanes = 3

    def __init__(self, index: int, reason: str) -> None:
        self.name = f"cuda:{index}"
        self.reason = reason
        self._device = torch.device("cuda", index)

    def enter_lane(self) -> None:
        """Give the calling thread a stream of its own, and make this device its current one."""
        torch.cuda.set_stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def allocate(self, nbytes: int) -> Room:
        """Page-locked memory, uninitialised, which copies pass through at the bus's speed and beside other work.

        Locking pages takes milliseconds and waits for the device; PyTorch keeps what is let go and gives
        it out again, in sizes of powers of two. Raises `OutOfMemory` when no more can be locked.
        """
        try:
            room: Room = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"no more host memory can be locked for {self.name}; try again, or send smaller tensors") from error
        return room

    def lift(self, host: Tensor) -> Tensor:
        """A copy of `host` on the device."""
        return host.to(self._device, non_blocking=True)

    def lower(self, result: Tensor, host: Tensor) -> None:
        """Copy `result` back into `host`."""
        # Where `host` is a part with gaps, PyTorch copies by way of memory of its own, whose end is waited for.
        host.copy_(result, non_blocking=host.is_contiguous())

    def release(self) -> None:
        """Give back what the allocator keeps for later."""
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the current stream, so that an error surfaces here and not after a 200."""
        torch.cuda.current_stream(self._device).synchronize()

    def memory(self) -> dict[str, int]:
        """Bytes allocated by tensors and reserved by the allocator."""
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
        }
