"""What all tests share: one torch thread, one fixture for devices, bounded examples."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Examples are bounded by number, never by time: other processes share the machine.
settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """As the service runs: PyTorch's own sums depend on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device the operators run on; one that is not there skips visibly."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)
