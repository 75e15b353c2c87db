"""A device that runs short of memory, breaks or hangs: what callers get, what becomes of the engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from examples import assert_same_bits, moderate, tensors_for
from scripted_device import SOON_S, ScriptedDevice
from torch import Tensor
from wire_tensors import off_wire, on_wire

from service.call import Call, plan
from service.device.devices import Cpu
from service.device.engine import Engine
from service.device.health import Health
from service.errors import DeviceFault, Draining, OutOfMemory
from service.ops import Expression, Round, parse
from service.wire.message import Bundle, Message

# Doing one of them twice, or leaving it out, shows.
STEPS = parse("affine_k_bit_quantize(k=4, w=1.5, b=0.25) | step_quantize(step=0.3)")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")
BROKEN = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")
TILE_BYTES, LEAST_BYTES = 64 * 1024, 4 * 1024


@pytest.fixture
def device() -> ScriptedDevice:
    return ScriptedDevice(tile_bytes=TILE_BYTES, least_tile_bytes=LEAST_BYTES)


@pytest.fixture
def engine(device: ScriptedDevice) -> Iterator[Engine]:
    engine = Engine(device, device_timeout_s=SOON_S)
    yield engine
    engine.close()


def call_of(
    expression: Expression, x: Tensor, grad_output: Tensor | None = None, tensors: dict[str, Tensor] | None = None, *, fortran=False
) -> Call:
    message = {"x": Bundle.of(on_wire(x, fortran=fortran))}
    message |= {name: Bundle.of(on_wire(tensor)) for name, tensor in (tensors or {}).items()}
    if grad_output is not None:
        message["grad_output"] = Bundle.of(on_wire(grad_output))
    return plan("quantize" if grad_output is None else "grad", expression, message)


def answer_of(message: Message, name: str = "y") -> Tensor:
    return off_wire(message[name].tensors[0])


# Memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room_bytes", [TILE_BYTES, TILE_BYTES - 1, TILE_BYTES // 4, LEAST_BYTES + 1, LEAST_BYTES])
def test_a_tensor_larger_than_the_memory_goes_through_in_smaller_tiles(
    engine: Engine, device: ScriptedDevice, room_bytes: int
) -> None:
    device.room_bytes = room_bytes
    x, grad_output = moderate(torch.float32, 100_001), moderate(torch.float32, 100_001, seed=1)
    assert_same_bits(answer_of(engine.run(call_of(STEPS, x))), STEPS.forward(x))
    clamp = parse("clamp(min_value=0, max_value=1) | round")
    gradient = answer_of(engine.run(call_of(clamp, x, grad_output)), "grad_x")
    assert_same_bits(gradient, clamp.backward(x, grad_output).grad_x)
    assert max(device.lifted_bytes) <= room_bytes
    assert (device.releases > 0) == (room_bytes < TILE_BYTES)
    assert engine.fault is None


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (211, 1), (211, 7), (3, 211, 7)], ids=str)
def test_tensor_parameters_are_cut_along_where_memory_is_short(
    engine: Engine, device: ScriptedDevice, shape: tuple[int, ...], fortran: bool
) -> None:
    device.room_bytes = 9000
    expression, x = parse("affine_k_bit_quantize(k=4, w=w, b=b)"), moderate(torch.float64, 3, 211, 7)
    tensors = tensors_for(expression, x, shape)
    call = call_of(expression, x, tensors=tensors, fortran=fortran)
    assert_same_bits(answer_of(engine.run(call)), expression.forward(x, tensors))
    assert device.releases > 0


@pytest.mark.parametrize("lifts_before", range(6))
def test_memory_that_is_short_for_a_moment_makes_no_step_happen_twice(
    engine: Engine, device: ScriptedDevice, lifts_before: int
) -> None:
    device.errors.extend([None] * lifts_before + [NO_MEMORY])
    x = moderate(torch.float32, 3 * TILE_BYTES // 4 + 5)
    assert_same_bits(answer_of(engine.run(call_of(STEPS, x))), STEPS.forward(x))
    assert device.releases == (1 if lifts_before < 4 else 0)


def test_calls_that_need_the_whole_tensor_are_tried_again_once(engine: Engine, device: ScriptedDevice) -> None:
    linear, x, g = parse("clamp_by_linear"), moderate(torch.float32, 50_000), moderate(torch.float32, 50_000, seed=1)
    device.errors.append(NO_MEMORY)
    assert_same_bits(answer_of(engine.run(call_of(linear, x))), linear.forward(x))
    device.errors.extend([None, NO_MEMORY])
    assert_same_bits(answer_of(engine.run(call_of(linear, x, g)), "grad_x"), linear.backward(x, g).grad_x)
    assert device.releases == 2
    device.errors.extend([NO_MEMORY, NO_MEMORY])
    with pytest.raises(OutOfMemory):
        engine.run(call_of(linear, x))


@pytest.mark.parametrize("error", [NO_MEMORY, RuntimeError("CUDA error: out of memory"), MemoryError()], ids=repr)
def test_what_fits_in_no_way_is_to_be_sent_again_later_and_the_device_goes_on(
    engine: Engine, device: ScriptedDevice, error: Exception
) -> None:
    x = moderate(torch.float32, 2 * TILE_BYTES // 4)
    device.errors.extend([None] + [error] * 4)
    with pytest.raises(OutOfMemory, match=r"scripted:0 has no memory left") as raised:
        engine.run(call_of(STEPS, x))
    assert (raised.value.status, raised.value.retry_after_s) == (503, 1.0)
    # The first tile was computed: by now nothing writes any more into memory that will be used again.
    assert device.pending == []
    device.errors.clear()
    assert engine.fault is None
    assert_same_bits(answer_of(engine.run(call_of(STEPS, x))), STEPS.forward(x))


def test_the_hosts_own_memory_may_be_short_too() -> None:
    class Short(Round):
        """An operator for which there is no memory."""

        def forward(self, *_: object, **__: object) -> Tensor:
            raise MemoryError

    engine = Engine(Cpu("test"))
    for attempt in (
        lambda: engine.run(Call("quantize", Short(), Bundle.of(on_wire(torch.ones(3))))),
        lambda: engine.run_in_place(Short(), torch.ones(3)),
    ):
        with pytest.raises(OutOfMemory):
            attempt()
    assert engine.fault is None


# Faults that stay -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BROKEN, RuntimeError("CUDA error: unspecified launch failure")], ids=repr)
def test_an_error_that_stays_fails_the_engine_for_good(engine: Engine, device: ScriptedDevice, error: Exception) -> None:
    noticed: list[str] = []
    engine.on_failure(lambda fault: noticed.append(fault.detail))
    device.errors.append(error)
    for attempt in (
        lambda: engine.run(call_of(Round(), torch.ones(3))),
        lambda: engine.run(call_of(Round(), torch.ones(3))),
        lambda: engine.run_in_place(Round(), torch.ones(3)),
        lambda: asyncio.run(engine.submit(lambda: engine.run(call_of(Round(), torch.ones(3))))),
        lambda: asyncio.run(engine.compute(call_of(Round(), torch.ones(3)))),
    ):
        with pytest.raises(DeviceFault, match=r"^scripted:0 failed: CUDA error: [a-z ]+$") as raised:
            attempt()
        assert (raised.value.code, raised.value.status, raised.value.retry_after_s) == ("device_lost", 503, 1.0)
    assert device.lifted_bytes == []
    assert engine.fault is not None
    engine.on_failure(lambda fault: noticed.append("late: " + fault.detail))
    assert noticed == [engine.fault.detail, "late: " + engine.fault.detail]


def test_the_first_reason_for_a_failure_counts() -> None:
    health, noticed = Health("test:0", None), []
    health.on_failure(lambda fault: noticed.append(fault.detail))
    health.fail("broke")
    health.fail("hangs")
    assert noticed == ["test:0 broke"]
    assert health.fault is not None
    assert health.fault.detail == "test:0 broke"


def test_an_error_of_our_own_does_not_fail_the_device(engine: Engine, device: ScriptedDevice) -> None:
    device.errors.append(KeyError("ours"))
    with pytest.raises(KeyError, match="ours"):
        engine.run(call_of(Round(), torch.ones(3)))
    assert engine.fault is None


def test_a_device_that_no_thread_can_enter_has_failed(engine: Engine, device: ScriptedDevice) -> None:
    device.errors_on_entering.append(ValueError("no stream"))
    with pytest.raises(DeviceFault, match="scripted:0 cannot be used by a thread: no stream"):
        asyncio.run(engine.submit(lambda: engine.run(call_of(Round(), torch.ones(3)))))


def test_calls_in_flight_are_answered_when_the_device_breaks_underneath_another() -> None:
    device = ScriptedDevice(lanes=2)
    engine = Engine(device, device_timeout_s=SOON_S)

    async def scenario() -> list[object]:
        with device.held() as until_hanging:
            hanging = [asyncio.create_task(engine.compute(call_of(Round(), torch.ones(n)))) for n in (3, 4)]
            await asyncio.to_thread(until_hanging, 1)
            waiting = [asyncio.create_task(engine.submit(lambda: engine.run(call_of(Round(), torch.ones(5))))) for _ in range(3)]
            await asyncio.sleep(0)
            device.errors.append(BROKEN)
            with pytest.raises(DeviceFault):
                engine.run(call_of(Round(), torch.ones(3)))
            return await asyncio.wait_for(asyncio.gather(*hanging, *waiting, return_exceptions=True), 1)

    outcomes = asyncio.run(scenario())
    engine.close()
    assert len({id(outcome) for outcome in outcomes}) == 5  # each caller gets an error of its own
    assert all(isinstance(outcome, DeviceFault) and not isinstance(outcome, OutOfMemory) for outcome in outcomes)


# Hanging --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["submit", "compute", "run"])
def test_a_call_that_does_not_come_back_fails_the_engine_though_its_thread_stays(way: str) -> None:
    device = ScriptedDevice()
    engine = Engine(device, device_timeout_s=0.2)
    failed = threading.Event()
    engine.on_failure(lambda _: failed.set())
    call = call_of(Round(), torch.ones(3))

    async def wait_for_it() -> None:
        work = engine.compute(call) if way == "compute" else engine.submit(lambda: engine.run(call))
        with pytest.raises(DeviceFault, match=r"scripted:0 has not come back from a call for 0\.2 s"):
            await asyncio.wait_for(work, SOON_S)

    with device.held() as until_hanging:
        if way == "run":
            thread = threading.Thread(target=engine.run, args=(call,), daemon=True)
            thread.start()
        else:
            asyncio.run(wait_for_it())
        assert failed.wait(SOON_S)
        until_hanging(1)
        with pytest.raises(DeviceFault):
            engine.run(call_of(Round(), torch.ones(3)))
        engine.close()  # which does not wait for the thread
    if way == "run":
        thread.join(SOON_S)


def test_neither_many_calls_nor_a_pause_are_taken_for_a_call_that_hangs(device: ScriptedDevice) -> None:
    engine = Engine(device, device_timeout_s=0.5)
    noticed = threading.Event()
    engine.on_failure(lambda _: noticed.set())
    began = time.monotonic()
    while time.monotonic() - began < 1:
        engine.run(call_of(Round(), torch.ones(3)))
        noticed.wait(0.01)
    assert not noticed.wait(1)
    engine.close()


HANGING_PROCESS = """
import asyncio, sys
sys.path[:0] = sys.argv[1:]
import torch
from scripted_device import ScriptedDevice
from wire_tensors import on_wire
from service.call import Call
from service.device.engine import Engine
from service.device.health import Health
from service.errors import DeviceFault
from service.ops import Round
from service.wire.message import Bundle
device = ScriptedDevice(hang_s=3600)
engine = Engine(device, device_timeout_s=0.2)
call = Call("quantize", Round(), Bundle.of(on_wire(torch.ones(3))))
hold = device.held()
hold.__enter__()
try:
    asyncio.run(engine.submit(lambda: engine.run(call)))
except DeviceFault:
    engine.close()
    sys.exit(70)
"""


def test_a_process_can_end_while_a_thread_hangs_in_the_device() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", HANGING_PROCESS, str(here)]
    assert subprocess.run(command, timeout=60, check=False, cwd=here.parent.parent).returncode == 70


# The end --------------------------------------------------------------------------------------------


def test_closing_ends_what_has_begun_and_refuses_what_has_not(engine: Engine, device: ScriptedDevice) -> None:
    async def scenario() -> list[object]:
        with device.held() as until_hanging:
            tasks = [asyncio.create_task(engine.submit(lambda: engine.run(call_of(Round(), torch.ones(3))))) for _ in range(3)]
            await asyncio.to_thread(until_hanging, 1)
            closing = asyncio.create_task(asyncio.to_thread(engine.close))
            await asyncio.sleep(0)
        await closing
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)

    first, *others = asyncio.run(scenario())
    assert isinstance(first, dict)
    assert all(isinstance(other, (dict, Draining)) for other in others)
    with pytest.raises(Draining):
        asyncio.run(engine.submit(int))


def test_work_of_one_lane_is_done_in_the_order_in_which_it_came(engine: Engine) -> None:
    done: list[int] = []

    async def scenario() -> None:
        await asyncio.gather(*(engine.submit(lambda n=n: done.append(n)) for n in range(100)))

    asyncio.run(scenario())
    assert done == list(range(100))


def test_lanes_work_at_the_same_time_each_on_a_thread_that_was_prepared() -> None:
    device = ScriptedDevice(lanes=3)
    engine = Engine(device, device_timeout_s=SOON_S)
    all_here = threading.Barrier(3)

    async def scenario() -> None:
        await asyncio.gather(*(engine.submit(lambda: all_here.wait(SOON_S)) for _ in range(3)))

    asyncio.run(scenario())
    engine.close()
    assert len(device.lane_threads) == 3


def test_work_that_nobody_waits_for_any_more_is_not_begun(engine: Engine, device: ScriptedDevice) -> None:
    begun: list[str] = []

    async def scenario() -> None:
        with device.held() as until_hanging:
            first = asyncio.create_task(engine.submit(lambda: engine.run(call_of(Round(), torch.ones(3)))))
            await asyncio.to_thread(until_hanging, 1)
            gone = asyncio.create_task(engine.submit(lambda: begun.append("gone")))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait([gone])
        await first
        await engine.submit(lambda: begun.append("last"))

    asyncio.run(scenario())
    assert begun == ["last"]
