"""Small calls that wait together, computed as one: the bits of each alone, and no fault of one is another's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest
import torch
from examples import DTYPES, assert_same_bits, moderate
from hypothesis import given
from hypothesis import strategies as st
from scripted_device import SOON_S, ScriptedDevice
from wire_tensors import off_wire, on_wire

from service.call import Call, Kind, plan
from service.device.coalescing import Queue, likeness, merge, split
from service.device.compute import compute
from service.device.devices import Cpu, Device
from service.device.engine import Engine
from service.device.gathering import LARGE_BYTES
from service.errors import DeviceFault, OutOfMemory
from service.ops import Expression, parse
from service.wire.message import Bundle, Message

EXPRESSIONS = [
    parse(text)
    for text in (
        "round",
        "k_bit_quantize(4)",
        "clamp(0, 1)",
        "clamp(0, 1) | k_bit_quantize(4) | step_quantize(0.3)",
        "affine_k_bit_quantize(4, 1.5, 0.25)",
    )
]
SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 3), (7,), (1024,), (2, 3, 4)]
STEP = EXPRESSIONS[4]


def call_of(
    kind: Kind,
    expression: Expression,
    dtype: torch.dtype,
    shapes: Sequence[tuple[int, ...]],
    *,
    fortran: bool = False,
    seed: int = 0,
) -> Call:
    """A call over a tensor of each of these shapes; over one alone where there is one."""
    names = ("x",) if kind == "quantize" else ("x", "grad_output")
    message = {}
    for place, name in enumerate(names):
        tensors = [on_wire(moderate(dtype, *shape, seed=seed + 10 * place + n), fortran=fortran) for n, shape in enumerate(shapes)]
        message[name] = Bundle(tuple(tensors), single=len(tensors) == 1)
    return plan(kind, expression, message)


def small(n: int = 3, *, expression: Expression = STEP, seed: int = 0) -> Call:
    return call_of("quantize", expression, torch.float32, [(n,)], seed=seed)


def copied(call: Call) -> Call:
    """The same call over memory of its own."""

    def bundle(one: Bundle | None) -> Bundle | None:
        return None if one is None else one._replace(tensors=tuple(t.like(memoryview(bytearray(t.data))) for t in one.tensors))

    return call._replace(x=bundle(call.x), grad_output=bundle(call.grad_output))


def alone(call: Call) -> Message:
    return Engine(Cpu("test")).run(copied(call))


def assert_same_answer(got: Message, expected: Message) -> None:
    assert got.keys() == expected.keys()
    for name, bundle in expected.items():
        assert (got[name].names, got[name].single) == (bundle.names, bundle.single)
        for one, other in zip(got[name].tensors, bundle.tensors, strict=True):
            assert (one.shape, one.dtype, one.fortran, one.style) == (other.shape, other.dtype, other.fortran, other.style)
            assert_same_bits(off_wire(one), off_wire(other))


# What goes together ---------------------------------------------------------------------------------

CASES = st.lists(
    st.tuples(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4), st.booleans(), st.integers(0, 5)), min_size=2, max_size=6
)


@pytest.mark.parametrize("device", [Cpu("test"), ScriptedDevice(tile_bytes=2048)], ids=["cpu", "beside the host"])
@pytest.mark.parametrize("kind", ["quantize", "grad"])
@given(cases=CASES, expression=st.sampled_from(EXPRESSIONS), dtype=st.sampled_from(DTYPES))
def test_together_each_has_the_bits_of_it_alone(
    device: Device, kind: Kind, cases: list[tuple[list[tuple[int, ...]], bool, int]], expression: Expression, dtype: torch.dtype
) -> None:
    calls = [call_of(kind, expression, dtype, shapes, fortran=fortran, seed=seed) for shapes, fortran, seed in cases]
    assert len({likeness(call) for call in calls}) == 1
    expected = [alone(call) for call in calls]
    for got, want in zip(split(compute(device, merge(calls)), calls), expected, strict=True):
        assert_same_answer(got, want)


def test_names_are_given_back() -> None:
    x = Bundle((on_wire(moderate(torch.float32, 3)), on_wire(moderate(torch.float32, 4))), names=("weight", "bias"))
    calls = [plan("quantize", STEP, {"x": x}), small()]
    expected = [alone(call) for call in calls]
    first, second = split(compute(Cpu("test"), merge(calls)), calls)
    assert_same_answer(first, expected[0])
    assert_same_answer(second, expected[1])


def test_a_failure_together_leaves_the_operands_as_they_came() -> None:
    calls = [small(seed=1), small(4, seed=2)]
    before = [bytes(call.operand.tensors[0].data) for call in calls]
    compute(Cpu("test"), merge(calls))
    assert [bytes(call.operand.tensors[0].data) for call in calls] == before


ALIKE = [
    (small(3), small(1000)),
    (small(3), call_of("quantize", parse("affine_k_bit_quantize(k=4, w=1.50, b=25e-2)"), torch.float32, [()])),
    (small(3), call_of("quantize", STEP, torch.float32, [(2, 3), (4,)], fortran=True)),
]
NOT_ALIKE = [
    (small(3), call_of("quantize", STEP, torch.float16, [(3,)])),
    (small(3), call_of("grad", STEP, torch.float32, [(3,)])),
    (small(3), small(3, expression=EXPRESSIONS[0])),
    (small(expression=parse("clamp(-0.0, 1)")), small(expression=parse("clamp(0.0, 1)"))),
    (
        call_of("grad", EXPRESSIONS[0], torch.float32, [(3,)]),
        plan("grad", EXPRESSIONS[0], {"grad_output": Bundle.of(on_wire(torch.ones(3)))}),
    ),
]
ALONE = {
    "a reduction": call_of("quantize", parse("clamp_by_linear"), torch.float32, [(3,)]),
    "a tensor parameter": plan(
        "quantize",
        parse("affine_k_bit_quantize(4, w, 0)"),
        {"x": Bundle.of(on_wire(torch.ones(3))), "w": Bundle.of(on_wire(torch.ones(())))},
    ),
    "a large tensor": call_of("quantize", STEP, torch.float32, [(LARGE_BYTES // 4,)]),
    "a large tensor among small ones": call_of("quantize", STEP, torch.float32, [(3,), (LARGE_BYTES // 4,)]),
    "two dtypes": plan("quantize", STEP, {"x": Bundle((on_wire(torch.ones(3)), on_wire(torch.ones(3).double())))}),
    "no tensor": plan("quantize", STEP, {"x": Bundle(())}),
    "two memory orders": plan(
        "grad",
        EXPRESSIONS[2],
        {"x": Bundle.of(on_wire(torch.ones(2, 3), fortran=True)), "grad_output": Bundle.of(on_wire(torch.ones(2, 3)))},
    ),
}


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_the_same_done_to_the_same_dtype_is_alike(one: Call, other: Call) -> None:
    assert likeness(one) is not None
    assert likeness(one) == likeness(other)


@pytest.mark.parametrize(("one", "other"), NOT_ALIKE)
def test_what_differs_in_more_than_shapes_is_not_alike(one: Call, other: Call) -> None:
    assert likeness(one) is not None
    assert likeness(other) is not None
    assert likeness(one) != likeness(other)


@pytest.mark.parametrize("why", ALONE)
def test_what_cannot_be_laid_side_by_side_is_computed_alone(why: str) -> None:
    assert likeness(ALONE[why]) is None


# The queue ------------------------------------------------------------------------------------------


def queue_of(calls: Sequence[Call], limit_bytes: int = 4096) -> tuple[Queue, list[Future[Message]]]:
    queue, outcomes = Queue(limit_bytes), [Future[Message]() for _ in calls]
    for call, outcome in zip(calls, outcomes, strict=True):
        queue.add(call, outcome)
    return queue, outcomes


def all_taken(queue: Queue, calls: Sequence[Call]) -> list[list[int]]:
    """The numbers of the calls, as they are taken."""
    numbers = {id(call): number for number, call in enumerate(calls)}
    taken = []
    while batch := queue.take():
        taken.append([numbers[id(waiting.call)] for waiting in batch])
    return taken


def test_the_oldest_call_goes_first_and_takes_along_what_is_like_it() -> None:
    other = parse("round")
    calls = [small(1), small(1, expression=other), small(2), ALONE["a reduction"], small(3), small(2, expression=other)]
    queue, _ = queue_of(calls)
    assert all_taken(queue, calls) == [[0, 2, 4], [1, 5], [3]]
    assert queue.coalesced_calls == 5


def test_bytes_are_limited_and_calls_are_not_counted() -> None:
    calls = [small(1) for _ in range(1000)] + [small(24), small(1)]
    queue, _ = queue_of(calls, limit_bytes=4096)
    assert all_taken(queue, calls) == [[*range(1000), 1000], [1001]]


def test_a_call_that_is_larger_than_the_limit_goes_alone() -> None:
    calls = [small(2000), small(1), small(1)]
    queue, _ = queue_of(calls, limit_bytes=4096)
    assert all_taken(queue, calls) == [[0], [1, 2]]


def test_one_that_does_not_fit_any_more_lets_a_smaller_one_pass() -> None:
    calls = [small(1000), small(1000), small(24)]
    queue, _ = queue_of(calls, limit_bytes=4096)
    assert all_taken(queue, calls) == [[0, 2], [1]]


def test_what_nobody_waits_for_is_left_out() -> None:
    calls = [small(1), small(2), small(3)]
    queue, outcomes = queue_of(calls)
    outcomes[0].cancel()
    outcomes[2].set_exception(DeviceFault("gone"))
    assert all_taken(queue, calls) == [[1]]
    assert queue.coalesced_calls == 0


# In the engine --------------------------------------------------------------------------------------


@pytest.fixture
def device() -> ScriptedDevice:
    return ScriptedDevice()


@pytest.fixture
def engine(device: ScriptedDevice) -> Iterator[Engine]:
    engine = Engine(device, device_timeout_s=SOON_S)
    yield engine
    engine.close()


async def computed_together(
    engine: Engine, device: ScriptedDevice, calls: Sequence[Call], errors: Sequence[Exception | None] = ()
) -> list[Message | BaseException]:
    """The answers to calls that all came while the only lane was busy; `errors` are for the lifts after that."""
    with device.held() as until_hanging:
        first = asyncio.create_task(engine.compute(small(1)))
        await asyncio.to_thread(until_hanging, 1)
        tasks = [asyncio.create_task(engine.compute(call)) for call in calls]
        await asyncio.sleep(0)  # by then each has run as far as it can: it waits
        device.errors.extend(errors)
    await first
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)


def test_calls_that_wait_are_launched_once(engine: Engine, device: ScriptedDevice) -> None:
    calls = [small(n, seed=n) for n in range(1, 40)]
    expected = [alone(call) for call in calls]
    answers = asyncio.run(computed_together(engine, device, calls))
    for got, want in zip(answers, expected, strict=True):
        assert isinstance(got, dict)
        assert_same_answer(got, want)
    assert device.synchronized == 2
    assert len(device.lifted_bytes) == 2
    assert engine.coalesced_calls == 39


def test_a_call_that_comes_alone_waits_for_nobody(engine: Engine, device: ScriptedDevice) -> None:
    for n in (1, 2, 3):
        call = small(n)
        expected = alone(call)
        assert_same_answer(asyncio.run(asyncio.wait_for(engine.compute(call), SOON_S)), expected)
    assert engine.coalesced_calls == 0


def test_calls_of_every_kind_wait_side_by_side(engine: Engine, device: ScriptedDevice) -> None:
    calls = [
        *(small(n, seed=n) for n in (1, 2)),
        *(copied(call) for call in ALONE.values()),
        *(call_of("grad", expression, dtype, [(3, 2)], seed=3) for expression in EXPRESSIONS for dtype in DTYPES for _ in range(2)),
    ]
    expected = [alone(call) for call in calls]
    for got, want in zip(asyncio.run(computed_together(engine, device, calls)), expected, strict=True):
        assert isinstance(got, dict)
        assert_same_answer(got, want)


@pytest.mark.parametrize("failing", range(4))
def test_one_that_fails_does_not_fail_the_others(engine: Engine, device: ScriptedDevice, failing: int) -> None:
    calls = [small(n + 1, seed=n) for n in range(4)]
    expected = [alone(call) for call in calls]
    # The launch of all four fails, then that of one of them alone.
    errors = [ValueError("together"), *([None] * failing), ValueError("alone")]
    for number, got in enumerate(asyncio.run(computed_together(engine, device, calls, errors))):
        if number == failing:
            assert isinstance(got, ValueError)
            assert str(got) == "alone"
        else:
            assert isinstance(got, dict)
            assert_same_answer(got, expected[number])


def test_memory_that_is_short_for_all_together_may_do_for_each(engine: Engine, device: ScriptedDevice) -> None:
    device.tile_bytes = device.least_tile_bytes = 2**20
    calls = [small(1000, seed=n) for n in range(5)]
    calls.append(small(1500))
    expected = [alone(call) for call in calls]
    device.room_bytes = 4000
    *fitting, larger = asyncio.run(computed_together(engine, device, calls))
    for got, want in zip(fitting, expected, strict=False):
        assert isinstance(got, dict)
        assert_same_answer(got, want)
    assert isinstance(larger, OutOfMemory)
    assert engine.fault is None


def test_a_broken_device_fails_them_all(engine: Engine, device: ScriptedDevice) -> None:
    answers = asyncio.run(
        computed_together(engine, device, [small(n) for n in (1, 2, 3)], [torch.AcceleratorError("CUDA error: broken")])
    )
    assert [type(answer) for answer in answers] == [DeviceFault] * 3


def test_infinity_and_nan_beside_an_element_do_not_touch_it(engine: Engine, device: ScriptedDevice) -> None:
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    calls = [plan("quantize", STEP, {"x": Bundle.of(on_wire(x))}) for x in (torch.ones(2), odd, torch.ones(3))]
    expected = [alone(call) for call in calls]
    for got, want in zip(asyncio.run(computed_together(engine, device, calls)), expected, strict=True):
        assert isinstance(got, dict)
        assert_same_answer(got, want)
