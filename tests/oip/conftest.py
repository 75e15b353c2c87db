"""An application in this process, which offers shared memory of some names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_app import Service
from oip_bodies import MAX_BODY_BYTES, MAX_JSON_BYTES, MAX_TENSORS


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The application with limits that a test can reach."""
    with Service(
        shared_memory_names="stequant-test-*",
        max_body_bytes=MAX_BODY_BYTES,
        max_json_bytes=MAX_JSON_BYTES,
        max_tensors=MAX_TENSORS,
    ) as running:
        yield running
