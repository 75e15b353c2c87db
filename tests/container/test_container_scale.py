"""Two replicas behind nginx: one is killed in the middle of the traffic, and nothing is lost."""

from __future__ import annotations

import dataclasses
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from container_engine import HERE, Project, docker, inspected, kill_the_process, nginx_image
from server_process import eventually

from service.client import Client

pytestmark = pytest.mark.container

CALLERS, CALLS = 4, 400


@pytest.fixture
def scaled(project: Project) -> Project:
    """nginx in front of two servers."""
    files = (*project.files, *(() if "NGINX_IMAGE" in os.environ else (HERE / "nginx.yml",)))
    scaled = dataclasses.replace(project, files=files, variables={**project.variables, "NGINX_IMAGE": nginx_image()})
    scaled.up("--scale", "server=2", "server", "nginx")
    return scaled


def test_a_replica_that_dies_takes_no_call_with_it(scaled: Project) -> None:
    url = scaled.url("nginx", 8080)
    first, second = scaled.containers("server")
    random = np.random.default_rng(3)
    # From below one piece of the client's to above what nginx keeps in memory.
    inputs = [random.normal(0, 2, size).astype(np.float32) for size in (10, 20_000, 500_000)]
    answered: list[int] = []

    def one(index: int) -> bool:
        x = inputs[index % len(inputs)] + np.float32(index)
        y = client.quantize("k_bit_quantize(k=4)", x)
        answered.append(index)
        return y.tobytes() == (np.rint(x * np.float32(15)) / np.float32(15)).tobytes()

    with Client(url) as client, ThreadPoolExecutor(CALLERS) as callers:
        client.wait_until_ready(60)
        results = callers.map(one, range(CALLS))
        eventually(lambda: len(answered) > CALLS // 4, "a quarter of the calls")
        kill_the_process(first)
        at_the_kill = len(answered)
        assert all(results)
    assert CALLS // 4 < at_the_kill < CALLS, "the kill was in the middle"
    eventually(lambda: inspected(first)["RestartCount"] == 1, "the engine starts it again")
    assert inspected(second)["RestartCount"] == 0
    (nginx,) = scaled.containers("nginx")
    asked = set(re.findall(r"[0-9.]+:8000", docker("logs", nginx).stdout))
    assert len(asked) == 2, "both replicas had calls"
