"""What only a CUDA device can show: its bits, its streams, its memory, its faults. Skips visibly without one."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import EXAMPLES, assert_same_bits, moderate, tensors_for
from torch import Tensor
from wire_tensors import off_wire, on_wire

from service.call import Call, plan
from service.device.buffers import Pool
from service.device.cuda import Cuda
from service.device.devices import Cpu, choose
from service.device.engine import Engine
from service.dtypes import DTYPES
from service.errors import OutOfMemory
from service.ops import ClampByLinear, Expression, KBitQuantize, parse
from service.wire.message import Bundle, WireTensor

pytestmark = pytest.mark.gpu

MIB = 2**20
CHAIN = parse("clamp(min_value=0, max_value=1) | k_bit_quantize(k=4) | step_quantize(step=0.3)")
EXPRESSIONS: list[Expression] = [*EXAMPLES, CHAIN]
# A billion float32 patterns, in pieces from all over the range.
PIECE = 2**24
PIECES = range(-(2**31), 2**31, 2**32 // 60)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine = Engine(choose("cuda"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[Engine]:
    engine = Engine(Cpu("the bits that must come out"))
    yield engine
    engine.close()


def every_pattern(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(256, 256)


def answers(engine: Engine, expression: Expression, operands: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the engine answers to these tensors, over memory of their own."""
    message = {name: Bundle.of(on_wire(tensor)) for name, tensor in operands.items()}
    kind = "grad" if "grad_output" in operands else "quantize"
    return {name: off_wire(bundle.tensors[0]) for name, bundle in engine.run(plan(kind, expression, message)).items()}


def assert_same_answers(one: dict[str, Tensor], other: dict[str, Tensor], case: object) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert_same_bits(one[name], other[name], (case, name))


def pinned(engine: Engine, nbytes: int) -> memoryview:
    return Pool(engine.device.allocate).take(nbytes)


def call_over(expression: Expression, body: memoryview) -> Call:
    return Call("quantize", expression, Bundle.of(WireTensor(DTYPES["float32"], (body.nbytes // 4,), body)))


# Bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_every_16_bit_pattern_has_the_bits_of_the_cpu(
    engine: Engine, on_cpu: Engine, expression: Expression, dtype: torch.dtype
) -> None:
    if isinstance(expression, KBitQuantize) and expression.k == 15 and dtype == torch.bfloat16:
        expression = KBitQuantize(k=9)
    x = every_pattern(dtype)
    if not expression.elementwise:  # one NaN would make all of y NaN
        x = x[x.isfinite()]
    for shape in ((), (x.shape[-1],), tuple(x.shape)):
        operands = {"x": x} | tensors_for(expression, x, shape)
        assert_same_answers(answers(engine, expression, operands), answers(on_cpu, expression, operands), (expression, shape))
        operands["grad_output"] = x.flip(-1)
        assert_same_answers(answers(engine, expression, operands), answers(on_cpu, expression, operands), (expression, shape))


@pytest.mark.slow
@pytest.mark.parametrize("expression", [one for one in EXPRESSIONS if one.elementwise and not one.tensor_names], ids=str)
def test_a_billion_float32_patterns_have_the_bits_of_the_cpu(engine: Engine, on_cpu: Engine, expression: Expression) -> None:
    steps = torch.arange(PIECE, dtype=torch.int32)
    body, plain = pinned(engine, 4 * PIECE), memoryview(bytearray(4 * PIECE))
    on_device, on_host = (torch.frombuffer(memory, dtype=torch.int32) for memory in (body, plain))
    for start in PIECES:
        torch.add(steps, start, out=on_device)
        on_host.copy_(on_device)
        engine.run(call_over(expression, body))
        on_cpu.run(call_over(expression, plain))
        if not torch.equal(on_device, on_host):
            assert_same_bits(on_device.view(torch.float32), on_host.view(torch.float32), (expression, start))


@pytest.mark.parametrize("lanes", [1, 3])
def test_calls_in_several_lanes_at_once_have_the_bits_of_the_cpu(engine: Engine, on_cpu: Engine, lanes: int) -> None:
    """Memory that one stream lets go of and another one takes too early would show here."""
    xs = [moderate(torch.float32, 1_000_003 + n, seed=n) for n in range(8 * lanes)]
    expected = [answers(on_cpu, CHAIN, {"x": x})["y"] for x in xs]

    async def all_at_once() -> list[Tensor]:
        got = await asyncio.gather(*(engine.submit(lambda x=x: answers(engine, CHAIN, {"x": x})) for x in xs))
        return [answer["y"] for answer in got]

    for got, want in zip(asyncio.run(all_at_once()), expected, strict=True):
        assert_same_bits(got, want)


def test_small_calls_that_wait_together_have_the_bits_of_the_cpu(engine: Engine, on_cpu: Engine) -> None:
    xs = [moderate(dtype, 1000 + n, seed=n) for n in range(300) for dtype in (torch.float32, torch.float16)]
    calls = [plan("quantize", CHAIN, {"x": Bundle.of(on_wire(x))}) for x in xs]
    before = engine.coalesced_calls

    async def all_at_once() -> list[Tensor]:
        return [off_wire(answer["y"].tensors[0]) for answer in await asyncio.gather(*map(engine.compute, calls))]

    for x, got in zip(xs, asyncio.run(all_at_once()), strict=True):
        assert_same_bits(got, answers(on_cpu, CHAIN, {"x": x})["y"])
    assert engine.coalesced_calls > before


# Streams and memory ---------------------------------------------------------------------------------


def test_calls_overlap_on_the_device(engine: Engine) -> None:
    """Copies in and out at the same time: a half of the time, where the bus carries both ways."""
    calls = [call_over(KBitQuantize(k=4), pinned(engine, 64 * MIB)) for _ in range(6)]

    async def at_once() -> None:
        await asyncio.gather(*(engine.submit(lambda call=call: engine.run(call)) for call in calls))

    def one_after_the_other() -> None:
        for call in calls:
            engine.run(call)

    def seconds(action) -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    rounds = [(seconds(lambda: asyncio.run(at_once())), seconds(one_after_the_other)) for _ in range(7)][1:]
    overlapped, sequential = (statistics.median(times) for times in zip(*rounds, strict=True))
    assert overlapped < 0.9 * sequential


def test_large_bodies_are_received_into_page_locked_memory_that_is_used_again(engine: Engine) -> None:
    pool = Pool(engine.device.allocate)
    body = pool.take(4 * MIB + 128)
    assert torch.frombuffer(body, dtype=torch.uint8).is_pinned()
    address = np.frombuffer(body, dtype=np.uint8).ctypes.data
    pool.give(body)
    again = pool.take(4 * MIB + 128)
    assert np.frombuffer(again, dtype=np.uint8).ctypes.data == address


@pytest.fixture
def short_of_memory(engine: Engine) -> Iterator[None]:
    """A process that may have 40 MiB of the device, where a tile has 64."""
    device = torch.device(engine.device.name)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved(device) + 40 * MIB
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("short_of_memory")
@pytest.mark.parametrize("expression", [KBitQuantize(k=4), CHAIN], ids=str)
def test_a_tensor_larger_than_the_devices_memory_goes_through_in_tiles(
    engine: Engine, on_cpu: Engine, expression: Expression
) -> None:
    x = moderate(torch.float32, 160 * MIB // 4)
    expected = answers(on_cpu, expression, {"x": x})["y"]
    assert_same_bits(answers(engine, expression, {"x": x})["y"], expected)


@pytest.mark.usefixtures("short_of_memory")
def test_what_needs_more_than_there_is_is_refused_and_the_device_goes_on(engine: Engine) -> None:
    with pytest.raises(OutOfMemory):
        answers(engine, ClampByLinear(), {"x": moderate(torch.float32, 160 * MIB // 4)})
    assert engine.fault is None
    assert asyncio.run(engine.probe()) is None


# Devices and faults ---------------------------------------------------------------------------------


def test_workers_are_spread_over_the_devices(engine: Engine) -> None:
    count = torch.cuda.device_count()
    assert [choose("auto", worker).name for worker in range(2 * count)] == [f"cuda:{n % count}" for n in range(2 * count)]


class Careless(Cuda):
    """A device that reads beyond the end of a tensor, which no context survives."""

    def lift(self, host: Tensor) -> Tensor:
        on_device = super().lift(host)
        return on_device[torch.full((1,), host.numel(), device=on_device.device)]


def break_the_context() -> None:
    """In a process of its own: nothing can be done on the device afterwards."""
    engine = Engine(Careless(0, "test"))
    call = plan("quantize", KBitQuantize(k=4), {"x": Bundle.of(on_wire(torch.ones(3)))})
    for _ in range(2):
        try:
            asyncio.run(engine.compute(call))
        except Exception as error:
            print(type(error).__name__, error)
    print(engine.fault is not None)


@pytest.mark.usefixtures("engine")
def test_a_broken_context_fails_the_engine() -> None:
    here = Path(__file__).parent
    code = "import sys; sys.path[:0] = sys.argv[1:]; import test_cuda_device; test_cuda_device.break_the_context()"
    command = [sys.executable, "-c", code, str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=here.parent.parent)
    first, second, failed = done.stdout.splitlines()[-3:]
    assert first.startswith("DeviceFault cuda:0 failed: CUDA error")
    assert (second, failed) == (first, "True")
