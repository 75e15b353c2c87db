"""What torch raises when a device fails, and which of these errors pass.

Out of memory passes: what was allocated can be let go. Any other error of CUDA is sticky: every later
use of the device in this process fails too.
"""

from __future__ import annotations

import torch

# cudaErrorMemoryAllocation, which page-locking host memory gives as well.
_OUT_OF_MEMORY = 2
# What torch makes of a host allocation that failed in its own allocator, and in the C++ library.
_HOST_ALLOCATORS = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
# torch.AcceleratorError came with torch 2.8; before it, and still where the driver is called directly, a
# RuntimeError begins with one of these.
_CUDA = ("CUDA error", "CUDA driver error")
_ACCELERATOR_ERROR: type[RuntimeError] | None = getattr(torch, "AcceleratorError", None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or getattr(error, "error_code", None) == _OUT_OF_MEMORY:
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return text.startswith("CUDA error: out of memory") or any(allocator in text for allocator in _HOST_ALLOCATORS)


def is_sticky(error: BaseException) -> bool:
    """Whether the device cannot be used any more after this error."""
    if is_out_of_memory(error):
        return False
    if _ACCELERATOR_ERROR is not None and isinstance(error, _ACCELERATOR_ERROR):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(_CUDA)
