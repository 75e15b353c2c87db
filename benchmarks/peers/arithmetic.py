"""What every peer computes: `k_bit_quantize(k=4)` of float32, with the harness's own torch, on one thread.

Two ways, with the same bits. `as_written` is the three operations that anyone writes into a model file. `in_place`
is what our own service does: no fresh memory, in pieces that stay in the processor's cache, one pass over memory
instead of three. At 64 MiB the first takes several times as long, for the most part in page faults.
"""

from __future__ import annotations

import os
import warnings

import torch

LARGEST_CODE = 2**4 - 1
PIECE_ELEMENTS = 262144  # 1 MiB

torch.set_num_threads(1)
warnings.filterwarnings("ignore", "The given buffer is not writable")


@torch.inference_mode()
def as_written(x: torch.Tensor) -> torch.Tensor:
    """The quantized `x`, in fresh memory."""
    return torch.round(x * LARGEST_CODE) / LARGEST_CODE


@torch.inference_mode()
def in_place(x: torch.Tensor) -> torch.Tensor:
    """`x`, quantized where it lies."""
    for piece in x.split(PIECE_ELEMENTS):
        piece.mul_(LARGEST_CODE).round_().div_(LARGEST_CODE)
    return x


quantize = in_place if os.environ.get("STEQUANT_PEER_TUNED") else as_written


def from_bytes(data: bytes | bytearray | memoryview) -> torch.Tensor:
    """The numbers that lie in the bytes; nothing is copied."""
    return torch.frombuffer(data, dtype=torch.float32)


def to_bytes(x: torch.Tensor) -> memoryview:
    """The bytes of the numbers; nothing is copied."""
    return memoryview(x.numpy()).cast("B")
