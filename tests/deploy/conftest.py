"""A scrape of a server that has met every kind of call."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from exposed import Exposed
from http_bodies import JSON, npy
from server_process import Wire, get, post, serving


@pytest.fixture(scope="session")
def exposed() -> Iterator[Exposed]:
    """The /metrics of a real server after an answer of each kind of call and format, and two refusals."""
    x = np.float32([0.6])
    with serving() as server, Wire(server) as wire:
        for request in (
            post(npy(x)),
            post(npy(x, x), path="/grad"),
            post(b'{"x": [0.6]}', media_type=JSON),
            get("/readyz"),
            get("/healthz"),
        ):
            assert wire.ask(request).status == 200
        assert wire.ask(post(npy(x), "op=nothing")).status == 422
        assert wire.ask(post(npy(x), "op=nothing", path="/grad")).status == 422
        yield Exposed.of(wire.ask(get("/metrics")).body.decode())
