"""Compact answers from a device beside the host: tile by tile, and again in smaller tiles where its memory is short."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compact_reference import as_map, compact
from examples import moderate
from torch import Tensor

from service.device.engine import Engine

sys.path.append(str(Path(__file__).parents[1] / "device"))

from scripted_device import ScriptedDevice

TILE_BYTES = 64 * 1024
CASES = [
    ("clamp(0, 1) | k_bit_quantize(3)", "packed"),
    ("clamp(0, 1) | affine_k_bit_quantize(4, w, 0)", "packed"),
    ("round", "codes"),
    ("clamp_by_linear | k_bit_quantize(9)", "codes"),
    ("affine_k_bit_quantize(2, w, 1) | step_quantize(0.01)", "codes"),
    ("clamp(-1, 0.5) | round | clamp(0, 1)", "mask"),
]


@pytest.fixture(params=[2**40, TILE_BYTES // 2, TILE_BYTES // 9], ids=["all fits", "half a tile fits", "a ninth of a tile fits"])
def short_of_memory(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, ScriptedDevice]]:
    device = ScriptedDevice(tile_bytes=TILE_BYTES, least_tile_bytes=4096, room_bytes=request.param)
    engine = Engine(device)
    yield engine, device
    engine.close()


def operand(expression: str) -> Tensor:
    x = moderate(torch.float32, 40_003)
    if "linear" not in expression:
        x[[0, 20_000, 40_002]] = torch.tensor([float("nan"), -0.0, float("inf")])
    return x


@pytest.mark.parametrize(("expression", "output"), CASES)
def test_the_answer_is_that_of_the_cpu(
    engine: Engine, short_of_memory: tuple[Engine, ScriptedDevice], expression: str, output: str
) -> None:
    other, device = short_of_memory
    x = operand(expression)
    if "linear" in expression and device.room_bytes < x.nbytes:
        pytest.skip("what is reduced has to fit")
    tensors = {"w": torch.tensor(1.5)} if "w" in expression else {}
    assert as_map(compact(other, expression, output, x, **tensors)) == as_map(compact(engine, expression, output, x, **tensors))
    assert len(device.lifted_bytes) > 1
    assert device.releases == 0 or device.room_bytes < TILE_BYTES
