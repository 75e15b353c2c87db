"""Which of torch's errors pass, which do not, and which say nothing about the device."""

from __future__ import annotations

import pytest
import torch

from service.device.faults import is_out_of_memory, is_sticky


class ErrorWithCode(torch.AcceleratorError):
    """As torch raises it: the code is that of cudaGetLastError."""

    def __init__(self, text: str, error_code: int) -> None:
        super().__init__(text)
        self.error_code = error_code


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB."),
    MemoryError(),
    ErrorWithCode("CUDA error: out of memory", 2),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
]
STICKY = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ErrorWithCode("CUDA error: device-side assert triggered", 710),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA driver error: unknown error"),
]
OURS = [RuntimeError("shape '[2]' is invalid for input of size 3"), ValueError("CUDA error"), KeyError("w")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=repr)
def test_missing_memory_passes(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_sticky(error)


@pytest.mark.parametrize("error", STICKY, ids=repr)
def test_other_errors_of_cuda_do_not_pass(error: Exception) -> None:
    assert is_sticky(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", OURS, ids=repr)
def test_errors_of_our_own_are_not_the_devices(error: Exception) -> None:
    assert not is_sticky(error)
    assert not is_out_of_memory(error)


def test_memory_that_the_host_really_does_not_have_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
