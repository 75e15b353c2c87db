"""Readiness asks the device itself: known values in, known bits out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from scripted_device import SOON_S, ScriptedDevice

from service.device import probe
from service.device.devices import Cpu, choose
from service.device.engine import Engine


@pytest.fixture
def device() -> ScriptedDevice:
    return ScriptedDevice()


@pytest.fixture
def engine(device: ScriptedDevice) -> Iterator[Engine]:
    engine = Engine(device, device_timeout_s=SOON_S)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_that_computes_right_is_ready(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine = Engine(choose(name))
    assert asyncio.run(engine.probe()) is None
    engine.close()


def test_the_known_bits_are_those_of_exact_arithmetic() -> None:
    """Independent of floats: the float32 next to n/15, by comparing fractions."""
    call = probe.known_call()
    assert call.x is not None
    xs = np.frombuffer(call.x.tensors[0].data, dtype="<f4")
    expected = []
    for x in xs:
        code = round(min(max(Fraction(float(x)), Fraction(0)), Fraction(1)) * 15)
        near = np.float32(code / 15)
        candidates = [near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))]
        expected.append(min(candidates, key=lambda one: abs(Fraction(float(one)) - Fraction(code, 15))))
    assert {round(float(y) * 15) for y in expected} == set(range(16))
    answer = Engine(Cpu("test")).run(call)
    assert bytes(answer["y"].tensors[0].data) == np.array(expected, dtype="<f4").tobytes()
    assert probe.is_right(answer)


def test_a_multiplication_by_the_reciprocal_would_show() -> None:
    call = probe.known_call()
    assert call.x is not None
    xs = np.frombuffer(call.x.tensors[0].data, dtype="<f4")
    other = np.rint(np.clip(xs, 0, 1) * np.float32(15)) * np.float32(1 / 15)
    (wire,) = call.x.tensors
    assert not probe.is_right({"y": call.x._replace(tensors=(wire.like(memoryview(other.tobytes())),))})


def test_a_device_that_gives_wrong_bits_has_failed(engine: Engine, device: ScriptedDevice) -> None:
    device.spoils_bits = True
    fault = asyncio.run(engine.probe())
    assert fault is not None
    assert fault.detail == "scripted:0 gave wrong bits for known values"
    device.spoils_bits = False
    again = asyncio.run(engine.probe())
    assert again is not None
    assert again.detail == fault.detail


def test_a_device_that_breaks_is_seen_by_the_next_probe(engine: Engine, device: ScriptedDevice) -> None:
    device.errors.append(torch.AcceleratorError("CUDA error: the launch timed out"))
    fault = asyncio.run(engine.probe())
    assert fault is not None
    assert fault.detail == "scripted:0 failed: CUDA error: the launch timed out"
    assert engine.fault is not None


def test_a_device_without_memory_is_not_ready_but_has_not_failed(engine: Engine, device: ScriptedDevice) -> None:
    device.room_bytes = 10
    fault = asyncio.run(engine.probe())
    assert fault is not None
    assert fault.code == "out_of_memory"
    assert engine.fault is None


def test_probes_at_the_same_time_and_soon_after_ask_the_device_once(engine: Engine, device: ScriptedDevice) -> None:
    async def many() -> None:
        began = time.monotonic()
        assert await asyncio.gather(*(engine.probe() for _ in range(50))) == [None] * 50
        assert await engine.probe() is None
        assert device.synchronized == 1 or time.monotonic() - began >= probe.PROBE_EVERY_S

    asyncio.run(many())


def test_a_probe_asks_again_after_a_while(engine: Engine, device: ScriptedDevice) -> None:
    asyncio.run(engine.probe())
    device.spoils_bits = True
    deadline = time.monotonic() + SOON_S
    while asyncio.run(engine.probe()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_device_that_hangs_is_not_ready_before_it_counts_as_failed(engine: Engine, device: ScriptedDevice) -> None:
    with device.held() as until_hanging:
        began = time.monotonic()
        fault = asyncio.run(engine.probe())
        assert probe.PROBE_WITHIN_S <= time.monotonic() - began < SOON_S
        assert fault is not None
        assert fault.detail == "scripted:0 has not answered a probe within 1 s"
        assert engine.fault is None
        until_hanging(1)
    deadline = time.monotonic() + SOON_S
    while asyncio.run(engine.probe()) is not None:  # it was only slow
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_probe_that_hangs_long_enough_fails_the_engine(device: ScriptedDevice) -> None:
    engine = Engine(device, device_timeout_s=0.2)
    with device.held():
        asyncio.run(engine.probe())
        assert engine.fault is not None
        assert engine.fault.detail == "scripted:0 has not come back from a call for 0.2 s"
        engine.close()


def test_a_probe_waits_behind_no_call(engine: Engine, device: ScriptedDevice) -> None:
    async def scenario() -> None:
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        long_call = asyncio.create_task(
            engine.submit(lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result(SOON_S))
        )
        assert await engine.probe() is None
        assert not long_call.done()
        release.set()
        await long_call

    asyncio.run(scenario())
