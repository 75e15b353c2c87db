"""The helpers of other folders, and one server for each module of tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("http", "e2e"):
    path = str(Path(__file__).parent.parent / folder)
    if path not in sys.path:
        sys.path.insert(0, path)

from server_process import ServerProcess, serving  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server with its default settings, on a free port; it must end with status 0."""
    with serving() as running:
        yield running
