"""One application for each module of tests: opening a device takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_app import Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The application with its default settings."""
    with Service() as running:
        yield running
