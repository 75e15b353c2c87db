"""Large bodies on the wire, computed while they come: whatever their pieces, the bits of the whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from http_bodies import npy
from server_process import ServerProcess, Wire, eventually, get, post, serving

MIB = 2**20
X = torch.linspace(-1, 2, 2 * MIB)
BODY = npy(X)
Y = npy(torch.round(X.clamp(0, 1) * 15) / 15)
QUERY = "op=clamp(0,1)|k_bit_quantize(4)"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def pieces(request: bytes, step: int) -> Iterator[bytes]:
    yield from (request[at : at + step] for at in range(0, len(request), step))


@pytest.mark.parametrize("step", [100_003, 300_001, 3 * MIB])
def test_a_body_that_comes_in_pieces(server: ServerProcess, step: int) -> None:
    with Wire(server) as wire, Wire(server) as other:
        for _ in range(2):  # the second time its head is known
            for piece in pieces(post(BODY, QUERY), step):
                wire.send(piece)
                assert other.ask(get("/healthz")).status == 200
            answer = wire.read()
            assert (answer.status, answer.body) == (200, Y)
            assert answer.headers["server-timing"].startswith("read;dur=")


def test_two_bodies_that_come_at_once(server: ServerProcess) -> None:
    with Wire(server) as one, Wire(server) as other:
        for first, second in zip(pieces(post(BODY, QUERY), 500_009), pieces(post(BODY, "op=floor"), 500_009), strict=True):
            one.send(first)
            other.send(second)
        assert one.read().body == Y
        assert other.read().body == npy(X.floor())


def test_requests_behind_one_another(server: ServerProcess) -> None:
    with Wire(server) as wire:
        small = npy(torch.tensor([0.6, -0.4]))
        wire.send(post(BODY, QUERY) + post(small))
        assert wire.read().body == Y
        assert wire.read().body == npy(torch.tensor([1.0, -0.0]))


def test_a_caller_that_goes_in_the_middle_leaves_nothing_behind(server: ServerProcess) -> None:
    with Wire(server) as wire:
        wire.send(post(BODY, QUERY)[: 5 * MIB])
        eventually(lambda: server.metric("stequant_in_flight_bytes") >= len(BODY), "the body is in flight")
        wire.reset()
    eventually(lambda: server.metric("stequant_in_flight_bytes") == 0, "it is gone")
    with Wire(server) as wire:
        assert wire.ask(post(BODY, QUERY)).body == Y


def test_a_body_that_is_no_array_is_refused_when_it_is_there(server: ServerProcess) -> None:
    with Wire(server) as wire:
        answer = wire.ask(post(b"x" * len(BODY), QUERY))
        assert (answer.status, answer.code) == (400, "malformed_body")
        assert wire.ask(post(BODY, QUERY)).body == Y
