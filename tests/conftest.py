"""What all tests share: one torch thread, bounded examples, fixtures for devices and for a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# The helpers that several folders of tests share.
sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("http", "e2e")]

from server_process import ServerProcess, serving  # noqa: E402

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


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A real server with its default settings, on a free port; it must end with status 0."""
    with serving() as running:
        yield running
