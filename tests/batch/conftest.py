"""What the tests of batch share."""

from __future__ import annotations

import pytest
from batch_trees import Batch
from server_process import ServerProcess


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str]) -> Batch:
    """The command, computing in this process."""
    return Batch(capsys)


@pytest.fixture(params=["here", "server"])
def anywhere(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Batch:
    """The command, computing in this process or on a server."""
    if request.param == "here":
        return Batch(capsys)
    server: ServerProcess = request.getfixturevalue("server")
    return Batch(capsys, "--url", server.url)
