"""One application for each module of tests, and one engine without any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_app import Service

from service.device.devices import Cpu
from service.device.engine import Engine


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The application with its default settings."""
    with Service() as running:
        yield running


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The CPU."""
    engine = Engine(Cpu("test"))
    yield engine
    engine.close()
